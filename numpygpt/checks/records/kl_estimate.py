"""`kl_estimate`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import kl_estimate


def draw(source: Source) -> Call:
    """Draw log-probabilities of any shape. Large ones would give ratios that no float32 holds."""
    shape = source.rows()
    arguments = {name: -source.rng.random(shape) * 5 for name in ("log_probs", "reference_log_probs")}
    return Call(arguments, {"kind": source.choose.one_of(kl_estimate.KINDS)})


def complex_step(source: Source) -> Mapping[str, Call]:
    """Each kind."""
    arrays = {name: -source.rng.random((3, 5)) for name in ("log_probs", "reference_log_probs")}
    return {kind: Call(arrays, {"kind": kind}) for kind in kl_estimate.KINDS}


SPECIAL = {
    "nearly the same": Call(
        {"log_probs": np.array([-1.0, -2.0]), "reference_log_probs": np.array([-1.0 - 1e-9, -2.0 + 1e-7])}
    ),
    "a token that both exclude": Call(
        {"log_probs": np.array([-1.0, -np.inf]), "reference_log_probs": np.array([-2.0, -np.inf])}
    ),
}

BUGS = (
    Bug(
        "k3_of_the_inverse_ratio",
        "the ratio is that of the policy to the reference",
        "no public report known",
        "operations.kl_estimate.output",
        ("operations", "objectives"),
        (
            Change(
                "ops.kl_estimate:forward",
                "np.where(excluded, 0, reference_log_probs) - np.where(excluded, 0, log_probs)",
                "np.where(excluded, 0, log_probs) - np.where(excluded, 0, reference_log_probs)",
            ),
        ),
    ),
    Bug(
        "kl_estimate_of_excluded_tokens_is_nan",
        "the gradient of a token that both exclude is 0 times infinity",
        "OpenRLHF#1335",
        "none",
        ("operations_at_extremes", "objectives"),
        (
            Change("ops.kl_estimate:forward", "np.where(excluded, 0, reference_log_probs)", "reference_log_probs"),
            Change("ops.kl_estimate:forward", "np.where(excluded, 0, log_probs)", "log_probs"),
        ),
    ),
    Bug(
        "k3_with_the_gradient_of_k1",
        "the ratio counts as a constant in the backward",
        "verl#2953",
        "operations.kl_estimate.d_log_probs",
        ("operations", "operations_complex_step"),
        (Change("ops.kl_estimate:backward", "slope = -np.expm1(u)", "slope = np.ones_like(u)"),),
    ),
)

RECORD = Record(kl_estimate, draw, SPECIAL, complex_step, BUGS)
