"""Tuning a trained model from the command line: whole, frozen in parts, with an adapter, over quantized matrices."""

import json

import numpy as np
import peft
import pytest
import torch

from numpygpt.adapt import merge_lora
from numpygpt.adapt.quantized import quantized_projections, weight_bytes
from numpygpt.adapt.saving import model_of
from numpygpt.commands.tuned_sizes import tuned_sizes
from numpygpt.formats.checkpoint import read_checkpoint
from numpygpt.formats.hugging_face import write_folder
from numpygpt.formats.kinds import read_model
from numpygpt.model.sizes import training_bytes
from numpygpt.training.optimizers import settings_of, state_bytes_of
from numpygpt.training.run import TrainingRun
from parity_tests.command import TRAINING, but_the_log, files, run, write_text
from parity_tests.small_models import assert_agrees
from torchgpt.bridge import to_torch

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")  # whole runs are compared
TUNING = ("--steps", 4, "--batch-size", 3, "--eval-every", 2, "--eval-batches", 1, "--warmup-steps", 1, "--lr", 0.01)
LORA = ("--lora", "r=2,alpha=6,targets=all-linear,dropout=0.2")
IDS = np.array([[72, 101, 32, 99]])


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    assert run("train", "--text", write_text(folder), "--out", folder / "run", *TRAINING) == 0
    return folder / "run"


def tune(base, out, *options):
    data = base.parent / "text.txt"
    assert run("finetune", "--checkpoint", base, "--data", data, "--out", out, *TUNING, *options) == 0
    return out


def error_of(capsys, *arguments):
    assert run(*arguments) == 2
    return capsys.readouterr().err.removeprefix("numpygpt: error: ").strip()


