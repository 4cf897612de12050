"""The training loop with a backend that computes nothing: what is done after which steps, and what is kept."""

import errno
import math
import os
import re
import shlex
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.numpy

from numpygpt import InputError
from numpygpt.files import LOCK_NAME
from numpygpt.formats.checkpoint import FILE_NAME, read_checkpoint
from numpygpt.sections import Section
from numpygpt.training import earlier
from numpygpt.training import run as run_module
from numpygpt.training.journal import FILE_NAME as LOG_NAME
from numpygpt.training.loop import Every, Plan, train
from numpygpt.training.progress import Progress
from numpygpt.training.run import BEST, TrainingRun
from parity_tests.command import files
from parity_tests.counting_backend import CONFIG, Counting, options_of, started


class Told(Progress):
    """A progress that writes down what the loop tells it."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def write(self, line):
        self.lines.append(line)

    def stepped(self, run, taken, seconds):
        super().stepped(run, taken, seconds)
        self.write(f"{run.step} step")

    def evaluated(self, run, evaluation, seconds):
        self.write(f"{run.step} evaluation")

    def sampled(self, run, text, seconds):
        self.write(f"{run.step} sample")

    def saving(self, run):
        self.write(f"{run.step} save")


def told(run, plan=None):
    progress = Told()
    train(run, plan or Plan.of(run.options), progress)
    return [line for line in progress.lines if not line.endswith("step")]


def saved_step(folder):
    return read_checkpoint(folder).values("run")["step"]


def test_the_plan_of_the_command_begins_and_ends_with_an_evaluation(tmp_path):
    assert told(started(tmp_path)) == [
        "0 evaluation", "2 evaluation", "3 sample", "4 evaluation", "4 save", "5 evaluation", "5 sample", "5 save",
    ]  # fmt: skip
    assert saved_step(tmp_path / "run") == 5


def test_nothing_is_done_twice_after_one_step_and_0_means_never(tmp_path):
    run = started(tmp_path, steps=4, save_every=0, sample_every=0)
    assert told(run) == ["0 evaluation", "2 evaluation", "4 evaluation", "4 save"]


def test_a_checkpoint_that_is_due_at_the_end_is_written_once(tmp_path):
    assert told(started(tmp_path, steps=4, sample_every=0))[-2:] == ["4 evaluation", "4 save"]


def test_nothing_is_done_before_its_first_step(tmp_path):
    every = Every(2, first=4)
    assert told(started(tmp_path, steps=7), Plan(every, every, every)) == [
        "4 evaluation", "4 sample", "4 save", "6 evaluation", "6 sample", "6 save", "7 save",
    ]  # fmt: skip


def test_a_plan_may_begin_at_any_step(tmp_path):
    never = Every(0, first=0, at_the_end=True)
    plan = Plan(evaluations=Every(2, first=1), samples=never, saves=Every(3, first=3), keep_best=False)
    assert told(started(tmp_path), plan) == ["1 evaluation", "3 evaluation", "3 save", "5 evaluation", "5 save"]
    assert sorted(files(tmp_path / "run")) == [FILE_NAME, LOG_NAME]


def test_a_resumed_run_does_what_is_left(tmp_path):
    assert told(started(tmp_path, steps=3)) == ["0 evaluation", "2 evaluation", "3 evaluation", "3 sample", "3 save"]
    run = TrainingRun.resume(Counting, tmp_path / "run", steps=5)
    assert told(run) == ["4 evaluation", "4 save", "5 evaluation", "5 sample", "5 save"]
    assert told(TrainingRun.resume(Counting, tmp_path / "run")) == ["5 save"], "a finished one is only saved"


def test_each_step_has_its_learning_rate(tmp_path):
    run = started(tmp_path, warmup_steps=2, lr=0.5, min_lr=0.25)
    told(run)
    assert run.backend.rates == [run.options.learning_rate(step) for step in range(5)]
    assert run.backend.rates[:3] == [0.25, 0.5, 0.5]


# The best checkpoint


@pytest.mark.parametrize(
    ("val_losses", "best"),
    [([9, 9, 5, 9, 4, 9], 4), ([9, 9, 4, 9, 5, 9], 2), ([9, 9, 5, 9, 5, 9], 2), ([1, 9, 9, 9, 9, 8], 5)],
    ids=["the second", "the first", "equal: the first", "the untrained model does not count"],
)
def test_the_checkpoint_of_the_lowest_validation_loss_is_kept_beside_the_last(tmp_path, monkeypatch, val_losses, best):
    monkeypatch.setattr(Counting, "val_losses", list(map(float, val_losses)))
    run = started(tmp_path)
    told(run)
    assert saved_step(tmp_path / "run" / BEST) == best
    assert saved_step(tmp_path / "run") == 5
    assert read_checkpoint(tmp_path / "run" / BEST).arrays("model")["a"].tolist() == [best]
    assert run.best_step == best


def test_a_resumed_run_remembers_its_best(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "val_losses", [9.0, 9.0, 3.0, 9.0, 4.0, 4.0])
    told(started(tmp_path, steps=3))
    told(TrainingRun.resume(Counting, tmp_path / "run", steps=5))
    assert saved_step(tmp_path / "run" / BEST) == 2


def test_the_best_checkpoint_is_a_run_that_can_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "val_losses", [9.0, 9.0, 3.0, 9.0, 9.0, 9.0])
    told(started(tmp_path))
    shutil.copytree(tmp_path / "run" / BEST, tmp_path / "other")
    run = TrainingRun.resume(Counting, tmp_path / "other")
    assert (run.step, run.backend.weights["a"].tolist()) == (2, [2])
    assert [entry.step for entry in run.history] == [0, 2]


@pytest.mark.parametrize("left", [FILE_NAME, LOCK_NAME])
def test_no_run_is_trained_in_the_folder_of_another_runs_best(tmp_path, monkeypatch, left):
    """That run would replace what is there. It has saved a last checkpoint, or has only the lock of its folder."""
    told(started(tmp_path))
    folder = tmp_path / "run"
    (folder / FILE_NAME).rename(folder / left)
    (tmp_path / "link").symlink_to(folder / BEST)
    before = files(tmp_path)
    monkeypatch.chdir(folder / BEST)
    for named in (folder / BEST, folder / BEST / FILE_NAME, tmp_path / "link", Path()):
        with pytest.raises(InputError, match=f"belongs to the run in {folder}, .*; choose another folder, or go on"):
            TrainingRun.resume(Counting, named)
    with pytest.raises(InputError, match="belongs to the run in"):
        TrainingRun.start(Counting, options_of(tmp_path), CONFIG, folder / BEST, overwrite=True)
    assert files(tmp_path) == before
    (folder / left).unlink()
    assert TrainingRun.resume(Counting, folder / BEST).directory == folder / BEST, "there is no other run"


def test_the_best_of_a_run_that_was_overwritten_goes_with_it(tmp_path):
    told(started(tmp_path))
    before = files(tmp_path)
    options = options_of(tmp_path, eval_every=100)
    other = TrainingRun.start(Counting, options, CONFIG, tmp_path / "run", overwrite=True)
    assert files(tmp_path) == before, "until the first save"
    other.save()
    assert sorted(files(tmp_path / "run")) == [FILE_NAME, LOG_NAME]


@pytest.mark.parametrize("name", ["config.json", "hparams.json", "ckpt.pt"])
def test_a_folder_with_a_model_of_another_program_is_refused_before_the_training(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{}")
    for overwrite in (False, True):
        message = f"^{tmp_path}/run holds a model of another kind, {name} .*, .*; choose another$"
        with pytest.raises(InputError, match=message):
            TrainingRun.start(Counting, options_of(tmp_path), CONFIG, tmp_path / "run", overwrite=overwrite)
    assert list(files(tmp_path / "run")) == [name]


def test_the_commands_that_errors_tell_are_quoted_for_a_shell(tmp_path):
    folder = tmp_path / "Bob's run; ls"
    folder.mkdir()
    run = TrainingRun.start(Counting, options_of(tmp_path), CONFIG, folder)
    run.save_best()
    for told_command in (run._way_back(), refusal(lambda: TrainingRun.resume(Counting, run.save().parent / BEST))):
        lines = told_command.split("such as ")[-1].split("checkpoint: ")[-1].split(" && ")
        assert [shlex.split(line)[0] for line in lines] == ["mkdir", "cp", "numpygpt"]
        assert shlex.split(lines[1])[1] == str(folder / BEST / FILE_NAME)
    assert shlex.split(run._way_back())[-3:-1] == [str(folder), "--lr"]
    told_command = refusal(lambda: TrainingRun.start(Counting, options_of(tmp_path), CONFIG, folder))
    assert f"continue it with --resume {shlex.quote(str(folder))}, " in told_command


def refusal(call):
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


# Earlier checkpoints


def kept(folder):
    """The steps of the earlier checkpoints, in the order of their names. What each holds is checked."""
    paths = sorted((folder / "run" / earlier.FOLDER).iterdir())
    checkpoints = [read_checkpoint(path) for path in paths]
    steps = [checkpoint.values("run")["step"] for checkpoint in checkpoints]
    assert [checkpoint.arrays("model")["a"].tolist() for checkpoint in checkpoints] == [[step] for step in steps]
    assert paths == [earlier.path_of(folder / "run", step) for step in steps]
    return steps


@pytest.mark.parametrize(("keep", "expected"), [(2, [11]), (3, [10, 11]), (99, [*range(1, 12)])])
def test_the_newest_checkpoints_are_kept_under_names_that_sort_by_step(tmp_path, keep, expected):
    run = started(tmp_path, steps=12, save_every=1, keep=keep)
    told(run)
    assert saved_step(tmp_path / "run") == 12
    assert kept(tmp_path) == expected
    assert run.earlier_checkpoints == sorted((tmp_path / "run" / earlier.FOLDER).iterdir())


def test_by_default_the_last_checkpoint_alone_is_kept(tmp_path):
    run = started(tmp_path, save_every=1)
    told(run)
    assert sorted(files(tmp_path / "run")) == [f"{BEST}/{FILE_NAME}", FILE_NAME, LOG_NAME]
    assert run.earlier_checkpoints == []


def test_a_resumed_run_may_keep_more_or_fewer(tmp_path):
    told(started(tmp_path, save_every=1, keep=3))
    assert kept(tmp_path) == [3, 4]
    told(TrainingRun.resume(Counting, tmp_path / "run", steps=7, keep=4))
    assert kept(tmp_path) == [4, 5, 6]
    told(TrainingRun.resume(Counting, tmp_path / "run", steps=8, keep=2))
    assert kept(tmp_path) == [7]
    told(TrainingRun.resume(Counting, tmp_path / "run", steps=9, keep=1))
    assert not (tmp_path / "run" / earlier.FOLDER).exists()


def test_a_step_that_is_saved_twice_is_kept_once(tmp_path):
    run = started(tmp_path, keep=9)
    for _ in range(2):
        run.train_step()
        run.save()
        run.save()
    TrainingRun.resume(Counting, tmp_path / "run").save()
    assert kept(tmp_path) == [1]


def saved_thrice(folder, **options):
    run = started(folder, keep=3, **options)
    for _ in range(3):
        run.train_step()
        run.save()
    return run


def test_a_write_that_comes_back_damaged_replaces_and_removes_nothing(tmp_path, monkeypatch):
    run = saved_thrice(tmp_path)
    before = files(tmp_path)
    save_file = safetensors.numpy.save_file

    def flip_the_last_bit(tensors, path, metadata):
        save_file(tensors, path, metadata=metadata)
        contents = bytearray(path.read_bytes())
        path.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))

    run.train_step()
    monkeypatch.setattr(safetensors.numpy, "save_file", flip_the_last_bit)
    with pytest.raises(InputError, match="what was written reads back differently"):
        run.save()
    assert files(tmp_path) == before
    monkeypatch.undo()
    run.save()
    assert (kept(tmp_path), saved_step(tmp_path / "run")) == ([2, 3], 4)


def test_what_a_killed_process_left_among_the_earlier_ones_or_beside_the_best_goes(tmp_path):
    run = saved_thrice(tmp_path)
    run.save_best()
    for folder in (earlier.FOLDER, BEST):
        (tmp_path / "run" / folder / ".numpygpt-left.unfinished").mkdir()
    run.save()
    assert [path.name for path in (tmp_path / "run").rglob("*.unfinished")] == []


def test_files_of_other_names_are_no_checkpoints_and_stay(tmp_path):
    run = saved_thrice(tmp_path)
    for name in ("notes.txt", "step-2.safetensors", "step-0000000000002.safetensors.old"):
        (tmp_path / "run" / earlier.FOLDER / name).write_text("dear")
    run = TrainingRun.resume(Counting, tmp_path / "run", keep=1)
    run.save()
    assert run.earlier_checkpoints == []
    assert len(list((tmp_path / "run" / earlier.FOLDER).iterdir())) == 3


def test_after_going_back_to_an_earlier_checkpoint_the_later_ones_stay(tmp_path):
    run = saved_thrice(tmp_path)
    for _ in range(2):
        run.train_step()
        run.save()
    assert kept(tmp_path) == [3, 4]
    shutil.copy(earlier.path_of(tmp_path / "run", 3), tmp_path / "run" / FILE_NAME)
    run = TrainingRun.resume(Counting, tmp_path / "run", keep=1)
    run.save()
    assert (kept(tmp_path), saved_step(tmp_path / "run")) == ([4], 3)


def test_an_earlier_checkpoint_starts_a_folder_of_its_own(tmp_path):
    """In the folder that it is in, it would go on as another run: the one whose last checkpoint is there."""
    saved_thrice(tmp_path)
    path = earlier.path_of(tmp_path / "run", 2)
    before = files(tmp_path)
    message = f"^{path} is not the last checkpoint of a run, .*; copy it to a new folder as {FILE_NAME}, and resume"
    with pytest.raises(InputError, match=message):
        TrainingRun.resume(Counting, path)
    assert files(tmp_path) == before
    (tmp_path / "other").mkdir()
    shutil.copy(path, tmp_path / "other" / FILE_NAME)
    run = TrainingRun.resume(Counting, tmp_path / "other" / FILE_NAME)
    assert (run.step, run.directory) == (2, tmp_path / "other")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV, errno.EMLINK])
def test_a_file_system_without_second_names_gets_a_copy(tmp_path, monkeypatch, number):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    saved_thrice(tmp_path)
    assert kept(tmp_path) == [1, 2]


def test_a_last_checkpoint_that_is_a_link_is_kept_as_what_it_leads_to(tmp_path):
    run = saved_thrice(tmp_path)
    (tmp_path / "run" / FILE_NAME).rename(tmp_path / "elsewhere")
    (tmp_path / "run" / FILE_NAME).symlink_to("../elsewhere")
    run.train_step()
    run.save()
    assert kept(tmp_path) == [2, 3]


def test_a_last_checkpoint_that_somebody_removed_costs_no_later_one(tmp_path):
    run = saved_thrice(tmp_path)
    (tmp_path / "run" / FILE_NAME).unlink()
    run.train_step()
    run.save()
    assert (kept(tmp_path), saved_step(tmp_path / "run")) == ([1, 2], 4)


def test_an_earlier_checkpoint_that_cannot_be_removed_is_named(tmp_path, monkeypatch):
    run = saved_thrice(tmp_path)
    run.train_step()

    def refuse(path, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "unlink", refuse)
    path = earlier.path_of(tmp_path / "run", 1)
    with pytest.raises(InputError, match=f"^cannot remove the earlier checkpoint {path}: Permission denied$"):
        run.save()
    assert saved_step(tmp_path / "run") == 4


def test_the_checkpoints_of_a_run_that_is_overwritten_go_when_the_new_one_stands(tmp_path, monkeypatch):
    """They do not go before: not if the first save fails, and not for a best one beside another run's last one."""
    saved_thrice(tmp_path).save_best()
    before = files(tmp_path)
    other = TrainingRun.start(Counting, options_of(tmp_path, lr=0.5), CONFIG, tmp_path / "run", overwrite=True)
    other.train_step()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            other.save()
    assert files(tmp_path) == before
    other.evaluate()
    other.save_best()
    assert sorted(files(tmp_path / "run")) == [f"{BEST}/{FILE_NAME}", FILE_NAME]
    for folder in (tmp_path / "run", tmp_path / "run" / BEST):
        assert read_checkpoint(folder).values("run")["options"]["lr"] == 0.5


