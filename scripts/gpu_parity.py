"""Compare PyTorch on a GPU in float32, TF32, bfloat16 and float16, tensor by tensor, with NumPy in float64.

    python scripts/gpu_parity.py                            # the model of `make demo`, 2 x 64 tokens
    python scripts/gpu_parity.py --preset book-124M --tokens 256 --markdown gpu.md

It takes one training step without dropout in each number format, with attention written out ("math") and in PyTorch's
fused kernel ("sdpa", which does not show scores and weights). Every format holds the weights exactly, so the errors are
those of the computation. The loss is multiplied by the first power of two that is not below the number of tokens, so
that its gradients are not too small for float16.

An error is given relative to the tensor's size, and in parentheses in units of the format's roundoff u. A few u, which
grow slowly with depth, are rounding. If a tensor is zero except for rounding, its error is relative to the terms that
cancel in it. No tolerance is set by hand: rounding errors of the format are put into a float64 step
(`torchgpt.checks.rounding`), and the error of a tensor may be 4 times as large as what they do to it. This is judged
for the whole tensor. In single rows the fused kernel's gradients have larger errors than those of the formula written
out, whose errors cancel. If the budget is larger than the tensor itself, the verdict says little; such tensors are
counted.

Without a GPU, the formats of the CPU are compared, which do not include TF32. A variant that the device cannot compute,
or has no memory for, is left out, and the report says so. Exit status: 0 if all tensors are within rounding, 1 if one
is not (or is missing, or NaN), 2 for unusable input.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.errors import BAD_INPUT, InputError

try:
    import torchgpt  # noqa: F401
except ImportError as error:  # it says what to install
    print(f"gpu_parity: error: {error}", file=sys.stderr)
    sys.exit(BAD_INPUT)

import numpy as np
import torch
import torch.nn.functional as F
from bench.gpu import device_name, precision_of_products
from bench.tables import as_markdown, as_text
from tqdm import tqdm

import numpygpt
from numpygpt.checks.compare import Comparison, Norms, compare, finite_norms
from numpygpt.commands.model_options import add_model_options, add_step_options, config_of, tokens_of
from numpygpt.files import check_writable, write_text
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.random.torch_generator import TorchGenerator
from torchgpt.bridge import to_torch
from torchgpt.checks.parity import (
    FACTOR,
    REPORT_PROBES,
    Batch,
    Tensors,
    copies_at_once,
    numpy_step,
    rounding_errors,
    torch_step,
)
from torchgpt.checks.rounding import FORMATS
from torchgpt.model import ATTENTION_KINDS

WRONG = 1
#: The ends of the names of tensors that the fused kernel of attention does not show.
INSIDE_ATTENTION = (".att.attn_scores", ".att.attn_weights", ".att.dropout")


class Variant(NamedTuple):
    """A number format, one of FORMATS, and a kind of attention."""

    format: str
    attention: str

    @property
    def name(self) -> str:
        return f"{self.format} {self.attention}"

    @property
    def dtype(self) -> torch.dtype:
        """PyTorch's dtype. For TF32 it is float32, because TF32 is only a way of computing products of float32."""
        dtype: torch.dtype = getattr(torch, "float32" if self.format == "tf32" else self.format)
        return dtype


class Truth(NamedTuple):
    """A step in float64, its gradients for the scaled loss, and the model and batch that it was taken on."""

    model: GPTModel
    batch: Batch
    loss_scale: float
    tensors: Tensors


def numpy_truth(config: GPTConfig, batch_size: int, tokens: int, seed: int) -> Truth:
    rng = TorchGenerator(seed)
    model = GPTModel(config, rng, np.float64)
    for array in model.named_parameters().values():
        array[...] = torch.from_numpy(array).to(torch.float16).to(torch.bfloat16).double().numpy()
    inputs, targets = rng.randint(0, config.vocab_size, (2, batch_size, tokens))
    batch = Batch(inputs, targets)
    loss_scale = 2.0 ** math.ceil(math.log2(batch_size * tokens))
    tensors = {
        name: tensor * loss_scale if name.startswith("d_") else tensor
        for name, tensor in numpy_step(model, batch).items()
    }
    return Truth(model, batch, loss_scale, tensors)