WAYS = {
    "whole": (),
    "frozen": ("--freeze", "trf_blocks.*", "*emb.weight"),
    "lora": LORA,
    "qlora": (*LORA, "--quantize", "nf4,double"),
    "quantized, with biases and norms trained": ("--quantize", "int8"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(base, tmp_path, way):
    """Bit for bit, with dropout, also if the base has moved."""
    at_once = tune(base, tmp_path / "at-once", *WAYS[way])
    stopped = tune(base, tmp_path / "stopped", *WAYS[way], "--steps", 2, "--schedule-steps", 4)
    moved = tmp_path / "moved"
    moved.symlink_to(base)
    assert run("finetune", "--resume", stopped, "--steps", 4) == 0
    ours, expected = (read_checkpoint(folder) for folder in (stopped, at_once))
    for section in ("model", "optimizer", "random"):
        arrays, others = ours.arrays(section), expected.arrays(section)
        assert arrays.keys() == others.keys()
        assert all(np.array_equal(array, others[name]) for name, array in arrays.items())
    assert np.array_equal(model_of(ours, base=moved)(IDS), model_of(expected)(IDS))
    assert run("finetune", "--resume", stopped, "--steps", 5, "--checkpoint", moved) == 0


def test_an_adapters_checkpoint_holds_the_adapter_alone(base, tmp_path):
    saved = read_checkpoint(tune(base, tmp_path / "run", *LORA))
    assert all(".lora_" in name for name in saved.layouts("model"))
    names = {name.partition(".")[2] for name in saved.layouts("optimizer")}
    assert names == set(saved.layouts("model"))
    whole = model_of(read_model(base)).named_parameters()
    model = model_of(saved)
    assert all(np.array_equal(array, model.named_parameters()[name]) for name, array in whole.items())
    assert any(array.any() for name, array in model.named_parameters().items() if ".lora_B." in name)


def test_what_is_frozen_stays(base, tmp_path):
    tuned = model_of(read_model(tune(base, tmp_path / "run", *WAYS["frozen"]))).named_parameters()
    before = model_of(read_model(base)).named_parameters()
    moved = {name for name, array in tuned.items() if not np.array_equal(array, before[name])}
    assert moved == {"final_norm.scale", "final_norm.shift", "out_head.weight"}


def test_merging_gives_a_model_that_computes_the_same(base, tmp_path, capsys):
    tuned = tune(base, tmp_path / "run", *LORA)
    assert run("merge", "--checkpoint", tuned, "--out", tmp_path / "merged") == 0
    model, merged = (model_of(read_model(folder)) for folder in (tuned, tmp_path / "merged"))
    assert merged.named_parameters().keys() == model_of(read_model(base)).named_parameters().keys()
    assert np.array_equal(merged(IDS), merge_lora(model)(IDS))
    capsys.readouterr()
    said = []
    for options in (
        ("--checkpoint", tuned),
        ("--checkpoint", tmp_path / "merged"),
        ("--checkpoint", base, "--adapter", tuned / "adapter"),
    ):
        assert run("generate", *options, "--prompt", "The ", "--max-new-tokens", 8, "--temperature", 0) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2]
    assert "already holds a model" in error_of(capsys, "merge", "--checkpoint", tuned, "--out", tmp_path / "merged")


def test_an_adapter_is_added_once(base, tmp_path, capsys):
    tuned = tune(base, tmp_path / "run", *LORA)
    capsys.readouterr()
    for command in (("merge", "--out", tmp_path / "m"), ("generate", "--prompt", "The ")):
        line = error_of(capsys, *command, "--checkpoint", tuned, "--adapter", tuned / "adapter")
        assert "has an adapter of its own; leave out --adapter" in line
        line = error_of(capsys, *command, "--checkpoint", base, "--base", base)
        assert "has no adapter, so it has no base; leave out --base" in line


def test_a_merge_loses_nothing_that_it_reads(base, tmp_path, capsys):
    tuned = tune(base, tmp_path / "run", *LORA)
    before = files(tmp_path)
    capsys.readouterr()
    for where, out in (((), tuned), (("--base", base), base)):
        line = error_of(capsys, "merge", "--checkpoint", tuned, *where, "--out", out, "--overwrite")
        assert "which would be lost; choose another --out" in line
    assert files(tmp_path) == before


def test_peft_reads_the_adapter_of_a_run(base, tmp_path):
    tuned = tune(base, tmp_path / "run", *LORA, "--dtype", "float64")
    model = model_of(read_model(tuned))
    twin = to_torch(model_of(read_model(base), np.float64), copy=True)
    twin = peft.PeftModel.from_pretrained(twin, tuned / "adapter")
    assert_agrees(model(IDS), twin.double().eval()(torch.from_numpy(IDS)).detach().numpy())


def test_generating_with_quantized_matrices(base, capsys):
    for scheme in ("nf4", "nf4,double", "int8", "int4,block=8"):
        options = ("--prompt", "The ", "--max-new-tokens", 4, "--temperature", 0, "--quantize", scheme)
        assert run("generate", "--checkpoint", base, *options) == 0
        assert capsys.readouterr().out.startswith("The ")


# What is told of it


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("frozen", "--freeze 'trf_blocks.*' '*emb.weight'"),
        ("lora", "--lora r=2,alpha=6,targets=all-linear,dropout=0.2"),
        ("qlora", "--quantize nf4,double --lora r=2,alpha=6,targets=all-linear,dropout=0.2"),
        ("quantized, with biases and norms trained", "--quantize int8"),
    ],
)
def test_info_tells_what_is_trained_and_where_its_base_is(base, tmp_path, capsys, way, words):
    """The bytes of a step are those of the model, which `info` does not read."""
    tuned = tune(base, tmp_path / "run", *WAYS[way], "--optimizer", "sgd", "--steps", 1)
    capsys.readouterr()
    assert run("info", "--checkpoint", tuned) == 0
    told = capsys.readouterr().out
    saved = read_checkpoint(tuned)
    model, arrays = model_of(saved), saved.arrays("model")
    count, size = model.num_parameters(trained_only=True), sum(array.nbytes for array in arrays.values())
    assert f"\nadapted by {words}\n" in told
    trained = f"{count:,} values are trained, in {len(arrays)} arrays of {size:,} bytes; all else is its base's"
    assert f"\n{trained}\n" in told
    assert f"\nits base is {base}, with weights of the SHA-256 {saved.values('model')['base']['sha256']}\n" in told
    packed = sum(node.weight.bytes() for node in quantized_projections(model).values())
    assert (f" matrices in {words.split()[1].partition(',')[0]}" in told) == bool(packed)
    sizes = tuned_sizes(saved)
    whole = training_bytes(model.config, 3, 6)
    step = sizes.step(whole, "float32", state_bytes_of("adamw", settings_of("adamw", {}), sizes.shapes))
    assert step.weights == weight_bytes(model)
    assert (step.gradients, step.optimizer) == (size, 2 * size)
    assert step.peak < whole.peak


