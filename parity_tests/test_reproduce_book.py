"""The book's chapter 5: its figures in NumPy alone, and its whole procedure on a small model against PyTorch."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import numpygpt
import torchgpt
from numpygpt.data.texts import python_reference_text, split_text
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import FILE_NAME
from numpygpt.model.config import GPTConfig
from numpygpt.pictures.figure import PALETTE
from numpygpt.pictures.temperatures import plot_temperatures
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.training.corpus import TRAIN_SHARE
from numpygpt.training.options import Options
from numpygpt.training.run import TrainingRun
from parity_tests.tolerances import FLOAT64_CURVE, FLOAT64_NORMWISE

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")  # whole runs are compared

SCRIPTS = Path(__file__).parents[1] / "scripts"
BACKENDS = ("numpy", "torch")
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(SCRIPTS))
    script = import_module("reproduce_book")
    records = import_module("book.record")
    figures = import_module("book.figures")
    for backend in BACKENDS:
        import_module(f"book.{backend}_listings")

BYTES = get_tokenizer("bytes")
CONFIG = GPTConfig(vocab_size=256, context_length=10, emb_dim=12, n_heads=3, n_layers=2, drop_rate=0.1, qkv_bias=False)
BATCHES_IN_AN_EPOCH = 8


def options_for(batches_in_an_epoch: int, steps: int, folder: Path) -> Options:
    """The book's options on a text of bytes, with so many training batches; a tenth of the text is for validation."""
    windows = batches_in_an_epoch * script.OPTIONS.batch_size
    characters = python_reference_text()[: math.ceil((windows * CONFIG.context_length + 1) / TRAIN_SHARE)]
    text = folder / "text.txt"
    text.write_bytes(characters.encode("ascii", "replace"))
    return replace(script.OPTIONS, tokenizer="bytes", text=(str(text),), steps=steps)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """The options of a short run of an epoch and two steps, which has one sample and two evaluations."""
    return options_for(BATCHES_IN_AN_EPOCH, BATCHES_IN_AN_EPOCH + 2, tmp_path_factory.mktemp("options"))


@pytest.fixture(autouse=True)
def no_watch_over_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off tqdm's monitor thread, which may warn under load: warnings are errors here."""
    monkeypatch.setattr(script.tqdm, "monitor_interval", 0)


def trained(name: str, options: Options, directory: Path):
    """The run and the record of a backend after all steps."""
    run, record = started(name, options, directory), records.Record(name, 0.0)
    script.train_as_in_the_book(run, record, script.Report())
    return run, record


def started(name: str, options: Options, directory: Path) -> TrainingRun:
    return TrainingRun.start(script.new_listings(name, BYTES).training, options, CONFIG, directory)


def resumed(name: str, options: Options, directory: Path):
    """The run and its record, as the script resumes them."""
    listings = script.new_listings(name, BYTES)
    return script.start_or_resume(listings, options, CONFIG, directory, records.Record(name, 0.0), overwrite=False)


@pytest.fixture(scope="module")
def in_one_go(without_checks_of_annotations, options, tmp_path_factory):
    """{backend: its run and record}, for runs that were never stopped."""
    return {name: trained(name, options, tmp_path_factory.mktemp(name)) for name in BACKENDS}


TRAIN = """
import sys
from pathlib import Path

import reproduce_book as script
from numpygpt.model.config import GPTConfig
from numpygpt.training.options import Options

name, directory = sys.argv[1], Path(sys.argv[2])
listings = script.new_listings(name, script.get_tokenizer("bytes"))
run = script.TrainingRun.start(listings.training, {options!r}, {config!r}, directory)
script.train_as_in_the_book(run, script.Record(name, 0.0), script.Report())
assert name == "torch" or "torch" not in sys.modules
"""


def in_a_process_of_its_own(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        check=False,
    )


