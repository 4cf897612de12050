"""Models whose matrices are quantized: packed in memory, and frozen.

QLoRA (Dettmers et al. 2023, arXiv:2305.14314, section 3) is a quantized model with an adapter. The gradient goes
through the packed matrices to the adapter and to x, and the matrices themselves have none:

    model = add_lora(quantize(model, "nf4"), 8, 16.0, targets="all-linear")
"""

from typing import Any

from numpygpt.adapt.adapters import ALL_LINEAR, chosen, whole_weight
from numpygpt.errors import InputError
from numpygpt.layers import parameters as p
from numpygpt.layers.projections import projections, with_base, with_projections, without_paths
from numpygpt.model.gpt import GPTModel
from numpygpt.numerics import schemes


def quantize(
    model: GPTModel,
    scheme: str = "nf4",
    *,
    block_size: int | str | None = None,
    targets: Any = ALL_LINEAR,
    **options: bool,
) -> GPTModel:
    """The model with quantized matrices in its projections. Embeddings, norms and biases stay as they are.

    scheme       a name in `numpygpt.numerics.schemes.SCHEMES`: "nf4" or "int8", for example
    block_size   how many values have a constant of their own; None: the scheme's usual number
    targets      the projections, as `add_lora` takes them. A head that is tied to the embedding cannot be one of them.
    options      double=True quantizes the constants of "nf4", too

    Raises InputError for a scheme, an option or a target that does not exist, a projection that is quantized already or
    has a merged adapter, a tied head, and values that are not finite; it names the projection.
    """
    names = chosen(model, targets)

    def packed(projection: str, node: Any) -> Any:
        if projection not in names:
            return node
        base = without_paths(node)
        _refuse(model, projection, node, base)
        try:
            weight = schemes.quantize(base.weight, scheme, block_size, **options)
        except InputError as error:
            raise InputError(f"{projection}: {error}") from error
        return with_base(node, p.QuantizedLinear(weight, base.bias))

    return model.with_parameters(with_projections(packed, model.parameters))


def dequantize(model: GPTModel) -> GPTModel:
    """The model with whole matrices, of the values that its codes stand for. They are parameters, and frozen."""
    names = set(quantized_projections(model))

    def whole(projection: str, node: Any) -> Any:
        if projection not in names:
            return node
        base = without_paths(node)
        return with_base(node, p.Linear(whole_weight(base, model.dtype), base.bias))

    weights = {f"{name}.weight" for name in names}
    return model.with_parameters(with_projections(whole, model.parameters), frozen=model.frozen | weights)


def quantized_projections(model: GPTModel) -> dict[str, p.QuantizedLinear]:
    """The model's quantized projections by name, those with an adapter beside them, too."""
    bases = ((name, without_paths(node)) for name, node in projections(model.parameters))
    return {name: base for name, base in bases if isinstance(base, p.QuantizedLinear)}


def weight_bytes(model: GPTModel) -> int:
    """The bytes of all that the model computes with: parameters, and the codes and constants of quantized matrices."""
    whole = sum(array.nbytes for array in model.named_parameters().values())
    return whole + sum(node.weight.bytes() for node in quantized_projections(model).values())


def _refuse(model: GPTModel, projection: str, node: Any, base: Any) -> None:
    if isinstance(base, p.QuantizedLinear):
        raise InputError(f"{projection} is quantized already; quantize the model that it was made of")
    if isinstance(node, p.LoRA) and node.merged:
        raise InputError(f"{projection} has a merged adapter; make the model plain with remove_lora, then quantize it")
    if model.config.tie_weights and base.weight is model.parameters.tok_emb.weight:
        raise InputError(f"{projection} is tied to the token embedding, which stays as it is; leave it out of targets")
