"""The composition: layers made of operations, with the operations' contract.

A layer's forward takes its input and its parameters (a node of `numpygpt.layers.parameters`) and returns (output,
saved); its backward is the mirrored list of calls and returns Gradients(x, parameters), the second in the parameters'
own tree. Two options are common to all layers:

    trained   which of the parameters are trained, by their names in the layer (`numpygpt.tree`); the gradient of
              another is None
    wants_x   whether the gradient of x will be asked for: False if nothing before the layer is trained

What neither a trained parameter nor x needs is not computed in the backward. What was saved for it is dropped in the
forward: by a whole block (`numpygpt.model.body`), by the attention in a block (`numpygpt.layers.multi_head_attention`),
and a factor of a projection (`numpygpt.ops.linear`).
"""
