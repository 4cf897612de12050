"""Arrays give the same in every memory layout: cotangents, in every backward, and weights that look stacked."""

import numpy as np
import pytest

from numpygpt import parallel
from numpygpt.checks import own_gradients
from numpygpt.layers import multi_head_attention
from numpygpt.layers import parameters as p
from numpygpt.model import body
from numpygpt.model.config import GPTConfig
from numpygpt.ops import flash_attention
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.training.adamw import AdamW
from numpygpt.tree import mapped, named
from parity_tests.small_models import assert_agrees, assert_equal, assert_same_gradients, copies, model_of

CONFIG = GPTConfig(11, 6, 12, 3, n_layers=2, drop_rate=0.25, qkv_bias=True)
INPUTS, TARGETS = np.random.default_rng(0).integers(0, 11, (2, 2, 5))


def every_second(x):
    return np.repeat(x, 2, axis=-1)[..., ::2]


def backwards(x):
    """The array with a negative stride along every axis."""
    everywhere = (slice(None, None, -1),) * x.ndim
    return x[everywhere].copy()[everywhere]


def first_axis_fastest(x):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 0, -1)), -1, 0)


def between_others(x):
    """The array as a part of a larger one, not at its beginning, at any address."""
    memory = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype) if x.size else x
    memory[...] = x.reshape(-1)
    return memory.reshape(x.shape)


def one_row_for_all(x):
    """One row, broadcast along the first axis with a stride of 0. Its values are not those of x."""
    return np.broadcast_to(x[:1], x.shape)


def read_only(x):
    x = x.copy()
    x.setflags(write=False)
    return x


each_layout = pytest.mark.parametrize(
    "layout",
    [np.asfortranarray, every_second, backwards, first_axis_fastest, between_others, one_row_for_all, read_only],
    ids=lambda layout: layout.__name__,
)


def assert_same_from_any_layout(backward, d_y, layout):
    """The cotangent in this layout gives the gradients of a plain copy, and is not changed."""
    laid_out = layout(d_y)
    contiguous = np.array(laid_out, order="C")
    assert np.array_equal(laid_out, contiguous)
    gradients = backward(laid_out)
    assert_same_gradients(gradients, backward(contiguous.copy()))
    assert np.array_equal(laid_out, contiguous)


@pytest.fixture(scope="module")
def differentiated():
    """Each operation and layer once, with what its forward saved and a random cotangent."""
    found = {}
    for case in own_gradients.cases(np.random.default_rng(0)):
        output, saved = case.operation.forward(*case.arguments.values(), **case.options)
        if np.ndim(output):
            found[case.operation.__name__] = case, saved, np.random.default_rng(1).standard_normal(output.shape)
    return found


@each_layout
def test_a_cotangent_of_an_operation_or_layer_may_have_any_layout(layout, differentiated, monkeypatch):
    """It is computed in several blocks, and each block that is written to must be a view."""
    monkeypatch.setattr(parallel, "BLOCK_BYTES", 200)
    names = {name.rpartition(".")[2] for name in differentiated}
    assert {"linear", "layer_norm", "gelu", "softmax", "dropout", "flash_attention", "transformer_block"} <= names
    for case, saved, d_output in differentiated.values():

        def backward(d_y, case=case, saved=saved):
            return dict(named(case.operation.backward(d_y, saved)._asdict()))

        assert_same_from_any_layout(backward, d_output, layout)


@each_layout
def test_a_cotangent_of_the_whole_model_may_have_any_layout(layout):
    """It may be of the logits, which the head gives, or of the hidden states, which the body gives."""
    model = model_of(CONFIG, 0)
    masks = model.draw_dropout_masks(TorchGenerator(1), 2, 5)
    _, saved = model.forward(INPUTS, masks=masks)
    rng = np.random.default_rng(1)
    assert_same_from_any_layout(lambda d_y: model.backward(d_y, saved), rng.standard_normal((2, 5, 11)), layout)
    assert_same_from_any_layout(
        lambda d_y: dict(named(body.backward(d_y, saved.body).parameters)), rng.standard_normal((2, 5, 12)), layout
    )


@each_layout
def test_a_cotangent_of_tiles_may_have_any_layout_with_a_mask_and_a_past(layout):
    rng = np.random.default_rng(0)
    queries, keys, values = rng.standard_normal((2, 3, 5, 4)), *rng.standard_normal((2, 2, 3, 7, 4))
    _, saved = flash_attention.forward(queries, keys, values, visible=rng.random((2, 1, 5, 7)) < 0.6, tile=2)
    assert_same_from_any_layout(
        lambda d_y: flash_attention.backward(d_y, saved)._asdict(), rng.standard_normal((2, 3, 5, 4)), layout
    )


# Weights of queries, keys and values that look stacked


D = 12