# A run that has diverged


def test_losses_that_are_not_finite_end_the_run_and_save_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "val_losses", [9.0, 9.0, 9.0, 9.0, math.nan])
    run = started(tmp_path, lr=0.5, save_every=3)
    message = "after step 4 the losses are 6.0 and nan; the checkpoint of step 3 is as it was"
    with pytest.raises(InputError, match=f"^{message}"):
        told(run)
    assert [entry.step for entry in run.history] == [0, 2]
    assert saved_step(tmp_path / "run") == 3


@pytest.mark.parametrize(
    ("eval_every", "way_back"),
    [
        (100, "nothing was saved: start again with a lower learning rate, such as --lr 0.05"),
        (
            2,
            "the checkpoint of step 2 is as it was: go on from there .* mkdir (.*/best-of-run) && "
            r"cp .*/run/best/checkpoint.safetensors \1 && numpygpt train --resume \1 --lr 0.05",
        ),
    ],
    ids=["nothing", "the best"],
)
def test_the_way_back_is_to_what_was_saved(tmp_path, monkeypatch, eval_every, way_back):
    monkeypatch.setattr(Counting, "val_losses", [9.0, 9.0, 9.0, 9.0, 9.0, math.nan])
    run = started(tmp_path, lr=0.5, eval_every=eval_every, save_every=0)
    with pytest.raises(InputError, match=f"^after step 5 the losses are 6.0 and nan; {way_back}$"):
        told(run)


