"""Which kind of files holds a model: ours, or those of another program.

A folder is known by one file in it, and holds one model. A file of PyTorch's is known by the end of its name. What the
commands read with --checkpoint, they read here.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from numpygpt.errors import InputError
from numpygpt.formats import book, checkpoint, hugging_face, nanogpt, openai, peft_folder, slices, torch_file
from numpygpt.formats.foreign import ForeignModel
from numpygpt.sections import SavedSections


class Kind(NamedTuple):
    """A kind of folder.

    name   whose it is
    file   the name of the file by which it is known
    read   reads the folder
    """

    name: str
    file: str
    read: Callable[[Path], SavedSections]


FOLDERS = (
    Kind("numpygpt", checkpoint.FILE_NAME, checkpoint.read_checkpoint),
    Kind("numpygpt, in slices", slices.VALUES, slices.read_slices),
    Kind(hugging_face.KIND, hugging_face.CONFIG, hugging_face.read_folder),
    Kind(openai.KIND, openai.SETTINGS, openai.read_folder),
    Kind(nanogpt.KIND, nanogpt.FILE_NAME, nanogpt.read_folder),
)
#: How the names of PyTorch's files end.
OF_TORCH = (".pth", ".pt")
#: Files that are a part of a model; the others are beside them.
PARTS = {hugging_face.CONFIG, hugging_face.WEIGHTS, hugging_face.INDEX, hugging_face.PICKLED, openai.SETTINGS}


def read_model(path: str | os.PathLike[str], *, n_heads: int | None = None) -> SavedSections:
    """The model in a folder or file of any known kind. Weights are read when they are asked for.

    n_heads   the number of attention heads, for a .pth of the book's, the one kind that may not tell it

    Raises InputError for a folder of no known kind, or of two kinds at once, and for files that cannot be used.
    """
    path = Path(path)
    try:
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else None
    except OSError as error:
        raise InputError(f"the checkpoint {path} cannot be read: {error.strerror}") from error
    if names is None:
        return _read_file(path, n_heads)
    found = [kind for kind in FOLDERS if kind.file in names]
    if not found:
        if sliced := sorted(path.glob("slices/step-*")):
            raise InputError(f"the run in {path} has saved slices alone so far; name the last of them, {sliced[-1]}")
        if peft_folder.CONFIG in names:
            raise InputError(
                f"the folder {path} holds an adapter and no model; name the model that it was trained on with "
                f"--checkpoint, and the folder with --adapter (numpygpt generate, numpygpt merge)"
            )
        known = ", ".join(f"{kind.file} ({kind.name})" for kind in FOLDERS)
        raise InputError(f"the folder {path} holds no model of a known kind; expected one of these files: {known}")
    if len(found) > 1:
        both = " and ".join(f"{kind.file} ({kind.name})" for kind in found)
        raise InputError(f"the folder {path} holds models of {len(found)} kinds, {both}; keep one of them in it")
    return found[0].read(path)


def refuse_other_models(folder: Path, own: str = checkpoint.FILE_NAME) -> None:
    """Raise InputError if the folder holds a model of another kind than the file `own`: neither could be read then."""
    for kind in FOLDERS:
        if kind.file != own and (folder / kind.file).exists():
            raise InputError(
                f"{folder} holds a model of another kind, {kind.file} ({kind.name}), and a folder holds one model; "
                f"choose another"
            )


def _read_file(path: Path, n_heads: int | None) -> SavedSections:
    if path.name in PARTS:
        raise InputError(f"{path} is one of several files of a model; name its folder, {path.parent}")
    if path.suffix in OF_TORCH:
        return _read_torch_file(path, n_heads)
    return checkpoint.read_checkpoint(path)


def _read_torch_file(path: Path, n_heads: int | None) -> ForeignModel:
    contents = torch_file.load(path)
    if nanogpt.holds_model(contents):
        return nanogpt.model_in(path, contents)
    return book.model_in(path, contents, n_heads)
