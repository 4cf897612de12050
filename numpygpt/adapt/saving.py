"""What an adapted model saves of itself: the section "model" of a checkpoint, written and read.

    values   config      the configuration: `GPTConfig.to_dict()`
             tokenizer   the name for `get_tokenizer`, or None
             base        path    the files of the model that was adapted
                         sha256  `fingerprint` of its weights
             adapted     how (`Adaptation.to_dict`)
    arrays   the parameters that are trained

So the checkpoint of an adapter is as small as the adapter. Whoever reads it needs the base, which is found by its path
and known by its fingerprint.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numpygpt.adapt.adaptation import Adaptation
from numpygpt.adapt.files import fingerprint
from numpygpt.adapt.packed import packed_model_of
from numpygpt.errors import InputError
from numpygpt.formats.kinds import read_model
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import BASE, QUANTIZED, SECTION, copy_into
from numpygpt.model.saving import model_of as plain_model_of
from numpygpt.sections import SavedSections, Section, named_in_errors, value_of

ADAPTED = "adapted"


class Base(NamedTuple):
    """The model that was adapted: its files, and the fingerprint of its weights."""

    path: Path
    sha256: str


def adapted_section(model: GPTModel, tokenizer: str | None, base: Base, adaptation: Adaptation) -> Section:
    """The trained parameters of an adapted model, which are its own arrays, and what they belong to."""
    values = {"config": model.config.to_dict(), "tokenizer": tokenizer, **adapted_values(base, adaptation)}
    return Section(values, {name: array for name, array in model.named_parameters().items() if model.trained(name)})


def adapted_values(base: Base, adaptation: Adaptation) -> dict[str, Any]:
    """The values that the section of an adapted model has beside those of a plain one."""
    return {BASE: {"path": str(base.path), "sha256": base.sha256}, ADAPTED: adaptation.to_dict()}


def model_of(saved: SavedSections, dtype: Any = None, *, base: Path | None = None, **options: Any) -> GPTModel:
    """The saved model, adapted, quantized or neither; arguments as those of `numpygpt.model.saving.model_of`.

    base   where the files of the base are now; None: where they were

    Raises InputError as that function, and if the base cannot be read or has other weights.
    """
    values = saved.values(SECTION)
    if BASE not in values:
        return _without_adapter(saved, dtype, **options)
    with named_in_errors(saved):
        found, adaptation = base_of(values), adaptation_of(values)
        dtypes = {layout.dtype for layout in saved.layouts(SECTION).values()}
        model = base_model(base or found.path, np.result_type(*dtypes) if dtype is None else dtype, **options)
        if fingerprint(model) != found.sha256:
            raise InputError(
                f"it was trained on other weights than those of {base or found.path}, whose SHA-256 is "
                f"{fingerprint(model)}; expected {found.sha256}"
            )
        model = adaptation.of(model, seed=0)
        copy_into(saved, {name: array for name, array in model.named_parameters().items() if model.trained(name)})
    return model


def base_of(values: dict[str, Any]) -> Base:
    """The base of an adapted model, by the values of its section. InputError for anything else."""
    base = value_of(values, BASE, dict)
    return Base(Path(value_of(base, "path", str)), value_of(base, "sha256", str))


def adaptation_of(values: dict[str, Any]) -> Adaptation:
    """How an adapted model was adapted, by the values of its section. InputError for anything else."""
    return Adaptation.of_dict(value_of(values, ADAPTED, dict))


def base_model(path: Path, dtype: Any, **options: Any) -> GPTModel:
    """The model in the files of a base. InputError if it cannot be read, and for one that has a base itself."""
    try:
        saved = read_model(path)
    except InputError as error:
        raise InputError(
            f"the model that was adapted cannot be read: {error}; say with --base where it is, or with --checkpoint if "
            f"its run goes on"
        ) from error
    if BASE in saved.values(SECTION):
        raise InputError(f"{path} holds an adapter, which has a base itself; make one model of both: numpygpt merge")
    return _without_adapter(saved, dtype, **options)


def _without_adapter(saved: SavedSections, dtype: Any, **options: Any) -> GPTModel:
    """The model of a section that has no base."""
    return (packed_model_of if QUANTIZED in saved.values(SECTION) else plain_model_of)(saved, dtype, **options)
