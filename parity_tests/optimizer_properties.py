"""The optimizers and the schedules on a few fixed arrays, beside PyTorch's and beside their closed forms.

As in `parity_tests.properties`, a property is a function that raises AssertionError if it does not hold, and all that
it draws is fixed, so that it catches a planted bug each time.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch

from numpygpt.checks.compare import FLOAT64_NORMWISE
from numpygpt.shapes import Array
from numpygpt.training import schedules
from numpygpt.training.adagrad import Adagrad
from numpygpt.training.adam import Adam
from numpygpt.training.lion import Lion
from numpygpt.training.muon import Muon
from numpygpt.training.optimizer import Optimizer
from numpygpt.training.rmsprop import RMSprop
from numpygpt.training.sgd import SGD
from numpygpt.watch import Watch
from torchgpt.engine import own_optimizers

#: A tall, a wide and a square matrix of a block, and what Muon leaves to AdamW.
SHAPES = {
    "tok_emb.weight": (7, 4),
    "trf_blocks.0.att.W_query.weight": (4, 4),
    "trf_blocks.0.ff.layers.0.weight": (9, 4),
    "trf_blocks.0.ff.layers.2.weight": (4, 9),
    "trf_blocks.0.norm1.scale": (4,),
    "out_head.weight": (7, 4),
}
STEPS = 4


class Way(NamedTuple):
    """An optimizer with settings, and what makes PyTorch's of {name: parameter}."""

    ours: Callable[..., Optimizer]
    settings: Mapping[str, Any]
    theirs: Callable[[dict[str, torch.nn.Parameter]], list[torch.optim.Optimizer]]


def _way(ours: Any, theirs: Any, **settings: Any) -> Way:
    return Way(ours, settings, lambda parameters: [theirs(list(parameters.values()), **settings)])


def muon_of_pytorch(parameters: dict[str, torch.nn.Parameter], **settings: Any) -> list[torch.optim.Optimizer]:
    """torch.optim.Muon for the matrices of the blocks, and torch.optim.AdamW for the rest."""
    rest = {name: settings.pop(name) for name in ("betas", "eps")}
    rest |= {"lr": settings["lr"] * settings.pop("rest_lr_scale"), "weight_decay": settings["weight_decay"]}
    matrices = {name: p for name, p in parameters.items() if name.startswith("trf_blocks.") and p.ndim == 2}
    others = [p for name, p in parameters.items() if name not in matrices]
    return [torch.optim.Muon(list(matrices.values()), **settings), torch.optim.AdamW(others, **rest)]


_MUON = {"lr": 0.1, "weight_decay": 0.3, "betas": (0.9, 0.95), "eps": 1e-8, "rest_lr_scale": 0.5}

WAYS: dict[str, Way] = {
    "sgd": _way(SGD, torch.optim.SGD, lr=0.1, weight_decay=0.3),
    "sgd_damped": _way(SGD, torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.25),
    "sgd_nesterov": _way(SGD, torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.3, nesterov=True),
    "rmsprop": _way(RMSprop, torch.optim.RMSprop, lr=0.1, alpha=0.9, eps=1e-2, weight_decay=0.3),
    "rmsprop_centered": _way(RMSprop, torch.optim.RMSprop, lr=0.1, alpha=0.7, eps=1e-2, momentum=0.9, centered=True),
    "adagrad": _way(Adagrad, torch.optim.Adagrad, lr=0.1, eps=1e-2, weight_decay=0.3),
    "adam": _way(Adam, torch.optim.Adam, lr=0.1, betas=(0.8, 0.9), eps=1e-2, weight_decay=0.3),
    "lion": _way(Lion, own_optimizers.Lion, lr=0.1, betas=(0.7, 0.95), weight_decay=0.3),
    "muon": Way(
        Muon, {**_MUON, "momentum": 0.8, "nesterov": True},
        partial(muon_of_pytorch, **_MUON, momentum=0.8, nesterov=True),
    ),
    "muon_without_nesterov": Way(
        Muon, {**_MUON, "momentum": 0.8, "nesterov": False},
        partial(muon_of_pytorch, **_MUON, momentum=0.8, nesterov=False),
    ),
}  # fmt: skip


