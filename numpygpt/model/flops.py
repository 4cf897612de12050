"""How much a training step computes, and what share of a device's peak that is.

Model FLOPs utilization (MFU) is the floating-point operations that the model needs, divided by those that the device
could do in the same time (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B). For a token, the model needs

    6 N + 12 L D T

    N   the parameters of the matrices that multiply activations, the output head included. The forward takes a
        multiplication and an addition for each. The backward takes twice as many: one product gives the gradient of the
        input, another that of the weight. An embedding is looked up and not multiplied, so it does not count; a matrix
        that is both embedding and head counts once, as the head.
    L   the blocks
    D   emb_dim. Scores and context vectors take 2 D T operations each, and twice as many backward.
    T   the tokens of a sequence

Nothing is taken off for the half of the scores that the causal mask hides. Nothing is added for what is computed again
to save memory. Biases, norms, GELU, softmax and dropout do not count.
"""

import re
from typing import NamedTuple

from numpygpt.model.config import GPTConfig


class Peak(NamedTuple):
    """What a device does at most in a second, in FLOP/s, in each format of the products; None: it lacks the format.

    The figures are the manufacturer's, for dense products with sums in float32: in tensor cores, except for float32,
    and without sparsity.
    """

    fp32: float
    tf32: float | None
    bf16: float | None
    fp16: float


#: The peaks of devices, by a pattern for the names that PyTorch gives them. The first pattern that fits counts.
#:
#: The sources are NVIDIA's data sheets of B200 (HGX), H200, H100, A100, A10, L40S, L4, V100 and T4, and its papers
#: on the GPU architectures Ada (appendix A, RTX 4090) and Ampere GA102 (appendix A, RTX 3090). Where a data sheet gives
#: a figure with sparsity alone, half of it stands here.
PEAKS: dict[str, Peak] = {
    r"\bB200\b": Peak(75e12, 1125e12, 2250e12, 2250e12),
    r"\bH[12]00 NVL\b": Peak(60e12, 417.5e12, 835.5e12, 835.5e12),
    r"\bH100 PCIe\b": Peak(51e12, 378e12, 756.5e12, 756.5e12),
    r"\bH[12]00\b": Peak(67e12, 494.7e12, 989.4e12, 989.4e12),
    r"\bA100\b": Peak(19.5e12, 156e12, 312e12, 312e12),
    r"\bA10$": Peak(31.2e12, 62.5e12, 125e12, 125e12),
    r"\bL40S$": Peak(91.6e12, 183e12, 362.05e12, 362.05e12),
    r"\bL4$": Peak(30.3e12, 60e12, 121e12, 121e12),
    r"\bV100-SXM2\b": Peak(15.7e12, None, None, 125e12),
    r"\bT4$": Peak(8.1e12, None, None, 65e12),
    r"\bRTX 4090$": Peak(82.6e12, 82.6e12, 165.2e12, 165.2e12),
    r"\bRTX 3090$": Peak(35.6e12, 35.6e12, 71e12, 71e12),
}
#: In the name of a device that is a part of another one; the part's peak is not in the table.
PART_OF_A_DEVICE = " MIG "


def matrix_parameters(config: GPTConfig) -> int:
    """N: the parameters of queries, keys, values and out_proj (4 D²), of the feed-forward (8 D²), and of the head."""
    D = config.emb_dim
    return config.n_layers * 12 * D * D + config.scores * D


def flops_per_token(config: GPTConfig, tokens: int) -> int:
    """The operations of a training step, forward and backward, for each token of sequences of so many tokens."""
    return 6 * matrix_parameters(config) + 12 * config.n_layers * config.emb_dim * tokens


def utilization(config: GPTConfig, tokens: int, tokens_per_second: float, peak: float) -> float:
    """The MFU of a training run, in [0, 1].

    tokens              the length of its sequences
    tokens_per_second   of one device: all tokens of a step, divided by its seconds and by the number of devices
    peak                the device's peak in the format of the products, in FLOP/s
    """
    return flops_per_token(config, tokens) * tokens_per_second / peak


def peak_of(device_name: str, precision: str) -> float | None:
    """The peak of a device, in FLOP/s; None if it is not known.

    device_name   as `torch.cuda.get_device_name` gives it
    precision     the format of the products: "fp32", "tf32", "bf16" or "fp16"
    """
    if PART_OF_A_DEVICE in device_name:
        return None
    fitting = (peak for pattern, peak in PEAKS.items() if re.search(pattern, device_name))
    peak: float | None = getattr(next(fitting, None), precision, None)
    return peak
