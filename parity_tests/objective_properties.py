"""The properties that must hold for what the model itself does not use: objectives, their operations, advantages.

They are in the manner of `properties`. All calls, and what PyTorch makes of them, are made before any bug is planted.
"""

import math
from collections import defaultdict
from functools import cache
from types import SimpleNamespace

import numpy as np
import torch

from numpygpt.checks.compare import compare
from numpygpt.checks.own_gradients import Case, check
from numpygpt.checks.records import OPERATIONS
from numpygpt.checks.source import at_random
from numpygpt.objectives import (
    classification,
    clipped_policy,
    clipped_value,
    distillation,
    dpo,
    grpo,
    hidden_match,
    next_token,
    reinforce,
    reward,
    weighted_next_token,
)
from numpygpt.ops import kl_divergence, kl_estimate, logistic_loss, relu, sigmoid, weighted_mean
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.training import advantages
from parity_tests.call_parity import cast, in_numpy, judged
from parity_tests.tolerances import FLOAT64_NORMWISE
from torchgpt.checks.objective_oracles import OBJECTIVE_ORACLES

#: The operations and objectives that have an oracle in `objective_oracles`.
RECORDS = {name: record for name, record in OPERATIONS.items() if name in OBJECTIVE_ORACLES}
DRAWN = {name: [record.draw(at_random(seed)) for seed in range(12)] for name, record in RECORDS.items()}


