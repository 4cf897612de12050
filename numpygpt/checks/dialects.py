"""Candidates: the tensors of another implementation, found under the names of a trace.

Names are found in this order: by a map that the user gives; as the trace's own; as those of Hugging Face's GPT-2 or of
nanoGPT, whose modules have the same names and keep their weights the other way round; by content; and last in the way
in which the names that were found by content differ from ours. The state that llm.c writes is read as it is
(`numpygpt.formats.llm_c`).

    theirs                         ours
    transformer.h.0.ln_1           trf_blocks.0.norm1, an activation: the output of that module
    transformer.h.0.attn.c_attn    trf_blocks.0.att.queries, keys and values, side by side and not split into heads
    h.0.ln_1.weight.grad           d_trf_blocks.0.norm1.scale: d_ in front or .grad behind makes it a gradient
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from numpygpt.checks.budgets import FORMATS
from numpygpt.checks.compare import finite_norms, norms
from numpygpt.checks.trace import is_state
from numpygpt.checks.trace_file import BUDGET, FORMAT, TraceFile, has_budget, refuse_another_version
from numpygpt.errors import InputError
from numpygpt.formats import hugging_face, llm_c, nanogpt
from numpygpt.formats.names import Table
from numpygpt.formats.tensor_file import StoredTensor, TensorFile
from numpygpt.layers.multi_head_attention import split_heads
from numpygpt.model.config import GPTConfig
from numpygpt.reading import read_json, refuse_irregular
from numpygpt.sections import Layout
from numpygpt.shapes import Array

KIND = "candidate"
PREFIX = "transformer."
#: The most bytes of a map of names.
MOST_BYTES = 2**22
#: A tensor is only taken for one of the reference's by its content if it differs by less than this share of its size.
CLOSE_ENOUGH = 0.3
#: Tensors that differ by less are matched first, and teach how the names differ.
SURELY = 1e-3
#: What stands before the name of an activation or a parameter: "step2.d_", "step1.exp_avg.".
_BEFORE = re.compile(r"(step\d+\.)?(exp_avg\.|exp_avg_sq\.|d_)?")
#: How many of their names are shown to a person who looks for the one of a tensor.
MOST_ALIKE = 3

#: {module of Hugging Face's GPT-2 or nanoGPT: the activations of ours that it outputs}.
ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "wte": ("tok_emb",),
    "wpe": ("pos_emb",),
    "drop": ("drop_emb",),
    "h.{i}.ln_1": ("trf_blocks.{i}.norm1",),
    "h.{i}.attn.c_attn": tuple(f"trf_blocks.{{i}}.att.{name}" for name in ("queries", "keys", "values")),
    "h.{i}.attn.c_proj": ("trf_blocks.{i}.att.out_proj",),
    "h.{i}.attn": ("trf_blocks.{i}.drop_att",),
    "h.{i}.attn.resid_dropout": ("trf_blocks.{i}.drop_att",),
    "h.{i}.ln_2": ("trf_blocks.{i}.norm2",),
    "h.{i}.mlp.c_fc": ("trf_blocks.{i}.ff.layers.0",),
    "h.{i}.mlp.act": ("trf_blocks.{i}.ff.layers.1",),
    "h.{i}.mlp.gelu": ("trf_blocks.{i}.ff.layers.1",),
    "h.{i}.mlp.c_proj": ("trf_blocks.{i}.ff.layers.2",),
    "h.{i}.mlp": ("trf_blocks.{i}.drop_ff",),
    "h.{i}.mlp.dropout": ("trf_blocks.{i}.drop_ff",),
    "h.{i}": ("trf_blocks.{i}",),
    "ln_f": ("final_norm",),
    "lm_head": ("logits",),
}

Read = Callable[[], Array]


class Candidate(NamedTuple):
    """What another implementation computed.

    path       its file
    format     the number format that it was computed in, one of `budgets.FORMATS`
    tensors    {our name: a function that reads the tensor}
    theirs     {our name: their name} where the two differ
    proposed   {our name: how close it is} of the names that were found by content
    unknown    their names that are none of ours
    partial    whether it need not have every tensor
    by_others  our names of the tensors whose names differ as those found by content do
    shapes     {their name: shape} of those that are unknown
    dtypes     of the tensors that are judged, other than the format's; empty where the user says the format
    """

    path: Path
    format: str
    tensors: dict[str, Read]
    theirs: dict[str, str]
    proposed: dict[str, float]
    unknown: list[str]
    partial: bool = False
    by_others: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = {}
    dtypes: tuple[str, ...] = ()

    def may_be(self, ours: str, shape: tuple[int, ...]) -> list[str]:
        """Their unknown names of tensors of this shape; those that look most like our name come first."""
        alike = [name for name, theirs in self.shapes.items() if theirs == shape]
        return get_close_matches(ours, alike, MOST_ALIKE, cutoff=0.0)


def open_candidate(
    path: Path,
    reference: TraceFile,
    *,
    names: Path | None = None,
    dtype: str | None = None,
    partial: bool = False,
) -> Candidate:
    """The candidate in a file.

    names     a JSON file {their name: our name}
    dtype     the format that it was computed in; None: the shortest dtype in the file says it
    partial   whether it need not have every tensor

    Raises InputError for a file that is missing or damaged, a trace of a later version, a map that does not fit, and a
    file without any tensor of the trace.
    """
    refuse_irregular(path, KIND)
    if path.is_file() and llm_c.is_state(path):
        found = llm_c.read_state(path, reference.header.config)
        tensors: dict[str, Read] = {name: partial_of(array) for name, array in found.items()}
        return Candidate(path, dtype or "float32", tensors, {}, {}, [], partial=True)
    file = TensorFile(path, KIND, bfloat16=True)
    if file.metadata.get("format") == FORMAT:
        try:
            refuse_another_version(file.metadata)
        except InputError as error:
            raise InputError(f"the {KIND} {path} cannot be used: {error}") from error
    matched = _matched(file, reference, names)
    if dtype is not None:
        return matched._replace(format=dtype, partial=partial)
    shortest, *others = _formats_of(file, matched)
    return matched._replace(format=shortest, dtypes=tuple(others), partial=partial)


def partial_of(array: Array) -> Read:
    """A function that returns the array."""
    return lambda: array


def _formats_of(file: TensorFile, candidate: Candidate) -> list[str]:
    """The dtypes of what is compared, the shortest first. Losses and AdamW's state may be longer, and tell nothing."""
    judged = [name for name in candidate.tensors if has_budget(name)]
    telling = [name for name in judged if not is_state(name) and not name.endswith("loss")]
    dtypes = {_dtype(file, candidate.theirs.get(name, name)) for name in telling or judged}
    known = [dtype for dtype in dtypes if dtype in FORMATS]
    return sorted(known, key=lambda dtype: -FORMATS[dtype]) or ["float32"]


