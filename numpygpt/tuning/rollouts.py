"""Answers that a model has drawn, and what they were worth: what a policy learns from.

    inputs, targets       (B, T)   prompt and answer; targets of the answer's tokens, IGNORE_INDEX elsewhere
    weights               (B, T)   True where a target counts
    log_probs             (B, T)   log π of each token when it was drawn; 0 elsewhere, as in all that follow
    reference_log_probs   (B, T)   log ρ of the same tokens by the reference; log π if there is none
    advantages            (B, T)   how much better each token was than expected
    values, returns       (B, T)   what the critic expected, and what came (PPO only)
    rewards               (B)      of the answers, as they were judged
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from numpygpt.data.batching import TokenBatch, padded
from numpygpt.data.examples import Example
from numpygpt.data.instructions import Prompt
from numpygpt.decoding.answers import Answer, answers
from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.ops import token_log_probs
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import IGNORE_INDEX, Array, Bool, Integer
from numpygpt.training.advantages import generalized, of_groups, penalized_rewards, whitened
from numpygpt.tuning.classes import last_scores
from numpygpt.tuning.preferences import refuse_another_vocabulary
from numpygpt.tuning.through import Plain, logits_of

#: Judges answers to prompts: a number for each, the higher the better.
Reward = Callable[[Sequence[Prompt], Sequence[Answer]], Any]


class Drawn(NamedTuple):
    """A batch, as above."""

    inputs: Integer[Array, "B T"]
    targets: Integer[Array, "B T"]
    log_probs: Array
    reference_log_probs: Array
    advantages: Array
    values: Array
    returns: Array
    rewards: Array

    @property
    def weights(self) -> Bool[Array, "B T"]:
        """Where a target counts."""
        return self.targets != IGNORE_INDEX

    @property
    def options(self) -> dict[str, Any]:
        """What a forward has to be told of the rows: nothing."""
        return {}


def facts_of(batches: Sequence[Drawn]) -> dict[str, float]:
    """What a person wants to see of the micro-batches of a step.

    The mean reward and length of their answers, and the mean distance of their tokens from the reference, in nats.
    """
    answered = sum(len(drawn.rewards) for drawn in batches)
    tokens = sum(int(drawn.weights.sum()) for drawn in batches)
    reward = sum(float(drawn.rewards.sum()) for drawn in batches)
    apart = sum(float((drawn.log_probs - drawn.reference_log_probs).sum()) for drawn in batches)
    return {"reward": reward / answered, "length": tokens / answered, "kl": apart / max(1, tokens)}


class Judged(NamedTuple):
    """Prompts, an answer to each, and the rewards (N) of the answers."""

    prompts: list[Prompt]
    answers: list[Answer]
    rewards: Array


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn and judged.

    reward           judges them
    end_id           the token that ends an answer; None: there is none
    max_new_tokens   the longest answer
    temperature      of the softmax that they are drawn from
    group            answers to each prompt
    reference        the model that the policy is held near; None: none
    """

    reward: Reward
    end_id: int | None
    max_new_tokens: int
    temperature: float = 1.0
    group: int = 1
    reference: GPTModel | None = None

    def judged(self, model: GPTModel, prompts: Sequence[Prompt], rng: TorchGenerator) -> "Judged":
        """Answers to the prompts, `group` to each beside each other, and their rewards.

        Raises InputError for prompts without room for an answer, and for rewards that are not one finite number each.
        """
        asked = [prompt for prompt in prompts for _ in range(self.group)]
        drawn = answers(
            model, [prompt.token_ids for prompt in asked], self.max_new_tokens, temperature=self.temperature,
            end_id=self.end_id, rng=rng,
        )  # fmt: skip
        return Judged(asked, drawn, checked_rewards(self.reward(asked, drawn), len(drawn)))

    def draw(self, model: GPTModel, prompts: Sequence[Prompt], rng: TorchGenerator) -> Drawn:
        """The batch of such answers, without advantages. InputError as `judged`."""
        asked, drawn, rewards = self.judged(model, prompts, rng)
        rows = rows_of([prompt.token_ids for prompt in asked], drawn)
        none = np.zeros(rows.inputs.shape, model.dtype)
        log_probs = none.copy()
        log_probs[rows.targets != IGNORE_INDEX] = np.concatenate([answer.log_probs for answer in drawn])
        reference = log_probs if self.reference is None else self.log_probs_of(self.reference, rows)
        return Drawn(rows.inputs, rows.targets, log_probs, reference, none, none, none, rewards)

    def log_probs_of(self, model: GPTModel, rows: TokenBatch) -> Array:
        """Log-probabilities (B, T) of the targets by a model, at the temperature of the drawing."""
        refuse_another_vocabulary(model, rows, "reference")
        return token_log_probs.forward(logits_of(model, rows) / self.temperature, rows.targets)[0]


