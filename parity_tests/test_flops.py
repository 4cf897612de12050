"""numpygpt/model/flops.py: the operations of a step are those that PyTorch counts; peaks are those of the device."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from numpygpt.model.config import PRESETS
from numpygpt.model.flops import PEAKS, flops_per_token, matrix_parameters, peak_of, utilization
from torchgpt.model import GPTModel
from torchgpt.training import calc_loss_batch

#: 12 blocks of 12 x 768 x 768 and a head of 50,257 x 768; and 48 blocks of width 1600.
BY_HAND = {
    "gpt2": (123_532_032, 6 * 123_532_032 + 12 * 12 * 768 * 1024),
    "gpt2-xl": (1_554_971_200, 6 * 1_554_971_200 + 12 * 48 * 1600 * 1024),
}


@pytest.mark.parametrize("preset", BY_HAND)
@pytest.mark.parametrize("family", ["", "book"])
def test_operations_are_those_of_a_count_by_hand(preset, family):
    """Tied or not, the head is multiplied once."""
    config = PRESETS[{"gpt2": "book-124M", "gpt2-xl": "book-1558M"}[preset] if family else preset]
    assert (matrix_parameters(config), flops_per_token(config, 1024)) == BY_HAND[preset]


@pytest.mark.parametrize(("preset", "tokens"), [("gpt2", 1024), ("gpt2", 7), ("gpt2-xl", 1024)])
def test_pytorch_counts_the_same_operations(preset, tokens):
    """It counts the products that a step of two blocks asks for. On the meta device nothing is computed."""
    config = replace(PRESETS[preset], n_layers=2)
    with torch.device("meta"):
        model = GPTModel(config)
        ids = torch.zeros(2, tokens, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        calc_loss_batch(ids, ids, model, "meta").backward()
    assert counter.get_total_flops() == 2 * tokens * flops_per_token(config, tokens)


def test_utilization_is_the_share_of_the_peak():
    config = PRESETS["gpt2"]
    assert utilization(config, 1024, 1e6, 4e6 * flops_per_token(config, 1024)) == 1 / 4


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 80GB HBM3", "tf32", 494.7e12),
        ("NVIDIA H100 80GB HBM3", "fp32", 67e12),
        ("NVIDIA H100 PCIe", "bf16", 756.5e12),
        ("NVIDIA H100 NVL", "fp16", 835.5e12),
        ("NVIDIA H200", "bf16", 989.4e12),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312e12),
        ("NVIDIA A100 80GB PCIe", "fp16", 312e12),
        ("NVIDIA A10", "fp16", 125e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA L40S", "bf16", 362.05e12),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2e12),
        ("Tesla T4", "bf16", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA A10G", "bf16", None),
        ("cpu", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "fp64", None),
    ],
)
def test_a_peak_is_that_of_the_device_and_the_format(name, precision, peak):
    assert peak_of(name, precision) == peak


def test_a_shorter_format_is_faster_on_tensor_cores():
    for peak in PEAKS.values():
        assert peak.fp32 <= (peak.tf32 or peak.fp16) <= peak.fp16
        assert peak.bf16 in (None, peak.fp16)
