"""Training adapters, over whole matrices and over quantized ones, is what peft's training is, step for step."""

import numpy as np
import pytest
import torch

from numpygpt.adapt import add_lora, quantize
from numpygpt.training.adamw import AdamW
from parity_tests.small_models import ids_of, model_of
from parity_tests.test_adapters import CONFIG, loss_of
from parity_tests.tolerances import FLOAT64_CURVE
from torchgpt.adapters import to_peft

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")


INT8 = pytest.param({"scheme": "int8", "block_size": 5}, marks=pytest.mark.long_form)


@pytest.mark.parametrize("how", [None, {"scheme": "nf4", "double": True}, INT8])
def test_training_is_pefts(how):
    """Loss and norm of the gradient along 100 steps, over whole matrices and over quantized ones."""
    base = model_of(CONFIG, 3) if how is None else quantize(model_of(CONFIG, 3), **how)
    model = add_lora(base, 2, 7.0, targets="all-linear")
    twin = to_peft(model).train()
    optimizer, theirs = AdamW(model, lr=1e-2), torch.optim.AdamW(
        [p for p in twin.parameters() if p.requires_grad], lr=1e-2
    )  # fmt: skip
    for step in range(100):
        inputs, targets = ids_of(CONFIG, 100 + step), ids_of(CONFIG, 1000 + step)
        loss, gradients = model.loss_and_grads(inputs, targets)
        theirs.zero_grad()
        expected = loss_of(twin, inputs, targets)
        expected.backward()
        norm = torch.nn.utils.get_total_norm(p.grad for p in twin.parameters() if p.grad is not None)
        assert abs(loss - expected.item()) < FLOAT64_CURVE
        assert abs(np.sqrt(sum((g * g).sum() for g in gradients.values())) - norm.item()) < FLOAT64_CURVE
        optimizer.step(gradients)
        theirs.step()