def with_group_advantages(drawn: Drawn, group: int, *, scale: bool = True) -> Drawn:
    """For GRPO: each token has the advantage of its answer in the group (`advantages.of_groups`)."""
    each = of_groups(drawn.rewards, group, scale=scale)
    return drawn._replace(advantages=(each[:, np.newaxis] * drawn.weights).astype(drawn.log_probs.dtype))


def with_values(
    batches: Sequence[Drawn], critic: GPTModel, *, beta: float, gamma: float = 1.0, lam: float = 0.95
) -> list[Drawn]:
    """For PPO: the critic's values, and advantages and returns by them, for the micro-batches of a step.

    The rewards of tokens are those of `advantages.penalized_rewards`. The advantages are those of
    `advantages.generalized`, whitened over all tokens of all micro-batches. So they do not depend on where the batch
    is cut.
    """
    valued = [_with_values(drawn, critic, beta, gamma, lam) for drawn in batches]
    shapes = [drawn.inputs.shape for drawn in valued]
    advantages, weights = (
        np.concatenate([getattr(drawn, name).ravel() for drawn in valued])[np.newaxis]
        for name in ("advantages", "weights")
    )
    ends = np.cumsum([rows * tokens for rows, tokens in shapes])[:-1]
    parts = np.split(whitened(advantages, weights)[0].astype(critic.dtype), ends)
    return [
        drawn._replace(advantages=part.reshape(shape)) for drawn, part, shape in zip(valued, parts, shapes, strict=True)
    ]


def _with_values(drawn: Drawn, critic: GPTModel, beta: float, gamma: float, lam: float) -> Drawn:
    """One micro-batch with values, returns, and advantages that are not whitened yet, in float64."""
    weights = drawn.weights
    rewards = penalized_rewards(drawn.rewards, drawn.log_probs, drawn.reference_log_probs, weights, beta=beta)
    values = logits_of(critic, Plain(drawn.inputs))[..., 0] * weights
    found = generalized(rewards, values, weights, gamma=gamma, lam=lam)
    return drawn._replace(values=values, returns=found.returns.astype(values.dtype), advantages=found.advantages)


def rows_of(prompts: Sequence[Integer[Array, "_"]], drawn: Sequence[Answer]) -> TokenBatch:
    """Each prompt with its answer after it, whose tokens alone are targets."""
    examples = []
    for prompt, answer in zip(prompts, drawn, strict=True):
        token_ids = np.concatenate([np.asarray(prompt, np.int64), answer.token_ids])
        examples.append(Example(token_ids, np.arange(len(token_ids)) >= len(prompt)))
    return padded(examples)


def reward_of(model: GPTModel) -> Reward:
    """A reward model as a reward: its score of prompt and answer. InputError for a model that has no single score."""
    if model.config.classes != 1:
        raise InputError(
            f"a reward model has a head of one row; this model scores {model.config.scores} "
            f"{'tokens' if model.config.classes is None else 'classes'}: train one with --objective reward"
        )

    def judged(prompts: Sequence[Prompt], drawn: Sequence[Answer]) -> Array:
        rows = rows_of([prompt.token_ids for prompt in prompts], drawn)
        refuse_another_vocabulary(model, rows, "reward model")
        return last_scores(model, rows.inputs, rows.lengths)[:, 0]

    return judged


def checked_rewards(rewards: Any, count: int) -> Array:
    """The rewards in float64. InputError unless they are so many finite numbers."""
    found = np.asarray(rewards, np.float64)
    if found.shape != (count,):
        raise InputError(f"the reward gave an array of shape {found.shape}; expected ({count},), a number an answer")
    wrong = np.flatnonzero(~np.isfinite(found))
    if wrong.size:
        raise InputError(f"the reward of answer {wrong[0]} is {found[wrong[0]]}; expected a finite number")
    return found


def best_of(
    model: GPTModel, prompts: Sequence[Prompt], drawing: Drawing, rng: TorchGenerator
) -> list[tuple[Prompt, Answer, float]]:
    """Rejection sampling: of `drawing.group` answers to each prompt, the one of the highest reward, which is with it.

    A model that is tuned on them (`numpygpt.tuning.answers`) learns to give the best of its own answers (Touvron et al.
    2023, arXiv:2307.09288, section 3.2.3). Errors as `Drawing.judged`.
    """
    asked, drawn, rewards = drawing.judged(model, prompts, rng)
    best = rewards.reshape(len(prompts), drawing.group).argmax(axis=1) + drawing.group * np.arange(len(prompts))
    return [(asked[number], drawn[number], float(rewards[number])) for number in best]
