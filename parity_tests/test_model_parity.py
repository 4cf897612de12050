"""The whole model, tensor by tensor: activations, loss, and all gradients are PyTorch's."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from numpygpt.checks.compare import compare
from numpygpt.checks.planting import planted
from numpygpt.checks.records import BUGS
from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from parity_tests.strategies import steps
from parity_tests.tolerances import FLOAT64_NORMWISE
from torchgpt.checks import parity
from torchgpt.checks.parity import Batch, numpy_step, report, step_reference

CONFIG = GPTConfig(vocab_size=7, context_length=5, emb_dim=6, n_heads=2, n_layers=2, drop_rate=0.25, qkv_bias=True)
BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def compared(model, batch):
    """The comparisons of a step's tensors. A draw is left out if scores that differ become equal by rounding.

    With three scales of 1e3 scores reach 1e10, where numbers in float32 are 1024 apart. Rounding to this grid
    then decides whether a query reads one key or several. The random errors of the model of rounding are not on a grid.
    A long random search met such a case.
    """
    judged_by = step_reference(model, batch)
    scores = [tensor for name, tensor in judged_by.truth.items() if name.startswith("trf") and "attn_scores" in name]
    spacing = np.finfo(model.dtype).eps * max(np.abs(tensor[np.isfinite(tensor)]).max() for tensor in scores)
    assume(spacing < 1)
    return compare(numpy_step(model, batch), judged_by.truth, judged_by.allowed, dtype=model.dtype)


def wrong(comparisons):
    return [comparison for comparison in comparisons if not comparison.passed]


@pytest.mark.long_run
@BOTH
@given(step=steps())
def test_every_tensor_of_a_step_is_pytorchs(dtype, step):
    """Sizes begin at 1 (2 for the vocabulary), scales are 1e-3 to 1e3, ids may repeat or not count, weights be tied."""
    assert not wrong(compared(*step.make(dtype)))


@given(step=steps(ordinary=True))
def test_float64_agrees_normwise_at_ordinary_scales(step):
    for comparison in compared(*step.make(np.float64)):
        assert comparison.zero or comparison.error <= FLOAT64_NORMWISE * comparison.size, comparison


@BOTH
def test_a_batch_without_targets_has_loss_0_and_no_gradient(dtype):
    """PyTorch's mean over no target is NaN, so it cannot be the reference here."""
    model = GPTModel(CONFIG, dtype=dtype)
    inputs = np.arange(6).reshape(2, 3)
    tensors = numpy_step(model, Batch(inputs, np.full_like(inputs, IGNORE_INDEX)))
    assert tensors["loss"] == 0
    assert not any(tensor.any() for name, tensor in tensors.items() if name.startswith("d_"))


@BOTH
def test_nothing_of_an_earlier_step_is_left(dtype):
    """Everything that an earlier step returned is overwritten with NaN. The next step still gives the same bits."""
    model = GPTModel(CONFIG, dtype=dtype)
    inputs, targets = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 2, 4))
    batch = Batch(inputs, targets, dropout_seed=1)
    first = numpy_step(model, batch)
    handed_out = []
    _, gradients = model.loss_and_grads(targets, inputs, watch=lambda _, array: handed_out.append(array))
    weights = {name: array.copy() for name, array in model.state_dict().items()}
    for array in (*handed_out, *gradients.values()):
        if isinstance(array, np.ndarray):
            array[...] = np.nan
    assert {name: array.tobytes() for name, array in model.state_dict().items()} == {
        name: array.tobytes() for name, array in weights.items()
    }
    assert {name: tensor.tobytes() for name, tensor in numpy_step(model, batch).items()} == {
        name: tensor.tobytes() for name, tensor in first.items()
    }


# The report


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_report_has_a_row_a_tensor_from_the_first_activation_to_the_first_parameters_gradient(dtype):
    rows = report(CONFIG, dtype)
    names = [row.name for row in rows]
    assert names[:3] == ["tok_emb", "pos_emb", "drop_emb"]
    middle = names.index("loss")
    assert names[middle - 1 : middle + 3] == ["logits", "loss", "d_logits", "d_final_norm"]
    assert names[-2:] == ["d_pos_emb.weight", "d_tok_emb.weight"]
    assert len(names) == len(set(names)) == 2 * (5 + 2 * 17) + 1 + len(GPTModel(CONFIG).named_parameters())
    assert all(row.passed and row.used <= 1 for row in rows)
    assert {row.verdict for row in rows} == {"agrees", "zero"}
    assert {row.name for row in rows if row.verdict == "zero"} == {f"d_trf_blocks.{i}.att.W_key.bias" for i in (0, 1)}
    for row in rows:
        assert row.error <= row.budget < 1
        assert (row.pytorch is None) == (dtype == "float64")


@settings(max_examples=5)
@given(seed=st.integers(0, 999), dtype=st.sampled_from(["float32", "float64"]))
def test_the_report_names_the_first_wrong_tensor_of_a_planted_bug(seed, dtype):
    bug = BUGS["scale_by_emb_dim"]
    with planted(bug):
        rows = report(CONFIG, dtype, seed)
    first = next(row for row in rows if not row.passed)
    assert first.name == bug.first_wrong
    assert first.verdict == "over budget"
    assert first.used > 1


def test_the_report_tells_missing_unexpected_and_wrong_tensors_apart(monkeypatch):
    zero = "d_trf_blocks.0.att.W_key.bias"

    def broken_step(model, batch):
        tensors = numpy_step(model, batch)
        tensors[zero] += 1
        return {name.replace("final_norm.scale", "final_norm.weight"): tensor for name, tensor in tensors.items()}

    monkeypatch.setattr(parity, "numpy_step", broken_step)
    failed = {row.name: row.verdict for row in report(CONFIG) if not row.passed}
    assert failed == {"d_final_norm.scale": "missing", zero: "over budget", "d_final_norm.weight": "unexpected"}


def test_a_report_in_another_dtype_is_refused():
    with pytest.raises(InputError, match="dtype is complex128; expected float32 or float64"):
        report(CONFIG, "complex128")
