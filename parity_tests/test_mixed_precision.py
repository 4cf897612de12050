"""Training in bf16 and fp16: a step against torch.autocast on the CPU, the scale of the loss, and whole runs.

The properties of a step are in `parity_tests.precision_properties`, and are checked with the planted bugs.
"""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from numpygpt.adapt import add_lora, dequantize, quantize
from numpygpt.checks.compare import compare, difference, largest, scaled
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import read_checkpoint
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.numerics.autocast import EXACT, PRECISIONS, TABLES, precision_of
from numpygpt.numerics.formats import FP16
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.training import loss_scale
from numpygpt.training.adamw import AdamW
from numpygpt.training.loss_scale import LossScale
from numpygpt.training.run import TrainingRun
from numpygpt.training.step import training_step
from parity_tests.command import TRAINING, but_the_log, files, run, write_text
from parity_tests.tolerances import FACTOR
from parity_tests.torch_command import run as run_program
from torchgpt.bridge import dropout_masks, tensors_of, to_torch
from torchgpt.checks.parity import Batch, numpy_step, rounding_errors, torch_step
from torchgpt.model import GPTModel as TorchGPTModel

CONFIG = GPTConfig(vocab_size=13, context_length=8, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.25, qkv_bias=True)
INPUTS, TARGETS = np.random.default_rng(0).integers(0, 13, (2, 3, 8))
DOCUMENT = Path(__file__).parents[1] / "docs" / "number-formats.md"
#: Steps and runs without the checks of annotations, which come after those with them: see the fixture.
unchecked = pytest.mark.usefixtures("without_checks_of_annotations")
#: So many runs with rounding errors; a row has as many values as the model is wide, and is not small by chance.
PROBES = 16


# A step against PyTorch's


def autocast_step(model, batch, device="cpu"):
    """The tensors of a step of the twin under torch.autocast in bf16, as float32."""
    twin = TorchGPTModel(model.config, kernels="fused")
    twin.load_state_dict(tensors_of(model, copy=True))
    twin.to(device).eval()
    masks, seen = batch.masks(model), {}
    dropped = nullcontext() if masks is None else dropout_masks(twin.train(), masks)

    def watch(name, tensor):
        tensor.retain_grad()
        seen[name] = tensor

    inputs, targets = (torch.from_numpy(ids).to(device) for ids in (batch.inputs, batch.targets))
    with dropped, torch.autocast(device, torch.bfloat16):
        logits = twin(inputs, watch)
        watch("loss", F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    seen["loss"].backward()
    del seen["loss"]
    found = {name: tensor.detach() for name, tensor in seen.items()} | {"logits": logits.detach()}
    found |= {f"d_{name}": tensor.grad for name, tensor in seen.items() if tensor.grad is not None}
    found |= {f"d_{name}": weight.grad for name, weight in twin.named_parameters()}
    return {name: tensor.float().cpu().numpy() for name, tensor in found.items()}


ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


def assert_off_by_rounding_alone(model, batch, device="cpu"):
    """Activations and gradients of a step, from the same weights; the truth is PyTorch in float64."""
    twin = to_torch(GPTModel.from_state_dict(model.config, model.named_parameters(), np.float64))

    def in_copies(copies):
        return torch_step(twin, batch, batch.masks(model), copies)

    truth = {name: np.asarray(copies[0]) for name, copies in in_copies(1).items()}
    rounding = rounding_errors(in_copies, truth, "bfloat16", probes=PROBES, at_once=PROBES)
    pytorch = autocast_step(model, batch, device)
    allowed = {
        name: scaled(largest([rounding[name], difference(pytorch.get(name, truth[name]), truth[name])]), FACTOR)
        for name in truth
    }
    comparisons = compare(numpy_step(model, batch), truth, allowed, dtype=np.float32)
    assert not [comparison for comparison in comparisons if not comparison.passed]
    assert {name for name in pytorch if name in truth} >= {f"d_{name}" for name in model.named_parameters()}


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, tie_weights=True, activation="gelu_erf", qkv_bias=False)])
@pytest.mark.parametrize(("device", "dropout_seed"), [("cpu", 5), pytest.param("cuda", None, marks=ON_CUDA)])
def test_a_step_in_bf16_is_off_by_rounding_alone(config, device, dropout_seed):
    model = GPTModel(config, precision="bf16", autocast=device)
    assert_off_by_rounding_alone(model, Batch(INPUTS, TARGETS, dropout_seed=dropout_seed), device)


