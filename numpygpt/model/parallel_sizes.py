"""The bytes that a device holds in `torchgpt train` under each parallel scheme, by arithmetic alone.

For the parameters, Psi in all, mixed precision keeps what it adds up in float32: 4 Psi bytes of weights, 4 Psi of
gradients and 8 Psi of AdamW's two moments. On n devices, data parallel training holds all of it on each device. ZeRO
(Rajbhandari et al. 2020, arXiv:1910.02054, section 5; K = 12 there, with the float32 weights) takes away the copies:

                   weights     gradients   optimizer
    data parallel  4 Psi       4 Psi       8 Psi
    ZeRO 1         4 Psi       4 Psi       8 Psi / n
    ZeRO 2         4 Psi       4 Psi / n   8 Psi / n
    ZeRO 3, fsdp   4 Psi / n   4 Psi / n   8 Psi / n     and the whole weights of a few blocks at a time

Tensor parallel training (Shoeybi et al. 2019, arXiv:1909.08053, section 3) shares the matrices, their gradients and
moments, and what is between two matrices. Norms, the biases after a sum over devices, and the inputs of the shared
matrices are on every device. Its activations are those of Korthikanti et al. 2022 (arXiv:2205.05198, section 4.2.1),
counted here for this model in PyTorch: see `block_activations`.

Pipeline training (Huang et al. 2018, arXiv:1811.06965) shares the blocks. In the schedule 1F1B (Narayanan et al. 2021,
arXiv:2104.04473, section 2.2), stage s of p holds the activations of at most p - s micro-batches. The stages differ, so
the figures are those of the stage with the largest total.

What PyTorch keeps is counted for its own kernels of layer norm and GELU (`--kernels fused`), without `--compile`, which
keeps less: it fuses the casts, for example. The figures leave out the temporary tensors of single operations, and what
the allocator, CUDA and the communication library take for themselves (a GB or two).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from math import ceil, prod
from typing import NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import parameter_shapes
from numpygpt.model.scheme import Scheme

#: The formats of the products, and their bytes; None: those of the parameters' dtype.
PRECISIONS: dict[str, int | None] = {"fp32": None, "tf32": None, "bf16": 2, "fp16": 2}
#: The logits of so many rows exist at a time (torchgpt/head_loss.py).
ROWS_AT_ONCE = 1024
#: The blocks whose whole weights a device of fsdp has at a time: the one at work, and the next one, on its way.
BLOCKS_GATHERED = 2
FLOAT32 = 4

#: The axis along which tensor parallel training shares a parameter, by the end of its name; the others are not shared.
SHARED_AXES = {
    **{f"att.W_{name}.{kind}": 0 for name in ("query", "key", "value") for kind in ("weight", "bias")},
    "att.out_proj.weight": 1,
    "ff.layers.0.weight": 0,
    "ff.layers.0.bias": 0,
    "ff.layers.2.weight": 1,
    "tok_emb.weight": 0,
    "out_head.weight": 0,
}


class Step(NamedTuple):
    """What a step of training computes, on all devices together.

    batch_size     the sequences of a micro-batch; a device computes its share of them
    tokens         T, the length of a sequence
    micro_batches  the micro-batches of a step
    dtype          of parameters, gradients, moments and the residual stream: "float32" or "float64"
    precision      the format of the products, one of PRECISIONS
    attention      "math" or "flash"
    checkpoint_activations   whether a forward keeps only the inputs of the blocks
    """

    batch_size: int
    tokens: int
    micro_batches: int = 1
    dtype: str = "float32"
    precision: str = "fp32"
    attention: str = "math"
    checkpoint_activations: bool = False

    @property
    def size(self) -> int:
        """Bytes of a number of the parameters' dtype."""
        return int(np.dtype(self.dtype).itemsize)

    @property
    def product_size(self) -> int:
        """Bytes of a number that is multiplied."""
        return PRECISIONS[self.precision] or self.size

    def check(self) -> None:
        """Raise InputError for a precision that float64 parameters do not have, and for a step of no micro-batch."""
        if self.micro_batches < 1:
            raise InputError(f"accumulate is {self.micro_batches}; expected at least 1")
        if self.dtype == "float64" and self.precision != "fp32":
            raise InputError(
                f"--precision {self.precision} with --dtype float64; expected float32, whose products it rounds: "
                f"leave out one of the two"
            )


