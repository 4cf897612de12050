"""What the docstrings of objectives and their operations claim, where they differ from trl's, and what they refuse."""

import numpy as np
import pytest

from numpygpt.errors import InputError
from numpygpt.objectives import (
    classification,
    clipped_policy,
    clipped_value,
    distillation,
    dpo,
    grpo,
    hidden_match,
    reinforce,
    reward,
    weighted_next_token,
)
from numpygpt.ops import kl_divergence, kl_estimate, token_log_probs, weighted_mean
from numpygpt.training import advantages
from parity_tests import objective_properties as tiny
from parity_tests.objective_properties import agree, dpo_of_trl, grpo_of_trl

# The estimates of the divergence

V = 6
POLICY = np.random.default_rng(51).standard_normal(V)
REFERENCE = POLICY + 0.3 * np.random.default_rng(55).standard_normal(V)


def of_each_token(logits):
    """The log-probabilities (V) of all tokens, and what their backward needs."""
    return token_log_probs.forward(np.broadcast_to(logits, (V, V)).copy(), np.arange(V))


LOG_PI, LOG_RHO = of_each_token(POLICY)[0], of_each_token(REFERENCE)[0]
PI = np.exp(LOG_PI)
KL = kl_divergence.forward(POLICY, REFERENCE)[0]


@pytest.mark.parametrize("kind", kl_estimate.KINDS)
def test_the_mean_of_an_estimate_over_all_tokens_is_the_divergence_except_for_k2s_bias(kind):
    """Each token counts by its probability, so there is nothing random."""
    y, _ = kl_estimate.forward(LOG_PI, LOG_RHO, kind=kind)
    mean = (PI * y).sum()
    if kind != "k2":
        agree(mean, KL)
        return
    assert abs(mean / KL - 1) > 0.1
    nearer = LOG_PI + 0.01 * (LOG_RHO - LOG_PI)
    nearer -= np.log(np.exp(nearer).sum())
    near_divergence = (PI * (LOG_PI - nearer)).sum()
    near = (PI * kl_estimate.forward(LOG_PI, nearer, kind="k2")[0]).sum()
    assert abs(near / near_divergence - 1) < abs(mean / KL - 1) / 10, "the bias is of the third order"


def test_on_sampled_tokens_k1_and_k3_are_unbiased_and_k2_and_k3_spread_less():
    """The bounds are five standard errors of the mean, which are measured. The policies are near to each other."""
    ids = np.random.default_rng(57).choice(V, size=20_000, p=PI)
    drawn = {kind: kl_estimate.forward(LOG_PI[ids], LOG_RHO[ids], kind=kind)[0] for kind in kl_estimate.KINDS}
    off = {kind: abs(y.mean() - KL) / (y.std() / np.sqrt(len(y))) for kind, y in drawn.items()}
    assert off["k1"] < 5
    assert off["k3"] < 5
    assert off["k2"] > 5
    assert drawn["k1"].min() < 0 <= min(drawn["k2"].min(), drawn["k3"].min())
    assert max(drawn["k2"].var(), drawn["k3"].var()) < drawn["k1"].var()


@pytest.mark.parametrize("kind", kl_estimate.KINDS)
def test_as_a_loss_only_k2_has_the_gradient_of_the_divergence(kind):
    """The mean gradient over the tokens that the policy draws: k1's is 0, and k3's is that of the other direction."""
    log_probs, through_logits = of_each_token(POLICY)
    _, saved = kl_estimate.forward(log_probs, LOG_RHO, kind=kind)
    d_log_probs = kl_estimate.backward(PI, saved).log_probs
    d_logits = token_log_probs.backward(d_log_probs, through_logits).logits.sum(axis=0)
    d_forward = kl_divergence.backward(np.ones(()), kl_divergence.forward(POLICY, REFERENCE)[1]).first
    d_reverse = kl_divergence.backward(np.ones(()), kl_divergence.forward(REFERENCE, POLICY)[1]).second
    if kind == "k1":
        agree(d_logits + d_forward, d_forward)
        return
    agree(d_logits, d_forward if kind == "k2" else d_reverse)
    assert np.linalg.norm(d_reverse - d_forward) > 0.1 * np.linalg.norm(d_forward)


