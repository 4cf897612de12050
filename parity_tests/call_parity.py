"""A call of an operation, in NumPy and in PyTorch, and what its tensors are judged by."""

import operator
from functools import partial

import numpy as np
import torch

from numpygpt.checks.compare import compare
from numpygpt.checks.record import Call, differentiated
from numpygpt.tree import mapped, mapped_by_name, named
from torchgpt.checks.oracles import ORACLES, WITHOUT_EFFECT
from torchgpt.checks.parity import reference, run_in_copies


def inputs_of(record, call):
    """The floating-point arrays among the arguments, by name, except constants: what has a gradient by default."""
    return differentiated(record.module, Call(call.arguments, {"wants_x": True}))


def with_input(call, path, array):
    """The call with another array in the place of one of its inputs."""
    arguments = mapped_by_name(lambda name, own: array if name == path else own, dict(call.arguments))
    return call._replace(arguments=arguments)


def cast(call, dtype):
    return call.changed(lambda array: array.astype(dtype) if np.issubdtype(array.dtype, np.inexact) else array)


def cotangent(output):
    """A random cotangent, always the same for a shape. With ones, the gradient of a softmax or a norm would be zero."""
    return np.asarray(np.random.default_rng(1).standard_normal(np.shape(output)), output.dtype)


def gradients_by_name(gradients):
    return {f"d_{path}": array for path, array in named(gradients._asdict())}


def same(array):
    return array


def in_numpy(record, call, saved_too=(), cotangent_layout=same):
    """The output, what is saved under these paths, and the gradients, by name."""
    output, saved = record.module.forward(*call.arguments.values(), **call.options)
    d_output = cotangent(output)
    gradients = record.module.backward(cotangent_layout(d_output) if d_output.ndim else d_output[()], saved)
    tensors = {f"saved.{path}": operator.attrgetter(path)(saved) for path in saved_too}
    return {"output": np.asarray(output)} | tensors | gradients_by_name(gradients)


def as_tensor(array, dtype):
    """A tensor with a copy of the array, in another dtype if it has floating-point numbers."""
    return torch.tensor(array.astype(dtype) if np.issubdtype(array.dtype, np.inexact) else array)


def in_torch(record, call):
    """The same in PyTorch, as `torchgpt.checks.parity.reference` takes it."""
    d_output = cotangent(record.module.forward(*call.arguments.values(), **call.options)[0])
    asked_for = differentiated(record.module, call)
    options = {name: value for name, value in call.options.items() if name not in WITHOUT_EFFECT}

    def forward(tensors, watch, constant):
        """Call the oracle. `tensors` has a tensor for each of the inputs, and `constant` makes one of another array."""
        arguments = mapped_by_name(lambda path, array: tensors.get(path, constant(array)), dict(call.arguments))
        tensor_options = {
            name: mapped(constant, value) if isinstance(value, np.ndarray | tuple) else value
            for name, value in options.items()
        }
        y, saved = ORACLES[record.name](*arguments.values(), **tensor_options)
        watch("output", y)
        for path, tensor in saved.items():
            watch(f"saved.{path}", tensor)
        return y

    def prepare(dtype):
        in_dtype = partial(forward, constant=partial(as_tensor, dtype=dtype))
        leaves = {path: torch.tensor(array.astype(dtype)) for path, array in inputs_of(record, call).items()}

        def run(copies):
            tensors = run_in_copies(in_dtype, leaves, {"output": d_output.astype(dtype)}, copies)
            gradients = {f"d_{path}" for path in asked_for}
            return {name: tensors[name] for name in tensors if not name.startswith("d_") or name in gradients}

        return run

    return prepare


def judged(record, call, dtype):
    """What a call is judged by, and which of the tensors that it saves are judged."""
    judged_by = reference(in_torch(record, call), dtype)
    return judged_by, [name.removeprefix("saved.") for name in judged_by.truth if name.startswith("saved.")]


def assert_parity(record, call, dtype):
    call = cast(call, dtype)
    judged_by, saved_too = judged(record, call, dtype)
    ours = in_numpy(record, call, saved_too)
    wrong = [c for c in compare(ours, judged_by.truth, judged_by.allowed, dtype=dtype) if not c.passed]
    assert not wrong, wrong
