"""`torchgpt train`: the steps of `numpygpt train`, its checkpoints, and what only PyTorch has."""

import errno
import math
import re
import resource
import sys
import threading
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from numpygpt.formats.checkpoint import read_checkpoint
from numpygpt.model.config import PRESETS, GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.scheme import Scheme
from numpygpt.model.sizes import num_parameters
from numpygpt.training import loss_scale
from numpygpt.training import run as training_run
from numpygpt.training.adamw import AdamW
from numpygpt.training.groups import groups_of
from numpygpt.training.loss_scale import GROWTH_INTERVAL, LossScale
from numpygpt.training.options import Options
from numpygpt.training.run import TrainingRun
from numpygpt.training.team import OneProcess
from parity_tests.command import write_text
from parity_tests.tolerances import FLOAT64_CURVE
from parity_tests.torch_command import (
    EXACT,
    PROGRAMS,
    QUIET,
    SIZES,
    curve,
    furthest,
    left_by,
    log_of,
    refusal,
    rewritten,
    run,
    sections_of,
    train,
)
from torchgpt.engine.optimizer import Optimizer
from torchgpt.parallel.model import ParallelModel

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")  # whole runs are compared

ROUNDED = (*SIZES, "--drop-rate", 0, "--lr", 0.01, "--warmup-steps", 0, *QUIET)
OTHER = {"numpygpt": "torchgpt", "torchgpt": "numpygpt"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with text.txt in it. No picture is drawn, which would take as long as some trainings."""
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    return tmp_path


# The same steps


@pytest.mark.parametrize(
    ("steps", "kernels", "options"),
    [
        (100, ("book", "fused"), ()),
        (30, ("fused",), ("--tie-weights",)),
        (30, ("book",), ("--no-bias", "--qkv-bias", "--attention", "flash")),
        (30, ("fused",), ("--no-bias", "--checkpoint-activations", "--decay", "all", "--clip", 0)),
    ],
    ids=["dropout, accumulation", "tied", "no biases, flash", "recomputed, all decay"],
)
def test_both_commands_take_the_same_steps(folder, steps, kernels, options):
    """The same seed, text and flags in float64 give the same losses and the same norms of gradients."""
    arguments = (*EXACT, "--steps", steps, *options)
    expected = curve(train("numpygpt", folder / "numpy", *arguments))
    assert len({loss for loss, _ in expected}) == steps, "each step has another batch"
    for kind in kernels:
        ours = curve(train("torchgpt", folder / kind, *arguments, "--kernels", kind))
        assert furthest(ours, expected) <= FLOAT64_CURVE


def test_both_commands_evaluate_and_sample_alike(folder, capsys):
    arguments = (*SIZES, "--dtype", "float64", "--steps", 12, "--lr", 0.05, "--eval-every", 5, "--sample-every", 12)
    told = {}
    for program in PROGRAMS:
        train(program, folder / program, *arguments)
        printed = capsys.readouterr().out
        told[program] = [line for line in printed.splitlines() if re.match(r"step \d+: (?!loss)", line)]
    assert told["torchgpt"] == told["numpygpt"]
    assert len(told["torchgpt"]) == 5, "four evaluations and a sample"
    histories = [read_checkpoint(folder / program).values("run")["history"] for program in PROGRAMS]
    for ours, expected in zip(*histories, strict=True):
        for name, value in expected.items():
            assert ours[name] == pytest.approx(value, abs=FLOAT64_CURVE)


# Resuming


@pytest.mark.parametrize("stop", [7, 13])
def test_a_run_that_is_stopped_and_resumed_is_the_run_that_never_stopped(folder, stop):
    """Within an epoch, and at a step that spans two: files are equal byte for byte, also those of the earlier steps."""
    saving = ("--eval-every", stop, "--save-every", 4, "--keep", 3, "--sample-every", 15)
    common = (*EXACT, *saving, "--schedule-steps", 16)
    whole = train("torchgpt", folder / "whole", *common, "--steps", 16)
    stopped = train("torchgpt", folder / "stopped", *common, "--steps", stop)
    assert len(log_of(stopped)) == stop
    train("torchgpt", stopped, "--resume", stopped, "--steps", 16)
    assert curve(stopped) == curve(whole)
    assert len(left_by(whole)) == 4, "the last, two before it, and the best"
    expected = [name for name in left_by(whole) if read_checkpoint(whole / name).values("run")["step"] > stop]
    assert len(expected) == {7: 4, 13: 2}[stop]
    assert [name for name in expected if left_by(stopped)[name] != left_by(whole)[name]] == []


@pytest.mark.parametrize("first", PROGRAMS)
def test_either_command_goes_on_with_the_run_of_the_other(folder, first):
    arguments = (*EXACT, "--schedule-steps", 28, "--eval-every", 7)
    whole = curve(train(first, folder / "whole", *arguments, "--steps", 28))
    shared = train(first, folder / "shared", *arguments, "--steps", 7)
    for program, steps in ((OTHER[first], 14), (first, 21), (OTHER[first], 28)):
        train(program, shared, "--resume", shared, "--steps", steps)
    assert furthest(curve(shared, 7), whole[7:]) <= FLOAT64_CURVE


def test_numpygpt_reads_a_checkpoint_of_torchgpt(folder, capsys):
    arguments = (*SIZES, "--dtype", "float64", "--steps", 30, "--lr", 0.05, "--sample-every", 30, "--eval-every", 30)
    trained = train("torchgpt", folder / "run", *arguments)
    sample = re.search(r"^step 30: (The .*)$", capsys.readouterr().out, re.MULTILINE)[1]
    given = ("--prompt", "The ", "--max-new-tokens", 50, "--temperature", 0)
    assert run("numpygpt", "generate", "--checkpoint", trained, *given) == 0
    assert capsys.readouterr().out.replace("\n", " ").strip() == sample.strip()
    assert run("numpygpt", "info", "--checkpoint", trained) == 0
    assert "(step 30)" in capsys.readouterr().out


def test_a_resumed_run_keeps_its_settings_and_may_change_them(folder):
    trained = train("torchgpt", folder / "run", *EXACT, "--steps", 1, "--kernels", "book", "--log-every", 3)
    train("torchgpt", trained, "--resume", trained, "--steps", 2, "--log-every", 7)
    settings = read_checkpoint(trained).values("torch")["settings"]
    assert (settings["kernels"], settings["log_every"]) == ("book", 7)


# What decays


def decaying(folder):
    """The names of the parameters that decay, as the checkpoint's optimizer has them."""
    saved = read_checkpoint(folder)
    groups = saved.values("optimizer")["groups"]
    still = {name for group in groups if group["weight_decay"] == 0 for name in group["names"]}
    return {name for name in saved.layouts("model") if name not in still}


@pytest.mark.parametrize("program", PROGRAMS)
def test_matrices_decay_and_nothing_else_unless_all_is_asked_for(folder, program):
    arguments = (*SIZES, *QUIET, "--qkv-bias", "--steps", 1)
    new = train(program, folder / "new", *arguments)
    layouts = read_checkpoint(new).layouts("model")
    assert decaying(new) == {name for name, layout in layouts.items() if len(layout.shape) == 2}
    assert len(decaying(new)) < len(layouts)
    assert decaying(train(program, folder / "all", *arguments, "--decay", "all")) == set(layouts)


@pytest.mark.parametrize("program", PROGRAMS)
def test_in_a_run_from_before_the_option_everything_goes_on_to_decay(folder, program):
    old = train(program, folder / "run", *EXACT, "--steps", 2, "--decay", "all")
    rewritten(old, lambda sections: sections["run"].values["options"].pop("decay"))
    train(program, old, "--resume", old, "--steps", 4)
    assert decaying(old) == set(read_checkpoint(old).layouts("model"))
    assert read_checkpoint(old).values("run")["options"]["decay"] == "all"


def after_a_step_without_gradients(program, config, options):
    """{name: array} before and after a step whose gradients are 0, so that decay alone moves anything."""
    model = GPTModel(config, seed=1, dtype=np.float64)
    before = {name: array + 1.0 for name, array in model.named_parameters().items()}
    if program == "numpygpt":
        after = {name: array.copy() for name, array in before.items()}
        optimizer = AdamW(after, **options.optimizer_settings, groups=groups_of(options.decay))
        optimizer.step({name: np.zeros_like(array) for name, array in after.items()})
        return before, after
    twin = ParallelModel.build(config, Scheme(), OneProcess(), device=torch.device("cpu"), dtype=torch.float64)
    for name, array in before.items():
        twin.fill(name, torch.from_numpy(array))
        twin.parameters()[name].grad = torch.zeros(array.shape, dtype=torch.float64)
    Optimizer(twin, options).step(options.lr)
    return before, {name: parameter.detach().numpy() for name, parameter in twin.parameters().items()}


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_decays_shrinks_and_the_rest_stays(program):
    config = GPTConfig(vocab_size=11, context_length=4, emb_dim=6, n_heads=2, n_layers=1, drop_rate=0.0, qkv_bias=True)
    options = Options(lr=0.5, weight_decay=0.5, dtype="float64")
    before, after = after_a_step_without_gradients(program, config, options)
    for name, array in before.items():
        factor = 0.75 if array.ndim > 1 else 1.0
        assert np.array_equal(after[name], array * factor), name


# A loss that is not finite


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_loss_that_is_not_finite_names_the_step_its_batches_and_the_largest_gradient(folder, capsys, program):
    arguments = (*EXACT, "--dtype", "float32", "--steps", 4, "--schedule", "constant")
    trained = train(program, folder / "run", *arguments)
    before = left_by(trained)
    rate = ("--steps", 9, "--lr", "1e38")
    line = refusal(capsys, program, "train", "--resume", trained, *rate)
    assert re.fullmatch(
        rf"{program}: error: the loss is (nan|inf) at optimizer step 6; the weights are those before that step: .*; "
        r"its batch was number 11 and 12 of the epoch; the largest gradient of the step before was that of "
        r"[\w.]+\.weight, of norm [\d.e-]+; the checkpoint of step 4 is as it was: go on from there with a lower "
        rf"learning rate, such as {program} train --resume {re.escape(str(trained))} --lr 1e\+37",
        line,
    ), line
    assert left_by(trained) == before
    train(program, trained, "--resume", trained, "--steps", 6)


# bf16 and fp16


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_short_formats_take_nearly_the_same_steps(folder, name):
    """An error of a factor, such as a loss scale that stays in the gradients, is far larger than what they round."""
    arguments = (*ROUNDED, "--steps", 3, "--clip", 0.05)
    expected = curve(train("torchgpt", folder / "float32", *arguments))
    ours = curve(train("torchgpt", folder / name, *arguments, "--precision", name))
    assert ours != expected
    for pair, other in zip(ours, expected, strict=True):
        for a, b in zip(pair, other, strict=True):
            assert 0.95 < a / b < 1.05


def test_gradients_lose_the_scale_of_fp16_before_they_are_clipped(folder):
    """After one step the first moment is a tenth of the clipped gradient."""
    trained = train("torchgpt", folder / "run", *ROUNDED, "--steps", 1, "--clip", 0.05, "--precision", "fp16")
    assert curve(trained)[0][1] > 0.5, "it is clipped"
    moments = read_checkpoint(trained).arrays("optimizer")
    squares = sum(float((array**2).sum()) for name, array in moments.items() if name.startswith("exp_avg."))
    assert 0.95 < math.sqrt(squares) / (0.1 * 0.05) < 1.05


def test_a_step_whose_gradients_overflow_fp16_is_left_out(folder, monkeypatch, capsys):
    monkeypatch.setattr(loss_scale, "FIRST_SCALE", 2.0**120)
    still = train("torchgpt", folder / "run", *ROUNDED, "--steps", 2, "--precision", "fp16", "--log-every", 1)
    told = capsys.readouterr().out
    for scale in (2.0**119, 2.0**118):
        assert f"the gradients overflowed fp16: no step was taken; the scale is now {scale:g}\n" in told
    assert "step 2: loss 5." in told
    assert [line["grad_norm"] for line in log_of(still)] == [None, None]
    saved = read_checkpoint(still)
    assert saved.values("torch")["loss_scale"] == {"value": 2.0**118, "steps_without_overflow": 0}
    assert saved.values("optimizer")["step"] == 0
    untrained = train("torchgpt", folder / "untrained", *ROUNDED, "--steps", 1, "--lr", 0)
    assert sections_of(still)["model"] == sections_of(untrained)["model"]
    rewritten(still, lambda sections: sections["torch"].values["loss_scale"].update(value=2.0**10))
    train("torchgpt", still, "--resume", still, "--steps", 4)
    saved = read_checkpoint(still)
    assert saved.values("torch")["loss_scale"] == {"value": 2.0**10, "steps_without_overflow": 2}
    assert saved.values("optimizer")["step"] == 2


def test_gradients_that_overflow_at_every_scale_are_refused(folder, monkeypatch, capsys):
    monkeypatch.setattr(loss_scale, "FIRST_SCALE", 2.0**120)
    monkeypatch.setattr(loss_scale, "SMALLEST_SCALE", 2.0**119)
    arguments = (*ROUNDED, "--steps", 5, "--precision", "fp16")
    line = refusal(capsys, "torchgpt", "train", "--text", "text.txt", "--out", "run", *arguments)
    assert f"the gradients overflow fp16 at every scale down to {2.0**119:g}; use bf16" in line
    assert left_by(folder / "run") == {}


def test_the_loss_scale_grows_after_steps_without_an_overflow():
    scale = LossScale("fp16")
    for _ in range(GROWTH_INTERVAL - 1):
        scale.fitted()
    assert (scale.value, scale.steps_without_overflow) == (2.0**16, GROWTH_INTERVAL - 1)
    scale.fitted()
    assert (scale.value, scale.steps_without_overflow) == (2.0**17, 0)
    scale.fitted()
    scale.overflowed()
    assert (scale.value, scale.steps_without_overflow) == (2.0**16, 0)
    scale.fitted()
    other = LossScale("fp16")
    other.load(scale.state())
    assert other.state() == {"value": 2.0**16, "steps_without_overflow": 1}


@pytest.mark.parametrize("kind", [None, "bf16", "tf32"])
def test_only_fp16_scales_the_loss_and_a_run_may_change_to_it(kind):
    constant, scale = LossScale(kind), LossScale("fp16")
    constant.load(scale.state())
    for _ in range(2 * GROWTH_INTERVAL):
        constant.fitted()
    assert constant.value == 1
    scale.load(constant.state())
    assert scale.value == 2.0**16


def test_a_run_of_many_steps_is_resumed(folder, monkeypatch):
    """It has more steps than fp16's scale needs to grow."""
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    trained = train("torchgpt", folder / "run", *ROUNDED, "--steps", 4)
    train("torchgpt", trained, "--resume", trained, "--steps", 5)


# The oracle


def test_steps_that_numpy_verifies_change_nothing_of_the_run(folder, capsys):
    arguments = (*EXACT, "--steps", 5)
    verified = train("torchgpt", folder / "verified", *arguments, "--verify-every", 2)
    line = r"^step (\d) by NumPy in float64: (\d+) tensors, within rounding; the worst is "
    told = re.findall(line, capsys.readouterr().out, re.MULTILINE)
    assert told == [("2", "32"), ("4", "32")]
    alone = train("torchgpt", folder / "alone", *arguments)
    assert curve(verified) == curve(alone)
    verified, alone = sections_of(verified), sections_of(alone)
    settings = [sections["torch"][0].pop("settings") for sections in (verified, alone)]
    assert {**settings[1], "verify_every": 2} == settings[0]
    assert verified == alone


@pytest.mark.parametrize("options", [("--dtype", "float64"), ("--precision", "bf16")])
def test_a_wrong_gradient_is_not_within_rounding(folder, monkeypatch, capsys, options):
    """It is off by a thousandth in float64, and by half in bf16."""
    gradients, name = ParallelModel.gradients, "trf_blocks.1.att.W_key.weight"
    share = 1e-3 if "float64" in options else 0.5

    def wrong(model, *arguments, **how):
        loss = gradients(model, *arguments, **how)
        model.parameters()[name].grad *= 1 + share
        return loss

    monkeypatch.setattr(ParallelModel, "gradients", wrong)
    train("torchgpt", folder / "run", *ROUNDED, "--steps", 1, "--verify-every", 1, *options)
    told = re.search(r"^step 1 by NumPy in float64: .*$", capsys.readouterr().out, re.MULTILINE)[0]
    assert "NOT within rounding" in told
    assert f"the worst is d_{name}, which is off by " in told


# Writing in the background


def test_steps_go_on_while_a_checkpoint_is_written_as_the_run_was_then(folder, monkeypatch):
    """The first write waits until the run is at its fourth step. What it writes is the run at its second."""
    monkeypatch.setattr(TrainingRun, "save_best", lambda run: None)
    common = (*EXACT, "--schedule-steps", 4, "--eval-every", 2, "--save-every", 2)
    expected = train("torchgpt", folder / "two", *common, "--steps", 2)
    at_the_last_step = threading.Event()
    write, step, first = training_run.write_checkpoint, TrainingRun.train_step, []

    def waiting(directory, sections, *rest):
        if not first:
            assert at_the_last_step.wait(60), "the run does not go on"
        path = write(directory, sections, *rest)
        first.append(sections_of(directory))
        return path

    def noted(run):
        taken = step(run)
        if run.step == 4:
            at_the_last_step.set()
        return taken

    monkeypatch.setattr(training_run, "write_checkpoint", waiting)
    monkeypatch.setattr(TrainingRun, "train_step", noted)
    train("torchgpt", folder / "four", *common, "--steps", 4)
    saved, end = first[0], sections_of(expected)
    assert [saved["run"][0]["step"], saved["run"][0]["tokens_seen"]] == [2, 72]
    for name in ("model", "optimizer", "random", "data"):
        assert saved[name] == end[name], name


# What only torchgpt has


def test_events_for_tensorboard_hold_what_is_told(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", ModuleType("notf"))  # without TensorFlow, it is quick
    arguments = (*SIZES, "--steps", 4, "--sample-every", 0, "--eval-every", 2, "--log-every", 2, "--tensorboard")
    trained = train("torchgpt", folder / "run", *arguments)
    train("torchgpt", trained, "--resume", trained, "--steps", 6)
    scalars = events_of(trained / "tensorboard")
    assert {name: [step for step, _ in found] for name, found in scalars.items()} == {
        **{name: [2, 4, 6] for name in ("loss", "grad_norm", "tokens_per_second")},
        **{name: [0, 2, 4, 6] for name in ("train_loss", "val_loss")},
        "lr": [0, 2, 2, 4, 4, 6, 6],
    }
    logged = {line["step"]: line for line in log_of(trained)}
    for name in ("loss", "grad_norm"):
        assert [np.float32(logged[step][name]) for step, _ in scalars[name]] == [value for _, value in scalars[name]]
    history = read_checkpoint(trained).values("run")["history"]
    assert scalars["val_loss"] == [(entry["step"], np.float32(entry["val_loss"])) for entry in history]


def test_events_that_cannot_be_written_cost_no_training(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", ModuleType("notf"))

    class Full:
        """A writer on a full disk."""

        def __init__(self, *_, **__):
            pass

        def add_scalar(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torchgpt.engine.progress.event_writer", lambda: Full)
    arguments = (*SIZES, "--steps", 3, "--sample-every", 0, "--log-every", 1, "--tensorboard")
    assert len(log_of(train("torchgpt", folder / "run", *arguments))) == 3
    assert capsys.readouterr().out.count("no more events are written") == 1


def events_of(directory):
    """{name: [(step, value)]} of the scalars in the files of events of a folder."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for path in sorted(directory.iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, np.float32(value.tensor.float_val[0])))
    return {name: sorted(values) for name, values in found.items()}


def test_the_shares_of_a_large_model_are_told_without_its_memory(capsys):
    """Six blocks of the largest GPT-2 are 1.1 GB, and test_parallel_schemes.py looks at all 48."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    arguments = ("--preset", "gpt2-xl", "--tokenizer", "gpt2", "--parallel", "fsdp=8", "--n-layers", 6)
    assert run("torchgpt", "train", "--device", "meta", *arguments) == 0
    told = capsys.readouterr().out
    parameters = num_parameters(replace(PRESETS["gpt2-xl"], n_layers=6))
    assert told.startswith(f"fsdp=8: what each of 8 processes would hold of {parameters:,} parameters\n")
    rows = re.findall(r"^ +(\d+) +(\d+) +([\d,.]+) MiB$", told, re.MULTILINE)
    assert [int(rank) for rank, _, _ in rows] == list(range(8))
    whole = parameters * 4 / 2**20
    assert 0.999 < sum(float(size.replace(",", "")) for _, _, size in rows) / whole < 1.001
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < whole / 8
