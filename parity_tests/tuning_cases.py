"""Small models, batches and goals of tuning, for the tests of both backends."""

from typing import Any

import numpy as np

from numpygpt import GPTModel
from numpygpt.adapt.head import class_head
from numpygpt.data.batching import Examples, LabeledTexts, Pairs
from numpygpt.data.examples import Example
from numpygpt.data.instructions import Prompt
from numpygpt.data.labels import LabeledText
from numpygpt.data.packing import PackedExamples
from numpygpt.data.preferences import Pair
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import IGNORE_INDEX
from numpygpt.tuning.answers import Answers
from numpygpt.tuning.classes import Classes
from numpygpt.tuning.distillation import Distillation
from numpygpt.tuning.policies import ActorCritic, ClippedPolicy, ClippedValue, Grpo, Ppo, Reinforce
from numpygpt.tuning.preferences import Preferences
from numpygpt.tuning.rewards import Rewards
from numpygpt.tuning.rollouts import Drawing, Drawn, reward_of, with_group_advantages, with_values

CONFIG: dict[str, Any] = {
    "vocab_size": 23, "context_length": 16, "emb_dim": 12, "n_heads": 3, "n_layers": 2, "drop_rate": 0.0,
    "qkv_bias": True,
}  # fmt: skip
END = 5


def model_of(seed: int = 1, dtype: Any = np.float64, **changes: Any) -> GPTModel:
    return GPTModel({**CONFIG, **changes}, seed, dtype)


def near(model: GPTModel, seed: int, by: float = 0.01) -> GPTModel:
    """Another model with nearly the same weights."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: array + by * rng.standard_normal(array.shape).astype(array.dtype)
        for name, array in model.named_parameters().items()
    }
    return GPTModel.from_state_dict(model.config, arrays)


def examples(count: int, seed: int = 0) -> list[Example]:
    """Texts of 4 to 9 tokens, whose answers begin at the third."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 10, count)
    return [Example(rng.integers(0, CONFIG["vocab_size"], length), np.arange(length) >= 2) for length in lengths]


def pairs(count: int) -> list[Pair]:
    return [Pair(*both) for both in zip(examples(count, 1), examples(count, 2), strict=True)]


def prompts(count: int) -> list[Prompt]:
    """Of 2 to 4 tokens."""
    return [Prompt(example.token_ids[: 2 + k % 3], {}) for k, example in enumerate(examples(count, 3))]


def drawn(dtype: Any = np.float64) -> Drawn:
    """Answers of a model, with advantages of groups of three."""
    drawing = Drawing(reward_of(class_head(model_of(7, dtype), 1)), END, 6, 0.8, 3, model_of(8, dtype))
    return with_group_advantages(drawing.draw(model_of(1, dtype), prompts(3), TorchGenerator(4)), 3)


def critic(dtype: Any = np.float64) -> GPTModel:
    return class_head(model_of(9, dtype), 1)


def cases(dtype: Any = np.float64) -> dict[str, tuple[Any, Any, Any]]:
    """{name: a goal, a model that is trained for it, and a batch}."""
    four, model = np.arange(4), near(model_of(1, dtype), 0)
    batch, both = Examples(examples(5)).batch(four), Pairs(pairs(4)).batch(four)
    empty = batch._replace(targets=np.where(four[:, np.newaxis] == 2, IGNORE_INDEX, batch.targets))
    packed = PackedExamples(examples(7), CONFIG["context_length"]).batch(np.arange(3))
    labeled = LabeledTexts([LabeledText(e.token_ids, k % 3) for k, e in enumerate(examples(4))]).batch(four)
    labeled.labels[3] = IGNORE_INDEX
    other, answers = model_of(2, dtype), drawn(dtype)
    (valued,) = with_values([answers], critic(dtype), beta=0.1, gamma=0.9)
    excluded = answers._replace(reference_log_probs=np.where(answers.weights, -np.inf, answers.log_probs))
    both_models = ActorCritic(model, near(critic(dtype), 1))
    by_tokens = Ppo(ClippedPolicy(0.8, clip=0.05), ClippedValue(0.05), 0.3)
    by_answers = Ppo(ClippedPolicy(0.8, "sequences", 0.05, 0.01), ClippedValue(0.002, "sequences"), 0.3)
    return {
        "answers": (Answers(), model, batch),
        "answers, packed": (Answers(), model, packed),
        "answers, sequences, smoothed": (Answers("sequences", 0.1), model, batch),
        "answers, sequences, one of them empty": (Answers("sequences"), model, empty),
        "classes": (Classes(), class_head(model, 3), labeled),
        "rewards": (Rewards(), class_head(model, 1), both),
        "preferences": (Preferences(other), model, both),
        "preferences, smoothed": (Preferences(other, label_smoothing=0.2, beta=0.5), model, both),
        "preferences, ipo, no reference": (Preferences(None, form="ipo", beta=0.4), model, both),
        "distillation": (Distillation(other), model, batch),
        "distillation, reverse, packed, hidden": (Distillation(other, 1.5, "reverse", 0.3), model, packed),
        "distillation, sequences": (Distillation(other, over="sequences", hidden=0.2), model, batch),
        "reinforce": (Reinforce(0.8), model, answers),
        "reinforce, sequences": (Reinforce(0.8, "sequences"), model, answers),
        "grpo": (Grpo(0.8, clip=0.05), model, answers),
        "grpo, tokens, another bound above": (Grpo(0.8, "tokens", clip_high=0.01), model, answers),
        "grpo, no beta, and a reference that excludes all": (Grpo(0.8, beta=0.0, clip=0.05), model, excluded),
        "ppo": (by_tokens, both_models, valued),
        "ppo, sequences, another bound above": (by_answers, both_models, valued),
    }


#: The cases by name.
NAMES = tuple(cases())
