"""Training: the book's functions, the step, accumulation, clipping, schedules, and a loss that is not finite."""

import contextlib
import io
import math
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpygpt import (
    AdamW,
    GPTConfig,
    GPTModel,
    InputError,
    TorchGenerator,
    calc_loss_batch,
    calc_loss_loader,
    clip_grad_norm,
    create_dataloader_v1,
    evaluate_model,
    generate_text_simple,
    get_tokenizer,
    text_to_token_ids,
    token_ids_to_text,
    train_model_simple,
)
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.training.schedules import constant, warmup_cosine
from numpygpt.training.step import loss_and_grads_of, training_step
from parity_tests.tolerances import FLOAT64_NORMWISE

CONFIG = GPTConfig(vocab_size=256, context_length=8, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.2, qkv_bias=False)
BYTES = get_tokenizer("bytes")
TEXT = "to be or not to be, that is the question. " * 4
EPS = np.finfo(np.float64).eps


def model_of(**changes):
    return GPTModel({**CONFIG.to_dict(), **changes.pop("config", {})}, seed=1, **changes)


def loader_of(text=TEXT, batch_size=4, **options):
    return create_dataloader_v1(text, batch_size, 8, 8, tokenizer=BYTES, **{"rng": 5, **options})


def batch_of(rows=4, seed=0):
    ids = np.random.default_rng(seed).integers(0, 256, (rows, 9))
    return ids[:, :-1], ids[:, 1:].copy()


def state_of(model, optimizer):
    state = {name: array.copy() for name, array in model.state_dict().items()}
    for moments in ("exp_avg", "exp_avg_sq"):
        state |= {f"{moments}.{name}": array.copy() for name, array in getattr(optimizer, moments).items()}
    return state | {"steps": np.array(optimizer.steps), "lr": np.array(optimizer.lr)}


def assert_equal(ours, expected):
    assert list(ours) == list(expected)
    for name in expected:
        assert np.array_equal(ours[name], expected[name], equal_nan=True), name


# Losses


def test_the_loss_of_a_batch_is_the_mean_negative_log_probability_without_dropout():
    model = model_of(dtype=np.float64)
    inputs, targets = batch_of()
    logits = model(inputs)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -np.take_along_axis(log_probabilities, targets[..., np.newaxis], axis=-1).mean()
    loss = calc_loss_batch(inputs, targets, model)
    assert type(loss) is float
    assert math.isclose(loss, expected, rel_tol=FLOAT64_NORMWISE)
    assert loss == model.loss_and_grads(inputs, targets)[0]
    assert loss == calc_loss_batch(inputs, targets, model)


def test_the_loss_of_a_loader_is_the_mean_of_its_first_batches():
    model, loader = model_of(), loader_of(shuffle=False, drop_last=False)
    losses = [calc_loss_batch(*batch, model) for batch in loader]
    assert len(losses) == 5
    assert calc_loss_loader(loader, model) == sum(losses) / 5
    assert calc_loss_loader(loader, model, num_batches=2) == sum(losses[:2]) / 2
    assert calc_loss_loader(loader, model, num_batches=99) == sum(losses) / 5
    assert math.isnan(calc_loss_loader(loader, model, num_batches=0))
    other = loader_of(TEXT[::-1], shuffle=False)
    expected = calc_loss_loader(loader, model, 2), calc_loss_loader(other, model, 2)
    assert evaluate_model(model, loader, other, eval_iter=2) == expected


# train_model_simple


def train(model, optimizer=None, seed=7, **options):
    """Train for two epochs of five steps, with an evaluation every three steps."""
    rng = TorchGenerator(seed)
    arguments = {"num_epochs": 2, "eval_freq": 3, "eval_iter": 1, "start_context": "to\nbe", **options}
    optimizer = optimizer or AdamW(model, lr=0.01)
    loaders = loader_of(rng=rng, batch_size=4), loader_of(shuffle=False, rng=rng)
    return train_model_simple(model, *loaders, optimizer, **arguments, tokenizer=BYTES, rng=rng)


@pytest.fixture
def no_samples(monkeypatch):
    """Turn off samples, which take longer than the training."""
    monkeypatch.setattr("numpygpt.training.book.generate_and_print_sample", lambda *arguments: None)


