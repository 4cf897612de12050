"""The command `numpygpt`: train, generate, info, attention, embeddings, gradcheck."""

import argparse
import codecs
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from numpygpt import gradcheck, memory
from numpygpt.allocator import keep_freed_memory
from numpygpt.checkpoint import Checkpoint, load_checkpoint
from numpygpt.config import GPT2_SIZES, POSITIONS, GPTConfig
from numpygpt.errors import InputError
from numpygpt.generation import beam_search, check_sampling, stream
from numpygpt.plots import plot_attention, plot_word_vectors, token_label
from numpygpt.random import TorchGenerator
from numpygpt.run import SCHEDULES, Options, TrainingRun, stop_between_steps
from numpygpt.shapes import Array
from numpygpt.tokenizer import TOKENIZERS, Encoding, get_tokenizer, text_to_token_ids, token_ids_to_text
from numpygpt.training import perplexity

#: The default model: small enough to learn English in a minute on two cores.
DEFAULT_CONFIG = GPTConfig(
    vocab_size=256, context_length=64, emb_dim=128, n_heads=4, n_layers=4, drop_rate=0.0, qkv_bias=False
)
DEFAULT_TEMPERATURE = 0.8
#: Tokens that `numpygpt embeddings` draws unasked, at most.
MOST_TOKENS = 100
BAD_INPUT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 where a check failed, 2 for bad input (one line on stderr)."""
    parsed = _parser().parse_args(arguments)
    keep_freed_memory()
    try:
        with warnings.catch_warnings():
            # an overflow ends in a loss that is not finite, and that has a line of its own
            warnings.simplefilter("ignore", RuntimeWarning)
            return parsed.run(parsed)
    except InputError as error:
        print(f"numpygpt: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except ImportError as error:
        package = (error.name or "numpygpt").partition(".")[0]
        print(f"numpygpt: error: {error}; install it with: pip install {package}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has closed it; there is nobody left to tell
        return 0


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help, where it has one and the help does not name it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="numpygpt", description="GPT in pure NumPy: train it, let it write, look inside, check its gradients."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for name, add_arguments, run, help_line in (
        ("train", _add_train_arguments, train, "train a model on text"),
        ("generate", _add_generate_arguments, generate, "continue a prompt with a trained model"),
        ("info", _add_info_arguments, info, "parameters and memory of a model"),
        ("attention", _add_attention_arguments, draw_attention, "draw what each attention head reads"),
        ("embeddings", _add_embeddings_arguments, draw_embeddings, "draw the word vectors in two dimensions"),
        ("gradcheck", _add_gradcheck_arguments, check_gradients, "check every gradient against complex step"),
    ):
        command = commands.add_parser(
            name, help=help_line, description=run.__doc__, formatter_class=_HelpFormatter
        )
        add_arguments(command)
        command.set_defaults(run=run)
    return parser


# train


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="DIR", help="folder for the run (default: runs/DATE-TIME)")
    where.add_argument(
        "--resume", type=Path, metavar="DIR", help="continue the run in this folder; with --steps for longer"
    )
    add("--overwrite", action="store_true", help="replace a run that is already in --out")
    add("--text", nargs="+", metavar="FILE", help="text to learn from (default: the language reference of this Python)")
    add("--tokenizer", choices=TOKENIZERS, help=_default("tokenizer"))
    add("--vocab", metavar="FILE", help="file of GPT-2's ranks, for --tokenizer gpt2 (default: found or downloaded)")
    for name, kind, meaning in (
        ("steps", int, "optimizer steps"),
        ("batch_size", int, "windows in a micro-batch"),
        ("accumulate", int, "micro-batches in a step"),
        ("lr", float, "peak learning rate"),
        ("min_lr", float, "learning rate at the end of the cosine"),
        ("warmup_steps", int, "steps of linear warm-up"),
        ("weight_decay", float, "AdamW's weight decay"),
        ("clip", float, "largest norm of the gradient; 0: any"),
        ("eval_every", int, "steps between evaluations"),
        ("eval_batches", int, "batches in an evaluation, of training and of validation text"),
        ("sample_every", int, "steps between samples; 0: none"),
        ("sample_prompt", str, "what the samples continue"),
        ("save_every", int, "steps between checkpoints; 0: only at the end"),
        ("seed", int, "of weights, batches and dropout"),
    ):
        add(_flag(name), type=kind, help=f"{meaning} {_default(name)}")
    add("--schedule", choices=SCHEDULES, help=f"learning-rate schedule {_default('schedule')}")
    add("--dtype", choices=("float32", "float64"), help=_default("dtype"))
    _add_config_arguments(parser)


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = parser.add_argument_group("the model")
    sizes.add_argument("--preset", choices=GPT2_SIZES, help="start from the sizes of a GPT-2")
    for name in ("context_length", "emb_dim", "n_heads", "n_layers"):
        sizes.add_argument(_flag(name), type=int, help=f"(default: {getattr(DEFAULT_CONFIG, name)}, or the preset's)")
    sizes.add_argument("--drop-rate", type=float, help=f"(default: {DEFAULT_CONFIG.drop_rate}, or the preset's)")
    for name in ("qkv_bias", "tie_weights"):
        sizes.add_argument(_flag(name), action=argparse.BooleanOptionalAction, default=None)
    sizes.add_argument("--position", choices=POSITIONS, help=f"(default: {DEFAULT_CONFIG.position})")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _default(name: str) -> str:
    return f"(default: {getattr(Options, name)})"


def _config(parsed: argparse.Namespace, vocab_size: int) -> GPTConfig:
    """The preset's or the default sizes, with what the command line replaces."""
    chosen = {**(GPT2_SIZES[parsed.preset] if parsed.preset else DEFAULT_CONFIG).to_dict(), "vocab_size": vocab_size}
    given = {name: value for name, value in vars(parsed).items() if name in chosen and value is not None}
    return GPTConfig(**{**chosen, **given})


