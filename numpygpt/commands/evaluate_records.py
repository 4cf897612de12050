"""What `numpygpt evaluate` says of a tuned model by records: labeled texts, answers, pairs, and prompts."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.adapt.saving import model_of
from numpygpt.commands.trained import finetune_options_of, template_for
from numpygpt.data.batching import Examples, LabeledTexts, Pairs
from numpygpt.data.examples import TOO_LONG, Kept, Limit
from numpygpt.data.instructions import read_instructions, read_prompts
from numpygpt.data.labels import read_labeled_texts
from numpygpt.data.preferences import read_preferences
from numpygpt.data.tokenizer import Encoding
from numpygpt.decoding.answers import Answer, answers
from numpygpt.errors import InputError
from numpygpt.evaluation.answers import score_answers
from numpygpt.evaluation.classes import score_classes
from numpygpt.evaluation.pairs import PairScore, score_preferences, score_rewards
from numpygpt.evaluation.scores import LogitsOf, progress_bar
from numpygpt.evaluation.wins import Writer, score_wins
from numpygpt.formats.kinds import read_model
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import saved_config
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import SavedSections
from numpygpt.tuning.rollouts import reward_of

Table = list[tuple[str, str]]
#: The defaults of options that only some protocols have.
BETA, MAX_NEW_TOKENS, SEED = 0.1, 64, 123


class Asked(NamedTuple):
    """A model, its files and tokenizer, the command's options, and how the logits of any model are computed."""

    parsed: argparse.Namespace
    checkpoint: SavedSections
    model: GPTModel
    tokenizer: Encoding
    logits_of: Callable[[GPTModel], LogitsOf]


