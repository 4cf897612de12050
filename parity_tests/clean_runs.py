"""Right gradients at random points, of scales from 1e-3 to 1e3: gradcheck must call none of them wrong.

    python -m parity_tests.clean_runs 10000

This is a program of its own, because the checks of annotations would make it thirty times as slow.
"""

import sys
from collections import Counter

import numpy as np

from numpygpt.checks import gradcheck
from numpygpt.ops import cross_entropy, gelu, layer_norm, linear, softmax
from parity_tests.house_check import real_only
from parity_tests.user_operations import swiglu


def draws(rng):
    """(operation, inputs) of each kind."""
    size = int(rng.integers(3, 6))
    x, other, vectors = (scale(rng) * rng.standard_normal(shape) for shape in ((2, size), (2, size), (3, size)))
    return {
        "gelu": (gelu, (x,)),
        "swiglu": (swiglu, (x, other)),
        "layer_norm": (layer_norm, (x, *vectors[:2])),
        "softmax": (softmax, (x,)),
        "cross_entropy": (cross_entropy, (x, rng.integers(0, size, 2))),
        "linear": (linear, (x, vectors, vectors[:, 0])),
    }


def scale(rng):
    return 10 ** rng.uniform(-3, 3)


def main(runs):
    verdicts = Counter()
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        kinds = draws(rng)
        name = list(kinds)[seed % len(kinds)]
        operation, inputs = kinds[name]
        by_differences = seed // len(kinds) % 4 == 0
        forward = real_only(operation.forward) if by_differences else operation.forward
        with np.errstate(over="ignore"):  # of exp(-x), for a sigmoid that is 0
            report = gradcheck(forward, operation.backward, inputs, seed=seed)
        verdicts[name, report.verdict] += 1
        if report.verdict == "fail":
            print(f"seed {seed}, {name}:\n{report}")
    for name in kinds:
        counts = [f"{verdicts[name, verdict]} {verdict}" for verdict in ("pass", "no verdict", "fail")]
        print(f"{name}: {', '.join(counts)}")
    print(f"{runs} runs, {sum(verdicts[name, 'fail'] for name in kinds)} false alarms")


if __name__ == "__main__":
    main(int(sys.argv[1]))
