"""`layer_norm`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import layer_norm
from numpygpt.shapes import Array

_FORWARD = "ops.layer_norm:forward"
_BACKWARD = "ops.layer_norm:backward"
_VARIANCE = "variance = (centered * centered).mean(axis=-1, keepdims=True)"


def draw(source: Source) -> Call:
    """Draw rows with any number of features, also with one, and a norm with or without a shift."""
    features = source.features()
    arguments = {"x": source.normal(*source.rows(), features), "scale": source.normal(features)}
    if not source.yes():
        arguments["shift"] = source.normal(features)
    return Call(arguments, {"eps": source.norm_eps(), "wanted": source.wanted(*arguments)})


def complex_step(source: Source) -> Mapping[str, Call]:
    """A call with an eps that hardly matters, one with an eps that does, and one without a shift."""
    scale, shift = source.normal(2, 12)
    without_shift = {"x": source.normal(2, 5, 12), "scale": scale}
    arguments = {**without_shift, "shift": shift}
    return {"": Call(arguments), "eps 0.5": Call(arguments, {"eps": 0.5}), "no shift": Call(without_shift)}


def _of(x: Array) -> Call:
    scale, shift = np.random.default_rng(0).standard_normal((2, x.shape[-1]))
    return Call({"x": x, "scale": scale + 2, "shift": shift})


SPECIAL = {
    "mean 2000": _of(2000 + np.random.default_rng(1).standard_normal((5, 16))),
    "equal features": _of(np.full((3, 5), 0.7)),
    "one feature": _of(np.array([[1.0], [-2.0], [0.0]])),
    "no shift is there, and it is wanted": Call(
        {"x": np.arange(6.0).reshape(2, 3) ** 2, "scale": np.array([1.0, -2.0, 0.5]), "shift": None},
        {"wanted": ("scale", "shift")},
    ),
}

BUGS = (
    Bug(
        "unbiased_variance",
        "the variance divides by D - 1",
        "LBANN#2024",
        "trf_blocks.0.norm1",
        ("forward", "complex_step"),
        (
            Change(
                _FORWARD,
                _VARIANCE,
                "variance = (centered * centered).sum(axis=-1, keepdims=True) / (x.shape[-1] - 1)",
            ),
        ),
    ),
    Bug(
        "eps_outside_root",
        "eps is added to the standard deviation",
        "BERT-pytorch#30",
        "trf_blocks.0.norm1",
        ("forward", "complex_step"),
        (Change(_FORWARD, "np.sqrt(variance + eps)", "np.sqrt(variance) + eps"),),
    ),
    Bug(
        "eps_of_another_model",
        "eps is 1e-5, whatever the model was trained with",
        "no public report known",
        "trf_blocks.0.norm1",
        ("forward", "gradients"),
        (Change(_FORWARD, "variance + eps", "variance + 1e-5"),),
    ),
    Bug(
        "variance_squared",
        "(variance + eps) ** 2 stands in the place of the root",
        "TPlinker#37",
        "trf_blocks.0.norm1",
        ("forward", "complex_step"),
        (Change(_FORWARD, "np.sqrt(variance + eps)", "(variance + eps) ** 2"),),
    ),
    Bug(
        "one_pass_variance",
        "the variance is E[x²] - E[x]², of which nothing is left if the mean is 2000",
        "pytorch#51102",
        "none",
        ("extremes", "invariance"),
        (
            Change(
                _FORWARD,
                _VARIANCE,
                "variance = (x * x).mean(axis=-1, keepdims=True) - x.mean(axis=-1, keepdims=True) ** 2",
            ),
        ),
    ),
    Bug(
        "norm_gradient_of_rank_2",
        "scale's gradient is summed over the first axis, whatever the rank",
        "FlagGems#5392",
        "d_final_norm.shift",
        ("gradients", "dtypes"),
        (
            Change(
                _BACKWARD,
                "over_rows(block, d_y, normalized, inv_std, d_x)",
                "[block(d_y, normalized, inv_std, d_x)]",
            ),
        ),
    ),
    Bug(
        "variance_gradient_without_eps",
        "the backward has 1 / var in the place of 1 / (var + eps)",
        "Chainer, for a year under a tolerance of 1e-2",
        "d_trf_blocks.1",
        ("complex_step", "gradients"),
        (
            Change(
                _BACKWARD,
                "normalized * along\n",
                "normalized * along / (1 - 1e-5 * inv_std * inv_std)\n",
            ),
        ),
    ),
    Bug(
        "norm_untrained",
        "scale and shift get no gradient",
        "no public report known",
        "d_final_norm.shift",
        ("gradients", "complex_step"),
        (
            Change(
                "ops.layer_norm:_total",
                "sum(wanted[1:], start=wanted[0])",
                "0 * sum(wanted[1:], start=wanted[0])",
            ),
        ),
    ),
)

CONTROLS = (
    Bug(
        "norm_by_division",
        "x - mean is divided by the root",
        "control",
        "none",
        (),
        (
            Change(
                _FORWARD,
                "np.multiply(centered, inv_std, out=normalized)",
                "np.divide(centered, np.sqrt(variance + eps), out=normalized)",
            ),
        ),
    ),
)

RECORD = Record(layer_norm, draw, SPECIAL, complex_step, BUGS, CONTROLS)