def test_info_of_a_moved_base_and_of_what_is_no_model(base, tmp_path, capsys):
    tuned = tune(base, tmp_path / "run", *LORA, "--steps", 1)
    moved = base.rename(base.parent / "moved")
    try:
        capsys.readouterr()
        assert run("info", "--checkpoint", tuned) == 0
        assert f"its base is {base}, which is not there any more, with weights of" in capsys.readouterr().out
    finally:
        moved.rename(base)
    line = error_of(capsys, "info", "--checkpoint", tuned / "adapter")
    assert "holds an adapter and no model; name the model that it was trained on with --checkpoint" in line


def test_the_base_is_found_from_every_folder(base, tmp_path, monkeypatch):
    """It was named by a path from the folder of that time."""
    monkeypatch.chdir(base.parent)
    assert run("finetune", "--checkpoint", base.name, "--data", "text.txt", "--out", tmp_path, *TUNING, *LORA) == 0
    monkeypatch.chdir(tmp_path)
    assert run("generate", "--checkpoint", tmp_path, "--prompt", "The ", "--max-new-tokens", 1) == 0


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lora", "r=0,alpha=1"), "rank is 0; expected an integer of 1 or more"),
        (("--lora", "r=9,alpha=1"), "rank is 9, but the matrix of trf_blocks.0.att.W_query is (8, 8)"),
        (("--lora", "r=x"), "lora has r=x; expected a whole number"),
        (("--lora", "r=2.5,alpha=1"), "lora has r=2.5; expected a whole number"),
        (("--lora", "r=2,alpha=x"), "lora has alpha=x; expected a number"),
        (("--lora", "rank=2"), "lora has 'rank'; expected r=8,alpha=16 and any of"),
        (("--lora", "r=2,,alpha=1"), "lora is 'r=2,,alpha=1'; expected words with commas between them"),
        (("--lora", "r=2,targets=W_q"), "the target 'W_q' is no projection of the model"),
        (("--lora", "r=2,r=3"), "lora has 'r' 2 times; expected each word once"),
        (("--lora", "r=" + "9" * 5000), f"lora has r={'9' * 80}; expected a whole number"),
        (("--quantize", "nf4,double,double"), "quantize has 'double' 2 times; expected each word once"),
        (("--quantize", "int8,block=8,block=4"), "quantize has 'block' 2 times; expected each word once"),
        (("--freeze", "tok_emb.weight", "--lora", "r=2"), "leave out --freeze, or say with targets= in --lora"),
        (("--quantize", "nf5"), "the scheme of quantization is 'nf5'; expected one of"),
        (("--quantize", "int8,double"), "the scheme int8 has no option double"),
        (("--quantize", "nf4,twice"), "quantize has 'twice'; expected a scheme such as nf4"),
        (("--quantize", "nf4=2"), "expected the name of a scheme first"),
        (("--freeze", "block.*"), "the pattern 'block.*' matches no parameter of the model"),
        (("--freeze", "*"), "nothing is left to train"),
        (("--length", "7"), "length is 7; expected at most the model's context_length 6"),
    ],
)
def test_what_cannot_be_tuned_is_refused(base, tmp_path, capsys, options, message):
    line = error_of(
        capsys, "finetune", "--checkpoint", base, "--data", base.parent / "text.txt", "--out", tmp_path / "x", *options
    )
    assert message in line
    assert "\n" not in line
    assert not (tmp_path / "x").exists()


def test_other_files_where_the_adapter_goes_are_refused_before_the_training(base, tmp_path, capsys):
    tuned = tune(base, tmp_path / "run", *LORA, "--steps", 1)
    (tuned / "adapter" / "mine.txt").write_text("mine")
    before = files(tuned)
    capsys.readouterr()
    assert "such as mine.txt, and is not replaced" in error_of(capsys, "finetune", "--resume", tuned, "--steps", 2)
    assert files(tuned) == before


