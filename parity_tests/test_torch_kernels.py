"""PyTorch's kernels compute what the book writes out, and a block that is computed again gives the same bits."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks

import torchgpt
from numpygpt.checks.compare import compare
from numpygpt.errors import InputError
from numpygpt.model.config import ACTIVATIONS
from parity_tests.properties import CONFIG, INPUTS, TARGETS, TIED, B, T, agree, model_of, weights
from parity_tests.strategies import source
from torchgpt import model as torch_modules
from torchgpt.checks.parity import REPORT_PROBES, Batch, reference, run_in_copies, step_reference, torch_step
from torchgpt.model import ATTENTION_KINDS, KERNEL_KINDS, LayerNorm, TransformerBlock

CONFIGS = {"with biases, tanh": CONFIG, "without, erf, tied": TIED}


def torch_model(config=CONFIG, attention="math", dtype=torch.float64, **options):
    model = torchgpt.GPTModel(config, attention, **options).to(dtype)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights(config).items()})
    return model


# Fused kernels


def norm(bias, eps, kernels):
    """A layer norm as a function of x and its parameters."""
    module = LayerNorm(1, eps, bias, kernels)
    return lambda tensors: torch.func.functional_call(
        module, {name: tensors[name] for name in tensors if name != "x"}, (tensors["x"],)
    )


def activation(name, kernels):
    module = torch_modules.ACTIVATIONS[name](kernels)
    return lambda tensors: module(tensors["x"])


@st.composite
def operations(draw):
    """A function of the kernels that gives an operation, and arrays of any scale for it; d_y is the cotangent."""
    with source(draw, ordinary=False) as drawn:
        features, bias, eps = drawn.features(), not drawn.yes(), drawn.norm_eps()
        inputs = {"x": drawn.normal(*drawn.rows(), features)}
        operation = drawn.choose.one_of(["norm", *ACTIVATIONS])
        if operation == "norm":
            inputs |= {"scale": drawn.normal(features)} | ({"shift": drawn.normal(features)} if bias else {})
        d_y = drawn.normal(*inputs["x"].shape)
    make = partial(norm, bias, eps) if operation == "norm" else partial(activation, operation)
    arrays = {name: array.astype(np.float32) for name, array in inputs.items()}
    return make, arrays, d_y.astype(np.float32)


def computation(operation, arrays, d_y, dtype):
    """What `torchgpt.checks.parity.reference` takes."""
    leaves = {name: torch.from_numpy(array.astype(dtype)) for name, array in arrays.items()}

    def forward(tensors, watch):
        y = operation(tensors)
        watch("y", y)
        return y

    return partial(run_in_copies, forward, leaves, {"y": d_y.astype(dtype)})


def first_copies(tensors):
    return {name: np.asarray(copies[0]) for name, copies in tensors.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(operations())
def test_fused_kernels_give_the_books_outputs_and_gradients(dtype, drawn):
    make, arrays, d_y = drawn
    judged_by = reference(partial(computation, make("book"), arrays, d_y), dtype)
    fused = first_copies(computation(make("fused"), arrays, d_y, dtype)(1))
    wrong = [c for c in compare(fused, judged_by.truth, judged_by.allowed, dtype=dtype) if not c.passed]
    assert not wrong, wrong


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_a_step_with_fused_kernels_is_the_books_tensor_by_tensor(config, dtype):
    """There is dropout, with the same masks."""
    model = model_of(config, dtype)
    batch = Batch(INPUTS, TARGETS, dropout_seed=3)
    judged_by = step_reference(model, batch, probes=REPORT_PROBES)
    twin = torch_model(config, dtype=getattr(torch, np.dtype(dtype).name), kernels="fused")
    fused = first_copies(torch_step(twin, batch, batch.masks(model), 1))
    wrong = [c for c in compare(fused, judged_by.truth, judged_by.allowed, dtype=dtype) if not c.passed]
    assert not wrong, wrong


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_the_books_kernels_are_taken_unless_others_are_asked_for(config, monkeypatch):
    called = Counter()

    def counted(name):
        own = getattr(F, name)

        def function(*args, **options):
            called[name] += 1
            return own(*args, **options)

        return function

    for name in ("layer_norm", "gelu"):
        monkeypatch.setattr(F, name, counted(name))
    inputs = torch.from_numpy(INPUTS)
    torch_model(config)(inputs)
    assert not called
    torch_model(config, kernels="fused")(inputs)
    assert called == {"layer_norm": 2 * config.n_layers + 1, "gelu": config.n_layers}


def test_kernels_change_neither_names_nor_initial_weights():
    states = []
    for kernels in KERNEL_KINDS:
        torch.manual_seed(123)
        states.append(torchgpt.GPTModel(CONFIG, kernels=kernels).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_unknown_kernels_are_named():
    with pytest.raises(InputError, match="kernels is 'triton'; expected one of"):
        torchgpt.GPTModel(CONFIG, kernels="triton")


# Blocks that are computed again


def training_step(model):
    """The loss and the gradients of a step with dropout, and where it leaves the random generator."""
    torch.manual_seed(7)
    model.train()
    loss = F.cross_entropy(model(torch.from_numpy(INPUTS)).flatten(0, 1), torch.from_numpy(TARGETS).flatten())
    loss.backward()
    return [loss, *(parameter.grad for parameter in model.parameters()), torch.get_rng_state()]


@pytest.mark.parametrize("attention", ATTENTION_KINDS)
@pytest.mark.parametrize("kernels", KERNEL_KINDS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_a_block_that_is_computed_again_gives_the_same_bits(config, kernels, attention):
    """There is dropout at every site: its second masks are the first, and later draws are as they would be."""
    assert config.drop_rate > 0
    expected = training_step(torch_model(config, attention, kernels=kernels))
    again = training_step(torch_model(config, attention, kernels=kernels, checkpoint_activations=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, expected, strict=True))


def shapes_that_are_kept(model):
    """The shapes of the tensors that a forward keeps for the backward."""
    shapes = set()

    def keep(tensor):
        shapes.add(tuple(tensor.shape))
        return tensor

    with saved_tensors_hooks(keep, lambda kept: kept):
        model.train()(torch.from_numpy(INPUTS))
    return shapes


def test_a_forward_keeps_nothing_of_a_block_that_will_be_computed_again():
    inside = {(B, T, 4 * CONFIG.emb_dim), (B, CONFIG.n_heads, T, T)}
    assert inside <= shapes_that_are_kept(torch_model())
    assert not inside & shapes_that_are_kept(torch_model(checkpoint_activations=True))


def forwards_of_blocks(model, step):
    """How many times the step computes each block's attention."""
    counted = Counter()
    for index, block in enumerate(model.trf_blocks):
        block.att.register_forward_hook(lambda *_, index=index: counted.update([index]))
    step(model)
    return list(counted.values())