@pytest.fixture(scope="module")
def trained():
    """The model, its optimizer, the results and what was printed."""
    model = model_of()
    optimizer = AdamW(model, lr=0.01)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        results = train(model, optimizer)
    return model, optimizer, results, printed.getvalue().splitlines()


def test_the_losses_of_every_third_step_come_back(trained):
    _, optimizer, (train_losses, val_losses, tokens_seen), _ = trained
    assert optimizer.steps == 10
    assert tokens_seen == [32 * (step + 1) for step in (0, 3, 6, 9)]
    assert len(train_losses) == len(val_losses) == 4
    assert train_losses[-1] < train_losses[0]
    assert val_losses[-1] < val_losses[0]


def test_the_books_lines_are_printed_and_a_sample_after_each_epoch(trained):
    _, _, (train_losses, val_losses, _), lines = trained
    losses = [line for line in lines if line.startswith("Ep ")]
    expected = [
        f"Ep {epoch} (Step {step:06d}): Train loss {train_loss:.3f}, Val loss {val_loss:.3f}"
        for (epoch, step), train_loss, val_loss in zip(
            [(1, 0), (1, 3), (2, 6), (2, 9)], train_losses, val_losses, strict=True
        )
    ]
    assert losses == expected
    assert [i for i, line in enumerate(lines) if line.startswith("to be")] == [2, 5]


def test_a_sample_is_fifty_greedy_tokens_on_one_line(trained):
    model, _, _, lines = trained
    ids = generate_text_simple(model, text_to_token_ids("to\nbe", BYTES), 50, 8)
    assert ids.shape == (1, 55)
    assert lines[-1] == token_ids_to_text(ids, BYTES).replace("\n", " ")


@pytest.mark.usefixtures("no_samples")
def test_the_same_generator_gives_the_same_run_and_another_another(trained):
    model, optimizer, results, _ = trained
    again = model_of()
    again_optimizer = AdamW(again, lr=0.01)
    assert train(again, again_optimizer) == results
    assert_equal(state_of(again, again_optimizer), state_of(model, optimizer))
    assert train(model_of(), seed=8, num_epochs=1)[0] != results[0][:2]


@pytest.mark.usefixtures("no_samples")
def test_dropout_is_on_in_training(trained):
    without = train(model_of(config={"drop_rate": 0.0}), num_epochs=1)
    assert without[0] != trained[2][0][:2]


# Accumulation


def test_a_step_of_micro_batches_is_a_step_on_their_common_gradient():
    micro_batches = [batch_of(2, 1), batch_of(3, 2), batch_of(1, 3)]
    micro_batches[1][1][0] = IGNORE_INDEX
    models = [model_of(), model_of()]
    optimizers = [AdamW(model, lr=0.01) for model in models]
    taken = training_step(models[0], optimizers[0], micro_batches, rng=TorchGenerator(1), max_norm=0.1)
    expected, grads = loss_and_grads_of(models[1], micro_batches, rng=TorchGenerator(1))
    assert clip_grad_norm(grads, 0.1) == taken.grad_norm > 0.1
    optimizers[1].step(grads)
    assert taken.loss == expected
    assert_equal(state_of(models[0], optimizers[0]), state_of(models[1], optimizers[1]))


def test_one_micro_batch_is_the_plain_step_bit_for_bit():
    model, batch = model_of(), batch_of()
    loss, grads = model.loss_and_grads(*batch, rng=TorchGenerator(1))
    ours, our_grads = loss_and_grads_of(model, [batch], rng=TorchGenerator(1))
    assert ours == loss
    assert_equal(our_grads, grads)


def test_micro_batches_draw_their_masks_one_after_the_other():
    batch = batch_of(2)
    one, two = (
        loss_and_grads_of(model_of(), [batch] * count, rng=TorchGenerator(1))[0] for count in (1, 2)
    )
    assert one != two


def test_targets_that_are_all_ignored_add_nothing():
    model, batch = model_of(dtype=np.float64), batch_of(2)
    ignored = batch[0], np.full_like(batch[1], IGNORE_INDEX)
    loss, grads = loss_and_grads_of(model, [ignored, batch, ignored])
    expected_loss, expected = model.loss_and_grads(*batch)
    assert loss == expected_loss
    assert_equal(grads, expected)
    loss, grads = loss_and_grads_of(model, [ignored])
    assert loss == 0
    assert not any(gradient.any() for gradient in grads.values())


# Clipping


gradients = st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5), min_size=1, max_size=4)


