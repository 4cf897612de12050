"""`finetune --objective` in both programs: the same steps in float64, and each goes on with the other's run.

The slice that the suite runs takes 6 steps of each objective; the long form takes 50.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

from numpygpt import GPTConfig
from numpygpt.formats.checkpoint import read_checkpoint
from numpygpt.training.run import TrainingRun
from parity_tests.command import write_text
from parity_tests.parallel_child import free_port
from parity_tests.tolerances import FLOAT64_CURVE, FLOAT64_SHARED
from parity_tests.torch_command import PROGRAMS, QUIET, ROOT, SIZES, curve, furthest, left_by, log_of, run
from torchgpt.engine.policies import Writer

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")  # whole runs are compared
#: The context has room for the longest record and its template.
SMALL = (*SIZES, "--context-length", 40, "--emb-dim", 12, "--qkv-bias", "--drop-rate", 0.1, "--steps", 2, *QUIET)
STEPS, LONG = 6, 50
TUNING = ("--batch-size", 3, "--accumulate", 2, "--warmup-steps", 1, "--lr", 0.01, *QUIET, "--dtype", "float64")
PLAIN = ("--template", "plain")
DRAWING = ("--data", "pairs.json", *PLAIN, "--reward-model", "judge", "--max-new-tokens", 6, "--batch-size", 2)
LORA = ("--lora", "r=2,alpha=6,targets=all-linear")
#: The options of each objective, by a name. The body has dropout, except where a policy is learned.
WAYS = {
    "answers": (
        "--objective", "next-token", "--data", "records.jsonl", *PLAIN, "--label-smoothing", 0.1,
        "--val-data", "records.jsonl",
    ),
    "answers, packed": ("--objective", "next-token", "--data", "records.jsonl", *PLAIN, "--pack"),
    "classify": ("--objective", "classify", "--data", "labels.csv", "--classes", "no", "yes"),
    "classify, lora": ("--objective", "classify", "--data", "labels.csv", "--classes", 2, *LORA),
    "reward": ("--objective", "reward", "--data", "pairs.json", *PLAIN),
    "dpo": ("--objective", "dpo", "--data", "pairs.json", *PLAIN, "--label-smoothing", 0.1),
    "dpo, lora, ipo": ("--objective", "dpo", "--data", "pairs.json", *PLAIN, "--form", "ipo", *LORA),
    "distill": ("--objective", "distill", "--data", "records.jsonl", *PLAIN, "--teacher", "other", "--hidden", 0.1),
    "grpo": ("--objective", "grpo", *DRAWING, "--group", 3, "--rounds", 2),
    "grpo, lora": ("--objective", "grpo", *DRAWING, "--group", 2, *LORA, "--over", "tokens"),
    "ppo": ("--objective", "ppo", *DRAWING, "--rounds", 2),
    "ppo, lora": ("--objective", "ppo", *DRAWING, "--rounds", 3, *LORA),
}  # fmt: skip
OTHER = {"numpygpt": "torchgpt", "torchgpt": "numpygpt"}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base that knows the end of an answer, a reward model, another model, and records of each kind."""
    folder = tmp_path_factory.mktemp("tuning")
    text = write_text(folder)
    (folder / "records.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {k}", "completion": "yes" * (1 + k % 4)}) + "\n" for k in range(14))
    )
    (folder / "pairs.json").write_text(
        json.dumps([{"prompt": f"say {k}", "chosen": "a" * (1 + k % 5), "rejected": f"no {k}"} for k in range(14)])
    )
    lines = ["Label,Text", *(f"{k % 2},{'ab' * (1 + k % 7)} {k}" for k in range(14)), ""]
    (folder / "labels.csv").write_text("\n".join(lines))
    for name, options in (("first", ()), ("second", ("--seed", 2)), ("third", ("--drop-rate", 0))):
        assert run("numpygpt", "train", "--text", text, "--out", folder / name, *SMALL, *options) == 0
    few = ("--steps", 2, "--batch-size", 4, *QUIET)
    for out, base in (("base", "first"), ("other", "second"), ("without dropout", "third")):
        assert tune("numpygpt", folder, out, base, *WAYS["answers"], *few) is not None
    assert tune("numpygpt", folder, "judge", "base", *WAYS["reward"], *few) is not None
    return folder


def tune(program, folder, out, base, *options):
    """Run `finetune` in the folder of the records, which has to go well; returns the folder of the run."""
    words = in_folder(folder, options)
    assert run(program, "finetune", "--checkpoint", folder / base, "--out", folder / out, *words) == 0
    return folder / out


def in_folder(folder, options):
    """The options, with the paths of the files that they name."""
    files = {"records.jsonl", "pairs.json", "labels.csv", "judge", "other"}
    return [folder / word if word in files else word for word in options]


def steps(count):
    return ("--steps", count)


def told(path):
    """What a run tells of each step besides its loss, and of the evaluation after the last one; 0 if it does not."""
    lines = log_of(path)
    assert "val_loss" in lines[-1]
    return [[line.get(name, 0) for name in ("reward", "length", "kl", "val_loss")] for line in lines]


