"""The goals of learning from rewards: answers that the model has drawn become likelier the better they were.

A batch is a `Drawn` (`numpygpt.tuning.rollouts`). With the temperature τ that the answers were drawn at,

    (1)  log_probs = token_log_probs(logits / τ, targets)
    (2)  loss = the objective of log_probs: REINFORCE, GRPO, or the clipped objective of PPO

PPO has a second model, the critic, with a head of one row: the value of each position is what reward is still to come.

No goal here has dropout: it would draw another policy than the one that drew the answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.objectives import clipped_policy, clipped_value, grpo, reinforce
from numpygpt.ops import token_log_probs, weighted_mean
from numpygpt.random.masks import RandomSource
from numpygpt.shapes import Array, Inexact
from numpygpt.tree import Trained, within
from numpygpt.tuning.rollouts import Drawn
from numpygpt.tuning.through import OfLogits, refuse_another_mean

#: What the names of the critic's parameters begin with.
CRITIC = "critic"


class ActorCritic(NamedTuple):
    """The model that writes, and the one that says what reward is to be expected."""

    actor: GPTModel
    critic: GPTModel

    def named_parameters(self) -> dict[str, Array]:
        """Those of both; the critic's have its name before theirs."""
        return self.actor.named_parameters() | _of_critic(self.critic.named_parameters())

    @property
    def frozen(self) -> frozenset[str]:
        """The names of those that are not trained."""
        return self.actor.frozen | {f"{CRITIC}.{name}" for name in self.critic.frozen}

    def trained(self, name: str) -> bool:
        """Whether the parameter of a name is trained."""
        part, _, rest = name.partition(".")
        return bool(self.critic.trained(rest) if part == CRITIC else self.actor.trained(name))


def _of_critic(named: Mapping[str, Array]) -> dict[str, Array]:
    return {f"{CRITIC}.{name}": array for name, array in named.items()}


class Saved(NamedTuple):
    """What the objective and the log-probabilities saved, and what the logits were divided by."""

    objective: Any
    token_log_probs: token_log_probs.Saved
    temperature: float


@dataclass(frozen=True)
class OfPolicy(OfLogits):
    """What REINFORCE, GRPO and PPO's policy have in common: all but the objective.

    temperature   τ
    over          "tokens" or "sequences", as in `weighted_mean`

    Raises InputError for another mean, and for a temperature that is not positive.
    """

    temperature: float = 1.0
    over: str = "tokens"

    def __post_init__(self) -> None:
        refuse_another_mean(self.over)
        if not 0 < self.temperature < np.inf:
            raise InputError(f"temperature is {self.temperature!r}; expected a positive number")

    def objective(self, log_probs: Inexact[Array, "B T"], batch: Drawn) -> tuple[Any, Any]:
        """(2)."""
        raise NotImplementedError

    def d_objective(self, d_loss: Any, saved: Any) -> Inexact[Array, "B T"]:
        """The gradient of the log-probabilities."""
        raise NotImplementedError

    def weight(self, batch: Drawn) -> float:
        """How many tokens were drawn, or how many answers."""
        return weighted_mean.total(batch.weights, over=self.over)

    def forward(self, logits: Inexact[Array, "B T V"], batch: Drawn) -> tuple[Any, Saved]:
        """See `OfLogits`."""
        log_probs, scored = token_log_probs.forward(logits / self.temperature, batch.targets)  # (1)
        loss, saved = self.objective(log_probs, batch)  # (2)
        return loss, Saved(saved, scored, self.temperature)

    def backward(self, d_loss: Any, saved: Saved) -> Inexact[Array, "B T V"]:
        """See `OfLogits`."""
        d_log_probs = self.d_objective(d_loss, saved.objective)  # undoes (2)
        return token_log_probs.backward(d_log_probs, saved.token_log_probs).logits / saved.temperature  # undoes (1)

    def loss_and_grads(
        self, model: GPTModel, batch: Drawn, *, rng: RandomSource | None = None, **options: Any
    ) -> tuple[Any, dict[str, Array]]:
        """See `Goal`; `rng` draws nothing."""
        return super().loss_and_grads(model, batch, **options)


@dataclass(frozen=True)
class Reinforce(OfPolicy):
    """See `numpygpt.objectives.reinforce`."""

    def objective(self, log_probs: Inexact[Array, "B T"], batch: Drawn) -> tuple[Any, Any]:
        """See `OfPolicy`."""
        return reinforce.forward(log_probs, batch.advantages, batch.weights, over=self.over)

    def d_objective(self, d_loss: Any, saved: Any) -> Inexact[Array, "B T"]:
        """See `OfPolicy`."""
        return reinforce.backward(d_loss, saved).log_probs