class Told(NamedTuple):
    """Lines, a table of figures, and perhaps a larger table with a head."""

    lines: list[str]
    figures: Table
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def add_record_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of these protocols; `evaluate` says which goes with which."""
    add = parser.add_argument
    add("--class-names", nargs="+", metavar="NAME", help="names of the classes, by number (default: those of its run)")
    add("--too-long", choices=TOO_LONG, help="what happens to a record longer than the context (default: refuse)")
    add("--reference", type=Path, metavar="DIR", help="with --pairs: the model that a policy's rewards are relative to")
    add("--beta", type=float, help=f"of these rewards (default: {BETA}, or that of its run)")
    add("--against", type=Path, metavar="DIR", help="with --prompts: the other model")
    add("--reward-model", type=Path, metavar="DIR", help="with --prompts: the model that judges the answers")
    add("--max-new-tokens", type=int, help=f"the longest answer (default: {MAX_NEW_TOKENS})")
    add("--temperature", type=float, help="of the answers (default: 0, always the likeliest token)")
    add("--seed", type=int, help=f"of answers at a temperature above 0 (default: {SEED})")


# The protocols


def of_labels(asked: Asked) -> Told:
    """How well the classes of labeled texts are told."""
    path, classes = asked.parsed.labels, asked.model.config.scores
    names = _class_names(asked, classes)
    kept = read_labeled_texts(path, names, asked.tokenizer, _limit(asked))
    texts = LabeledTexts(kept.items)
    with progress_bar(len(texts), "text") as advance:
        score = score_classes(
            asked.logits_of(asked.model), texts, classes, batch_size=asked.parsed.batch_size, advance=advance
        )
    most = score.counts.sum(axis=1).max() / len(texts)
    lines = [
        f"{path}: {len(texts):,} texts; always naming the most frequent class would be right in {most:.4f}",
        *kept.notes,
        "the class with the highest score at the last token; a row of the second table has the texts of one class",
    ]
    rows = [
        (name, *(f"{count:,}" for count in counts), "" if recall is None else f"{recall:.4f}")
        for name, counts, recall in zip(names, score.counts, score.recalls, strict=True)
    ]
    figures = [("accuracy", f"{score.accuracy:.4f}"), ("loss, nats a text", f"{score.loss:.4f}")]
    return Told(lines, figures, ("class", *names, "found"), tuple(rows))


def of_answers(asked: Asked) -> Told:
    """How likely the answers of instruction records are."""
    path = asked.parsed.answers
    kept = _read(asked, read_instructions, path)
    examples = Examples(kept.items)
    with progress_bar(len(examples), "record") as advance:
        found = score_answers(
            asked.logits_of(asked.model), examples, batch_size=asked.parsed.batch_size, advance=advance
        )
    lines = [
        f"{path}: {len(examples):,} records, {found.score.tokens:,} tokens of answers",
        *kept.notes,
        "each token of an answer and the one that ends it, after all that stands before; no prompt is scored",
    ]
    return Told(lines, [
        ("loss, nats a token", f"{found.score.loss:.4f}"),
        ("perplexity a token", f"{found.score.perplexity:.6g}"),
        ("accuracy of the next token", f"{found.accuracy:.4f}"),
    ])  # fmt: skip


def of_pairs(asked: Asked) -> Told:
    """How often a reward model, or a model that writes, prefers the better of two answers."""
    path = asked.parsed.pairs
    score = _of_policy if asked.model.config.classes is None else _of_reward_model
    _check_beta(asked.parsed)
    kept = _read(asked, read_preferences, path)
    how, figures = score(asked, Pairs(kept.items))
    return Told([f"{path}: {len(kept.items):,} pairs; equal answers count half", *kept.notes, how], figures)


def _check_beta(parsed: argparse.Namespace) -> None:
    if parsed.beta is not None and not (parsed.beta > 0 and math.isfinite(parsed.beta)):
        raise InputError(f"--beta is {parsed.beta:g}; expected a positive number")


def _of_reward_model(asked: Asked, pairs: Pairs) -> tuple[str, Table]:
    for name in ("reference", "beta"):
        if getattr(asked.parsed, name) is not None:
            raise InputError(f"--{name} has no meaning for a reward model; leave it out")
    with progress_bar(len(pairs), "pair") as advance:
        score = score_rewards(
            asked.logits_of(asked.model), pairs, batch_size=asked.parsed.batch_size, advance=advance
        )
    return "the score of a reward model at the last token of each answer", [
        ("accuracy", f"{score.accuracy:.4f}"), ("mean margin", f"{score.margin:.4f}"), *_loss(score),
    ]  # fmt: skip


def _of_policy(asked: Asked, pairs: Pairs) -> tuple[str, Table]:
    parsed, run = asked.parsed, finetune_options_of(asked.checkpoint)
    if parsed.beta is not None and parsed.reference is None:
        raise InputError("--beta is for rewards relative to a reference; leave it out, or name one with --reference")
    of_run = BETA if run is None or run.beta is None else run.beta
    beta: float = of_run if parsed.beta is None else parsed.beta
    reference = None if parsed.reference is None else asked.logits_of(_other(asked, "reference"))
    with progress_bar(len(pairs) * (1 if reference is None else 2), "pair") as advance:
        score = score_preferences(
            asked.logits_of(asked.model), pairs, reference=reference, beta=beta, batch_size=parsed.batch_size,
            advance=advance,
        )  # fmt: skip
    figures = [
        ("accuracy by log-probabilities", f"{score.log_probs.accuracy:.4f}"),
        ("mean margin of log-probabilities, nats", f"{score.log_probs.margin:.4f}"),
    ]
    if score.rewards is not None:
        figures += [
            ("accuracy by rewards", f"{score.rewards.accuracy:.4f}"),
            ("mean margin of rewards", f"{score.rewards.margin:.4f}"),
            *_loss(score.rewards),
        ]
    relative = "" if reference is None else f"; a reward is {beta:g} times what it is above that of {parsed.reference}"
    return f"the log-probability of each answer, the sum over its tokens{relative}", figures


def _loss(score: PairScore) -> Table:
    return [("loss, nats a pair", f"{score.loss:.4f}")]


def of_prompts(asked: Asked) -> Told:
    """How often the model's answers are judged better than another's."""
    parsed, path = asked.parsed, asked.parsed.prompts
    for name, what in (("against", "the other model"), ("reward_model", "the model that judges")):
        if getattr(parsed, name) is None:
            raise InputError(f"--{name.replace('_', '-')} is missing; --prompts needs {what}, a folder")
    if parsed.backend != "numpy":
        raise InputError("--prompts has answers written, which NumPy does alone; leave out --backend")
    longest = MAX_NEW_TOKENS if parsed.max_new_tokens is None else parsed.max_new_tokens
    other, judge = _other(asked, "against"), reward_of(_other(asked, "reward_model"))
    room = min(model.config.context_length for model in (asked.model, other)) - longest
    if longest < 1 or room < 2:
        raise InputError(
            f"--max-new-tokens is {longest}; expected at least 1, and room for a prompt in a context of "
            f"{room + longest} tokens"
        )
    kept = _read(asked, read_prompts, path, tokens=room)
    writer, other_writer = (_writer(asked, model, longest) for model in (asked.model, other))
    with progress_bar(len(kept.items), "prompt") as advance:
        score = score_wins(
            writer, other_writer, judge, kept.items, batch_size=parsed.batch_size, advance=advance
        )
    drawn = "always the likeliest token" if not parsed.temperature else f"drawn at temperature {parsed.temperature:g}"
    lines = [
        f"{path}: {len(kept.items):,} prompts, each answered once by {asked.checkpoint.path} and by {parsed.against}",
        *kept.notes,
        f"answers of at most {longest} tokens, {drawn}, judged by {parsed.reward_model}; equal rewards count half",
    ]
    return Told(lines, [
        ("win rate", f"{score.rate:.4f}"),
        ("equal rewards", f"{score.ties:,}"),
        ("mean reward", f"{score.reward:.4f}"),
        ("mean reward of the other", f"{score.other_reward:.4f}"),
    ])  # fmt: skip


def _writer(asked: Asked, model: GPTModel, longest: int) -> Writer:
    """Each model draws from a generator of its own, so that neither changes what the other draws."""
    parsed = asked.parsed
    end_id = template_for(asked.checkpoint, asked.tokenizer, parsed.template).end_id(asked.tokenizer)
    rng = TorchGenerator(SEED if parsed.seed is None else parsed.seed)

    def write(prompts: Any) -> list[Answer]:
        ids = [prompt.token_ids for prompt in prompts]
        return answers(model, ids, longest, temperature=parsed.temperature or 0.0, end_id=end_id, rng=rng)

    return write


# What they need


def _class_names(asked: Asked, classes: int) -> tuple[str, ...]:
    """The names of the classes: those given, or those of the run, or their numbers."""
    run = finetune_options_of(asked.checkpoint)
    of_run = run.class_names if run is not None and run.objective == "classify" else map(str, range(classes))
    names = tuple(asked.parsed.class_names or of_run)
    if len(names) != classes:
        raise InputError(f"--class-names has {len(names)} names; expected {classes}, one of each class of the model")
    return names


def _limit(asked: Asked, tokens: int | None = None) -> Limit:
    run = finetune_options_of(asked.checkpoint)
    of_run = None if run is None or run.reads_text else run.settings.get("too_long")
    context = asked.model.config.context_length
    return Limit(context if tokens is None else tokens, asked.parsed.too_long or of_run or "refuse")


def _read(asked: Asked, reader: Callable[..., Kept], path: Path, tokens: int | None = None) -> Kept:
    template = template_for(asked.checkpoint, asked.tokenizer, asked.parsed.template)
    return reader(path, template, asked.tokenizer, _limit(asked, tokens))


def _other(asked: Asked, option: str) -> GPTModel:
    """The model of another option. InputError, which names it, if it cannot be read or has another vocabulary."""
    path, name = getattr(asked.parsed, option), option.replace("_", "-")
    try:
        saved = read_model(path)
        config = saved_config(saved)
        if option != "reward_model" and config.classes is not None:
            raise InputError(f"{saved.path} scores {_scored(config)}; expected a model that writes")
        model = model_of(saved)
    except InputError as error:
        raise InputError(f"--{name}: {error}") from error
    ours, theirs = asked.model.config.vocab_size, config.vocab_size
    if ours != theirs:
        raise InputError(f"--{name} has a vocabulary of {theirs} tokens; expected {ours}, that of --checkpoint")
    return model


def refuse_another_head(protocol: str, saved: SavedSections) -> None:
    """Raise InputError if the protocol is for another kind of head than the saved model's. Its weights are not read."""
    config = saved_config(saved)
    classes = config.classes
    if protocol == "labels":
        expected = None if classes is not None and classes > 1 else "a classifier for --labels"
    elif protocol == "pairs":
        expected = None if classes in (None, 1) else "a reward model or a model that writes for --pairs"
    else:
        expected = None if classes is None else (
            f"a model that writes for --{protocol.replace('_', '-')}; a classifier is evaluated with --labels, and a "
            f"reward model with --pairs"
        )
    if expected is not None:
        raise InputError(f"{saved.path} scores {_scored(config)}; expected {expected}")


def _scored(config: GPTConfig) -> str:
    """What a head scores, in words."""
    classes = config.classes
    return "tokens" if classes is None else "answers, as a reward model" if classes == 1 else f"{classes} classes"