@unchecked
def test_single_steps_from_the_twins_states_are_off_by_rounding_alone():
    """The twin trains in bf16 by torch.autocast and torch.optim.AdamW, and a step of ours begins where it is."""
    model = GPTModel(replace(CONFIG, n_layers=1, drop_rate=0.0), precision="bf16", autocast="cpu")
    twin = TorchGPTModel(model.config, kernels="fused")
    twin.load_state_dict(tensors_of(model, copy=True))
    optimizer, losses = torch.optim.AdamW(twin.parameters(), lr=1e-2), []
    for _ in range(8):
        if len(losses) in (3, 7):
            for name, array in model.named_parameters().items():
                array[...] = twin.state_dict()[name].numpy()
            assert_off_by_rounding_alone(model, Batch(INPUTS, TARGETS))
        with torch.autocast("cpu", torch.bfloat16):
            logits = twin(torch.from_numpy(INPUTS)).flatten(0, 1)
            losses.append(F.cross_entropy(logits, torch.from_numpy(TARGETS).flatten()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_the_rounded_step_is_nearer_to_pytorchs_than_one_in_float32():
    """So the two round the same things, and not only as much. The scale of heads of 16 features, 1/4, is exact."""
    batch, config = Batch(INPUTS, TARGETS), replace(CONFIG, emb_dim=32)
    model = GPTModel(config, precision="bf16", autocast="cpu")
    ours, pytorch = numpy_step(model, batch)["logits"], autocast_step(model, batch)["logits"]
    exact = numpy_step(GPTModel.from_state_dict(config, model.named_parameters()), batch)["logits"]
    assert FACTOR * difference(ours, pytorch).tensor < difference(exact, pytorch).tensor


@unchecked
@pytest.mark.parametrize("device", TABLES)
@pytest.mark.parametrize("attention", ["math", "flash"])
@pytest.mark.parametrize("recomputed", [False, True])
def test_fp32_changes_no_bit_and_short_formats_do(device, attention, recomputed):
    options = {"attention": attention, "checkpoint_activations": recomputed}

    def gradients(**precision):
        model = GPTModel(CONFIG, **options, **precision)
        return model.loss_and_grads(INPUTS, TARGETS, rng=TorchGenerator(1))[1]

    expected = gradients()
    for precision in PRECISIONS:
        ours = gradients(precision=precision, autocast=device)
        same = [np.array_equal(gradient, expected[name]) for name, gradient in ours.items()]
        assert all(same) if precision == "fp32" else not any(same)


def test_recomputed_blocks_give_the_same_bits_in_bf16():
    found = [
        GPTModel(CONFIG, precision="bf16", checkpoint_activations=recomputed).loss_and_grads(
            INPUTS, TARGETS, rng=TorchGenerator(1)
        )[1]
        for recomputed in (False, True)
    ]
    assert all(np.array_equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_adapters_and_quantized_matrices_run_in_the_format():
    """A quantized matrix is rounded as its values are; the gradients of adapters are numbers of the format."""
    packed = quantize(GPTModel(CONFIG, precision="fp16"), "nf4")
    assert np.array_equal(packed(INPUTS), dequantize(packed)(INPUTS))
    model = add_lora(packed, rank=2, alpha=3.0)
    _, grads = model.loss_and_grads(INPUTS, TARGETS)
    assert grads.keys() >= {"trf_blocks.0.att.W_query.lora_A.default.weight"}
    for name, gradient in grads.items():
        if ".lora_" in name:
            assert np.array_equal(gradient, gradient.astype(np.float16).astype(np.float32)), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fp8",), "the precision is 'fp8'; expected one of fp32, bf16, fp16"),
        (("bf16", "mps"), "autocast is for 'mps'; expected one of cuda, cpu"),
    ],
)
def test_an_unknown_precision_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        precision_of(*arguments)


def test_without_a_format_there_is_nothing_to_round():
    assert precision_of("fp32", "cpu") == EXACT == GPTModel(CONFIG).precision
    assert precision_of("fp16").linear == FP16


@pytest.mark.parametrize("device", TABLES)
def test_the_document_has_the_table(device):
    words = {"lower": "short", "float32": "float32", "widest": "the widest format of its operands"}
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    head = lines.index("| operation | CUDA | CPU |")
    told = {}
    for line in lines[head + 2 : lines.index("", head)]:
        operations, cuda, cpu = (cell.strip() for cell in line.strip("|").split("|"))
        rule = cuda if device == "cuda" or cpu == "the same" else cpu
        told |= dict.fromkeys(operations.split(", "), rule)
    assert told == {operation: words[rule] for operation, rule in TABLES[device].items()}


# The scale of the loss


def test_gradients_that_vanish_in_fp16_do_not_with_a_scale():
    """The loss of this step has gradients below the smallest number of fp16."""
    model = GPTModel(CONFIG, precision="fp16")
    for name, array in model.named_parameters().items():
        if name == "out_head.weight":
            array *= 2.0**-21
    plain = model.loss_and_grads(INPUTS, TARGETS)[1]["trf_blocks.0.ff.layers.0.weight"]
    scaled_up = model.loss_and_grads(INPUTS, TARGETS, loss_scale=2.0**16)[1]["trf_blocks.0.ff.layers.0.weight"]
    assert np.count_nonzero(plain) < np.count_nonzero(scaled_up)


def test_an_overflow_of_fp16_is_found_in_the_gradients():
    """Without a warning, and with the weights as they were."""
    model = GPTModel(CONFIG, precision="fp16")
    scale, before = LossScale("fp16"), {name: array.copy() for name, array in model.named_parameters().items()}
    scale.value = 2.0**40
    taken = training_step(model, AdamW(model), [(INPUTS, TARGETS)], max_norm=1.0, scale=scale)
    assert not np.isfinite(taken.grad_norm)
    assert scale.value == 2.0**39
    assert all(np.array_equal(array, before[name]) for name, array in model.named_parameters().items())


def test_the_scale_goes_by_the_defaults_of_pytorch():
    theirs = torch.amp.GradScaler("cpu")
    assert theirs.state_dict()["scale"] == loss_scale.FIRST_SCALE
    assert theirs.get_growth_interval() == loss_scale.GROWTH_INTERVAL
    scale = LossScale("fp16")
    for _ in range(loss_scale.GROWTH_INTERVAL):
        assert scale.value == loss_scale.FIRST_SCALE
        scale.fitted()
    assert scale.value == loss_scale.FIRST_SCALE * theirs.get_growth_factor()
    scale.overflowed()
    assert scale.value == loss_scale.FIRST_SCALE * theirs.get_growth_factor() * theirs.get_backoff_factor()


# Runs


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")


FP16_RUN = (*TRAINING, "--precision", "fp16")


def losses_of(folder):
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [(line["loss"], line["grad_norm"]) for line in map(json.loads, lines)]


def trained(folder, *options):
    assert run("train", "--text", write_text(folder.parent), "--out", folder, *options) == 0
    return folder


@unchecked
def test_a_run_learns_nearly_what_float32_learns(tmp_path):
    """The validation loss at its end is much nearer to that of a run in float32 than to that at its beginning."""
    before, expected = validation_losses(tmp_path / "float32")
    for autocast, precision in (("cpu", "bf16"), ("cuda", "fp16")):
        _, after = validation_losses(tmp_path / precision, "--precision", precision, "--autocast", autocast)
        assert 0 < FACTOR * abs(after - expected) < before - after


def validation_losses(folder, *options):
    """Before a run of some steps, and after it."""
    trained(folder, *TRAINING, "--steps", 8, "--eval-batches", 4, *options)
    history = read_checkpoint(folder).values("run")["history"]
    return history[0]["val_loss"], history[-1]["val_loss"]


@unchecked
def test_a_run_in_fp16_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, capsys):
    """With the scale of its loss: the first steps overflow, and the scale grows after three that do not."""
    monkeypatch.setattr(loss_scale, "FIRST_SCALE", 2.0**22)
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    options = (*FP16_RUN, "--drop-rate", 0.1, "--eval-every", 5)
    at_once = trained(tmp_path / "at-once", *options, "--steps", 9)
    assert "the gradients overflowed fp16: no step was taken; the scale is now 2.09715e+06\n" in capsys.readouterr().out
    stopped = trained(tmp_path / "stopped", *options, "--steps", 5, "--schedule-steps", 9)
    assert run("train", "--resume", stopped, "--steps", 9) == 0
    assert losses_of(stopped) == losses_of(at_once)
    assert losses_of(stopped)[0][1] is None
    ours, expected = (read_checkpoint(folder) for folder in (stopped, at_once))
    for section in ("model", "optimizer", "random", loss_scale.SECTION):
        assert ours.values(section) == expected.values(section)
        arrays, others = ours.arrays(section), expected.arrays(section)
        assert all(np.array_equal(array, others[name]) for name, array in arrays.items())