def agree(ours, expected, what="") -> None:
    """Two arrays or numbers are the same, except for the roundings of float64."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape, what
    assert np.linalg.norm(ours - expected) <= FLOAT64_NORMWISE * np.linalg.norm(expected), what


# Against the oracles


@cache
def judges(name, special, dtype):
    """What each of the calls of a record is judged by, with the call in this dtype."""
    record = RECORDS[name]
    calls = [cast(call, dtype) for call in (record.special.values() if special else DRAWN[name])]
    return [(call, *judged(record, call, dtype)) for call in calls]


def _agree_with_oracles(*, special, dtype) -> None:
    for name, record in RECORDS.items():
        for call, judged_by, saved_too in judges(name, special, dtype):
            ours = in_numpy(record, call, saved_too)
            wrong = [c for c in compare(ours, judged_by.truth, judged_by.allowed, dtype=dtype) if not c.passed]
            assert not wrong, (name, wrong)


def operations() -> None:
    _agree_with_oracles(special=False, dtype=np.float64)


def operations_at_extremes() -> None:
    _agree_with_oracles(special=True, dtype=np.float64)
    _agree_with_oracles(special=True, dtype=np.float32)


def operations_complex_step() -> None:
    for name, record in RECORDS.items():
        rng = np.random.default_rng(41)
        for what, call in STEPPED[name].items():
            wrong = [verdict for verdict in check(Case(name, record.module, *call), rng) if verdict.passed is not True]
            assert not wrong, (what, wrong)


STEPPED = {name: record.complex_step(at_random(40)) for name, record in RECORDS.items()}


# Parts of a batch

RNG = np.random.default_rng(42)
B, T, V, D = 5, 4, 7, 3
WEIGHTS = RNG.random((B, T)) * (RNG.random((B, T)) < 0.7)
WEIGHTS[1] = 0
TOKENS = {name: -3 * RNG.random((B, T)) for name in ("now", "then", "reference")}
REALS = {name: RNG.standard_normal((B, T)) for name in ("advantages", "values", "old_values", "returns")}
LOGITS, OTHER_LOGITS = RNG.standard_normal((2, B, T, V))
STATES, OTHER_STATES = RNG.standard_normal((2, B, T, D))
TARGETS = RNG.integers(0, V, (B, T))
TARGETS[0, 2] = IGNORE_INDEX
LABELS = np.array([3, IGNORE_INDEX, 0, 6, 2])
LENGTHS = np.array([4, 1, 2, 3, 4])
NAMES = ("chosen", "rejected", "reference_chosen", "reference_rejected")
PAIRS = dict(zip(NAMES, RNG.standard_normal((4, B)), strict=True))

#: {objective: (its module, its arguments, with a row for each sequence, and its options besides the mean)}
OF_TOKENS = {
    "weighted_next_token": (weighted_next_token, (LOGITS, TARGETS, WEIGHTS), {"smoothing": 0.1}),
    "reinforce": (reinforce, (TOKENS["now"], REALS["advantages"], WEIGHTS), {}),
    "clipped_policy": (clipped_policy, (TOKENS["now"], TOKENS["then"], REALS["advantages"], WEIGHTS), {}),
    "clipped_value": (clipped_value, (REALS["values"], REALS["old_values"], REALS["returns"], WEIGHTS), {}),
    "grpo": (grpo, (*TOKENS.values(), REALS["advantages"], WEIGHTS), {"beta": 0.5}),
    "distillation": (distillation, (LOGITS, OTHER_LOGITS, WEIGHTS), {"temperature": 2.0}),
    "hidden_match": (hidden_match, (STATES, OTHER_STATES, WEIGHTS), {}),
}
OF_SEQUENCES = {
    "classification": (classification, (LOGITS, LENGTHS, LABELS), {}, np.count_nonzero(LABELS != IGNORE_INDEX)),
    "reward": (reward, (PAIRS["chosen"], PAIRS["rejected"], RNG.random(B)), {}, B),
    "dpo": (dpo, tuple(PAIRS.values()), {"label_smoothing": 0.1}, B),
    "dpo, ipo": (dpo, tuple(PAIRS.values()), {"form": "ipo"}, B),
}
#: The first part has one sequence, the second two, of which one does not count, the third the rest.
PARTS = (slice(0, 1), slice(1, 3), slice(3, B))


def parts_of_batches() -> None:
    """Uneven parts of a batch, with the normalizer of the whole, add up to the whole, and so do their gradients."""
    for name, (module, arguments, options) in OF_TOKENS.items():
        weights = arguments[-1]
        if module is weighted_next_token:
            weights = np.where(TARGETS == IGNORE_INDEX, 0, WEIGHTS)
        for over in weighted_mean.WAYS:
            whole = weighted_mean.total(weights, over=over)
            _parts_add_up(name, module, arguments, {**options, "over": over}, whole)
    for name, (module, arguments, options, whole) in OF_SEQUENCES.items():
        _parts_add_up(name, module, arguments, options, whole)


def _parts_add_up(name, module, arguments, options, whole) -> None:
    loss, saved = module.forward(*arguments, **options)
    gradients = module.backward(1.5, saved)
    total, cut = 0.0, []
    for part in PARTS:
        part_of_loss, part_saved = module.forward(*(array[part] for array in arguments), **options, normalizer=whole)
        total += part_of_loss
        cut.append(module.backward(1.5, part_saved))
    agree(total, loss, name)
    for field, gradient in gradients._asdict().items():
        agree(np.concatenate([getattr(part, field) for part in cut]), gradient, f"{name}, {field}")


# What each objective must do


def objectives() -> None:
    for what_it_must_do in (
        _losses_at_the_beginning,
        _the_better_answer_is_pushed_up,
        _only_what_counts_counts,
        _the_clips_of_ppo,
        _distances,
        _infinities,
    ):
        what_it_must_do()


def _losses_at_the_beginning() -> None:
    """What is known without any arithmetic: a loss of log 2 for a tie, and the number of classes for equal logits."""
    ties = np.full(3, -2.5)
    agree(dpo.forward(ties, ties, ties, ties)[0], math.log(2))
    agree(dpo.forward(ties, ties - 1, ties, ties - 1)[0], math.log(2))
    agree(reward.forward(ties, ties)[0], math.log(2))
    agree(dpo.forward(ties, ties, ties, ties, form="ipo", beta=0.25)[0], 4.0)
    level = np.zeros((B, T, V))
    agree(classification.forward(level, LENGTHS, LABELS)[0], math.log(V))
    for over in ("tokens", "sequences"):
        agree(weighted_next_token.forward(level, TARGETS, WEIGHTS, over=over)[0], math.log(V))
    agree(weighted_next_token.forward(LOGITS, TARGETS)[0], next_token.forward(LOGITS, TARGETS)[0])
    assert dpo.forward(*np.zeros((4, 0)))[0] == 0
    agree(weighted_mean.forward(np.ones((2, 3)), np.array([[1.0, 1, 1], [1, 0, 0]]), over="sequences")[0], 1.0)


def _the_better_answer_is_pushed_up() -> None:
    """A step against the gradient makes the better answer more likely and the worse one less; a margin costs."""
    chosen, rejected = np.array([-3.0, 1.0]), np.array([-2.0, -1.0])
    for module, options in ((reward, {}), (dpo, {})):
        loss, saved = module.forward(chosen, rejected, **options)
        d_chosen, d_rejected = module.backward(1.0, saved)[:2]
        assert (d_chosen < 0).all()
        assert (d_rejected > 0).all()
        assert module.forward(chosen + 1, rejected)[0] < loss
    assert reward.forward(chosen, rejected, np.ones(2))[0] > reward.forward(chosen, rejected)[0]
    reference = np.array([-1.0, -2.0])
    assert dpo.forward(chosen, rejected, reference, reference)[1].rewards.tolist() == [
        [0.1 * -2.0, 0.1 * 3.0],
        [0.1 * -1.0, 0.1 * 1.0],
    ]
    assert dpo.forward(chosen, rejected, reference + 5, reference)[0] > dpo.forward(chosen, rejected)[0]
    smoothed, _ = dpo.forward(chosen + 9, rejected, beta=1.0, label_smoothing=0.1)
    assert smoothed < dpo.forward(rejected - 9, chosen, beta=1.0, label_smoothing=0.1)[0]
    good = np.ones((1, 1))
    loss, saved = reinforce.forward(-good, good, good)
    assert reinforce.backward(1.0, saved).log_probs[0, 0] == -1
    assert reinforce.forward(-good / 2, good, good)[0] < loss


def _only_what_counts_counts() -> None:
    """What stands where the weight is 0 changes nothing, though it be NaN; nor do the logits after the last token."""
    for name, (module, arguments, options) in OF_TOKENS.items():
        for over in weighted_mean.WAYS:
            loss, saved = module.forward(*arguments, **options, over=over)
            spoiled = [_spoiled(array, module is weighted_next_token) for array in arguments[:-1]]
            other, others_saved = module.forward(*spoiled, WEIGHTS, **options, over=over)
            assert other == loss, (name, over)
            for gradient, others in zip(module.backward(1.0, saved), module.backward(1.0, others_saved), strict=True):
                assert np.array_equal(gradient, others), (name, over)
    behind = np.where(np.arange(T) < LENGTHS[:, np.newaxis], 0, 1e3)[..., np.newaxis]
    with_padding, without = (classification.forward(x, LENGTHS, LABELS)[0] for x in (LOGITS + behind, LOGITS))
    assert with_padding == without
    ignored = np.where(RNG_OF_IGNORED < 0.5, IGNORE_INDEX, TARGETS)
    expected = next_token.forward(LOGITS, ignored)[0]
    agree(weighted_next_token.forward(LOGITS, ignored)[0], expected)
    agree(weighted_next_token.forward(LOGITS, TARGETS, ignored != IGNORE_INDEX)[0], expected)


RNG_OF_IGNORED = RNG.random((B, T))


def _spoiled(array, only_finite):
    """The array with other values at the positions that do not count."""
    if array.dtype != np.float64:
        return array
    counts = (WEIGHTS != 0).reshape(WEIGHTS.shape + (1,) * (array.ndim - 2))
    return np.where(counts, array, array + 1 if only_finite else np.nan)


def _the_clips_of_ppo() -> None:
    """Who is pushed, and who is not, for ratios below, inside and above the clip of either sign of the advantage."""
    ratios, A = np.array([[0.5, 1.0, 1.5, 0.5, 1.0, 1.5]]), np.array([[2.0, 2, 2, -2, -2, -2]])
    loss, saved = clipped_policy.forward(np.log(ratios), 0 * ratios, A, np.ones_like(A), over="sum")
    agree(loss, -(1.0 + 2 + 2.4 - 1.6 - 2 - 3))
    agree(clipped_policy.backward(1.0, saved).log_probs, np.array([[-1.0, -2, 0, 0, 2, 3]]))
    now, weights = TOKENS["now"], WEIGHTS
    first, policy = clipped_policy.forward(now, now, REALS["advantages"], weights)
    agree(first, -weighted_mean.forward(REALS["advantages"], weights)[0])
    _, plain = reinforce.forward(now, REALS["advantages"], weights)
    agree(clipped_policy.backward(1.0, policy).log_probs, reinforce.backward(1.0, plain).log_probs)
    values, old, returns = (np.array([row]) for row in ([1.0, 1, 1, 1], [0.5, 1.5, 0.9, 0.5], [2.0, 2, 2, 0]))
    loss, saved = clipped_value.forward(values, old, returns, np.ones((1, 4)), over="sum")
    agree(loss, (1.3**2 + 1.0 + 1.0 + 1.0) / 2)
    agree(clipped_value.backward(1.0, saved).values, np.array([[0.0, -1, -1, 1]]))


def _distances() -> None:
    """Divergences and distances that can be written down."""
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    divergence = 0.5 * math.log(2) - 0.25 * math.log(2)
    agree(kl_divergence.forward(np.log(p) + 3, np.log(q))[0], divergence)
    r, s = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    forward, reverse = (float((a * np.log(a / b)).sum()) for a, b in ((r, s), (s, r)))
    student, teacher, one = np.log(s)[np.newaxis, np.newaxis], np.log(r)[np.newaxis, np.newaxis], np.ones((1, 1))
    for direction, expected in (("forward", forward), ("reverse", reverse)):
        agree(distillation.forward(student, teacher, one, direction=direction)[0], expected)
        loss, _ = distillation.forward(4 * student, 4 * teacher, one, direction=direction, temperature=4.0)
        agree(loss, 16 * expected)
        assert distillation.forward(teacher, teacher, one, direction=direction)[0] == 0
    agree(kl_estimate.forward(np.log(np.array([0.5])), np.log(np.array([1.0])))[0], np.array([1 - math.log(2)]))
    agree(kl_estimate.forward(np.log(np.array([0.5])), np.log(np.array([1.0])), kind="k1")[0], np.array([-math.log(2)]))
    assert hidden_match.forward(STATES, STATES, WEIGHTS)[0] == 0
    agree(hidden_match.forward(STATES + 3, STATES, WEIGHTS)[0], 9.0)


def _infinities() -> None:
    """0 times infinity is 0, a good score that is infinite costs nothing, and NaN stays NaN."""
    none, one = -np.inf, np.ones((1, 2))
    logits = np.array([[1.0, none, 0.0]])
    y, saved = kl_divergence.forward(logits, logits)
    assert y == 0
    assert not any(gradient.any() for gradient in kl_divergence.backward(np.ones(1), saved))
    for kind in kl_estimate.KINDS:
        y, saved = kl_estimate.forward(np.array([none]), np.array([none]), kind=kind)
        assert y == 0
        assert kl_estimate.backward(np.ones(1), saved).log_probs == 0
    y, saved = logistic_loss.forward(np.array([np.inf, none]), np.array([1, 0]))
    assert not y.any()
    assert not logistic_loss.backward(np.ones(2), saved).x.any()
    _, saved = logistic_loss.forward(np.array([40.0, -40.0]), np.array([1, 0]))
    agree(logistic_loss.backward(np.ones(2), saved).x, math.exp(-40) / (1 + math.exp(-40)) * np.array([-1.0, 1.0]))
    assert np.isnan(relu.forward(np.array([np.nan]))[0])
    assert sigmoid.forward(np.array([1e3, -1e3]))[0].tolist() == [1, 0]
    excluded = np.array([[none, -1.0]])
    assert reinforce.forward(excluded, np.array([[0.0, 1.0]]), one)[0] == 0.5
    loss, saved = clipped_policy.forward(excluded, excluded, np.array([[1.0, 1.0]]), one)
    assert loss == -0.5
    assert clipped_policy.backward(1.0, saved).log_probs.tolist() == [[0, -0.5]]
    loss, saved = clipped_policy.forward(one, np.array([[-1e4, 1.0]]), np.array([[0.0, 1.0]]), one)
    assert loss == -0.5
    assert clipped_policy.backward(1.0, saved).log_probs.tolist() == [[0, -0.5]]


# trl's losses


@cache
def trainers():
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.grpo_trainer import GRPOTrainer

    return DPOTrainer, GRPOTrainer


def _of_trl(**attributes):
    """What trl's methods read of a trainer, for one process."""

    def same(x, **_):
        return x

    one_process = SimpleNamespace(
        device=torch.device("cpu"), num_processes=1, gather=same, gather_for_metrics=same, reduce=same
    )
    metrics = defaultdict(lambda: defaultdict(list))
    everything_off = {"aux_loss_enabled": False, "_entropy_bonus_enabled": False, "use_vllm": False}
    return SimpleNamespace(
        model=torch.nn.Identity(), accelerator=one_process, _metrics=metrics, **everything_off, **attributes
    )


