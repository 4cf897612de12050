"""numpygpt/model/parallel_sizes.py: the bytes of a device are those that PyTorch holds on the CPU."""

import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from math import prod

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from numpygpt.model.config import PRESETS, GPTConfig
from numpygpt.model.parallel_sizes import ROWS_AT_ONCE, Step, block_activations, device_bytes, each_stage
from numpygpt.model.saving import parameter_shapes
from numpygpt.model.scheme import Scheme
from numpygpt.model.sizes import num_parameters
from parity_tests.command import run
from torchgpt import head_loss
from torchgpt.model import GPTModel
from torchgpt.parallel import plans
from torchgpt.parallel.grid import Grid
from torchgpt.parallel.meta import held_by, pretended_group
from torchgpt.parallel.slices import local

CONFIG = GPTConfig(vocab_size=29, context_length=8, emb_dim=12, n_heads=3, n_layers=2, drop_rate=0.0, qkv_bias=True)
B, T = 5, 7
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def held_after_a_forward(config, step):
    """The bytes that PyTorch's allocator has given out and not got back, between the forward and the backward."""
    attention = "sdpa" if step.attention == "flash" else "math"
    model = GPTModel(config, attention, kernels="fused", checkpoint_activations=step.checkpoint_activations)
    model = model.to(getattr(torch, step.dtype))

    def loss_of(ids):
        with autocast_of(step):
            hidden = model.hidden(ids)
            return head_loss.loss_sum(hidden.flatten(0, 1), model.out_head.weight, ids.flatten())

    held = held_after(loss_of, step.batch_size, step.tokens)
    if attention == "math":
        held -= 8 * config.n_layers  # each block's divisor of the scores
    return held


def autocast_of(step):
    return torch.autocast("cpu", AUTOCAST[step.precision]) if step.precision in AUTOCAST else nullcontext()


def held_after(loss_of, batch_size, tokens):
    ids = torch.zeros(batch_size, tokens, dtype=torch.int64)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        loss = loss_of(ids)
    assert loss.requires_grad
    positions = 8 * tokens
    return sum(event.self_cpu_memory_usage for event in profiled.events()) - loss.nbytes - positions


def predicted(config, step):
    """The same bytes of `device_bytes`. Of the head, only the gradient of its weight is still there."""
    held = device_bytes(config, step, Scheme())
    return held.activations + held.copies + step.size * config.vocab_size * config.emb_dim


@pytest.fixture(autouse=True)
def dropout_of_cuda(monkeypatch):
    """Dropout keeps its mask in bytes, as PyTorch's does on CUDA. On the CPU it would keep floating-point numbers."""

    def dropout(x, p, training, inplace):
        assert not inplace
        return torch.native_dropout(x, p, training)[0] if p else x

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("changes", [{}, {"n_layers": 3, "bias": False, "tie_weights": True, "qkv_bias": False}])
def test_a_forward_keeps_so_much(precision, changes):
    config = replace(CONFIG, **changes)
    step = Step(B, T, precision=precision, attention="flash")
    assert held_after_a_forward(config, step) == predicted(config, step)