def test_blocks_are_computed_again_only_for_a_backward():
    def evaluate(model):
        with torch.no_grad():
            model(torch.from_numpy(INPUTS))

    assert forwards_of_blocks(torch_model(), training_step) == [1, 1]
    assert forwards_of_blocks(torch_model(checkpoint_activations=True), training_step) == [2, 2]
    assert forwards_of_blocks(torch_model(checkpoint_activations=True), evaluate) == [1, 1]


def test_a_watch_is_told_each_tensor_once_though_blocks_could_be_computed_again():
    told = {}
    for again in (False, True):
        names = told[again] = []
        model = torch_model(checkpoint_activations=again)
        model(torch.from_numpy(INPUTS), lambda name, _, names=names: names.append(name)).sum().backward()
    assert told[True] == told[False]
    assert max(Counter(told[True]).values()) == 1


# The model's parts


def test_the_logits_are_the_heads_product_with_the_hidden_states():
    model, inputs = torch_model().eval(), torch.from_numpy(INPUTS)
    hidden = model.hidden(inputs)
    assert hidden.shape == (B, T, CONFIG.emb_dim)
    assert torch.equal(model.out_head(hidden), model(inputs))
    x = model.embedded(inputs)
    for block in model.trf_blocks:
        x = block(x)
    assert torch.equal(model.final_norm(x), hidden)


def test_attention_computes_with_the_heads_that_its_projections_have():
    """Two processes hold the rows of one head and of two heads, and the columns of `out_proj` that belong to them."""
    whole = TransformerBlock(CONFIG).double().eval().att
    x = torch.randn(B, T, CONFIG.emb_dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    total = whole.out_proj.bias
    for rows in (slice(0, 4), slice(4, 12)):
        part = TransformerBlock(CONFIG).double().eval().att
        for name in ("W_query", "W_key", "W_value"):
            own, share = getattr(whole, name), getattr(part, name)
            share.weight, share.bias = (torch.nn.Parameter(tensor[rows]) for tensor in (own.weight, own.bias))
        part.out_proj.weight, part.out_proj.bias = torch.nn.Parameter(whole.out_proj.weight[:, rows]), None
        total = total + part(x)
    agree(total.detach(), whole(x).detach(), "attention")