def dpo_of_trl(tokens, reference_tokens, lengths, **attributes):
    """trl's loss, and its gradient for the log-probabilities (2 N, T) of the tokens, chosen answers first."""
    trainer_of_pairs, _ = trainers()
    log_probs = torch.tensor(tokens, requires_grad=True)
    mask = torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, np.newaxis]

    def outputs(log_probs):
        nothing = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs * mask, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
        )

    options = {"f_divergence_type": "reverse_kl", "ld_alpha": None, "loss_weights": [1.0], "use_weighting": False}
    trainer = _of_trl(
        **options,
        **attributes,
        precompute_ref_logps=True,
        _total_train_tokens=0,
        _tp_size=1,
    )
    prompt_too = torch.cat([torch.zeros(len(mask), 1, dtype=torch.bool), mask], dim=1)
    of_reference = (torch.tensor(reference_tokens) * mask).sum(dim=1).chunk(2)
    inputs = {
        **{name: prompt_too.long() for name in ("completion_mask", "input_ids", "attention_mask")},
        **dict(zip(("ref_chosen_logps", "ref_rejected_logps"), of_reference, strict=True)),
    }
    loss = trainer_of_pairs._compute_loss(trainer, lambda **_: outputs(log_probs), inputs, return_outputs=False)
    loss.backward()
    return loss.item(), log_probs.grad.numpy()