def trained_in_other_processes(options: Options, config: GPTConfig, directory: Path):
    """The records of both backends' runs, without the checks of annotations, which take as long as twenty steps."""
    code = TRAIN.format(options=options, config=config)
    for name in BACKENDS:
        process = in_a_process_of_its_own(code, name, directory / name)
        assert process.returncode == 0, process.stderr
    return [records.Record.load(directory / name) for name in BACKENDS]


def losses(record) -> dict[str, np.ndarray]:
    evaluations = record.evaluations
    return {
        "step": np.array(record.step_losses),
        **{key: np.array([entry[key] for entry in evaluations]) for key in ("train_loss", "val_loss")},
    }


def largest_difference(ours, theirs) -> float:
    ours, theirs = losses(ours), losses(theirs)
    assert [len(series) for series in ours.values()] == [len(series) for series in theirs.values()]
    return max(np.abs(ours[key] - theirs[key]).max() for key in ours)


# The book's own sizes, in NumPy alone

UNTRAINED = """
import sys
from pathlib import Path

import reproduce_book as script

directory, report = Path(sys.argv[1]), script.Report()
listings = script.new_listings("numpy", script.get_tokenizer("gpt2"))
listings.manual_seed(script.SEED)
model = listings.new_model(script.CONFIG)
text = listings.write(model, script.figures.START, 10)
report.figure("untrained, greedy 10 tokens", text, script.figures.UNTRAINED_TEXT)
script.six_probabilities(listings, report, model)
_, validation = script.split_text(script.read_text(script.find_verdict()), script.TRAIN_SHARE)
loss = listings.loader_loss(listings.loader(validation, 2, script.CONFIG.context_length, training=False), model)
books = script.figures.UNTRAINED_VALIDATION_LOSS
report.figure("untrained validation loss", str(loss), str(books), abs(loss - books) <= script.SAME_LOSS)
script.chapter_5_nine_words(listings, report, directory)
assert "torch" not in sys.modules
sys.exit(report.conclude())
"""

FIRST_STEP = """
import sys
from dataclasses import replace
from pathlib import Path

import reproduce_book as script

directory, report = Path(sys.argv[1]), script.Report()
text_file = script.find_verdict()
listings = script.new_listings("numpy", script.get_tokenizer("gpt2"))
script.chapter_5_before_training(listings, report, script.read_text(text_file))
options = replace(script.OPTIONS, text=(str(text_file),), steps=1)
script.TrainingRun.save = lambda run: directory  # it would be 2 GB that nobody reads
run = script.TrainingRun.start(listings.training, options, script.CONFIG, directory)
script.train_as_in_the_book(run, script.Record("numpy", 0.0), report)
assert "torch" not in sys.modules
sys.exit(report.conclude())
"""


