"""A table a format: what they call each tensor, what we call it, and how theirs lies. It is read in both directions.

    Row("h.{i}.attn.c_attn.weight", QKV_WEIGHTS, transposed=True)

says that their tensor holds our three matrices W_query, W_key and W_value of block {i} side by side, each as (in, out),
where ours is (out, in) as PyTorch's. How a tensor lies is decided by its name alone, never by its shape: a square
matrix looks right either way, and is not.

A file may have a parameter that the model does without: a bias, a table of positions, a head of its own. A model that
has it computes the same with the parameter's stand-in: zeros, the sinusoids, the token embeddings. So a table's reader
takes such a tensor if it equals the stand-in, and its writer puts the stand-in where the format knows no model without
the parameter.
"""

from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError, listed
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import parameter_shapes
from numpygpt.ops import sinusoidal_positions
from numpygpt.sections import Layout
from numpygpt.shapes import Array

#: The three projections that GPT-2's files keep in one tensor, in its order.
QKV = tuple(f"trf_blocks.{{i}}.att.{name}" for name in ("W_query", "W_key", "W_value"))
QKV_WEIGHTS = tuple(f"{name}.weight" for name in QKV)
QKV_BIASES = tuple(f"{name}.bias" for name in QKV)

#: Our parameters that a model may do without, and the one that stands for the head then.
TOKENS, POSITIONS, HEAD = "tok_emb.weight", "pos_emb.weight", "out_head.weight"

#: The block's number in a name of a table.
BLOCK = "{i}"
#: Names that a message lists of each fault; a file of another model may have hundreds.
MOST_LISTED = 10


class Row(NamedTuple):
    """A tensor of theirs. `{i}` in its names stands for the number of the block.

    theirs       its name
    ours         the name of our parameter, or those of several of one shape, which theirs holds one after another along
                 the output axis
    transposed   theirs is (in, out), where ours is (out, in)
    kernel       theirs has one more axis of length 1 in front: the kernel of a convolution of width 1
    always       the format has it even if the model does without: then it holds the stand-in
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    kernel: bool = False
    always: bool = False

    def of_block(self, number: int) -> "Row":
        """The row of one block."""
        return self._replace(
            theirs=self.theirs.replace(BLOCK, str(number)),
            ours=tuple(name.replace(BLOCK, str(number)) for name in self.ours),
        )

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of theirs, if each parameter of ours has this one."""
        together = (len(self.ours) * ours[0], *ours[1:])
        turned = together[::-1] if self.transposed else together
        return (1, *turned) if self.kernel else turned

    def from_ours(self, parameters: Sequence[Array]) -> Array:
        """Their tensor, of our parameters in the order of `ours`."""
        together = parameters[0] if len(parameters) == 1 else np.concatenate(parameters)
        turned = together.T if self.transposed else together
        return turned[np.newaxis] if self.kernel else turned

    def to_ours(self, tensor: Array) -> list[Array]:
        """Our parameters in the order of `ours`: views of their tensor."""
        turned = tensor[0] if self.kernel else tensor
        return np.split(turned.T if self.transposed else turned, len(self.ours))