def arrays_of(seed: int) -> dict[str, Array]:
    """Arrays of ordinary size, of the shapes above."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def in_numpy(way: Way, weights: Mapping[str, Array], gradients: list[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    """After each step, the moments and the parameters by name."""
    parameters = {name: array.copy() for name, array in weights.items()}
    optimizer = way.ours(parameters, **way.settings)
    for gradient in gradients:
        optimizer.step(gradient)
        moments = {
            f"{kind}.{name}": array for kind, arrays in optimizer.moments.items() for name, array in arrays.items()
        }
        yield {**moments, **parameters}


def in_torch(way: Way, weights: Mapping[str, Array], gradients: list[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    """The same by PyTorch. Where its Muon would compute in bfloat16, it computes in the parameters' dtype."""
    parameters = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in weights.items()}
    optimizers = way.theirs(parameters)
    for gradient in gradients:
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(gradient[name].copy())
        with patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
            for optimizer in optimizers:
                optimizer.step()
        states = {parameter: state for optimizer in optimizers for parameter, state in optimizer.state.items()}
        moments = {
            f"{kind}.{name}": value.numpy()
            for name, parameter in parameters.items()
            for kind, value in states.get(parameter, {}).items()
            if isinstance(value, torch.Tensor) and kind != "step"
        }
        yield {**moments, **{name: parameter.detach().numpy() for name, parameter in parameters.items()}}


def agree(ours: Array, expected: Array, what: str) -> None:
    assert ours.shape == expected.shape, what
    assert ours.dtype == expected.dtype, what
    assert np.linalg.norm(ours - expected) <= FLOAT64_NORMWISE * np.linalg.norm(expected), what


# The properties


def optimizers() -> None:
    """Parameters and moments equal PyTorch's over several steps."""
    weights, gradients = arrays_of(1), [arrays_of(seed) for seed in range(2, 2 + STEPS)]
    for which, way in WAYS.items():
        both = zip(in_numpy(way, weights, gradients), in_torch(way, weights, gradients), strict=True)
        for step, (ours, theirs) in enumerate(both, start=1):
            assert ours.keys() == theirs.keys(), which
            for name in ours:
                agree(ours[name], theirs[name], f"{which}, step {step}: {name}")


def by_hand() -> None:
    """Two steps of each optimizer equal their closed forms, and schedules have the rates that they have by hand."""
    weights, g1, g2 = arrays_of(1), arrays_of(2), arrays_of(3)
    for which, way in WAYS.items():
        first, second = (dict(step) for step in _copies(in_numpy(way, weights, [g1, g2])))
        for name, p in weights.items():
            moved = _CLOSED_FORMS[which](name, p, g1[name], g2[name])
            agree(first[name], moved[0], f"{which}, step 1: {name}")
            agree(second[name], moved[1], f"{which}, step 2: {name}")
    for name, expected in BY_HAND.items():
        agree(np.array(RATES[name]()), np.array(expected), name)


