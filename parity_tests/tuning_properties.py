"""The properties that must hold for the goals of tuning, in the manner of `properties`.

What PyTorch makes of each case, and the cases themselves, are made before any bug is planted.
"""

from functools import cache

import numpy as np
import torch

from numpygpt.decoding.answers import Answer
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.training.advantages import GROUP_EPS, WHITENING_EPS
from numpygpt.training.step import loss_and_grads_of
from numpygpt.tree import mapped
from numpygpt.tuning import rollouts
from numpygpt.tuning.policies import Ppo
from parity_tests.tolerances import FLOAT64_NORMWISE
from parity_tests.tuning_cases import END, NAMES, cases, critic, model_of, prompts
from torchgpt.bridge import to_torch
from torchgpt.engine.goals import loss_of

CASES = cases()
#: A packed batch is not cut: its rows are of one width, and its mask goes with them.
WITH_PARTS = tuple(name for name in NAMES if name != "answers, packed")


def assert_agrees(ours, expected, scale=None):
    """The two are equal except for rounding in float64, of numbers of this size; None: of their own."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    scale = np.linalg.norm(expected) if scale is None else scale
    assert np.linalg.norm(ours - expected) <= FLOAT64_NORMWISE * scale


def assert_gradients_close(ours, expected):
    """As `assert_agrees`; one that is 0 in exact arithmetic, as that of keys' biases, has the scale of the largest."""
    assert ours.keys() == expected.keys()
    sizes = {name: np.linalg.norm(gradient) for name, gradient in expected.items()}
    largest = max(sizes.values())
    for name, gradient in ours.items():
        vanishes = sizes[name] <= FLOAT64_NORMWISE * largest
        assert_agrees(gradient, expected[name], largest if vanishes else None)


# In PyTorch


def computed(module, ids, *, hidden=False, positions=None, visible=None):
    """The logits of a twin, and the hidden states if they are asked for."""
    x = module.embedded(ids, positions=positions)
    for block in module.trf_blocks:
        x = block(x, visible=visible)
    x = module.final_norm(x)
    return (module.out_head(x), x) if hidden else module.out_head(x)


def torch_loss(goal, model, batch):
    """PyTorch's loss of a batch, and its gradients by name."""
    twin = to_torch(model, copy=True)
    rows = mapped(torch.from_numpy, getattr(batch, "both", batch))
    helper = getattr(goal, "reference", None) or getattr(goal, "teacher", None)
    helping = None if helper is None else to_torch(helper, copy=True)

    @torch.no_grad()
    def aid(ids, **more):
        return computed(helping, ids, **more)

    options = getattr(rows, "options", {})
    output = computed(twin, rows.inputs, hidden=bool(getattr(goal, "hidden", 0)), **options)
    loss = loss_of(goal, None if helper is None else aid)(output, rows)
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in twin.named_parameters() if p.grad is not None}


@cache
def expected_of(name):
    """PyTorch's loss and gradients of a case."""
    goal, model, batch = CASES[name]
    if not isinstance(goal, Ppo):
        return torch_loss(goal, model, batch)
    (policy, grads), (value, of_critic) = (
        torch_loss(part, own, batch) for part, own in ((goal.policy, model.actor), (goal.value, model.critic))
    )
    scaled = {f"critic.{name}": goal.value_share * gradient for name, gradient in of_critic.items()}
    return policy + goal.value_share * value, grads | scaled


EXPECTED = {name: expected_of(name) for name in NAMES}


# The properties


def assert_is_pytorchs(name):
    """The loss and the gradients of a case are PyTorch's, and so is the loss alone."""
    goal, model, batch = CASES[name]
    expected, expected_grads = EXPECTED[name]
    loss, grads = goal.loss_and_grads(model, batch)
    assert_agrees(loss, expected)
    assert_gradients_close(grads, expected_grads)
    assert_agrees(goal.loss(model, batch), expected)


def assert_parts_are_the_whole(name):
    """Uneven micro-batches have the loss and the gradients of the whole batch, and its weight."""
    goal, model, batch = CASES[name]
    parts = [mapped(lambda array, some=some: array[some], batch) for some in (slice(0, 1), slice(1, None))]
    loss, grads = loss_and_grads_of(model, parts, goal=goal)
    assert_agrees(loss, EXPECTED[name][0])
    assert_gradients_close(grads, EXPECTED[name][1])
    assert goal.weight(batch) == sum(map(goal.weight, parts))
    if isinstance(goal, Ppo):  # the critic is weighted alone where it is trained alone
        assert goal.value.weight(batch) == goal.weight(batch)


def goals_in_pytorch():
    for name in NAMES:
        assert_is_pytorchs(name)


def goals_in_parts():
    for name in WITH_PARTS:
        assert_parts_are_the_whole(name)


def fixed_reward(asked, found):
    """A number for each answer that anybody can compute."""
    return np.array([len(answer.token_ids) + sum(answer.token_ids.tolist()) / 100 for answer in found])


def drawn_as_scored():
    """The log-probabilities of drawn tokens are those of a forward over prompt and answer, at the same temperature."""
    drawing = rollouts.Drawing(fixed_reward, END, 7, 0.7, 2, model_of(3))
    found = drawing.draw(model_of(), prompts(4), TorchGenerator(3))
    ends = found.targets == END
    assert ends.any(), "an answer has ended"
    assert not (np.cumsum(ends, axis=1) - ends)[found.weights].any(), "and nothing of it comes after its end"
    twin, other = (to_torch(model, copy=True) for model in (model_of(), model_of(3)))
    for module, ours in ((twin, found.log_probs), (other, found.reference_log_probs)):
        logits = module(torch.from_numpy(found.inputs)) / 0.7
        scored = logits.log_softmax(-1).gather(-1, torch.from_numpy(np.maximum(found.targets, 0))[..., None])[..., 0]
        assert_agrees(ours, np.where(found.weights, scored.detach().numpy(), 0))


