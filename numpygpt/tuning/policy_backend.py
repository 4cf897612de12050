"""Training by rewards, in NumPy: the model draws answers, they are judged, and it learns from them.

The losses of an evaluation are those of `numpygpt.tuning.experience.Experience.loss`.
"""

from itertools import islice
from pathlib import Path
from typing import Any

from numpygpt.data.batching import padded
from numpygpt.data.examples import Example
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import SECTION as MODEL
from numpygpt.sections import SavedSections, Section
from numpygpt.training.backend import Task
from numpygpt.training.step import StepTaken
from numpygpt.tuning.backend import FinetuneBackend, Tuned, begun, section_of, taken_up
from numpygpt.tuning.experience import Experience
from numpygpt.tuning.policies import CRITIC, ActorCritic
from numpygpt.tuning.renamed import Renamed
from numpygpt.tuning.rollouts import Drawn
from numpygpt.tuning.through import logits_of


class PolicyBackend(FinetuneBackend):
    """The backend of GRPO, and what it shares with that of PPO."""

    experience: Experience

    @classmethod
    def load(cls, task: Task, saved: SavedSections) -> "PolicyBackend":
        """See `Maker`."""
        backend = super().load(task, saved)
        assert isinstance(backend, PolicyBackend)
        backend.experience.take_up(saved)
        return backend

    def step(self, learning_rate: float) -> StepTaken:
        """See `Backend`. What is told of the step is that of its answers."""
        self.experience.begin_step()
        taken = super().step(learning_rate)
        return taken._replace(tokens=self.experience.tokens, facts=self.experience.facts)

    def evaluate(self) -> tuple[float, float]:
        """See `Backend`."""
        few = self.options.eval_batches
        training, validation = (
            self.experience.loss(self.model, islice(loader, few)) for loader in (self.train_loader, self.val_loader)
        )
        return training, validation

    def probe(self) -> float:
        """See `Backend`: the mean logit of some prompts."""
        prompts = self.val_loader.batch(self._first())
        rows = padded([Example.without_answer(prompt.token_ids) for prompt in prompts])
        return float(logits_of(self.model, rows).mean())

    def state(self) -> dict[str, Section]:
        """See `Backend`."""
        return {**super().state(), **self.experience.sections()}

    def _aim(self, model: GPTModel) -> None:
        super()._aim(model)
        self.experience = Experience(self.options, self.tokenizer, self.aids.reward_model, self.aids.reference)

    def _next_batch(self) -> Drawn:
        return self.experience.next(self.model, self._critic, super(FinetuneBackend, self)._next_batch, self.rng)

    @property
    def _critic(self) -> GPTModel | None:
        return None


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

    def _new_model(self) -> GPTModel:
        model = super()._new_model()
        self.critic = begun(self.options, self.rng, critic_path(self.options), 1, **self._of_the_model())
        return model

    def _saved_model(self, saved: SavedSections) -> GPTModel:
        of_critic, path = Renamed(saved, {MODEL: CRITIC}), critic_path(self.options)
        self.critic = taken_up(self.options, of_critic, path, **self._of_the_model())
        return super()._saved_model(saved)

    @property
    def _critic(self) -> GPTModel:
        return self.critic.model


def critic_path(options: Any) -> Path:
    """What the critic begins as."""
    return Path(options.settings["reward_model"])
