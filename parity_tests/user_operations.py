"""Operations that somebody might have written, right ones and ones that are wrong in ways that were met."""

from typing import NamedTuple

import numpy as np

from numpygpt.ops import cross_entropy, layer_norm, softmax

# SwiGLU


def silu(x):
    return x / (1 + np.exp(-x))


class SwigluGradients(NamedTuple):
    gate: np.ndarray
    up: np.ndarray


class swiglu:  # noqa: N801  # it stands for a module
    @staticmethod
    def forward(gate, up):
        return silu(gate) * up, (gate, up)

    @staticmethod
    def backward(d_y, saved):
        gate, up = saved
        share = 1 / (1 + np.exp(-gate))
        return SwigluGradients(d_y * up * share * (1 + gate * (1 - share)), d_y * silu(gate))

    @staticmethod
    def example(rng):
        return {"gate": rng.standard_normal((4, 5)), "up": rng.standard_normal((4, 5))}


class swiglu_to_row_0(swiglu):  # noqa: N801
    """Triton-distributed#180: every row's gradient is added to row 0. The sum of the gradient is right."""

    @staticmethod
    def backward(d_y, saved):
        wrong = []
        for gradient in swiglu.backward(d_y, saved):
            wrong.append(np.zeros_like(gradient))
            wrong[-1][0] = gradient.sum(axis=0)
        return SwigluGradients(*wrong)


# GELU's tanh form


class gelu:  # noqa: N801
    @staticmethod
    def forward(x):
        return x * (1 + np.tanh(0.8 * (x + 0.045 * x**3))) / 2, x

    @staticmethod
    def backward(d_y, x):
        tanh = np.tanh(0.8 * (x + 0.045 * x**3))
        return {"x": d_y * (1 + tanh + x * (1 - tanh * tanh) * 0.8 * (1 + 0.135 * x * x)) / 2}


# RMSNorm, as two functions with plain tuples


def rms_norm_forward(x, weight):
    inv_rms = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)
    return x * inv_rms * weight


def rms_norm_backward(d_y, x, weight):
    inv_rms = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)
    d_n = d_y * weight
    n = x * inv_rms
    return inv_rms * (d_n - n * (d_n * n).mean(axis=-1, keepdims=True)), (d_y * n).sum(axis=(0, 1))


def rms_norm_example(rng):
    return rng.standard_normal((2, 3, 6)), rng.standard_normal(6)


class rms_norm_without_weight:  # noqa: N801
    """unsloth#4533: the gradient of the weight is None."""

    forward = staticmethod(rms_norm_forward)
    example = staticmethod(rms_norm_example)

    @staticmethod
    def backward(d_y, x, weight):
        return rms_norm_backward(d_y, x, weight)[0], None


class layer_norm_of_llm_c:  # noqa: N801
    """llm.c#428: the weight's gradient takes what is normalized without its mean."""

    @staticmethod
    def forward(x, scale, shift):
        y, saved = layer_norm.forward(x, scale, shift)
        return y, (x, saved)

    @staticmethod
    def backward(d_y, saved):
        x, inner = saved
        gradients = layer_norm.backward(d_y, inner)
        return gradients._replace(scale=(d_y * x * inner.inv_std).sum(axis=(0, 1)))

    @staticmethod
    def example(rng):
        return rng.standard_normal((2, 3, 5)) + 1, rng.standard_normal(5), rng.standard_normal(5)


# Scalars, several outputs, integers


def mean_loss(logits, targets):
    return cross_entropy.forward(logits, targets)


def two_heads_forward(x, weight, *, scale):
    hidden = np.tanh(x @ weight)
    return (hidden * scale, hidden.sum(axis=-1), hidden.real.argmax(axis=-1)), (x, weight, hidden, scale)


def two_heads_backward(d_outputs, saved):
    d_scaled, d_sum, d_index = d_outputs
    assert d_index is None
    x, weight, hidden, scale = saved
    d_hidden = (d_scaled * scale + d_sum[:, np.newaxis]) * (1 - hidden * hidden)
    return {"d_x": d_hidden @ weight.T, "d_weight": x.T @ d_hidden}


def two_heads_example(rng):
    return {"x": rng.standard_normal((3, 4)), "weight": rng.standard_normal((4, 2)), "scale": 0.7}


class softmax_sum:  # noqa: N801
    """A loss whose gradient is zero, because the sum of each row is 1."""

    @staticmethod
    def forward(x):
        return softmax.forward(x)[0].sum()

    @staticmethod
    def backward(d_sum, x):
        return 3 * d_sum * np.zeros_like(x)


def example(rng):
    return {"x": rng.standard_normal((2, 3))}


NOT_AN_OPERATION = 7.0


def lonely(x):
    return x


class raises:  # noqa: N801
    @staticmethod
    def forward(x):
        raise IndexError("row 7 of 3")

    backward = forward


class ends:  # noqa: N801
    @staticmethod
    def forward(x):
        raise SystemExit(0)

    backward = forward


class raises_backward:  # noqa: N801
    forward = staticmethod(gelu.forward)

    @staticmethod
    def backward(d_y, saved):
        return d_y @ np.ones((17, 2))


class not_finite:  # noqa: N801
    @staticmethod
    def forward(x):
        return np.log(x - x)

    @staticmethod
    def backward(d_y, x):
        return d_y


def bad_example(rng):
    raise RuntimeError("no data here")


class bad:  # noqa: N801
    forward = staticmethod(gelu.forward)
    backward = staticmethod(gelu.backward)
