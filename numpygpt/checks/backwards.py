"""What a backward gives for several cotangents, how large its rounding errors are, and what is wrong with it."""

from typing import Any

import numpy as np

from numpygpt.checks.analytic import LOOSEST
from numpygpt.checks.derivatives import PROBES, moved_by_a_rounding
from numpygpt.checks.pairs import Pair, Ran, are_numbers
from numpygpt.shapes import Array


class Backwards:
    """The gradients of every leaf for each cotangent, and what is wrong with how they are computed.

    of       {leaf: a gradient for each cotangent, or None}, as backward returned them
    noise    {leaf: how large the rounding errors of its gradients are}, in Euclidean norms
    faults   what is wrong with the functions, in words
    """

    def __init__(self, pair: Pair, ran: Ran, cotangents: Array) -> None:
        self.faults: list[str] = []
        self._pair = pair
        self._changed_by_forward = pair.changed(ran)
        self._note_changes("forward", self._changed_by_forward)
        every = [self._gradients(cotangent, ran) for cotangent in cotangents]
        again = self._gradients(cotangents[0], ran)
        self._note_if(
            any(not _same(again[name], every[0][name]) for name in pair.leaves),
            "backward gives another gradient when it is called again: it keeps a state, or changes what was saved",
        )
        self.of = {name: [gradients[name] for gradients in every] for name in pair.leaves}
        twice = self._gradients(2 * cotangents[0], ran)
        linear = {name: _is_twice(twice[name], every[0][name]) for name in pair.leaves}
        self._note_if(
            not all(linear.values()), "backward gives for twice the d_output not twice the gradients: it is not linear"
        )
        self.noise = {name: norm if linear[name] else 0.0 for name, norm in self._noise(cotangents).items()}

    def _gradients(self, cotangent: Array, ran: Ran) -> dict[str, Any]:
        returned, kept = self._pair.call_backward(cotangent, ran)
        gradients, faults = self._pair.gradients(returned)
        for fault in faults:
            self._note_if(True, fault)
        self._note_if(not kept, "backward changes its argument d_output")
        changed = [name for name in self._pair.changed(ran) if name not in self._changed_by_forward]
        self._note_changes("backward", changed)
        return gradients

    def _note_changes(self, function: str, changed: list[str]) -> None:
        self._note_if(bool(changed), f"{function} changes its argument {', '.join(changed)}")

    def _note_if(self, wrong: bool, fault: str) -> None:
        if wrong and fault not in self.faults:
            self.faults.append(fault)

    def _noise(self, cotangents: Array) -> dict[str, float]:
        """For each leaf, how large the rounding errors of its gradients are.

        The backward is linear in d_output. So for s times a cotangent it gives s times the gradient, and what is left
        after a division by s is rounding. The inputs are moved by one unit roundoff besides.
        """
        rng = np.random.default_rng(0)
        noise = dict.fromkeys(self._pair.leaves, 0.0)
        for _ in range(PROBES):
            ran = self._pair.run({name: moved_by_a_rounding(leaf, rng) for name, leaf in self._pair.leaves.items()})
            for i, cotangent in enumerate(cotangents):
                factor = rng.uniform(1, 2)
                returned, _ = self._pair.call_backward(factor * cotangent, ran)
                gradients, _ = self._pair.gradients(returned)
                for name in noise:
                    noise[name] = max(noise[name], _distance(gradients[name], self.of[name][i], factor))
        return noise


def _same(a: Any, b: Any) -> bool:
    if not (are_numbers(a) and are_numbers(b)):
        return are_numbers(a) == are_numbers(b)
    return np.array_equal(a, b, equal_nan=True)


def _is_twice(a: Any, b: Any) -> bool:
    """Whether a is 2 b, except for rounding; what is no number or not finite is judged elsewhere."""
    if not (are_numbers(a) and are_numbers(b)) or not np.isfinite(b).all():
        return True
    return _distance(a, 2 * b, 1.0) <= LOOSEST * float(np.linalg.norm(a))


def _distance(a: Any, b: Any, factor: float) -> float:
    """‖a / factor - b‖, in the Euclidean norm, of two gradients; 0 if they cannot be subtracted."""
    if not (are_numbers(a) and are_numbers(b)) or a.shape != b.shape:
        return 0.0
    return float(np.linalg.norm(a / factor - b)) if np.isfinite(a).all() and np.isfinite(b).all() else 0.0
