"""`torchgpt finetune`: the steps of `numpygpt finetune`, by peft and bitsandbytes; each goes on with the other's."""

import sys

import bitsandbytes
import numpy as np
import peft
import pytest
import torch

from numpygpt.adapt import load_adapter
from numpygpt.adapt.quantized import quantized_projections
from numpygpt.adapt.saving import model_of
from numpygpt.formats.checkpoint import read_checkpoint
from numpygpt.formats.kinds import read_model
from numpygpt.numerics.schemes import dequantize
from numpygpt.training.run import TrainingRun
from parity_tests.command import write_text
from parity_tests.tolerances import FACTOR, FLOAT64_CURVE
from parity_tests.torch_command import PROGRAMS, QUIET, SIZES, curve, furthest, left_by, refusal, run, sections_of
from torchgpt.engine.finetuning import FinetuneBackend

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")  # whole runs are compared
OTHER = {"numpygpt": "torchgpt", "torchgpt": "numpygpt"}
IDS = np.array([[72, 101, 32, 99]])
TUNING = ("--steps", 6, "--batch-size", 3, "--accumulate", 2, "--warmup-steps", 1, "--lr", 0.02, *QUIET)
LORA = ("--lora", "r=2,alpha=6,targets=all-linear")
QLORA = (*LORA, "--quantize", "nf4,double")
#: The body has dropout in each. float64, if it is not said.
WAYS = {
    "whole": (),
    "frozen": ("--freeze", "trf_blocks.0.*", "*emb.weight"),
    "lora": ("--lora", "r=2,alpha=6,targets=W_query+layers.0+out_head,scaling=rslora"),
    "lora, recomputed, muon": (*LORA, "--checkpoint-activations", "--optimizer", "muon", "--attention", "flash"),
    "qlora": QLORA,
    "quantized, with biases and norms trained": ("--quantize", "int8", "--length", 5),
}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two models with dropout; the head of one is tied. The matrices fill some blocks of 64, and a part of one."""
    folder = tmp_path_factory.mktemp("bases")
    text = write_text(folder)
    sizes = (*SIZES, "--emb-dim", 12, "--qkv-bias", "--drop-rate", 0.1, "--steps", 3, *QUIET)
    for name, options in (("plain", ()), ("tied", ("--tie-weights",)), ("other", ("--seed", 5))):
        assert run("numpygpt", "train", "--text", text, "--out", folder / name, *sizes, *options) == 0
    return folder


def tune(program, base, out, *options, dtype="float64"):
    data = ("--checkpoint", base, "--data", base.parent / "text.txt", "--dtype", dtype)
    assert run(program, "finetune", *data, "--out", out, *TUNING, *options) == 0
    return out


def resume(program, folder, *options):
    assert run(program, "finetune", "--resume", folder, *options) == 0
    return folder


def backend_after(monkeypatch, call):
    """The backend that the call makes."""
    made = []
    twin_of = FinetuneBackend._twin_of
    monkeypatch.setattr(FinetuneBackend, "_twin_of", lambda self, tuned: made.append(self) or twin_of(self, tuned))
    call()
    return made[-1]


# The same steps


@pytest.mark.parametrize(
    ("way", "base"),
    [
        ("whole", "tied"),
        ("frozen", "tied"),
        ("lora", "tied"),
        ("lora", "plain"),
        ("lora, recomputed, muon", "plain"),
        ("qlora", "plain"),
        ("quantized, with biases and norms trained", "tied"),
    ],
)
def test_both_commands_take_the_same_steps(bases, tmp_path, way, base):
    expected, ours = (
        curve(tune(program, bases / base, tmp_path / program, *WAYS[way], "--steps", 12)) for program in PROGRAMS
    )
    assert len({loss for loss, _ in expected}) == 12, "each step has another batch"
    assert min(norm for _, norm in expected) > 0
    assert furthest(ours, expected) <= FLOAT64_CURVE
    saved = [sections_of(tmp_path / program) for program in PROGRAMS]
    assert saved[0]["model"][0] == saved[1]["model"][0]
    for section in ("model", "optimizer"):
        assert saved[0][section][1].keys() == saved[1][section][1].keys()
    assert saved[0]["random"] == saved[1]["random"], "as many draws"


@pytest.mark.parametrize(
    ("way", "first"), [("whole", "numpygpt"), ("frozen", "torchgpt"), ("lora", "numpygpt"), ("qlora", "torchgpt")]
)
def test_either_command_goes_on_with_the_run_of_the_other(bases, tmp_path, way, first):
    options = (*WAYS[way], "--eval-every", 3)
    whole = curve(tune(first, bases / "tied", tmp_path / "whole", *options, "--steps", 9))
    shared = tune(first, bases / "tied", tmp_path / "shared", *options, "--steps", 3, "--schedule-steps", 9)
    resume(OTHER[first], shared, "--steps", 6)
    resume(first, shared, "--steps", 9)
    assert furthest(curve(shared), whole) <= FLOAT64_CURVE


@pytest.mark.parametrize("options", [(*LORA[:1], LORA[1] + ",dropout=0.2"), QLORA], ids=["dropout", "packed"])
def test_a_run_that_is_stopped_and_resumed_is_the_run_that_never_stopped(bases, tmp_path, options):
    """Byte for byte, in float32, also with dropout in the adapter."""
    options = (*options, "--eval-every", 4, "--schedule-steps", 8)
    whole = tune("torchgpt", bases / "plain", tmp_path / "whole", *options, "--steps", 8, dtype="float32")
    stopped = tune("torchgpt", bases / "plain", tmp_path / "stopped", *options, "--steps", 4, dtype="float32")
    resume("torchgpt", stopped, "--steps", 8)
    assert curve(stopped) == curve(whole)
    assert left_by(stopped).keys() == left_by(whole).keys()
    assert left_by(stopped)["adapter/adapter_model.safetensors"] == left_by(whole)["adapter/adapter_model.safetensors"]


# By the libraries' own modules


@pytest.mark.parametrize("scheme", ["nf4", "fp4,double,block=32"])
def test_matrices_of_four_bits_are_bitsandbytes_under_peft(bases, tmp_path, monkeypatch, scheme):
    """They are the packed ones, of the values that NumPy's codes stand for."""
    options = (*LORA, "--quantize", scheme, "--precision", "bf16")
    backend = backend_after(
        monkeypatch, lambda: tune("torchgpt", bases / "plain", tmp_path / "run", *options, dtype="float32")
    )
    assert not backend.notes
    expected = quantized_projections(model_of(read_checkpoint(tmp_path / "run")))
    assert len(expected) == 12
    for name, node in expected.items():
        module = backend.model._part.model.get_submodule(name)
        assert isinstance(module, peft.tuners.lora.bnb.Linear4bit)
        assert module.base_layer.compute_dtype == torch.bfloat16
        packed = module.base_layer.weight
        assert packed.dtype == torch.uint8
        values = bitsandbytes.functional.dequantize_4bit(packed.data, packed.quant_state)
        assert np.array_equal(values.numpy(), dequantize(node.weight))