@unchecked
def test_gradients_that_overflow_at_every_scale_end_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loss_scale, "FIRST_SCALE", 2.0**120)
    monkeypatch.setattr(loss_scale, "SMALLEST_SCALE", 2.0**119)
    assert run("train", "--text", write_text(tmp_path), "--out", tmp_path / "run", *FP16_RUN) == 2
    line = f"the gradients overflow fp16 at every scale down to {2.0**119:g}; use bf16"
    assert line in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    before = but_the_log(files(trained(tmp_path / "before", *TRAINING)))
    assert run("train", "--resume", tmp_path / "before", "--steps", 5, "--precision", "fp16") == 2
    assert line in capsys.readouterr().err.strip().splitlines()[-1]
    assert but_the_log(files(tmp_path / "before")) == before


@unchecked
def test_a_run_may_change_its_precision(tmp_path):
    """A run that has no scale begins with the first, and one that no longer needs it leaves it out."""
    folder = trained(tmp_path / "run", *TRAINING)
    assert loss_scale.SECTION not in read_checkpoint(folder)
    assert run("train", "--resume", folder, "--steps", 5, "--precision", "fp16") == 0
    kept = read_checkpoint(folder).values(loss_scale.SECTION)
    assert kept == {"value": 2.0**16, "steps_without_overflow": 2}
    assert run("train", "--resume", folder, "--steps", 6, "--precision", "bf16", "--autocast", "cpu") == 0
    assert loss_scale.SECTION not in read_checkpoint(folder)
    options = read_checkpoint(folder).values("run")["options"]
    assert (options["precision"], options["autocast"]) == ("bf16", "cpu")