@dataclass(frozen=True)
class Grpo(OfPolicy):
    """See `numpygpt.objectives.grpo`, whose words these are."""

    over: str = "sequences"
    beta: float = 0.04
    clip: float = 0.2
    clip_high: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        clipped_policy.refuse_clips(self.clip, self.clip_high)

    def objective(self, log_probs: Inexact[Array, "B T"], batch: Drawn) -> tuple[Any, Any]:
        """See `OfPolicy`."""
        return grpo.forward(
            log_probs, batch.log_probs, batch.reference_log_probs, batch.advantages, batch.weights, beta=self.beta,
            clip=self.clip, clip_high=self.clip_high, over=self.over,
        )  # fmt: skip

    def d_objective(self, d_loss: Any, saved: Any) -> Inexact[Array, "B T"]:
        """See `OfPolicy`."""
        return grpo.backward(d_loss, saved).log_probs


@dataclass(frozen=True)
class ClippedPolicy(OfPolicy):
    """PPO's policy: see `numpygpt.objectives.clipped_policy`."""

    clip: float = 0.2
    clip_high: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        clipped_policy.refuse_clips(self.clip, self.clip_high)

    def objective(self, log_probs: Inexact[Array, "B T"], batch: Drawn) -> tuple[Any, Any]:
        """See `OfPolicy`."""
        return clipped_policy.forward(
            log_probs, batch.log_probs, batch.advantages, batch.weights, clip=self.clip, clip_high=self.clip_high,
            over=self.over,
        )  # fmt: skip

    def d_objective(self, d_loss: Any, saved: Any) -> Inexact[Array, "B T"]:
        """See `OfPolicy`."""
        return clipped_policy.backward(d_loss, saved).log_probs


@dataclass(frozen=True)
class ClippedValue(OfLogits):
    """The critic's: see `numpygpt.objectives.clipped_value`."""

    clip: float = 0.2
    over: str = "tokens"

    def __post_init__(self) -> None:
        refuse_another_mean(self.over)
        clipped_value.refuse_clip(self.clip)

    def weight(self, batch: Drawn) -> float:
        """How many tokens were drawn, or how many answers."""
        return weighted_mean.total(batch.weights, over=self.over)

    def forward(self, logits: Inexact[Array, "B T 1"], batch: Drawn) -> tuple[Any, clipped_value.Saved]:
        """See `OfLogits`."""
        return clipped_value.forward(
            logits[..., 0], batch.values, batch.returns, batch.weights, clip=self.clip, over=self.over
        )

    def backward(self, d_loss: Any, saved: clipped_value.Saved) -> Inexact[Array, "B T 1"]:
        """See `OfLogits`."""
        return clipped_value.backward(d_loss, saved).values[..., np.newaxis]


@dataclass(frozen=True)
class Ppo:
    """Both of PPO's losses (Schulman et al. 2017, arXiv:1707.06347, equation 9, without the bonus for entropy).

        loss = loss of the policy + c loss of the values

    value_share   c

    Raises InputError if the two are means over different things: one weight could not do for both.
    """

    policy: ClippedPolicy = ClippedPolicy()
    value: ClippedValue = ClippedValue()
    value_share: float = 0.1

    def __post_init__(self) -> None:
        if self.policy.over != self.value.over:
            raise InputError(
                f"the policy's mean is over {self.policy.over!r} and the values' over {self.value.over!r}; expected one"
            )

    def weight(self, batch: Drawn) -> float:
        """See `OfPolicy`."""
        return self.policy.weight(batch)

    def loss_and_grads(
        self,
        model: ActorCritic,
        batch: Drawn,
        *,
        rng: RandomSource | None = None,
        trained: Trained | None = None,
        loss_scale: float = 1.0,
    ) -> tuple[Any, dict[str, Array]]:
        """See `Goal`; `rng` draws nothing."""
        trained = trained or model.trained
        loss, gradients = self.policy.loss_and_grads(model.actor, batch, trained=trained, loss_scale=loss_scale)
        value_loss, of_critic = self.value.loss_and_grads(
            model.critic, batch, trained=within(trained, CRITIC), loss_scale=loss_scale * self.value_share
        )
        return loss + loss.dtype.type(self.value_share) * value_loss, gradients | _of_critic(of_critic)

    def loss(self, model: ActorCritic, batch: Drawn) -> Any:
        """See `Goal`."""
        policy, value = self.policy.loss(model.actor, batch), self.value.loss(model.critic, batch)
        return policy + policy.dtype.type(self.value_share) * value