def test_packed_matrices_take_numpys_steps_within_rounding(bases, tmp_path):
    """In float32, and in bfloat16 by the CPU's table."""
    truth = curve(tune("numpygpt", bases / "plain", tmp_path / "truth", *QLORA))

    def error(program, precision):
        options = (*QLORA, "--precision", precision, "--autocast", "cpu")
        folder = tmp_path / f"{program}-{precision}"
        return furthest(curve(tune(program, bases / "plain", folder, *options, dtype="float32")), truth)

    ours = {precision: error("torchgpt", precision) for precision in ("fp32", "bf16")}
    for precision, found in ours.items():
        assert found <= FACTOR * error("numpygpt", precision)
    assert ours["bf16"] > FACTOR * ours["fp32"], "the products are rounded"


def test_an_evaluation_on_a_cpu_with_bfloat16_leaves_packed_matrices_as_they_are(bases, tmp_path, monkeypatch):
    options = (*QLORA, "--eval-every", 2, "--steps", 4)
    expected = curve(tune("torchgpt", bases / "plain", tmp_path / "without", *options, dtype="float32"))
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    assert curve(tune("torchgpt", bases / "plain", tmp_path / "with", *options, dtype="float32")) == expected


@pytest.mark.parametrize(
    ("options", "dtype"), [(QLORA, "float64"), ((*LORA, "--quantize", "int8"), "float32"), (QLORA[2:], "float32")]
)
def test_matrices_that_are_not_packed_are_said_to_be_whole(bases, tmp_path, capsys, options, dtype):
    tune("torchgpt", bases / "plain", tmp_path / "run", *options, "--steps", 1, dtype=dtype)
    assert "the quantized matrices are whole in memory here, of the values of their codes" in capsys.readouterr().out


