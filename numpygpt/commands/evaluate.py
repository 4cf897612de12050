"""numpygpt evaluate: how well a model predicts: texts, last words, endings; and what a tuned model has learned."""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np

from numpygpt.commands.evaluate_records import (
    Asked,
    Told,
    add_record_options,
    of_answers,
    of_labels,
    of_pairs,
    of_prompts,
    refuse_another_head,
)
from numpygpt.commands.model_options import flag
from numpygpt.commands.tables import print_table
from numpygpt.commands.trained import (
    add_adapter_options,
    add_checkpoint_options,
    add_template_option,
    origin_of,
    tokenizer_of,
    trained_model,
)
from numpygpt.data.texts import read_text
from numpygpt.data.tokenizer import text_to_token_ids
from numpygpt.errors import InputError
from numpygpt.evaluation.lambada import read_passages, score_lambada
from numpygpt.evaluation.multiple_choice import read_questions, score_choices
from numpygpt.evaluation.perplexity import score_text
from numpygpt.evaluation.scores import LogitsOf, progress_bar
from numpygpt.formats.kinds import read_model
from numpygpt.model.gpt import GPTModel
from numpygpt.model.sizes import check_memory, scoring_bytes
from numpygpt.shapes import Array

#: The group of entry points by which other packages compute logits. Each is a function of a NumPy model and the name of
#: a device, and gives a `LogitsOf`.
BACKENDS = "numpygpt.logits"

