"""A GPT as a backend of the training loop computes with it, in one process or shared among many.

Whatever the scheme, a step is the same: the gradients are those of the mean loss over all targets of the whole batch.
Every process divides its sums of losses by the number of all targets, and gradients are only ever summed: over
micro-batches, over the processes that share the batch, and over the two stages that hold a tied weight. So
micro-batches and processes may have different numbers of targets.

To its user a parameter is what this process holds of it, a plain tensor. An optimizer that computes element by element,
such as AdamW, needs to know no more, and its state is sliced as the parameters are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from numpygpt.model.config import GPTConfig
from numpygpt.model.scheme import Scheme
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.shapes import Array
from numpygpt.training.team import OneProcess
from torchgpt.model import GPTModel
from torchgpt.parallel import plans, slices
from torchgpt.parallel.grid import Grid
from torchgpt.parallel.part import Part, Stage
from torchgpt.parallel.placed import Placed
from torchgpt.parallel.team import ProcessTeam

if TYPE_CHECKING:
    from torchgpt.parallel.pipeline import Pipeline

TIED = "tok_emb.weight", "out_head.weight"


class Share(NamedTuple):
    """Rows of a micro-batch that this process computes.

    rows      with token ids (rows, T) as `inputs`, on the device
    factor    what the mean loss of these rows is multiplied by in the loss of all
    options   what else `Part.forward` takes
    """

    rows: Any
    factor: float
    options: Mapping[str, Any]


class ParallelModel:
    """This process's part of a model, and its share of the work. Make it with `build`.

    config    the whole model's configuration
    scheme    how it is shared
    device    where this process computes
    shapes    {name: shape} of every parameter of the whole model that is trained, a tied weight once, in numpygpt's
              order. If not all are, somebody says which: a parameter that is not has no name here.
    """

    def __init__(
        self,
        config: GPTConfig,
        scheme: Scheme,
        grid: Grid | None,
        part: Part,
        device: torch.device,
        dtype: torch.dtype,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.config, self.scheme, self.device = config, scheme, device
        self.shapes = shapes_of(config) if shapes is None else dict(shapes)
        self._grid, self._part, self._dtype = grid, part, dtype
        named = {whole_name(name, config): parameter for name, parameter in part.model.named_parameters()}
        self._own = {name: parameter for name, parameter in named.items() if name in self.shapes}
        self._parameters = {name: _plain(parameter) for name, parameter in self._own.items()}
        self._ddp: DistributedDataParallel | None = None
        self._pipeline: Pipeline | None = None
        if grid is not None and scheme.pp > 1:
            self._pipeline = _pipeline_of(part, grid.group("pp"), device, dtype)
        if grid is not None and scheme == Scheme(ddp=scheme.ddp) and scheme.ddp > 1:
            self._ddp = _in_ddp(part, grid.group("ddp"))

    @classmethod
    def build(
        cls,
        config: GPTConfig,
        scheme: Scheme,
        team: OneProcess | ProcessTeam,
        *,
        device: torch.device,
        dtype: torch.dtype,
        compiled: bool = False,
        **how: Any,
    ) -> "ParallelModel":
        """A model whose memory is allocated, and not filled: give every name of `shapes` to `fill`.

        dtype          of the parameters
        compiled       whether torch.compile makes the code
        how            attention, kernels, checkpoint_activations, rows_at_once and autocast, as
                       `torchgpt.parallel.part.build_part` takes them

        Raises InputError if the model cannot be shared so.
        """
        grid = Grid(scheme, device.type, team.time_limit) if isinstance(team, ProcessTeam) else None
        part = plans.shared_part(config, scheme, grid, dtype, **how)
        if compiled:
            part.compile_parts()
        part.to_empty(device=device)
        part.tie()
        return cls(config, scheme, grid, part, device, dtype)

    # Weights

    def parameters(self) -> dict[str, nn.Parameter]:
        """What this process holds of each parameter of its part; after `gradients` it has its `.grad`.

        The names are the whole model's. A pipeline's stage has only the parameters of its part; a tied weight is in
        the first and in the last stage.
        """
        return self._parameters

    def slice_of(self, name: str, whole: Tensor) -> Tensor | None:
        """What this process holds of a tensor that is cut as the parameter of that name; None if it holds nothing.

        Every process needs the whole tensor. The slice is on the model's device, in the parameters' dtype.
        """
        return slices.slice_of(whole, self._own[name]) if name in self._own else None

    def fill(self, name: str, whole: Tensor) -> None:
        """Give the parameter of that name these values. A process that does not hold it ignores them."""
        piece = self.slice_of(name, whole)
        if piece is not None:
            with torch.no_grad():
                self._parameters[name].copy_(piece)

    def each_whole(
        self, pieces: Mapping[str, Tensor] | None = None, names: Sequence[str] | None = None, *, wanted: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Every name with its whole tensor, a copy on the CPU, one after another, in every process.

        pieces   what each process holds of tensors that are cut as the parameters, such as gradients or an
                 optimizer's moments; None: the parameters themselves
        names    the parameters that have such a tensor, in any process; None: all
        wanted   whether this process wants the tensors; otherwise it gets nothing, and helps the others

        All processes have to go through it together, to its end.
        """
        held = self._parameters if pieces is None else pieces
        for name in self.shapes if names is None else names:
            shape = self.shapes[name]
            whole = slices.whole_of(held[name].detach(), self._own[name].detach()) if name in self._own else None
            whole = self._from_stage(self._stage_of(name), shape, whole)
            if wanted:
                yield name, whole.to("cpu", copy=True)

    def distributed(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same pieces as PyTorch's distributed tensors, which know their places (`torchgpt.parallel.sharded`)."""
        return {name: slices.distributed(piece.detach(), self._own[name]) for name, piece in pieces.items()}

    # A step

    def seed(self, seed: int) -> None:
        """Seed what draws dropout masks.

        Processes that compute different rows or blocks draw different masks. The processes of tp draw the same, since
        they hold the same residual stream; so heads that are in the same place of two processes lose the same weights.
        """
        grid = self._grid
        torch.manual_seed(seed + (grid.data_rank * self.scheme.pp + grid.position["pp"] if grid else 0))

    def place(self, inputs: Array, targets: Array) -> Placed:
        """This process's rows of a micro-batch (B, T), on its device.

        The rows are shared equally among the processes of ddp and fsdp; where they are too few, rows that do not count
        are added.
        """
        share = -(-len(inputs) // self.scheme.data)
        first = share * (self._grid.data_rank if self._grid else 0)
        rows = [torch.from_numpy(np.array(ids[first : first + share], dtype=np.int64)) for ids in (inputs, targets)]
        placed = Placed(*rows).padded(share)
        if self.device.type == "cuda":
            placed = Placed(*(ids.pin_memory().to(self.device, non_blocking=True) for ids in placed))
        return Placed(*(ids.to(self.device) for ids in placed))

    def gradients(
        self, placed: Sequence[Placed], n_targets: int, scale: Tensor | float = 1.0, *, dropout: bool = True
    ) -> Tensor:
        """Compute the gradients of scale times the mean loss over all targets; returns the mean loss (), in nats.

        placed      the micro-batches, as `place` returned them in this process
        n_targets   how many targets count, in all micro-batches and all processes together
        dropout     whether there is dropout, at the model's rate

        Every process gets the same loss.
        """
        self._part.train(dropout)
        for parameter in (*self._own.values(), *self._parameters.values()):
            parameter.grad = None
        factor = scale / max(1, n_targets)
        compute = self._pipeline.gradients if self._pipeline else self._gradients
        total = compute(placed, factor)
        for name, parameter in self._own.items():
            self._parameters[name].grad = slices.local_gradient(parameter)
        self._sum_gradients()
        return self._over_all(total) / max(1, n_targets)

    def rows_of_process(self, rows: int) -> slice:
        """Which of the rows of a batch this process computes, among those of ddp and fsdp; it may be none."""
        share = -(-rows // self.scheme.data)
        first = min(share * (self._grid.data_rank if self._grid else 0), rows)
        return slice(first, min(first + share, rows))

    def gradients_by(
        self, loss_of: Callable[[Any, Any], Tensor], shares: Sequence[Share], scale: Tensor | float = 1.0,
        *, dropout: bool = True,
    ) -> Tensor:  # fmt: skip
        """Compute the gradients of scale times a loss of the logits; returns the loss (), the same in every process.

        loss_of   gives the loss of some rows, of what `Part.forward` returns of them and the rows themselves
        shares    this process's rows of each micro-batch, and what their loss is multiplied by in the whole one
        dropout   whether there is dropout, at the model's rate
        """
        self._part.train(dropout)
        for parameter in (*self._own.values(), *self._parameters.values()):
            parameter.grad = None
        total = torch.zeros((), dtype=self._dtype, device=self.device)
        module = self._ddp or self._part
        for left, (rows, factor, options) in zip(reversed(range(len(shares))), shares, strict=True):
            with self._summing(left == 0):
                loss = loss_of(module(rows.inputs, **options), rows) * factor
                (loss * scale).backward()
            total += loss.detach()
        for name, parameter in self._own.items():
            self._parameters[name].grad = slices.local_gradient(parameter)
        self._sum_gradients()
        return self._over_all(total)

    @torch.no_grad()
    def outputs(self, inputs: Tensor, **options: Any) -> Any:
        """What `Part.forward` returns of token ids on the device, without dropout."""
        self._part.eval()
        output = self._part(inputs, **options)
        if isinstance(self._part, FSDPModule):
            self._part.reshard()
        return output

    @torch.no_grad()
    def loss(self, inputs: Array, targets: Array) -> float:
        """The mean loss of a batch (B, T), in nats a target that counts, without dropout; the same in every process."""
        self._part.eval()
        total = self._forward(*self.place(inputs, targets))
        if total is None:
            total = torch.zeros((), dtype=self._dtype, device=self.device)
        n_targets = int(np.count_nonzero(np.asarray(targets) != IGNORE_INDEX))
        return float(self._over_all(total)) / max(1, n_targets)

    @torch.no_grad()
    def logits(self, in_idx: Array) -> Tensor:
        """The logits (B, T, V) of token ids (B, T), without dropout, in the parameters' dtype; the same everywhere."""
        self._part.eval()
        ids = torch.from_numpy(np.array(in_idx, dtype=np.int64)).to(self.device)
        logits = self._forward(ids, None)
        return self._from_stage(self.scheme.pp - 1, (*ids.shape, self.config.vocab_size), logits).to(self._dtype)

    # Gradients

    def norms(self) -> dict[str, Tensor]:
        """The Euclidean norm () of each parameter's whole gradient, the same in every process."""
        numbers = {name: number for number, name in enumerate(self.shapes)}
        own = [name for name in self.shapes if self._counts_here(name)]
        gradients: list[Any] = [self._parameters[name].grad for name in own]
        squares = torch.zeros(len(numbers), dtype=self._dtype, device=self.device)
        squares[[numbers[name] for name in own]] = torch.stack(torch._foreach_norm(gradients)) ** 2
        for axis in ("fsdp", "tp"):
            cut = [numbers[name] for name in own if axis in slices.axes_of(self._own[name])]
            if cut:
                sums = squares[cut]
                slices.sum_over(self._group(axis), [sums])
                squares[cut] = sums
        if self._pipeline:
            slices.sum_over(self._group("pp"), [squares])
        return dict(zip(numbers, squares.sqrt().unbind(), strict=True))

    def multiply_gradients(self, factor: Tensor | float) -> None:
        """Multiply every gradient by the factor, in place."""
        gradients = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        torch._foreach_mul_(gradients, factor)

    # How it is done

    def _gradients(self, placed: Sequence[Placed], factor: Tensor | float) -> Tensor:
        """Forward and backward of all rows; returns the sum of their losses."""
        total = torch.zeros((), dtype=self._dtype, device=self.device)
        module = self._ddp or self._part
        for left, rows in zip(reversed(range(len(placed))), placed, strict=True):
            with self._summing(left == 0):
                loss = module(*rows)
                (loss * factor).backward()
            total += loss.detach()
        return total

    def _summing(self, now: bool) -> AbstractContextManager[object]:
        """A backward in this context sums the gradients over processes, or leaves them to be added to: once a step."""
        if isinstance(self._part, FSDPModule):
            self._part.set_requires_gradient_sync(now)
        return nullcontext() if now or self._ddp is None else self._ddp.no_sync()

    def _sum_gradients(self) -> None:
        """Sum the gradients where neither DDP nor FSDP has done it."""
        if self.scheme.ddp > 1 and self.scheme.fsdp == 1 and self._ddp is None:
            gradients = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
            slices.sum_over(self._group("ddp"), gradients)
        tied = self._parameters.get(TIED[0])
        if self._pipeline and self.config.tie_weights and tied is not None and tied.grad is not None:
            self._pipeline.exchange(tied.grad)

    def _forward(self, inputs: Tensor, targets: Tensor | None) -> Tensor | None:
        """The part's output, in the last stage; None elsewhere."""
        output = self._pipeline.forward(inputs, targets) if self._pipeline else self._part(inputs, targets)
        if isinstance(self._part, FSDPModule):
            self._part.reshard()  # what was gathered would be old after the next step
        return output

    def _over_all(self, total: Tensor) -> Tensor:
        """The sum of all processes' sums of losses. Those of tp have the same sum, and only the first one's counts."""
        if self._grid is None:
            return total
        counted = total.clone() if self._grid.position["tp"] == 0 else torch.zeros_like(total)
        dist.all_reduce(counted)
        return counted

    def _counts_here(self, name: str) -> bool:
        """Whether the parameter of that name is counted in this process's stage, and not in another, too."""
        return name in self._parameters and (self._pipeline is None or self._stage_of(name) == self._part.stage.number)

    def _stage_of(self, name: str) -> int:
        """The first stage that has the parameter of that name."""
        kind, _, rest = name.partition(".")
        if kind != "trf_blocks":
            return 0 if kind in ("tok_emb", "pos_emb") else self.scheme.pp - 1
        block = int(rest.partition(".")[0])
        stages = (Stage(number, self.scheme.pp) for number in range(self.scheme.pp))
        return next(stage.number for stage in stages if block in stage.blocks(self.config.n_layers))

    def _from_stage(self, number: int, shape: Sequence[int], tensor: Tensor | None) -> Tensor:
        """The tensor that the stage of that number has, in the processes of all stages."""
        if self._pipeline is None:
            assert tensor is not None
            return tensor
        if number == self._part.stage.number and tensor is not None:
            sent = tensor.to(self._dtype).contiguous()
        else:
            sent = torch.empty(*shape, dtype=self._dtype, device=self.device)
        dist.broadcast(sent, group=self._group("pp"), group_src=number)
        return sent

    def _group(self, axis: str) -> dist.ProcessGroup:
        assert self._grid is not None
        return self._grid.group(axis)


def shapes_of(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every parameter of a model of this configuration, a tied weight once."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in GPTModel(config).named_parameters()}


def whole_name(name: str, config: GPTConfig) -> str:
    """The name that a parameter of a part has in the whole model: where peft has put an adapter, its projection's."""
    name = name.replace(".base_layer.", ".")
    return TIED[0] if config.tie_weights and name == TIED[1] else name


def _plain(parameter: nn.Parameter) -> nn.Parameter:
    """What this process holds of the parameter, in the same memory."""
    return nn.Parameter(slices.local(parameter.detach())) if isinstance(parameter, DTensor) else parameter


def _pipeline_of(part: Part, group: dist.ProcessGroup, device: torch.device, dtype: torch.dtype) -> "Pipeline":
    from torchgpt.parallel.pipeline import Pipeline  # it loads torch.compile, which takes a second

    return Pipeline(part, group, device, dtype)


def _in_ddp(part: Part, group: dist.ProcessGroup) -> DistributedDataParallel:
    """The part in PyTorch's DDP, which sums its gradients while the backward goes on."""
    ddp = DistributedDataParallel(part, process_group=group, init_sync=False, gradient_as_bucket_view=True)
    ddp.register_comm_hook(group, _sum_of_bucket)
    return ddp


def _sum_of_bucket(group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The sum of a bucket of gradients. Without this hook, DDP would take their mean."""
    summed = dist.all_reduce(bucket.buffer(), group=group, async_op=True).get_future()
    return summed.then(lambda future: future.value()[0])