def test_values_that_are_not_finite_are_refused(base, tmp_path, capsys):
    """In the files of another program, because ours are not written with such values."""
    model = model_of(read_model(base))
    model.named_parameters()["trf_blocks.0.ff.layers.0.weight"][3, 1] = np.nan
    spoiled, out = tmp_path / "spoiled", tmp_path / "out"
    write_folder(spoiled, model.config, model.named_parameters(), "bytes")
    data = ("--data", base.parent / "text.txt", *LORA)
    for command in (("finetune", *data, "--quantize", "nf4"), ("quantize", "--scheme", "nf4")):
        line = error_of(capsys, *command, "--checkpoint", spoiled, "--out", out)
        assert "not finite in transformer.h.0.mlp.c_fc.weight" in line
        assert not out.exists()


def test_quantizing_twice_is_refused(base, tmp_path, capsys):
    packed, out = tmp_path / "packed", tmp_path / "out"
    assert run("quantize", "--checkpoint", base, "--scheme", "int8", "--out", packed) == 0
    capsys.readouterr()
    data = ("--data", base.parent / "text.txt", *LORA)
    for command in (("finetune", *data, "--quantize", "nf4"), ("quantize", "--scheme", "nf4")):
        line = error_of(capsys, *command, "--checkpoint", packed, "--out", out)
        assert "trf_blocks.0.att.W_query is quantized already; quantize the model that it was made of" in line
        assert not out.exists()


def test_what_is_missing_is_named(base, tmp_path, capsys):
    data = ("--data", base.parent / "text.txt")
    assert error_of(capsys, "finetune", *data) == "--checkpoint is missing; expected the folder of a trained model"
    line = error_of(capsys, "finetune", "--checkpoint", base)
    assert line == "--data is missing; expected files of text to learn from"
    assert "there is no checkpoint" in error_of(capsys, "finetune", "--checkpoint", tmp_path / "none", *data)


def test_a_run_is_continued_by_the_command_that_began_it(base, tmp_path, capsys):
    tuned = tune(base, tmp_path / "run", *LORA)
    before = but_the_log(files(tuned))
    assert "go on with it by numpygpt finetune --resume" in error_of(capsys, "train", "--resume", tuned)
    assert "go on with it by numpygpt train --resume" in error_of(capsys, "finetune", "--resume", base)
    assert "--lora cannot change in a resumed run" in error_of(capsys, "finetune", "--resume", tuned, "--lora", "r=1")
    line = error_of(
        capsys, "finetune", "--checkpoint", tuned, "--data", base.parent / "text.txt", "--out", tmp_path / "x"
    )
    assert "holds an adapter, which has a base itself; make one model of both: numpygpt merge" in line
    assert but_the_log(files(tuned)) == before


def test_another_base_is_refused(base, tmp_path, capsys):
    tuned = tune(base, tmp_path / "run", *LORA)
    other = tmp_path / "other"
    assert run("train", "--text", base.parent / "text.txt", "--out", other, *TRAINING, "--seed", 5) == 0
    capsys.readouterr()
    generate = ("generate", "--prompt", "The ", "--max-new-tokens", 1)
    assert "was trained on other weights than those of" in error_of(
        capsys, *generate, "--checkpoint", tuned, "--base", other
    )
    for quantized in ((), ("--quantize", "nf4")):
        assert "was trained on other weights than this model's" in error_of(
            capsys, *generate, "--checkpoint", other, "--adapter", tuned / "adapter", *quantized
        )
    assert "say with --base where it is" in error_of(
        capsys, *generate, "--checkpoint", tuned, "--base", tmp_path / "nowhere"
    )
    config = tuned / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    assert "has use_dora True" in error_of(capsys, *generate, "--checkpoint", base, "--adapter", tuned / "adapter")
    assert "has no adapter; name one with --adapter" in error_of(
        capsys, "merge", "--checkpoint", base, "--out", tmp_path / "m"
    )
    assert not (tmp_path / "m").exists()