class DeviceBytes(NamedTuple):
    """Bytes that one device holds.

    weights       its share of the parameters
    gradients     its share of the gradients; under fsdp also the sums over micro-batches, which are whole
    optimizer     its share of AdamW's two moments
    activations   what the forwards of the micro-batches in flight keep for their backwards
    copies        weights in another form: rounded for the products, and gathered from other devices
    head          the logits of a block of rows, what is computed of them, and the gradient of the head's weight
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    copies: int
    head: int

    @property
    def total(self) -> int:
        """All of it: what a device must have, but for the temporaries of single operations."""
        return sum(self)


class Compared(NamedTuple):
    """A scheme of a comparison: its name, and what a device holds, or why the model cannot be shared so."""

    name: str
    held: DeviceBytes | None
    refusal: str = ""


def comparison(config: GPTConfig, step: Step, scheme: Scheme) -> list[Compared]:
    """One device, then each single scheme on as many devices as `scheme` has, then `scheme` if it is none of these.

    Raises InputError if the model cannot be trained in `scheme` itself, or not with this precision.
    """
    step.check()
    scheme.check(config)
    n = scheme.size
    rows = [
        ("one device", Scheme(), 0),
        (f"data parallel, ddp={n}", Scheme(ddp=n), 0),
        ("ZeRO 1", Scheme(ddp=n), 1),
        ("ZeRO 2", Scheme(ddp=n), 2),
        (f"ZeRO 3, fsdp={n}", Scheme(fsdp=n), 0),
        (f"tensor parallel, tp={n}", Scheme(tp=n), 0),
        (f"pipeline, pp={n}", Scheme(pp=n), 0),
    ]
    if scheme not in [other for _, other, _ in rows]:
        rows.append((str(scheme), scheme, 0))
    return [_compared(config, step, *row) for row in (rows if n > 1 else rows[:1])]


def _compared(config: GPTConfig, step: Step, name: str, scheme: Scheme, zero: int) -> Compared:
    try:
        scheme.check(config)
    except InputError as error:
        return Compared(name, None, str(error))
    return Compared(name, device_bytes(config, step, scheme, zero=zero))


def device_bytes(config: GPTConfig, step: Step, scheme: Scheme, *, zero: int = 0) -> DeviceBytes:
    """What the fullest device holds. `zero` is the stage of ZeRO, 1 or 2, of data parallel devices; 0: they share none.

    Stage 3 is the scheme fsdp.
    """
    held = max(each_stage(config, step, scheme), key=lambda held: held.total)
    if zero >= 1:
        held = held._replace(optimizer=ceil(held.optimizer / scheme.data))
    if zero == 2:
        held = held._replace(gradients=ceil(held.gradients / scheme.data))
    return held


def each_stage(config: GPTConfig, step: Step, scheme: Scheme) -> list[DeviceBytes]:
    """What the fullest device of each stage of the pipeline holds; there is one stage if there is no pipeline."""
    return [_stage_bytes(config, step, scheme, stage) for stage in _stages(config, scheme.pp)]


class Stage(NamedTuple):
    """The part of the model that a device of a pipeline has: the whole model if there is no pipeline."""

    number: int
    blocks: int
    is_first: bool
    is_last: bool


def _stages(config: GPTConfig, pp: int) -> Iterator[Stage]:
    for number in range(pp):
        blocks = config.n_layers * (number + 1) // pp - config.n_layers * number // pp
        yield Stage(number, blocks, number == 0, number == pp - 1)


def _stage_bytes(config: GPTConfig, step: Step, scheme: Scheme, stage: Stage) -> DeviceBytes:
    block, ends = _parameters(config, stage)
    weights = step.size * sum(
        times * _share(name, shape, scheme)
        for times, shapes in ((stage.blocks, block), (1, ends))
        for name, shape in shapes.items()
    )
    pieces = ceil(scheme.pp / step.micro_batches)  # into which a pipeline cuts a micro-batch, so that no stage idles
    rows = ceil(ceil(step.batch_size / scheme.data) / pieces) * step.tokens
    in_flight = min(pieces * step.micro_batches, scheme.pp - stage.number)
    return DeviceBytes(
        weights=weights,
        gradients=weights + _added_up(step, scheme, stage, block, ends),
        optimizer=2 * weights,
        activations=in_flight * _activations(config, step, scheme, stage, rows),
        copies=_copies(step, scheme, stage, block, ends),
        head=_head(config, step, scheme, rows) if stage.is_last else 0,
    )


Shapes = dict[str, tuple[int, ...]]


def _parameters(config: GPTConfig, stage: Stage) -> tuple[Shapes, Shapes]:
    """The shapes of a block's parameters, and of the stage's other parameters."""
    shapes = _shapes_with_one_block(config)
    block = {name: shape for name, shape in shapes.items() if name.startswith("trf_blocks.")}
    first = {"tok_emb.weight", "pos_emb.weight"}
    last = {name for name in shapes if name.startswith(("final_norm.", "out_head."))}
    if config.tie_weights:
        last.add("tok_emb.weight")
    wanted = (first if stage.is_first else set()) | (last if stage.is_last else set())
    return block, {name: shape for name, shape in shapes.items() if name in wanted}


@cache
def _shapes_with_one_block(config: GPTConfig) -> Shapes:
    return parameter_shapes(replace(config, n_layers=1))


def _share(name: str, shape: Sequence[int], scheme: Scheme) -> int:
    """How many values of a parameter the device with the largest share holds."""
    sizes = list(shape)
    shared = next((axis for end, axis in SHARED_AXES.items() if name.endswith(end)), None)
    if shared is not None:
        sizes[shared] = ceil(sizes[shared] / scheme.tp)
    sliced = 1 if shared == 0 and scheme.tp > 1 and len(sizes) > 1 else 0  # by fsdp: an axis that tp leaves whole
    sizes[sliced] = ceil(sizes[sliced] / scheme.fsdp)
    return prod(sizes)


def _gathered(shapes: Shapes, scheme: Scheme) -> int:
    """How many values the parameters of these shapes have when those of all devices of fsdp are together."""
    return sum(_share(name, shape, scheme._replace(fsdp=1)) for name, shape in shapes.items())


def _added_up(step: Step, scheme: Scheme, stage: Stage, block: Shapes, ends: Shapes) -> int:
    """Bytes of the whole gradients in which a device of fsdp adds up several micro-batches, before it shares the sum.

    So gradients travel once in a step, and not once in a micro-batch.
    """
    if scheme.fsdp == 1 or (step.micro_batches == 1 and scheme.pp == 1):
        return 0
    return step.size * (stage.blocks * _gathered(block, scheme) + _gathered(ends, scheme))


def _copies(step: Step, scheme: Scheme, stage: Stage, block: Shapes, ends: Shapes) -> int:
    """Bytes of the weights in another form.

    Products that are not in the parameters' dtype take rounded copies of the blocks' matrices, which the backward needs
    again. With fsdp, the parameters of BLOCKS_GATHERED blocks and those that are in no block are gathered, too. A
    pipeline gathers each of its blocks once in a step, and keeps it, because it goes forward and backward by turns.
    """
    copies = 0
    if step.product_size != step.size:
        matrices = {name: shape for name, shape in block.items() if len(shape) > 1}
        copies += step.product_size * stage.blocks * _gathered(matrices, scheme)
    if scheme.fsdp > 1:
        blocks = min(BLOCKS_GATHERED, stage.blocks) if scheme.pp == 1 else stage.blocks
        copies += step.size * (blocks * _gathered(block, scheme) + _gathered(ends, scheme))
    return copies


def _activations(config: GPTConfig, step: Step, scheme: Scheme, stage: Stage, rows: int) -> int:
    """Bytes that the forward of one micro-batch keeps in a stage."""
    block = block_activations(config, step, rows, scheme.tp)
    stream = step.size * rows * config.emb_dim
    # of a block that is computed again its input is kept, and at its turn the rest, too
    held = stage.blocks * stream + block if step.checkpoint_activations else stage.blocks * block
    if stage.is_first and config.drop_rate:
        held += rows * config.emb_dim  # the mask after the embeddings
    if stage.is_last:
        held += 2 * stream + 2 * step.size * rows  # the final norm's input, mean and deviation; its output's gradient
    return held


def block_activations(config: GPTConfig, step: Step, rows: int, tp: int = 1) -> int:
    """Bytes that a block's forward keeps for `rows` tokens of a device.

    A number of the residual stream has f bytes, and one that is multiplied e bytes; those of dropout's masks have one.
    Under autocast, queries, keys and values each multiply a rounded copy of their input, and CUDA computes the softmax
    in float32 (PyTorch's documentation of torch.amp, "CUDA Ops that can autocast to float32").
    """
    f, e, drops = step.size, step.product_size, bool(config.drop_rate)
    D, H = config.emb_dim, config.n_heads
    norm = f * rows * (D + 2)  # its input, mean and deviation
    inputs = (1 if e == f else 3) * e * rows * D  # of queries, keys and values
    if step.attention == "flash":
        scores = f * rows * H  # log of the sums of exponentials
    else:
        scores = rows * step.tokens * H * (f + (e if drops or e != f else 0) + drops)
    hidden = e * rows * 4 * D  # of the feed-forward network, before and after GELU
    shared = 3 * e * rows * D + scores + e * rows * D + 2 * hidden  # queries, keys, values; scores; context; hidden
    causal_mask = step.tokens**2 if step.attention == "math" else 0
    masks = 2 * rows * D * drops
    return 2 * norm + inputs + ceil(shared / tp) + e * rows * D + causal_mask + masks


def _head(config: GPTConfig, step: Step, scheme: Scheme, rows: int) -> int:
    """Bytes of the head and the loss (torchgpt/head_loss.py), apart from the gradient of the hidden states.

    The logits are in the format of the products. What is computed of them is at least float32, and is in their place if
    that is their format. Then the gradient of the logits is once more in the format of the products.
    """
    f, e = step.size, step.product_size
    V, D = ceil(config.vocab_size / scheme.tp), config.emb_dim
    logits = min(rows, ROWS_AT_ONCE) * V * (f if e == f else e + FLOAT32 + e)
    rounded_weight = V * D * e if e != f else 0
    d_weight = V * D * f
    return logits + rounded_weight + d_weight