def _dtype(file: TensorFile, name: str) -> str:
    return file.layouts[name].dtype


# Matching names


class _Matches(NamedTuple):
    """What of a candidate's file is matched so far with the tensors of the reference.

    tensors   {name of a tensor of the reference: what reads the candidate's}
    theirs    {the same name: the candidate's name}
    """

    file: TensorFile
    reference: TraceFile
    tensors: dict[str, Read]
    theirs: dict[str, str]

    def add(self, name: str, ours: str) -> None:
        """Match the candidate's tensor of this name with that of ours."""
        self.tensors[ours], self.theirs[ours] = StoredTensor(self.file, name), name


def _matched(file: TensorFile, reference: TraceFile, names: Path | None) -> Candidate:
    given = {} if names is None else _map_of(names, file, reference)
    offered = [name for name in file.layouts if not name.startswith(BUDGET)]
    matches = _Matches(file, reference, {}, {})
    tensors, theirs = matches.tensors, matches.theirs
    unknown: list[str] = []
    needless: list[str] = []
    dialect = Dialect(reference.header.config, file.layouts)
    expected = set(reference.order)
    for name in offered:
        if name in given:
            found: dict[str, Read] = {given[name]: StoredTensor(file, name)}
        elif name in expected and name not in given.values():
            found = {name: StoredTensor(file, name)}
        else:
            of_dialect = dialect.tensors(name, file.read)
            found = {ours: read for ours, read in of_dialect.items() if ours in expected}
            if not found:
                (needless if of_dialect else unknown).append(name)
        for ours, read in found.items():
            if ours not in tensors or name in given:
                tensors[ours], theirs[ours] = read, name
    proposed: dict[str, float] = {}
    others: list[str] = []
    for limit in (SURELY, CLOSE_ENOUGH):
        proposed |= _by_content(matches, unknown, limit)
        others += _by_other_names(matches, unknown)
    if not any(has_budget(name) for name in tensors):
        raise InputError(
            f"the {KIND} {file.path} has none of the tensors of the trace; it has "
            f"{', '.join(offered[:5]) or 'nothing'}: map its names by --names"
        )
    renamed = {ours: name for ours, name in theirs.items() if ours != name}
    left = needless + [name for name in unknown if name not in theirs.values()]
    shapes = {name: file.layouts[name].shape for name in left}
    return Candidate(file.path, "float64", tensors, renamed, proposed, left, by_others=tuple(others), shapes=shapes)


