"""A network of 10 inputs, 5 ReLU units and a sigmoid is trained by gradient descent, by hand in NumPy and by PyTorch.

    x          (N, 10)          inputs
    y          (N, 1)           targets, 0 or 1
    W1, b1     (5, 10), (5)     first layer; weights are (outputs, inputs), as in PyTorch
    W2, b2     (1, 5), (1)      second layer

    (1)  h = x W1ᵀ + b1
    (2)  r = max(h, 0)                                   ReLU
    (3)  z = r W2ᵀ + b2
    (4)  a = 1 / (1 + exp(-z))                           sigmoid
    (5)  loss = mean(-y log(a) - (1 - y) log(1 - a))     binary cross-entropy

Derivation, from the last line to the first:

    d_z = (a - y) / N                                    from (5) and (4) together, as for one neuron (autodiff.py)
    d_W2 = d_zᵀ r,  d_b2 = rows of d_z summed            from (3); every row uses the same W2 and b2
    d_r = d_z W2
    d_h = d_r where h > 0, else 0                        from (2)
    d_W1 = d_hᵀ x,  d_b1 = rows of d_h summed            from (1)

Data and initial weights are those of PyTorch's seed 123, which NumPy draws without PyTorch.
"""

import math
from typing import Any

import numpy as np

from numpygpt.random.torch_generator import TorchGenerator

SAMPLES, INPUTS, HIDDEN = 100, 10, 5
STEPS, LEARNING_RATE, SEED = 100, 0.5, 123
PRINTED = (0, 1, 2, 5, 10, 20, 50, 99)

Parameters = dict[str, np.ndarray]


def data_and_parameters() -> tuple[np.ndarray, np.ndarray, Parameters]:
    """What `torch_data_and_model` draws: x, y and the weights and biases of both layers, in float64."""
    generator = TorchGenerator(SEED)

    def linear(inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
        bound = 1 / math.sqrt(inputs)
        return (
            generator.uniform((outputs, inputs), -bound, bound).astype(np.float64),
            generator.uniform(outputs, -bound, bound).astype(np.float64),
        )

    x = generator.normal((SAMPLES, INPUTS)).astype(np.float64)
    first, second = linear(INPUTS, HIDDEN), linear(HIDDEN, 1)
    parameters = dict(zip(("W1", "b1", "W2", "b2"), first + second, strict=True))
    return x, first_half_is_larger(x).astype(np.float64), parameters


def first_half_is_larger(x: Any) -> Any:
    """What the network has to learn: for each row of an array or tensor, whether its first half has the larger sum."""
    return (x[:, :5].sum(1) > x[:, 5:].sum(1))[:, None]


def forward(x: np.ndarray, y: np.ndarray, parameters: Parameters) -> tuple[float, tuple[np.ndarray, ...]]:
    """The loss, and what the backward needs."""
    h = x @ parameters["W1"].T + parameters["b1"]  # (1)
    r = np.maximum(h, 0)  # (2)
    z = r @ parameters["W2"].T + parameters["b2"]  # (3)
    a = 1 / (1 + np.exp(-z))  # (4)
    loss = np.mean(-y * np.log(a) - (1 - y) * np.log(1 - a))  # (5)
    return loss, (x, y, h, r, a)


def backward(saved: tuple[np.ndarray, ...], parameters: Parameters) -> Parameters:
    """The gradient of every parameter, under the parameter's name."""
    x, y, h, r, a = saved
    d_z = (a - y) / len(x)  # undoes (5) and (4)
    d_h = np.where(h > 0, d_z @ parameters["W2"], 0)  # undoes (3) and (2)
    return {
        "W1": d_h.T @ x,  # undoes (1)
        "b1": d_h.sum(axis=0),
        "W2": d_z.T @ r,  # undoes (3)
        "b2": d_z.sum(axis=0),
    }


def train() -> list[float]:
    """The loss before each step of gradient descent."""
    x, y, parameters = data_and_parameters()
    losses = []
    for _ in range(STEPS):
        loss, saved = forward(x, y, parameters)
        losses.append(loss)
        for name, gradient in backward(saved, parameters).items():
            parameters[name] -= LEARNING_RATE * gradient
    return losses


def torch_data_and_model() -> tuple[Any, Any, Any]:
    """The same values, drawn by PyTorch."""
    import torch
    from torch import nn

    torch.manual_seed(SEED)
    x = torch.randn(SAMPLES, INPUTS).double()
    model = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1), nn.Sigmoid()).double()
    return x, first_half_is_larger(x).double(), model


def train_by_torch() -> list[float]:
    """The same losses, by PyTorch's forward and backward."""
    import torch
    from torch.nn.functional import binary_cross_entropy

    x, y, model = torch_data_and_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for _ in range(STEPS):
        loss = binary_cross_entropy(model(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def main() -> None:
    """Print both loss curves side by side."""
    columns = {"by hand": train()}
    try:
        columns["by PyTorch"] = train_by_torch()
    except ImportError:
        print("PyTorch is not installed: its column is skipped")
    print("step" + "".join(f"{name:>14}" for name in columns))
    for step in PRINTED:
        print(f"{step:>4}" + "".join(f"{losses[step]:>14.6f}" for losses in columns.values()))


if __name__ == "__main__":
    main()
