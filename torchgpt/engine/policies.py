"""Training by rewards, in PyTorch: the PyTorch twins of `numpygpt.tuning.policy_backend`.

Answers are drawn and judged by NumPy's own functions (`numpygpt.tuning.rollouts`), for which a `Writer` gives the
logits of a model in PyTorch. It keeps no keys and values: each token is computed with all before it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from numpygpt.adapt.saving import Base, adapted_values
from numpygpt.data.batching import padded
from numpygpt.data.examples import Example
from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import SECTION as MODEL
from numpygpt.ops.visible import causal_from
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import SavedSections, Section
from numpygpt.shapes import Array
from numpygpt.training.step import StepTaken
from numpygpt.tuning.backend import Tuned, begun, taken_up
from numpygpt.tuning.experience import Experience
from numpygpt.tuning.policies import CRITIC, Ppo
from numpygpt.tuning.policy_backend import critic_path
from numpygpt.tuning.renamed import Renamed
from numpygpt.tuning.rollouts import Drawn
from numpygpt.tuning.through import logits_of
from torchgpt.engine.backend import TorchBackend
from torchgpt.engine.finetuning import FinetuneBackend
from torchgpt.engine.goals import Aid, loss_of
from torchgpt.parallel.model import ParallelModel


class Writer:
    """A model in PyTorch, as far as NumPy's functions for answers need one. It gives logits as arrays.

    compute   returns the logits of token ids on the device
    shared    whether several processes compute: all then get the first one's logits, and choose the same tokens
    """

    def __init__(self, compute: Aid, config: GPTConfig, dtype: Any, device: torch.device, *, shared: bool) -> None:
        self.config, self.dtype = config, np.dtype(dtype)
        self._compute, self._device, self._shared = compute, device, shared

    def forward(
        self, in_idx: Array, *, positions: Any = None, visible: Any = None, trained: Any = None
    ) -> tuple[Array, None]:
        """The logits (B, T, V), and nothing for a backward."""
        found = {"positions": positions, "visible": visible}
        options = {name: self._placed(array) for name, array in found.items() if array is not None}
        logits = self._compute(self._placed(np.asarray(in_idx, np.int64)), **options)
        if self._shared:
            dist.broadcast(logits, src=0)
        return logits.detach().cpu().numpy().astype(self.dtype), None

    def decode(
        self, in_idx: Array, past: Array | None = None, *, positions: Any = None, visible: Any = None
    ) -> tuple[Array, Array]:
        """The logits (B, V) of the last token, and all token ids so far."""
        if self.config.classes is not None:
            raise InputError(f"the model's head scores {self.config.classes} classes and no tokens: it cannot write")
        ids = in_idx if past is None else np.concatenate([past, in_idx], axis=1)
        options: dict[str, Any] = {}
        if positions is not None:  # there is padding on the left, as wide as the last position says
            starts = ids.shape[1] - 1 - positions[:, -1]
            options["positions"] = np.maximum(np.arange(ids.shape[1]) - starts[:, np.newaxis], 0)
            options["visible"] = causal_from(starts, ids.shape[1], ids.shape[1])
        return self.forward(ids, **options)[0][:, -1], ids

    def _placed(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


class PolicyBackend(FinetuneBackend):
    """The backend of GRPO, and what it shares with that of PPO."""

    experience: Experience

    @classmethod
    def load(cls, task: Any, saved: SavedSections, *how: Any) -> TorchBackend:
        """See `TorchBackend`."""
        backend = super().load(task, saved, *how)
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
        few, writer = self.options.eval_batches, self._writer(self.model.outputs)
        training, validation = (
            self.experience.loss(writer, islice(loader, few)) for loader in (self.train_loader, self.val_loader)
        )
        return training, validation

    def probe(self) -> float:
        """See `Backend`: the mean logit of some prompts."""
        prompts = self.val_loader.batch(np.arange(min(self.options.batch_size, len(self.val_loader.dataset))))
        rows = padded([Example.without_answer(prompt.token_ids) for prompt in prompts])
        return float(logits_of(self._writer(self.model.outputs), rows).mean())  # type: ignore[arg-type]

    def state(self) -> dict[str, Section]:
        """See `Backend`."""
        return {**super().state(), **self.experience.sections()}

    def _aimed(self, tuned: Tuned) -> ParallelModel:
        model = super()._aimed(tuned)
        assert self.aids.reward_model is not None
        judge = self._writer(self._computing(self.aids.reward_model), self.aids.reward_model.config)
        reference = None if self.aid is None else self._writer(self.aid)
        self.experience = Experience(self.options, self.tokenizer, judge, reference)
        return model

    def _next_batch(self) -> Drawn:
        return self.experience.next(
            self._writer(self.model.outputs), self._critic, super()._next_batch, self.draws
        )

    def _gradients(self, batches: Sequence[Any]) -> Tensor:
        return self._gradients_of(self.model, self.goal, batches)

    def _gradients_of(self, model: ParallelModel, goal: Any, batches: Sequence[Any], share: float = 1.0) -> Tensor:
        """The gradients of a goal on a model, and its loss. There is no dropout (`numpygpt.tuning.policies`)."""
        total = sum(map(goal.weight, batches)) or 1
        shares = [self._share(batch, total) for batch in batches]
        return model.gradients_by(loss_of(goal), shares, self.scale.value * share, dropout=False)

    def _writer(self, compute: Aid, config: GPTConfig | None = None) -> Writer:
        shared = self.team.size > 1
        return Writer(compute, config or self.config, self.options.dtype, self.device, shared=shared)

    @property
    def _critic(self) -> Writer | None:
        return None


class PpoBackend(PolicyBackend):
    """The backend of PPO, with a critic as in `numpygpt.tuning.policy_backend`."""

    critic: ParallelModel
    critic_base: Base | None

    @property
    def learner(self) -> Any:
        """See `TorchBackend.learner`."""
        return Both(self.model, self.critic)

    def state(self) -> dict[str, Section]:
        """See `Backend`."""
        own = {} if self.critic_base is None else adapted_values(self.critic_base, self._critic_adaptation)
        values = {"config": self.critic.config.to_dict(), "tokenizer": self.options.tokenizer, **own}
        return {**super().state(), CRITIC: Section(values, dict(self._whole(None, of=self.critic)))}

    def _new_model(self) -> ParallelModel:
        model = super()._new_model()
        rng = TorchGenerator.from_torch_state(torch.get_rng_state().numpy())
        self._take_critic(begun(self.options, rng, critic_path(self.options), 1))
        torch.set_rng_state(torch.from_numpy(rng.to_torch_state()))
        return model

    def _saved_model(self, saved: SavedSections) -> ParallelModel:
        self._take_critic(taken_up(self.options, Renamed(saved, {MODEL: CRITIC}), critic_path(self.options)))
        return super()._saved_model(saved)

    def _take_critic(self, tuned: Tuned) -> None:
        self.critic_base, self.critic = tuned.base, self._twin_of(tuned.model)

    def _gradients(self, batches: Sequence[Any]) -> Tensor:
        goal = self.goal
        assert isinstance(goal, Ppo)
        policy = self._gradients_of(self.model, goal.policy, batches)
        return policy + goal.value_share * self._gradients_of(self.critic, goal.value, batches, goal.value_share)

    @property
    def _critic_adaptation(self) -> Any:
        return self.options.adaptation._replace(head=1)

    @property
    def _critic(self) -> Writer:
        return self._writer(self.critic.outputs, self.critic.config)


class Both(NamedTuple):
    """Two models for one optimizer; the critic's names have its own before them."""

    actor: ParallelModel
    critic: ParallelModel

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `ParallelModel`, as for all that follow."""
        return self._joined(lambda model: model.shapes)

    @property
    def device(self) -> torch.device:
        """Of both."""
        return self.actor.device

    @property
    def scheme(self) -> Any:
        """Of both."""
        return self.actor.scheme

    def parameters(self) -> dict[str, nn.Parameter]:
        """Of both."""
        return self._joined(lambda model: model.parameters())

    def norms(self) -> dict[str, Tensor]:
        """Of both models' gradients."""
        return self._joined(lambda model: model.norms())

    def multiply_gradients(self, factor: Tensor | float) -> None:
        """Multiply every gradient of both."""
        for model in self:
            model.multiply_gradients(factor)

    def slice_of(self, name: str, whole: Tensor) -> Tensor | None:
        """What this process holds of a tensor that is cut as the parameter of that name."""
        model, own = self._of(name)
        return model.slice_of(own, whole)

    def each_whole(
        self, pieces: Mapping[str, Tensor], names: Sequence[str], *, wanted: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Every one of these names with its whole tensor."""
        for name in names:
            model, own = self._of(name)
            for _, whole in model.each_whole({own: pieces[name]}, [own], wanted=wanted):
                yield name, whole

    def _of(self, name: str) -> tuple[ParallelModel, str]:
        part, _, rest = name.partition(".")
        return (self.critic, rest) if part == CRITIC else (self.actor, name)

    def _joined(self, of: Callable[[ParallelModel], Mapping[str, Any]]) -> dict[str, Any]:
        return {**of(self.actor), **{f"{CRITIC}.{name}": value for name, value in of(self.critic).items()}}
