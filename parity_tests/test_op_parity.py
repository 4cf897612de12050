"""Every operation and layer, by its record: complex step, PyTorch in float64 and float32, layouts, purity, dtypes."""

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from numpygpt.checks.compare import compare, difference, norms
from numpygpt.checks.derivatives import complex_step
from numpygpt.checks.own_gradients import judge
from numpygpt.checks.record import Call, differentiated
from numpygpt.checks.records import OPERATIONS
from parity_tests.call_parity import (
    assert_parity,
    cast,
    cotangent,
    gradients_by_name,
    in_numpy,
    judged,
    with_input,
)
from parity_tests.strategies import calls
from parity_tests.tolerances import FLOAT64_NORMWISE
from torchgpt.checks import oracles

each_record = pytest.mark.parametrize("record", OPERATIONS.values(), ids=list(OPERATIONS))
SPECIAL_CALLS = [
    pytest.param(record, call, id=f"{name}: {what}")
    for name, record in OPERATIONS.items()
    if not isinstance(record.special, str)
    for what, call in record.special.items()
]
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])

#: A call of these takes milliseconds, so there are fewer draws.
LARGE = {"transformer_block", "recomputed_block", "body"}
FEWER = settings(max_examples=max(1, settings().max_examples // 3))


@each_record
@settings(max_examples=5)
@given(data=st.data())
def test_gradients_are_complex_steps(record, data):
    """The derivative is taken along random directions of each argument; `test_own_gradients` takes element by element.

    For each direction, all terms of <gradient, direction> have the same sign, so that nothing cancels.
    """
    call = data.draw(calls(record, ordinary=True))
    output, saved = record.module.forward(*call.arguments.values(), **call.options)
    d_output = cotangent(output)
    gradients = gradients_by_name(record.module.backward(d_output[()], saved))
    asked_for = differentiated(record.module, call)
    assert gradients.keys() == {f"d_{path}" for path in asked_for}
    ours, references = {}, {}
    for path, array in asked_for.items():
        signs = np.where(gradients[f"d_{path}"] < 0, -1, 1)
        directions = signs * np.abs(np.random.default_rng(2).standard_normal((2, *array.shape)))
        directions = np.where(np.isfinite(array), directions, 0)

        def along(steps, path=path, array=array, directions=directions):
            stepped = with_input(cast(call, np.complex128), path, array + np.tensordot(steps, directions, axes=1))
            return (d_output * record.module.forward(*stepped.arguments.values(), **call.options)[0]).sum()

        references[path] = complex_step(along, np.zeros(2))
        ours[path] = np.array([(gradients[f"d_{path}"] * direction).sum() for direction in directions])
    assert not [verdict for verdict in judge(record.name, ours, references) if verdict.passed is False]


@each_dtype
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in LARGE])
@given(data=st.data())
def test_output_and_gradients_are_pytorchs(name, dtype, data):
    assert_parity(OPERATIONS[name], data.draw(calls(OPERATIONS[name])), dtype)


@each_dtype
@pytest.mark.parametrize("name", sorted(LARGE))
@FEWER
@given(data=st.data())
def test_output_and_gradients_of_large_layers_are_pytorchs(name, dtype, data):
    assert_parity(OPERATIONS[name], data.draw(calls(OPERATIONS[name])), dtype)


@each_dtype
@pytest.mark.parametrize(("record", "call"), SPECIAL_CALLS)
def test_special_cases_are_pytorchs(record, call, dtype):
    assert_parity(record, call, dtype)


LAYOUTS = {
    "first axis fastest": np.asfortranarray,
    "every other number": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    "from the end": lambda array: array[..., ::-1].copy()[..., ::-1],
    "part of a larger array": lambda array: np.pad(array, 1)[(slice(1, -1),) * array.ndim],
    "second axis slower than the first": lambda array: np.ascontiguousarray(array.swapaxes(0, -2)).swapaxes(0, -2)
    if array.ndim > 1
    else array,
    "heads slower than sequences": lambda array: np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1)
    if array.ndim > 1
    else array,
}


def assert_parity_in_any_layout(record, call):
    """The layout is that of the arguments, of the gradient of the output, or of both."""
    judged_by, saved_too = judged(record, call, np.float64)
    for what, layout in LAYOUTS.items():
        for ours in (
            in_numpy(record, call, saved_too, layout),
            in_numpy(record, call.changed(layout), saved_too, layout),
        ):
            wrong = [c for c in compare(ours, judged_by.truth, judged_by.allowed, dtype=np.float64) if not c.passed]
            assert not wrong, (what, wrong)


@each_record
@settings(max_examples=3, phases=[Phase.generate])  # no shrinking: the name of the layout says enough
@given(data=st.data())
def test_any_memory_layout_will_do(record, data):
    assert_parity_in_any_layout(record, data.draw(calls(record)))


@pytest.mark.parametrize(
    ("record", "call"), [special for special in SPECIAL_CALLS if special.values[0].module.__package__ == "numpygpt.ops"]
)
def test_any_memory_layout_will_do_for_special_cases(record, call):
    assert_parity_in_any_layout(record, call)


