"""The stages of the training, and what is measured after each.

A stage takes a model and returns a model. After each stage the model answers the questions of every part of the test.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple, TypeAlias

import numpy as np

from numpygpt.data import examples as learned
from numpygpt.data.batching import Pairs
from numpygpt.data.instructions import Prompt
from numpygpt.data.loader import DataLoader
from numpygpt.data.preferences import Pair
from numpygpt.decoding.answers import Answer
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.text2sql.draws import Draws
from numpygpt.text2sql.earnings import rewards
from numpygpt.text2sql.pairs import pairs_of
from numpygpt.text2sql.questions import END, TEST_PARTS, Example, test_examples, training_examples
from numpygpt.text2sql.scores import Scores, scores_of
from numpygpt.text2sql.writing import (
    LONGEST_QUERY,
    PHRASES,
    Sampler,
    batch_of,
    batches_of,
    example_of,
    query_of,
    token_ids,
    write,
)
from numpygpt.training.adamw import AdamW
from numpygpt.training.muon import Muon
from numpygpt.training.schedules import warmup_cosine
from numpygpt.training.step import training_step
from numpygpt.tuning.policies import Grpo
from numpygpt.tuning.preferences import Preferences
from numpygpt.tuning.rollouts import Drawing, with_group_advantages

#: The model. In a trial, it learned sooner with fixed sinusoids than with learned positions (docs/text2sql.md).
CONFIG = GPTConfig(
    vocab_size=256 + len(PHRASES),
    context_length=320,
    emb_dim=64,
    n_heads=4,
    n_layers=3,
    drop_rate=0.0,
    qkv_bias=False,
    position="sinusoidal",
)

#: Is told after each step how many are done, of how many, and what there is to see of it, by name.
Told: TypeAlias = Callable[[int, int, Mapping[str, float]], None]


def untold(done: int, steps: int, facts: Mapping[str, float]) -> None:
    """Nobody is told."""


class Trained(NamedTuple):
    """What a stage returns: the model, and in words what was done."""

    model: GPTModel
    note: str


class Stage(NamedTuple):
    """A stage: its name, and what it does to a model."""

    name: str
    train: Callable[[GPTModel, Told], Trained]


class Measured(NamedTuple):
    """A model after a stage.

    stage     the name of the stage
    scores    {part of the test: scores}
    seconds   how long the stage took, without the measuring
    note      in words what was done
    """

    stage: str
    model: GPTModel
    scores: Mapping[str, Scores]
    seconds: float
    note: str


class Supervised(NamedTuple):
    """The settings of the first stage: next-token prediction of the reference queries.

    steps, batch_size   how long it takes, and how many examples a step has; no example is used twice
    lr, rest_lr_scale   Muon's learning rate after the warm-up, and that of embeddings and head as a multiple of it
    seed                draws the examples and their order
    """

    steps: int = 1600
    batch_size: int = 16
    lr: float = 0.02
    rest_lr_scale: float = 0.2
    warmup_steps: int = 30
    clip: float = 1.0
    weight_decay: float = 0.01
    seed: int = 123


def supervised(settings: Supervised, model: GPTModel, told: Told = untold) -> Trained:
    """Train the model, in place, to write the reference query after the prompt.

    Raises InputError, with the weights as they were before that step, if the loss is not finite.
    """
    examples = training_examples(settings.steps * settings.batch_size, settings.seed)
    optimizer = Muon(
        model, lr=settings.lr, weight_decay=settings.weight_decay, rest_lr_scale=settings.rest_lr_scale
    )
    losses = []
    for step, batch in enumerate(batches_of(examples, settings.batch_size, Draws(settings.seed))):
        optimizer.lr = warmup_cosine(
            step,
            peak_lr=settings.lr,
            warmup_steps=settings.warmup_steps,
            total_steps=settings.steps,
            min_lr=settings.lr / 20,
        )
        losses.append(training_step(model, optimizer, [batch_of(batch)], max_norm=settings.clip).loss)
        told(step + 1, settings.steps, {"loss": losses[-1]})
    last = float(np.mean(losses[-50:])) if losses else float("nan")
    return Trained(model, f"{settings.steps} steps, at the end {last:.3f} nats a token")


class Preferred(NamedTuple):
    """The settings of the second stage: DPO on pairs of the model's own queries (`numpygpt.text2sql.pairs`).

    examples, samples   how many new examples the model answers, and how often each
    temperature         of the softmax that these queries are drawn from
    epochs              how often each pair is learned from
    beta                of DPO
    """

    examples: int = 400
    samples: int = 4
    temperature: float = 0.7
    epochs: int = 1
    batch_size: int = 8
    lr: float = 5e-5
    beta: float = 0.1
    clip: float = 1.0
    seed: int = 456


def preferred(settings: Preferred, model: GPTModel, told: Told = untold) -> Trained:
    """Train the model, in place, to prefer queries that execute correctly. Errors as `supervised`."""
    examples = training_examples(settings.examples, settings.seed)
    sample = Sampler(model, settings.temperature, TorchGenerator(settings.seed))
    found = pairs_of(examples, sample, settings.samples)
    pairs = Pairs([
        until_they_differ(example_of(pair.prompt, pair.chosen), example_of(pair.prompt, pair.rejected))
        for pair in found
    ])
    if not found:
        return Trained(model, "the model wrote nothing wrong, so there was no pair to learn from")
    reference = GPTModel.from_state_dict(model.config, model.state_dict())
    goal, optimizer = Preferences(reference, settings.beta), AdamW(model, lr=settings.lr, weight_decay=0.0)
    loader = DataLoader(pairs, min(settings.batch_size, len(found)), shuffle=True, rng=settings.seed)
    steps, losses = settings.epochs * len(loader), []
    for _ in range(settings.epochs):
        for batch in loader:
            losses.append(training_step(model, optimizer, [batch], goal=goal, max_norm=settings.clip).loss)
            told(len(losses), steps, {"loss": losses[-1]})
    last = float(np.mean(losses[-10:]))
    words = f"{len(found)} pairs from {settings.examples} questions, {steps} steps, at the end {last:.3f} nats a pair"
    return Trained(model, words)


def until_they_differ(chosen: learned.Example, rejected: learned.Example) -> Pair:
    """A pair of the two up to and with the first token in which they differ.

    Most of what follows a mistake is right, and to make it less likely harms the model (docs/text2sql.md). Lai et al.
    2024 (arXiv:2406.18629) prefer single steps for the same reason.
    """
    shorter = min(len(chosen.token_ids), len(rejected.token_ids))
    differ = chosen.token_ids[:shorter] != rejected.token_ids[:shorter]
    end = int(differ.argmax()) + 1
    return Pair(*(learned.Example(whole.token_ids[:end], whole.answer[:end]) for whole in (chosen, rejected)))


class Rewarded(NamedTuple):
    """The settings of the third stage: GRPO with execution as the reward (`numpygpt.text2sql.earnings`).

    questions, group   in a step, and queries that the model writes for each
    beta               how strongly the model is held to the one that the stage began with
    """

    steps: int = 60
    questions: int = 8
    group: int = 8
    temperature: float = 1.0
    lr: float = 1e-4
    beta: float = 0.02
    clip: float = 1.0
    seed: int = 789


def rewarded(settings: Rewarded, model: GPTModel, told: Told = untold) -> Trained:
    """Train the model, in place, on its own queries by what they earn. Errors as `supervised`."""
    examples = training_examples(settings.steps * settings.questions, settings.seed)
    prompts = [Prompt(token_ids(example.prompt), {"example": example}) for example in examples]
    reference = GPTModel.from_state_dict(model.config, model.state_dict())
    drawing = Drawing(earned, ord(END), LONGEST_QUERY, settings.temperature, settings.group, reference)
    goal, optimizer = Grpo(settings.temperature, beta=settings.beta), AdamW(model, lr=settings.lr, weight_decay=0.0)
    rng, means = TorchGenerator(settings.seed), []
    for step in range(settings.steps):
        some = prompts[step * settings.questions : (step + 1) * settings.questions]
        drawn = with_group_advantages(drawing.draw(model, some, rng), settings.group)
        training_step(model, optimizer, [drawn], goal=goal, max_norm=settings.clip)
        means.append(float(drawn.rewards.mean()))
        told(step + 1, settings.steps, {"reward": means[-1]})
    first, last = (float(np.mean(some)) for some in (means[:10], means[-10:]))
    return Trained(model, f"{settings.steps} steps, the mean reward from {first:.3f} to {last:.3f}")


def earned(asked: Sequence[Prompt], drawn: Sequence[Answer]) -> list[float]:
    """What each query earns. The queries for one question stand beside each other."""
    found: list[float] = []
    for _, group in groupby(zip(asked, drawn, strict=True), key=lambda pair: id(pair[0])):
        pairs = list(group)
        found += rewards(pairs[0][0].record["example"], [query_of(answer.token_ids) for _, answer in pairs]).tolist()
    return found


def stages_of(
    first: Supervised, second: Preferred | None = None, third: Rewarded | None = None
) -> list[Stage]:
    """The stages, in order."""
    return [
        Stage("supervised", partial(supervised, first)),
        Stage("DPO", partial(preferred, second or Preferred())),
        Stage("GRPO", partial(rewarded, third or Rewarded())),
    ]


def tests_of(count: int, seed: int) -> dict[str, list[Example]]:
    """So many held-out examples of each part of the test."""
    return {part: test_examples(part, count, seed) for part in TEST_PARTS}


def measured(model: GPTModel, tests: Mapping[str, Sequence[Example]]) -> dict[str, Scores]:
    """The scores of the model on each part of the test; it takes the likeliest byte each time."""
    return {
        part: scores_of(examples, write(model, [example.prompt for example in examples]))
        for part, examples in tests.items()
    }


def run_stages(
    model: GPTModel, stages: Sequence[Stage], tests: Mapping[str, Sequence[Example]], told: Mapping[str, Told]
) -> Iterator[Measured]:
    """The model after each stage, as soon as it is measured.

    told   {name of a stage: what is told of its steps}
    """
    for stage in stages:
        began = time.perf_counter()
        model, note = stage.train(model, told.get(stage.name, untold))
        seconds = time.perf_counter() - began
        yield Measured(stage.name, model, measured(model, tests), seconds, note)
