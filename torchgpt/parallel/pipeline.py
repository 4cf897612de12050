"""A pipeline: each stage computes its blocks, and sends the hidden states on and their gradients back.

The schedule is PyTorch's 1F1B (Narayanan et al. 2019, "PipeDream"): a stage does one forward and one backward in turn,
so it keeps the activations of as many micro-batches as there are stages, not of all. The first and the last stage wait
while the pipeline fills and empties, (stages - 1) of (micro-batches + stages - 1) turns: accumulate more micro-batches,
and the share of waiting shrinks.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from torchgpt.parallel.part import Part
from torchgpt.parallel.placed import Placed


class Pipeline:
    """One process's stage among those of the group."""

    def __init__(self, part: Part, group: dist.ProcessGroup, device: torch.device, dtype: torch.dtype) -> None:
        self.part, self.group, self.device = part, group, device
        self._hidden_as: dict[str, Any] = {"device": device, "dtype": dtype}
        self._width = part.model.config.emb_dim
        self._factor: Tensor | float = 1.0
        self._losses: list[Tensor] = []
        self._schedule = cache(self._new_schedule)

    def gradients(self, placed: Sequence[Placed], factor: Tensor | float) -> Tensor:
        """Forward and backward of all rows; returns the sum of their losses in the last stage, elsewhere 0.

        The parameters' gradients are those of the sum times the factor. If there are fewer micro-batches than stages,
        each is cut into several.
        """
        stages = self.part.stage.stages
        pieces = -(-stages // len(placed))
        rows = -(-max(len(rows.inputs) for rows in placed) // pieces)
        padded = [micro_batch.padded(rows * pieces) for micro_batch in placed]
        inputs, targets = (torch.cat(tensors) for tensors in zip(*padded, strict=True))
        schedule = self._schedule(pieces * len(placed), rows, inputs.shape[1])
        self._factor, self._losses = factor, []
        own_inputs = (inputs,) if self.part.stage.is_first else ()
        schedule.step(*own_inputs, target=targets, targets=targets, return_outputs=False)
        return torch.stack(self._losses).sum() if self._losses else torch.zeros((), **self._hidden_as)

    def forward(self, inputs: Tensor, targets: Tensor | None) -> Tensor | None:
        """The part's output, computed stage after stage, in the last stage; None elsewhere. Keeps nothing."""
        stage, x = self.part.stage, inputs
        if not stage.is_first:
            x = torch.empty(*inputs.shape, self._width, **self._hidden_as)
            dist.recv(x, group=self.group, group_src=stage.number - 1)
        output = self.part(x, targets)
        if stage.is_last:
            return output
        dist.send(output.contiguous(), group=self.group, group_dst=stage.number + 1)
        return None

    def exchange(self, gradient: Tensor) -> None:
        """Add the gradient that the other end of the pipeline has of the same weight. First and last stage call this.

        Addition is commutative, so both ends get the same bits.
        """
        stage = self.part.stage
        other = stage.stages - 1 if stage.is_first else 0
        received = torch.empty_like(gradient)
        peer = dist.get_global_rank(self.group, other)
        sent_and_received = [
            dist.P2POp(dist.isend, gradient, peer, self.group),
            dist.P2POp(dist.irecv, received, peer, self.group),
        ]
        for work in dist.batch_isend_irecv(sent_and_received):
            work.wait()
        gradient += received

    def _new_schedule(self, micro_batches: int, rows: int, n_tokens: int) -> Schedule1F1B:
        """PyTorch's schedule for micro-batches of these sizes. It knows all shapes from the start, and asks nobody."""
        stage = self.part.stage
        ids = torch.zeros(rows, n_tokens, dtype=torch.int64, device=self.device)
        hidden = torch.zeros(rows, n_tokens, self._width, **self._hidden_as, requires_grad=True)
        loss = torch.zeros((), **self._hidden_as, requires_grad=True)
        runtime = PipelineStage(
            self.part,
            stage.number,
            stage.stages,
            self.device,
            input_args=ids if stage.is_first else hidden,
            output_args=loss if stage.is_last else hidden,
            group=self.group,
        )
        return Schedule1F1B(runtime, micro_batches, loss_fn=self._weighted, scale_grads=False)

    def _weighted(self, loss: Tensor, _targets: Tensor) -> Tensor:
        self._losses.append(loss.detach())
        return loss * self._factor