@each_record
@settings(max_examples=10)
@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64, np.complex128]))
def test_the_dtype_stays(record, data, dtype):
    call = cast(data.draw(calls(record)), dtype)
    output, saved = record.module.forward(*call.arguments.values(), **call.options)
    gradients = record.module.backward(cotangent(output)[()], saved)
    arrays = [np.asarray(output), *arrays_in(saved), *arrays_in(gradients)]
    assert {array.dtype for array in arrays if np.issubdtype(array.dtype, np.inexact)} == {np.dtype(dtype)}


@pytest.mark.parametrize("wider", [1 + 2.0**-40, 1 + 1e-20j])
def test_a_bias_of_a_wider_dtype_loses_nothing(wider):
    """A derivative by the bias alone takes its complex step while the rows stay real."""
    x, weight = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    y, _ = OPERATIONS["linear"].module.forward(x, weight, np.full(4, wider))
    assert np.array_equal(y, np.full((2, 4), 3 + wider))


def arrays_in(tree):
    """Every array in what a forward saved or a backward returned."""
    if isinstance(tree, np.ndarray):
        return [tree]
    return [array for child in tree for array in arrays_in(child)] if isinstance(tree, tuple | list) else []


@each_record
@settings(max_examples=10)
@given(data=st.data())
def test_nothing_is_changed_and_a_second_time_gives_the_same_bits(record, data):
    call = data.draw(calls(record))
    given_arrays = arrays_in(tuple({**call.arguments, **call.options}.values()))
    before = [array.copy() for array in given_arrays]
    output, saved = record.module.forward(*call.arguments.values(), **call.options)
    d_output = cotangent(output)
    first = [np.array(array) for array in (output, *arrays_in(saved))]
    gradients = arrays_in(record.module.backward(d_output[()], saved))
    first_gradients = [array.copy() for array in gradients]

    again, saved_again = record.module.forward(*call.arguments.values(), **call.options)
    second_gradients = arrays_in(record.module.backward(d_output[()], saved))
    assert_same_bits(given_arrays, before)
    assert_same_bits([d_output], [cotangent(output)])
    assert_same_bits([np.asarray(output), *arrays_in(saved)], first)
    assert_same_bits([np.asarray(again), *arrays_in(saved_again)], first)
    assert_same_bits(gradients, first_gradients)
    assert_same_bits(second_gradients, first_gradients)


def assert_same_bits(arrays, others):
    assert [array.tobytes() for array in arrays] == [other.tobytes() for other in others]


# Which gradients are asked for

WITH_WANTED = [name for name, record in OPERATIONS.items() if "wanted" in record.module.forward.__annotations__]


@pytest.mark.parametrize("name", WITH_WANTED)
@settings(max_examples=5)
@given(data=st.data())
def test_any_gradients_may_be_asked_for_and_each_has_the_bits_that_it_has_among_all(name, data):
    record = OPERATIONS[name]
    arguments, options = data.draw(calls(record))
    names = tuple(differentiated(record.module, Call(arguments)))
    everything = in_numpy(record, Call(arguments, {**options, "wanted": names}))
    for wanted in (subset for size in range(len(names)) for subset in combinations(names, size)):
        some = in_numpy(record, Call(arguments, {**options, "wanted": wanted}))
        assert some.keys() == {"output", *(f"d_{path}" for path in wanted)}
        for path, array in some.items():
            assert array.tobytes() == everything[path].tobytes(), (wanted, path)


# The oracles


def test_the_functions_written_out_as_oracles_are_pytorchs_own():
    x, scale, shift = (torch.from_numpy(np.random.default_rng(0).standard_normal(s)) for s in ((3, 4, 6), (6,), (6,)))
    queries, keys, values = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 2, 3, 5, 4)))
    seen = torch.from_numpy(np.random.default_rng(2).random((2, 1, 5, 5)) < 0.5) | torch.eye(5, dtype=torch.bool)
    attend = F.scaled_dot_product_attention
    logits, targets = x.flatten(0, 1), torch.arange(12) % 6
    for written_out, own in (
        (oracles.layer_norm(x, scale, shift, eps=0.5), F.layer_norm(x, (6,), scale, shift, 0.5)),
        (oracles.layer_norm(x, scale), F.layer_norm(x, (6,), scale)),
        (oracles.gelu(x), F.gelu(x, approximate="tanh")),
        (oracles.gelu_erf(x), F.gelu(x)),
        (oracles.softmax(x), torch.softmax(x, dim=-1)),
        (oracles.attention(queries, keys, values), attend(queries, keys, values, is_causal=True)),
        (oracles.attention(queries, keys, values, visible="all"), attend(queries, keys, values)),
        (oracles.attention(queries, keys, values, visible=seen), attend(queries, keys, values, attn_mask=seen)),
        (oracles.flash_attention(queries, keys, values, visible=seen), attend(queries, keys, values, attn_mask=seen)),
        (oracles.cross_entropy(logits, targets, ignore_index=2), F.cross_entropy(logits, targets, ignore_index=2)),
    ):
        assert difference(written_out[0], own).tensor <= FLOAT64_NORMWISE * norms(own).tensor