@unchecked
def test_pytorch_goes_on_with_a_run_in_fp16_and_its_scale(tmp_path):
    folder = trained(tmp_path / "run", *FP16_RUN)
    assert run_program("torchgpt", "train", "--resume", folder, "--steps", 5) == 0
    own = read_checkpoint(folder).values("torch")
    assert own["loss_scale"] == {"value": 2.0**16, "steps_without_overflow": 5}


@unchecked
def test_finetune_has_the_option(tmp_path, capsys):
    base, data = trained(tmp_path / "base", *TRAINING), tmp_path / "text.txt"
    tuning = ("--steps", 2, "--batch-size", 2, "--eval-batches", 1, "--lora", "r=2,alpha=3", "--quantize", "nf4")
    arguments = ("finetune", "--checkpoint", base, "--data", data, *tuning, "--precision")
    assert run(*arguments, "bf16", "--out", tmp_path / "bf16") == 0
    assert run(*arguments, "fp32", "--out", tmp_path / "fp32") == 0
    assert losses_of(tmp_path / "bf16") != losses_of(tmp_path / "fp32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "tf32"), "the precision is 'tf32'; expected one of fp32, bf16, fp16"),
        (("--precision", "bf16", "--dtype", "float64"), "--precision bf16 rounds products of float32, and --dtype is"),
        (("--precision", "fp8"), "argument --precision: invalid choice: 'fp8'"),
        (("--autocast", "mps"), "argument --autocast: invalid choice: 'mps'"),
    ],
)
def test_what_cannot_be_rounded_to_is_refused(tmp_path, capsys, options, message):
    assert run("train", "--text", write_text(tmp_path), "--out", tmp_path / "run", *TRAINING, *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_info_has_the_bytes_of_a_format(capsys):
    """Weights and moments stay float32; of the activations those of the products take half."""
    assert run("info", "--preset", "book-124M", "--precision", "fp32") == 0
    whole = capsys.readouterr().out
    assert run("info", "--preset", "book-124M", "--precision", "bf16") == 0
    short = capsys.readouterr().out
    assert "products in bf16" in short
    assert whole.splitlines()[-1] != short.splitlines()[-1]
