"""What gradcheck says of every operation of the house, right and with errors.

This is a program of its own, because the checks of annotations would make it thirty times as slow.

    python -m parity_tests.house_check 1e-9

It prints {operation: [{leaf: verdict}, {leaf: verdict with an error of this relative size in every gradient}]}, and
{bug of GELU's slope: how it was judged, by complex step and by differences}.
"""

import functools
import json
import sys

import numpy as np

from numpygpt.checks import gradcheck
from numpygpt.checks.experiments import small_model
from numpygpt.checks.planting import planted
from numpygpt.checks.record import Call, differentiated
from numpygpt.checks.records import BUGS, OPERATIONS
from numpygpt.checks.source import at_random
from numpygpt.model.config import GPTConfig
from numpygpt.ops import gelu
from numpygpt.tree import mapped


def with_errors(backward, size):
    """The backward with a random error of this relative size in each of its gradients."""

    def wrong(d_output, saved):
        rng = np.random.default_rng(1)

        def leaf(gradient):
            noise = np.asarray(rng.standard_normal(gradient.shape))
            return gradient + size * np.linalg.norm(gradient) / np.linalg.norm(noise) * noise

        gradients = backward(d_output, saved)
        return mapped(leaf, gradients._asdict() if hasattr(gradients, "_asdict") else gradients)

    return wrong


def verdicts(operation, call, backward):
    """The verdicts of the leaves whose gradients the call asks for."""
    report = gradcheck(operation.forward, backward, {**call.arguments, **call.options})
    asked_for = differentiated(operation, call)
    return {row.argument: row.verdict for row in report.rows if row.argument in asked_for}


def checked(operation, call, size):
    backwards = operation.backward, with_errors(operation.backward, size)
    return [verdicts(operation, call, backward) for backward in backwards]


MODEL = "a small whole model"
#: The operations, except those of which the whole model is made in the same way.
CHECKED = [
    name
    for name, record in OPERATIONS.items()
    if not isinstance(record.complex_step, str) and name not in ("body", "recomputed_block")
]


def calls():
    """(name, operation, call) of each operation and of the model."""
    for name in CHECKED:
        yield name, OPERATIONS[name].module, next(iter(OPERATIONS[name].complex_step(at_random(3)).values()))
    model = small_model(GPTConfig(7, 4, 4, 2, n_layers=1, drop_rate=0.2, qkv_bias=True))
    yield MODEL, model, Call(model.inputs(np.random.default_rng(0)))


BUGS_OF_GELU = ("erf_slope_under_tanh", "six_digit_constants")


def real_only(forward):
    """A forward that refuses complex numbers, as a function of another language does."""

    @functools.wraps(forward)
    def refusing(*inputs):
        if any(np.iscomplexobj(array) for array in inputs):
            raise TypeError("only real numbers")
        return forward(*inputs)

    return refusing


def judged_with(bug):
    rng = np.random.default_rng(7)
    with planted(BUGS[bug]):
        reports = [
            gradcheck(forward, gelu.backward, (rng.standard_normal(shape),))
            for shape in ((3, 4), (200, 3))
            for forward in (gelu.forward, real_only(gelu.forward))
        ]
    return [f"{row.method}: {row.verdict}" for report in reports for row in report.rows]


if __name__ == "__main__":
    found = {name: checked(operation, call, float(sys.argv[1])) for name, operation, call in calls()}
    print(json.dumps(found | {bug: judged_with(bug) for bug in BUGS_OF_GELU}))
