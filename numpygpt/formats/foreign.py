"""A model in the files of another program, read as the section "model" of a checkpoint.

`numpygpt.model.saving` and the commands take it as they take a checkpoint of ours.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from numpygpt.data.tokenizer import Encoding, get_tokenizer
from numpygpt.errors import InputError
from numpygpt.formats.names import Row, Table
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import SECTION, parameter_shapes
from numpygpt.sections import Layout, named_in_errors
from numpygpt.shapes import Array


@runtime_checkable
class Tensors(Protocol):
    """The tensors of open files, by the names that they have there: a `TensorFile`, or anything else with the two."""

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """{name: dtype and shape} of the arrays that `read` returns."""

    def read(self, name: str) -> Array:
        """The tensor of that name, read now."""


class ForeignModel:
    """A model of another program's. Its tensors are read one by one, each when its turn comes.

    path            the file that holds the weights, or one of several, for messages
    kind            whose files these are: "Hugging Face"
    config          the configuration, read from the files
    tokenizer       the name of its tokenizer for `get_tokenizer`; None if it has another or none
    own_tokenizer   makes the Encoding of a tokenizer that is none of ours. It raises InputError for one that tiktoken
                    cannot do. None if there is no such tokenizer.
    notes           what else is worth telling about how the files were read, a line each

    Raises InputError if the tensors are not those of the configuration; names and shapes that do not fit are listed,
    and nothing is read before.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        config: GPTConfig,
        table: Table,
        tensors: Tensors,
        *,
        tokenizer: str | None = None,
        own_tokenizer: Callable[[], Encoding] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.path, self.kind, self.config, self.notes = path, kind, config, notes
        self.tokenizer, self.own_tokenizer = tokenizer, own_tokenizer
        self._tensors = tensors
        with named_in_errors(self):
            table.check(config, tensors.layouts)
            self._sources = table.sources(config)

    def __contains__(self, name: object) -> bool:
        return name == SECTION

    def values(self, name: str) -> dict[str, Any]:
        """Of the section "model": the configuration, and the tokenizer's name. InputError for another section."""
        self._refuse_another(name)
        return {"config": self.config.to_dict(), "tokenizer": self.tokenizer}

    def layouts(self, name: str) -> dict[str, Layout]:
        """{our name: dtype and shape} of the model's weights; none of them is read. InputError for another section."""
        self._refuse_another(name)
        dtypes = {our_name: self._tensors.layouts[row.theirs].dtype for our_name, (row, _) in self._sources.items()}
        shapes = parameter_shapes(self.config)
        return {our_name: Layout(dtype, shapes[our_name]) for our_name, dtype in dtypes.items()}

    def arrays(self, name: str) -> dict[str, Array]:
        """{our name: array} of the model's weights. InputError as `each_array`."""
        return dict(self.each_array(name))

    def each_array(self, name: str) -> Iterator[tuple[str, Array]]:
        """Each of our names and its weights, read when its turn comes.

        Raises InputError for another section, and for values that are not finite.
        """
        self._refuse_another(name)
        rows = dict.fromkeys(row for row, _ in self._sources.values())
        for row in rows:
            yield from zip(row.ours, row.to_ours(self._read(row)), strict=True)

    def encoding(self, vocab: str | os.PathLike[str] | None = None) -> Encoding:
        """The tokenizer that the model learned with.

        vocab   as `get_tokenizer` takes it, if the tokenizer is GPT-2's

        Raises InputError if the files have no tokenizer, one that cannot be used, or one of more tokens than the model
        knows.
        """
        if self.own_tokenizer is not None:
            tokenizer = self.own_tokenizer()
        elif self.tokenizer is not None:
            tokenizer = get_tokenizer(self.tokenizer, vocab)
        else:
            raise InputError(f"there is no tokenizer beside {self.path}, so a prompt cannot be encoded")
        if tokenizer.n_vocab > self.config.vocab_size:
            raise InputError(
                f"the tokenizer beside {self.path} has {tokenizer.n_vocab} tokens, but the model's vocab_size is "
                f"{self.config.vocab_size}; expected at least as many: put the model's own tokenizer there"
            )
        return tokenizer

    def _read(self, row: Row) -> Array:
        tensor = self._tensors.read(row.theirs)
        if not np.isfinite(tensor).all():
            raise InputError(
                f"the checkpoint {self.path} holds values that are not finite in {row.theirs}; use another checkpoint"
            )
        return tensor

    def _refuse_another(self, name: str) -> None:
        if name != SECTION:
            raise InputError(f"{self.path} holds a model of {self.kind} alone, and no section {name!r}")