def test_figures_of_the_untrained_model_at_full_size_without_torch(tmp_path):
    process = in_a_process_of_its_own(UNTRAINED, tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "10 figures compared with the book: none differ" in process.stdout


@pytest.mark.long_form
def test_the_first_step_and_all_untrained_figures_at_full_size_without_torch(tmp_path):
    process = in_a_process_of_its_own(FIRST_STEP, tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "Ep 1 (Step 000000): Train loss 9.781, Val loss 9.933  [same as the book]" in process.stdout
    assert "12 figures compared with the book: none differ" in process.stdout


SMALL_BOOK = """
import signal
import sys
from dataclasses import replace
from pathlib import Path

import reproduce_book as script
from numpygpt.training.run import TrainingRun

sizes = {"context_length": 64, "emb_dim": 12, "n_heads": 3, "n_layers": 1}
script.CONFIG = script.CHAPTER_4_CONFIG = replace(script.CONFIG, **sizes)
script.figures.EPOCHS = 1
story = Path(sys.argv.pop())  # so much of it that an epoch has 9 batches too
story.write_text(script.read_text(script.find_verdict())[:5600])
script.find_verdict = lambda text: story
train_step, step_to_interrupt = TrainingRun.train_step, int(sys.argv.pop())

def step_with_ctrl_c(run):
    if run.step + 1 == step_to_interrupt:
        signal.raise_signal(signal.SIGINT)
    return train_step(run)

TrainingRun.train_step = step_with_ctrl_c
status = script.main(sys.argv[1:])
assert "torch" in sys.argv or "torch" not in sys.modules
sys.exit(status)
"""


def test_the_whole_command_on_a_small_model(tmp_path):
    """Both backends print the same. Ctrl-C stops NumPy's in step 4, and the same command goes on."""

    def run(name: str, *options: str, step_to_interrupt: int = 0) -> subprocess.CompletedProcess[str]:
        arguments = ("--backend", name, "--out", tmp_path / name, *options)
        return in_a_process_of_its_own(SMALL_BOOK, *arguments, str(step_to_interrupt), tmp_path / "story.txt")

    stopped = run("numpy", "--overwrite", step_to_interrupt=4)
    assert stopped.returncode == 130, stopped.stderr
    assert "after step 4 of 9; the same command without --overwrite goes on from there" in stopped.stdout
    assert re.search(r"step 4/9: .* loss=", stopped.stderr), "the progress bar"

    for name in BACKENDS:
        process = run(name)
        assert process.returncode == 1, process.stderr  # the book's model is larger, so some figures differ
        for picture in ("losses.png", "temperatures.png"):
            assert (tmp_path / name / picture).read_bytes().startswith(b"\x89PNG")
    ours, theirs = (records.Record.load(tmp_path / name) for name in BACKENDS)
    assert (len(ours.step_losses), len(ours.evaluations), len(ours.samples)) == (9, 2, 1)
    assert largest_difference(ours, theirs) <= script.SAME_LOSS
    assert records.printed(ours) == records.printed(theirs)
    assert {"characters", "untrained, greedy 10 tokens", "trained, greedy 25 tokens"} <= ours.figures.keys()


# A small model, loss by loss


def test_60_steps_with_dropout_are_pytorchs(tmp_path):
    """The NumPy run, in its own process, does not import torch."""
    ours, theirs = trained_in_other_processes(options_for(25, 60, tmp_path), CONFIG, tmp_path)
    assert (len(ours.step_losses), len(ours.evaluations), len(ours.samples)) == (60, 12, 2)
    assert largest_difference(ours, theirs) <= script.SAME_LOSS
    assert ours.samples == theirs.samples


def test_200_steps_in_float64_without_dropout_are_pytorchs(tmp_path):
    options = replace(options_for(90, 200, tmp_path), dtype="float64")
    ours, theirs = trained_in_other_processes(options, replace(CONFIG, drop_rate=0.0), tmp_path)
    assert len(ours.step_losses) == 200
    assert largest_difference(ours, theirs) <= FLOAT64_CURVE


def test_the_books_function_goes_through_the_same_draws(options, tmp_path, capsys):
    """In both packages, `train_model_simple`, called as in the book, prints what the script's run prints."""
    options = replace(options, steps=BATCHES_IN_AN_EPOCH)
    run, _ = trained("numpy", options, tmp_path)
    printed = capsys.readouterr().out
    parts = split_text(Path(options.text[0]).read_text(), TRAIN_SHARE)
    schedule = {"num_epochs": 1, "eval_freq": 5, "eval_iter": 5, "start_context": figures.START, "tokenizer": BYTES}

    def loaders(package, **rng):
        sizes = (options.batch_size, CONFIG.context_length, CONFIG.context_length)
        return (
            package.create_dataloader_v1(part, *sizes, training, training, tokenizer=BYTES, **rng)
            for part, training in zip(parts, (True, False), strict=True)
        )

    rng = TorchGenerator(script.SEED)
    model = numpygpt.GPTModel(CONFIG, seed=rng)
    optimizer = numpygpt.AdamW(model, lr=options.lr, weight_decay=options.weight_decay)
    result = numpygpt.train_model_simple(model, *loaders(numpygpt, rng=rng), optimizer, **schedule, rng=rng)
    assert result[0] == [entry.train_loss for entry in run.history]
    assert result[1] == [entry.val_loss for entry in run.history]
    assert result[2] == [entry.tokens_seen for entry in run.history]

    torch.manual_seed(script.SEED)
    twin = torchgpt.GPTModel(CONFIG)
    twins = torch.optim.AdamW(twin.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    torchgpt.train_model_simple(twin, *loaders(torchgpt), twins, "cpu", **schedule)

    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == lines[3:]
    assert all(f"\n{line}  [" in printed for line in lines)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**32),
    temperature=st.floats(0.1, 10),
    top_k=st.none() | st.integers(1, 300),
    prompt=st.binary(min_size=1, max_size=15),
    rows=st.integers(1, 3),
)
def test_sampled_tokens_are_pytorchs(seed, temperature, top_k, prompt, rows):
    """This holds also past context_length, where the window slides."""
    model = numpygpt.GPTModel(CONFIG, seed=seed)
    idx = np.array([list(prompt)] * rows)
    sampling = {"max_new_tokens": 9, "context_size": CONFIG.context_length, "temperature": temperature, "top_k": top_k}
    ours = numpygpt.generate(model, idx, **sampling, rng=TorchGenerator(seed))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        theirs = torchgpt.generate(torchgpt.to_torch(model), torch.from_numpy(idx), **sampling)
    assert ours.tolist() == theirs.tolist()


# Stopping and going on


@pytest.mark.parametrize("stopped_after", [3, BATCHES_IN_AN_EPOCH, BATCHES_IN_AN_EPOCH + 1])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_stopped_run_goes_on_bit_for_bit(name, stopped_after, options, in_one_go, tmp_path, monkeypatch):
    stopped = started(name, options, tmp_path)
    take_step = stopped.train_step

    def step_with_ctrl_c() -> float:
        if stopped.step + 1 == stopped_after:
            signal.raise_signal(signal.SIGINT)
        return take_step()

    monkeypatch.setattr(stopped, "train_step", step_with_ctrl_c)
    script.train_as_in_the_book(stopped, records.Record(name, 0.0), script.Report())
    assert stopped.step == stopped_after

    again, second = resumed(name, options, tmp_path)
    script.train_as_in_the_book(again, second, script.Report())
    run, record = in_one_go[name]
    assert second.step_losses == record.step_losses
    assert second.samples == record.samples
    assert second.evaluations == [asdict(entry) for entry in run.history]
    assert_same_weights(again, run)
    assert records.Record.load(tmp_path) == second


def assert_same_weights(ours: TrainingRun, expected: TrainingRun) -> None:
    ours, expected = (run.backend.state()["model"].arrays for run in (ours, expected))
    assert list(ours) == list(expected)
    for parameter, array in expected.items():
        assert np.array_equal(array, ours[parameter]), parameter


@pytest.mark.parametrize("name", BACKENDS)
def test_a_crash_loses_no_more_than_an_epoch(name, options, in_one_go, tmp_path, monkeypatch):
    crashing = started(name, options, tmp_path)
    take_step = crashing.train_step

    def step_with_a_crash() -> float:
        if crashing.step > BATCHES_IN_AN_EPOCH:
            raise KeyboardInterrupt
        return take_step()

    monkeypatch.setattr(crashing, "train_step", step_with_a_crash)
    with pytest.raises(KeyboardInterrupt):
        script.train_as_in_the_book(crashing, records.Record(name, 0.0), script.Report())

    again, second = resumed(name, options, tmp_path)
    assert (again.step, len(second.samples)) == (BATCHES_IN_AN_EPOCH, 1)
    assert second.peak_memory_bytes > 0
    script.train_as_in_the_book(again, second, script.Report())
    run, record = in_one_go[name]
    assert (second.step_losses, second.samples) == (record.step_losses, record.samples)
    assert second.evaluations == [asdict(entry) for entry in run.history]


@pytest.fixture(scope="module")
def losses_of_steps(without_checks_of_annotations, options, tmp_path_factory):
    """The losses of a run in NumPy that only takes steps."""
    run = started("numpy", options, tmp_path_factory.mktemp("steps"))
    return [run.train_step().loss for _ in range(options.steps)]


@pytest.mark.parametrize("stopped_after", [0, 3, BATCHES_IN_AN_EPOCH])
@pytest.mark.parametrize(("first", "second"), [BACKENDS, BACKENDS[::-1]])
def test_a_run_that_one_backend_has_begun_is_continued_by_the_other(
    first, second, stopped_after, options, losses_of_steps, tmp_path
):
    """It has the same batches and dropout masks, so it ends as if one of them had done all steps."""
    begun = started(first, options, tmp_path)
    losses = [begun.train_step().loss for _ in range(stopped_after)]
    begun.save()
    begun.wait()
    run = TrainingRun.resume(script.new_listings(second, BYTES).training, tmp_path)
    losses += [run.train_step().loss for _ in range(options.steps - stopped_after)]
    assert np.abs(np.subtract(losses, losses_of_steps)).max() <= script.SAME_LOSS
    assert len(set(losses)) == options.steps


def test_no_time_counts_the_saving(options, tmp_path, monkeypatch):
    run, record = started("numpy", options, tmp_path), records.Record("numpy", 0.0)
    pause, saved, save = 60.0, [], TrainingRun.save
    clock = time.perf_counter

    def slow_save(run):
        saved.append(run.step)
        return save(run)

    monkeypatch.setattr(TrainingRun, "save", slow_save)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + pause * len(saved))
    script.train_as_in_the_book(run, record, script.Report())
    assert saved == [BATCHES_IN_AN_EPOCH, options.steps]
    assert record.training_seconds < pause
    assert max(record.step_seconds) < pause