def grpo_of_trl(log_probs, old_log_probs, reference_log_probs, advantages, mask, *, parts=1, **options):
    """trl's loss, and its gradient for the log-probabilities (B, T) of the tokens.

    advantages   (B), of the answers
    parts        how many micro-batches the batch has of which this is one
    """
    _, trainer_of_groups = trainers()
    now = torch.tensor(log_probs, requires_grad=True)
    settings = {"beta": 0.0, "loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2} | options
    trainer = _of_trl(
        **settings,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=parts),
        current_gradient_accumulation_steps=parts,
        max_completion_length=9,
        _get_per_token_logps_and_entropies=lambda *_, **__: (now, torch.zeros_like(now), None),
    )
    ones = torch.tensor(mask).long()
    inputs = {
        **dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), ones),
        "advantages": torch.tensor(advantages),
        "old_per_token_logps": torch.tensor(old_log_probs),
        "ref_per_token_logps": torch.tensor(reference_log_probs),
        "num_items_in_batch": ones.sum(),
    }
    loss = trainer_of_groups._compute_loss(trainer, torch.nn.Identity(), inputs)
    loss.backward()
    return loss.item(), now.grad.numpy()


#: The answers have from 1 to T tokens. The weights are 1, because trl's masks are.
ANSWERS = np.arange(T) < LENGTHS[:, np.newaxis]
OF_ANSWERS = np.array([1.5, -0.5, 0.75, -2.0, 0.0])
DPO_LENGTHS = np.concatenate([LENGTHS, LENGTHS[::-1]])
DPO_TOKENS, DPO_REFERENCE = -2 * RNG.random((2, 2 * B, T)) * (np.arange(T) < DPO_LENGTHS[:, np.newaxis])
BY_LENGTH = {"chosen_lengths": DPO_LENGTHS[:B], "rejected_lengths": DPO_LENGTHS[B:]}