def _copies(steps: Iterator[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    for step in steps:
        yield {name: array.copy() for name, array in step.items()}


Moved = tuple[Array, Array]


def _sgd(name: str, p: Array, g1: Array, g2: Array) -> Moved:
    """Decay 0.3 at the rate 0.1 takes 3 % of the weight."""
    after = 0.97 * p - 0.1 * g1
    return after, 0.97 * after - 0.1 * g2


def _sgd_damped(name: str, p: Array, g1: Array, g2: Array) -> Moved:
    after = p - 0.1 * g1
    return after, after - 0.1 * (0.9 * g1 + 0.75 * g2)


def _sgd_nesterov(name: str, p: Array, g1: Array, g2: Array) -> Moved:
    d1 = g1 + 0.3 * p
    after = p - 0.1 * 1.9 * d1
    d2 = g2 + 0.3 * after
    return after, after - 0.1 * (1.9 * d2 + 0.81 * d1)


def _rmsprop(name: str, p: Array, g1: Array, g2: Array) -> Moved:
    d1 = g1 + 0.3 * p
    after = p - 0.1 * d1 / (np.sqrt(0.1) * np.abs(d1) + 1e-2)
    d2 = g2 + 0.3 * after
    return after, after - 0.1 * d2 / (np.sqrt(0.09 * d1**2 + 0.1 * d2**2) + 1e-2)


def _rmsprop_centered(name: str, p: Array, g1: Array, g2: Array) -> Moved:
    """The variance of one value with the weight w, and 0 with the rest, is w (1 - w) g²."""
    d1 = g1 / (np.sqrt(0.3 * 0.7) * np.abs(g1) + 1e-2)
    mean = 0.21 * g1 + 0.3 * g2
    variance = 0.21 * (g1 - mean) ** 2 + 0.3 * (g2 - mean) ** 2 + 0.49 * mean**2
    d2 = g2 / (np.sqrt(variance) + 1e-2)
    after = p - 0.1 * d1
    return after, after - 0.1 * (0.9 * d1 + d2)


def _adagrad(name: str, p: Array, g1: Array, g2: Array) -> Moved:
    d1 = g1 + 0.3 * p
    after = p - 0.1 * d1 / (np.abs(d1) + 1e-2)
    d2 = g2 + 0.3 * after
    return after, after - 0.1 * d2 / (np.hypot(d1, d2) + 1e-2)


def _adam(name: str, p: Array, g1: Array, g2: Array) -> Moved:
    d1 = g1 + 0.3 * p
    after = p - 0.1 * d1 / (np.abs(d1) + 1e-2)
    d2 = g2 + 0.3 * after
    mean, square = (0.16 * d1 + 0.2 * d2) / 0.36, (0.09 * d1**2 + 0.1 * d2**2) / 0.19
    return after, after - 0.1 * mean / (np.sqrt(square) + 1e-2)


def _lion(name: str, p: Array, g1: Array, g2: Array) -> Moved:
    after = 0.97 * p - 0.1 * np.sign(g1)
    return after, 0.97 * after - 0.1 * np.sign(0.7 * 0.05 * g1 + 0.3 * g2)


def _muon(name: str, p: Array, g1: Array, g2: Array, *, nesterov: bool = True) -> Moved:
    if not (name.startswith("trf_blocks.") and p.ndim == 2):
        after = 0.985 * p - 0.05 * g1 / (np.abs(g1) + 1e-8)
        mean = (0.09 * g1 + 0.1 * g2) / 0.19
        square = (0.0475 * g1**2 + 0.05 * g2**2) / 0.0975
        return after, 0.985 * after - 0.05 * mean / (np.sqrt(square) + 1e-8)
    scale = 0.1 * max(1, p.shape[0] / p.shape[1]) ** 0.5
    after = 0.97 * p - scale * by_singular_values(g1)
    mean = 0.16 * g1 + 0.2 * g2
    return after, 0.97 * after - scale * by_singular_values(0.2 * g2 + 0.8 * mean if nesterov else mean)


def by_singular_values(matrix: Array) -> Array:
    """The iteration of Newton and Schulz on the singular values alone."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (left * values) @ right


_CLOSED_FORMS: dict[str, Callable[[str, Array, Array, Array], Moved]] = {
    "sgd": _sgd,
    "sgd_damped": _sgd_damped,
    "sgd_nesterov": _sgd_nesterov,
    "rmsprop": _rmsprop,
    "rmsprop_centered": _rmsprop_centered,
    "adagrad": _adagrad,
    "adam": _adam,
    "lion": _lion,
    "muon": _muon,
    "muon_without_nesterov": partial(_muon, nesterov=False),
}

# Schedules

_LENGTHS = {"peak_lr": 0.8, "warmup_steps": 4, "total_steps": 12, "min_lr": 0.2}


def _rates(schedule: Callable[..., float], **options: Any) -> list[float]:
    return [schedule(step, **options) for step in range(14)]


RATES: dict[str, Callable[[], list[float]]] = {
    "constant": lambda: _rates(schedules.constant, peak_lr=0.8, warmup_steps=4),
    "linear": lambda: _rates(schedules.warmup_linear, **_LENGTHS),
    "cosine": lambda: _rates(schedules.warmup_cosine, **_LENGTHS),
    "wsd": lambda: _rates(schedules.warmup_stable_decay, **_LENGTHS, decay_steps=3),
}
_WARM_UP = [0.2, 0.4, 0.6, 0.8]
_COSINE = [0.5 + 0.3 * np.cos(np.pi * eighths / 8) for eighths in range(8)]
#: The rates of steps 0 to 13. A peak of 0.8 is 0.6 above the minimum.
BY_HAND: dict[str, list[float]] = {
    "constant": [*_WARM_UP, *[0.8] * 10],
    "linear": [*_WARM_UP, 0.8, 0.725, 0.65, 0.575, 0.5, 0.425, 0.35, 0.275, 0.2, 0.2],
    "cosine": [*_WARM_UP, *_COSINE, 0.2, 0.2],
    "wsd": [*_WARM_UP, *[0.8] * 6, 0.6, 0.4, 0.2, 0.2],
}


def in_sequence() -> None:
    """The rates of each schedule are those of PyTorch's schedulers, one after another."""
    import torch.optim.lr_scheduler as by_torch

    def then(optimizer: torch.optim.Optimizer, *parts: tuple[Any, int]) -> Any:
        """A warm-up, and then schedulers, each with the number of steps that it begins after the last one."""
        made = [by_torch.LinearLR(optimizer, 1 / 4, total_iters=3), *(make(optimizer) for make, _ in parts)]
        ends = list(np.cumsum([length for _, length in parts]))
        return by_torch.SequentialLR(optimizer, made, milestones=[int(end) for end in ends])

    stays = partial(by_torch.ConstantLR, factor=1.0, total_iters=0)
    sequences: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
        "constant": lambda optimizer: then(optimizer, (stays, 4)),
        "linear": lambda optimizer: then(
            optimizer, (partial(by_torch.LinearLR, start_factor=1.0, end_factor=0.25, total_iters=8), 4)
        ),
        "cosine": lambda optimizer: then(optimizer, (partial(by_torch.CosineAnnealingLR, T_max=8, eta_min=0.2), 4)),
        "wsd": lambda optimizer: then(
            optimizer, (stays, 4), (partial(by_torch.LinearLR, start_factor=1.0, end_factor=0.25, total_iters=3), 5)
        ),
    }
    for name, make in sequences.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # SequentialLR calls its parts as PyTorch advises against
            scheduler, theirs = make(optimizer), []
        for _ in range(13):
            theirs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                scheduler.step()
        agree(np.array(RATES[name]()[:13]), np.array(theirs), name)


# The run through everything, tensor by tensor


def tell(watch: Watch) -> None:
    """The moments and the parameters of each optimizer after each of two steps, and the rates of each schedule."""
    weights, gradients = arrays_of(1), [arrays_of(2), arrays_of(3)]
    for which, way in WAYS.items():
        for step, tensors in enumerate(in_numpy(way, weights, gradients), start=1):
            for name, tensor in tensors.items():
                watch(f"{which}.step{step}.{name}", tensor)
    for name, rates in RATES.items():
        watch(f"schedules.{name}", np.array(rates()))


PROPERTIES: dict[str, Callable[[], None]] = {
    "optimizers": optimizers,
    "by_hand": by_hand,
    "in_sequence": in_sequence,
}