@given(gradients, st.floats(1e-3, 1e3))
def test_all_gradients_are_scaled_by_one_factor_to_at_most_the_norm(values, max_norm):
    before = {str(i): np.array(value) for i, value in enumerate(values)}
    grads = {name: gradient.copy() for name, gradient in before.items()}
    expected = math.hypot(*(element for value in values for element in value))
    rounding = 20 * EPS
    norm = clip_grad_norm(grads, max_norm)
    assert math.isclose(norm, expected, rel_tol=rounding, abs_tol=np.finfo(np.float64).tiny ** 0.5)
    factor = min(1.0, max_norm / (norm + 1e-6))
    assert_equal(grads, {name: gradient * factor if factor < 1 else gradient for name, gradient in before.items()})
    clipped = math.hypot(*(element for gradient in grads.values() for element in gradient))
    assert clipped <= max_norm * (1 + rounding)


def test_arrays_of_any_layout_are_clipped_in_place():
    """A number, an array without elements and one that does not lie row after row have no blocks of rows."""
    grads = {"number": np.array(1.0), "empty": np.zeros((3, 0)), "columns": np.ones((1, 2, 2)).T, "rows": np.ones(4)}
    same, before = dict(grads), {name: gradient.copy() for name, gradient in grads.items()}
    assert clip_grad_norm(grads, 5.0) == 3
    assert_equal(grads, before)
    assert clip_grad_norm(grads, 2.0) == 3
    assert_equal(same, {name: gradient * (2 / (3 + 1e-6)) for name, gradient in before.items()})
    assert all(same[name] is grads[name] for name in same)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_is_refused_and_names_the_gradient(value):
    grads = {"good": np.ones(3), "bad": np.array([1.0, value]), "worse": np.array([value])}
    before = {name: gradient.copy() for name, gradient in grads.items()}
    with pytest.raises(InputError, match=r"the gradients' norm is \w+: not finite in bad, worse"):
        clip_grad_norm(grads, 1.0)
    assert_equal(grads, before)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_the_largest_norm_is_positive(max_norm):
    with pytest.raises(InputError, match=f"max_norm is {max_norm}; expected a positive number"):
        clip_grad_norm({"x": np.ones(2)}, max_norm)


# Schedules


def test_a_constant_schedule():
    assert {constant(step, peak_lr=0.3) for step in range(5)} == {0.3}


@given(
    st.integers(0, 20),
    st.integers(1, 60),
    st.floats(1e-6, 1.0),
    st.floats(0, 1),
)
def test_warm_up_is_linear_and_the_cosine_ends_at_the_minimum(warmup_steps, total_steps, peak_lr, share):
    min_lr = share * peak_lr

    def lr(step):
        return warmup_cosine(
            step, peak_lr=peak_lr, warmup_steps=warmup_steps, total_steps=total_steps, min_lr=min_lr
        )

    assert [lr(step) for step in range(warmup_steps)] == [
        peak_lr * (step + 1) / warmup_steps for step in range(warmup_steps)
    ]
    after = [lr(step) for step in range(warmup_steps, total_steps + 3)]
    assert all(earlier >= later for earlier, later in pairwise(after))
    assert all(min_lr <= rate <= peak_lr * (1 + EPS) for rate in after)
    if warmup_steps < total_steps:
        assert math.isclose(lr(warmup_steps), peak_lr, rel_tol=2 * EPS)
    assert lr(max(total_steps, warmup_steps)) == lr(10 * total_steps + warmup_steps) == min_lr


def test_the_cosine_is_half_way_down_in_the_middle():
    options = {"peak_lr": 1.0, "warmup_steps": 10, "total_steps": 50, "min_lr": 0.5}
    assert warmup_cosine(30, **options) == 0.75
    assert math.isclose(warmup_cosine(20, **options), 0.5 + 0.25 * (1 + math.sqrt(0.5)), rel_tol=2 * EPS)


# An optimizer of a part of the model


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_trains_what_its_optimizer_trains_and_computes_no_other_gradients(monkeypatch, count):
    """With one micro-batch and with two."""
    model, names = model_of(), {"out_head.weight", "trf_blocks.0.att.W_key.weight"}
    computed, loss_and_grads = [], model.loss_and_grads

    def noted(*batch, **options):
        loss, grads = loss_and_grads(*batch, **options)
        computed.append(set(grads))
        return loss, grads

    monkeypatch.setattr(model, "loss_and_grads", noted)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    training_step(model, AdamW(model, trained=names.__contains__), [batch_of()] * count, max_norm=1.0)
    assert {name for name, array in model.state_dict().items() if not np.array_equal(array, before[name])} == names
    assert computed == [names] * count