class Table(NamedTuple):
    """The tensors of a format.

    rows      all that a file of the format may have; which of them a model has, its configuration says
    ignored   names of what is no weight, such as the mask of attention
    """

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()

    def expand(self, config: GPTConfig) -> list[Row]:
        """The rows of what a writer writes for this model, block by block."""
        own = parameter_shapes(config)
        return [row for row in self._possible(config) if row.always or row.ours[0] in own]

    def shapes(self, config: GPTConfig) -> dict[str, tuple[int, ...]]:
        """{their name: shape} of what a writer writes for this model. No memory is taken for it."""
        of_ours = parameter_shapes(_with_every_parameter(config))
        return {row.theirs: row.shape(of_ours[row.ours[0]]) for row in self.expand(config)}

    def check(self, config: GPTConfig, found: Mapping[str, Layout]) -> None:
        """Raise InputError unless the tensors of a file, which are not read for it, are those of this model.

        It lists the names that are missing, those that are unexpected, and those of another shape or of no
        floating-point dtype. What the model does without may be there or not.
        """
        if config.n_layers > len(found):
            raise InputError(f"the model has {config.n_layers} blocks, but there are {len(found)} tensors in all")
        own, of_ours = parameter_shapes(config), parameter_shapes(_with_every_parameter(config))
        rows = {row.theirs: row for row in self._possible(config)}
        expected = {name: row.shape(of_ours[row.ours[0]]) for name, row in rows.items()}
        known = {name: layout for name, layout in found.items() if name in rows}
        ignored = {name.replace(BLOCK, str(number)) for name in self.ignored for number in range(config.n_layers)}
        faults = {
            "missing": [name for name, row in rows.items() if row.ours[0] in own and name not in found],
            "unexpected": [name for name in found if name not in rows and name not in ignored],
            "misshaped": [
                f"{name} {layout.shape}, expected {expected[name]}"
                for name, layout in known.items()
                if layout.shape != expected[name]
            ],
            "not floating-point": [
                f"{name} {layout.dtype}" for name, layout in known.items() if not layout.dtype.startswith("float")
            ],
        }
        told = "; ".join(f"{fault}: {listed(names, MOST_LISTED)}" for fault, names in faults.items() if names)
        if told:
            raise InputError(f"the tensors do not fit the configuration: {told}")

    def surplus(self, config: GPTConfig, found: Container[str], read: Callable[[str], Array]) -> list[str]:
        """What the configuration leaves out and the file has nevertheless: our names of those parameters.

        A tensor that equals its stand-in does not count. With any that counts, the file holds another model than the
        configuration says.

        found   the names of the file's tensors
        read    the tensor of a name; few are read
        """
        own, sources = parameter_shapes(config), self.sources(config)

        def ours(name: str) -> Array:
            row, part = sources[name]
            return row.to_ours(read(row.theirs))[part]

        return [
            name
            for row in self._possible(config)
            if row.ours[0] not in own and row.theirs in found
            for name, parameter in zip(row.ours, row.to_ours(read(row.theirs)), strict=True)
            if not np.array_equal(parameter, _stand_in(name, parameter.shape, parameter.dtype, ours))
        ]

    def sources(self, config: GPTConfig) -> dict[str, tuple[Row, int]]:
        """{our name: (the row, which of its parameters)} of the model's parameters, in our order."""
        rows = {name: (row, part) for row in self._possible(config) for part, name in enumerate(row.ours)}
        return {name: rows[name] for name in parameter_shapes(config)}

    def to_ours(self, config: GPTConfig, read: Callable[[str], Array]) -> dict[str, Array]:
        """{our name: array} of the model's parameters: views of what `read` returns for each of their names."""
        sources = self.sources(config)
        rows = dict.fromkeys(row for row, _ in sources.values())
        tensors = {row.theirs: row.to_ours(read(row.theirs)) for row in rows}
        return {name: tensors[row.theirs][part] for name, (row, part) in sources.items()}

    def to_theirs(self, config: GPTConfig, state_dict: Mapping[str, Array]) -> dict[str, Array]:
        """{their name: tensor} of what a writer writes for this model: views of ours, where that is possible.

        state_dict   {our name: array} of the model's parameters, all of one dtype
        """
        of_ours = parameter_shapes(_with_every_parameter(config))
        dtype = state_dict[TOKENS].dtype

        def parameter(name: str) -> Array:
            found = state_dict.get(name)
            return _stand_in(name, of_ours[name], dtype, state_dict.__getitem__) if found is None else found

        return {row.theirs: row.from_ours([parameter(name) for name in row.ours]) for row in self.expand(config)}

    def _possible(self, config: GPTConfig) -> Iterator[Row]:
        """All rows, those of the blocks block by block."""
        for in_blocks, rows in groupby(self.rows, lambda row: BLOCK in row.theirs):
            if in_blocks:
                group = list(rows)
                yield from (row.of_block(number) for number in range(config.n_layers) for row in group)
            else:
                yield from rows


def with_parameters(config: GPTConfig, names: Collection[str]) -> GPTConfig:
    """The configuration of the model that has these parameters, too."""
    of_qkv = {name for name in names if name.endswith((".W_query.bias", ".W_key.bias", ".W_value.bias"))}
    return replace(
        config,
        qkv_bias=config.qkv_bias or bool(of_qkv),
        bias=config.bias or any(name.endswith((".bias", ".shift")) for name in names if name not in of_qkv),
        tie_weights=config.tie_weights and HEAD not in names,
        position="learned" if POSITIONS in names else config.position,
    )


def _with_every_parameter(config: GPTConfig) -> GPTConfig:
    """The model's sizes, with all that a model may have."""
    return replace(config, qkv_bias=True, bias=True, tie_weights=False, position="learned")


def _stand_in(name: str, shape: tuple[int, ...], dtype: Any, ours: Callable[[str], Array]) -> Array:
    """What a model without the parameter computes with. `ours` gives its parameter of a name."""
    if name == HEAD:
        return ours(TOKENS)
    if name == POSITIONS:
        context_length, emb_dim = shape
        return sinusoidal_positions.table(context_length, emb_dim, dtype)
    return np.zeros(shape, dtype)