def test_the_gradient_of_reinforce_is_that_of_the_expected_reward_whatever_the_baseline_is():
    rewards = np.random.default_rng(53).standard_normal(V)
    d_expected = PI * (rewards - (PI * rewards).sum())
    for baseline in (0.0, 3.0, rewards.mean()):
        log_probs, through_logits = of_each_token(POLICY)
        one_a_row = log_probs[:, np.newaxis], (rewards - baseline)[:, np.newaxis], PI[:, np.newaxis]
        _, saved = reinforce.forward(*one_a_row, over="sum")
        d_log_probs = reinforce.backward(1.0, saved).log_probs[:, 0]
        d_logits = token_log_probs.backward(d_log_probs, through_logits).logits.sum(axis=0)
        agree(-d_logits, d_expected)


# Where trl differs, and why

A = np.broadcast_to(tiny.OF_ANSWERS[:, np.newaxis], tiny.ANSWERS.shape)


def parts_by_trl(loss_type):
    """trl's loss of the batch, and the sum of its losses of two uneven micro-batches, as its trainer adds them up."""
    arrays = (*tiny.TOKENS.values(), tiny.OF_ANSWERS, tiny.ANSWERS)
    whole, _ = grpo_of_trl(*arrays, loss_type=loss_type)
    cuts = [[array[part] for array in arrays] for part in (slice(1), slice(1, None))]
    parts = [grpo_of_trl(*cut, loss_type=loss_type, parts=2) for cut in cuts]
    return whole, sum(loss for loss, _ in parts)


@pytest.mark.parametrize(("loss_type", "over"), [("bnpo", "tokens"), ("grpo", "sequences")])
def test_trl_averages_the_means_of_micro_batches_and_ours_add_up_to_the_mean_of_the_batch(loss_type, over):
    """The fault is known (transformers#35203). trl's "dapo" is its way out, as `normalizer` is ours."""
    whole, in_parts = parts_by_trl(loss_type)
    assert abs(in_parts - whole) > abs(whole) / 100
    normalizer = weighted_mean.total(tiny.ANSWERS, over=over)
    ours = sum(
        grpo.forward(
            *(a[part] for a in (*tiny.TOKENS.values(), A, tiny.ANSWERS)), beta=0.0, over=over, normalizer=normalizer
        )[0]
        for part in (slice(1), slice(1, None))
    )
    agree(ours, whole)


def test_an_answer_without_tokens_is_an_answer_for_trl_and_none_here():
    """Ours divides by the answers that have tokens; with the number of all as the normalizer, it is trl's."""
    some = tiny.ANSWERS & (np.arange(len(tiny.ANSWERS)) != 2)[:, np.newaxis]
    theirs, _ = grpo_of_trl(*tiny.TOKENS.values(), tiny.OF_ANSWERS, some)
    arguments = *tiny.TOKENS.values(), A, some
    agree(grpo.forward(*arguments, beta=0.0)[0], theirs * 5 / 4)
    agree(grpo.forward(*arguments, beta=0.0, normalizer=5.0)[0], theirs)


def test_trls_robust_loss_is_another_correction_of_labels_than_smoothing():
    """rDPO (Chowdhury et al. 2024, arXiv:2403.00409) subtracts the flipped loss; conservative DPO adds it."""
    halves = [half for array in (tiny.DPO_TOKENS, tiny.DPO_REFERENCE) for half in np.split(array.sum(axis=1), 2)]
    arguments = tiny.DPO_TOKENS, tiny.DPO_REFERENCE, tiny.DPO_LENGTHS
    theirs, _ = dpo_of_trl(*arguments, loss_types=["robust"], beta=0.3, label_smoothing=0.1)
    right, _ = dpo.forward(*halves, beta=0.3)
    flipped, _ = dpo.forward(*(halves[i] for i in (1, 0, 3, 2)), beta=0.3)
    agree(theirs, (0.9 * right - 0.1 * flipped) / 0.8)
    agree(dpo.forward(*halves, beta=0.3, label_smoothing=0.1)[0], 0.9 * right + 0.1 * flipped)