def _map_of(path: Path, file: TensorFile, reference: TraceFile) -> dict[str, str]:
    """The map of names. InputError unless each of their names is in the file, and each of ours in the trace."""
    found = read_json(path, "map of names", MOST_BYTES)
    for theirs, ours in found.items():
        if theirs not in file.layouts:
            raise InputError(f"the map {path} names {theirs!r:.80}, which is not in {file.path}")
        if ours not in reference.order:
            raise InputError(f"the map {path} gives {theirs!r:.80} the name {ours!r:.80}, which is not in the trace")
    if len(set(found.values())) < len(found):
        raise InputError(f"the map {path} gives one name to several tensors; give each its own")
    return found


class Dialect:
    """The names of Hugging Face's GPT-2 and of nanoGPT.

    config    of the reference
    layouts   of the candidate's tensors: the shape of a matrix that is not square says which of the two it is
    """

    def __init__(self, config: GPTConfig, layouts: Mapping[str, Layout]) -> None:
        self.config = config
        self.rows = {row.theirs: row for row in self._table(layouts).expand(config)}

    def _table(self, layouts: Mapping[str, Layout]) -> Table:
        D = self.config.emb_dim
        as_nanogpt = [
            layout.shape == (3 * D, D)
            for name, layout in layouts.items()
            if plain(name)[0].endswith("attn.c_attn.weight")
        ]
        return nanogpt.TABLE if any(as_nanogpt) else hugging_face.TABLE

    def tensors(self, theirs: str, read: Callable[[str], Array]) -> dict[str, Read]:
        """What the tensor of this name holds, by our names; empty if the name is not known."""
        base, is_gradient = plain(theirs)
        prefix = "d_" if is_gradient else ""
        row = self.rows.get(base) or self.rows.get(f"{PREFIX}{base}")
        if row is not None:
            return {
                f"{prefix}{ours}": partial(_part_of_row, read, theirs, row.to_ours, part)
                for part, ours in enumerate(row.ours)
            }
        ours = _activation(base.removeprefix(PREFIX))
        return {
            f"{prefix}{name}": partial(_part_of_activation, read, theirs, part, len(ours), self.config.n_heads)
            for part, name in enumerate(ours)
        }


def plain(theirs: str) -> tuple[str, bool]:
    """The name without what says that it is a gradient, and whether it is one."""
    for prefix in ("d_", "grad."):
        if theirs.startswith(prefix):
            return theirs.removeprefix(prefix), True
    return theirs.removesuffix(".grad"), theirs.endswith(".grad")


def _activation(theirs: str) -> tuple[str, ...]:
    parts = theirs.split(".")
    if len(parts) > 1 and parts[0] == "h" and parts[1].isdigit():
        general = ".".join(["h", "{i}", *parts[2:]])
        return tuple(name.replace("{i}", parts[1]) for name in ACTIVATIONS.get(general, ()))
    return ACTIVATIONS.get(theirs, ())


def _part_of_row(
    read: Callable[[str], Array], theirs: str, to_ours: Callable[[Array], list[Array]], part: int
) -> Array:
    return to_ours(read(theirs))[part]