def assert_both_take_the_same_steps(folder, tmp_path, way, count):
    options = (*TUNING, *WAYS[way], *steps(count))
    runs = [tune(program, folder, tmp_path / program, "base", *options) for program in PROGRAMS]
    expected, ours = map(curve, runs)
    assert min(norm for _, norm in expected) > 0
    assert furthest(ours, expected) <= FLOAT64_CURVE
    assert furthest(*map(told, runs)) <= FLOAT64_CURVE


@pytest.mark.parametrize("way", WAYS)
def test_both_programs_take_the_same_steps(folder, tmp_path, way):
    assert_both_take_the_same_steps(folder, tmp_path, way, STEPS)


@pytest.mark.long_form
@pytest.mark.parametrize("way", WAYS)
def test_both_programs_take_the_same_fifty_steps(folder, tmp_path, way):
    assert_both_take_the_same_steps(folder, tmp_path, way, LONG)


def shared_by_two(folder, out, way, parallel):
    """Tune in two processes, which has to go well; returns the folder of the run."""
    done = in_two(folder, out, *WAYS[way], "--parallel", parallel)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def in_two(folder, out, *options):
    """Tune in two processes; returns what has become of them."""
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2),
        *("--master-addr", "127.0.0.1", "--master-port", free_port(), "-m", "torchgpt", "finetune"),
        *("--checkpoint", folder / "without dropout", "--out", out, *TUNING, *in_folder(folder, options), *steps(3)),
        *("--device", "cpu", "--time-limit", 60),
    ]
    return subprocess.run(
        list(map(str, words)), cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LORA, "is computed in one process; start it without torchrun, or tune all weights"),
        pytest.param(("--parallel", "tp"), "learned from with ddp and fsdp alone", marks=pytest.mark.long_form),
    ],
)
def test_what_two_processes_cannot_share_is_told_by_the_first(folder, tmp_path, options, message):
    done = in_two(folder, tmp_path / "run", *WAYS["dpo"], *options)
    assert done.returncode != 0
    assert done.stderr.count(message) == 1
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("way", "parallel"),
    [
        ("dpo", "fsdp"),
        *(
            pytest.param(way, parallel, marks=pytest.mark.long_form)
            for way in ("answers, packed", "classify", "reward", "distill", "grpo", "ppo")
            for parallel in ("fsdp", "ddp")
        ),
    ],
)
def test_two_processes_take_the_steps_of_one(folder, tmp_path, way, parallel):
    alone = tune("numpygpt", folder, tmp_path / "alone", "without dropout", *TUNING, *WAYS[way], *steps(3))
    shared = shared_by_two(folder, tmp_path / "shared", way, parallel)
    assert furthest(curve(shared), curve(alone)) <= FLOAT64_SHARED
    assert furthest(told(shared), told(alone)) <= FLOAT64_SHARED
    ours, theirs = (read_checkpoint(path).arrays("model") for path in (shared, alone))
    assert ours.keys() == theirs.keys()
    assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs) <= FLOAT64_SHARED


def test_several_processes_draw_from_the_logits_of_the_first(monkeypatch):
    """Rounding differs between devices, and each process would choose other tokens."""
    monkeypatch.setattr(dist, "broadcast", lambda logits, src: logits.fill_(src + 7))
    config = GPTConfig(3, 4, 4, 1, 1, 0.0, qkv_bias=False)
    for shared, expected in ((True, 7), (False, 1)):
        writer = Writer(lambda ids: torch.ones(*ids.shape, 3), config, "float64", torch.device("cpu"), shared=shared)
        assert np.array_equal(writer.decode(np.zeros((2, 2), int))[0], np.full((2, 3), expected))


@pytest.mark.parametrize(("way", "first"), [("dpo", "numpygpt"), ("ppo", "torchgpt"), ("grpo, lora", "numpygpt")])
def test_either_program_goes_on_with_the_run_of_the_other(folder, tmp_path, way, first):
    """Between two steps on the same answers, too."""
    whole = curve(tune(first, folder, tmp_path / "whole", "base", *TUNING, *WAYS[way], *steps(5)))
    shared = tune(
        first, folder, tmp_path / "shared", "base", *TUNING, *WAYS[way], *steps(3), "--schedule-steps", 5,
        "--eval-every", 1000,
    )  # fmt: skip
    assert run(OTHER[first], "finetune", "--resume", shared, "--steps", 4) == 0
    assert run(first, "finetune", "--resume", shared, "--steps", 5) == 0
    assert furthest(curve(shared)[:3], whole[:3]) == 0
    assert len(curve(shared)) == len(whole)


@pytest.mark.parametrize("way", ["answers, packed", "ppo"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_that_is_stopped_and_resumed_is_the_run_that_never_stopped(folder, tmp_path, program, way):
    """Byte for byte: it is evaluated after the same steps."""
    options = (*TUNING, *WAYS[way], "--eval-every", 3, "--schedule-steps", 6)
    whole = tune(program, folder, tmp_path / "whole", "base", *options, *steps(6))
    stopped = tune(program, folder, tmp_path / "stopped", "base", *options, *steps(3))
    assert run(program, "finetune", "--resume", stopped, "--steps", 6) == 0
    assert curve(stopped) == curve(whole)
    ours, expected = left_by(stopped), left_by(whole)
    assert ours.keys() == expected.keys()
    same = [name for name in ours if ours[name] == expected[name]]
    assert "checkpoint.safetensors" in same or program == "torchgpt"
