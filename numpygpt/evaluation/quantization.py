"""What each scheme of quantization costs a model: the error of its weights, their bytes, and the perplexity of a text.

    W    all values of the matrices that are quantized
    W'   what their codes stand for

    error     the root of the mean of (W' - W)², divided by the root of the mean of W²
    largest   the largest |W' - W|, divided by the same

Both are relative to the size of the weights, so that they can be compared from model to model.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from numpygpt.adapt.adaptation import quantization_of
from numpygpt.adapt.adapters import ALL_LINEAR, chosen, shape_of
from numpygpt.adapt.quantized import quantize, quantized_projections
from numpygpt.evaluation.perplexity import TextScore, score_text
from numpygpt.layers.projections import projections
from numpygpt.model.gpt import GPTModel
from numpygpt.numerics.schemes import dequantize
from numpygpt.shapes import Array, Integer


class Compared(NamedTuple):
    """A scheme, and what it does to a model.

    scheme           the words for `quantization_of`; None: the model as it is
    error, largest   of its weights
    bytes            of all matrices that are quantized, with their constants
    share            these bytes as a part of those in float32
    score            of the text
    """

    scheme: str | None
    error: float
    largest: float
    bytes: int
    share: float
    score: TextScore


def compared(
    model: GPTModel,
    schemes: Sequence[str],
    ids: Integer[Array, "N"],
    *,
    batch_size: int = 1,
    advance: Callable[[int], Any] = lambda done: None,
) -> list[Compared]:
    """The model as it is, and then each scheme: those with more bytes first, of equal ones that of the smallest error.

    schemes      words such as "nf4,double", for the matrices of the blocks
    ids          the token ids of a text; its windows overlap by half, as those of `numpygpt evaluate`
    batch_size   windows that the model reads at a time
    advance      is told how many more tokens were scored; there are N - 1 for the model, and for each scheme

    Raises InputError for words that mean nothing, as `numpygpt.adapt.quantized.quantize`, and as `score_text`.
    """
    quantizations = [quantization_of(words) for words in schemes]
    length = model.config.context_length

    def score(of: GPTModel) -> TextScore:
        return score_text(
            of, ids, length=length, stride=max(1, length // 2), batch_size=batch_size, advance=advance
        )

    whole = Compared(None, 0.0, 0.0, float32_bytes(model), 1.0, score(model))
    found = []
    for words, (scheme, options) in zip(schemes, quantizations, strict=True):
        quantized = quantize(model, scheme, **options)
        size = sum(node.weight.bytes() for node in quantized_projections(quantized).values())
        found.append(Compared(words, *errors(model, quantized), size, size / whole.bytes, score(quantized)))
    return [whole, *sorted(found, key=lambda row: (-row.bytes, row.error))]


def float32_bytes(model: GPTModel) -> int:
    """The bytes in float32 of the matrices that `quantize` packs: those of the projections in the blocks."""
    names = chosen(model, ALL_LINEAR)
    return 4 * sum(math.prod(shape_of(node)) for name, node in projections(model.parameters) if name in names)


def errors(model: GPTModel, quantized: GPTModel) -> tuple[float, float]:
    """The error and the largest error of the formulas above, over all matrices that are quantized."""
    count, squares, squared_errors, largest = 0, 0.0, 0.0, 0.0
    for weight, values in _pairs(model, quantized):
        difference = values.astype(np.float64) - weight
        count += weight.size
        squares += float(np.square(weight, dtype=np.float64).sum())
        squared_errors += float(np.square(difference).sum())
        largest = max(largest, float(np.abs(difference).max()))
    size = math.sqrt(squares / count) or 1.0  # matrices of zeros have no error
    return math.sqrt(squared_errors / count) / size, largest / size


def _pairs(model: GPTModel, quantized: GPTModel) -> Iterator[tuple[Array, Array]]:
    whole = dict(projections(model.parameters))
    for name, node in quantized_projections(quantized).items():
        yield whole[name].weight, dequantize(node.weight)
