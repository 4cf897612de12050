"""Right gradients at random points: gradcheck must call none of them wrong.

    python -m parity_tests.clean_runs 10000

The inputs have scales from 1e-3 to 1e3, offsets up to 1e6, scores masked with -1e9, outliers of 1e5, and elements close
to a kink. A quarter of the runs takes differences.

This is a program of its own, because the checks of annotations would make it thirty times as slow.
"""

import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np

from numpygpt.checks import gradcheck
from numpygpt.ops import cross_entropy, gelu, layer_norm, linear, softmax
from parity_tests.house_check import real_only
from parity_tests.user_operations import swiglu


def operation(forward, backward):
    return SimpleNamespace(forward=forward, backward=backward)


def one_at(indices, d_y, x):
    """The gradient of a function that takes the elements of x at these indices, row by row."""
    d_x = np.zeros_like(x)
    np.put_along_axis(d_x, indices, d_y, -1)
    return d_x


relu = operation(lambda x: np.maximum(x, 0), lambda d_y, x: d_y * (x > 0))
absolute = operation(np.abs, lambda d_y, x: d_y * np.sign(x))
maximum = operation(
    lambda x: x.max(-1, keepdims=True), lambda d_y, x: one_at(x.argmax(-1)[:, np.newaxis], d_y, x)
)
sort = operation(lambda x: np.sort(x, -1), lambda d_y, x: one_at(np.argsort(x, -1), d_y, x))


def masked_forward(scores, mask):
    return softmax.forward(scores + mask)


def masked_backward(d_y, saved):
    d_scores = softmax.backward(d_y, saved).x
    return d_scores, d_scores


masked = operation(masked_forward, masked_backward)


def draws(rng):
    """{kind: (operation, inputs)}."""
    size = int(rng.integers(3, 6))
    x, other, vectors = (scale(rng) * rng.standard_normal(shape) for shape in ((2, size), (2, size), (3, size)))
    unit = rng.standard_normal((2, size))
    offset = unit + 10 ** rng.uniform(1, 6)
    mask = np.where((np.arange(size) > 0) & (rng.random((2, size)) < 0.4), -1e9, 0.0)
    outlier = np.where(np.arange(2 * size).reshape(2, size) == rng.integers(2 * size), 1e5, unit)
    beside_0 = np.where(rng.random((2, size)) < 0.3, 10 ** rng.uniform(-12, 0, (2, size)), 1) * unit
    many = rng.standard_normal((20, 9))
    return {
        "gelu": (gelu, (x,)),
        "swiglu": (swiglu, (x, other)),
        "layer_norm": (layer_norm, (x, *vectors[:2])),
        "softmax": (softmax, (x,)),
        "cross_entropy": (cross_entropy, (x, rng.integers(0, size, 2))),
        "linear": (linear, (x, vectors, vectors[:, 0])),
        "softmax with an offset": (softmax, (offset,)),
        "layer_norm with an offset": (layer_norm, (offset, unit[0], unit[1])),
        "cross_entropy with an offset": (cross_entropy, (offset, rng.integers(0, size, 2))),
        "softmax of masked scores": (softmax, (unit + mask,)),
        "softmax with a mask": (masked, (unit, mask)),
        "gelu with an outlier": (gelu, (outlier,)),
        "relu with an outlier": (relu, (outlier,)),
        "relu": (relu, (beside_0,)),
        "abs": (absolute, (beside_0,)),
        "relu of many": (relu, (many,)),
        "max": (maximum, (beside_0,)),
        "sort": (sort, (beside_0,)),
    }


def scale(rng):
    return 10 ** rng.uniform(-3, 3)


def main(runs):
    verdicts = Counter()
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        kinds = draws(rng)
        name = list(kinds)[seed % len(kinds)]
        checked, inputs = kinds[name]
        by_differences = seed // len(kinds) % 4 == 0
        forward = real_only(checked.forward) if by_differences else checked.forward
        with np.errstate(over="ignore"):  # of exp(-x), for a sigmoid that is 0
            report = gradcheck(forward, checked.backward, inputs, seed=seed)
        verdicts[name, report.verdict] += 1
        if report.verdict == "fail":
            print(f"seed {seed}, {name}:\n{report}")
    for name in kinds:
        counts = [f"{verdicts[name, verdict]} {verdict}" for verdict in ("pass", "no verdict", "fail")]
        print(f"{name}: {', '.join(counts)}")
    print(f"{runs} runs, {sum(verdicts[name, 'fail'] for name in kinds)} false alarms")


if __name__ == "__main__":
    main(int(sys.argv[1]))
