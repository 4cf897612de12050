"""Each goal of tuning: PyTorch's gradients of the same loss, uneven micro-batches, padding, draws and their rewards."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from numpygpt import GPTModel
from numpygpt.adapt import freeze
from numpygpt.adapt.head import class_head
from numpygpt.data.batching import Examples
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.decoding.answers import Answer, answers
from numpygpt.errors import InputError
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.training.goal import mean_loss
from numpygpt.tree import mapped
from numpygpt.tuning.answers import Answers
from numpygpt.tuning.backend import tokens_of
from numpygpt.tuning.distillation import Distillation
from numpygpt.tuning.experience import Experience
from numpygpt.tuning.policies import ActorCritic, ClippedValue, Grpo, OfPolicy, Ppo, Reinforce
from numpygpt.tuning.preferences import Preferences
from numpygpt.tuning.rollouts import Drawing, facts_of, reward_of, with_group_advantages, with_values
from parity_tests.tuning_cases import CONFIG, END, NAMES, cases, critic, drawn, examples, model_of, prompts
from parity_tests.tuning_properties import (
    PROPERTIES,
    WITH_PARTS,
    assert_agrees,
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


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_is_of_what_is_trained_and_has_the_scale_of_the_loss(name):
    goal, model, batch = cases()[name]
    _, whole = goal.loss_and_grads(model, batch)
    some = next(iter(whole))
    loss, alone = goal.loss_and_grads(model, batch, trained=lambda other: other == some, loss_scale=4.0)
    assert list(alone) == [some]
    assert_agrees(alone[some], 4 * whole[some])
    assert_agrees(loss, goal.loss(model, batch))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("ppo")])
def test_dropout_is_drawn_except_where_a_policy_learns(name):
    goal, model, batch = cases()[name]
    model.config = replace(model.config, drop_rate=0.3)
    loss, _ = goal.loss_and_grads(model, batch, rng=np.random.default_rng(1))
    assert (loss == goal.loss(model, batch)) == isinstance(goal, OfPolicy)


def test_what_several_batches_tell_is_weighted():
    """Their mean loss by what counts, their tokens without padding."""
    goal, model, batch = cases()["answers"]
    parts = parts_of(batch)[:2]
    assert_agrees(mean_loss(goal, model, parts), goal.loss(model, batch))
    assert mean_loss(goal, model, []) == 0
    assert tokens_of(batch) == batch.lengths.sum() < batch.inputs.size
    of_pairs = cases()["preferences"][2]
    assert tokens_of(of_pairs) == of_pairs.chosen.lengths.sum() + of_pairs.rejected.lengths.sum()


def test_a_new_head_is_trained_though_all_else_is_frozen():
    model = class_head(freeze(model_of(), ("*",)), 2)
    assert {name for name in model.named_parameters() if model.trained(name)} == {"out_head.weight", "out_head.bias"}


def test_an_answer_that_just_fits_is_written():
    (answer,) = answers(model_of(), [np.arange(12)], 4, temperature=0)
    assert len(answer.token_ids) == 4


def test_an_answer_alone_is_the_answer_in_a_batch():
    asked = [prompt.token_ids for prompt in prompts(4)]
    together = answers(model_of(), asked, 6, temperature=0, end_id=END)
    for prompt, answer in zip(asked, together, strict=True):
        (alone,) = answers(model_of(), [prompt], 6, temperature=0, end_id=END)
        np.testing.assert_array_equal(alone.token_ids, answer.token_ids)
        assert_agrees(alone.log_probs, answer.log_probs)
        assert len(answer.token_ids) == 6 or answer.has_ended(END)
        assert END not in answer.token_ids[:-1]


def parts_of(drawn):
    """The answers as micro-batches of one, three and the rest."""
    return [mapped(lambda array, some=some: array[some], drawn) for some in (np.s_[:1], np.s_[1:4], np.s_[4:])]


def test_ppo_and_what_is_told_do_not_depend_on_where_a_batch_is_cut():
    """The advantages are whitened over the whole batch, and the means are those of its answers and tokens."""
    whole, (expected,) = drawn(), with_values([drawn()], critic(), beta=0.1)
    found = with_values(parts_of(whole), critic(), beta=0.1)
    for name in ("advantages", "values", "returns"):
        assert_agrees(np.concatenate([getattr(part, name) for part in found]), getattr(expected, name))
    told, alone = facts_of(parts_of(whole)), facts_of([whole])
    assert told.keys() == alone.keys()
    assert_agrees(list(told.values()), list(alone.values()))
    assert_agrees(alone["kl"], (whole.log_probs - whole.reference_log_probs)[whole.weights].mean())


def test_without_a_reference_nothing_is_paid_for_a_distance():
    """With gamma and lambda 1, what is to come from each token is then the reward of its answer."""
    judge = reward_of(class_head(model_of(7), 1))
    found = Drawing(judge, END, 6, 0.8, 2).draw(model_of(), prompts(3), TorchGenerator(4))
    assert facts_of([found])["kl"] == 0
    (valued,) = with_values([found], critic(), beta=0.5, lam=1.0)
    assert_agrees(valued.returns, found.rewards[:, np.newaxis] * found.weights)


def test_a_reward_model_reads_each_answer_to_its_end():
    asked = prompts(3)
    judge, texts = class_head(model_of(7), 1), [np.array([END]), np.array([3, 7, 2, END]), np.array([1, 2])]
    scores = reward_of(judge)(asked, [Answer(text, np.zeros(len(text))) for text in texts])
    rows = [np.concatenate([one.token_ids, text]) for one, text in zip(asked, texts, strict=True)]
    alone = [judge(row[np.newaxis])[0, -1, 0] for row in rows]
    assert_agrees(scores, alone)


SETTINGS = {
    "template": "plain", "max_new_tokens": 5, "temperature": 0.9, "group": 2, "rounds": 2, "beta": 0.1, "gamma": 1.0,
    "lam": 0.9,
}  # fmt: skip


def experience():
    options = SimpleNamespace(settings=SETTINGS, accumulate=2, seed=3)
    return Experience(options, get_tokenizer("bytes+<|endoftext|>"), class_head(model_of(7), 1), model_of(8))


def test_a_step_of_ppo_draws_all_its_micro_batches_and_whitens_them_together():
    """The second round has the same answers again."""
    asked, found = iter([prompts(1), prompts(3)]), experience()
    first, second, *again = [found.next(model_of(), critic(), lambda: next(asked), TorchGenerator(1)) for _ in range(4)]
    assert [len(first.rewards), len(second.rewards)] == [2, 6]
    assert again[0] is first
    assert again[1] is second
    both = np.concatenate([batch.advantages[batch.weights] for batch in (first, second)])
    assert_agrees(both.sum(), 0, scale=len(both))
    assert abs(first.advantages[first.weights].mean()) > 0.01, "one alone is not whitened"


def test_the_reward_of_an_evaluation_is_the_mean_over_answers():
    found, rng = experience(), TorchGenerator(3)
    batches = [prompts(1), prompts(3)]
    rewards = [found.drawing.judged(model_of(), asked, rng).rewards for asked in batches]
    assert_agrees(found.loss(model_of(), batches), -np.concatenate(rewards).mean())


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
        (lambda: Answers("sum"), "the mean is over 'sum'; expected 'tokens' or 'sequences'"),
        (lambda: Grpo(over="sum"), "the mean is over 'sum'; expected 'tokens' or 'sequences'"),
        (lambda: ClippedValue(over="sum"), "the mean is over 'sum'; expected 'tokens' or 'sequences'"),
        (lambda: Distillation(model_of(), over="sum"), "the mean is over 'sum'; expected 'tokens' or 'sequences'"),
        (lambda: Ppo(value=ClippedValue(over="sequences")), "the policy's mean is over 'tokens' and the values' over"),
        (lambda: Reinforce(temperature=0.0), "temperature is 0.0; expected a positive number"),
        (lambda: reward_of(model_of())(prompts(1), []), "a reward model has a head of one row"),
        (lambda: answers(model_of(), [np.arange(12)], 5), "prompt 0 has 12 tokens, and an answer may have 5"),
        (lambda: Drawing(lambda asked, found: np.full(len(found), np.nan), END, 3).judged(
            model_of(), prompts(2), TorchGenerator(1)), "the reward of answer 0 is nan"),
        (lambda: Drawing(lambda asked, found: np.full(len(found), np.inf), END, 3).judged(
            model_of(), prompts(2), TorchGenerator(1)), "the reward of answer 0 is inf"),
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


def test_what_is_frozen_of_actor_or_critic_has_no_gradient():
    goal, both, batch = cases()["ppo"]
    frozen = ActorCritic(freeze(both.actor, ("trf_blocks.*",)), freeze(both.critic, ("tok_emb.weight", "final_norm.*")))
    of_critic = {"critic.tok_emb.weight", "critic.final_norm.scale", "critic.final_norm.shift"}
    assert {name for name in frozen.frozen if name.startswith("critic")} == of_critic
    assert {name.partition(".")[0] for name in frozen.frozen - of_critic} == {"trf_blocks"}
    _, grads = goal.loss_and_grads(frozen, batch)
    assert grads.keys() == frozen.named_parameters().keys() - frozen.frozen
