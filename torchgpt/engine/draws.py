"""What a run draws at random: its first weights, the order of its batches, and its dropout masks.

In one process on the CPU, PyTorch's default generator makes all draws, in the order in which NumPy's backend makes
them; so the two take the same steps. Otherwise the masks are drawn elsewhere: by the GPU's generator, or, in several
processes on CPUs, by a default generator that each process has seeded for itself. The order of the batches then comes
from a generator of its own, which every process has in the same state, and which goes on where the weights' draws end.
So all ways to share a run have the same weights and batches.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from numpygpt.model.config import GPTConfig
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array
from torchgpt.model import GPTModel, LayerNorm


class DefaultGenerator:
    """PyTorch's default generator of the CPU, as a DataLoader of ours draws from it."""

    def random_int64(self) -> int:
        """As `TorchGenerator.random_int64`."""
        return int(torch.empty((), dtype=torch.int64).random_())

    def multinomial(self, probabilities: Array) -> Array:
        """As `TorchGenerator.multinomial`: a draw (N, 1) for each row (N, K)."""
        return torch.multinomial(torch.from_numpy(probabilities), 1).numpy()

    def to_torch_state(self) -> Array:
        """As `TorchGenerator.to_torch_state`."""
        return torch.get_rng_state().numpy()


def batch_draws(*, alone_on_cpu: bool) -> DefaultGenerator | TorchGenerator:
    """What orders the batches from now on: the default generator, or one that goes on from its state."""
    if alone_on_cpu:
        return DefaultGenerator()
    return TorchGenerator.from_torch_state(torch.get_rng_state().numpy())


def first_weights(config: GPTConfig) -> Iterator[tuple[str, Tensor]]:
    """Every parameter's name and first values, in float32, drawn from the default generator as `GPTModel` draws them.

    One module at a time is in memory. Of tied weights the head's values come last, under the embedding's name.
    """
    with torch.device("meta"):
        model = GPTModel(config)
    for path, module in model.named_modules():
        fresh = _drawn(module)
        for name, parameter in fresh.named_parameters() if fresh is not None else ():
            tied = config.tie_weights and path == "out_head"
            yield "tok_emb.weight" if tied else f"{path}.{name}", parameter.detach()


def _drawn(module: nn.Module) -> nn.Module | None:
    """A module of the same sizes with fresh values; None for a module that has no parameters of its own."""
    if isinstance(module, nn.Embedding):
        return nn.Embedding(module.num_embeddings, module.embedding_dim)
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    if isinstance(module, LayerNorm):
        return LayerNorm(module.scale.numel(), module.eps, module.shift is not None)
    return None
