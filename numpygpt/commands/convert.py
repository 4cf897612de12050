"""numpygpt convert: a model from the files of one program to those of another."""

import argparse
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.commands.trained import origin_of
from numpygpt.errors import InputError
from numpygpt.files import check_writable, locked
from numpygpt.formats import book, checkpoint, hugging_face, nanogpt, torch_file
from numpygpt.formats.foreign import ForeignModel
from numpygpt.formats.kinds import read_model, refuse_other_models
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import SECTION, checked, parameter_shapes, saved_tokenizer
from numpygpt.sections import SavedSections, Section
from numpygpt.shapes import Array


class Model(NamedTuple):
    """What is written: a configuration, the weights by our names, in our order, and a tokenizer's name."""

    config: GPTConfig
    weights: Mapping[str, Array]
    tokenizer: str | None


class Writer(NamedTuple):
    """How a kind of files is written.

    check       raises InputError if the target cannot be written, or may not be replaced; its arguments are the target,
                and whether it may be
    refuse      raises InputError for a model that the kind cannot hold, and if a package that it needs is missing
    write       writes the target, in place of what is there
    next_step   what can be done with it then, where TARGET stands for the target
    quoted      the target as the next step takes it: in a shell's command, or in a line of Python
    """

    check: Callable[[Path, bool], None]
    refuse: Callable[[GPTConfig], None]
    write: Callable[[Path, Model], None]
    next_step: str
    quoted: Callable[[str], str]


def _refuse_none(config: GPTConfig) -> None:
    """Any model can be written."""


def _refuse_for_pth(config: GPTConfig) -> None:
    torch_file.pytorch()


def _refuse_for_nanogpt(config: GPTConfig) -> None:
    torch_file.pytorch()
    nanogpt.refuse_what_nanogpt_lacks(config)


def _check_file(path: Path, overwrite: bool) -> None:
    try:
        is_there = path.exists()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another") from error
    if is_there and not overwrite:
        raise InputError(f"{path} is already there; replace it with --overwrite, or name another")
    if path.parent.exists():
        check_writable(path)


def _check_folder(folder: Path, file: str, overwrite: bool) -> None:
    _check_file(folder / file, overwrite)
    refuse_other_models(folder, file)


def _write_checkpoint(target: Path, model: Model) -> None:
    _make(target)
    with locked(target):
        values = {"config": model.config.to_dict(), "tokenizer": model.tokenizer}
        checkpoint.write_checkpoint(target, {SECTION: Section(values, model.weights)})


def _write_nanogpt(target: Path, model: Model) -> None:
    _make(target)
    nanogpt.write_file(target / nanogpt.FILE_NAME, model.config, model.weights)


def _write_pth(target: Path, model: Model) -> None:
    _make(target.parent)
    book.write_file(target, *model)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}; name another") from error


#: The files of which one holds the model in a folder that is written.
MODELS = (checkpoint.FILE_NAME, hugging_face.WEIGHTS, nanogpt.FILE_NAME)

WRITERS = {
    "numpygpt": Writer(
        lambda target, overwrite: _check_folder(target, checkpoint.FILE_NAME, overwrite),
        _refuse_none,
        _write_checkpoint,
        'numpygpt generate --checkpoint TARGET --prompt "Every effort moves you"',
        shlex.quote,
    ),
    "hf": Writer(
        lambda target, overwrite: hugging_face.refuse_other_files(target, overwrite=overwrite),
        _refuse_none,
        lambda target, model: hugging_face.write_folder(target, *model, overwrite=True),
        'transformers.pipeline("text-generation", TARGET)("Every effort moves you"), in Python',
        repr,
    ),
    "nanogpt": Writer(
        lambda target, overwrite: _check_folder(target, nanogpt.FILE_NAME, overwrite),
        _refuse_for_nanogpt,
        _write_nanogpt,
        "python sample.py --out_dir=TARGET, in nanoGPT",
        shlex.quote,
    ),
    "pth": Writer(
        _check_file,
        _refuse_for_pth,
        _write_pth,
        'model.load_state_dict(torch.load(TARGET, weights_only=True)), with the book\'s GPTModel',
        repr,
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add(
        "source",
        type=Path,
        metavar="SOURCE",
        help="the folder of a training run, or one of Hugging Face's, OpenAI's or nanoGPT's; or a .pth of the book's",
    )
    add("target", type=Path, metavar="TARGET", help="the folder to write; with --to pth, the file")
    add("--to", choices=WRITERS, required=True, help="whose files to write")
    add("--dtype", choices=("float32", "float64"), help="of the weights (default: the source's)")
    add("--n-heads", type=int, help="attention heads of a .pth, which does not tell them (default: of 64 features)")
    add("--overwrite", action="store_true", help="replace a model of the same kind that is there")


def run(parsed: argparse.Namespace) -> int:
    """Convert a model from the files of one program to those of another. Of which kind the source is, is found out."""
    source, target, writer = read_model(parsed.source, n_heads=parsed.n_heads), parsed.target, WRITERS[parsed.to]
    config, dtype = checked(source, parsed.dtype)
    writer.refuse(config)
    writer.check(target, parsed.overwrite)
    pairs = [(target, parsed.source), *((target / name, source.path) for name in MODELS)]
    if any(path.exists() and path.samefile(read) for path, read in pairs):
        raise InputError(f"the target {target} is the source itself; name another")
    print(*origin_of(source), sep="\n")
    print(", ".join(f"{name} {value}" for name, value in config.to_dict().items()))
    model = Model(config, _weights(source, config, dtype), saved_tokenizer(source))
    writer.write(target, model)
    print(f"wrote {target}: {len(model.weights)} arrays of {dtype}, tokenizer {model.tokenizer or 'none'}")
    if isinstance(source, ForeignModel) and source.own_tokenizer is not None:
        print(f"its tokenizer is none that numpygpt has, and was not written: keep the files of {parsed.source}")
    print(f"let it write: {writer.next_step.replace('TARGET', writer.quoted(str(target)))}")
    return 0


def _weights(source: SavedSections, config: GPTConfig, dtype: Any) -> dict[str, Array]:
    """The weights in our order. A bar shows how many are read."""
    from tqdm import tqdm

    names = parameter_shapes(config)
    arrays = source.each_array(SECTION)
    bar = tqdm(arrays, "reading", len(names), delay=1, leave=False, unit="array", dynamic_ncols=True)
    weights = {name: array.astype(dtype, copy=False) for name, array in bar}
    return {name: weights[name] for name in names}
