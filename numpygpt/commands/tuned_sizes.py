"""What `numpygpt info` says of a model that was adapted: how, what is trained of it, where its base is, and its bytes.

All of it is found without any weights: by the names and shapes of what is trained, and by the scheme's words.
"""

import math
from typing import NamedTuple

import numpy as np

from numpygpt.adapt.adaptation import Adaptation, quantization_of
from numpygpt.adapt.packed import forms_of
from numpygpt.adapt.saving import Base, adaptation_of, base_of
from numpygpt.errors import InputError
from numpygpt.formats.kinds import read_model
from numpygpt.model import sizes
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import BASE, SECTION, parameter_shapes, saved_config
from numpygpt.numerics.forms import Form, unfilled
from numpygpt.numerics.schemes import SCHEMES
from numpygpt.sections import Layout, SavedSections, named_in_errors


class TunedSizes(NamedTuple):
    """What is known of an adapted model.

    trained   the layouts of the parameters that are trained
    forms     those of its quantized matrices, by projection
    """

    config: GPTConfig
    base: Base
    adaptation: Adaptation
    trained: dict[str, Layout]
    forms: dict[str, Form]

    @property
    def lines(self) -> list[str]:
        """What is told of it."""
        count, size = self._count, sum(_bytes(layout) for layout in self.trained.values())
        found = "" if self.base.path.exists() else ", which is not there any more"
        return [
            f"adapted by {self.adaptation}",
            f"{count:,} values are trained, in {len(self.trained)} arrays of {size:,} bytes; all else is its base's",
            f"its base is {self.base.path}{found}, with weights of the SHA-256 {self.base.sha256}",
        ]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the parameters that are trained."""
        return {name: layout.shape for name, layout in self.trained.items()}

    def step(self, whole: sizes.TrainingBytes, dtype: str, optimizer: int) -> sizes.TrainingBytes:
        """The bytes of a step, where `whole` is that of a step of all parameters; `optimizer` those of the moments."""
        size = np.dtype(dtype).itemsize
        added = sum(math.prod(shape) for name, shape in self.shapes.items() if ".lora_" in name)
        packed = sum(unfilled(form).bytes() for form in self.forms.values())
        in_place_of = sum(form.size for form in self.forms.values())
        values = sizes.num_parameters(self.config) - in_place_of + added
        weights = size * values + packed
        return sizes.tuning_bytes(whole, weights=weights, gradients=size * self._count, optimizer=optimizer)

    @property
    def _count(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def tuned_sizes(checkpoint: SavedSections) -> TunedSizes | None:
    """What is known of the saved model if it was adapted. InputError for values that mean nothing."""
    values = checkpoint.values(SECTION)
    if BASE not in values:
        return None
    config = saved_config(checkpoint)
    with named_in_errors(checkpoint):
        base, adaptation = base_of(values), adaptation_of(values)
        forms = _of_a_base(base) if adaptation.quantize is None else _by_words(adaptation.quantize, config)
    return TunedSizes(config, base, adaptation, checkpoint.layouts(SECTION), forms)


def _by_words(words: str, config: GPTConfig) -> dict[str, Form]:
    """The forms of the matrices of the blocks that are quantized by these words."""
    scheme, options = quantization_of(words)
    if scheme not in SCHEMES:
        raise InputError(f"the scheme of quantization is {scheme!r:.40}; expected one of {', '.join(SCHEMES)}")
    size = options.get("block_size", SCHEMES[scheme].block_size)
    return {
        name.removesuffix(".weight"): Form(scheme, shape, shape[-1] if size == "row" else size, "double" in options)
        for name, shape in parameter_shapes(config).items()
        if name.startswith("trf_blocks.") and len(shape) == 2
    }


def _of_a_base(base: Base) -> dict[str, Form]:
    """The forms of the matrices of a base that was quantized before; none if its files cannot be read."""
    try:
        return forms_of(read_model(base.path))
    except InputError:
        return {}


def _bytes(layout: Layout) -> int:
    return math.prod(layout.shape) * np.dtype(layout.dtype).itemsize