def test_what_is_frozen_has_no_gradient(bases, tmp_path, monkeypatch):
    backend = backend_after(monkeypatch, lambda: tune("torchgpt", bases / "plain", tmp_path / "run", *WAYS["frozen"]))
    graded = {name for name, p in backend.model._part.model.named_parameters() if p.grad is not None}
    trained = set(read_checkpoint(tmp_path / "run").layouts("model"))
    assert graded == trained == set(backend.model.parameters())
    assert not any(name.startswith(("trf_blocks.0.", "tok_emb", "pos_emb")) for name in trained)


# What a run leaves


def test_the_adapter_of_a_run_is_the_one_in_its_checkpoint(bases, tmp_path, capsys):
    tuned = tune("torchgpt", bases / "tied", tmp_path / "run", *LORA)
    model = model_of(read_checkpoint(tuned))
    loaded = load_adapter(model_of(read_model(bases / "tied"), np.float64), tuned / "adapter")
    assert np.array_equal(loaded(IDS), model(IDS))
    assert any(array.any() for name, array in model.named_parameters().items() if ".lora_B." in name)
    said = []
    for options in (("--checkpoint", tuned), ("--checkpoint", bases / "tied", "--adapter", tuned / "adapter")):
        capsys.readouterr()
        generate = ("generate", *options, "--prompt", "The ", "--max-new-tokens", 8, "--temperature", 0)
        assert run("numpygpt", *generate) == 0
        said.append(capsys.readouterr().out)
    assert said[0].startswith("The ")
    assert said[0] == said[1]


def test_how_to_go_on_is_said(bases, tmp_path, capsys):
    out = tmp_path / "run"
    tune("torchgpt", bases / "plain", out, *LORA, "--log-every", 3)
    printed = capsys.readouterr().out
    assert f"wrote {out / 'adapter'}, which peft reads" in printed
    assert "step 6: training loss" in printed
    assert "tokens/s, gradient norm" in printed
    assert "MFU" not in printed


# Bad input


def refused(capsys, bases, out, *options):
    data = ("--checkpoint", bases / "plain", "--data", bases / "text.txt", "--out", out)
    line = refusal(capsys, "torchgpt", "finetune", *data, *TUNING, *options)
    assert not out.exists()
    return line


@pytest.mark.parametrize("library", ["peft", "bitsandbytes"])
def test_a_library_that_is_missing_is_named(bases, tmp_path, capsys, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    assert f"install it with: pip install {library}" in refused(capsys, bases, tmp_path / "run", *QLORA)


def test_a_device_that_is_not_there_is_refused(bases, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "there is no CUDA device here" in refused(capsys, bases, tmp_path / "run", "--device", "cuda")
    assert "a first model; leave it out" in refused(capsys, bases, tmp_path / "run", "--device", "meta")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lora", "r=99,alpha=1"), "rank is 99, but the matrix of trf_blocks.0.att.W_query is (12, 12)"),
        (("--freeze", "*"), "nothing is left to train"),
        (("--optimizer-state", "disk"), "torchgpt keeps the optimizer's state in memory"),
        (("--dtype", "float64", "--precision", "bf16"), "--precision bf16 rounds products of float32"),
    ],
)
def test_what_cannot_be_tuned_is_refused(bases, tmp_path, capsys, options, message):
    assert message in refused(capsys, bases, tmp_path / "run", *options)


def test_another_base_is_refused(bases, tmp_path, capsys):
    tuned = tune("torchgpt", bases / "plain", tmp_path / "run", *LORA, "--steps", 1)
    before = left_by(tuned)
    line = refusal(capsys, "torchgpt", "finetune", "--resume", tuned, "--steps", 2, "--checkpoint", bases / "other")
    assert "was trained on other weights than those of" in line
    assert left_by(tuned) == before
    generate = ("generate", "--checkpoint", bases / "other", "--adapter", tuned / "adapter", "--prompt", "The ")
    assert "was trained on other weights than this model's" in refusal(capsys, "numpygpt", *generate)
    assert "go on with it by numpygpt finetune --resume" in refusal(capsys, "torchgpt", "train", "--resume", tuned)
