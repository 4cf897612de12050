"""Each goal of tuning: PyTorch's gradients of the same loss, uneven micro-batches, padding, draws and their rewards."""

import numpy as np
import pytest
import torch

from numpygpt import GPTModel
from numpygpt.adapt.head import class_head
from numpygpt.data.batching import Examples
from numpygpt.decoding.answers import answers
from numpygpt.errors import InputError
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.training.step import loss_and_grads_of
from numpygpt.tree import mapped
from numpygpt.tuning.policies import ActorCritic, Ppo
from numpygpt.tuning.preferences import Preferences
from numpygpt.tuning.rollouts import Drawing, best_of, reward_of, with_group_advantages
from parity_tests.tolerances import FLOAT64_NORMWISE
from parity_tests.tuning_cases import CONFIG, END, NAMES, cases, drawn, examples, model_of, prompts
from torchgpt.bridge import to_torch
from torchgpt.engine.goals import loss_of

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")


def assert_close(ours, expected, scale=None):
    """The two are equal except for rounding in float64, of numbers of this size; None: of their own."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    scale = np.linalg.norm(expected) if scale is None else scale
    assert np.linalg.norm(ours - expected) <= FLOAT64_NORMWISE * scale


def assert_gradients_close(ours, expected):
    """As `assert_close`; a gradient that is 0 in exact arithmetic, as that of the keys' bias, has the largest's scale."""
    assert ours.keys() == expected.keys()
    sizes = {name: np.linalg.norm(gradient) for name, gradient in expected.items()}
    largest = max(sizes.values())
    for name, gradient in ours.items():
        vanishes = sizes[name] <= FLOAT64_NORMWISE * largest
        assert_close(gradient, expected[name], largest if vanishes else None)


@pytest.fixture(scope="module")
def every_case():
    return cases()


def in_torch(tree):
    return mapped(torch.from_numpy, tree)


def torch_loss(goal, model, batch):
    """PyTorch's loss of a batch, and its gradients by name."""
    twin = to_torch(model, copy=True)
    rows = in_torch(getattr(batch, "both", batch))
    options = in_torch(getattr(rows, "options", {})) if not hasattr(rows, "options") else rows.options

    def compute(module, ids, *, hidden=False, positions=None, visible=None):
        x = module.embedded(ids, positions=positions)
        for block in module.trf_blocks:
            x = block(x, visible=visible)
        x = module.final_norm(x)
        return (module.out_head(x), x) if hidden else module.out_head(x)

    helper = getattr(goal, "reference", None) or getattr(goal, "teacher", None)
    aid = None
    if helper is not None:
        helping = to_torch(helper)

        def aid(ids, **more):
            with torch.no_grad():
                return compute(helping, ids, **more)

    output = compute(twin, rows.inputs, hidden=bool(getattr(goal, "hidden", 0)), **options)
    loss = loss_of(goal, aid)(output, rows)
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in twin.named_parameters() if p.grad is not None}


def expected_of(goal, model, batch):
    if not isinstance(goal, Ppo):
        return torch_loss(goal, model, batch)
    (policy, grads), (value, of_critic) = (
        torch_loss(part, own, batch) for part, own in ((goal.policy, model.actor), (goal.value, model.critic))
    )
    scaled = {f"critic.{name}": goal.value_share * gradient for name, gradient in of_critic.items()}
    return policy + goal.value_share * value, grads | scaled


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_pytorchs(every_case, name):
    goal, model, batch = every_case[name]
    loss, grads = goal.loss_and_grads(model, batch)
    expected, expected_grads = expected_of(goal, model, batch)
    assert_close(loss, expected)
    assert_gradients_close(grads, expected_grads)
    assert goal.loss(model, batch) == loss


@pytest.mark.parametrize("name", [name for name in NAMES if name != "answers, packed"])
def test_uneven_micro_batches_are_the_whole_batch(every_case, name):
    goal, model, batch = every_case[name]
    parts = [mapped(lambda array, some=some: array[some], batch) for some in (slice(0, 1), slice(1, None))]
    whole = loss_and_grads_of(model, [batch], goal=goal)
    cut = loss_and_grads_of(model, parts, goal=goal)
    assert_close(cut[0], whole[0])
    assert_gradients_close(cut[1], whole[1])
    assert goal.weight(batch) == sum(map(goal.weight, parts))