@pytest.mark.parametrize("drop_rate", [0.0, 0.2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_forward_with_written_out_attention_keeps_so_much(dtype, drop_rate):
    config, step = replace(CONFIG, drop_rate=drop_rate), Step(B, T, dtype=dtype, attention="math")
    assert held_after_a_forward(config, step) == predicted(config, step)


@pytest.mark.parametrize("drop_rate", [0.0, 0.2])
@pytest.mark.parametrize("precision", AUTOCAST)
def test_under_autocast_the_attention_weights_are_kept_in_float32_too(precision, drop_rate):
    """On CUDA they are, as predicted. On the CPU, autocast computes the softmax in the format of the products."""
    config, step = replace(CONFIG, drop_rate=drop_rate), Step(B, T, precision=precision, attention="math")
    numbers = config.n_layers * B * T * T * config.n_heads
    missing = numbers * (2 if drop_rate else 4)  # with dropout the CPU keeps the weights before it, in two bytes each
    assert held_after_a_forward(config, step) == predicted(config, step) - missing


@pytest.mark.parametrize("drop_rate", [0.0, 0.2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_forward_that_is_computed_again_keeps_the_inputs_of_blocks(precision, drop_rate):
    """And the state of the generator before each block, so that the same masks are drawn again."""
    config = replace(CONFIG, drop_rate=drop_rate)
    step = Step(B, T, precision=precision, attention="math", checkpoint_activations=True)
    held = held_after_a_forward(config, step) - config.n_layers * len(torch.get_rng_state())
    later = block_activations(config, step, B * T) + device_bytes(config, step, Scheme()).copies
    assert held == predicted(config, step) - later


def test_the_logits_of_a_block_of_rows_are_those_of_the_loss():
    assert ROWS_AT_ONCE == head_loss.ROWS_AT_ONCE


SCHEMES = [
    Scheme(ddp=2),
    Scheme(fsdp=4),
    Scheme(tp=3),
    Scheme(pp=2),
    Scheme(fsdp=2, tp=3),
    Scheme(ddp=2, fsdp=2),
    Scheme(fsdp=2, pp=2),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_pytorch_shares_the_weights_so(scheme, tied):
    """The plans that a run uses, with slices of unequal sizes: 31 token ids and 3 blocks."""
    config = replace(CONFIG, vocab_size=31, n_layers=3, tie_weights=tied)
    of_ranks = [sum(held.bytes for held in held_by(rank, config, scheme).values()) for rank in range(scheme.size)]
    a_stage = scheme.size // scheme.pp
    largest = [max(of_ranks[first : first + a_stage]) for first in range(0, scheme.size, a_stage)]
    held = each_stage(config, Step(B, T), scheme)
    assert [stage.weights for stage in held] == largest
    assert all(stage.optimizer // 2 == stage.weights for stage in held)
    if scheme.fsdp == 1 or scheme.pp == 1:
        assert all(stage.gradients == stage.weights for stage in held)


def shared_part(config, step, scheme):
    """The first device's part of a model of zeros, as a run shares it."""
    part = plans.shared_part(
        config,
        scheme,
        Grid(scheme, "cpu", 1.0),
        torch.float32,
        attention="sdpa",
        kernels="fused",
        checkpoint_activations=False,
        rows_at_once=ROWS_AT_ONCE,
        autocast=lambda: autocast_of(step),
    )
    part.to_empty(device="cpu")
    for parameter in part.parameters():
        local(parameter.detach()).zero_()
    return part


@pytest.mark.parametrize("tied", [False, True])
def test_fsdp_adds_up_whole_gradients(tied):
    """After the backward of a micro-batch that is not the last one, they are all that is held."""
    config, scheme = replace(CONFIG, tie_weights=tied), Scheme(fsdp=2)
    step = Step(4, T, micro_batches=2, attention="flash")
    ids = torch.zeros(2, T, dtype=torch.int64)
    with pretended_group(0, scheme.size):
        part = shared_part(config, step, scheme)
        part.set_requires_gradient_sync(False)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            part(ids, ids).backward()
        held = sum(event.self_cpu_memory_usage for event in profiled.events())
    predicted = device_bytes(config, step, scheme)
    assert held == predicted.gradients - device_bytes(config, step._replace(micro_batches=1), scheme).gradients


class Exchanged(TorchDispatchMode):
    """Within the `with`, adds up the bytes of the whole tensors that processes exchange, by the kind of exchange."""

    def __init__(self):
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, name = function.name().split("::")
        if namespace in ("c10d", "_c10d_functional"):
            for kind in ("allreduce", "allgather", "reducescatter"):
                if name.replace("_", "").startswith(kind):
                    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
                    self.bytes[kind] += max(tensor.nbytes for tensor in tensors)
        return function(*args, **(kwargs or {}))


def exchanged_in_a_step(config, step, scheme):
    ids = torch.zeros(step.batch_size // scheme.data, step.tokens, dtype=torch.int64)
    with pretended_group(0, scheme.size):
        part = shared_part(config, step, scheme)
        with Exchanged() as exchanged:
            part(ids, ids).backward()
    return exchanged.bytes


@pytest.mark.parametrize(("precision", "e"), [("fp32", 4), ("bf16", 2)])
def test_tensor_parallel_training_sums_as_often_as_the_documents_say(precision, e):
    """In docs/training-at-scale.md: two sums a block forward, four backward, and two at the ends.

    Not named there are the three numbers a row that the loss needs, and that the vocabulary is shared in slices.
    """
    config, step = replace(CONFIG, vocab_size=30, n_layers=3), Step(4, T, precision=precision, attention="flash")
    N, D = 4 * T, config.emb_dim  # N: R there
    expected = config.n_layers * (2 * e * N * D + 16 * N * D) + 8 * N * D + 3 * 4 * N
    assert exchanged_in_a_step(config, step, Scheme(tp=3)) == {"allreduce": expected}


def test_fsdp_gathers_and_sums_as_often_as_the_documents_say():
    """Weights forward and backward, but what is in no block only forward; gradients once."""
    config, step = replace(CONFIG, vocab_size=30, n_layers=3), Step(4, T, attention="flash")
    blocks = 4 * (num_parameters(config) - num_parameters(replace(config, n_layers=1))) * 3 // 2
    rest = 4 * num_parameters(config) - blocks
    assert exchanged_in_a_step(config, step, Scheme(fsdp=2)) == {
        "allgather": 2 * blocks + rest, "reducescatter": blocks + rest
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scheme", [Scheme(tp=3), Scheme(fsdp=2), Scheme(fsdp=2, tp=3)], ids=str)
def test_a_forward_on_one_device_of_several_keeps_so_much(scheme, precision):
    """Between forward and backward, no block is gathered. What is in no block is; it was, when the measuring began."""
    config, step = replace(CONFIG, vocab_size=30, n_layers=4), Step(4, T, precision=precision, attention="flash")
    with pretended_group(0, scheme.size):
        part = shared_part(config, step, scheme)
        part(*2 * [torch.zeros(1, 1, dtype=torch.int64)])
        held = held_after(lambda ids: part(ids, ids), step.batch_size // scheme.data, step.tokens)
    predicted = device_bytes(config, step, scheme)
    gathered = 0
    if scheme.fsdp > 1:
        gathered = device_bytes(config, step._replace(precision="fp32"), scheme).copies
    d_weight = 4 * config.vocab_size // scheme.tp * config.emb_dim
    assert held == predicted.activations + predicted.copies - gathered + d_weight


@pytest.mark.parametrize(("n_layers", "gathered"), [(1, 1), (4, 2)])
def test_two_blocks_and_what_is_in_no_block_are_gathered(n_layers, gathered):
    config = replace(CONFIG, n_layers=n_layers)
    sizes = {name: 4 * prod(shape) for name, shape in parameter_shapes(config).items()}
    of_a_block = sum(size for name, size in sizes.items() if name.startswith("trf_blocks.0."))
    of_the_rest = sum(size for name, size in sizes.items() if not name.startswith("trf_blocks."))
    assert device_bytes(config, Step(B, T), Scheme(fsdp=2)).copies == gathered * of_a_block + of_the_rest


@pytest.mark.parametrize("zero", [1, 2])
def test_zero_shares_the_optimizer_and_then_the_gradients(zero):
    plain = device_bytes(CONFIG, Step(B, T), Scheme(ddp=4))
    shared = device_bytes(CONFIG, Step(B, T), Scheme(ddp=4), zero=zero)
    assert shared == plain._replace(
        optimizer=-(-plain.optimizer // 4), gradients=plain.gradients if zero == 1 else -(-plain.gradients // 4)
    )


@pytest.mark.parametrize(("micro_batches", "sequences"), [(1, 4), (2, 8), (4, 16), (8, 16)])
def test_the_first_stage_of_a_pipeline_keeps_as_many_micro_batches_as_there_are_stages(micro_batches, sequences):
    """Fewer than the four stages are cut into four or more."""
    config = replace(CONFIG, n_layers=8)
    step = Step(4, T, micro_batches=micro_batches, attention="flash")
    held = device_bytes(config, step, Scheme(pp=4))
    assert held.activations == 2 * block_activations(config, step, sequences * T)
    assert held.head == 0, "which the last stage has, with the activations of one micro-batch"


# The command


def table_of(out, precision):
    """{row: [numbers]} of the table for this precision."""
    table = out.partition(f"products in {precision}, in MiB:\n")[2].partition("\n\n")[0]
    rows = (re.split(r" {2,}", line) for line in table.splitlines()[1:])
    return {name: [float(number.replace(",", "")) for number in numbers] for name, *numbers in rows if numbers}


def test_info_compares_the_schemes_on_as_many_devices(capsys):
    assert run("info", "--preset", "gpt2", "--parallel", "fsdp=2,tp=2", "--precision", "bf16", "--batch-size", 8) == 0
    out = capsys.readouterr().out
    step = Step(8, 1024, precision="bf16")
    schemes = {
        "one device": Scheme(),
        "data parallel, ddp=4": Scheme(ddp=4),
        "ZeRO 3, fsdp=4": Scheme(fsdp=4),
        "tensor parallel, tp=4": Scheme(tp=4),
        "pipeline, pp=4": Scheme(pp=4),
        "fsdp=2,tp=2": Scheme(fsdp=2, tp=2),
    }
    table = table_of(out, "bf16")
    assert list(table) == [*list(schemes)[:2], "ZeRO 1", "ZeRO 2", *list(schemes)[2:]]
    for name, scheme in schemes.items():
        held = device_bytes(PRESETS["gpt2"], step, scheme)
        assert table[name] == [round(size / 2**20, 1) for size in (*held, held.total)]


def test_info_without_a_precision_compares_three(capsys):
    assert run("info", "--emb-dim", 8, "--n-heads", 2, "--parallel", "ddp=2") == 0
    out = capsys.readouterr().out
    tables = [table_of(out, precision) for precision in ("fp32", "bf16", "fp16")]
    assert all(len(table) == 7 for table in tables)
    assert tables[0] != tables[1] == tables[2]


def test_info_without_a_scheme_has_one_device(capsys):
    assert run("info", "--precision", "tf32") == 0
    assert list(table_of(capsys.readouterr().out, "tf32")) == ["one device"]


def test_info_says_which_scheme_a_model_cannot_have(capsys):
    assert run("info", "--preset", "gpt2-xl", "--parallel", "ddp=8", "--precision", "bf16") == 0
    assert "\ntensor parallel, tp=8: tp=8 does not divide n_heads 25: " in capsys.readouterr().out


def test_info_takes_the_micro_batches_of_a_step(capsys):
    step = ("--batch-size", 4, "--accumulate", 2, "--precision", "fp32")
    assert run("info", "--preset", "gpt2", "--parallel", "pp=4", *step) == 0
    held = device_bytes(PRESETS["gpt2"], Step(4, 1024, micro_batches=2), Scheme(pp=4))
    assert table_of(capsys.readouterr().out, "fp32")["pipeline, pp=4"][3] == round(held.activations / 2**20, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--parallel", "fsdp"), "--parallel fsdp: expected how many processes fsdp has, as in fsdp=8"),
        (("--parallel", "zero=8"), "there is no scheme 'zero'"),
        (("--parallel", "tp=5"), "tp=5 does not divide n_heads 4"),
        (("--parallel", "pp=5"), "pp=5 is more than n_layers 4"),
        (("--precision", "fp8"), "argument --precision: invalid choice: 'fp8'"),
        (("--precision", "bf16", "--dtype", "float64"), "--precision bf16 with --dtype float64; expected float32"),
        (("--precision", "bf16", "--accumulate", 0), "accumulate is 0; expected at least 1"),
    ],
)
def test_bad_input_gets_one_line(capsys, options, message):
    assert run("info", *options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.match("numpygpt( info)?: error: ", printed.err)
    assert message in printed.err
    assert printed.err.count("\n") == 1
