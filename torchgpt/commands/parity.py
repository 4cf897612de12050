"""numpygpt parity: every tensor of a training step against PyTorch, as a table and as a page with a heat map."""

import argparse
import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import numpygpt
from numpygpt.commands.model_options import (
    add_model_options,
    add_step_options,
    config_of,
    refuse_model_options,
    tokens_of,
)
from numpygpt.commands.tables import print_table
from numpygpt.commands.trained import CHECKPOINT_HELP, origin_of
from numpygpt.errors import InputError
from numpygpt.files import check_writable, write_text
from numpygpt.formats.kinds import read_model
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import model_of, saved_config
from numpygpt.model.sizes import check_memory, training_bytes
from numpygpt.sections import SavedSections
from torchgpt.commands.parity_page import page
from torchgpt.commands.parity_picture import plot_parity

if TYPE_CHECKING:
    from torchgpt.checks.parity import Row

#: The line in `numpygpt --help`.
HELP = "check every tensor of a training step against PyTorch"

#: A model with every part, in which no two sizes are equal, so that a transposed tensor has another shape.
DEFAULT_CONFIG = GPTConfig(
    vocab_size=61, context_length=11, emb_dim=24, n_heads=3, n_layers=4, drop_rate=0.1, qkv_bias=True
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    help_of_checkpoint = f"{CHECKPOINT_HELP} (default: a model of random weights)"
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help=help_of_checkpoint)
    add_step_options(parser)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--seed", type=int, default=0, help="of weights, token ids and dropout")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with a heat map of the tensors, too")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the heat map as a picture, too")
    add_model_options(parser, DEFAULT_CONFIG)


def run(parsed: argparse.Namespace) -> int:
    """Check every tensor of a training step, forward and backward, against PyTorch; exit status 1 if one is wrong."""
    saved = _saved(parsed)
    config = config_of(parsed, DEFAULT_CONFIG) if saved is None else saved_config(saved)
    tokens = tokens_of(parsed.batch_size, parsed.tokens, config)
    for path in filter(None, (parsed.html, parsed.png)):
        check_writable(path)
    if parsed.html and parsed.html == parsed.png:
        raise InputError(f"--html and --png both name {parsed.png}; name two files")
    truth = training_bytes(config, parsed.batch_size, tokens, np.float64)
    check_memory(truth.peak - truth.optimizer, "the step in float64")
    from tqdm import tqdm

    from torchgpt.checks.parity import report, report_of

    progress = partial(tqdm, desc="rounding errors", unit="run", delay=2, leave=False, dynamic_ncols=True)
    size = parsed.batch_size, tokens
    if saved is None:
        rows = report(config, parsed.dtype, parsed.seed, batch_size=size[0], tokens=tokens, progress=progress)
    else:
        rows = report_of(model_of(saved, parsed.dtype), size, parsed.seed, progress=progress)
        print(*origin_of(saved), sep="\n")
    print_table(
        "lrrrrl",
        [_cells(row) for row in rows],
        head=("tensor", "ours", "PyTorch", "budget", "used", "verdict"),
        wrong=[index for index, row in enumerate(rows) if not row.passed],
    )
    print(summary(rows))
    if parsed.html:
        write_text(parsed.html, page(rows, summary(rows), _facts(config, tokens, parsed)))
        print(f"wrote {parsed.html}")
    if parsed.png:
        plot_parity(rows, summary(rows), parsed.png)
        print(f"wrote {parsed.png}")
    return 0 if all(row.passed for row in rows) else 1


def _saved(parsed: argparse.Namespace) -> SavedSections | None:
    """The model of --checkpoint, if it was given."""
    if parsed.checkpoint is None:
        return None
    refuse_model_options(parsed)
    return read_model(parsed.checkpoint)


def _cells(row: "Row") -> tuple[str, ...]:
    """The cells of a row of the table. Errors are relative to the tensor's size."""
    pytorch = "" if row.pytorch is None else f"{row.pytorch:.1e}"
    verdict = row.verdict if row.passed else row.verdict.upper()
    return row.name, f"{row.error:.1e}", pytorch, f"{row.budget:.1e}", f"{row.used:.0%}", verdict


def summary(rows: Sequence["Row"]) -> str:
    """How many tensors agree, and which one uses most of its budget, or is the first that is wrong."""
    wrong = [row for row in rows if not row.passed]
    if not wrong:
        worst = max(rows, key=lambda row: row.used)
        return f"all {len(rows)} tensors agree; the most of a budget is used by {worst.name}, {worst.used:.0%}"
    first = wrong[0]
    used = f", {first.used:.0%} used" if math.isfinite(first.used) else ""
    return f"{len(wrong)} of {len(rows)} tensors WRONG; the first: {first.name}, {first.verdict}{used}"


def _facts(config: GPTConfig, tokens: int, parsed: argparse.Namespace) -> dict[str, str]:
    """What a reader needs to repeat the report."""
    import torch

    return {
        "configuration": ", ".join(f"{name} {value}" for name, value in config.to_dict().items()),
        "step": f"{parsed.batch_size} x {tokens} tokens",
        "dtype": parsed.dtype,
        "seed": str(parsed.seed),
        "versions": (
            f"numpygpt {numpygpt.__version__}, NumPy {np.__version__}, PyTorch {torch.__version__}, "
            f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
        ),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
