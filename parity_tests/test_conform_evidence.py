"""What numpygpt conform keeps of a failure: the files for numpygpt diff, and the diagnosis in every report."""

import shlex
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from numpygpt.checks.conform.adapter import InProcess
from numpygpt.checks.conform.cases import Case
from numpygpt.checks.conform.climbing import climb
from numpygpt.checks.conform.evidence import CANDIDATE, NOT_AGAIN, examine, gather
from numpygpt.checks.conform.judging import REFERENCE, judge
from numpygpt.checks.conform.process import Program
from numpygpt.checks.conform.shrinking import sizes_of, with_sizes
from numpygpt.checks.standard import STANDARD
from parity_tests import ports
from parity_tests.command import files, python, run

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations", "each_reference_is_made_once")

SMALL = Case("2-three-heads", *STANDARD["2-three-heads"])
FEW = ("--draws", 0, "--cases", "2-*")
ROOT = Path(__file__).parents[1]
LOOK = "to look further: "
MERGED = "your `trf_blocks.0.att.context_vec` is what it would be if heads are merged by a reshape alone"


def port(adapter):
    return InProcess(adapter(), adapter.__name__)


def compared_again(command):
    """The exit status of the command line, which is one of numpygpt diff."""
    _, *words = shlex.split(command)
    return run(*words, "--no-diagnosis")


