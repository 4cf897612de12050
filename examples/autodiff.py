"""Backpropagation through one neuron, by hand and by PyTorch's automatic differentiation.

    x, y   input and target
    w, b   weight and bias

    (1)  z = w x + b
    (2)  a = sigmoid(z) = 1 / (1 + exp(-z))
    (3)  loss = -y log(a) - (1 - y) log(1 - a)          binary cross-entropy

Derivation, from the last line to the first:

    d_a = -y / a + (1 - y) / (1 - a)                     from (3)
    d_z = d_a a (1 - a)                                  from (2); with d_a put in, this is a - y
    d_w = d_z x,  d_b = d_z                              from (1)
"""

import math

X, Y = 1.1, 1.0
W, B = 2.2, 0.0


def forward(x: float, y: float, w: float, b: float) -> tuple[float, float]:
    """The loss, and the activation that the backward needs."""
    z = w * x + b  # (1)
    a = 1 / (1 + math.exp(-z))  # (2)
    loss = -y * math.log(a) - (1 - y) * math.log(1 - a)  # (3)
    return loss, a


def backward(x: float, y: float, a: float) -> tuple[float, float]:
    """The derivatives of the loss with respect to w and b."""
    d_a = -y / a + (1 - y) / (1 - a)  # undoes (3)
    d_z = d_a * a * (1 - a)  # undoes (2)
    return d_z * x, d_z  # undoes (1)


def by_torch() -> tuple[float, float, float]:
    """The same loss, d_w and d_b, by PyTorch's backward."""
    import torch
    from torch.nn.functional import binary_cross_entropy

    x, y = torch.tensor([X]), torch.tensor([Y])
    w, b = torch.tensor([W], requires_grad=True), torch.tensor([B], requires_grad=True)
    loss = binary_cross_entropy(torch.sigmoid(x * w + b), y)
    d_w, d_b = torch.autograd.grad(loss, (w, b))
    return loss.item(), d_w.item(), d_b.item()


def main() -> None:
    """Print loss, d_w and d_b, by hand and by PyTorch."""
    loss, a = forward(X, Y, W, B)
    d_w, d_b = backward(X, Y, a)
    print(f"by hand:     loss {loss:.4f}   d_w {d_w:.4f}   d_b {d_b:.4f}")
    try:
        loss, d_w, d_b = by_torch()
    except ImportError:
        print("by PyTorch:  skipped, PyTorch is not installed")
    else:
        print(f"by PyTorch:  loss {loss:.4f}   d_w {d_w:.4f}   d_b {d_b:.4f}")


if __name__ == "__main__":
    main()
