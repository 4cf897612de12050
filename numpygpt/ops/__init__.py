"""The mathematics, one operation a file: the derivation, the forward, the backward.

Every operation keeps one contract:

    forward(inputs and parameters, *, options) -> (output, saved)
    backward(d_output, saved)                  -> Gradients, a NamedTuple whose fields are named as forward's arguments

Both are pure: nothing is remembered between calls and no argument is changed. The numbers (1), (2), ... in a docstring
stand again beside the lines of forward that compute them and the lines of backward that undo them.

The derivations use one recipe (Giles 2008, "Collected matrix derivative results for forward and reverse mode
algorithmic differentiation", section 2.2). Write <a, b> for the sum of a * b over all elements. The gradient d_x is
defined by dL = <d_x, dx> for every small change dx. Start from dL = <d_y, dy>, express dy through dx by differentiating
the forward, and move everything but dx to the left of the comma:

    <a, b c> = <bᵀ a, c> = <a cᵀ, b>          for matrices
    <a, b * c> = <a * b, c>                   for elementwise products
    <a, sum(c)> = <a repeated, c>             what the forward sums, the backward repeats, and the other way round
"""
