"""The composition: layers made of operations, with the operations' contract.

A layer's forward takes its input and its parameters (a node of `numpygpt.parameters`) and returns (output, saved); its
backward is the mirrored list of calls and returns Gradients(x, parameters), the second in the parameters' own tree.
"""
