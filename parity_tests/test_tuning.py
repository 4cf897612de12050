"""Each goal of tuning: PyTorch's gradients of the same loss, uneven micro-batches, padding, draws and their rewards."""

import numpy as np
import pytest

from numpygpt import GPTModel
from numpygpt.adapt.head import class_head
from numpygpt.data.batching import Examples
from numpygpt.decoding.answers import answers
from numpygpt.errors import InputError
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.tuning.policies import ActorCritic
from numpygpt.tuning.preferences import Preferences
from numpygpt.tuning.rollouts import Drawing, reward_of, with_group_advantages
from parity_tests.tuning_cases import CONFIG, END, NAMES, cases, drawn, examples, model_of, prompts
from parity_tests.tuning_properties import (
    PROPERTIES,
    WITH_PARTS,
    assert_equal_to_rounding,
    assert_is_pytorchs,
    assert_parts_are_the_whole,
)

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_pytorchs(name):
    assert_is_pytorchs(name)


@pytest.mark.parametrize("name", WITH_PARTS)
def test_uneven_micro_batches_are_the_whole_batch(name):
    assert_parts_are_the_whole(name)


@pytest.mark.parametrize("name", [name for name in PROPERTIES if not name.startswith("goals")])
def test_answers_and_what_they_are_worth(name):
    PROPERTIES[name]()


@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_float32(name):
    goal, model, batch = cases(np.float32)[name]
    loss, grads = goal.loss_and_grads(model, batch)
    assert loss.dtype == np.float32
    assert {gradient.dtype for gradient in grads.values()} == {np.dtype(np.float32)}
    assert np.isfinite(float(loss))


def test_an_answer_alone_is_the_answer_in_a_batch():
    asked = [prompt.token_ids for prompt in prompts(4)]
    together = answers(model_of(), asked, 6, temperature=0, end_id=END)
    for prompt, answer in zip(asked, together, strict=True):
        (alone,) = answers(model_of(), [prompt], 6, temperature=0, end_id=END)
        np.testing.assert_array_equal(alone.token_ids, answer.token_ids)
        assert_equal_to_rounding(alone.log_probs, answer.log_probs)
        assert len(answer.token_ids) == 6 or answer.has_ended(END)
        assert END not in answer.token_ids[:-1]


def test_equal_rewards_teach_nothing_but_the_reference():
    found = drawn()._replace(rewards=np.ones(9))
    assert not with_group_advantages(found, 3).advantages.any()


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