@cache
def losses_of_trl():
    """[(our options, trl's loss and gradients)] of DPO, of DPO without a reference, and of GRPO."""
    sigmoid, of_length = {"loss_types": ["sigmoid"], "beta": 0.3}, {"loss_types": ["sigmoid_norm"], "beta": 0.3}
    ipo = {"loss_types": ["ipo"], "beta": 0.3}
    of_dpo = [
        ({"beta": 0.3}, dpo_of_trl(DPO_TOKENS, DPO_REFERENCE, DPO_LENGTHS, **sigmoid)),
        ({"beta": 0.3, **BY_LENGTH}, dpo_of_trl(DPO_TOKENS, DPO_REFERENCE, DPO_LENGTHS, **of_length)),
        ({"beta": 0.3, "form": "ipo", **BY_LENGTH}, dpo_of_trl(DPO_TOKENS, DPO_REFERENCE, DPO_LENGTHS, **ipo)),
    ]
    free = [({"beta": 0.3}, dpo_of_trl(DPO_TOKENS, 0 * DPO_REFERENCE, DPO_LENGTHS, **sigmoid))]
    of_grpo = []
    for theirs, ours in (
        ("grpo", {"over": "sequences"}),
        ("bnpo", {"over": "tokens"}),
        ("dapo", {"over": "tokens"}),
        ("dr_grpo", {"over": "sum", "normalizer": B * 9.0}),
    ):
        for high in (0.2, 0.35):
            expected = grpo_of_trl(
                *TOKENS.values(), OF_ANSWERS, ANSWERS, loss_type=theirs, beta=0.5, epsilon_high=high
            )
            of_grpo.append(({**ours, "clip_high": high, "beta": 0.5}, expected))
    return of_dpo, free, of_grpo