def rewarded_by_hand():
    """Values, advantages and returns of a batch are those of loops over the tokens of each answer."""
    drawing = rollouts.Drawing(fixed_reward, END, 6, 1.0, 2, model_of(3))
    drawn = drawing.draw(model_of(), prompts(3), TorchGenerator(5))
    (found,) = rollouts.with_values([drawn], critic(), beta=0.3, gamma=0.9, lam=0.8)
    scores = to_torch(critic(), copy=True)(torch.from_numpy(drawn.inputs))[..., 0].detach().numpy()
    raw = np.zeros(drawn.inputs.shape)
    for row, weights in enumerate(drawn.weights):
        places, ahead, value_ahead = np.flatnonzero(weights), 0.0, 0.0
        for place in places[::-1]:
            reward = -0.3 * (drawn.log_probs[row, place] - drawn.reference_log_probs[row, place])
            reward += drawn.rewards[row] if place == places[-1] else 0
            ahead = reward + 0.9 * value_ahead - scores[row, place] + 0.9 * 0.8 * ahead
            value_ahead, raw[row, place] = scores[row, place], ahead
    assert_agrees(found.values, scores * drawn.weights)
    assert_agrees(found.returns, (raw + scores) * drawn.weights)
    counted = raw[drawn.weights]
    white = (counted - counted.mean()) / np.sqrt(counted.var(ddof=1) + WHITENING_EPS)
    assert_agrees(found.advantages[drawn.weights], white)


def groups_by_hand():
    """Each token of an answer has the advantage of the answer among those to its prompt; padding has none."""
    drawing = rollouts.Drawing(fixed_reward, END, 6, 1.0, 3)
    drawn = drawing.draw(model_of(), prompts(2), TorchGenerator(6))
    found = rollouts.with_group_advantages(drawn, 3)
    for row, prompt in enumerate(prompts(2)[number] for number in (0, 0, 0, 1, 1, 1)):
        assert np.array_equal(drawn.inputs[row, : len(prompt.token_ids)], prompt.token_ids)
    for row, weights in enumerate(drawn.weights):
        same = drawn.rewards[row - row % 3 : row - row % 3 + 3]
        advantage = (drawn.rewards[row] - same.mean()) / (same.std(ddof=1) + GROUP_EPS)
        assert_agrees(found.advantages[row], advantage * weights)


def best_by_hand():
    """Of the answers to each prompt, the one of the highest reward is taken."""
    drawing = rollouts.Drawing(fixed_reward, END, 6, 1.0, 4)
    judged = drawing.judged(model_of(), prompts(3), TorchGenerator(2))
    best = rollouts.best_of(model_of(), prompts(3), drawing, TorchGenerator(2))
    assert [reward for _, _, reward in best] == judged.rewards.reshape(3, 4).max(axis=1).tolist()
    assert [fixed_reward([], [answer])[0] for _, answer, _ in best] == [reward for _, _, reward in best]


def rows_by_hand():
    """A prompt and its answer are one row, whose targets are the answer's tokens."""
    answer = Answer(np.array([7, END]), np.zeros(2))
    rows = rollouts.rows_of([np.array([1, 2, 3]), np.array([4])], [answer, answer])
    assert rows.inputs.tolist() == [[1, 2, 3, 7, END], [4, 7, END, 0, 0]]
    assert rows.targets.tolist() == [[-100, -100, 7, END, -100], [7, END, -100, -100, -100]]
    assert rows.lengths.tolist() == [5, 3]


PROPERTIES = {
    "goals_in_pytorch": goals_in_pytorch,
    "goals_in_parts": goals_in_parts,
    "drawn_as_scored": drawn_as_scored,
    "rewarded_by_hand": rewarded_by_hand,
    "groups_by_hand": groups_by_hand,
    "best_by_hand": best_by_hand,
    "rows_by_hand": rows_by_hand,
}


def tell(watch) -> None:
    """Tell the watch what tuning computes: losses and gradients, except for those that are 0, then what is drawn."""
    for name in NAMES:
        goal, model, batch = CASES[name]
        loss, grads = goal.loss_and_grads(model, batch)
        watch(f"tuned.{name}.loss", np.asarray(loss))
        sizes = {parameter: np.linalg.norm(gradient) for parameter, gradient in EXPECTED[name][1].items()}
        telling = [parameter for parameter in grads if sizes[parameter] > FLOAT64_NORMWISE * max(sizes.values())]
        for parameter, gradient in ((parameter, grads[parameter]) for parameter in telling):
            watch(f"tuned.{name}.d_{parameter}", gradient)
    drawing = rollouts.Drawing(fixed_reward, END, 6, 0.8, 3, model_of(3))
    drawn = drawing.draw(model_of(), prompts(3), TorchGenerator(5))
    for found, kind in (
        (drawn, "drawn"),
        (rollouts.with_group_advantages(drawn, 3), "grouped"),
        (*rollouts.with_values([drawn], critic(), beta=0.3, gamma=0.9), "valued"),
    ):
        for field, array in found._asdict().items():
            watch(f"{kind}.{field}", array)
    best = rollouts.best_of(model_of(), prompts(3), drawing, TorchGenerator(2))
    watch("best.rewards", np.array([reward for _, _, reward in best]))
