"""Training by rewards, in NumPy: the model draws answers, they are judged, and it learns from them.

A batch of prompts gives a batch of answers, and `rounds` steps are taken on it. In the first of them the policy is the
one that drew the answers. A checkpoint between two of these steps has the answers, in the section "rollout".

    values   left       how many micro-batches are still to be learned from
    arrays   N.FIELD    the fields of `Drawn` of each micro-batch

The losses of an evaluation are the mean reward of answers to the first prompts, with the opposite sign, so that less is
better. They are drawn from the run's seed, and change nothing of what the run draws.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from numpygpt.data.batching import padded
from numpygpt.data.examples import Example
from numpygpt.data.instructions import Prompt
from numpygpt.data.templates import template_of
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import SECTION as MODEL
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import SavedSections, Section, named_in_errors, value_of
from numpygpt.training.backend import Task
from numpygpt.training.step import StepTaken
from numpygpt.tuning.backend import FinetuneBackend, Tuned, begun, section_of, taken_up
from numpygpt.tuning.policies import CRITIC, ActorCritic
from numpygpt.tuning.renamed import Renamed
from numpygpt.tuning.rollouts import Drawing, Drawn, reward_of, with_group_advantages, with_values
from numpygpt.tuning.through import logits_of

SECTION = "rollout"


class PolicyBackend(FinetuneBackend):
    """The backend of GRPO, and what it shares with that of PPO."""

    drawing: Drawing

    @classmethod
    def load(cls, task: Task, saved: SavedSections) -> "PolicyBackend":
        """See `Maker`."""
        backend = super().load(task, saved)
        assert isinstance(backend, PolicyBackend)
        if SECTION in saved:
            backend._take_up_answers(saved)
        return backend

    def step(self, learning_rate: float) -> StepTaken:
        """See `Backend`. What is told of the step is that of its answers."""
        self._facts: list[dict[str, float]] = []
        taken = super().step(learning_rate)
        names = self._facts[0]
        return taken._replace(facts={name: float(np.mean([each[name] for each in self._facts])) for name in names})

    def evaluate(self) -> tuple[float, float]:
        """See `Backend`."""
        rng, few = TorchGenerator(self.options.seed), self.options.eval_batches
        training, validation = (
            -float(np.mean([self.drawing.judged(self.model, prompts, rng).rewards.mean() for prompts in batches]))
            for batches in (islice(loader, few) for loader in (self.train_loader, self.val_loader))
        )
        return training, validation

    def probe(self) -> float:
        """See `Backend`: the mean logit of some prompts."""
        prompts = self.val_loader.batch(self._first())
        rows = padded([Example.without_answer(prompt.token_ids) for prompt in prompts])
        return float(logits_of(self.model, rows).mean())

    def state(self) -> dict[str, Section]:
        """See `Backend`."""
        if not self._left:
            return super().state()
        arrays = {
            f"{number}.{name}": array
            for number, drawn in enumerate(self._drawn)
            for name, array in drawn._asdict().items()
        }
        return {**super().state(), SECTION: Section({"left": len(self._left)}, arrays)}

    def with_advantages(self, drawn: Drawn) -> Drawn:
        """The answers with what the objective weights them by."""
        had = self.options.settings
        return with_group_advantages(drawn, had["group"], scale=had["scale_rewards"])

    def _aim(self, model: GPTModel) -> None:
        super()._aim(model)
        had = self.options.settings
        assert self.aids.reward_model is not None
        self.drawing = Drawing(
            reward_of(self.aids.reward_model),
            template_of(had["template"]).end_id(self.tokenizer),
            had["max_new_tokens"],
            had["temperature"],
            had["group"],
            self.aids.reference,
        )
        self._drawn: list[Drawn] = []
        self._left: list[Drawn] = []

    def _next_batch(self) -> Drawn:
        if not self._left:
            self._drawn = [self._answers(self._next_prompts()) for _ in range(self.options.accumulate)]
            self._left = self._drawn * self.options.settings["rounds"]
        batch, *self._left = self._left
        self._facts.append(batch.facts())
        self._tokens += batch.inputs.size
        return batch

    def _next_prompts(self) -> list[Prompt]:
        prompts: list[Prompt] = super(FinetuneBackend, self)._next_batch()
        return prompts

    def _answers(self, prompts: list[Prompt]) -> Drawn:
        return self.with_advantages(self.drawing.draw(self.model, prompts, self.rng))

    def _take_up_answers(self, saved: SavedSections) -> None:
        arrays = saved.arrays(SECTION)
        with named_in_errors(saved):
            left = value_of(saved.values(SECTION), "left", int)
            self._drawn = [
                Drawn._make(arrays[f"{number}.{name}"] for name in Drawn._fields)
                for number in range(self.options.accumulate)
            ]
        self._left = (self._drawn * self.options.settings["rounds"])[-left:]


class PpoBackend(PolicyBackend):
    """The backend of PPO.

    Its critic begins as the reward model, as in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, section 3.5).
    """

    critic: Tuned

    @property
    def learner(self) -> Any:
        """See `NumpyBackend.learner`."""
        return ActorCritic(self.model, self.critic.model)

    def state(self) -> dict[str, Section]:
        """See `Backend`."""
        return {**super().state(), CRITIC: section_of(self.critic, self.options, 1)}

    def with_advantages(self, drawn: Drawn) -> Drawn:
        """See `PolicyBackend`."""
        had = self.options.settings
        return with_values(drawn, self.critic.model, beta=had["beta"], gamma=had["gamma"], lam=had["lam"])

    def _new_model(self) -> GPTModel:
        model = super()._new_model()
        self.critic = begun(self.options, self.rng, self._critic_path, 1, **self._of_the_model())
        return model

    def _saved_model(self, saved: SavedSections) -> GPTModel:
        of_critic = Renamed(saved, {MODEL: CRITIC})
        self.critic = taken_up(self.options, of_critic, self._critic_path, **self._of_the_model())
        return super()._saved_model(saved)

    @property
    def _critic_path(self) -> Path:
        return Path(self.options.settings["reward_model"])
