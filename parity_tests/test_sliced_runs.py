"""Runs of torchgpt that save in slices on the way: what a kill leaves, what a resume takes up, and what goes when."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from numpygpt.formats.checkpoint import read_checkpoint, write_checkpoint
from numpygpt.formats.slices import read_slices
from numpygpt.model.scheme import Scheme
from numpygpt.sections import Section
from numpygpt.training import sliced
from numpygpt.training.loss_scale import LossScale
from numpygpt.training.run import TrainingRun
from parity_tests.command import write_text
from parity_tests.torch_command import EXACT, left_by, log_of, refusal, rewritten, run, sections_of
from torchgpt.engine.backend import SECTION, TorchBackend

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")  # whole runs are compared

SLICED = ("--text", "text.txt", *EXACT, "--sharded", "--save-every", 2)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with text.txt in it."""
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    return tmp_path


def killed(monkeypatch, step, *arguments):
    """Train in the folder "run", and end without another save when this step is taken."""

    def die(training):
        if training.step == step:
            raise KeyboardInterrupt
        return ""

    with monkeypatch.context() as patched:
        patched.setattr(TrainingRun, "sample", die)
        assert run("torchgpt", "train", *SLICED, *arguments, "--sample-every", 1, "--out", "run") == 130


def test_a_run_goes_on_from_its_slices_as_if_it_had_not_been_killed(folder, monkeypatch):
    assert run("torchgpt", "train", *SLICED, "--steps", 8, "--out", "whole") == 0
    killed(monkeypatch, 5, "--steps", 8)
    assert sliced.steps(folder / "run") == [4]
    assert not (folder / "run" / "checkpoint.safetensors").exists()
    assert run("torchgpt", "train", "--resume", "run", "--sample-every", 0) == 0
    ours, theirs = (sections_of(folder / name) for name in ("run", "whole"))
    assert all(ours[name][1] == theirs[name][1] for name in theirs)  # the arrays
    assert [line["loss"] for line in log_of(folder / "run")] == [line["loss"] for line in log_of(folder / "whole")]
    assert sliced.steps(folder / "run") == []


def test_as_many_slices_are_kept_as_checkpoints(folder, monkeypatch):
    killed(monkeypatch, 9, "--steps", 12, "--keep", 3)
    assert sliced.steps(folder / "run") == [4, 6, 8]


def test_a_run_that_is_overwritten_leaves_no_slices(folder, monkeypatch):
    """Slices of later steps would be taken for the new run's last checkpoint."""
    killed(monkeypatch, 9, "--steps", 12)
    killed(monkeypatch, 5, "--steps", 12, "--overwrite", "--eval-every", 1, "--seed", 7)
    assert sliced.steps(folder / "run") == [4]
    assert read_slices(sliced.path_of(folder / "run", 4)).values("run")["options"]["seed"] == 7


def test_damaged_slices_are_refused_and_the_checkpoint_before_them_is_left(folder, monkeypatch, capsys):
    killed(monkeypatch, 7, "--steps", 8, "--keep", 2)
    newest = sliced.path_of(folder / "run", 6)
    (file,) = newest.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    before = left_by(folder)
    line = refusal(capsys, "torchgpt", "train", "--resume", "run")
    assert "is damaged: its SHA-256" in line
    assert line.endswith("remove run/slices/step-0000000000006 to go on from the checkpoint before it")
    assert left_by(folder) == before
    (newest / "values.json").write_text(json.dumps({"values": {}, "sha256": {}}))
    assert "run/slices/step-0000000000006" in refusal(capsys, "torchgpt", "train", "--resume", "run")


def test_a_whole_checkpoint_without_a_step_is_refused_beside_slices(folder, monkeypatch, capsys):
    assert run("torchgpt", "train", *SLICED, "--steps", 3, "--out", "run") == 0
    rewritten(folder / "run", lambda sections: sections["run"].values.update(step="three"))
    sliced.path_of(folder / "run", 2).mkdir(parents=True)
    assert "step is 'three'; expected int" in refusal(capsys, "torchgpt", "train", "--resume", "run")


@pytest.mark.parametrize(("scheme", "expected"), [("ddp=2", "restored"), ("tp=2", "seeded with 7")])
def test_dropout_goes_on_only_under_the_scheme_that_drew_it(folder, scheme, expected):
    """The processes of tp have to draw the same masks, and those of ddp draw others."""
    done, state = [], np.zeros(8, np.uint8)
    values = {"loss_scale": {}, "scheme": scheme}
    write_checkpoint(folder, {SECTION: Section(values, {"masks.0": state, "masks.1": state})})
    backend = SimpleNamespace(
        scale=LossScale(None),
        team=SimpleNamespace(rank=1, size=2),
        model=SimpleNamespace(scheme=Scheme(ddp=2)),
        optimizer=SimpleNamespace(steps=3),
        options=SimpleNamespace(seed=4),
        alone_on_cpu=False,
        _mask_state=lambda: state,
        _set_mask_state=lambda state: done.append("restored"),
        _seed_masks=lambda seed: done.append(f"seeded with {seed}"),
    )
    TorchBackend._load_own(backend, read_checkpoint(folder))
    assert done == [expected]
