"""A part of a large model, as a trace of a model of one block, so that it can be replayed by itself.

A replay computes each tensor from the candidate's own earlier tensors. So what happens in a block needs nothing but the
block's parameters, its input and the gradient of its output. `part_around` takes these out of a trace and out of a
candidate, and gives them the names that they would have in a model of one block:

    of block i                       in the part
    trf_blocks.{i}.att.queries       trf_blocks.0.att.queries, and likewise every other tensor of the block
    trf_blocks.{i - 1}               drop_emb, the block's input, if i > 0
    d_trf_blocks.{i - 1}             d_drop_emb

The embeddings belong to the part of the first block, and the final norm to that of the last. The part's vocabulary are
the ids that occur. What needs the whole vocabulary or all parameters at once is in no part: logits, loss and their
gradients, the tables of embeddings with their gradients and moments, every step after the first, and generation.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from numpygpt.checks.compare import Norms
from numpygpt.checks.dialects import Candidate, Read
from numpygpt.checks.trace import INPUTS, KEEP, PROMPT, TARGETS, is_given
from numpygpt.checks.trace_file import Header, TraceFile
from numpygpt.model.saving import parameter_shapes
from numpygpt.sections import Layout
from numpygpt.shapes import Array

#: What may stand before the name of an activation or a parameter in the trace of one step.
PREFIXES = ("", "d_", KEEP, "step1.", "step1.exp_avg.", "step1.exp_avg_sq.")
_NAME = re.compile(rf"({'|'.join(re.escape(prefix) for prefix in sorted(PREFIXES, key=len, reverse=True))})(.*)")
_OF_BLOCK = re.compile(r"trf_blocks\.(\d+)(\..*)?")
#: Activations before the first block, and what comes after the last one.
BEFORE, AFTER = ("tok_emb", "pos_emb", "drop_emb"), ("final_norm", "final_norm.scale", "final_norm.shift")


def parts_with(whole: TraceFile, names: Iterable[str]) -> "Iterator[Part]":
    """The parts of the trace in which any of the tensors of these names is computed, or given."""
    last = whole.header.config.n_layers - 1
    for block in range(last + 1):
        if any(_in_part(name, block, last) for name in names):
            yield Part(whole, block)


def _in_part(name: str, block: int, last: int) -> str | None:
    """The name, in the part around the block, of what the trace names so; None if it is not computed there."""
    prefix, of_tensor = _NAME.fullmatch(name).groups()  # type: ignore[union-attr]  # it matches every name
    in_block = _OF_BLOCK.fullmatch(of_tensor)
    if in_block is None:
        before, after = block == 0 and of_tensor in BEFORE, block == last and of_tensor in AFTER
        return name if before or (after and name != "d_final_norm") else None
    number, inside = int(in_block[1]), in_block[2] or ""
    if number == block - 1 and prefix == "d_" and not inside:
        return "d_drop_emb"
    from_the_next = prefix == "d_" and not inside and block < last
    return f"{prefix}trf_blocks.0{inside}" if number == block and not from_the_next else None


class _Layouts(NamedTuple):
    """What stands in the place of the open file of a trace."""

    layouts: dict[str, Layout]


class Part:
    """The part of a trace around a block; it has what a replay uses of a `TraceFile`.

    names    {name in the part: name in the trace} of what is computed in it, and of what that needs
    inputs   the same of what comes from other blocks
    """

    def __init__(self, whole: TraceFile, block: int) -> None:
        self.whole, self.block = whole, block
        config, settings = whole.header.config, whole.header.settings
        self.ids = np.unique(np.concatenate([whole.read(name).reshape(-1) for name in (INPUTS, TARGETS, PROMPT)]))
        last = config.n_layers - 1
        config = replace(config, n_layers=1, vocab_size=len(self.ids), context_length=settings.tokens)
        self.shapes = parameter_shapes(config)
        in_part = {name: _in_part(name, block, last) for name in whole.order}
        self.names = {name: of_whole for of_whole, name in in_part.items() if name is not None}
        self.inputs = {"d_final_norm": "d_final_norm"} if block == last else {"d_trf_blocks.0": f"d_trf_blocks.{block}"}
        self.inputs |= {"drop_emb": f"trf_blocks.{block - 1}"} if block else {}
        computed = {name: whole.header.computed[of_whole] for name, of_whole in self.names.items()}
        self.header = Header(config, settings._replace(steps=1, new_tokens=0), computed, whole.header.budgets)
        everything = self.inputs | self.names
        self.tensors = _Layouts({name: whole.tensors.layouts[of_whole] for name, of_whole in everything.items()})

    @property
    def order(self) -> list[str]:
        """The names in the part, in the order of the computation."""
        return list(self.names)

    def read(self, name: str) -> Array:
        """The reference's tensor of that name in the part."""
        return self.whole.read(self.names[name])

    def budget(self, format_: str, name: str) -> Norms:
        """How far a candidate may be from it."""
        return self.whole.budget(format_, self.names[name])

    def given(self) -> dict[str, Array]:
        """What is given to the part, with other numbers for the ids."""
        given = {name: self.read(name) for name in self.names if is_given(name)}
        given |= {name: self._table(name, shape) for name, shape in self.shapes.items() if name not in given}
        for name in (INPUTS, TARGETS, PROMPT):
            given[name] = np.searchsorted(self.ids, self.whole.read(name))
        if self.header.config.drop_rate and self.block:
            given[f"{KEEP}drop_emb"] = self.whole.read(f"{KEEP}drop_emb")
        return given

    def _table(self, name: str, shape: tuple[int, ...]) -> Array:
        """The rows of a table that the part uses, or a parameter that it has no use for."""
        if name == "pos_emb.weight":
            return self.whole.stored(name).part(0, shape[0] * shape[1]).reshape(shape)
        if len(shape) == 1:
            return self.whole.read(name)
        return np.stack([self.whole.stored(name).part(id_ * shape[1], (id_ + 1) * shape[1]) for id_ in self.ids])

    def in_whole(self, text: str) -> str:
        """The text with names of the trace for those of the part that stand between backticks."""
        return re.sub("`([^`]+)`", lambda quoted: f"`{self.names.get(quoted[1], quoted[1])}`", text)

    def of_candidate(self, candidate: Candidate) -> Candidate:
        """The candidate's tensors by their names in the part. Inputs that it does not have are the reference's."""
        tensors: dict[str, Read] = {name: self.whole.stored(of_whole) for name, of_whole in self.inputs.items()}
        everything = self.inputs | self.names
        has = candidate.tensors
        tensors |= {name: has[of_whole] for name, of_whole in everything.items() if of_whole in has}
        return candidate._replace(tensors=tensors)


#: What a candidate is replayed against.
Reference = TraceFile | Part
