"""Candidates to be compared with a trace: our own steps in any number format, with bugs planted."""

from pathlib import Path

import numpy as np
import torch

from numpygpt.checks.compare import difference
from numpygpt.checks.dialects import Candidate, partial_of
from numpygpt.checks.planting import Bug, planted
from numpygpt.checks.trace import given, is_given, is_state, retrace
from numpygpt.checks.trace_file import has_budget

#: {format: the dtype that our code computes in, and to which everything that it tells is rounded}.
FORMATS = {
    "float64": (np.float64, None),
    "float32": (np.float32, None),
    "bfloat16": (np.float32, torch.bfloat16),
    "float16": (np.float32, torch.float16),
}
#: A gradient that is zero except for rounding says nothing about a bug.
ZERO_BY_THEORY = "W_key.bias"


def tensors_of(config, settings, bugs=(), format_="float64"):
    """The tensors of a trace that is computed in the format, with the bugs; fewer if the code crashes."""
    dtype, short = FORMATS[format_]
    tensors = {}

    def tell(name, array):
        if short is not None and isinstance(array, np.ndarray) and not is_given(name) and not is_state(name):
            array[...] = torch.from_numpy(np.ascontiguousarray(array)).to(short).float().numpy()
        tensors[name] = np.array(array)

    with planted(together(bugs)), np.errstate(all="ignore"):
        try:
            retrace(config, settings, given(config, settings), dtype, tell)
        except Exception:  # a bug may crash; what was computed before it is compared
            return tensors
    return tensors


def together(bugs):
    """All of the bugs as one, because two changes of one function can only be made at once."""
    names, changes = [bug.name for bug in bugs], [change for bug in bugs for change in bug.changes]
    return Bug(" and ".join(names), "", "", "", (), tuple(changes))


def fit_together(bugs):
    """Whether the bugs can be in the code at once: no two change the same words."""
    try:
        with planted(together(bugs)):
            return True
    except (LookupError, SyntaxError):
        return False


def candidate(tensors, reference, format_="float64"):
    """The tensors as a candidate that another program wrote."""
    known = {name: partial_of(array) for name, array in tensors.items() if name in reference.order}
    return Candidate(Path("candidate"), format_, known, {}, {}, [])


def first_spoiled(reference, tensors, format_):
    """The first tensor that bugs move by more than its budget in the format; None if there is none.

    tensors   of the run with the bugs in float64
    """
    for name in reference.order:
        if name not in tensors:
            return name
        if name.endswith(ZERO_BY_THEORY) and not is_given(name):
            continue
        ours, sound = np.asarray(tensors[name]), reference.read(name)
        if ours.shape != sound.shape:
            return name
        if not has_budget(name):
            if not np.array_equal(ours, sound):
                return name
            continue
        if np.isnan(ours).any() or (np.isinf(ours) != np.isinf(sound)).any():
            return name
        error, allowed = difference(ours, sound), reference.budget(format_, name)
        if error.tensor > allowed.tensor or (error.rows > allowed.rows).any():
            return name
    return None
