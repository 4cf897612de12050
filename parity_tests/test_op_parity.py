"""Every operation and layer, by its record: complex step, PyTorch in both dtypes, layouts, purity, dtypes."""

import operator
import pkgutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import numpygpt.layers
import numpygpt.ops
from numpygpt.checks.compare import compare, difference, norms
from numpygpt.checks.gradcheck import complex_step, judge
from numpygpt.tree import mapped as tree_mapped
from numpygpt.tree import mapped_by_name, named
from parity_tests.records import (
    RECORDS,
    Call,
    normal,
    torch_attention,
    torch_cross_entropy,
    torch_gelu,
    torch_layer_norm,
)
from parity_tests.tolerances import FLOAT64_NORMWISE
from torchgpt.checks.parity import reference, run_in_copies

each_record = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
each_special_call = pytest.mark.parametrize(
    ("record", "call"),
    [
        pytest.param(record, call, id=f"{record.name}: {what}")
        for record in RECORDS
        for what, call in record.special.items()
    ],
)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])

#: A table of constants, and a memory that computes nothing: no input, no parameter, nothing to propagate back.
WITHOUT_BACKWARD = {"sinusoidal_positions", "key_value_cache", "parameters", "projection", "visible"}


def mapped(function, value):
    """`function` of every array in an argument or option."""
    return tree_mapped(function, value) if isinstance(value, np.ndarray | tuple) else value


def named_arrays(name, value):
    return named(value, name) if isinstance(value, np.ndarray | tuple) else ()


def changed(call, function):
    return Call(*({name: mapped(function, value) for name, value in part.items()} for part in call))


def inputs_of(call):
    """The arrays that have a gradient, by name."""
    arrays = {path: array for name, value in call.arguments.items() for path, array in named_arrays(name, value)}
    return {path: array for path, array in arrays.items() if np.issubdtype(array.dtype, np.inexact)}


def with_input(call, path, array):
    """The call with another array for one of its inputs."""
    arguments = mapped_by_name(lambda name, own: array if name == path else own, dict(_trees(call.arguments)))
    return call._replace(arguments={**call.arguments, **arguments})


def _trees(part):
    """The arrays and trees of arrays among arguments."""
    return {name: value for name, value in part.items() if isinstance(value, np.ndarray | tuple)}


def cast(call, dtype):
    return changed(call, lambda array: array.astype(dtype) if np.issubdtype(array.dtype, np.inexact) else array)


def cotangent(output):
    """Random, the same for each shape; never ones, which a softmax's or a norm's gradient sums to zero."""
    return np.random.default_rng(1).standard_normal(output.shape).astype(output.dtype)


def gradients_by_name(gradients):
    return {path: array for name, tree in gradients._asdict().items() for path, array in named(tree, f"d_{name}")}


def in_numpy(record, call, saved_too=()):
    """The output, what was saved under these paths, and the gradient of every argument, by name."""
    output, saved = record.operation.forward(*call.arguments.values(), **call.options)
    output = np.asarray(output)
    gradients = record.operation.backward(cotangent(output)[()], saved)
    tensors = {f"saved.{path}": operator.attrgetter(path)(saved) for path in saved_too}
    return {"output": output} | tensors | gradients_by_name(gradients)


def as_tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def in_torch(record, call):
    """The same in PyTorch, as `torchgpt.checks.parity.reference` takes it."""
    output = np.asarray(record.operation.forward(*call.arguments.values(), **call.options)[0])

    def forward(tensors, watch):
        """`tensors` has a tensor for each of the inputs; the other arrays are converted here."""

        def arguments(part):
            paths = iter([path for name, value in part.items() for path, _ in named_arrays(name, value)])
            return {
                name: mapped(lambda array: tensors.get(next(paths), as_tensor(array)), value)
                for name, value in part.items()
            }

        y, saved = record.in_torch(*arguments(call.arguments).values(), **arguments(call.options))
        watch("output", y)
        for path, tensor in saved.items():
            watch(f"saved.{path}", tensor)
        return y

    def prepare(dtype):
        leaves = {path: torch.tensor(array.astype(dtype)) for path, array in inputs_of(call).items()}
        d_output = {"output": cotangent(output).astype(dtype)}

        def run(copies):
            tensors = run_in_copies(forward, leaves, d_output, copies)
            return {name: tensors[name] for name in tensors if not name.startswith(("d_output", "d_saved."))}

        return run

    return prepare


def assert_parity(record, call, dtype, layout=lambda array: array):
    call = cast(call, dtype)
    judged_by = reference(in_torch(record, call), dtype)
    saved_too = [name.removeprefix("saved.") for name in judged_by.truth if name.startswith("saved.")]
    ours = in_numpy(record, changed(call, layout), saved_too)
    wrong = [c for c in compare(ours, judged_by.truth, judged_by.allowed, dtype=dtype) if not c.passed]
    assert not wrong, wrong


def test_every_module_has_a_record():
    modules = [*pkgutil.iter_modules(numpygpt.ops.__path__), *pkgutil.iter_modules(numpygpt.layers.__path__)]
    assert sorted(record.name for record in RECORDS) == sorted({m.name for m in modules} - WITHOUT_BACKWARD)