@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_float32_and_close(every_case, name):
    goal, model, batch = every_case[name]
    _, short, short_batch = cases(np.float32)[name]
    loss, grads = cases(np.float32)[name][0].loss_and_grads(short, short_batch)
    assert loss.dtype == np.float32
    assert {gradient.dtype for gradient in grads.values()} == {np.dtype(np.float32)}
    assert np.isfinite(float(loss))
    del goal, model, batch


def test_log_probabilities_of_decoding_are_those_of_a_forward():
    drawing = Drawing(lambda asked, found: np.zeros(len(found)), END, 7, 0.7, 2)
    found = drawing.draw(model_of(), prompts(4), TorchGenerator(3))
    assert_close(found.log_probs, drawing.log_probs_of(model_of(), found))
    assert len({int(row.sum()) for row in found.weights}) > 1, "answers have several lengths"


def test_an_answer_alone_is_the_answer_in_a_batch():
    asked = [prompt.token_ids for prompt in prompts(4)]
    together = answers(model_of(), asked, 6, temperature=0, end_id=END)
    for prompt, answer in zip(asked, together, strict=True):
        (alone,) = answers(model_of(), [prompt], 6, temperature=0, end_id=END)
        np.testing.assert_array_equal(alone.token_ids, answer.token_ids)
        assert_close(alone.log_probs, answer.log_probs)
        assert len(answer.token_ids) == 6 or answer.has_ended(END)
        assert END not in answer.token_ids[:-1]


def test_equal_rewards_teach_nothing_but_the_reference():
    found = drawn()._replace(rewards=np.ones(9))
    assert not with_group_advantages(found, 3).advantages.any()


def test_the_best_of_several_answers_is_the_one_of_the_highest_reward():
    def length(asked, found):
        return np.array([len(answer.token_ids) for answer in found], float)

    drawing = Drawing(length, END, 6, 1.0, 5)
    best = best_of(model_of(), prompts(3), drawing, TorchGenerator(2))
    judged = drawing.judged(model_of(), prompts(3), TorchGenerator(2))
    assert [reward for _, _, reward in best] == judged.rewards.reshape(3, 5).max(axis=1).tolist()
    assert [len(answer.token_ids) for _, answer, _ in best] == [reward for _, _, reward in best]


def test_a_class_head_is_trained_beside_the_rest_and_scores_classes():
    model = class_head(model_of(tie_weights=True), 4)
    assert model(np.array([[1, 2, 3]])).shape == (1, 3, 4)
    assert not model.config.tie_weights
    assert model.parameters.trf_blocks is not None
    assert model.named_parameters()["tok_emb.weight"] is not None
    with pytest.raises(InputError, match="scores 4 classes and no tokens"):
        model.decode(np.array([[1, 2]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Preferences(model_of(2, vocab_size=9)).loss(model_of(), cases()["preferences"][2]),
         "the reference has a vocabulary of 9 tokens"),
        (lambda: reward_of(model_of())(prompts(1), []), "a reward model has a head of one row"),
        (lambda: answers(model_of(), [np.arange(12)], 5), "prompt 0 has 12 tokens, and an answer may have 5"),
        (lambda: Drawing(lambda asked, found: np.full(len(found), np.nan), END, 3).judged(
            model_of(), prompts(2), TorchGenerator(1)), "the reward of answer 0 is nan"),
        (lambda: Drawing(lambda asked, found: np.zeros(1), END, 3).judged(
            model_of(), prompts(2), TorchGenerator(1)), r"the reward gave an array of shape \(1,\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_a_line(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_nothing_that_counts_gives_no_loss_and_no_gradient():
    goal, model, _ = cases()["answers"]
    batch = Examples([example._replace(answer=np.zeros(len(example.token_ids), bool)) for example in examples(2)])
    loss, grads = goal.loss_and_grads(model, batch.batch(np.arange(2)))
    assert loss == 0
    assert not any(gradient.any() for gradient in grads.values())


def test_actor_and_critic_are_trained_by_their_own_names():
    goal, both, batch = cases()["ppo"]
    _, grads = goal.loss_and_grads(both, batch, trained=lambda name: name == "critic.out_head.bias")
    assert set(grads) == {"critic.out_head.bias"}
    assert set(both.named_parameters()) >= {"out_head.weight", "critic.out_head.weight"}
    assert isinstance(both, ActorCritic)
    assert isinstance(both.actor, GPTModel)
    assert both.actor.config.vocab_size == CONFIG["vocab_size"]
