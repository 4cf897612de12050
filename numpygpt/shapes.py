"""The letters of every shape in this package, and the array annotations made of them.

    B  batch                    sequences side by side
    T  tokens                   positions in a sequence, T <= C
    S  source tokens            positions that can be attended to: S = T, or past + T when decoding with a cache
    C  context_length           the longest sequence the model has a position for
    D  emb_dim                  width of the residual stream
    H  n_heads                  attention heads
    K  head_dim                 D / H
    F  hidden width             4 D, inside the feed-forward network
    V  vocab_size               number of token ids
    N  rows                     any number of leading axes taken as one

An annotation such as `Inexact[Array, "B T D"]` is jaxtyping's. It says that a value is an array of floating-point or
complex numbers with these axes; equal letters in one signature mean equal sizes. `...` stands for any leading axes, and
`*rows` for leading axes that occur again in the same signature. Annotations cost nothing at run time. The test suite
has every one of them checked: those of a function at each call, and those of a NamedTuple's fields, which count as one
signature, when the tuple is made. `_make` and `_replace` are not checked, because they also make trees that hold None
or tensors in the place of arrays.
"""

import numpy as np
from jaxtyping import Bool, Inexact, Integer

Array = np.ndarray

#: What targets, labels or ids hold where nothing counts, as in PyTorch.
IGNORE_INDEX = -100

__all__ = ["IGNORE_INDEX", "Array", "Bool", "Inexact", "Integer"]