def test_a_model_whose_loss_is_not_finite_is_not_saved_over_the_last(tmp_path, monkeypatch):
    """Its weights may be finite but too large, so that nobody could go on from them."""
    told(started(tmp_path, steps=1, lr=0.5))
    before = files(tmp_path)
    monkeypatch.setattr(Counting, "val_losses", [math.inf] * 100)
    run = TrainingRun.resume(Counting, tmp_path / "run", steps=9)
    run.train_step()
    message = (
        f"after step 2 the loss is inf; the checkpoint of step 1 is as it was: go on from there with a lower learning "
        f"rate, such as numpygpt train --resume {tmp_path / 'run'} --lr 0.05"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run.save()
    assert files(tmp_path) == before


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_not_saved_over_the_last(tmp_path, value):
    """This holds even for weights that no loss depends on, such as the vector of a token that never occurs."""
    run = started(tmp_path)
    run.train_step()
    run.save()
    before = files(tmp_path)
    run.train_step()
    run.backend.weights["b"][1] = value
    message = "after step 2 the run cannot be saved, and values are not finite in b; the checkpoint of step 1 is as"
    with pytest.raises(InputError, match=f"^{message}"):
        run.save()
    assert files(tmp_path) == before


def test_a_step_that_its_backend_refuses_says_how_to_go_on(tmp_path):
    class Refusing(Counting):
        def step(self, learning_rate):
            raise InputError("the loss is nan at optimizer step 1")

    run = started(tmp_path, Refusing)
    with pytest.raises(InputError, match=r"^the loss is nan at optimizer step 1; nothing was saved: start again"):
        run.train_step()
    assert run.step == 0


# Writing in the background


class Copying(Counting):
    """A backend whose state no step changes, so that it is written while steps go on."""

    state_is_a_copy = True

    def state(self):
        weights = {name: array.copy() for name, array in self.weights.items()}
        return {"model": Section({"config": CONFIG.to_dict(), "tokenizer": "bytes"}, weights)}


def test_a_run_goes_on_while_its_state_is_written(tmp_path, monkeypatch):
    may_write, write = threading.Event(), run_module.write_checkpoint

    def waiting(*arguments):
        assert may_write.wait(60)
        return write(*arguments)

    monkeypatch.setattr(run_module, "write_checkpoint", waiting)
    run = started(tmp_path, Copying, keep=2)
    for _ in range(2):
        run.train_step()
    run.save()
    for _ in range(2):
        run.train_step()
    assert (run.saved_step, files(run.directory)) == (None, {})
    may_write.set()
    run.wait()
    assert (run.saved_step, saved_step(run.directory)) == (2, 2)
    assert read_checkpoint(run.directory).arrays("model")["a"].tolist() == [2]
    run.save()
    run.wait()
    assert (kept(tmp_path), saved_step(run.directory)) == ([2], 4)


@pytest.mark.parametrize("moment", ["the next save", "the end"])
def test_what_goes_wrong_in_the_background_is_said_and_the_last_good_checkpoint_stays(tmp_path, monkeypatch, moment):
    run = started(tmp_path, Copying)
    run.train_step()
    run.save()
    run.wait()
    before = files(run.directory)

    def full(*arguments):
        raise InputError("cannot write the checkpoint: No space left on device")

    monkeypatch.setattr(run_module, "write_checkpoint", full)
    run.train_step()
    run.save()
    run.train_step()
    with pytest.raises(InputError, match=r"^cannot write the checkpoint: No space left on device$"):
        run.save() if moment == "the next save" else run.wait()
    assert files(run.directory) == before
    monkeypatch.undo()
    run.save()
    run.wait()
    assert saved_step(run.directory) == 3


def test_a_run_that_ends_waits_for_what_is_written_and_says_what_goes_wrong(tmp_path, monkeypatch):
    write = run_module.write_checkpoint

    def fails_at_the_end(directory, sections, *rest):
        if sections["run"].values["step"] == 5:
            raise InputError("cannot write the checkpoint: No space left on device")
        return write(directory, sections, *rest)

    monkeypatch.setattr(run_module, "write_checkpoint", fails_at_the_end)
    monkeypatch.setattr(Counting, "val_losses", [9.0, 9.0, 3.0, 9.0, 9.0, 9.0])
    with pytest.raises(InputError, match="No space left on device"):
        told(started(tmp_path, Copying))
    assert saved_step(tmp_path / "run") == 4


def test_what_the_run_keeps_is_of_the_state_when_it_was_saved(tmp_path):
    run = started(tmp_path)
    told(run)
    section = read_checkpoint(tmp_path / "run").values("run")
    assert section["options"] == run.options.to_dict()
    assert [entry["step"] for entry in section["history"]] == [0, 2, 4, 5]
    assert section["tokens_seen"] == 5 * run.tokens_per_step == run.tokens_seen
    assert run.options == replace(options_of(tmp_path), schedule_steps=5, weight_decay=0.1)
