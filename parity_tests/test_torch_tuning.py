"""`finetune --objective` in both programs: the same steps in float64, and each goes on with the other's run.

The slice that the suite runs takes 6 steps of each objective; the long form takes 50.
"""

import json

import pytest

from numpygpt.training.run import TrainingRun
from parity_tests.command import write_text
from parity_tests.tolerances import FLOAT64_CURVE
from parity_tests.torch_command import PROGRAMS, QUIET, SIZES, curve, furthest, left_by, log_of, run

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
    "answers": ("--objective", "next-token", "--data", "records.jsonl", *PLAIN, "--label-smoothing", 0.1),
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
}
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
    for name, seed in (("first", 1), ("second", 2)):
        assert run("numpygpt", "train", "--text", text, "--out", folder / name, *SMALL, "--seed", seed) == 0
    few = ("--steps", 2, "--batch-size", 4, *QUIET)
    for out, base, way in (("base", "first", "answers"), ("other", "second", "answers")):
        assert tune("numpygpt", folder, out, base, *WAYS[way], *few) is not None
    assert tune("numpygpt", folder, "judge", "base", *WAYS["reward"], *few) is not None
    return folder


def tune(program, folder, out, base, *options):
    """Run `finetune` in the folder of the records, which has to go well; returns the folder of the run."""
    files = {"records.jsonl", "pairs.json", "labels.csv", "judge", "other"}
    words = [folder / word if word in files else word for word in options]
    assert run(program, "finetune", "--checkpoint", folder / base, "--out", folder / out, *words) == 0
    return folder / out


def steps(count):
    return ("--steps", count)


def assert_both_take_the_same_steps(folder, tmp_path, way, count):
    options = (*TUNING, *WAYS[way], *steps(count))
    runs = [tune(program, folder, tmp_path / program, "base", *options) for program in PROGRAMS]
    expected, ours = map(curve, runs)
    assert min(norm for _, norm in expected) > 0
    assert furthest(ours, expected) <= FLOAT64_CURVE
    facts = [[line.get("reward") for line in log_of(path)] for path in runs]
    assert facts[0] == facts[1]


@pytest.mark.parametrize("way", WAYS)
def test_both_programs_take_the_same_steps(folder, tmp_path, way):
    assert_both_take_the_same_steps(folder, tmp_path, way, STEPS)


@pytest.mark.long_form
@pytest.mark.parametrize("way", WAYS)
def test_both_programs_take_the_same_fifty_steps(folder, tmp_path, way):
    assert_both_take_the_same_steps(folder, tmp_path, way, LONG)


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