#: The options that have a meaning with some protocols only, and with which.
GOES_WITH = {
    "stride": ("text",),
    "class_names": ("labels",),
    "template": ("answers", "pairs", "prompts"),
    "too_long": ("labels", "answers", "pairs", "prompts"),
    **dict.fromkeys(("reference", "beta"), ("pairs",)),
    **dict.fromkeys(("against", "reward_model", "max_new_tokens", "temperature", "seed"), ("prompts",)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_checkpoint_options(parser)
    add_adapter_options(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    add = what.add_argument
    add("--text", type=Path, metavar="FILE", help="loss, perplexity and bits a byte of this text")
    add("--lambada", type=Path, metavar="FILE", help="the last word of each passage: a text a line, or JSON lines")
    add("--multiple-choice", type=Path, metavar="FILE", help="the right ending of each question: HellaSwag's lines")
    add("--labels", type=Path, metavar="FILE", help="the class of each labeled text, by a classifier")
    add("--answers", type=Path, metavar="FILE", help="loss of the answers of instruction records")
    add("--pairs", type=Path, metavar="FILE", help="the preferred of two answers, by a reward model or a policy")
    add("--prompts", type=Path, metavar="FILE", help="win rate against another model, as a reward model judges")
    parser.add_argument("--stride", type=int, help="with --text: tokens from window to window (default: half a window)")
    parser.add_argument("--batch-size", type=int, default=1, help="sequences that the model reads at a time")
    parser.add_argument("--backend", choices=("numpy", "torch"), default="numpy", help="who computes the logits")
    parser.add_argument("--device", help="with --backend torch: cpu, cuda, cuda:1, mps (default: cuda if there is one)")
    add_template_option(parser)
    add_record_options(parser)


def run(parsed: argparse.Namespace) -> int:
    """Score a trained model by one of the protocols."""
    if parsed.batch_size < 1:
        raise InputError(f"--batch-size is {parsed.batch_size}; expected 1 or more")
    name, protocol = next(each for each in PROTOCOLS.items() if getattr(parsed, each[0]) is not None)
    _refuse_useless_options(parsed, name)
    checkpoint = read_model(parsed.checkpoint)
    tokenizer = tokenizer_of(checkpoint, parsed.vocab)
    refuse_another_head(name, checkpoint)
    print(*origin_of(checkpoint), sep="\n", flush=True)  # an output that cannot be written is found out before the work
    model = trained_model(checkpoint, parsed)
    told = protocol(Asked(parsed, checkpoint, model, tokenizer, partial(_logits_of, parsed)))
    print(*told.lines, sep="\n")
    print_table("lr", told.figures)
    if told.rows:
        print()
        print_table("l" + "r" * (len(told.head) - 1), told.rows, head=told.head)
    return 0


def _refuse_useless_options(parsed: argparse.Namespace, protocol: str) -> None:
    for name, protocols in GOES_WITH.items():
        if getattr(parsed, name) is not None and protocol not in protocols:
            raise InputError(
                f"{flag(name)} has no meaning here; leave it out (it goes with {' or '.join(map(flag, protocols))})"
            )
    if parsed.device is not None and parsed.backend != "torch":
        raise InputError("--device has no meaning here; leave it out (it goes with --backend torch)")


def _logits_of(parsed: argparse.Namespace, model: GPTModel) -> LogitsOf:
    """What computes the logits. It raises InputError for a batch whose logits this machine cannot hold."""
    computed = _backend(parsed, model)

    def logits_of(ids: Array) -> Array:
        rows, tokens = ids.shape
        needed = scoring_bytes(model.config, rows, tokens, model.dtype)
        check_memory(needed, f"a batch (--batch-size) of {rows} sequences of {tokens} tokens")
        return computed(ids)

    return logits_of


def _backend(parsed: argparse.Namespace, model: GPTModel) -> LogitsOf:
    if parsed.backend == "numpy":
        return model
    found = entry_points(group=BACKENDS, name=parsed.backend)
    if not found:
        raise InputError(f"no installed package computes with {parsed.backend}; install numpygpt anew")
    logits_of: LogitsOf = next(iter(found)).load()(model, parsed.device)
    return logits_of


def _of_text(asked: Asked) -> Told:
    parsed, model, tokenizer = asked.parsed, asked.model, asked.tokenizer
    text = read_text(parsed.text)
    ids = text_to_token_ids(text, tokenizer)[0]
    length = model.config.context_length
    stride = max(1, length // 2) if parsed.stride is None else parsed.stride
    logits_of = asked.logits_of(model)
    with progress_bar(len(ids) - 1, "token") as advance:
        score = score_text(
            logits_of, ids, length=length, stride=stride, batch_size=parsed.batch_size, advance=advance
        )
    lines = [
        f"{parsed.text}: {len(text.encode()):,} bytes, {len(ids):,} tokens, all but the first of which are scored",
        f"windows of {length} tokens, one every {stride}; each token is scored once, in the first window that has it",
    ]
    return Told(lines, [
        ("loss, nats a token", f"{score.loss:.4f}"),
        ("perplexity a token", f"{score.perplexity:.6g}"),
        ("perplexity a word", f"{score.perplexity_a_word(text):.6g}"),
        ("bits a byte", f"{score.bits_a_byte(text):.4f}"),
    ])  # fmt: skip


def _of_last_words(asked: Asked) -> Told:
    parsed, model, tokenizer = asked.parsed, asked.model, asked.tokenizer
    passages = read_passages(parsed.lambada)
    logits_of = asked.logits_of(model)
    with progress_bar(len(passages), "passage") as advance:
        score = score_lambada(
            logits_of,
            passages,
            tokenizer,
            context_length=model.config.context_length,
            batch_size=parsed.batch_size,
            advance=advance,
        )
    lines = [
        f"{parsed.lambada}: {score.passages:,} passages",
        "the last word, with the space before it, after all that stands before; right if each of its tokens is the "
        "likeliest one",
    ]
    figures = [("accuracy", f"{score.accuracy:.4f}"), ("perplexity of the word", f"{score.perplexity:.6g}")]
    return Told(lines, figures)


def _of_choices(asked: Asked) -> Told:
    parsed, model, tokenizer = asked.parsed, asked.model, asked.tokenizer
    questions = read_questions(parsed.multiple_choice)
    logits_of = asked.logits_of(model)
    with progress_bar(sum(len(question.endings) for question in questions), "ending") as advance:
        score = score_choices(
            logits_of,
            questions,
            tokenizer,
            context_length=model.config.context_length,
            batch_size=parsed.batch_size,
            advance=advance,
        )
    chance = np.mean([1 / len(question.endings) for question in questions])
    lines = [
        f"{parsed.multiple_choice}: {score.questions:,} questions; choosing blindly would be right in {chance:.4f}",
        "the ending, with a space before it, after the text; chosen is the likeliest one, and normalized the one whose "
        "tokens are likeliest on average",
    ]
    figures = [("accuracy", f"{score.accuracy:.4f}"), ("normalized accuracy", f"{score.normalized_accuracy:.4f}")]
    return Told(lines, figures)


#: The protocols, each by the option that has its file.
PROTOCOLS: dict[str, Callable[[Asked], Told]] = {
    "text": _of_text,
    "lambada": _of_last_words,
    "multiple_choice": _of_choices,
    "labels": of_labels,
    "answers": of_answers,
    "pairs": of_pairs,
    "prompts": of_prompts,
}
