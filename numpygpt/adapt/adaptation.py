"""How a model is adapted before it is tuned, in a few words that a command line and a checkpoint can hold.

    lora       r=8,alpha=16 and any of targets=W_query+W_value, dropout=0.1, scaling=rslora
    quantize   nf4, int8 or another scheme, and any of double, block=64
    freeze     patterns of names; not beside lora, which freezes all but the adapter
    head       how many scores the head gives, if not one of each token

They are applied in the order head, freeze, quantize, lora. A new head is trained beside an adapter, too.
"""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from numpygpt.adapt.adapters import ALL_LINEAR, QUERIES_AND_VALUES, add_lora
from numpygpt.adapt.freeze import freeze, unfreeze
from numpygpt.adapt.head import HEAD, class_head
from numpygpt.adapt.quantized import quantize, quantized_projections
from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import value_of

#: No rank and no block is so large that it has so many digits.
MOST_DIGITS = 13


class Adaptation(NamedTuple):
    """How a model is adapted. InputError from each method for words that mean nothing."""

    lora: str | None = None
    quantize: str | None = None
    freeze: tuple[str, ...] = ()
    head: int | None = None

    def of(self, model: GPTModel, seed: int | TorchGenerator) -> GPTModel:
        """The model adapted. The values of a new head, and then those of an adapter, are drawn by this generator.

        A quantized model has to be adapted in some way: what is trained of it is saved beside it, and not instead.
        """
        if self.freeze and self.lora is not None:
            raise InputError(
                "an adapter alone is trained under --lora, and all else is frozen; leave out --freeze, or say with "
                "targets= in --lora which projections have a path"
            )
        if self._replace(head=None) == Adaptation() and quantized_projections(model):
            raise InputError("the model's matrices are quantized, and frozen; add an adapter: --lora r=8,alpha=16")
        seed = seed if isinstance(seed, TorchGenerator) else TorchGenerator(seed)
        if self.head is not None and self.head != model.config.classes:
            model = class_head(model, self.head, seed=seed)
        if self.freeze:
            model = freeze(model, self.freeze)
        if self.quantize is not None:
            scheme, options = quantization_of(self.quantize)
            model = quantize(model, scheme, **options)
        if self.lora is not None:
            model = add_lora(model, seed=seed, **lora_of(self.lora))
            model = model if self.head is None else unfreeze(model, HEAD)
        return model

    def __str__(self) -> str:
        """The options of `numpygpt finetune` that say it, and the head."""
        words = [["a", "head", "of", str(self.head), "scores"]] if self.head is not None else []
        words += [["--freeze", *self.freeze]] if self.freeze else []
        if self.quantize is not None:
            words.append(["--quantize", self.quantize])
        if self.lora is not None:
            words.append(["--lora", self.lora])
        return " ".join(map(shlex.join, words))

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        return {**self._asdict(), "freeze": list(self.freeze)}

    @classmethod
    def of_dict(cls, saved: Mapping[str, Any]) -> "Adaptation":
        """What `to_dict` returned. InputError for anything else."""
        lora, scheme = (value_of(saved, name, str, type(None)) for name in ("lora", "quantize"))
        head = value_of({"head": None, **saved}, "head", int, type(None))
        patterns = value_of(saved, "freeze", list)
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise InputError(f"freeze is {patterns!r:.80}; expected a list of texts")
        return cls(lora, scheme, tuple(patterns), head)


def lora_of(words: str) -> dict[str, Any]:
    """The arguments of `add_lora` that the words name. InputError for words that it does not know."""
    readers: dict[str, tuple[str, Callable[[str], Any]]] = {
        "r": ("rank", _whole_number),
        "alpha": ("alpha", float),
        "dropout": ("dropout", float),
        "scaling": ("scaling", str),
        "targets": ("targets", lambda names: names if names == ALL_LINEAR else tuple(names.split("+"))),
    }
    found: dict[str, Any] = {"targets": QUERIES_AND_VALUES}
    for name, value in _pairs(words, "lora"):
        if name not in readers or value is None:
            known = ", ".join(readers)
            raise InputError(f"lora has {name!r:.80}; expected r=8,alpha=16 and any of {known}, each with a =")
        argument, read = readers[name]
        try:
            found[argument] = read(value)
        except ValueError as error:
            expected = "a whole number" if read is _whole_number else "a number"
            raise InputError(f"lora has {name}={value:.80}; expected {expected}") from error
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
        raise InputError(f"quantize is {words!r:.80}; expected the name of a scheme first, such as nf4")
    return scheme, options


def _whole_number(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError("too many digits")
    return int(text)


def _pairs(words: str, what: str) -> list[tuple[str, str | None]]:
    """The words, and what stands behind the = of each. InputError for a word that is empty or given twice."""
    parts = [word.strip().partition("=") for word in words.split(",")]
    if any(not name for name, _, _ in parts):
        raise InputError(f"{what} is {words!r:.80}; expected words with commas between them")
    for name, count in Counter(name for name, _, _ in parts).items():
        if count > 1:
            raise InputError(f"{what} has {name!r:.80} {count} times; expected each word once")
    return [(name, value if sign else None) for name, sign, value in parts]
