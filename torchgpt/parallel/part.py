"""The part of a GPT that one stage of a pipeline computes; without a pipeline, the whole GPT."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from numpygpt.model.config import GPTConfig
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from torchgpt import head_loss
from torchgpt.model import GPTModel
from torchgpt.parallel import slices


class Stage(NamedTuple):
    """Which part of the model: the stage's number, from 0, among all stages."""

    number: int
    stages: int

    @property
    def is_first(self) -> bool:
        """Whether it has the embeddings."""
        return self.number == 0

    @property
    def is_last(self) -> bool:
        """Whether it has the final norm, the head and the loss."""
        return self.number == self.stages - 1

    def blocks(self, n_layers: int) -> range:
        """The numbers of its blocks. The stages differ by one block at most."""
        bounds = [n_layers * number // self.stages for number in range(self.stages + 1)]
        return [range(first, end) for first, end in pairwise(bounds)][self.number]


class Part(nn.Module):
    """What a stage computes: from token ids, or the hidden states of the stage before, to hidden states, or the loss.

    model   the stage's modules, by their names in a `GPTModel`; those of other stages are absent
    """

    def __init__(
        self, model: GPTModel, stage: Stage, rows_at_once: int, autocast: Callable[[], AbstractContextManager[object]]
    ) -> None:
        super().__init__()
        self.model, self.stage = model, stage
        self.rows_at_once, self.autocast = rows_at_once, autocast
        self.compiled = False
        _leave_only(model, stage)

    def forward(
        self,
        x: Tensor,
        targets: Integer[Tensor, "B T"] | None = None,
        *,
        positions: Integer[Tensor, "B T"] | None = None,
        visible: Bool[Tensor, "B 1 T T"] | None = None,
        hidden: bool = False,
    ) -> Any:
        """Hidden states (B, T, D); in the last stage the sum of the losses (), or, without targets, logits (B, T, V).

        x                    token ids (B, T) in the first stage, in any other the hidden states (B, T, D) of the one
                             before it
        positions, visible   as `torchgpt.model.GPTModel` takes them
        hidden               whether the logits come with the hidden states that they are made of, as a pair
        """
        with self.autocast():
            if self.stage.is_first:
                x = self.model.embedded(x, positions=positions)
            for block in self.model.trf_blocks.children():
                x = block(x, visible=visible)
            if not self.stage.is_last:
                return x
            x = self.model.final_norm(x)
            if targets is not None:
                return self._sum_of_losses(x, targets)
            logits = self.model.out_head(x)
            return (logits, x) if hidden else logits

    def compile_parts(self) -> None:
        """Let torch.compile make the code of the blocks, and on a GPU that of the loss."""
        for block in self.model.trf_blocks.children():
            block.compile()
        self.compiled = True

    def tie(self) -> None:
        """Make the embedding's Parameter the head's, too, if the configuration says so and the part has both."""
        if self.model.config.tie_weights and self.stage.stages == 1:
            self.model.out_head.weight = self.model.tok_emb.weight

    def _sum_of_losses(self, hidden: Float[Tensor, "B T D"], targets: Integer[Tensor, "B T"]) -> Float[Tensor, ""]:
        head: nn.Module = self.model.out_head
        if not isinstance(head, nn.Linear):  # it has an adapter
            logits = head(hidden).flatten(0, 1)
            return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
        weight = head.weight
        return head_loss.loss_sum(
            hidden.flatten(0, 1),
            slices.local(weight),
            targets.flatten(),
            rows_at_once=self.rows_at_once,
            compiled=self.compiled and hidden.is_cuda,
            first_id=_first_row(weight) if isinstance(weight, DTensor) else 0,
            group=weight.device_mesh.get_group() if isinstance(weight, DTensor) else None,
        )


def build_part(
    config: GPTConfig,
    stage: Stage,
    *,
    dtype: torch.dtype,
    attention: str = "math",
    kernels: str = "book",
    checkpoint_activations: bool = False,
    rows_at_once: int = head_loss.ROWS_AT_ONCE,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Part:
    """A part whose parameters are on the meta device: they have shapes and take no memory.

    dtype          of the parameters
    attention, kernels, checkpoint_activations   as `torchgpt.model.GPTModel` takes them
    rows_at_once   how many rows of the batch have logits at the same time (`torchgpt.head_loss`)
    autocast       makes the context that forwards are computed in
    """
    with torch.device("meta"):
        model = GPTModel(config, attention, kernels=kernels, checkpoint_activations=checkpoint_activations)
    return Part(model.to(dtype), stage, rows_at_once, autocast)


def _first_row(weight: DTensor) -> int:
    """The number of the first row of the slice that this process holds of a weight whose rows are shared."""
    rows, processes = weight.shape[0], weight.device_mesh.size()
    first: int = -(-rows // processes) * weight.device_mesh.get_local_rank()
    return first


def _leave_only(model: GPTModel, stage: Stage) -> None:
    """Delete the modules of other stages. The blocks keep their numbers."""
    blocks = {str(number): model.trf_blocks[number] for number in stage.blocks(model.config.n_layers)}
    model.add_module("trf_blocks", nn.ModuleDict(blocks))
    if not stage.is_first:
        del model.tok_emb, model.pos_emb, model.drop_emb
    if not stage.is_last:
        del model.final_norm, model.out_head