def torch_tensors(truth: Truth, variant: Variant, device: str) -> Tensors:
    """The same tensors, computed by PyTorch in the variant and converted to float64."""
    twin = to_torch(truth.model, copy=True, attention=variant.attention).to(device, variant.dtype)
    inputs, targets = (torch.from_numpy(ids).to(device) for ids in truth.batch[:2])
    tensors: dict[str, torch.Tensor] = {}
    with precision_of_products("high" if variant.format == "tf32" else "highest"):
        logits = twin(inputs, tensors.__setitem__)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        leaves = {name: tensor for name, tensor in (*tensors.items(), *twin.named_parameters()) if tensor.requires_grad}
        gradients = torch.autograd.grad(loss, list(leaves.values()), torch.full_like(loss, truth.loss_scale))
    tensors["loss"] = loss
    tensors |= {f"d_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {name: tensor.detach().to("cpu", torch.float64).numpy() for name, tensor in tensors.items()}


def rounding_of(truth: Truth, format_name: str, probes: int) -> dict[str, Norms]:
    """What rounding to the format does to each tensor."""
    twin = to_torch(truth.model)
    return rounding_errors(
        lambda copies: torch_step(twin, truth.batch, None, copies, d_loss=truth.loss_scale),
        truth.tensors,
        format_name,
        probes=probes,
        at_once=copies_at_once(truth.model),
        progress=partial(tqdm, desc=f"rounding in {format_name}", unit="run", delay=2, leave=False, dynamic_ncols=True),
    )


def sizes_of(truth: Truth, rounding: Mapping[str, Norms], format_name: str) -> dict[str, float]:
    """What errors are relative to: ‖truth‖, or the terms that cancel if a tensor is zero except for rounding."""
    sizes = {}
    for name, tensor in truth.tensors.items():
        size, error = finite_norms(tensor).tensor, rounding[name].tensor
        sizes[name] = size if size > FACTOR * error else error / FORMATS[format_name].roundoff
    return sizes


class Row(NamedTuple):
    """One tensor in one variant: its relative error and budget, and the share of the budget that is used."""

    name: str
    error: float
    budget: float
    used: float
    verdict: str
    passed: bool


def rows_of(
    truth: Truth, sizes: Mapping[str, float], rounding: Mapping[str, Norms], variant: Variant, device: str
) -> list[Row]:
    shown = {
        name: tensor
        for name, tensor in truth.tensors.items()
        if variant.attention == "math" or not name.endswith(INSIDE_ATTENTION)
    }
    allowed = {name: Norms(FACTOR * error.tensor, np.full_like(error.rows, np.inf)) for name, error in rounding.items()}
    comparisons = compare(torch_tensors(truth, variant, device), shown, allowed, dtype=np.float64)
    return [row_of(comparison, sizes.get(comparison.name) or 1.0) for comparison in comparisons]


def row_of(comparison: Comparison, size: float) -> Row:
    verdict = "within rounding" if comparison.passed else comparison.fault or "over budget"
    error, budget = comparison.error / size, comparison.allowed / size
    return Row(comparison.name, error, budget, comparison.used, verdict, comparison.passed)


class Report(NamedTuple):
    """The rows of each variant, and why the others are left out."""

    variants: dict[Variant, list[Row]]
    left_out: dict[Variant, str]


def compared(truth: Truth, formats: Sequence[str], probes: int, device: str) -> Report:
    """The report on every variant that the device can compute. The first format must be the most accurate."""
    report = Report({}, {})
    sizes: dict[str, float] = {}
    for format_name in formats:
        rounding = rounding_of(truth, format_name, probes)
        sizes = sizes or sizes_of(truth, rounding, format_name)
        for attention in ATTENTION_KINDS:
            variant = Variant(format_name, attention)
            try:
                report.variants[variant] = rows_of(truth, sizes, rounding, variant, device)
            except RuntimeError as error:
                if not isinstance(error, torch.OutOfMemoryError) and "not implemented" not in str(error):
                    raise
                report.left_out[variant] = str(error).splitlines()[0]
    if not report.variants:
        raise InputError(f"no variant could be computed here: {', '.join(set(report.left_out.values()))}")
    return report


# What is shown


def in_roundoffs(row: Row, variant: Variant) -> float:
    return row.error / FORMATS[variant.format].roundoff


def cell(row: Row, variant: Variant) -> str:
    if not math.isfinite(row.error):
        return row.verdict.upper()
    mark = "" if row.passed else " OVER BUDGET"
    return f"{row.error:.1e} ({in_roundoffs(row, variant):.2g} u){mark}"


def table(report: Report) -> list[list[str]]:
    """The head of a table, and a line for each tensor with a cell for each variant."""
    by_name = [{row.name: cell(row, variant) for row in rows} for variant, rows in report.variants.items()]
    names = dict.fromkeys(name for rows in report.variants.values() for name in (row.name for row in rows))
    head = ["tensor", *(variant.name for variant in report.variants)]
    return [head, *([name, *(cells.get(name, "") for cells in by_name)] for name in names)]


def summary(report: Report) -> list[list[str]]:
    """The head of a table, and a line for each variant.

    The line says how many tensors are within rounding, and which tensor uses most of its budget. Variants that are left
    out come last, with the reason.
    """
    lines = [["variant", "u", "within rounding", "budget above size", "worst tensor", "its error", "of its budget"]]
    for variant, rows in report.variants.items():
        worst = max(rows, key=lambda row: row.used)
        lines.append(
            [
                variant.name,
                f"{FORMATS[variant.format].roundoff:.1e}",
                f"{sum(row.passed for row in rows)} of {len(rows)}",
                f"{sum(row.budget > 1 for row in rows)}",
                worst.name,
                cell(worst, variant),
                f"{worst.used:.0%}",
            ]
        )
    return lines + [[variant.name, "", f"left out: {why}", "", "", "", ""] for variant, why in report.left_out.items()]


def facts(parsed: argparse.Namespace, config: GPTConfig, tokens: int, device: str) -> dict[str, Any]:
    """What was computed, and on what."""
    return {
        "device": device_name(device),
        "versions": {"numpygpt": numpygpt.__version__, "numpy": np.__version__, "torch": torch.__version__},
        "config": config.to_dict(),
        "batch_size": parsed.batch_size,
        "tokens": tokens,
        "seed": parsed.seed,
        "probes": parsed.probes,
    }


def as_json(report: Report, about: Mapping[str, Any]) -> str:
    """The report as JSON. An error that cannot be measured is null."""
    variants = {
        variant.name: {
            row.name: {
                "error": _finite(row.error),
                "in_roundoffs": _finite(in_roundoffs(row, variant)),
                "budget": row.budget,
                "used": _finite(row.used),
                "verdict": row.verdict,
            }
            for row in rows
        }
        for variant, rows in report.variants.items()
    }
    left_out = {variant.name: why for variant, why in report.left_out.items()}
    return json.dumps({**about, "variants": variants, "left_out": left_out}, indent=1, allow_nan=False) + "\n"


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def markdown_page(report: Report, about: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{name} {value}" for name, value in about["config"].items())
    return (
        f"{about['device']}, PyTorch {about['versions']['torch']}; {about['batch_size']} x {about['tokens']} tokens, "
        f"seed {about['seed']}; {sizes}.\n\n{as_markdown(summary(report))}\n\n{as_markdown(table(report))}\n"
    )


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_step_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="of weights and token ids (default: 0)")
    parser.add_argument(
        "--probes",
        type=int,
        default=REPORT_PROBES,
        help=f"runs with rounding errors, of each format (default: {REPORT_PROBES})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there, too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, too")
    add_model_options(parser)
    return parser.parse_args(arguments)


def run(parsed: argparse.Namespace) -> int:
    config = config_of(parsed)
    tokens = tokens_of(parsed.batch_size, parsed.tokens, config)
    if parsed.probes < 1:
        raise InputError(f"--probes is {parsed.probes}; expected at least 1")
    for path in (parsed.json, parsed.markdown):
        if path:
            check_writable(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    formats = [name for name in ("float32", "tf32", "bfloat16", "float16") if device == "cuda" or name != "tf32"]
    if device == "cpu":
        print("there is no GPU here: this is the CPU, which has no TF32")
    report = compared(numpy_truth(config, parsed.batch_size, tokens, parsed.seed), formats, parsed.probes, device)
    print(f"{as_text(table(report))}\n\n{as_text(summary(report))}")
    about = facts(parsed, config, tokens, device)
    for path, text in written(parsed, report, about):
        write_text(path, text)
        print(f"wrote {path}")
    return 0 if all(row.passed for rows in report.variants.values() for row in rows) else WRONG


def written(parsed: argparse.Namespace, report: Report, about: Mapping[str, Any]) -> Iterable[tuple[Path, str]]:
    if parsed.json:
        yield parsed.json, as_json(report, about)
    if parsed.markdown:
        yield parsed.markdown, markdown_page(report, about)


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        return run(arguments_of(arguments))
    except InputError as error:
        print(f"gpu_parity: error: {error}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