def smoothed_by_trl():
    """For each pair trl's loss "aot", which sorts the pairs: of one pair it is DPO with smoothed labels."""
    for pair in range(B):
        both = [pair, B + pair]
        yield dpo_of_trl(
            DPO_TOKENS[both],
            DPO_REFERENCE[both],
            DPO_LENGTHS[both],
            loss_types=["aot"],
            beta=0.3,
            label_smoothing=0.1,
        )


@cache
def smoothed_losses():
    return [loss for loss, _ in smoothed_by_trl()]


def objectives_of_trl() -> None:
    of_dpo, free, of_grpo = losses_of_trl()
    sums = DPO_TOKENS.sum(axis=1), DPO_REFERENCE.sum(axis=1)
    for options, (expected, d_tokens) in of_dpo:
        loss, saved = dpo.forward(*(half for array in sums for half in np.split(array, 2)), **options)
        agree(loss, expected, options)
        _same_gradients_of_tokens(dpo.backward(1.0, saved), d_tokens)
    for options, (expected, d_tokens) in free:
        loss, saved = dpo.forward(*np.split(sums[0], 2), **options)
        agree(loss, expected)
        _same_gradients_of_tokens(dpo.backward(1.0, saved), d_tokens)
    for options, (expected, d_log_probs) in of_grpo:
        A = np.broadcast_to(OF_ANSWERS[:, np.newaxis], (B, T))
        loss, saved = grpo.forward(*TOKENS.values(), A, ANSWERS, **options)
        agree(loss, expected, options)
        agree(grpo.backward(1.0, saved).log_probs, d_log_probs, options)
    smoothed, _ = dpo.forward(
        *(half for array in sums for half in np.split(array, 2)), beta=0.3, label_smoothing=0.1
    )
    agree(smoothed, np.mean(smoothed_losses()))


