"""numpygpt quantize: a model with packed matrices, or what each scheme of quantization would cost it."""

import argparse
import math
import shlex
from pathlib import Path

import numpy as np

from numpygpt.adapt.adaptation import quantization_of
from numpygpt.adapt.packed import packed_arrays, packed_section
from numpygpt.adapt.quantized import quantize, quantized_projections
from numpygpt.adapt.saving import base_model
from numpygpt.commands.model_options import flag
from numpygpt.commands.tables import print_table
from numpygpt.commands.trained import add_checkpoint_options, options_of_run, origin_of, picture_path, tokenizer_of
from numpygpt.data.texts import read_text
from numpygpt.data.tokenizer import text_to_token_ids
from numpygpt.errors import InputError
from numpygpt.evaluation.quantization import Compared, compared
from numpygpt.evaluation.scores import progress_bar
from numpygpt.files import locked
from numpygpt.formats.checkpoint import FILE_NAME, write_checkpoint
from numpygpt.formats.kinds import read_model, refuse_other_models
from numpygpt.model.saving import saved_config, saved_tokenizer
from numpygpt.model.sizes import check_memory, scoring_bytes
from numpygpt.numerics import schemes
from numpygpt.pictures.quantization import plot_quantization
from numpygpt.sections import SavedSections
from numpygpt.shapes import Array
from numpygpt.training.corpus import Corpus
from numpygpt.training.run import SECTION as RUN
from numpygpt.training.run import make_writable, refuse_the_best_folder

