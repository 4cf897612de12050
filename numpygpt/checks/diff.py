"""Where a candidate first leaves a reference, and what only follows from that.

Each tensor of the trace is judged in its order: forward, backward, optimizer, generation. It is *wrong* if it is
farther from the reference than the budget of the candidate's format allows. A wrong tensor is *downstream* if it is
what the candidate's own earlier tensors lead to: `numpygpt.checks.replay` computes it again from them. Otherwise it has
a fault of its own.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from numpygpt.checks.budgets import FORMATS
from numpygpt.checks.compare import Comparison, Norms, compare, used
from numpygpt.checks.dialects import Candidate
from numpygpt.checks.measure import Measured, all_measured, can_be_measured, measured
from numpygpt.checks.part import parts_with
from numpygpt.checks.replay import Replay, only_in_parts
from numpygpt.checks.trace import LOGITS, TOKENS, is_given, is_state
from numpygpt.checks.trace_file import TraceFile
from numpygpt.errors import InputError
from numpygpt.formats.tensor_file import StoredTensor
from numpygpt.shapes import Array

#: What is generated, and what it comes from.
GENERATED_FROM = {LOGITS: "logits", TOKENS: LOGITS}

WRONG, DOWNSTREAM, MISSING = "wrong", "downstream", "missing"
#: More times a budget is not told in figures, and fewer in one figure more.
MOST_TIMES, JUST_OVER = 1e16, 1.1
#: What is said of a tensor that the candidate lacks, while it has tensors of this shape under names that are not known.
NOT_MATCHED = "not matched"


class Finding(NamedTuple):
    """What was found for a tensor.

    comparison   with the reference
    local        the share of the budget that it uses against what its own inputs lead to; None if that is unknown
    verdict      "agrees", WRONG, DOWNSTREAM or MISSING
    """

    comparison: Comparison
    local: float | None
    verdict: str

    @property
    def name(self) -> str:
        """The name of the tensor."""
        return self.comparison.name

    @property
    def off(self) -> str:
        """How far off a wrong tensor is, in words."""
        comparison = self.comparison
        if comparison.fault or not math.isfinite(comparison.used):
            return comparison.fault or "differs where it must be equal"
        if comparison.used > MOST_TIMES:
            return f"more than {MOST_TIMES:.0e} times its budget"
        times = f"{comparison.used:#.3g}" if comparison.used < JUST_OVER else f"{comparison.used:.2g}"
        return f"{times} times its budget"

    @property
    def is_rounding(self) -> bool:
        """Whether the reference's tensor is as small as rounding errors, as the gradient of the keys' biases is."""
        comparison = self.comparison
        return not comparison.fault and comparison.zero and comparison.allowed > 0


class Diff(NamedTuple):
    """All findings, in the order of the trace.

    left_out   the names that a partial candidate does not have
    """

    format: str
    findings: list[Finding]
    left_out: list[str]

    @property
    def wrong(self) -> list[Finding]:
        """The findings that are not agreement."""
        return [finding for finding in self.findings if finding.verdict != "agrees"]

    @property
    def first(self) -> Finding | None:
        """The first tensor that left its budget, or None."""
        return next(iter(self.wrong), None)


def diff(reference: TraceFile, candidate: Candidate) -> Diff:
    """Judge every tensor.

    InputError for a format that there is no budget for, for tensors that cannot be read, and for a reference that has a
    NaN, or a budget that none can be.
    """
    if candidate.format not in FORMATS:
        raise InputError(f"the format is {candidate.format!r}; expected one of: {', '.join(FORMATS)}")
    names = [name for name in reference.order if name in candidate.tensors or not is_given(name)]
    left_out = [name for name in names if name not in candidate.tensors] if candidate.partial else []
    names = [name for name in names if name not in left_out]
    found = all_measured(_stored(names, reference, candidate))
    comparisons = [_compared(name, reference, candidate, found.get(name)) for name in names]
    wrong = [comparison for comparison in comparisons if not comparison.passed]
    local = _local(reference, candidate, wrong)
    bad: set[str] = set()
    findings = []
    for comparison in comparisons:
        finding = Finding(comparison, local.get(comparison.name), "agrees")
        if not comparison.passed:
            finding = finding._replace(verdict=_verdict(comparison, finding.local, bad))
            bad.add(comparison.name)
        findings.append(finding)
    return Diff(candidate.format, findings, left_out)


def _verdict(comparison: Comparison, local: float | None, wrong_before: set[str]) -> str:
    """wrong_before holds the names that are wrong among the earlier tensors."""
    if comparison.fault in (MISSING, NOT_MATCHED):
        return MISSING
    follows = local is not None and local <= 1 and bool(wrong_before)
    return DOWNSTREAM if follows or _comes_from(comparison.name) & wrong_before else WRONG


def _comes_from(name: str) -> set[str]:
    """Names from which the replay does not start anew: if one of them is wrong, so is this.

    A parameter comes from the moments of its step. Loss and gradients of a later step come from the same code as those
    of the first, and so do the logits of generation.
    """
    if name in GENERATED_FROM:
        return {GENERATED_FROM[name]}
    step, _, rest = name.partition(".")
    if is_state(name):
        return {f"{step}.exp_avg.{rest}", f"{step}.exp_avg_sq.{rest}"}
    return {"loss", rest} if step.startswith("step") else set()


def _local(reference: TraceFile, candidate: Candidate, wrong: list[Comparison]) -> dict[str, float]:
    """The share of its budget that each wrong tensor uses against what its own inputs lead to."""
    names = {comparison.name for comparison in wrong}
    if not names:
        return {}
    if not only_in_parts(reference.header.config):
        return _used_against_replay(Replay(reference, candidate), names)
    local: dict[str, float] = {}
    for part in parts_with(reference, names):
        here = {name for name, of_whole in part.names.items() if of_whole in names}
        shares = _used_against_replay(Replay(part, part.of_candidate(candidate)), here)
        local |= {part.names[name]: share for name, share in shares.items()}
    return local


def _used_against_replay(replay: Replay, names: set[str]) -> dict[str, float]:
    again = replay.run()
    return {name: replay.used(name, again[name]) for name in names if name in again and name in replay.arrays}


# One tensor


def _stored(
    names: Iterable[str], reference: TraceFile, candidate: Candidate
) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """The tensors that both files hold as they are compared, so that they need not be read whole."""
    pairs = {}
    for name in names:
        ours, expected = candidate.tensors.get(name), reference.stored(name)
        if isinstance(ours, StoredTensor) and name not in GENERATED_FROM and can_be_measured(ours, expected):
            pairs[name] = (ours, expected)
    return pairs


def _compared(name: str, reference: TraceFile, candidate: Candidate, found: Measured | None) -> Comparison:
    """found   the distance of the two, if it is known."""
    if name not in candidate.tensors:
        alike = candidate.may_be(name, reference.tensors.layouts[name].shape)
        return Comparison(name, NOT_MATCHED if alike else MISSING, np.inf, 0.0, 0.0, np.inf)
    if found is not None and is_given(name) and found.error.tensor == 0:
        return Comparison(name, "", 0.0, 0.0, 0.0, 0.0)
    if found is not None and not is_given(name):
        return _judged(name, found, reference.budget(candidate.format, name))
    ours, expected = candidate.tensors[name](), reference.read(name)
    if np.isnan(expected).any():
        raise InputError(f"{name} of the trace {reference.path} has a NaN, which nothing equals; write the trace anew")
    if is_given(name) or name == TOKENS:
        return _equal(name, ours, expected, reference, candidate)
    if expected.shape == () and ours.size == 1:
        ours = ours.reshape(())
    allowed = reference.budget(candidate.format, name)
    if name == LOGITS:
        ours, expected, allowed = _up_to_another_token(ours, expected, allowed, reference, candidate)
    return compared(name, ours, expected, allowed)


def compared(name: str, ours: Array, expected: Array, allowed: Norms) -> Comparison:
    """The comparison of a tensor of any floating-point dtype, in little memory where it has nothing special."""
    found = measured(ours, expected)
    if found is not None:
        return _judged(name, found, allowed)
    dtype = ours.dtype if np.issubdtype(ours.dtype, np.floating) else expected.dtype
    return compare({name: ours}, {name: expected}, {name: allowed}, dtype=dtype)[0]


def _judged(name: str, found: Measured, allowed: Norms) -> Comparison:
    return Comparison(name, "", found.error.tensor, found.size, allowed.tensor, used(found.error, allowed))


def _equal(name: str, ours: Array, expected: Array, reference: TraceFile, candidate: Candidate) -> Comparison:
    """What is given, and token ids, must be equal."""
    if ours.shape != expected.shape:
        return Comparison(name, f"shape {ours.shape}, expected {expected.shape}", np.inf, 0.0, 0.0, np.inf)
    if np.array_equal(ours, expected):
        return Comparison(name, "", 0.0, 0.0, 0.0, 0.0)
    differing = ours != expected
    if name == TOKENS and differing.any():
        differing = differing & ~_may_choose_otherwise(int(differing.argmax()), ours, reference, candidate)
    if not differing.any():
        return Comparison(name, "", 0.0, 0.0, 0.0, 0.0)
    count = int(differing.sum())
    return Comparison(name, f"{count} of {expected.size} differ", np.inf, 0.0, 0.0, np.inf)


def _may_choose_otherwise(place: int, ours: Array, reference: TraceFile, candidate: Candidate) -> bool:
    """Whether the token there may be another because the two logits are as close as rounding errors."""
    logits, allowed = reference.read(LOGITS)[place], reference.budget(candidate.format, LOGITS).rows[place]
    token = int(ours[place])
    return 0 <= token < len(logits) and bool(logits.max() - logits[token] <= 2 * allowed)


def _up_to_another_token(
    ours: Array, expected: Array, allowed: Norms, reference: TraceFile, candidate: Candidate
) -> tuple[Array, Array, Norms]:
    """The logits up to where the candidate goes on with another token than the reference."""
    tokens = candidate.tensors[TOKENS]() if TOKENS in candidate.tensors else ours.argmax(axis=-1)
    differing = tokens != reference.read(TOKENS) if tokens.shape == expected.shape[:1] else np.array([False])
    end = int(differing.argmax()) + 1 if differing.any() else len(expected)
    ours = ours[:end] if ours.shape == expected.shape else ours
    return ours, expected[:end], Norms(allowed.tensor, allowed.rows[:end])