def _same_gradients_of_tokens(gradients, d_tokens) -> None:
    """The gradient of an answer's sum is that of each of its tokens."""
    of_answers = np.concatenate([gradients.chosen, gradients.rejected])[:, np.newaxis]
    agree(np.where(np.arange(T) < DPO_LENGTHS[:, np.newaxis], of_answers, 0), d_tokens)


# Advantages

REWARDS = np.array([1.0, 0.0, 0.5, 2.0, 2.0, 2.0, -1.0, 3.0, 0.0])
SCORES = np.array([1.0, -2.0, 0.5, 3.0])
#: Answers with a gap, with all tokens, with one token at the end, and with padding behind.
COUNTS = np.array([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0]])
EACH = {name: RNG.standard_normal(COUNTS.shape) for name in ("rewards", "values", "now", "reference")}


def computed_advantages():
    """Everything that `advantages` computes, by name."""
    generalized = advantages.generalized(EACH["rewards"], EACH["values"], COUNTS, gamma=0.9, lam=0.8)
    return {
        "rewards": advantages.penalized_rewards(SCORES, EACH["now"], EACH["reference"], COUNTS, beta=0.3),
        "generalized": generalized.advantages,
        "returns": generalized.returns,
        "whitened": advantages.whitened(EACH["values"], COUNTS),
        "whitened_around_its_mean": advantages.whitened(EACH["values"], COUNTS, shift_mean=False),
        "of_groups": advantages.of_groups(REWARDS, 3),
        "of_groups_unscaled": advantages.of_groups(REWARDS, 3, scale=False),
        "leave_one_out": advantages.leave_one_out(REWARDS, 3),
    }


