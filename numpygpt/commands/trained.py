"""What the commands that use a trained model share: its folder, its tokenizer, and text as its tokens."""

import argparse
from contextlib import suppress
from pathlib import Path

from numpygpt.adapt.adaptation import quantization_of
from numpygpt.adapt.adapters import paths_of
from numpygpt.adapt.files import load_adapter
from numpygpt.adapt.quantized import quantize
from numpygpt.adapt.saving import model_of
from numpygpt.data.templates import TEMPLATES, Template, template_of
from numpygpt.data.tokenizer import Encoding, get_tokenizer, text_to_token_ids
from numpygpt.decoding.streaming import token_bytes
from numpygpt.errors import InputError
from numpygpt.files import check_writable
from numpygpt.formats.foreign import ForeignModel
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import BASE, SECTION, saved_tokenizer
from numpygpt.pictures.figure import token_label
from numpygpt.sections import SavedSections, named_in_errors, value_of
from numpygpt.shapes import Array
from numpygpt.training.options import Options
from numpygpt.training.run import SECTION as RUN
from numpygpt.tuning.options import FinetuneOptions

#: The help of --checkpoint.
CHECKPOINT_HELP = "folder of a training run, or of a GPT-2 that another program wrote (numpygpt convert --help)"


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options for the trained model, and for the file that its tokenizer may need."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help=CHECKPOINT_HELP)
    parser.add_argument("--vocab", metavar="FILE", help="file of GPT-2's ranks, where the model needs them")


def add_adapter_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `trained_model`."""
    add = parser.add_argument
    add("--adapter", type=Path, metavar="DIR", help="folder of an adapter of this model, as peft writes it")
    add("--base", type=Path, metavar="DIR", help="where the model of an adapter's run is now (default: where it was)")
    add("--quantize", metavar="WORDS", help="compute with quantized matrices: nf4 or int8, and any of double, block=64")


def add_template_option(parser: argparse.ArgumentParser) -> None:
    """Declare the option of `template_for`."""
    said = "how messages become text (default: as the model was tuned, or the first that its tokenizer fits)"
    parser.add_argument("--template", choices=tuple(TEMPLATES), help=said)


def trained_model(checkpoint: SavedSections, parsed: argparse.Namespace) -> GPTModel:
    """The model of a checkpoint with the options of `add_adapter_options`. InputError for what does not fit it."""
    if parsed.base is not None and BASE not in checkpoint.values(SECTION):
        raise InputError(f"{checkpoint.path} has no adapter, so it has no base; leave out --base")
    model = model_of(checkpoint, base=parsed.base)
    if parsed.adapter is not None:
        if paths_of(model):
            raise InputError(
                f"{checkpoint.path} has an adapter of its own; leave out --adapter, or name the base as --checkpoint"
            )
        model = load_adapter(model, parsed.adapter)
    if parsed.quantize is not None:  # after the adapter, which is known to fit by the whole weights
        scheme, options = quantization_of(parsed.quantize)
        model = quantize(model, scheme, **options)
    return model


def tokenizer_of(checkpoint: SavedSections, vocab: str | None) -> Encoding:
    """The tokenizer that the model learned with. InputError if the checkpoint has none, or one that cannot be used."""
    if isinstance(checkpoint, ForeignModel):
        return checkpoint.encoding(vocab)
    name = saved_tokenizer(checkpoint)
    if name is None:
        raise InputError(f"the checkpoint {checkpoint.path} names no tokenizer, so a prompt cannot be encoded")
    return get_tokenizer(name, vocab)


def origin_of(checkpoint: SavedSections) -> list[str]:
    """Lines that say whose files a model was read from, with which tokenizer, and what else is worth telling of it."""
    tokenizer = saved_tokenizer(checkpoint)
    if not isinstance(checkpoint, ForeignModel):
        return [f"{checkpoint.path}: tokenizer {tokenizer}"]
    tokenizer = tokenizer or ("of its own" if checkpoint.own_tokenizer else "none")
    return [f"{checkpoint.path}: {checkpoint.kind}, tokenizer {tokenizer}", *checkpoint.notes]


def options_of_run(checkpoint: SavedSections) -> Options:
    """The options of the run that the checkpoint is of, whichever command began it. InputError if there is none."""
    values = checkpoint.values(RUN)
    with named_in_errors(checkpoint):
        saved = value_of(values, "options", dict)
        return (FinetuneOptions if "checkpoint" in saved else Options).of_checkpoint(saved)


def finetune_options_of(checkpoint: SavedSections) -> FinetuneOptions | None:
    """The options of the run that tuned the model; None if none did."""
    options = options_of_run(checkpoint) if RUN in checkpoint else None
    return options if isinstance(options, FinetuneOptions) else None


def template_for(checkpoint: SavedSections, tokenizer: Encoding, name: str | None) -> Template:
    """The template of this name; without a name, that of the model's run, or the first that the tokenizer fits."""
    run = finetune_options_of(checkpoint)
    if name is None and run is not None and not run.reads_text:
        name = run.settings.get("template")
    if name is not None:
        return template_of(name)
    fitting = (template for template in TEMPLATES.values() if set(template.tokens) <= tokenizer.special_tokens_set)
    return next(fitting, next(iter(TEMPLATES.values())))


def encoded(prompt: str, tokenizer: Encoding) -> Array:
    """The prompt's token ids (1, T). InputError if it is empty."""
    idx = text_to_token_ids(prompt, tokenizer)
    if not idx.size:
        raise InputError("the prompt is empty; expected text to continue")
    return idx


def labels(ids: list[int], tokenizer: Encoding) -> list[str]:
    """The tokens as a picture shows them."""
    return [token_label(token_bytes(token_id, tokenizer)) for token_id in ids]


def picture_path(given: Path | None, checkpoint: SavedSections, name: str) -> Path:
    """The path of a picture: the given one, or a file of this name beside the checkpoint.

    Raises InputError, before any work, if the file cannot be written, or holds the model.
    """
    path = given or checkpoint.path.with_name(name)
    with suppress(OSError):  # usually there is no such file
        if path.samefile(checkpoint.path):
            raise InputError(f"the picture {path} would take the place of the model; name another --out")
    check_writable(path)
    return path
