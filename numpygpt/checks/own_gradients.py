"""The house's own gradients against complex step: of every operation, and of a small whole model.

Every check differentiates L = <d_output, output>, the sum of the products of their elements, with a random cotangent
d_output. A cotangent of ones would hide errors: L would be the sum of the outputs. Every row that softmax gives sums to
1, and every row that is normalized sums to 0. So L would be a constant, its gradient would be zero, and any multiple of
the right gradient would pass.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from numpygpt.checks.derivatives import ROUNDING, THRESHOLD, complex_step
from numpygpt.checks.record import Call, differentiated
from numpygpt.checks.records import OPERATIONS
from numpygpt.checks.source import AtRandom, Source
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.ops import cross_entropy, gelu_erf
from numpygpt.shapes import Array
from numpygpt.tree import mapped_by_name, named


class Verdict(NamedTuple):
    """How far one gradient is from complex step's.

    error    ‖ours - reference‖ / ‖reference‖, in Euclidean norms of the whole tensor. It is ‖ours - reference‖ if the
             reference is zero except for rounding, and infinite if ours is missing, misshaped or unexpected
    passed   whether error <= THRESHOLD, or the difference is as small as rounding of the case's largest gradient; a NaN
             never passes. None: no verdict, because the reference is zero except for rounding, and so is ours: any
             multiple of the right gradient would pass
    """

    case: str
    gradient: str
    elements: int
    error: float
    passed: bool | None


def judge(case: str, ours: Mapping[str, Array], references: Mapping[str, Array]) -> list[Verdict]:
    """Compare gradients with their references, name by name: a verdict for each.

    A gradient fails also if it is missing or misshaped, holds a NaN, or has no reference. A reference that is at most
    ROUNDING times the largest of its case is zero except for rounding.

    `gradcheck` has a judge of its own. Its references come with estimated errors, and its backwards may round as they
    like, so that each gradient has its own limit. Here all references are complex step's, and one limit holds for all.
    """
    zero = ROUNDING * max((np.linalg.norm(reference) for reference in references.values()), default=0.0)
    verdicts = []
    for name, reference in references.items():
        error = float("inf")
        passed: bool | None = False
        if name in ours and ours[name].shape == reference.shape:
            difference, norm = np.linalg.norm(ours[name] - reference), np.linalg.norm(reference)
            if norm <= zero:
                error, passed = float(difference), None if difference <= zero else False
            else:
                error = float(difference / norm)
                passed = bool(difference <= max(THRESHOLD * norm, zero))
        verdicts.append(Verdict(case, f"d_{name}", reference.size, error, passed))
    unasked = [name for name in ours if name not in references]
    return verdicts + [Verdict(case, f"d_{name}", ours[name].size, float("inf"), False) for name in unasked]


class Case(NamedTuple):
    """An operation or layer, and the float64 arguments at which it is checked.

    arguments   forward's positional arguments by name; arrays and trees of arrays
    options     forward's keyword arguments
    """

    name: str
    operation: Any
    arguments: Mapping[str, Any]
    options: Mapping[str, Any] = {}


def check(case: Case, rng: np.random.Generator) -> list[Verdict]:
    """A verdict for every array whose gradient the case asks for. `rng` draws the cotangent."""
    output, saved = case.operation.forward(*case.arguments.values(), **case.options)
    d_output = np.array(rng.standard_normal(np.shape(output)))
    gradients = case.operation.backward(d_output[()], saved)

    def scalar(name: str, stepped: Array) -> Any:
        arguments = _complex_with({name}, stepped, case.arguments)
        return (d_output * case.operation.forward(*arguments.values(), **case.options)[0]).sum()

    asked_for = differentiated(case.operation, Call(case.arguments, case.options))
    return judge(case.name, dict(named(gradients._asdict())), _references(scalar, asked_for))


def check_model(config: GPTConfig, rng: np.random.Generator) -> list[Verdict]:
    """Two verdicts for every parameter of a whole model with dropout: from the logits, and from the loss."""
    B, T = 2, config.context_length - 1
    model = GPTModel(config, dtype=np.float64)
    for parameter in model.named_parameters().values():
        parameter[...] = rng.standard_normal(parameter.shape) / 2
    inputs, targets = rng.integers(0, config.vocab_size, (2, B, T))
    masks = model.draw_dropout_masks(rng, B, T)
    logits, saved = model.forward(inputs, masks=masks)
    d_logits = rng.standard_normal(logits.shape)

    def loss(logits: Array) -> tuple[Any, Any]:
        return cross_entropy.forward(logits.reshape(-1, config.vocab_size), targets.reshape(-1))

    d_loss_logits = cross_entropy.backward(1.0, loss(logits)[1]).logits.reshape(logits.shape)

    def logits_of(name: str, stepped: Array) -> Array:
        tie = {"tok_emb.weight", "out_head.weight"} if config.tie_weights else set()
        other = copy.copy(model)
        other.parameters = _complex_with(tie if name in tie else {name}, stepped, model.parameters)
        return other.forward(inputs, masks=masks)[0]

    tied = ", tied" if config.tie_weights else ""
    return [
        *judge(
            f"model, logits{tied}",
            model.backward(d_logits, saved),
            _references(
                lambda name, stepped: (d_logits * logits_of(name, stepped)).sum(), model.named_parameters()
            ),
        ),
        *judge(
            f"model, loss{tied}",
            model.backward(d_loss_logits, saved),
            _references(lambda name, stepped: loss(logits_of(name, stepped))[0], model.named_parameters()),
        ),
    ]


def _complex_with(names: set[str], stepped: Array, arguments: Any) -> Any:
    """The tree in complex128, with `stepped` for the arrays of these names; ids and masks stay as they are."""

    def convert(name: str, array: Array) -> Array:
        if name in names:
            return stepped
        return array.astype(np.complex128) if np.issubdtype(array.dtype, np.inexact) else array

    return mapped_by_name(convert, arguments)


def _references(scalar: Callable[[str, Array], Any], targets: Mapping[str, Array]) -> dict[str, Array]:
    return {name: complex_step(partial(scalar, name), target) for name, target in targets.items()}


SMALL_MODEL = GPTConfig(
    vocab_size=11, context_length=6, emb_dim=6, n_heads=2, n_layers=2, drop_rate=0.3, qkv_bias=True
)
#: How the second small model differs from the first.
OTHER_WAY: dict[str, Any] = {
    "qkv_bias": False, "tie_weights": True, "activation": "gelu_erf", "bias": False, "norm_eps": 0.1
}  # fmt: skip


def cases(rng: np.random.Generator) -> Iterator[Case]:
    """The calls that the record of each operation and layer gives, at random points."""
    source = Source(AtRandom(rng), int(rng.integers(2**32)), ordinary=True)
    for name, record in OPERATIONS.items():
        if not isinstance(record.complex_step, str):
            for what, call in record.complex_step(source).items():
                yield Case(f"{name}, {what}" if what else name, record.module, *call)


def check_all(seed: int = 0) -> Iterator[list[Verdict]]:
    """The verdicts of every case that can be computed, and of the small model made in two ways, a list for each.

    The second model has tied weights, no biases, another eps, and GELU's exact form if that can be computed.
    """
    rng = np.random.default_rng(seed)
    for case in cases(rng):
        if can_be_computed(case):
            yield check(case, rng)
    yield check_model(SMALL_MODEL, rng)
    second = replace(SMALL_MODEL, **OTHER_WAY)
    yield check_model(second if find_spec("scipy") else replace(second, activation="gelu_tanh"), rng)


def can_be_computed(case: Case) -> bool:
    """Whether what the case needs is installed: GELU's exact form needs SciPy."""
    exact = case.operation is gelu_erf or case.options.get("activation") == "gelu_erf"
    return not exact or find_spec("scipy") is not None