@pytest.mark.parametrize("name", BACKENDS)
def test_another_run_in_the_folder_is_refused_and_kept(name, options, in_one_go):
    run, record = in_one_go[name]
    listings, other = script.new_listings(name, BYTES), replace(options, lr=1e-3)
    checkpoint = (run.directory / FILE_NAME).read_bytes()
    start_or_resume = partial(script.start_or_resume, listings, other, CONFIG, run.directory, record)
    with pytest.raises(InputError, match="holds another run than the book's; replace it with --overwrite"):
        start_or_resume(overwrite=False)
    assert (run.directory / FILE_NAME).read_bytes() == checkpoint
    fresh, _ = start_or_resume(overwrite=True)
    assert fresh.step == 0


@pytest.mark.parametrize("name", BACKENDS)
def test_a_finished_run_is_taken_up_and_kept_as_it_was(name, options, tmp_path, capsys):
    whole_epochs = replace(options, steps=BATCHES_IN_AN_EPOCH)
    run, record = trained(name, whole_epochs, tmp_path)
    first = capsys.readouterr().out
    again, kept = resumed(name, whole_epochs, tmp_path)
    script.train_as_in_the_book(again, kept, script.Report())
    assert capsys.readouterr().out == first
    assert (again.step, kept.step_losses, kept.samples) == (run.step, record.step_losses, record.samples)