def test_a_planted_bug_is_diagnosed_in_every_report_and_by_diff_on_the_files_that_are_kept(tmp_path):
    """The commands run in other processes, which lack the checks of annotations."""
    page, junit, kept = tmp_path / "out.html", tmp_path / "out.xml", tmp_path / "kept"
    options = (*FEW, "--keep", kept, "--html", page, "--junit", junit, "--no-shrink")
    adapter = "parity_tests.ports:merged_without_transpose"
    done = python("-m", "numpygpt", "conform", "--adapter", adapter, *options, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert MERGED in done.stdout
    (command,) = (line.partition(LOOK)[2] for line in done.stdout.splitlines() if LOOK in line)
    html = page.read_text(encoding="utf-8")
    assert MERGED in html
    assert f"<code>{command}</code>" in html
    failures = {failure.get("message"): failure.text or "" for failure in ElementTree.parse(junit).iter("failure")}
    (diagnosed,) = (message for message, text in failures.items() if MERGED in text)
    assert diagnosed.startswith("trf_blocks.0.att.context_vec: ")
    assert LOOK + command in failures[diagnosed]
    done = python("-m", *shlex.split(command), cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert MERGED in done.stdout


@pytest.mark.usefixtures("undiagnosed")
def test_files_are_kept_of_the_smallest_model_too_and_each_cause_is_examined_once(tmp_path):
    wrong = port(ports.FailsFromTwoHeadsOn)
    found = climb(wrong, [SMALL, SMALL._replace(name="again")], by="numpy", shrink=False)
    smaller = judge(wrong, with_sizes(SMALL, {**sizes_of(SMALL), "H": 2, "K": 1}), "numpy")
    names = SMALL.name, smaller.case.name
    kept = gather(wrong, found.failures, {SMALL.name: smaller}, "numpy", tmp_path)
    assert list(kept) == [SMALL.name]
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    for name, command in zip(names, kept[SMALL.name].commands, strict=True):
        assert set(files(tmp_path / name)) == {REFERENCE, CANDIDATE}
        assert str(tmp_path / name / CANDIDATE) in command
    assert compared_again(kept[SMALL.name].commands[1]) == 1


@pytest.mark.usefixtures("undiagnosed")
@pytest.mark.parametrize(
    ("adapter", "options"),
    [(ports.WrongForwardOnly, "--dtype float64 --partial"), (ports.LongDoubles, "--dtype float32")],
)
def test_the_command_judges_as_conform_does_what_the_answer_lacks_and_its_format(adapter, options, tmp_path, capsys):
    (command,) = examine(port(adapter), SMALL, "numpy", tmp_path).commands
    assert command.endswith(options)
    assert compared_again(command) == 1
    printed = capsys.readouterr().out
    assert f"first divergence: {adapter.wrong}, " in printed
    assert "1 of " in printed


def test_a_program_without_an_answer_can_be_run_by_hand_on_the_files_that_are_kept(tmp_path):
    (tmp_path / SMALL.name).mkdir()
    (tmp_path / SMALL.name / CANDIDATE).write_text("of an earlier run")
    script = "cat \"$0/case.json\" >&2; echo 'no luck' >&2; exit 3"
    found = examine(Program(f"sh -c {shlex.quote(script)}", 60.0), SMALL, "numpy", tmp_path)
    assert not found.diagnosis
    assert set(files(tmp_path / SMALL.name)) == {REFERENCE, "case.json", "given.safetensors", "stderr.txt"}
    assert files(tmp_path / SMALL.name)["stderr.txt"].endswith(b"no luck\n")
    (command,) = found.commands
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert '"protocol": 1' in done.stderr


def test_of_a_program_that_hangs_the_files_are_kept_and_it_is_not_asked_again(tmp_path, capsys):
    asked = tmp_path / "asked"
    script = f"echo once >> {shlex.quote(str(asked))}; echo slowly >&2; sleep 60"
    command, kept = f"sh -c {shlex.quote(script)}", tmp_path / "kept"
    assert run("conform", "--command", command, "--timeout", 1, *FEW, "--keep", kept) == 1
    assert asked.read_text() == "once\n"
    found = files(kept / SMALL.name)
    assert set(found) == {REFERENCE, "case.json", "given.safetensors", "stderr.txt"}
    assert found["stderr.txt"] == b"slowly\n"
    assert f"{LOOK}{shlex.join([*shlex.split(command), str(kept / SMALL.name)])}" in capsys.readouterr().out


def test_of_a_crash_in_python_the_reference_is_kept(tmp_path):
    found = examine(port(ports.Crash), SMALL, "numpy", tmp_path)
    assert found.lines == []
    assert set(files(tmp_path / SMALL.name)) == {REFERENCE}


def test_a_failure_that_does_not_come_again_is_named(tmp_path):
    found = examine(port(ports.Sound), SMALL, "numpy", tmp_path)
    assert found.diagnosis == [NOT_AGAIN]


def test_nothing_is_kept_of_what_passes(tmp_path):
    assert run("conform", "--adapter", "parity_tests.ports:Sound", *FEW, "--keep", tmp_path / "kept") == 0
    assert not files(tmp_path)


def test_without_a_folder_the_files_are_in_a_temporary_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run("conform", "--adapter", "parity_tests.ports:WithNaN", *FEW, "--no-shrink") == 1
    printed = capsys.readouterr().out
    assert "`d_final_norm.scale`: it has a NaN" in printed
    (kept,) = tmp_path.iterdir()
    assert str(kept / SMALL.name / REFERENCE) in printed


def test_what_was_found_is_told_though_its_files_cannot_be_kept(tmp_path, capsys, undiagnosed):
    (tmp_path / SMALL.name).write_text("a file, where a folder is to be")
    assert run("conform", "--adapter", "parity_tests.ports:WithNaN", *FEW, "--no-shrink", "--keep", tmp_path) == 1
    printed = capsys.readouterr().out
    assert f"were not kept, and nothing was diagnosed: cannot write {tmp_path / SMALL.name}: File exists" in printed
    assert "does not conform: 1 of 1 case fails" in printed


@pytest.mark.parametrize("name", ["file/kept", "file"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_case(name, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("conform", "--adapter", "parity_tests.ports:Crash", *FEW, "--keep", tmp_path / name) == 2
    error = capsys.readouterr().err
    assert f"cannot write to the folder {tmp_path / name}" in error
    assert error.count("\n") == 1