def advantages_by_loops() -> None:
    """Sums that are written out, answer by answer and token by token, and PyTorch's means and deviations."""
    ours = computed_advantages()
    expected = {name: np.zeros(COUNTS.shape) for name in ("rewards", "generalized", "returns")}
    for row, counts in enumerate(COUNTS):
        places = [t for t in range(len(counts)) if counts[t]]
        r, v = ([EACH[name][row, t] for t in places] + [0.0] for name in ("rewards", "values"))
        for i, t in enumerate(places):
            deltas = [r[k] + 0.9 * v[k + 1] - v[k] for k in range(len(places))]
            expected["generalized"][row, t] = sum((0.9 * 0.8) ** (k - i) * deltas[k] for k in range(i, len(places)))
            expected["returns"][row, t] = expected["generalized"][row, t] + v[i]
            expected["rewards"][row, t] = -0.3 * (EACH["now"][row, t] - EACH["reference"][row, t])
        expected["rewards"][row, places[-1]] += SCORES[row]
    chosen = torch.tensor(EACH["values"][COUNTS != 0])
    white = (chosen - chosen.mean()) * torch.rsqrt(chosen.var() + 1e-8)
    for name, values in (("whitened", white), ("whitened_around_its_mean", white + chosen.mean())):
        expected[name] = np.zeros(COUNTS.shape)
        expected[name][COUNTS != 0] = values.numpy()
    groups = torch.tensor(REWARDS).reshape(-1, 3)
    centered = groups - groups.mean(dim=1, keepdim=True)
    expected["of_groups"] = (centered / (groups.std(dim=1, keepdim=True) + 1e-4)).flatten().numpy()
    expected["of_groups_unscaled"] = centered.flatten().numpy()
    expected["leave_one_out"] = np.array(
        [reward - (groups[i // 3].sum().item() - reward) / 2 for i, reward in enumerate(REWARDS)]
    )
    assert ours.keys() == expected.keys()
    for name, array in expected.items():
        agree(ours[name], array, name)


def advantages_relations() -> None:
    """What must hold of them whatever the numbers are."""
    ours = computed_advantages()
    counts = COUNTS != 0
    for name in ("rewards", "generalized", "returns", "whitened"):
        assert not ours[name][~counts].any(), name
    whole = advantages.generalized(EACH["rewards"], EACH["values"], COUNTS, gamma=0.9, lam=1.0)
    step = advantages.generalized(EACH["rewards"], EACH["values"], COUNTS, gamma=0.9, lam=0.0)
    other_values = np.where(counts, EACH["values"] + 1, np.nan)
    without_them = advantages.generalized(EACH["rewards"], other_values, COUNTS, gamma=0.9, lam=1.0)
    agree(without_them.returns, whole.returns, "with lambda 1, returns are what came, whatever the values say")
    last = [(0, 3), (1, 4), (2, 4), (3, 1)]
    for row, t in last:
        agree(whole.returns[row, t], EACH["rewards"][row, t])
        agree(step.returns[row, t], EACH["rewards"][row, t])
    agree(step.returns[0, 0], EACH["rewards"][0, 0] + 0.9 * EACH["values"][0, 2])
    agree(whole.returns[3, 0], EACH["rewards"][3, 0] + 0.9 * EACH["rewards"][3, 1])
    scores, paid = advantages.penalized_rewards(SCORES, EACH["now"], EACH["now"], COUNTS, beta=0.3), 0.0
    for (row, t), score in zip(last, SCORES, strict=True):
        assert scores[row, t] == score
        paid += ours["rewards"][row, t] - score
    agree(scores.sum(), SCORES.sum())
    farther = advantages.penalized_rewards(SCORES, EACH["reference"] + 1, EACH["reference"], COUNTS, beta=0.3)
    agree(farther.sum(), SCORES.sum() - 0.3 * COUNTS.sum())
    chosen = ours["whitened"][counts]
    assert abs(chosen.sum()) <= FLOAT64_NORMWISE * len(chosen)
    assert 1 - 2 * advantages.WHITENING_EPS / EACH["values"][counts].var() < chosen.var(ddof=1) < 1
    for name in ("of_groups", "of_groups_unscaled", "leave_one_out"):
        groups = ours[name].reshape(-1, 3)
        assert (abs(groups.sum(axis=1)) <= FLOAT64_NORMWISE * abs(groups).sum(axis=1)).all(), name
        assert not groups[1].any(), "rewards that are equal"
    assert not advantages.of_groups(np.full(6, 0.1), 3).any()
    assert not advantages.leave_one_out(np.full(6, 0.1), 3).any()
    assert not advantages.whitened(np.full((2, 3), 0.1), np.ones((2, 3))).any()
    agree(ours["leave_one_out"], 1.5 * ours["of_groups_unscaled"])
    deviations = ours["of_groups"].reshape(-1, 3).std(axis=1, ddof=1)[[0, 2]]
    spread = REWARDS.reshape(-1, 3).std(axis=1, ddof=1)[[0, 2]]
    agree(deviations, spread / (spread + advantages.GROUP_EPS))


# What a run through everything tells


def tell(watch) -> None:
    """Tell the output and the gradients of the drawn calls of each operation, in one array each, then advantages."""
    for name, record in RECORDS.items():
        results = [in_numpy(record, call) for call in DRAWN[name]]
        for tensor in dict.fromkeys(tensor for result in results for tensor in result):
            parts = [result[tensor].ravel() for result in results if tensor in result]
            watch(f"operations.{name}.{tensor}", np.concatenate(parts))
    for name, array in computed_advantages().items():
        watch(f"advantages.{name}", array)


def references() -> None:
    """Make what PyTorch and trl compute, before any bug is planted."""
    for name in RECORDS:
        judges(name, False, np.float64)
        judges(name, True, np.float64)
        judges(name, True, np.float32)
    losses_of_trl()
    smoothed_losses()


PROPERTIES = {
    "operations": operations,
    "operations_complex_step": operations_complex_step,
    "operations_at_extremes": operations_at_extremes,
    "parts_of_batches": parts_of_batches,
    "objectives": objectives,
    "objectives_of_trl": objectives_of_trl,
    "advantages": advantages_by_loops,
    "advantages_relations": advantages_relations,
}