def test_where_all_rewards_of_a_prompt_are_equal_only_the_divergence_has_a_gradient():
    equal = np.repeat(advantages.of_groups(np.full(4, 0.1), 2), 3).reshape(4, 3)
    log_probs, old, reference = -np.random.default_rng(54).random((3, 4, 3))
    for beta in (0.0, 0.5):
        _, saved = grpo.forward(log_probs, old, reference, equal, np.ones((4, 3)), beta=beta)
        assert grpo.backward(1.0, saved).log_probs.any() == (beta > 0)


# Bad input

ONE, TWO = np.ones((1, 2)), np.ones((2, 2))
NAN = np.array([[np.nan, 1.0]])
IDS = np.array([[0, 1]])
LOGITS = np.zeros((1, 2, 3))
PAIR = np.zeros(1), np.zeros(1)

REFUSED = {
    "the mean is over 'words'; expected one of 'tokens', 'sequences', 'sum'": lambda: weighted_mean.forward(
        ONE, ONE, over="words", normalizer=2.0
    ),
    "the estimate of the divergence is 'k4'; expected one of 'k1', 'k2', 'k3'": lambda: kl_estimate.forward(
        ONE, ONE, kind="k4"
    ),
    "token id 3 is outside the vocabulary of 3; ids go from 0 to 2": lambda: weighted_next_token.forward(
        LOGITS, IDS + 2
    ),
    "smoothing is 1.0; expected a number from 0 to below 1": lambda: weighted_next_token.forward(
        LOGITS, IDS, smoothing=1.0
    ),
    "text 0 has 0 tokens; expected from 1 to 2": lambda: classification.forward(LOGITS, np.array([0]), np.array([1])),
    "the label of text 0 is 3; expected one of 3 classes, from 0 to 2": lambda: classification.forward(
        LOGITS, np.array([2]), np.array([3])
    ),
    "the form of DPO is 'kto'; expected 'sigmoid' or 'ipo'": lambda: dpo.forward(*PAIR, form="kto"),
    "beta is 0.0; expected a positive number": lambda: dpo.forward(*PAIR, beta=0.0),
    "label_smoothing is 0.5; expected from 0 to below 0.5": lambda: dpo.forward(*PAIR, label_smoothing=0.5),
    "label_smoothing is 0.1, which the form 'ipo' does not have; leave it out": lambda: dpo.forward(
        *PAIR, form="ipo", label_smoothing=0.1
    ),
    "the reference log-probabilities of the rejected answers are missing; expected those of both or of none": (
        lambda: dpo.forward(*PAIR, np.zeros(1))
    ),
    "the chosen answer 0 has 0 tokens; expected at least 1": lambda: dpo.forward(
        *PAIR, chosen_lengths=np.array([0]), rejected_lengths=np.array([1])
    ),
    "the advantage of token 0 of answer 0 is nan; expected a finite number": lambda: reinforce.forward(ONE, NAN, ONE),
    "the advantage of token 1 of answer 0 is nan; expected a finite number": lambda: reinforce.forward(
        TWO, np.array([[0.0, np.nan], [np.nan, 0.0]]), np.ones((2, 2))
    ),
    "the advantage of token 0 of answer 0 is inf; expected a finite number": lambda: clipped_policy.forward(
        ONE, ONE, np.array([[np.inf, 1.0]]), ONE
    ),
    "clip is 1.0; expected a number between 0 and 1": lambda: clipped_policy.forward(ONE, ONE, ONE, ONE, clip=1.0),
    "clip_high is 0.0; expected a positive number": lambda: clipped_policy.forward(ONE, ONE, ONE, ONE, clip_high=0.0),
    "the clip of the values is 0.0; expected a positive number": lambda: clipped_value.forward(
        ONE, ONE, ONE, ONE, clip=0.0
    ),
    "beta is -1.0; expected 0 or a positive number": lambda: grpo.forward(ONE, ONE, ONE, ONE, ONE, beta=-1.0),
    "beta is -2.0; expected 0 or a positive number": lambda: advantages.penalized_rewards(
        np.zeros(1), ONE, ONE, ONE, beta=-2.0
    ),
    "the direction is 'both'; expected 'forward' or 'reverse'": lambda: distillation.forward(
        LOGITS, LOGITS, ONE, direction="both"
    ),
    "temperature is 0.0; expected a positive number": lambda: distillation.forward(
        LOGITS, LOGITS, ONE, temperature=0.0
    ),
    "the student has a vocabulary of 3 and the teacher one of 4; expected the same": lambda: distillation.forward(
        LOGITS, np.zeros((1, 2, 4)), ONE
    ),
    "the student's hidden states are (1, 2, 3) and the teacher's (1, 2, 4); expected the same": (
        lambda: hidden_match.forward(LOGITS, np.zeros((1, 2, 4)), ONE)
    ),
    "answer 1 has no tokens; expected at least 1": lambda: advantages.penalized_rewards(
        np.zeros(2), TWO, TWO, np.array([[1, 0], [0, 0]]), beta=0.1
    ),
    "the score of answer 0 is nan; expected a finite number": lambda: advantages.penalized_rewards(
        np.array([np.nan]), ONE, ONE, ONE, beta=0.1
    ),
    "gamma is 1.5; expected a number from 0 to 1": lambda: advantages.generalized(ONE, ONE, ONE, gamma=1.5),
    "lam is -1.0; expected a number from 0 to 1": lambda: advantages.generalized(ONE, ONE, ONE, lam=-1.0),
    "the reward of token 0 of answer 0 is nan; expected a finite number": lambda: advantages.generalized(NAN, ONE, ONE),
    "the value of token 0 of answer 0 is nan; expected a finite number": lambda: advantages.generalized(ONE, NAN, ONE),
    "3 rewards in groups of 2; expected full groups of 2 or more": lambda: advantages.of_groups(np.zeros(3), 2),
    "3 rewards in groups of 1; expected full groups of 2 or more": lambda: advantages.leave_one_out(np.zeros(3), 1),
    "the reward of answer 1 is nan; expected a finite number": lambda: advantages.of_groups(np.array([0, np.nan]), 2),
    # The first of several is named, and what is far outside is refused as what is just outside.
    "text 1 has 7 tokens; expected from 1 to 2": lambda: classification.forward(
        np.zeros((3, 2, 3)), np.array([2, 7, 0]), np.array([1, 1, 1])
    ),
    "the label of text 1 is -1; expected one of 3 classes, from 0 to 2": lambda: classification.forward(
        np.zeros((3, 2, 3)), np.array([2, 2, 2]), np.array([1, -1, 7])
    ),
    "the label of text 0 is 7; expected one of 3 classes, from 0 to 2": lambda: classification.forward(
        LOGITS, np.array([2]), np.array([7])
    ),
    "the label of text 0 is -200; expected one of 3 classes, from 0 to 2": lambda: classification.forward(
        LOGITS, np.array([2]), np.array([-200])
    ),
    "token id -1 is outside the vocabulary of 3; ids go from 0 to 2": lambda: token_log_probs.forward(
        LOGITS, np.array([[-1, 7]])
    ),
    "token id 7 is outside the vocabulary of 3; ids go from 0 to 2": lambda: token_log_probs.forward(
        LOGITS, np.array([[7, 2]])
    ),
    "token id -200 is outside the vocabulary of 3; ids go from 0 to 2": lambda: token_log_probs.forward(
        LOGITS, np.array([[0, -200]])
    ),
    "smoothing is -0.5; expected a number from 0 to below 1": lambda: token_log_probs.forward(
        LOGITS, IDS, smoothing=-0.5
    ),
    "smoothing is 1.5; expected a number from 0 to below 1": lambda: token_log_probs.forward(
        LOGITS, IDS, smoothing=1.5
    ),
    "clip is 0.0; expected a number between 0 and 1": lambda: clipped_policy.forward(ONE, ONE, ONE, ONE, clip=0.0),
    "clip is -0.5; expected a number between 0 and 1": lambda: clipped_policy.forward(ONE, ONE, ONE, ONE, clip=-0.5),
    "clip is 1.5; expected a number between 0 and 1": lambda: clipped_policy.forward(ONE, ONE, ONE, ONE, clip=1.5),
    "clip_high is -1.0; expected a positive number": lambda: clipped_policy.forward(ONE, ONE, ONE, ONE, clip_high=-1.0),
    "the clip of the values is -0.5; expected a positive number": lambda: clipped_value.forward(
        ONE, ONE, ONE, ONE, clip=-0.5
    ),
    "beta is -0.5; expected a positive number": lambda: dpo.forward(*PAIR, beta=-0.5),
    "beta is inf; expected a positive number": lambda: dpo.forward(*PAIR, beta=float("inf")),
    "label_smoothing is -0.1; expected from 0 to below 0.5": lambda: dpo.forward(*PAIR, label_smoothing=-0.1),
    "label_smoothing is 0.7; expected from 0 to below 0.5": lambda: dpo.forward(*PAIR, label_smoothing=0.7),
    "the rejected answer 1 has 0 tokens; expected at least 1": lambda: dpo.forward(
        np.zeros(3), np.zeros(3), chosen_lengths=np.array([1, 2, 3]), rejected_lengths=np.array([1, 0, -1])
    ),
    "temperature is -1.0; expected a positive number": lambda: distillation.forward(
        LOGITS, LOGITS, ONE, temperature=-1.0
    ),
    "temperature is inf; expected a positive number": lambda: distillation.forward(
        LOGITS, LOGITS, ONE, temperature=float("inf")
    ),
    "the student has a vocabulary of 4 and the teacher one of 3; expected the same": lambda: distillation.forward(
        np.zeros((1, 2, 4)), LOGITS, ONE
    ),
    "the student's hidden states are (1, 2, 4) and the teacher's (1, 2, 3); expected the same": (
        lambda: hidden_match.forward(np.zeros((1, 2, 4)), LOGITS, ONE)
    ),
    "the reference log-probabilities of the chosen answers are missing; expected those of both or of none": (
        lambda: dpo.forward(*PAIR, None, np.zeros(1))
    ),
    "beta is inf; expected 0 or a positive number": lambda: grpo.forward(ONE, ONE, ONE, ONE, ONE, beta=float("inf")),
    "beta is -0.25; expected 0 or a positive number": lambda: advantages.penalized_rewards(
        np.zeros(1), ONE, ONE, ONE, beta=-0.25
    ),
    "answer 0 has no tokens; expected at least 1": lambda: advantages.penalized_rewards(
        np.zeros(3), *np.zeros((2, 3, 2)), np.array([[0, 0], [1, 1], [0, 0]]), beta=0.1
    ),
    "the reward of token 1 of answer 0 is nan; expected a finite number": lambda: advantages.generalized(
        np.array([[0.0, np.nan], [np.nan, 0.0]]), TWO, TWO
    ),
    "gamma is -0.5; expected a number from 0 to 1": lambda: advantages.generalized(ONE, ONE, ONE, gamma=-0.5),
    "lam is 1.5; expected a number from 0 to 1": lambda: advantages.generalized(ONE, ONE, ONE, lam=1.5),
    "4 rewards in groups of 1; expected full groups of 2 or more": lambda: advantages.of_groups(np.zeros(4), 1),
    "the reward of answer 1 is inf; expected a finite number": lambda: advantages.of_groups(
        np.array([0, np.inf, np.nan, 0]), 2
    ),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(line):
    with pytest.raises(InputError) as refusal:
        REFUSED[line]()
    assert str(refusal.value) == line


@pytest.mark.parametrize("module", [reward, dpo])
def test_one_pair_and_no_pair_are_batches(module):
    for pairs in (1, 0):
        loss, saved = module.forward(np.zeros(pairs), np.zeros(pairs))
        assert loss == (np.log(2) if pairs else 0)
        assert module.backward(1.0, saved).chosen.shape == (pairs,)


def test_what_no_token_counts_of_is_0_without_a_warning():
    for module, arguments, options in tiny.OF_TOKENS.values():
        for over in weighted_mean.WAYS:
            loss, saved = module.forward(*arguments[:-1], np.zeros(tiny.WEIGHTS.shape), **options, over=over)
            assert loss == 0
            assert not any(gradient.any() for gradient in module.backward(1.0, saved))


def test_a_column_that_is_padding_alone_is_no_answer_without_tokens():
    paid = advantages.penalized_rewards(np.array([2.0]), ONE, ONE, np.array([[1, 0]]), beta=0.1)
    np.testing.assert_array_equal(paid, [[2.0, 0.0]])


def test_an_infinite_penalty_is_refused():
    with pytest.raises(InputError, match="beta is inf; expected 0 or a positive number"):
        advantages.penalized_rewards(np.zeros(1), ONE, ONE, ONE, beta=float("inf"))


def test_a_weight_of_0_hides_an_infinity_from_the_mean_and_a_sum_divides_by_1():
    x, weights = np.array([[-np.inf, 3.0]]), np.array([[0.0, 1.0]])
    assert weighted_mean.forward(x, weights)[0] == 3
    assert weighted_mean.total(weights, over="sum") == 1


def test_without_weights_each_token_counts_once():
    loss, _ = weighted_next_token.forward(LOGITS, IDS, over="sum")
    agree(loss, 2 * np.log(3))


def test_a_value_is_clipped_on_both_sides_of_the_old_one():
    """Half the larger of two squares: of the value's error, and of that of the value within 1 of the old one."""
    values, returns = np.array([[-3.0, 3.0, 0.5, -0.5]]), np.array([[-4.0, 4.0, 0.0, 0.0]])
    loss, _ = clipped_value.forward(values, np.zeros((1, 4)), returns, np.ones((1, 4)), clip=1.0)
    agree(loss, (9 + 9 + 0.25 + 0.25) / 2 / 4)


def test_smoothed_labels_share_what_is_lost_between_both_answers():
    loss, _ = dpo.forward(np.array([2.0]), np.array([-1.0]), beta=0.5, label_smoothing=0.2)
    agree(loss, 0.8 * np.log1p(np.exp(-1.5)) + 0.2 * np.log1p(np.exp(1.5)))


def test_the_upper_bound_of_a_ratio_may_be_another_one():
    log_probs = np.log(np.array([[1.5, 1.2]]))
    loss, _ = clipped_policy.forward(log_probs, np.zeros((1, 2)), ONE, ONE, clip=0.1, clip_high=0.25)
    agree(loss, -(1.25 + 1.2) / 2)


def test_a_large_vocabulary_is_as_large_as_itself():
    logits = np.random.default_rng(59).standard_normal((1, 2, 300))
    agree(distillation.forward(logits, logits.copy(), np.ones((1, 2)))[0] + 1, 1.0)


def test_the_last_reward_counts_whole_for_all_tokens_unless_gamma_says_otherwise():
    rewards, values = np.array([[0.0, 8.0]]), np.zeros((1, 2))
    np.testing.assert_array_equal(advantages.generalized(rewards, values, ONE, lam=1.0).advantages, [[8.0, 8.0]])


def test_one_value_and_none_can_be_whitened():
    x, one, none = np.array([[5.0, 3.0]]), np.array([[0, 1]]), np.zeros((1, 2))
    np.testing.assert_array_equal(advantages.whitened(x, one), [[0.0, 0.0]])
    np.testing.assert_array_equal(advantages.whitened(x, one, shift_mean=False), [[0.0, 3.0]])
    np.testing.assert_array_equal(advantages.whitened(x, none), [[0.0, 0.0]])


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [2, 1, 0]])
def test_whitened_values_do_not_depend_on_which_is_the_first(order):
    x, weights = np.array([[1.0, 2.0, 4.0]]), np.ones((1, 3))
    agree(advantages.whitened(x[:, order], weights), advantages.whitened(x, weights)[:, order])
    assert advantages.whitened(x[:, order], weights).any()


def test_without_beta_a_score_is_the_reward_however_far_the_reference_is():
    far = np.array([[-1.0, -np.inf]])
    paid = advantages.penalized_rewards(np.array([2.0]), far, far - 1, ONE, beta=0.0)
    np.testing.assert_array_equal(paid, [[0.0, 2.0]])


@pytest.mark.parametrize("over", weighted_mean.WAYS)
def test_a_normalizer_that_is_a_number_of_numpy_leaves_float32_as_it_is(over):
    y, saved = weighted_mean.forward(np.float32(TWO), TWO, over=over, normalizer=np.float64(3))
    assert {y.dtype, weighted_mean.backward(y, saved).x.dtype} == {np.dtype(np.float32)}