@pytest.mark.parametrize("name", BACKENDS)
def test_fewer_epochs_than_are_done_are_refused(name, options, in_one_go):
    run, _ = in_one_go[name]
    fewer = replace(options, steps=options.steps - 1)
    with pytest.raises(InputError, match=f"steps is {fewer.steps}, but the run in .* has done {options.steps}"):
        resumed(name, fewer, run.directory)


@pytest.mark.parametrize("contents", [b"", b"no checkpoint", None], ids=["empty", "other", "truncated"])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_damaged_checkpoint_is_refused_and_kept(name, contents, options, in_one_go, tmp_path):
    run, _ = in_one_go[name]
    damaged = (run.directory / FILE_NAME).read_bytes()[:-100] if contents is None else contents
    (tmp_path / FILE_NAME).write_bytes(damaged)
    with pytest.raises(InputError, match="checkpoint"):
        resumed(name, options, tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == damaged


def test_a_record_that_was_written_before_its_checkpoint_is_cut_to_it(options, in_one_go, tmp_path):
    run, record = in_one_go["numpy"]
    shutil.copytree(run.directory, tmp_path, dirs_exist_ok=True)
    replace(record, step_losses=[*record.step_losses, 1.0], samples=[*record.samples, "more"]).save(tmp_path)
    _, cut = resumed("numpy", options, tmp_path)
    assert (cut.step_losses, cut.samples) == (record.step_losses, record.samples)


def test_a_run_by_the_other_backend_keeps_its_times_to_itself(options, in_one_go):
    """The loop could continue it, but then the record would hold the times of both."""
    run, _ = in_one_go["numpy"]
    with pytest.raises(InputError, match="holds a run by numpy, whose times would be mixed with those of torch"):
        resumed("torch", options, run.directory)


def test_a_run_that_was_stopped_before_its_first_step_has_no_record_and_needs_none(options, tmp_path):
    started("numpy", options, tmp_path).save()
    run, record = resumed("numpy", options, tmp_path)
    assert (run.step, record) == (0, records.Record("numpy", 0.0))


# The report, the comparison, the command


def test_a_report_counts_what_differs(capsys):
    report = script.Report()
    report.figure("characters", "20479", "20479")
    report.figure("a loss", "1.00000001", "1.0", same=True)
    report.figure("another", "2.0", "2.0", same=True)
    report.line("Ep 1", "Ep 1")
    report.line("Ep 11", None)
    assert report.conclude() == 0
    report.figure("text", "Every effort moves you", "Every effort moves you rentingetic")
    report.line("Ep 2", "Ep 3")
    assert report.conclude() == 1
    assert report.different == ["text", "Ep 2"]
    printed = capsys.readouterr().out
    assert "4 figures compared with the book: none differ" in printed
    assert "6 figures compared with the book: 2 differ" in printed
    assert "Ep 2  [DIFFERS]\nEp 3  [the book]" in printed
    verdicts = [line.split()[0] for line in printed.splitlines() if line.startswith(("same", "close", "DIFFERS"))]
    assert verdicts == ["same", "close", "same", "DIFFERS"]
    assert report.exact == {"characters": "20479", "text": "Every effort moves you"}


#: The changes of a record that make the two runs just reach every goal.
COSTS = {
    "numpy": {"training_seconds": 13.0, "peak_memory_bytes": 2**30, "mask_seconds": 0.15},
    "torch": {"training_seconds": 10.0, "peak_memory_bytes": 2**30},
}


@pytest.fixture
def compared(options, in_one_go, tmp_path, capsys):
    """Compare both backends' runs, NumPy's with `changes`; returns the exit status and what was printed."""

    def compare(**changes):
        for name in BACKENDS:
            record = replace(in_one_go[name][1], step_seconds=[1.0] * options.steps, **COSTS[name])
            record.evaluations = [asdict(entry) for entry in in_one_go[name][0].history]
            (replace(record, **changes) if name == "numpy" else record).save(tmp_path / name)
        return script.main(["--compare", *(str(tmp_path / name) for name in BACKENDS)]), capsys.readouterr()

    return compare


def test_two_runs_that_print_the_same_and_reach_the_goals_are_alike(compared, options, tmp_path, capsys):
    status, (shown, _) = compared()
    assert status == 0
    assert f"losses of the steps: {options.steps} and {options.steps}, largest difference" in shown
    assert "printed losses, samples and exact figures: the same" in shown
    assert "time of the training, numpy / torch: 1.30, wanted at most 1.3: reached" in shown
    assert "peak memory, numpy / torch: 1.00, wanted at most 1: reached" in shown
    assert "dropout masks' share of a step in numpy: 0.15, wanted at most 0.15: reached" in shown
    assert script.main(["--compare", str(tmp_path / "torch"), str(tmp_path / "numpy")]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"training_seconds": 13.1}, "wanted at most 1.3: MISSED"),
        ({"peak_memory_bytes": 1.01 * 2**30}, "wanted at most 1: MISSED"),
        ({"mask_seconds": 0.16}, "wanted at most 0.15: MISSED"),
        ({"samples": ["Every effort moves us"]}, "exact figures: DIFFERENT"),
        ({"evaluations": []}, "exact figures: DIFFERENT"),
        ({"figures": {"tokens": "5146"}}, "tokens DIFFERS\n  numpy: 5146\n  torch: none"),
    ],
    ids=str,
)
def test_runs_that_differ_or_miss_a_goal_are_told(changes, complaint, compared):
    status, (shown, _) = compared(**changes)
    assert status == 1
    assert complaint in shown


