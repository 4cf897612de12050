"""What a run learns from rewards: answers to batches of prompts, judged, each learned from for some steps.

A batch of prompts gives a batch of answers, and `rounds` steps are taken on it. In the first of them the policy is the
one that drew the answers. A checkpoint between two of these steps has the answers, in the section "rollout".

    values   left       how many micro-batches are still to be learned from
    arrays   N.FIELD    the fields of `Drawn` of each micro-batch
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from numpygpt.data.instructions import Prompt
from numpygpt.data.templates import template_of
from numpygpt.data.tokenizer import Encoding
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import SavedSections, Section, named_in_errors, value_of
from numpygpt.tuning.options import FinetuneOptions
from numpygpt.tuning.rollouts import Drawing, Drawn, facts_of, reward_of, with_group_advantages, with_values

SECTION = "rollout"


class Experience:
    """The answers of a run.

    reward_model, reference   what judges them, and what the policy is held near, or None
    tokens, facts             of the micro-batches since `begin_step`: how many tokens, and what `facts_of` tells
    """

    def __init__(self, options: FinetuneOptions, tokenizer: Encoding, reward_model: Any, reference: Any) -> None:
        self._had, self._batches, self._seed = options.settings, options.accumulate, options.seed
        self.drawing = Drawing(
            reward_of(reward_model),
            template_of(self._had["template"]).end_id(tokenizer),
            self._had["max_new_tokens"],
            self._had["temperature"],
            self._had["group"],
            reference,
        )
        self._drawn: list[Drawn] = []
        self._left: list[Drawn] = []
        self.begin_step()

    def begin_step(self) -> None:
        """Count anew."""
        self.tokens = 0
        self._learned: list[Drawn] = []

    @property
    def facts(self) -> dict[str, float]:
        """What is told of the micro-batches."""
        return facts_of(self._learned)

    def next(self, model: Any, critic: Any, prompts: Callable[[], list[Prompt]], rng: Any) -> Drawn:
        """The next micro-batch. If the last answers are used up, the model draws new ones.

        critic    gives values, for PPO; None: the advantages are those of groups
        prompts   gives the next batch of prompts
        rng       draws the tokens
        """
        if not self._left:
            fresh = [self.drawing.draw(model, prompts(), rng) for _ in range(self._batches)]
            self._drawn = self._with_advantages(fresh, critic)
            self._left = self._drawn * self._had["rounds"]
        batch, *self._left = self._left
        self._learned.append(batch)
        self.tokens += batch.inputs.size
        return batch

    def _with_advantages(self, drawn: list[Drawn], critic: Any) -> list[Drawn]:
        had = self._had
        if critic is None:
            return [with_group_advantages(batch, had["group"], scale=had["scale_rewards"]) for batch in drawn]
        return with_values(drawn, critic, beta=had["beta"], gamma=had["gamma"], lam=had["lam"])

    def loss(self, model: Any, batches: Iterable[list[Prompt]]) -> float:
        """The mean reward of answers to these prompts, with the opposite sign, so that less is better.

        The answers are drawn from the run's seed, and change nothing of what the run draws.
        """
        rng = TorchGenerator(self._seed)
        rewards = [self.drawing.judged(model, prompts, rng).rewards for prompts in batches]
        return -float(np.concatenate(rewards).mean())

    def sections(self) -> dict[str, Section]:
        """What a checkpoint keeps: nothing, if all answers are used up."""
        if not self._left:
            return {}
        arrays = {
            f"{number}.{name}": array
            for number, drawn in enumerate(self._drawn)
            for name, array in drawn._asdict().items()
        }
        return {SECTION: Section({"left": len(self._left)}, arrays)}

    def take_up(self, saved: SavedSections) -> None:
        """Go on with the answers of a checkpoint, if it has any. InputError for anything else in their place."""
        if SECTION not in saved:
            return
        arrays = saved.arrays(SECTION)
        expected = [f"{number}.{name}" for number in range(self._batches) for name in Drawn._fields]
        with named_in_errors(saved):
            left = value_of(saved.values(SECTION), "left", int)
            found = {name: value_of(arrays, name, np.ndarray) for name in expected}
        self._drawn = [
            Drawn._make(found[f"{number}.{name}"] for name in Drawn._fields) for number in range(self._batches)
        ]
        self._left = (self._drawn * self._had["rounds"])[-left:]
