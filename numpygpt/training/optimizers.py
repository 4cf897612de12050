"""The optimizers by name, and the hyper-parameters of a run's optimizer.

docs/optimizers.md has them in one table: formula, what is kept, bytes, and when to use which.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.model.sizes import matrices_of_blocks, num_parameters
from numpygpt.training.adagrad import Adagrad
from numpygpt.training.adam import Adam
from numpygpt.training.adamw import AdamW
from numpygpt.training.groups import Group
from numpygpt.training.lion import Lion
from numpygpt.training.muon import Muon
from numpygpt.training.optimizer import Optimizer, Zeros, in_memory
from numpygpt.training.rmsprop import RMSprop
from numpygpt.training.sgd import SGD

OPTIMIZERS: dict[str, type[Optimizer]] = {
    optimizer.kind: optimizer for optimizer in (AdamW, Adam, SGD, RMSprop, Adagrad, Lion, Muon)
}


def settings_of(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of the optimizer of this name: those that are given, and the defaults of the others.

    given   {name: value}; a value of None is not given

    Raises InputError for one that the optimizer does not have, and for a value that is out of range.
    """
    optimizer = OPTIMIZERS[kind]
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if name not in optimizer.settings:
            others = ", ".join(other.kind for other in OPTIMIZERS.values() if name in other.settings)
            raise InputError(f"the optimizer {kind} has no {name}; leave it out, or choose one that has: {others}")
    defaults = inspect.signature(optimizer).parameters
    return optimizer.checked({name: chosen.get(name, defaults[name].default) for name in optimizer.settings})


def new_optimizer(
    kind: str, model: Any, settings: Mapping[str, Any], groups: Sequence[Group], *, zeros: Zeros = in_memory
) -> Optimizer:
    """The optimizer of this name for a model, with all of its hyper-parameters (`settings_of`)."""
    optimizer: Any = OPTIMIZERS[kind]  # each has arguments of its own
    made: Optimizer = optimizer(model, **settings, groups=groups, zeros=zeros)
    return made


def state_bytes_of(
    kind: str, settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], dtype: Any = np.float32
) -> int:
    """Bytes of the moments that the optimizer of this name keeps of parameters of these names and shapes."""
    kinds_of = OPTIMIZERS[kind].kinds_of
    values = sum(math.prod(shape) * len(kinds_of(name, len(shape), settings)) for name, shape in shapes.items())
    return int(np.dtype(dtype).itemsize) * values


def state_bytes(kind: str, settings: Mapping[str, Any], config: GPTConfig, dtype: Any = np.float32) -> int:
    """Bytes of the moments that the optimizer of this name keeps of a model of this configuration."""
    optimizer, matrices = OPTIMIZERS[kind], matrices_of_blocks(config)
    values = sum(
        count * len(optimizer.kinds_of(name, 2, settings))
        for name, count in (("trf_blocks.", matrices), ("", num_parameters(config) - matrices))
    )
    return int(np.dtype(dtype).itemsize) * values
