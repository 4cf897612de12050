"""How a model is adapted before it is tuned, in a few words that a command line and a checkpoint can hold.

    lora       r=8,alpha=16 and any of targets=W_query+W_value, dropout=0.1, scaling=rslora
    quantize   nf4, int8 or another scheme, and any of double, block=64
    freeze     patterns of names

They are applied in the order freeze, quantize, lora.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from numpygpt.adapt.adapters import ALL_LINEAR, QUERIES_AND_VALUES, add_lora
from numpygpt.adapt.freeze import freeze
from numpygpt.adapt.quantized import quantize, quantized_projections
from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import value_of

#: No block is so long that its size has so many digits.
MOST_DIGITS = 13


class Adaptation(NamedTuple):
    """How a model is adapted. InputError from each method for words that mean nothing."""

    lora: str | None = None
    quantize: str | None = None
    freeze: tuple[str, ...] = ()

    def of(self, model: GPTModel, seed: int | TorchGenerator) -> GPTModel:
        """The model adapted. A new adapter's matrices are drawn by this generator.

        A quantized model has to be adapted in some way: what is trained of it is saved beside it, and not instead.
        """
        if self == Adaptation() and quantized_projections(model):
            raise InputError("the model's matrices are quantized, and frozen; add an adapter: --lora r=8,alpha=16")
        if self.freeze:
            model = freeze(model, self.freeze)
        if self.quantize is not None:
            scheme, options = quantization_of(self.quantize)
            model = quantize(model, scheme, **options)
        if self.lora is not None:
            model = add_lora(model, seed=seed, **lora_of(self.lora))
        return model

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        return {**self._asdict(), "freeze": list(self.freeze)}

    @classmethod
    def of_dict(cls, saved: Mapping[str, Any]) -> "Adaptation":
        """What `to_dict` returned. InputError for anything else."""
        lora, scheme = (value_of(saved, name, str, type(None)) for name in ("lora", "quantize"))
        patterns = value_of(saved, "freeze", list)
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise InputError(f"freeze is {patterns!r:.80}; expected a list of texts")
        return cls(lora, scheme, tuple(patterns))


def lora_of(words: str) -> dict[str, Any]:
    """The arguments of `add_lora` that the words name. InputError for words that it does not know."""
    readers: dict[str, tuple[str, Callable[[str], Any]]] = {
        "r": ("rank", int),
        "alpha": ("alpha", float),
        "dropout": ("dropout", float),
        "scaling": ("scaling", str),
        "targets": ("targets", lambda names: names if names == ALL_LINEAR else tuple(names.split("+"))),
    }
    found: dict[str, Any] = {"targets": QUERIES_AND_VALUES}
    for name, value in _pairs(words, "lora"):
        if name not in readers or value is None:
            raise InputError(f"lora has {name!r}; expected r=8,alpha=16 and any of {', '.join(readers)}, each with a =")
        argument, read = readers[name]
        try:
            found[argument] = read(value)
        except ValueError as error:
            raise InputError(f"lora has {name}={value}; expected a number") from error
    return found


def quantization_of(words: str) -> tuple[str, dict[str, Any]]:
    """The scheme and the options of `quantize` that the words name. InputError for words that it does not know."""
    (scheme, nothing), *rest = _pairs(words, "quantize")
    options: dict[str, Any] = {}
    for name, value in rest:
        if (name, value) == ("double", None):
            options["double"] = True
        elif name == "block" and value is not None and value.isdecimal() and len(value) < MOST_DIGITS:
            options["block_size"] = int(value)
        elif name == "block" and value in ("row", "tensor"):
            options["block_size"] = value
        else:
            word = name if value is None else f"{name}={value}"
            raise InputError(
                f"quantize has {word!r:.80}; expected a scheme such as nf4, and any of double and block=64, =row or "
                f"=tensor"
            )
    if nothing is not None:
        raise InputError(f"quantize is {words!r}; expected the name of a scheme first, such as nf4")
    return scheme, options


def _pairs(words: str, what: str) -> list[tuple[str, str | None]]:
    parts = [word.strip().partition("=") for word in words.split(",")]
    if any(not name for name, _, _ in parts):
        raise InputError(f"{what} is {words!r}; expected words with commas between them")
    return [(name, value if sign else None) for name, sign, value in parts]
