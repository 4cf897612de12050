"""Why the "124M" GPT-2 has 163,009,536 parameters as the book builds it, and 124 million with a tied head.

A linear layer has outputs x inputs weights, and, if it has biases, as many biases as outputs.
"""

from numpygpt.model.config import GPT_CONFIG_124M, GPTConfig
from numpygpt.model.sizes import num_parameters

V, C, D, L = (GPT_CONFIG_124M[name] for name in ("vocab_size", "context_length", "emb_dim", "n_layers"))
F = 4 * D


def counts() -> dict[str, int]:
    """{what: how many parameters}; the lines that begin with "one block" count L times."""
    return {
        f"token embedding, {V} x {D}": V * D,
        f"position embedding, {C} x {D}": C * D,
        f"one block: queries, keys, values, 3 x {D} x {D}, no bias": 3 * D * D,
        f"one block: output projection, {D} x {D} + {D}": D * D + D,
        f"one block: feed-forward in, {F} x {D} + {F}": F * D + F,
        f"one block: feed-forward out, {D} x {F} + {D}": D * F + D,
        f"one block: two norms, 2 x (scale {D} + shift {D})": 2 * (D + D),
        f"final norm, scale {D} + shift {D}": D + D,
        f"output head, {V} x {D}, no bias": V * D,
    }


def count_by_torch() -> int:
    """How many parameters PyTorch counts in a model on its meta device, where arrays have shapes but no values."""
    import torch

    from torchgpt import GPTModel

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GPTModel(GPT_CONFIG_124M).parameters())


def main() -> None:
    """Print the parts, the total with its size in memory, and the total with a tied head."""
    parts = counts()
    for what, count in parts.items():
        print(f"{what:<60}{count:>12,}")
    block = sum(count for what, count in parts.items() if what.startswith("one block"))
    total = sum(parts.values()) + (L - 1) * block
    tied = total - V * D
    print(f"{'one block':<60}{block:>12,}")
    print(f"{f'{L} blocks':<60}{L * block:>12,}")
    print(f"{'total':<60}{total:>12,}   {total * 4 / 2**20:.2f} MiB in float32")
    print(f"{'total where the head is the token embedding, as in GPT-2':<60}{tied:>12,}")
    print(f"{'numpygpt counts':<60}{num_parameters(GPTConfig.of(GPT_CONFIG_124M)):>12,}")
    try:
        print(f"{'PyTorch counts':<60}{count_by_torch():>12,}")
    except ImportError:
        print("PyTorch's count is skipped: PyTorch is not installed")


if __name__ == "__main__":
    main()
