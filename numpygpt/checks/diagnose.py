"""Why a candidate left the reference: which known cause gives the candidate's own tensor.

The first wrong tensor is computed again from the candidate's own inputs under each cause (`numpygpt.checks.causes`). A
cause *explains* the tensor if the result is within the budget of the candidate's. Those that explain it are ranked by
how many faults elsewhere they leave unexplained, or would make, and then by how close they come. If no cause explains
the tensor, nor a plain relation (zero, a multiple, transposed, another tensor), pairs of causes are tried.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from numpygpt.checks.budgets import FORMATS
from numpygpt.checks.causes import Cause, causes
from numpygpt.checks.compare import FLOAT64_NORMWISE, difference, finite_norms
from numpygpt.checks.dialects import Candidate
from numpygpt.checks.diff import MISSING, WRONG, Diff
from numpygpt.checks.fitted import fitted
from numpygpt.checks.formulas import formula
from numpygpt.checks.part import Reference, parts_with
from numpygpt.checks.relations import Relation, relations
from numpygpt.checks.replay import Replay, only_in_parts
from numpygpt.checks.trace import Tensors, is_parameter
from numpygpt.checks.trace_file import TraceFile, has_budget
from numpygpt.checks.words import in_words
from numpygpt.shapes import Array

#: How many of the causes that change the tensor are tried in pairs, and how many that explain it are looked at closely.
MOST_IN_PAIRS, MOST_REPLAYED = 10, 24
#: If a larger share of all activations has a fault of its own, the cause is none of these.
MOST_FAULTS = 0.5
#: How many times closer than our own code a cause must come to a tensor that is within its budget.
MUCH_CLOSER = 2.0
#: What is farther from the tensor, as a share of its size, explains nothing, whatever the budget allows.
FARTHEST = 0.1
#: How many tensors with a fault of their own are diagnosed.
MOST_DIAGNOSED = 3
#: How many causes are offered for each, and how many of them before the first plain relation.
MOST_OFFERED, SHOWN_BEFORE = 5, 2

#: Goes through the causes and shows a person how far it has come.
Progress = Callable[[Sequence[Cause]], Iterable[Cause]]


class Offer(NamedTuple):
    """A cause, or several that give the same.

    names      of the causes; empty for a plain relation
    what       in words
    distance   ‖candidate's tensor - what the cause gives‖ / ‖candidate's tensor‖
    left       how many faults it leaves unexplained, or would make, elsewhere
    """

    names: tuple[str, ...]
    what: str
    distance: float
    left: int


class Diagnosis(NamedTuple):
    """The offers for a tensor, the likeliest first; `why_not` says why there is none."""

    name: str
    offers: list[Offer]
    why_not: str = ""

    @property
    def lines(self) -> list[str]:
        """What is said about it."""
        if not self.offers:
            return [f"`{self.name}`: {self.why_not}"]
        return [f"your `{self.name}` {self._said(offer)}" for offer in self.offers]

    def _said(self, offer: Offer) -> str:
        close = f"relative difference {offer.distance:.1e}" if offer.distance else "exactly"
        if not offer.names:
            return f"{offer.what} ({close})"
        return f"is what it would be if {offer.what} ({close}; cause: {' or '.join(offer.names)})"


def diagnose(
    reference: TraceFile, candidate: Candidate, found: Diff, progress: Progress = lambda causes: causes
) -> list[Diagnosis]:
    """A diagnosis for each of the first tensors with a fault of their own that the diagnoses before do not explain.

    progress   goes through the causes
    """
    wrong = [finding for finding in found.wrong if finding.verdict == WRONG]
    suspects = [finding.name for finding in wrong if not finding.is_rounding]
    if wrong and not suspects:
        return [Diagnosis(wrong[0].name, [], "the reference's is zero except for rounding, and yours is larger")]
    if not suspects or (found.first and found.first.verdict == MISSING):
        return [
            Diagnosis(first.name, [], _of_missing(first.name, reference, candidate))
            for first in found.wrong[:1]
            if first.verdict == MISSING
        ]
    if only_in_parts(reference.header.config):
        return _in_a_part(reference, candidate, suspects, progress)
    return _diagnosed(_Doctor(reference, candidate, progress), suspects)


def _of_missing(name: str, reference: TraceFile, candidate: Candidate) -> str:
    alike = candidate.may_be(name, reference.tensors.layouts[name].shape)
    if alike:
        several = " or ".join(f"`{theirs}`" for theirs in alike)
        return f"it is not matched; {several} may be it, of the same shape: map it by --names; it is {formula(name)}"
    without_gradient = ": your backward gives it no gradient, or None" if "d_" in name else ""
    return f"it is missing{without_gradient}; it is {formula(name)}"


def _in_a_part(
    reference: TraceFile, candidate: Candidate, suspects: list[str], progress: Progress
) -> list[Diagnosis]:
    """The same for a large model: the diagnoses in the part of it where the first of the suspects is computed."""
    part = next(parts_with(reference, suspects[:1]), None)
    if part is None:
        why_not = "the cause is sought only within the blocks of so large a model: trace one of fewer parameters"
        return [Diagnosis(suspects[0], [], why_not)]
    here = [name for name, of_whole in part.names.items() if of_whole in suspects]
    found = _diagnosed(_Doctor(part, part.of_candidate(candidate), progress), here)
    return [
        Diagnosis(
            part.names[name],
            [offer._replace(what=part.in_whole(offer.what)) for offer in offers],
            part.in_whole(why_not),
        )
        for name, offers, why_not in found
    ]


def _diagnosed(doctor: "_Doctor", suspects: list[str]) -> list[Diagnosis]:
    forward = {name for name in doctor.names if not name.startswith(("d_", "step", "generated."))}
    if len(doctor.faults & forward) > MOST_FAULTS * len(forward):
        why_not = "most activations differ from what their own inputs lead to: is it another format (--dtype)?"
        return [Diagnosis(suspects[0], [], why_not)]
    diagnoses: list[Diagnosis] = []
    while suspects and len(diagnoses) < MOST_DIAGNOSED:
        diagnosis, explained = doctor.diagnose(suspects[0])
        diagnoses.append(diagnosis)
        suspects = [name for name in suspects[1:] if name in doctor.faults and name not in explained]
    return diagnoses


class _Doctor:
    """The replays of a candidate.

    base     what the replays are given: the candidate's own parameters, or the reference's for a fault in a parameter
    sound    the replay without any cause
    faults   the names of all tensors that differ from it
    """

    def __init__(self, reference: Reference, candidate: Candidate, progress: Progress) -> None:
        self.replay = Replay(reference, candidate)
        header = reference.header
        self.causes = list(causes(header.config, header.settings))
        self.progress = progress
        self.names = [name for name in reference.order if has_budget(name) or is_parameter(name)]
        self._give(self.replay.own)

    def _give(self, base: Tensors) -> None:
        self.base = base
        self.sound = self.replay.run(given=base)
        self.faults = self.replay.faults(self.names, self.sound)

    def diagnose(self, name: str) -> tuple[Diagnosis, set[str]]:
        """What explains the tensor, and the names of the faults that the likeliest cause explains."""
        ours = self.replay.arrays.get(name)
        if ours is None:
            return Diagnosis(name, [], "its dtype is wrong"), set()
        if not _is_usable(ours):
            return Diagnosis(name, [], "it has a NaN or an infinity: look at what it is computed from"), set()
        if is_parameter(name):
            self._give(self.replay.given)
        if self.replay.used(name, self.sound[name]) <= 1:
            return self._upstream_of(name), set()
        explaining, changing = self._try(name, self._causes_of(name))
        offers, explained = self._ranked(name, explaining)
        if not offers or offers[0].left:  # a number that was not foreseen may leave less
            explaining += self._try(name, fitted(name, self.replay, self.base))[0]
            offers, explained = self._ranked(name, explaining)
        plain = [Offer((), *relation, 0) for relation in self._relations(name, ours)]
        if not offers and not plain:
            pairs = [one.together_with(other) for one, other in combinations(changing[:MOST_IN_PAIRS], 2)]
            offers, explained = self._ranked(name, self._try(name, pairs)[0])
        offers = self._merged(offers, plain)
        return Diagnosis(name, offers[:MOST_OFFERED], "" if offers else self._unexplained(name)), explained

    def _relations(self, name: str, ours: Array) -> Iterable[Relation]:
        """The plain relations that come much closer to the tensor than what its inputs lead to."""
        nearest = min(FARTHEST, self.replay.distance(name, self.sound[name]) / MUCH_CLOSER)
        return (found for found in relations(name, ours, self.sound, self.replay) if found.distance <= nearest)

    def _merged(self, offers: list[Offer], plain: list[Offer]) -> list[Offer]:
        """Causes and relations together: a relation comes before causes that make more faults than there are."""
        likely = sum(offer.left <= len(self.faults) for offer in offers)
        place = min(likely, SHOWN_BEFORE)
        return offers[:place] + plain[:1] + offers[place:] + plain[1:]

    def _unexplained(self, name: str) -> str:
        """What is said of a tensor that no cause gives."""
        if is_parameter(name):
            return "it is given, and yours has other values: begin with the weights of the trace"
        ours, expected = self.replay.arrays[name], self.sound[name]
        if ours.shape != expected.shape:
            return f"its shape is {ours.shape}; expected {expected.shape}"
        finite = np.isfinite(expected) & np.isfinite(ours)
        where = in_words(np.where(finite, ours, 0), np.where(finite, expected, 0))
        return f"no known cause gives it; it {where}; look at how it is computed: {formula(name)}"

    def _causes_of(self, name: str) -> Iterable[Cause]:
        return self.progress([cause for cause in self.causes if cause.can_change(name)])

    def _upstream_of(self, name: str) -> Diagnosis:
        """Of a tensor that follows from its inputs, though it is wrong: an earlier error that is within its budget.

        It is sought where the candidate is farthest from what its inputs lead to, in shares of the budget. A cause is
        offered if it comes closer to that tensor than our own code does.
        """
        earlier = [other for other in self.names[: self.names.index(name)] if other in self.replay.arrays]
        shares = {other: self.replay.used(other, self.sound[other]) for other in earlier}
        if not shares or max(shares.values()) == 0:
            return Diagnosis(name, [], "it follows from its inputs, which agree: the budget is too small for it")
        suspect = max(shares, key=lambda other: shares[other])
        _, changing = self._try(suspect, self._causes_of(suspect))
        of_sound = self.replay.distance(suspect, self.sound[suspect])
        closer = [
            cause
            for cause in changing[:MOST_REPLAYED]
            if self.replay.distance(suspect, cause.replayed(self.replay, self.base, up_to=suspect)[suspect])
            < of_sound / MUCH_CLOSER
        ]
        offers, _ = self._ranked(suspect, closer)
        why_not = f"it follows from its inputs; the largest error before it is in `{suspect}`, within the budget"
        return Diagnosis(suspect if offers else name, offers[:MOST_OFFERED], why_not)

    def _try(self, name: str, several: Iterable[Cause]) -> tuple[list[Cause], list[Cause]]:
        """The causes that explain the tensor, the closest first; and those that change it, likewise."""
        explaining, changing = [], []
        for cause in several:
            computed = cause.replayed(self.replay, self.base, up_to=name).get(name)
            if computed is None or np.array_equal(computed, self.sound[name], equal_nan=True):
                continue
            distance = self.replay.distance(name, computed)
            changing.append((distance, cause))
            if self.replay.used(name, computed) <= 1 and distance <= FARTHEST:
                explaining.append((distance, cause))
        return _closest_first(explaining), _closest_first(changing)

    def _ranked(self, name: str, explaining: Sequence[Cause]) -> tuple[list[Offer], set[str]]:
        """The offers, and the faults that the first of them explains."""
        replayed = [(cause, cause.replayed(self.replay, self.base)) for cause in explaining[:MOST_REPLAYED]]
        offers: list[tuple[tuple[float, ...], Offer, set[str]]] = []
        for alike in _grouped(replayed, self._alike):
            first, found = alike[0]
            left = self.replay.faults(self.names, found) | (self.faults - found.keys())
            distance = self.replay.distance(name, found[name])
            offer = Offer(tuple(cause.name for cause, _ in alike), _in_words(first), distance, len(left))
            offers.append(((len(left), _magnitude(distance)), offer, self.faults - left))
        offers.sort(key=lambda ranked: ranked[0])
        return [offer for _, offer, _ in offers], offers[0][2] if offers else set()

    def _alike(self, name: str, array: Array, other: Array) -> bool:
        """Whether two tensors are the same except for rounding, as are two of nothing but rounding, or not judged."""
        if name not in self.names or np.array_equal(array, other, equal_nan=True):
            return True
        if array.shape != other.shape or not has_budget(name):
            return False
        size = max(finite_norms(array).tensor, finite_norms(other).tensor)
        rounding = max(FORMATS[self.replay.format], FLOAT64_NORMWISE) * size
        is_rounding = size <= self.replay.reference.budget(self.replay.format, name).tensor
        return is_rounding or difference(array, other).tensor <= rounding


def _closest_first(found: list[tuple[float, Cause]]) -> list[Cause]:
    return [cause for _, cause in sorted(found, key=lambda pair: pair[0])]


def _magnitude(distance: float) -> float:
    """The same for distances that differ by less than a factor of 2, which is chance."""
    if distance == 0:
        return -math.inf
    return math.floor(math.log2(distance)) if math.isfinite(distance) else math.inf


def _is_usable(ours: Array) -> bool:
    """Whether it has numbers to look at: no NaN, and no infinity but minus infinity, which is a masked score."""
    return not (np.isnan(ours) | (ours == np.inf)).any()


def _in_words(cause: Cause) -> str:
    return f"{cause.what} (met in {cause.seen_at})" if "#" in cause.seen_at else cause.what


#: Says of a name and two tensors of it whether they are the same.
Alike = Callable[[str, Array, Array], bool]


def _grouped(replayed: Sequence[tuple[Cause, Tensors]], alike: Alike) -> list[list[tuple[Cause, Tensors]]]:
    """The causes whose every tensor is the same, together."""
    groups: list[list[tuple[Cause, Tensors]]] = []
    for cause, found in replayed:
        for group in groups:
            if _same(group[0][1], found, alike):
                group.append((cause, found))
                break
        else:
            groups.append([(cause, found)])
    return groups


def _same(some: Tensors, others: Tensors, alike: Alike) -> bool:
    return some.keys() == others.keys() and all(alike(name, array, others[name]) for name, array in some.items())
