"""Replaying a candidate: each of its tensors computed again by our code, from the candidate's own earlier tensors.

The steps of the trace are taken again in float64. As soon as a tensor is computed, it is kept, and the candidate's
tensor takes its place, so that what follows is computed from the candidate's (`numpygpt.checks.trace.retrace`). So an
error shows in the one tensor where it is made, and not in those that follow.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from numpygpt.checks.compare import Norms, difference, finite_norms
from numpygpt.checks.dialects import Candidate
from numpygpt.checks.part import Reference
from numpygpt.checks.trace import LOGITS, TOKENS, Settings, Tensors, is_given, is_parameter, is_state, retrace
from numpygpt.checks.trace_file import has_budget
from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.model.sizes import num_parameters
from numpygpt.shapes import Array

#: A larger model is replayed in parts, because the whole would take minutes, and the memory of several models.
MOST_PARAMETERS = 10_000_000


def only_in_parts(config: GPTConfig) -> bool:
    """Whether a model has too many parameters to be replayed as a whole."""
    return num_parameters(config) > MOST_PARAMETERS


#: What our code raises if a change of it, or of what it is given, does not fit its shapes.
CRASHES = (InputError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError)


class _Reached(Exception):  # noqa: N818
    """The last tensor that is wanted has been computed."""


def _share(allowed: Any, size: Any) -> Array:
    """allowed / size; 0 where the size is 0."""
    return np.divide(allowed, size, out=np.zeros(np.shape(size)), where=np.asarray(size) > 0)


class Replay:
    """The candidate's tensors, and what its own inputs lead to.

    arrays   {name: array} of the candidate, in float64
    given    what the reference was given
    own      the same, but the candidate's own parameters if it has any
    """

    def __init__(self, reference: Reference, candidate: Candidate) -> None:
        self.reference, self.format = reference, candidate.format
        self.given = reference.given()
        self.arrays: Tensors = {}
        for name, read in candidate.tensors.items():
            array = read()
            if array.size == 1 and not reference.tensors.layouts[name].shape:
                array = array.reshape(())
            if np.issubdtype(array.dtype, np.floating):
                self.arrays[name] = array.astype(np.float64)
        self.own = self.given | {name: array for name, array in self.arrays.items() if self._can_be_given(name)}
        self.chosen = self._tokens(candidate)

    def _can_be_given(self, name: str) -> bool:
        return is_parameter(name) and self.arrays[name].shape == self.given[name].shape

    def _tokens(self, candidate: Candidate) -> Array | None:
        """The tokens that the candidate generated, if they are tokens."""
        if TOKENS not in candidate.tensors:
            return None
        tokens = candidate.tensors[TOKENS]()
        fit = tokens.shape == self.reference.tensors.layouts[TOKENS].shape and np.issubdtype(tokens.dtype, np.integer)
        inside = fit and bool(((tokens >= 0) & (tokens < self.reference.header.config.vocab_size)).all())
        return tokens if inside else None

    def run(
        self,
        *,
        up_to: str | None = None,
        config: GPTConfig | None = None,
        settings: Settings | None = None,
        given: Mapping[str, Array] | None = None,
        may_crash: bool = False,
    ) -> Tensors:
        """Every tensor as the candidate's own inputs lead to it.

        up_to              the last that is wanted; None: all
        config, settings   in the place of the reference's
        given              in the place of `own`
        may_crash          whether a crash is no error, but the end: what was computed before it is returned
        """
        header = self.reference.header
        settings = settings or header.settings
        if up_to not in (None, LOGITS, TOKENS):
            settings = settings._replace(new_tokens=0)
        found: Tensors = {}

        def tell(name: str, array: Any) -> None:
            if up_to in (None, name):
                found[name] = np.array(array)
            if name == up_to:
                raise _Reached
            own = self.arrays.get(name)
            if own is not None and isinstance(array, np.ndarray) and not is_given(name) and own.shape == array.shape:
                array[...] = own

        with suppress(_Reached, *(CRASHES if may_crash else ())), np.errstate(all="ignore"):
            retrace(config or header.config, settings, given or self.own, np.float64, tell, chosen=self.chosen)
        return found

    def used(self, name: str, computed: Array) -> float:
        """The share of its budget that the candidate's tensor uses against what was computed; infinite for a NaN.

        If its own inputs lead to a larger tensor than the reference's, the budget is larger in proportion.
        """
        ours = self.arrays[name]
        if ours.shape != computed.shape or np.isnan(ours).any() or np.isnan(computed).any():
            return np.inf
        error, size = difference(ours, computed), finite_norms(computed)
        if not has_budget(name):
            return 0.0 if error.tensor == 0 else np.inf
        if ours.shape != self.reference.tensors.layouts[name].shape:
            return self._used_as_a_whole(name, error.tensor, size.tensor)
        errors, room = np.append(error.rows, error.tensor), self._room(name, size)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return float(np.where(errors == 0, 0, errors / room).max())

    def _room(self, name: str, size: Norms) -> Array:
        """How far rows, and then the whole, of a tensor of this size may be from it.

        A row or tensor that is larger than the reference's has a budget that is larger in proportion. A row has at
        least the share of its size that the whole may differ by, because in the reference it may be zero. AdamW's
        moments and parameters are in float32 at least, whatever the format of the gradients that they come from.
        """
        format_ = "float32" if is_state(name) and self.format != "float64" else self.format
        expected, allowed = finite_norms(self.reference.read(name)), self.reference.budget(format_, name)
        whole = np.fmax(allowed.tensor, _share(allowed.tensor, expected.tensor) * size.tensor)
        rows = np.fmax(allowed.rows, _share(allowed.rows, expected.rows) * size.rows)
        return np.append(np.fmax(rows, _share(allowed.tensor, expected.tensor) * size.rows), whole)

    def _used_as_a_whole(self, name: str, error: float, size: float) -> float:
        """The same for a tensor that has not the reference's shape, and therefore other rows than its budget."""
        allowed = self.reference.budget(self.format, name).tensor * size
        return error * finite_norms(self.reference.read(name)).tensor / allowed if allowed else np.inf

    def distance(self, name: str, computed: Array) -> float:
        """‖candidate - computed‖ / ‖candidate‖; infinite where that means nothing."""
        ours = self.arrays[name]
        if ours.shape != computed.shape:
            return np.inf
        error, size = difference(ours, computed).tensor, finite_norms(ours).tensor
        return error / size if size and np.isfinite(error) else (0.0 if error == 0 else np.inf)

    def faults(self, names: Iterable[str], found: Mapping[str, Array]) -> set[str]:
        """Those of the names whose tensor is not what was found for it."""
        return {name for name in names if name in found and name in self.arrays and self.used(name, found[name]) > 1}