def _part_of_activation(read: Callable[[str], Array], theirs: str, part: int, parts: int, n_heads: int) -> Array:
    """One of the tensors that lie side by side; three are queries, keys and values, which are split into heads."""
    tensor = read(theirs)
    if parts == 1:
        batch_of_one = theirs.removeprefix(PREFIX).startswith("wpe") and tensor.ndim == 3 and len(tensor) == 1
        return tensor[0] if batch_of_one else tensor
    if tensor.ndim != 3 or tensor.shape[-1] % (parts * n_heads):
        return tensor
    return split_heads(np.split(tensor, parts, axis=-1)[part], n_heads)


def _by_content(matches: _Matches, unknown: Iterable[str], limit: float) -> dict[str, float]:
    """Match each unknown tensor with the closest of the reference's that has its shape and no match yet.

    limit   two that differ by more, as a share of the reference's size, do not match
    """
    file, reference, tensors, theirs = matches
    proposed = {}
    matched = set(theirs.values())
    wanting = {n: file.layouts[n] for n in unknown if file.layouts[n].dtype in FORMATS and n not in matched}
    for name, layout in wanting.items():
        closest, ours = min(
            (
                (_distance(file.read(name), reference.read(expected)), expected)
                for expected in reference.order
                if has_budget(expected)
                and expected not in tensors
                and reference.tensors.layouts[expected].shape == layout.shape
                and layout.shape
            ),
            default=(np.inf, ""),
        )
        if closest < limit:
            matches.add(name, ours)
            proposed[ours] = closest
    return proposed


def _by_other_names(matches: _Matches, unknown: Iterable[str]) -> list[str]:
    """Match what is left as the names that were found by content differ from ours.

    If "my/L0.A_keys" is `trf_blocks.0.att.keys`, then "my/L0.A_attn_scores" is `trf_blocks.0.att.attn_scores`, if that
    has the same shape and no match yet. A wrong tensor is not close to ours, and is found by its name alone.
    """
    file, reference, tensors, theirs = matches
    common = _common_beginning(unknown)
    begins = _learned({name.removeprefix(common): ours for ours, name in theirs.items() if name in set(unknown)})
    found = []
    for name in unknown:
        if name in theirs.values():
            continue
        ours = next((n for n in _translated(name.removeprefix(common), begins) if n in reference.tensors.layouts), "")
        if ours in reference.order and ours not in tensors and _same_shape(file, name, reference, ours):
            matches.add(name, ours)
            found.append(ours)
    return found


def _learned(ours_of: Mapping[str, str]) -> dict[str, str]:
    """{how their names begin: how ours begin where the rest is the same}, the longest first."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for theirs, ours in ours_of.items():
        before = _before(ours)
        if _before(theirs) == before:
            theirs, ours = theirs.removeprefix(before), ours.removeprefix(before)
        same = len(_common_beginning([theirs[::-1], ours[::-1]]))
        counts[theirs[: len(theirs) - same]][ours[: len(ours) - same]] += 1
    return {begin: counts[begin].most_common(1)[0][0] for begin in sorted(counts, key=len, reverse=True)}


def _common_beginning(texts: Iterable[str]) -> str:
    at_each_place = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in at_each_place)


def _before(name: str) -> str:
    return _BEFORE.match(name)[0]  # type: ignore[index]  # it matches every name


def _translated(theirs: str, begins: Mapping[str, str]) -> Iterable[str]:
    """What the name may be among ours, the likeliest first."""
    before = _before(theirs)
    rest = theirs.removeprefix(before)
    return (before + ours + rest.removeprefix(begin) for begin, ours in begins.items() if rest.startswith(begin))


def _same_shape(file: TensorFile, theirs: str, reference: TraceFile, ours: str) -> bool:
    one, other = file.layouts[theirs].shape, reference.tensors.layouts[ours].shape
    return one == other or (other == () and math.prod(one) == 1)


def _distance(ours: Array, expected: Array) -> float:
    """‖ours - expected‖ / ‖expected‖ of the finite elements; infinite for tensors of zeros."""
    size = finite_norms(expected).tensor
    finite = np.isfinite(ours) & np.isfinite(expected)
    return norms(np.where(finite, ours, 0) - np.where(finite, expected, 0)).tensor / size if size else np.inf


