"""The rows of a micro-batch that a process computes."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from numpygpt.ops.cross_entropy import IGNORE_INDEX


class Placed(NamedTuple):
    """The rows of a micro-batch that this process computes, on its device. Targets of -100 do not count.

    inputs    (rows, T)   token ids, int64
    targets   (rows, T)   token ids, int64
    """

    inputs: Tensor
    targets: Tensor

    def padded(self, rows: int) -> "Placed":
        """The same rows, and then rows that do not count, `rows` in all."""
        below = (0, 0, 0, rows - len(self.inputs))
        return Placed(F.pad(self.inputs, below), F.pad(self.targets, below, value=IGNORE_INDEX))
