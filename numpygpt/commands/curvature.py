"""numpygpt curvature: the largest eigenvalues of the Hessian of a model's loss."""

import argparse
from pathlib import Path

import numpy as np

from numpygpt.checks.curvature import lanczos, product_of
from numpygpt.commands.model_options import (
    add_model_options,
    add_step_options,
    config_of,
    refuse_model_options,
    tokens_of,
)
from numpygpt.commands.tables import print_table
from numpygpt.commands.trained import CHECKPOINT_HELP, origin_of, tokenizer_of
from numpygpt.data.texts import read_text
from numpygpt.data.tokenizer import text_to_token_ids
from numpygpt.errors import InputError
from numpygpt.evaluation.scores import progress_bar
from numpygpt.formats.kinds import read_model
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_of
from numpygpt.model.sizes import check_memory, num_parameters, training_bytes
from numpygpt.sections import SavedSections
from numpygpt.shapes import Array

#: A model whose curvature takes some seconds.
DEFAULT_CONFIG = GPTConfig(
    vocab_size=32, context_length=16, emb_dim=24, n_heads=3, n_layers=2, drop_rate=0.0, qkv_bias=False
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="DIR", help=f"{CHECKPOINT_HELP} (default: a small model, not trained)")
    add("--text", type=Path, metavar="FILE", help="tokens of the loss, with --checkpoint (default: random ids)")
    add("--vocab", metavar="FILE", help="file of GPT-2's ranks, where the model needs them")
    add("--eigenvalues", type=int, default=5, help="how many of the largest, and of the smallest, are printed")
    add("--iterations", type=int, default=40, help="of Lanczos; each takes a forward and a backward in complex numbers")
    add("--seed", type=int, default=0, help="of the first vector, of random ids, and of a model that is not trained")
    add_step_options(parser)
    add_model_options(parser, DEFAULT_CONFIG)


def run(parsed: argparse.Namespace) -> int:
    """Print the largest and the smallest eigenvalues of the Hessian of a model's loss, by Lanczos.

    Hessian-vector products come by complex step from the hand-written backward, so they are exact except for a few
    roundings. A learning rate of plain gradient descent above 2 / (the largest eigenvalue) diverges.
    """
    _check_numbers(parsed)
    checkpoint = _checkpoint_of(parsed)
    model = _model_of(parsed, checkpoint)
    tokens = tokens_of(parsed.batch_size, parsed.tokens, model.config)
    n = num_parameters(model.config)
    step = training_bytes(model.config, parsed.batch_size, tokens, np.float64)
    check_memory(2 * step.peak + 8 * n * (parsed.iterations + 4), f"{parsed.iterations} vectors of {n:,} parameters")
    inputs, targets = _tokens(parsed, checkpoint, model.config, tokens)
    print(f"{n:,} parameters, {parsed.batch_size} x {tokens} tokens of {parsed.text or 'random ids'}", flush=True)
    loss, _ = model.loss_and_grads(inputs, targets)
    with progress_bar(min(parsed.iterations, n), "product") as advance:
        spectrum = lanczos(
            product_of(model, inputs, targets), n, parsed.iterations, np.random.default_rng(parsed.seed), advance
        )
    print(f"loss {loss:.6f} nats a token; eigenvalues of its Hessian after {len(spectrum.values)} iterations")
    _print_ends(spectrum.values, spectrum.errors, parsed.eigenvalues)
    if spectrum.values[-1] > 0:
        print(f"plain gradient descent diverges above a learning rate of {2 / spectrum.values[-1]:.3g}")
    return 0


def _check_numbers(parsed: argparse.Namespace) -> None:
    for name, least in (("eigenvalues", 1), ("iterations", 1), ("seed", 0)):
        if getattr(parsed, name) < least:
            raise InputError(f"--{name} is {getattr(parsed, name)}; expected {least} or more")
    if parsed.checkpoint is None and parsed.text is not None:
        raise InputError("--text has no meaning here; leave it out (it goes with --checkpoint, which has a tokenizer)")


def _checkpoint_of(parsed: argparse.Namespace) -> SavedSections | None:
    if parsed.checkpoint is None:
        return None
    refuse_model_options(parsed)
    checkpoint = read_model(parsed.checkpoint)
    print(*origin_of(checkpoint), sep="\n", flush=True)
    return checkpoint


def _model_of(parsed: argparse.Namespace, checkpoint: SavedSections | None) -> GPTModel:
    if checkpoint is not None:
        return model_of(checkpoint, np.float64)
    return GPTModel(config_of(parsed, DEFAULT_CONFIG), parsed.seed, np.float64)


def _tokens(
    parsed: argparse.Namespace, checkpoint: SavedSections | None, config: GPTConfig, tokens: int
) -> tuple[Array, Array]:
    """Inputs and targets (B, T): the first windows of the text, or random ids."""
    B = parsed.batch_size
    if checkpoint is None or parsed.text is None:
        ids = np.random.default_rng(parsed.seed).integers(0, config.vocab_size, (B, tokens + 1))
        return ids[:, :-1], ids[:, 1:]
    ids = text_to_token_ids(read_text(parsed.text), tokenizer_of(checkpoint, parsed.vocab))[0]
    if len(ids) < B * tokens + 1:
        raise InputError(
            f"the text {parsed.text} has {len(ids)} tokens; {B} x {tokens} with their targets need {B * tokens + 1}"
        )
    return ids[: B * tokens].reshape(B, tokens), ids[1 : B * tokens + 1].reshape(B, tokens)


def _print_ends(values: Array, errors: Array, number: int) -> None:
    """The largest Ritz values and the smallest, without one twice."""
    count = len(values)
    shown = [*range(count - 1, max(count - 1 - number, -1), -1)]
    shown += [index for index in range(min(number, count) - 1, -1, -1) if index not in shown]
    ranks = [str(count - index if index >= count - number else -1 - index) for index in shown]
    rows = [
        (rank, f"{values[index]:.6g}", f"{errors[index]:.1e}") for rank, index in zip(ranks, shown, strict=True)
    ]
    print_table("rrr", rows, head=("", "eigenvalue", "within"))