def train(parsed: argparse.Namespace) -> int:
    """Train a model on text. Ctrl-C saves and says how to go on."""
    given = {field.name: getattr(parsed, field.name) for field in fields(Options)}
    given = {name: tuple(value) if name == "text" else value for name, value in given.items() if value is not None}
    if parsed.resume:
        run = TrainingRun.resume(parsed.resume, **_changes_to_a_resumed_run(parsed, given))
    else:
        options = Options(**given)
        config = _config(parsed, get_tokenizer(options.tokenizer, options.vocab).n_vocab)
        directory = parsed.out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}"
        run = TrainingRun.start(options, config, directory, overwrite=parsed.overwrite)
    print(
        f"{run.model.num_parameters():,} parameters; {len(run.train_loader)} training batches of "
        f"{run.options.batch_size} x {run.config.context_length} tokens; {run.options.steps - run.step} steps to do"
    )
    return _run_with_progress(run)


def _changes_to_a_resumed_run(parsed: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    model_options = [name for name in (*vars(DEFAULT_CONFIG), "preset") if getattr(parsed, name, None) is not None]
    fixed = sorted({*given, *model_options} - {"steps", "save_every", "sample_every", "sample_prompt"})
    if fixed:
        flags = ", ".join(map(_flag, fixed))
        raise InputError(f"{flags} cannot change in a resumed run; leave them out, or start a new run with --out")
    return given


def _run_with_progress(run: TrainingRun) -> int:
    from tqdm import tqdm

    options = run.options
    total = options.steps * run.tokens_per_step
    losses: dict[str, str] = {}
    with (
        stop_between_steps() as stop,
        tqdm(total=total, initial=run.tokens_seen, unit="token", unit_scale=True, dynamic_ncols=True) as bar,
    ):
        if not run.history:
            _show_evaluation(run, losses, bar)
        while not run.finished and not stop.requested:
            losses["loss"] = f"{run.train_step():.3f}"
            bar.update(run.tokens_per_step)
            bar.set_postfix(losses)
            if run.step % options.eval_every == 0 or run.finished:
                _show_evaluation(run, losses, bar)
            if options.sample_every and (run.step % options.sample_every == 0 or run.finished):
                bar.write(f"step {run.step}: {run.sample()}")
            if options.save_every and run.step % options.save_every == 0:
                run.save()
        checkpoint = run.save()
    print(f"wrote {checkpoint}")
    print(f"wrote {run.plot()}")
    if not run.finished:
        print(f"stopped after step {run.step} of {options.steps}; go on with: numpygpt train --resume {run.directory}")
        return INTERRUPTED
    print(f'let it write: numpygpt generate --checkpoint {run.directory} --prompt "{options.sample_prompt}"')
    return 0


def _show_evaluation(run: TrainingRun, losses: dict[str, str], bar: Any) -> None:
    entry = run.evaluate()
    losses["val"] = f"{entry.val_loss:.3f}"
    bar.set_postfix(losses)
    bar.write(
        f"step {entry.step}: training loss {entry.train_loss:.3f}, "
        f"validation loss {entry.val_loss:.3f} nats a token"
    )


# generate


def _add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of a training run")
    add("--prompt", required=True, help="text to continue")
    add("--max-new-tokens", type=int, default=200, help="tokens to add")
    add(
        "--temperature",
        type=float,
        help=f"0: always the likeliest token; higher: more surprising (default: {DEFAULT_TEMPERATURE})",
    )
    add("--top-k", type=int, help="choose among the k likeliest tokens only")
    add("--top-p", type=float, help="choose among the likeliest tokens that together have this probability only")
    add("--seed", type=int, help="for the same text again")
    add("--num-samples", type=int, default=1, help="how many continuations")
    add("--num-beams", type=int, help="search for the likeliest whole with this many beams, instead of drawing tokens")
    add("--vocab", metavar="FILE", help="file of GPT-2's ranks, where the model needs them")


def generate(parsed: argparse.Namespace) -> int:
    """Continue a prompt with a trained model, printing each token as it is chosen."""
    for name, smallest in (("max_new_tokens", 0), ("num_samples", 1)):
        if getattr(parsed, name) < smallest:
            raise InputError(f"{_flag(name)} is {getattr(parsed, name)}; expected {smallest} or more")
    temperature = DEFAULT_TEMPERATURE if parsed.temperature is None else parsed.temperature
    check_sampling(temperature, parsed.top_k, parsed.top_p)
    checkpoint = load_checkpoint(parsed.checkpoint)
    tokenizer = _tokenizer_of(checkpoint, parsed.vocab)
    idx = _encoded(parsed.prompt, tokenizer)
    model = checkpoint.model()
    if parsed.num_beams is not None:
        _refuse_sampling_options(parsed)
        end = _end_of_text(tokenizer)
        ids = beam_search(model, idx, parsed.max_new_tokens, model.config.context_length, parsed.num_beams, end)
        print(token_ids_to_text(ids, tokenizer))
        return 0
    rng = TorchGenerator() if parsed.seed is None else TorchGenerator(parsed.seed)
    for sample in range(parsed.num_samples):
        if parsed.num_samples > 1:
            print(f"--- sample {sample + 1} of {parsed.num_samples}")
        choices = stream(
            model, idx, model.config.context_length, temperature, parsed.top_k, top_p=parsed.top_p, rng=rng
        )
        _print_as_it_comes(parsed.prompt, (int(ids[0]) for ids in choices), parsed.max_new_tokens, tokenizer)
    return 0


def _tokenizer_of(checkpoint: Checkpoint, vocab: str | None) -> Encoding:
    if checkpoint.tokenizer is None:
        raise InputError(f"the checkpoint {checkpoint.path} names no tokenizer, so a prompt cannot be encoded")
    return get_tokenizer(checkpoint.tokenizer, vocab)


def _encoded(prompt: str, tokenizer: Encoding) -> Array:
    idx = text_to_token_ids(prompt, tokenizer)
    if not idx.size:
        raise InputError("the prompt is empty; expected text to continue")
    return idx


def _end_of_text(tokenizer: Encoding) -> int | None:
    return tokenizer.eot_token if tokenizer.special_tokens_set else None


def _refuse_sampling_options(parsed: argparse.Namespace) -> None:
    given = [name for name in ("temperature", "top_k", "top_p", "seed") if getattr(parsed, name) is not None]
    given += ["num_samples"] if parsed.num_samples > 1 else []
    if given:
        flags = ", ".join(map(_flag, given))
        raise InputError(f"--num-beams draws no tokens and finds one continuation; leave out {flags}")


def _print_as_it_comes(prompt: str, token_ids: Any, how_many: int, tokenizer: Any) -> None:
    """Tokens are bytes, and a character may span several: the decoder holds back what is not yet whole."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    end = _end_of_text(tokenizer)
    print(prompt, end="", flush=True)
    for _ in range(how_many):
        token_id = next(token_ids)
        if token_id == end:
            break
        print(decoder.decode(tokenizer.decode_single_token_bytes(token_id)), end="", flush=True)
    print(decoder.decode(b"", final=True))


# info


def _add_info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="folder of a training run")
    parser.add_argument("--batch-size", type=int, default=2, help="for the memory of a training step")
    parser.add_argument("--tokens", type=int, help="sequence length of a training step (default: context_length)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--vocab-size", type=int, help="(default: the preset's, or 256)")
    _add_config_arguments(parser)


def info(parsed: argparse.Namespace) -> int:
    """Print the parameters of a model part by part, and the memory that a training step takes."""
    if parsed.checkpoint:
        checkpoint = load_checkpoint(parsed.checkpoint)
        config = checkpoint.config
        print(f"{checkpoint.path}: tokenizer {checkpoint.tokenizer}, step {checkpoint.training.get('step')}")
        for last in checkpoint.training.get("history", [])[-1:]:
            loss = last["val_loss"]
            print(f"validation loss {loss:.3f} nats a token, perplexity {perplexity(loss):.2f} (step {last['step']})")
    else:
        preset = GPT2_SIZES[parsed.preset] if parsed.preset else DEFAULT_CONFIG
        config = _config(parsed, preset.vocab_size)
    tokens = config.context_length if parsed.tokens is None else parsed.tokens
    if parsed.batch_size < 1 or not 1 <= tokens <= config.context_length:
        raise InputError(
            f"a step on {parsed.batch_size} x {tokens} tokens; expected at least 1 x 1, and at most context_length "
            f"{config.context_length} tokens"
        )
    print("".join(f"{name} {value}\n" for name, value in config.to_dict().items()))
    rows = memory.parameter_table(config)
    for row in rows:
        print(f"{row.name:<12}{row.parameters:>15,}   {row.detail}")
    print(f"{'total':<12}{sum(row.parameters for row in rows):>15,}   parameters\n")
    print(f"a training step on {parsed.batch_size} x {tokens} tokens in {parsed.dtype}, AdamW:")
    parts = memory.training_bytes(config, parsed.batch_size, tokens, np.dtype(parsed.dtype))
    for name, size in (*parts._asdict().items(), ("total", sum(parts))):
        print(f"{name:<12}{size / 2**20:>15,.1f} MiB")
    return 0


# attention and embeddings


def _add_attention_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of a training run")
    parser.add_argument("--prompt", required=True, help="text to read")
    parser.add_argument("--layer", type=int, metavar="N", help="of this transformer block only, counted from 0")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the picture, PNG (default: attention.png in DIR)")
    parser.add_argument("--vocab", metavar="FILE", help="file of GPT-2's ranks, where the model needs them")


def draw_attention(parsed: argparse.Namespace) -> int:
    """Draw how much each token of a text reads of the others, one panel an attention head."""
    checkpoint = load_checkpoint(parsed.checkpoint)
    tokenizer = _tokenizer_of(checkpoint, parsed.vocab)
    idx = _encoded(parsed.prompt, tokenizer)
    layers = range(checkpoint.config.n_layers)
    if parsed.layer is not None and parsed.layer not in layers:
        raise InputError(f"--layer is {parsed.layer}; the model has layers 0 to {layers[-1]}")
    seen: dict[str, Array] = {}
    checkpoint.model().forward(idx, watch=seen.__setitem__)
    attn_weights = {
        layer: seen[f"trf_blocks.{layer}.att.attn_weights"][0] for layer in layers if parsed.layer in (None, layer)
    }
    path = parsed.out or checkpoint.path.with_name("attention.png")
    plot_attention(attn_weights, _labels(idx[0].tolist(), tokenizer), path)
    print(f"wrote {path}")
    return 0


def _add_embeddings_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of a training run")
    parser.add_argument(
        "--tokens",
        nargs="+",
        metavar="TEXT",
        help=f"texts of one token each, like ' the' (default: the {MOST_TOKENS} commonest words, or all characters)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the picture, PNG (default: embeddings.png in DIR)")
    parser.add_argument("--vocab", metavar="FILE", help="file of GPT-2's ranks, where the model needs them")


def draw_embeddings(parsed: argparse.Namespace) -> int:
    """Draw tokens at their word vectors' places in two dimensions, found by principal component analysis."""
    checkpoint = load_checkpoint(parsed.checkpoint)
    tokenizer = _tokenizer_of(checkpoint, parsed.vocab)
    ids = [_single_token(text, tokenizer) for text in parsed.tokens or []] or _common_tokens(tokenizer)
    vectors = checkpoint.model().state_dict()["tok_emb.weight"][ids]
    path = parsed.out or checkpoint.path.with_name("embeddings.png")
    plot_word_vectors(vectors, _labels(ids, tokenizer), path)
    print(f"wrote {path}")
    return 0


def _single_token(text: str, tokenizer: Encoding) -> int:
    ids = text_to_token_ids(text, tokenizer)[0].tolist()
    if len(ids) != 1:
        raise InputError(f"{text!r} is {len(ids)} tokens of the tokenizer {tokenizer.name}; expected one")
    return ids[0]


def _common_tokens(tokenizer: Encoding) -> list[int]:
    """The first words among the tokens: byte-pair encoding numbers tokens by how common they are. Or all characters."""
    tokens = [tokenizer.decode_single_token_bytes(token_id) for token_id in range(tokenizer.n_vocab)]
    words = [token_id for token_id, token in enumerate(tokens) if re.fullmatch(rb" [A-Za-z]{3,}", token)]
    characters = [token_id for token_id, token in enumerate(tokens) if re.fullmatch(rb"[!-~]", token)]
    return words[:MOST_TOKENS] or characters


def _labels(ids: list[int], tokenizer: Encoding) -> list[str]:
    return [token_label(tokenizer.decode_single_token_bytes(token_id)) for token_id in ids]


# gradcheck


def _add_gradcheck_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of the random point and cotangents")


def check_gradients(parsed: argparse.Namespace) -> int:
    """Check every operation and a small whole model against complex step; exit status 1 when a gradient is wrong."""
    if parsed.seed < 0:
        raise InputError(f"--seed is {parsed.seed}; expected 0 or more")
    print(f"{'':32}{'gradient':<40}{'elements':>9}{'error':>10}   verdict (right: error <= {gradcheck.THRESHOLD:g})")
    counts = {True: 0, False: 0, None: 0}
    words: dict[bool | None, str] = {True: "right", False: "WRONG", None: "zero, as it should be"}
    for verdicts in gradcheck.check_all(parsed.seed):
        for verdict in verdicts:
            counts[verdict.passed] += 1
            print(
                f"{verdict.case:<32}{verdict.gradient:<40}{verdict.elements:>9}{verdict.error:>10.1e}   "
                f"{words[verdict.passed]}"
            )
    print(f"{counts[True]} right, {counts[None]} zero, {counts[False]} wrong")
    return 1 if counts[False] else 0


