"""Adapters of a model, loaded from folders and saved to folders that the library peft reads and writes."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from numpygpt.adapt.adapters import DEFAULT, Side, adapter_names, paths_of, refuse_merged, shape_of, with_path
from numpygpt.adapt.packed import packed_arrays
from numpygpt.adapt.quantized import quantized_projections
from numpygpt.errors import InputError, listed
from numpygpt.formats.peft_folder import OURS, Adapter, LowRank, read_adapter, write_adapter
from numpygpt.layers.projections import projections, with_projections
from numpygpt.model.gpt import GPTModel

#: How many names a message lists.
MOST_LISTED = 5


def load_adapter(model: GPTModel, folder: str | Path, *, name: str = DEFAULT) -> GPTModel:
    """The model with the adapter that is in the folder, which alone is trained.

    name   what it is called in the model

    Raises InputError as `numpygpt.formats.peft_folder.read_adapter`, for an adapter of projections that the model does
    not have or has in another size, and for one that says it was trained on other weights.
    """
    folder = Path(folder)
    adapter = read_adapter(folder)
    refuse_merged(model)
    _refuse_another_base(model, adapter, folder)

    def adapted(projection: str, node: Any) -> Any:
        if projection not in adapter.paths:
            return node
        A, B, scale = adapter.paths[projection]
        with np.errstate(over="ignore"):
            A, B = A.astype(model.dtype), B.astype(model.dtype)
            finite = np.isfinite(A).all() and np.isfinite(B).all() and np.isfinite(model.dtype.type(scale))
        if not finite:
            raise InputError(f"the adapter {folder} has values of {projection} that are too large for {model.dtype}")
        return with_path(projection, node, Side(name, A, B, scale, adapter.drop_rate))

    parameters = with_projections(adapted, model.parameters)
    return model.with_parameters(parameters, frozen=model.named_parameters())


def save_adapter(
    model: GPTModel,
    folder: str | Path,
    *,
    name: str = DEFAULT,
    names: str = OURS,
    base_sha256: str | None = None,
) -> None:
    """Save one of the model's adapters to a folder. An adapter that is there is replaced.

    name          the adapter's in the model
    names         whose names the folder has of the projections: "ours", or "hugging-face"
    base_sha256   `fingerprint` of the model without adapters; None: the folder does not say

    Raises InputError if the model has no adapter of that name, for a folder with other files in it, and if it cannot be
    written.
    """
    write_adapter(Path(folder), adapter_of(model, name)._replace(base_sha256=base_sha256), names=names)


def adapter_of(model: GPTModel, name: str = DEFAULT) -> Adapter:
    """One of the model's adapters, with the model's own arrays. InputError if it has none of that name."""
    found = {projection: node for projection, node in paths_of(model) if name in node.scales}
    if not found:
        raise InputError(f"the model has no adapter {name!r}; it has {', '.join(adapter_names(model)) or 'none'}")
    paths = {
        projection: LowRank(node.lora_A[name].weight, node.lora_B[name].weight, node.scales[name])
        for projection, node in found.items()
    }
    return Adapter(paths, max(node.drop_rates[name] for node in found.values()))


def fingerprint(model: GPTModel) -> str:
    """The SHA-256 of the model's names and values in float32, without its adapters, and of its codes and constants."""
    digest = sha256()
    for name, array in model.named_parameters().items():
        if ".lora_" not in name:
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array, np.float32).data)
    for name, array in packed_arrays(model).items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _refuse_another_base(model: GPTModel, adapter: Adapter, folder: Path) -> None:
    shapes = {name: shape_of(node) for name, node in projections(model.parameters)}
    unknown = [name for name in adapter.paths if name not in shapes]
    if unknown:
        raise InputError(
            f"the adapter {folder} is for another model: this one has no projections "
            f"{listed(unknown, MOST_LISTED)}; give the model that it was trained on"
        )
    misshaped = [
        f"{name} ({len(path.B)}, {path.A.shape[1]}), expected {shapes[name]}"
        for name, path in adapter.paths.items()
        if (len(path.B), path.A.shape[1]) != shapes[name]
    ]
    if misshaped:
        raise InputError(f"the adapter {folder} is for a model of another size: {listed(misshaped, MOST_LISTED)}")
    is_whole = not quantized_projections(model)  # what a quantized weight was is not known any more
    if is_whole and adapter.base_sha256 not in (None, fingerprint(model)):
        raise InputError(
            f"the adapter {folder} was trained on other weights than this model's, whose SHA-256 is "
            f"{fingerprint(model)}; it expects {adapter.base_sha256}"
        )
