"""Sinusoidal positions, the alternative to learned ones, which GPTConfig has as position="sinusoidal".

For each of D/2 frequencies w, position t has the pair sin(t w), cos(t w). The pairs are like the hands of clocks that
turn at different speeds. The dot product of two positions depends only on their distance k, because

    sin(t w) sin((t + k) w) + cos(t w) cos((t + k) w) = cos(k w)
"""

import numpy as np

from numpygpt.ops import sinusoidal_positions

POSITIONS, EMB_DIM = 6, 8


def by_torch() -> np.ndarray:
    """The same table, as PyTorch's tutorials compute it."""
    import math

    import torch

    position = torch.arange(POSITIONS, dtype=torch.float64).unsqueeze(1)
    frequencies = torch.exp(torch.arange(0, EMB_DIM, 2, dtype=torch.float64) * (-math.log(10000.0) / EMB_DIM))
    table = torch.zeros(POSITIONS, EMB_DIM, dtype=torch.float64)
    table[:, 0::2] = torch.sin(position * frequencies)
    table[:, 1::2] = torch.cos(position * frequencies)
    return table.numpy()


def print_table(table: np.ndarray) -> None:
    """Print a line for each position."""
    for t, row in enumerate(table):
        print(f"{t:>3}" + "".join(f"{number:>9.4f}" for number in row))


def main() -> None:
    """Print the table by numpygpt and by PyTorch, and the dot products of positions."""
    table = sinusoidal_positions.table(POSITIONS, EMB_DIM, np.float64)
    print("numpygpt: a line a position, a column a feature")
    print_table(table)
    print("by PyTorch")
    try:
        print_table(by_torch())
    except ImportError:
        print("skipped: PyTorch is not installed")
    print("dot products: the same along each diagonal, and largest on the main one")
    print_table(table @ table.T)


if __name__ == "__main__":
    main()
