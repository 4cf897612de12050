"""What `torchgpt train` refuses with one line, from the first process alone, and how a run is taken up by torchrun."""

import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from numpygpt.formats.checkpoint import FILE_NAME, read_checkpoint
from numpygpt.training.run import TrainingRun
from parity_tests.command import files, write_text
from parity_tests.tolerances import FLOAT64_SHARED
from parity_tests.torch_command import QUIET, ROOT, SIZES, curve, furthest, log_of, refusal, rewritten, run, train
from torchgpt.commands import train as command
from torchgpt.parallel.team import VARIABLES

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")  # whole runs are compared

TINY = (*SIZES, *QUIET, "--steps", 1)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with text.txt in it; torchrun has not started this process."""
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")
    monkeypatch.chdir(tmp_path)
    for name in (*VARIABLES, command.RESTARTS):
        monkeypatch.delenv(name, raising=False)
    write_text(tmp_path)
    return tmp_path


def refused(capsys, folder, *arguments):
    """The line of a new run that is refused before anything is written."""
    line = refusal(capsys, "torchgpt", "train", "--text", "text.txt", "--out", "run", *TINY, *arguments)
    assert [path.name for path in folder.iterdir()] == ["text.txt"], "not even a folder"
    return line


no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
no_mps = pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an Apple GPU")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("--device", "cuda"), "there is no CUDA device here .*: use --device cpu", marks=no_cuda),
        pytest.param(("--device", "mps"), "there is no Apple GPU here for --device mps: use", marks=no_mps),
        (("--device", "tpu"), "argument --device: invalid choice: 'tpu'"),
        (("--precision", "tf32"), "the device cpu has no tf32: choose another --precision, such as fp32"),
        (("--precision", "fp8"), "argument --precision: invalid choice: 'fp8'"),
        (("--precision", "bf16", "--dtype", "float64"), "--precision bf16 rounds products of float32, and --dtype is"),
        (("--parallel", "fsdp=2"), "--parallel fsdp=2 is for 2 processes, and there is 1: change the numbers, or how"),
        (("--parallel", "zero=2"), "--parallel zero=2: there is no scheme 'zero'; expected some of ddp, fsdp, tp, pp"),
        (("--parallel", "ddp,fsdp"), "--parallel ddp,fsdp: ddp and fsdp lack their numbers; at most one axis may"),
        (("--time-limit", 0), "time_limit is 0; expected at least 1"),
        (("--verify-every", -1), "verify_every is -1; expected 0 or more"),
        (("--device", "meta", "--parallel", "tp=3"), "tp=3 does not divide n_heads 2"),
        (("--device", "meta", "--parallel", "fsdp"), "expected how many processes fsdp has, as in fsdp=8"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_gets_one_line_and_nothing_is_written(folder, capsys, arguments, message):
    assert re.search(message, refused(capsys, folder, *arguments))


def test_a_missing_tensorboard_is_said_before_the_training(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    line = refused(capsys, folder, "--tensorboard")
    assert line.endswith("--tensorboard needs the package tensorboard: pip install tensorboard")


def misshaped(sections):
    arrays = sections["optimizer"].arrays
    arrays["exp_avg.tok_emb.weight"] = arrays["exp_avg.tok_emb.weight"][:9].copy()
    del arrays["exp_avg_sq.out_head.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (misshaped, "missing: exp_avg_sq.out_head.weight; misshaped: exp_avg.tok_emb.weight$"),
        (lambda sections: sections["optimizer"].values.update(step="x"), "step is 'x'"),
        (lambda sections: sections["optimizer"].values.pop("betas"), r"the optimizer's state does not fit: missing"),
        (lambda sections: sections["model"].values["config"].update(emb_dim=16), "emb_dim|shape|fit"),
        (lambda sections: sections["torch"].values.update(settings={"speed": 1}), "'speed'.* are no settings of a run"),
        (lambda sections: sections["data"].values.update(position={"order_seed": 1}), "batches_done is missing"),
    ],
    ids=["moments", "step", "betas", "another configuration", "settings", "position"],
)
def test_a_damaged_checkpoint_gets_one_line_and_stays(folder, capsys, change, message):
    trained = train("torchgpt", folder / "run", *TINY)
    rewritten(trained, change)
    before = files(folder)
    line = refusal(capsys, "torchgpt", "train", "--resume", trained, "--steps", 2)
    assert re.search(message, line), line
    assert files(folder) == before


def test_a_resumed_run_keeps_its_model(folder, capsys):
    trained = train("torchgpt", folder / "run", *TINY)
    line = refusal(capsys, "torchgpt", "train", "--resume", trained, "--emb-dim", 16, "--seed", 3)
    assert "--emb-dim, --seed cannot change in a resumed run; leave them out" in line


# Several processes


@pytest.mark.parametrize("arguments", [("--precision", "fp8"), ("--lr", "x"), ("--parallel", "fsdp=2", "--lr", -1)])
def test_only_the_first_process_says_why(folder, capsys, monkeypatch, arguments):
    monkeypatch.setenv("RANK", "1")
    assert run("torchgpt", "train", "--text", "text.txt", "--out", "run", *TINY, *arguments) == 2
    assert capsys.readouterr() == ("", "")
    assert list(files(folder)) == ["text.txt"]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def first_of_two(monkeypatch):
    """This process is the first of two that torchrun started; the other one never comes."""
    port = free_port()
    for name, value in zip(VARIABLES, ("0", "2", "127.0.0.1", str(port)), strict=True):
        monkeypatch.setenv(name, value)
    return port


@pytest.mark.usefixtures("first_of_two")
def test_a_process_that_never_comes_is_not_waited_for_without_end(folder, capsys):
    line = refused(capsys, folder, "--time-limit", 2)
    assert re.search(r"process 0 could not join the 2 processes at 127\.0\.0\.1:\d+ within 2 s: ", line)


def test_a_port_in_use_gets_one_line(folder, capsys, first_of_two):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first_of_two))
        taken.listen()
        line = refused(capsys, folder, "--time-limit", 5)
    assert f"the port of 127.0.0.1:{first_of_two} is in use by another program: choose another one" in line


# torchrun starts a run again


@pytest.mark.parametrize("restarts", ["0", "1"])
def test_a_run_that_torchrun_starts_again_goes_on_from_its_checkpoint(folder, capsys, monkeypatch, restarts):
    monkeypatch.setenv(command.RESTARTS, restarts)
    arguments = (*SIZES, *QUIET, "--eval-every", 2, "--schedule-steps", 4, "--lr", 0.01)
    expected = curve(train("torchgpt", folder / "whole", *arguments, "--steps", 4))
    train("torchgpt", folder / "run", *arguments, "--steps", 2)
    rewritten(folder / "run", lambda sections: sections["run"].values["options"].update(steps=4))
    again = ("train", "--text", "text.txt", "--out", "run", *arguments, "--steps", 4)
    if restarts == "0":
        assert "run already holds a checkpoint" in refusal(capsys, "torchgpt", *again)
    else:
        assert run("torchgpt", *again) == 0
        assert curve(folder / "run") == expected


def test_a_run_that_overwrites_another_and_died_before_it_saved_does_not_go_on_from_the_other(folder, monkeypatch):
    arguments = ("train", "--text", "text.txt", "--out", "run", *TINY, "--overwrite")
    train("torchgpt", folder / "run", *TINY)
    before = (folder / "run" / FILE_NAME).read_bytes()
    monkeypatch.setenv(command.RESTARTS, "0")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "save", lambda run: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            run("torchgpt", *arguments, "--seed", 9)
    assert (folder / "run" / FILE_NAME).read_bytes() == before
    monkeypatch.setenv(command.RESTARTS, "1")
    assert run("torchgpt", *arguments, "--seed", 9) == 0
    assert read_checkpoint(folder / "run").values("run")["options"]["seed"] == 9


def test_a_run_in_a_format_that_is_not_here_goes_on_in_float32(folder, capsys):
    train("torchgpt", folder / "run", *TINY)
    rewritten(folder / "run", lambda sections: sections["torch"].values["settings"].update(precision="tf32"))
    more = ("train", "--resume", "run", "--steps", 2)
    assert "the device cpu has no tf32: choose another --precision, such as fp32" in refusal(capsys, "torchgpt", *more)
    assert run("torchgpt", *more, "--precision", "fp32") == 0


def test_a_gpu_whose_memory_is_short_is_one_line(folder, capsys, monkeypatch):
    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore words.")

    monkeypatch.setattr("torchgpt.parallel.model.ParallelModel.gradients", short)
    line = refusal(capsys, "torchgpt", "train", "--text", "text.txt", "--out", "run", *TINY)
    assert "the memory of the GPU of process 0 is short: CUDA out of memory. Tried to allocate 9 GiB.; take a" in line


def test_a_run_that_died_before_its_first_checkpoint_begins_again(folder, monkeypatch):
    monkeypatch.setenv(command.RESTARTS, "1")
    assert len(log_of(train("torchgpt", folder / "run", *TINY))) == 1


def test_a_run_whose_process_is_killed_ends_with_the_weights_of_one_that_never_stopped(folder):
    """Two processes share it. The second one kills itself after step 5, and torchrun starts both again."""
    arguments = ("--text", folder / "text.txt", *SIZES, *QUIET, "--dtype", "float64", "--drop-rate", 0)
    arguments = (*arguments, "--accumulate", 2, "--steps", 8, "--save-every", 2, "--time-limit", 60)
    expected = folder / "alone"
    assert run("torchgpt", "train", *arguments, "--out", expected) == 0
    port = free_port()
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--max-restarts", 1),
        *("--master-addr", "127.0.0.1", "--master-port", port, "-m", "parity_tests.dying_process", 5),
        *("train", *arguments, "--device", "cpu", "--parallel", "fsdp", "--out", folder / "shared"),
    ]
    done = subprocess.run(
        list(map(str, words)),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exitcode: -9" in done.stderr or "Signal 9" in done.stderr or "SIGKILL" in done.stderr, done.stderr[-3000:]
    assert furthest(curve(folder / "shared"), curve(expected)) <= FLOAT64_SHARED
    ours, theirs = (read_checkpoint(path).arrays("model") for path in (folder / "shared", expected))
    assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs) <= FLOAT64_SHARED
    assert read_checkpoint(folder / "shared").values("torch")["scheme"] == "fsdp=2"