def in_another_order():
    memory = np.random.default_rng(0).standard_normal((3 * D, D))
    return memory[2 * D :], memory[:D], memory[D : 2 * D]


def overlapping():
    memory = np.random.default_rng(0).standard_normal((D + 2, D))
    return memory[:D], memory[1 : D + 1], memory[2:]


def the_same_array():
    memory = np.random.default_rng(0).standard_normal((D, D))
    return memory, memory, memory


def every_third_row():
    memory = np.random.default_rng(0).standard_normal((3 * D, D))
    return memory[::3], memory[1::3], memory[2::3]


def backwards_rows():
    """Weights as far apart as stacked ones, but each from its last row to its first."""
    memory = np.random.default_rng(0).standard_normal((3 * D, D))
    return memory[:D][::-1], memory[D : 2 * D][::-1], memory[2 * D :][::-1]


def transposed():
    """Stacked square weights whose rows are columns, which the shape does not show."""
    memory = np.random.default_rng(0).standard_normal((3 * D, D))
    return memory[:D].T, memory[D : 2 * D].T, memory[2 * D :].T


def columns_of_one_array():
    memory = np.random.default_rng(0).standard_normal((D, 3 * D))
    return memory[:, :D], memory[:, D : 2 * D], memory[:, 2 * D :]


def with_a_gap():
    memory = np.random.default_rng(0).standard_normal((3 * D + 1, D))
    return memory[:D], memory[D : 2 * D], memory[2 * D + 1 :]


def two_of_one_array_and_another():
    memory = np.random.default_rng(0).standard_normal((3 * D, D))
    return memory[:D], memory[D : 2 * D], memory[2 * D :].copy()


def stacked_after_all():
    memory = np.random.default_rng(0).standard_normal((3 * D, D))
    return memory[:D], memory[D : 2 * D], memory[2 * D :]


def bias_views(kind):
    """Biases that look stacked with weights that do not, and the other way round."""
    memory = np.random.default_rng(1).standard_normal(3 * D)
    return {
        "none": (None, None, None),
        "stacked": (memory[:D], memory[D : 2 * D], memory[2 * D :]),
        "in another order": (memory[D : 2 * D], memory[:D], memory[2 * D :]),
    }[kind]


each_look = pytest.mark.parametrize(
    "weights",
    [
        in_another_order,
        overlapping,
        the_same_array,
        every_third_row,
        backwards_rows,
        transposed,
        columns_of_one_array,
        with_a_gap,
        two_of_one_array_and_another,
        stacked_after_all,
    ],
    ids=lambda look: look.__name__,
)


@each_look
@pytest.mark.parametrize("biases", ["none", "stacked", "in another order"])
def test_weights_that_look_stacked_are_taken_as_they_are(weights, biases):
    """Output and every gradient are those of separate arrays with the same values."""
    rng = np.random.default_rng(2)
    out_proj = p.Linear(rng.standard_normal((D, D)), rng.standard_normal(D))
    parts = [p.Linear(*part) for part in zip(weights(), bias_views(biases), strict=True)]
    look_stacked = p.MultiHeadAttention(*parts, out_proj)
    apart = mapped(lambda array: np.array(array, order="C"), look_stacked)
    x, d_y = rng.standard_normal((2, 2, 5, D))
    y, saved = multi_head_attention.forward(x, look_stacked, n_heads=3)
    expected, expected_saved = multi_head_attention.forward(x, apart, n_heads=3)
    assert_agrees(y, expected)
    assert_same_gradients(
        dict(named(multi_head_attention.backward(d_y, saved)._asdict())),
        dict(named(multi_head_attention.backward(d_y, expected_saved)._asdict())),
    )


@pytest.mark.parametrize("weights", [in_another_order, every_third_row, transposed], ids=lambda look: look.__name__)
def test_a_model_whose_weights_look_stacked_trains_as_one_whose_weights_do_not(weights):
    """This includes the optimizer, which changes the views in place."""
    model = model_of(CONFIG, 0)
    att = model.parameters.trf_blocks[1].att
    parts = [p.Linear(*part) for part in zip(weights(), bias_views("in another order"), strict=True)]
    block = model.parameters.trf_blocks[1]._replace(att=p.MultiHeadAttention(*parts, att.out_proj))
    model.parameters = model.parameters._replace(trf_blocks=(model.parameters.trf_blocks[0], block))
    other = model_of(CONFIG, 1)
    other.load_state_dict(model.state_dict())
    assert_equal(other.state_dict(), copies(model.state_dict()))
    optimizer, others = AdamW(model, lr=1e-2), AdamW(other, lr=1e-2)
    for _ in range(3):
        _, grads = model.loss_and_grads(INPUTS, TARGETS)
        _, expected = other.loss_and_grads(INPUTS, TARGETS)
        assert_same_gradients(grads, expected)
        optimizer.step(expected)
        others.step(expected)
        assert_equal(model.state_dict(), other.state_dict())
