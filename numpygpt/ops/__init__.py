"""The mathematics, one operation a file: the derivation, the forward, the backward.

Every operation keeps one contract:

    forward(inputs and parameters, *, options) -> (output, saved)
    backward(d_output, saved)                  -> Gradients, a NamedTuple whose fields are named as forward's arguments

Both are pure: nothing is remembered between calls and no argument is changed. The numbers (1), (2), ... in a docstring
stand again beside the lines of forward that compute them and the lines of backward that undo them.

The option `wanted` of an operation with several differentiable arguments names those whose gradients will be asked for.
The others get None, and the products for them are not computed.

In all formulas, x is the input of an operation and y its output, and

    a @ b    is the product of matrices (of the last two axes)
    a * b    is the elementwise product; one factor may be a number, or a vector that is repeated
    2 a      is 2 * a: only a number may stand before a factor without a sign
    <a, b>   is the sum of a * b over all elements

The derivations use one recipe (Giles 2008, "Collected matrix derivative results for forward and reverse mode
algorithmic differentiation", section 2.2). The gradient d_x is defined by dL = <d_x, dx> for every small change dx.
Start from dL = <d_y, dy>, express dy through dx by differentiating the forward, and move everything but dx to the left
of the comma:

    <a, b @ c> = <bᵀ @ a, c> = <a @ cᵀ, b>    for matrices
    <a, b> = <aᵀ, bᵀ>                         the same elements, in another order
    <a, b * c> = <a * b, c>                   for elementwise products
    <a, sum(c)> = <a repeated, c>             what the forward sums, the backward repeats, and the other way round
"""