PICTURE = "quantization.png"
#: What --compare takes if no schemes are named: all, each with its usual blocks, and the one of QLoRA.
COMPARED = (*schemes.SCHEMES, "nf4,double")
#: Options that belong to --compare alone, with their defaults.
OF_COMPARE = {"text": None, "schemes": list(COMPARED), "tokens": 4096, "batch_size": 4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_checkpoint_options(parser)
    add = parser.add_argument
    add("--scheme", metavar="WORDS", help=f"{', '.join(schemes.SCHEMES)}; and any of double, block=64")
    add("--out", type=Path, metavar="DIR", help="folder for the model; with --compare, for the chart (default: DIR)")
    add("--overwrite", action="store_true", help="replace a model that is already in --out")
    add("--compare", action="store_true", help="write no model, and compare the schemes: error, bytes, perplexity")
    compare = parser.add_argument_group("with --compare").add_argument
    compare("--text", type=Path, metavar="FILE", help="text to predict (default: the validation part of the run's)")
    compare("--schemes", nargs="+", metavar="WORDS", help="schemes to compare, as --scheme has them (default: all)")
    compare("--tokens", type=int, metavar="N", help=f"the text's first N tokens (default: {OF_COMPARE['tokens']})")
    compare("--batch-size", type=int, help=f"windows at a time (default: {OF_COMPARE['batch_size']})")


def run(parsed: argparse.Namespace) -> int:
    """Write a model whose matrices are packed in 8 or 4 bits, or compare the schemes on a model.

    Every command that takes --checkpoint computes with a packed model, and `numpygpt finetune --lora` tunes an adapter
    over it. Embeddings, norms and biases stay as they are.
    """
    if parsed.compare:
        return _compare(parsed)
    _refuse_options_of_compare(parsed)
    scheme, options = quantization_of(parsed.scheme)
    refuse_the_best_folder(parsed.out)
    if (parsed.out / FILE_NAME).exists() and not parsed.overwrite:
        raise InputError(f"{parsed.out} already holds a model; replace it with --overwrite, or choose another --out")
    refuse_other_models(parsed.out)
    checkpoint = read_model(parsed.checkpoint)
    target = parsed.out / FILE_NAME
    if target.exists() and target.samefile(checkpoint.path):
        raise InputError(f"--out {parsed.out} is the model itself, which would be lost; choose another")
    model = quantize(base_model(parsed.checkpoint, None), scheme, **options)
    make_writable(parsed.out)
    with locked(parsed.out):
        write_checkpoint(parsed.out, {"model": packed_section(model, saved_tokenizer(checkpoint))})
    size = sum(array.nbytes for array in packed_arrays(model).values())
    weights = [node.weight.shape for node in quantized_projections(model).values()]
    whole = 4 * sum(map(math.prod, weights))
    print(f"{len(weights)} matrices in {parsed.scheme}: {size:,} bytes, {size / whole:.3f} of those in float32")
    print(f"wrote {target}")
    print(f"let it write: numpygpt generate --checkpoint {shlex.quote(str(parsed.out))} --prompt 'Every effort'")
    return 0


def _refuse_options_of_compare(parsed: argparse.Namespace) -> None:
    given = [flag(name) for name in OF_COMPARE if getattr(parsed, name) is not None]
    if given:
        raise InputError(f"{', '.join(given)} can only be used with --compare; add it, or leave out {', '.join(given)}")
    for name, expected in (("scheme", "one such as nf4,double"), ("out", "a folder for the model")):
        if getattr(parsed, name) is None:
            raise InputError(f"{flag(name)} is missing; expected {expected}, or --compare")


def _compare(parsed: argparse.Namespace) -> int:
    if parsed.scheme is not None or parsed.overwrite:
        raise InputError("--compare writes no model; leave out --scheme and --overwrite, and name --schemes")
    for name, default in OF_COMPARE.items():
        if getattr(parsed, name) is None:
            setattr(parsed, name, default)
    for words in parsed.schemes:
        scheme, options = quantization_of(words)
        schemes.quantize(np.ones((1, 1), np.float32), scheme, **options)  # refuses what cannot be, before the work
    for name, smallest in (("tokens", 2), ("batch_size", 1)):
        if getattr(parsed, name) < smallest:
            raise InputError(f"{flag(name)} is {getattr(parsed, name)}; expected {smallest} or more")
    checkpoint = read_model(parsed.checkpoint)
    if parsed.out is not None:
        make_writable(parsed.out)
    path = picture_path(parsed.out and parsed.out / PICTURE, checkpoint, PICTURE)
    source, ids = _token_ids(parsed, checkpoint)
    print(*origin_of(checkpoint), sep="\n", flush=True)  # an output that cannot be written is found out before the work
    model = base_model(parsed.checkpoint, None)
    needed = scoring_bytes(model.config, parsed.batch_size, model.config.context_length, model.dtype)
    check_memory(needed, f"a batch (--batch-size) of {parsed.batch_size} windows")
    with progress_bar((1 + len(parsed.schemes)) * (len(ids) - 1), "token") as advance:
        rows = compared(model, parsed.schemes, ids, batch_size=parsed.batch_size, advance=advance)
    print(f"{source}: the first {len(ids):,} tokens")
    print("errors are relative to the root mean square of the weights")
    _print(rows)
    plot_quantization(rows, path)
    print(f"wrote {path}")
    return 0


def _token_ids(parsed: argparse.Namespace, checkpoint: SavedSections) -> tuple[str, Array]:
    """What text is predicted, and its first tokens."""
    tokenizer = tokenizer_of(checkpoint, parsed.vocab)
    if parsed.text is not None:
        return str(parsed.text), text_to_token_ids(read_text(parsed.text), tokenizer)[0][: parsed.tokens]
    if RUN not in checkpoint:
        raise InputError(f"{parsed.checkpoint} is a model without a training run, and so without a text; add --text")
    corpus = options_of_run(checkpoint).read_corpus(tokenizer, saved_config(checkpoint))
    if not isinstance(corpus, Corpus):
        raise InputError(f"the run in {parsed.checkpoint} has learned from records, and not from a text; add --text")
    return "the validation part of its text", np.array(corpus.validation[: parsed.tokens], np.int64)


def _print(rows: list[Compared]) -> None:
    whole = rows[0].score.perplexity
    head = ("scheme", "MiB", "of float32", "error", "largest", "perplexity", "change")
    cells = [
        (
            row.scheme or "not quantized",
            f"{row.bytes / 2**20:,.3f}",
            f"{row.share:.4f}",
            f"{row.error:.5f}",
            f"{row.largest:.4f}",
            f"{row.score.perplexity:.6g}",
            f"{row.score.perplexity / whole - 1:+.3%}",
        )
        for row in rows
    ]
    print_table("l" + "r" * 6, cells, head=head)