@each_record
@settings(max_examples=5)
@given(data=st.data())
def test_gradients_are_complex_steps(record, data):
    """Along random directions of each argument; `test_gradcheck` goes through their elements one by one.

    In each, the terms of <gradient, direction> have one sign, so that nothing cancels.
    """
    call = data.draw(record.calls(ordinary=True))
    output, saved = record.operation.forward(*call.arguments.values(), **call.options)
    d_output = cotangent(np.asarray(output))
    gradients = gradients_by_name(record.operation.backward(d_output[()], saved))
    ours, references = {}, {}
    for path, array in inputs_of(call).items():
        signs = np.where(gradients[f"d_{path}"] < 0, -1, 1)
        directions = signs * np.abs(np.random.default_rng(2).standard_normal((2, *array.shape)))

        def along(steps, path=path, array=array, directions=directions):
            stepped = with_input(cast(call, np.complex128), path, array + np.tensordot(steps, directions, axes=1))
            return (d_output * record.operation.forward(*stepped.arguments.values(), **call.options)[0]).sum()

        references[path] = complex_step(along, np.zeros(2))
        ours[path] = np.array([(gradients[f"d_{path}"] * direction).sum() for direction in directions])
    verdicts = judge(record.name, ours, references)
    assert verdicts
    assert not [verdict for verdict in verdicts if verdict.passed is False]


@each_dtype
@each_record
@given(data=st.data())
def test_output_and_gradients_are_pytorchs(record, dtype, data):
    assert_parity(record, data.draw(record.calls()), dtype)


@each_dtype
@each_special_call
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
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))


@each_layout
@each_record
@settings(max_examples=3)
@given(data=st.data())
def test_any_memory_layout_will_do(record, layout, data):
    assert_parity(record, data.draw(record.calls()), np.float64, layout)


@each_layout
@each_special_call
def test_any_memory_layout_will_do_for_special_cases(record, call, layout):
    assert_parity(record, call, np.float64, layout)


@each_record
@settings(max_examples=10)
@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64, np.complex128]))
def test_the_dtype_stays(record, data, dtype):
    call = cast(data.draw(record.calls()), dtype)
    output, saved = record.operation.forward(*call.arguments.values(), **call.options)
    gradients = record.operation.backward(cotangent(np.asarray(output))[()], saved)
    arrays = [np.asarray(output), *arrays_in(saved), *arrays_in(gradients)]
    assert {array.dtype for array in arrays if np.issubdtype(array.dtype, np.inexact)} == {np.dtype(dtype)}


def arrays_in(tree):
    """Every array in what a forward saved or a backward returned."""
    if isinstance(tree, np.ndarray):
        return [tree]
    return [array for child in tree for array in arrays_in(child)] if isinstance(tree, tuple | list) else []


@each_record
@settings(max_examples=10)
@given(data=st.data())
def test_nothing_is_changed_and_a_second_time_gives_the_same_bits(record, data):
    call = data.draw(record.calls())
    given_arrays = arrays_in(tuple({**call.arguments, **call.options}.values()))
    before = [array.copy() for array in given_arrays]
    output, saved = record.operation.forward(*call.arguments.values(), **call.options)
    d_output = cotangent(np.asarray(output))
    first = [np.array(array) for array in (output, *arrays_in(saved))]
    gradients = arrays_in(record.operation.backward(d_output[()], saved))
    first_gradients = [array.copy() for array in gradients]

    again, saved_again = record.operation.forward(*call.arguments.values(), **call.options)
    second_gradients = arrays_in(record.operation.backward(d_output[()], saved))
    assert_same_bits(given_arrays, before)
    assert_same_bits([d_output], [cotangent(np.asarray(output))])
    assert_same_bits([np.asarray(output), *arrays_in(saved)], first)
    assert_same_bits([np.asarray(again), *arrays_in(saved_again)], first)
    assert_same_bits(gradients, first_gradients)
    assert_same_bits(second_gradients, first_gradients)


def assert_same_bits(arrays, others):
    assert [array.tobytes() for array in arrays] == [other.tobytes() for other in others]


def test_the_functions_written_out_in_the_records_are_pytorchs_own():
    x, scale, shift = (torch.from_numpy(normal(*shape)) for shape in ((3, 4, 6), (6,), (6,)))
    queries, keys, values = torch.from_numpy(normal(3, 2, 3, 5, 4))
    logits, targets = x.flatten(0, 1), torch.arange(12) % 6
    for written_out, own in (
        (torch_layer_norm(x, scale, shift, eps=0.5), F.layer_norm(x, (6,), scale, shift, 0.5)),
        (torch_gelu(x), F.gelu(x, approximate="tanh")),
        (torch_attention(queries, keys, values), F.scaled_dot_product_attention(queries, keys, values, is_causal=True)),
        (torch_cross_entropy(logits, targets, ignore_index=2), F.cross_entropy(logits, targets, ignore_index=2)),
    ):
        assert difference(written_out[0], own).tensor <= FLOAT64_NORMWISE * norms(own).tensor