# A loss that is not finite


def test_a_loss_that_is_not_finite_leaves_everything_as_it_was():
    model = model_of()
    optimizer = AdamW(model, lr=0.25)
    training_step(model, optimizer, [batch_of()])
    model.state_dict()["final_norm.scale"][3] = math.nan
    before = state_of(model, optimizer)
    message = (
        "the loss is nan at optimizer step 2; the weights are those before that step: "
        "lower the learning rate (now 0.25) or clip the gradients"
    )
    for micro_batches in ([batch_of()], [batch_of(1), batch_of(2)]):
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            training_step(model, optimizer, micro_batches, rng=TorchGenerator(1), max_norm=1.0)
        assert_equal(state_of(model, optimizer), before)


def test_an_infinite_gradient_under_a_finite_loss_leaves_everything_as_it_was(monkeypatch):
    model = model_of()
    optimizer = AdamW(model)
    loss, grads = model.loss_and_grads(*batch_of())
    infinite = {**grads, "final_norm.shift": np.full_like(grads["final_norm.shift"], np.inf)}
    monkeypatch.setattr(model, "loss_and_grads", lambda *batch, **options: (loss, infinite))
    before = state_of(model, optimizer)
    with pytest.raises(InputError, match=r"not finite in final_norm\.shift"):
        training_step(model, optimizer, [batch_of()], max_norm=1.0)
    assert_equal(state_of(model, optimizer), before)


# AdamW's face


def test_the_defaults_are_pytorchs():
    optimizer = AdamW(model_of())
    assert (optimizer.lr, optimizer.betas, optimizer.eps, optimizer.weight_decay) == (1e-3, (0.9, 0.999), 1e-8, 1e-2)


def test_the_first_step_goes_lr_against_each_gradients_sign_after_the_decay():
    """m / (1 - beta1) = g and v / (1 - beta2) = g², so that the step is lr g / (|g| + eps)."""
    weights = {"w": np.array([2.0, -3.0, 0.5, 1.0])}
    g = np.array([4.0, -1e-8, 1e-3, 0.0])
    expected = weights["w"] * (1 - 0.1 * 0.5) - 0.1 * g / (np.abs(g) + 1e-8)
    AdamW(weights, lr=0.1, weight_decay=0.5).step({"w": g})
    assert np.abs(weights["w"] - expected).max() <= 100 * EPS
    assert weights["w"][3] == 1 - 0.1 * 0.5, "without a gradient there is the decay alone"


def test_gradients_of_other_names_or_shapes_are_all_listed_and_change_nothing():
    model = model_of()
    optimizer = AdamW(model)
    _, grads = model.loss_and_grads(*batch_of())
    before = state_of(model, optimizer)
    grads = {**grads, "extra": np.zeros(2), "final_norm.scale": np.zeros(9)}
    del grads["pos_emb.weight"]
    with pytest.raises(InputError) as caught:
        optimizer.step(grads)
    assert str(caught.value) == (
        "gradients do not fit the parameters: missing ['pos_emb.weight'], unexpected ['extra'], "
        "misshaped ['final_norm.scale (9,), expected (8,)']"
    )
    _, grads = model.loss_and_grads(*batch_of())
    without = {name: gradient for name, gradient in grads.items() if name != "pos_emb.weight"}
    for one_fault in (without, {**grads, "extra": np.zeros(2)}, {**grads, "final_norm.scale": np.zeros(9)}):
        with pytest.raises(InputError, match="gradients do not fit"):
            optimizer.step(one_fault)
    assert_equal(state_of(model, optimizer), before)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"eps": -1e-8},
        {"weight_decay": -0.1},
        {"weight_decay": math.nan},
    ],
)
def test_values_out_of_range_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"^{name} is {value}; expected a number of 0 or more$"):
        AdamW(model_of(), **options)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, -0.1), (0.9, math.nan)])
def test_betas_out_of_range_are_named(betas):
    with pytest.raises(InputError, match=re.escape(f"betas are {betas}; expected two numbers in [0, 1)")):
        AdamW(model_of(), betas=betas)