def test_runs_whose_third_decimal_differs_are_told(compared, in_one_go):
    evaluations = [asdict(entry) for entry in in_one_go["numpy"][0].history]
    evaluations[-1]["val_loss"] += 0.001
    status, (shown, _) = compared(evaluations=evaluations)
    assert status == 1
    assert "evaluations' val_loss: 2 and 2, largest difference 1.0e-03" in shown
    assert "exact figures: DIFFERENT" in shown


def test_other_numbers_of_threads_are_told(compared):
    assert "other numbers of threads" not in compared()[1].out
    assert "the runs had other numbers of threads" in compared(threads="7")[1].out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "torch"}, "the runs are by torch and torch; expected one by numpy and one by torch"),
        ({"step_seconds": []}, "losses.json tells of no training step; expected that of a training run"),
    ],
    ids=str,
)
def test_records_that_cannot_be_compared_are_refused(changes, message, compared):
    status, (shown, error) = compared(**changes)
    assert (status, shown, error.count("\n")) == (2, "", 1)
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", __file__], "the story .*test_reproduce_book.py: it has more than 20479 bytes"),
        (["--epochs", "-1"], "--epochs is -1; expected 0 or more"),
        (["--text", "no-such-file"], "cannot read the story no-such-file: No such file or directory"),
        (["--compare", "no-such-folder", "no-such-folder"], "no-such-folder holds no readable losses.json"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    assert script.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(message, printed.err)
    assert printed.err.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_told_before_any_work(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert script.main(["--out", str(tmp_path / "file" / "folder")]) == 2
    assert f"cannot write to the folder {tmp_path / 'file' / 'folder'}: Not a directory" in capsys.readouterr().err


def test_the_books_figures_fit_together():
    assert len(figures.LOSS_LINES) == 18
    for number, line in enumerate(figures.LOSS_LINES):
        epoch = 5 * number // figures.BATCHES_IN_AN_EPOCH + 1
        assert line.startswith(f"Ep {epoch} (Step {5 * number:06d}): Train loss ")
    assert figures.EPOCHS == 10
    assert (figures.START + figures.SAMPLES[-1]).startswith(figures.TRAINED_GREEDY_TEXT)


# The bar chart


def test_each_temperature_has_its_bars_side_by_side(tmp_path):
    probabilities = {1: [0.1, 0.9], 0.1: [0.0, 1.0], 5: [0.4, 0.6]}
    figure = plot_temperatures(["pizza", "toward"], probabilities, tmp_path / "bars.png")
    (axes,) = figure.axes
    assert [[bar.get_height() for bar in bars] for bars in axes.containers] == list(probabilities.values())
    assert [bars.get_label() for bars in axes.containers] == [f"Temperature = {t:g}" for t in probabilities]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["pizza", "toward"]
    edges = [(bars[0].get_x(), bars[0].get_x() + bars[0].get_width()) for bars in axes.containers]
    assert [left for left, _ in edges[1:]] == pytest.approx([right for _, right in edges[:-1]], rel=FLOAT64_NORMWISE)
    assert edges[0][0] == pytest.approx(-edges[-1][1], rel=FLOAT64_NORMWISE)  # the bars are centered on the tick
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "probabilities", [{}, {1: [0.5]}, {1: [0.5, 0.5], 2: []}, {temperature: [0.5, 0.5] for temperature in range(1, 9)}]
)
def test_bars_that_do_not_fit_the_words_are_refused(probabilities):
    with pytest.raises(InputError, match=f"expected 1 to {len(PALETTE)} series with one probability for each word"):
        plot_temperatures(["pizza", "toward"], probabilities)
