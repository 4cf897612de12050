"""The book's adapters (appendix E): a path of low rank beside every projection."""

import math
from typing import Any

import numpy as np

from numpygpt.adapt.adapters import DEFAULT, SCALES, Side, refuse_merged, refuse_values, shape_of, with_path
from numpygpt.layers.projections import with_projections
from numpygpt.model.gpt import GPTModel
from numpygpt.random.torch_generator import TorchGenerator


def replace_linear_with_lora(
    model: GPTModel, rank: int, alpha: int | float, scaling: str = "lora", *, seed: int | TorchGenerator = 123
) -> GPTModel:
    """The model with an adapter on every projection, also on the head. The adapter alone is trained.

    It differs from `numpygpt.adapt.add_lora` with its "all-linear" in this: the head has a path, too; a rank may be
    larger than a side of its matrix, which a head of two classes has need of; and A is uniform in ±1/√R. The book
    stores A as (inputs, R), and `kaiming_uniform_` takes the second axis for the inputs. peft stores (R, inputs), and
    so has ±1/√inputs.

    rank      R
    alpha     α
    scaling   "lora": the path is multiplied by α/R, so that α and the learning rate need no change if R changes;
              "book": by α, as the printed book has it. The book's own code divides by R today
    seed      of A, in the order of the projections: those of `torch.manual_seed(seed)` in the book's listing

    Raises InputError for a rank, an α or a scaling that cannot be, and for a model that has such an adapter already.
    """
    refuse_values(rank, alpha, 0.0, scaling, DEFAULT)
    refuse_merged(model)
    generator = seed if isinstance(seed, TorchGenerator) else TorchGenerator(seed)
    bound = 1 / math.sqrt(rank)

    def adapted(projection: str, node: Any) -> Any:
        outputs, inputs = shape_of(node)
        A = np.ascontiguousarray(generator.uniform((inputs, rank), -bound, bound).T, model.dtype)
        B = np.zeros((outputs, rank), model.dtype)
        return with_path(projection, node, Side(DEFAULT, A, B, SCALES[scaling](alpha, rank), drop_rate=0.0))

    return model.with_parameters(with_projections(adapted, model.parameters), frozen=model.named_parameters())
