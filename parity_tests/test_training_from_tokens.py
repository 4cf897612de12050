"""`--tokens FILE` in both commands: the run of the text that the file was made of, and files that cannot be used."""

import re
import time
from statistics import median

import numpy as np
import pytest
import torch

from numpygpt.data.loader import DataLoader
from numpygpt.data.texts import split_text
from numpygpt.data.token_file import open_tokens, validation_path
from numpygpt.data.windows import TokenWindows
from numpygpt.training.journal import Journal
from numpygpt.training.progress import Progress
from numpygpt.training.run import TrainingRun
from numpygpt.training.step import StepTaken
from parity_tests.command import TEXT, files, write_text
from parity_tests.counting_backend import started
from parity_tests.tolerances import FLOAT64_CURVE
from parity_tests.torch_command import EXACT, PROGRAMS, SIZES, curve, furthest, left_by, refusal, run, train
from torchgpt.engine.batches import Ahead
from torchgpt.parallel.pipeline import Placed

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")  # whole runs are compared


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with text.txt, and its ids in tokens.bin."""
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")
    write_text(tmp_path)
    paths = tmp_path / "tokens.bin", validation_path(tmp_path / "tokens.bin")
    for path, part in zip(paths, split_text(TEXT), strict=True):
        np.frombuffer(part.encode(), np.uint8).astype(np.uint16).tofile(path)
    return tmp_path


def test_both_commands_learn_from_a_file_as_from_its_text(folder):
    arguments = (*EXACT, "--steps", 30)
    expected = curve(train("numpygpt", folder / "text", *arguments))
    made = folder / "made.bin"
    words = (folder / "text.txt", "--out", made, "--tokenizer", "bytes", "--processes", 1)
    assert run("numpygpt", "tokenize", *words) == 0
    assert made.read_bytes() == (folder / "tokens.bin").read_bytes()
    tokens = ("--tokens", made)
    assert curve(train("numpygpt", folder / "numpygpt", *tokens, *arguments)) == expected
    assert furthest(curve(train("torchgpt", folder / "torchgpt", *tokens, *arguments)), expected) <= FLOAT64_CURVE


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_file_that_has_moved_is_named_anew_and_another_is_refused(folder, capsys, program):
    tokens, moved = folder / "tokens.bin", folder / "moved.bin"
    trained = train(program, folder / "run", "--tokens", tokens, *SIZES, "--sample-every", 0, "--steps", 1)
    for path in (tokens, validation_path(tokens)):
        path.rename(path.with_name(path.name.replace("tokens", "moved")))
    before = files(trained)
    line = refusal(capsys, program, "train", "--resume", trained, "--steps", 2)
    assert "; say with --tokens where the token file of the run is now" in line
    other = folder / "other.bin"
    for path in (other, validation_path(other)):
        path.write_bytes(b"\1\0" * 99)
    line = refusal(capsys, program, "train", "--resume", trained, "--steps", 2, "--tokens", other)
    assert re.search(rf"the token file \({other}\) is not the one that the run in .* learned from; expected SHA", line)
    assert files(trained) == before
    train(program, trained, "--resume", trained, "--tokens", moved, "--steps", 2)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokens: tokens.write_bytes(b"\1\0\1"), "has 3 bytes; expected a multiple of 2"),
        (lambda tokens: tokens.write_bytes(b"\0\1" * 50), "has id 256 at position 0; the model's vocabulary goes"),
        (lambda tokens: validation_path(tokens).write_bytes(b"\0\1" * 50), "has id 256 at position 0; the model's"),
        (lambda tokens: validation_path(tokens).unlink(), "of tokens to validate with; make both with: numpygpt"),
        (lambda tokens: tokens.unlink(), "cannot read the token file .*tokens.bin: No such file"),
        (lambda tokens: tokens.write_bytes(b"\1\0" * 6), "the training part of the text is too short"),
    ],
    ids=["odd length", "past the vocabulary", "past it in validation", "no validation", "missing", "too short"],
)
def test_a_file_that_cannot_be_used_gets_one_line(folder, capsys, program, change, message):
    change(folder / "tokens.bin")
    before = files(folder)
    given = ("--tokens", folder / "tokens.bin", "--out", folder / "run", *SIZES, "--steps", 1)
    line = refusal(capsys, program, "train", *given)
    assert re.search(message, line), line
    assert files(folder) == before
    assert not left_by(folder / "run")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_text_and_a_file_of_ids_are_not_taken_together(folder, capsys, program):
    given = ("--text", "text.txt", "--tokens", "tokens.bin", "--out", folder / "run")
    line = refusal(capsys, program, "train", *given, *SIZES)
    assert re.search(r"text is \('text.txt',\) and tokens is 'tokens.bin'; expected one of them to learn from", line)
    assert not (folder / "run").exists()


# What a step costs beside its computing

STEPS = 200
ROWS, LENGTH = 16, 1024
#: Milliseconds: 2 % of a step of 100 ms.
ALLOWED = 2.0


def test_batches_log_and_bar_take_a_fiftieth_of_a_short_step(folder, capsys):
    """Batches of 16 x 1024 tokens from a file, with a log and a bar, around a step that computes nothing.

    What counts is the processor's time of the whole process, its threads included.
    """
    path = folder / "large.bin"
    np.random.default_rng(1).integers(0, 50257, 2**22, np.uint16).tofile(path)
    windows = TokenWindows(open_tokens(path, 50257), LENGTH, stride=LENGTH)
    loader = DataLoader(windows, ROWS, shuffle=True, drop_last=True, rng=1)
    batches = Ahead(loader, iter(loader), place)
    run, journal, progress = started(folder, steps=STEPS), Journal(), Progress()
    taken = StepTaken(2.5, {f"weight {number}": 0.1 for number in range(150)})
    spent = []
    with progress.of(run), journal.of(run):
        for run.step in range(1, STEPS + 1):
            began = time.process_time()
            batches.take()
            progress.stepped(run, taken, 0.1)
            journal.stepped(run, taken, 0.1)
            spent.append(1e3 * (time.process_time() - began))
    with capsys.disabled():
        print(f"\nbatches, log and bar: {median(spent):.2f} ms a step, {median(spent) / 100:.1%} of 100 ms")
    assert median(spent) <= ALLOWED


def place(inputs, targets):
    return Placed(torch.from_numpy(inputs), torch.from_numpy(targets))
