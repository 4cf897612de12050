"""A program in any language under numpygpt conform: the one in C passes, and whatever goes wrong is told in a line."""

import shlex
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from numpygpt.checks.conform.cases import Case
from numpygpt.checks.conform.climbing import climb
from numpygpt.checks.conform.judging import FAILED, NOT_SHOWN, PASSED, judge
from numpygpt.checks.conform.process import Program
from numpygpt.checks.conform.rungs import RUNGS
from numpygpt.checks.standard import STANDARD
from numpygpt.checks.trace import given
from numpygpt.formats.tensor_file import write_tensors
from parity_tests import ports
from parity_tests.command import python

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations", "each_reference_is_made_once")

EXAMPLES = Path(__file__).parents[1] / "examples" / "conformance"
SMALL = Case("1-one-head", *STANDARD["1-one-head"])
#: Long enough for a shell on a busy machine, and for the program in C.
SECONDS = 60.0
SHORT = 0.2


def shell(script, seconds=SECONDS, computes=None):
    """A program that is a line of shell, in which $0 is the folder of the case."""
    return Program(f"sh -c {shlex.quote(script)}", seconds, computes)


def outcome_of(script, seconds=SECONDS, computes=None):
    return judge(shell(script, seconds, computes), SMALL, "numpy")


def states(outcome):
    return {name: rung.state for name, rung in outcome.rungs.items()}


@pytest.fixture
def answers(tmp_path):
    """A function that writes an answer, and returns the line of shell that gives it."""

    def prepare(tensors, **metadata):
        path = tmp_path / "answer.safetensors"
        write_tensors(path, tensors, metadata)
        return f'cp {shlex.quote(str(path))} "$0/computed.safetensors"'

    return prepare


@pytest.fixture(scope="module")
def sound():
    return ports.answer(SMALL.config, SMALL.settings, given(SMALL.config, SMALL.settings))


# The program in C


@pytest.fixture(scope="module")
def in_c(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("no cc on this machine")
    program = tmp_path_factory.mktemp("c") / "gpt"
    strict = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *strict, "-o", program, EXAMPLES / "gpt.c", "-lm"], check=True, timeout=120)
    return program


def test_the_program_in_c_passes_the_ladder(in_c):
    done = python("-m", "numpygpt", "conform", "--command", in_c, "--draws", 8)
    assert done.returncode == 0, done.stderr
    assert "conforms in 15 cases" in done.stdout
    assert "not shown" not in done.stdout


def test_the_program_in_c_says_what_it_lacks(in_c, tmp_path):
    done = subprocess.run([in_c, tmp_path], capture_output=True, text=True, check=False, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (1, "gpt: cannot read case.json\n")


@pytest.mark.parametrize(
    ("right", "wrong", "first"),
    [
        ("0.044715 * x * x * x", "0.044 * x * x * x", "trf_blocks.0.ff.layers.1"),
        ("p->value[i] -= decay * p->value[i] + lr", "p->value[i] -= lr", "step1.tok_emb.weight"),
        ("d * a->q[r * K + j] / sqrt(K)", "d * a->q[r * K + j]", "d_trf_blocks.0.att.keys"),
    ],
)
def test_a_slip_in_the_program_in_c_is_found_where_it_is(right, wrong, first, tmp_path, in_c):
    source = (EXAMPLES / "gpt.c").read_text(encoding="utf-8")
    assert source.count(right) == 1
    (tmp_path / "gpt.c").write_text(source.replace(right, wrong), encoding="utf-8")
    subprocess.run(["cc", "-std=c99", "-o", tmp_path / "gpt", tmp_path / "gpt.c", "-lm"], check=True, timeout=120)
    outcome = judge(Program(str(tmp_path / "gpt"), SECONDS), SMALL, "numpy")
    assert outcome.failed
    assert outcome.first == first


# Answers


def test_an_answer_passes_with_every_tensor(answers, sound):
    assert states(outcome_of(answers(sound))) == dict.fromkeys(RUNGS, PASSED)


def test_an_answer_may_name_its_rungs_and_what_it_does_not_show(answers, sound):
    forward = {name: sound[name] for name in ("logits", "loss", "final_norm")}
    outcome = outcome_of(answers(forward, rungs="forward activations", not_shown="trf_blocks.* *_emb"))
    assert states(outcome) == {rung: PASSED if rung in ("forward", "activations") else NOT_SHOWN for rung in RUNGS}


def test_what_an_answer_lacks_without_saying_so_is_missing(answers, sound):
    outcome = outcome_of(answers({name: array for name, array in sound.items() if name != "d_final_norm"}))
    assert outcome.rungs["activation-gradients"].says == "d_final_norm: missing"
    assert [name for name, state in states(outcome).items() if state == FAILED] == ["activation-gradients"]


def test_the_format_is_that_of_the_shortest_dtype_unless_it_is_said(answers, sound):
    rounded = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in sound.items()}
    assert not outcome_of(answers(rounded)).failed
    assert outcome_of(answers(rounded), computes="float64").failed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": np.array(np.nan)}, "loss: NaN, wrong"),
        ({"logits": np.full((2, 5, 13), np.nan), "loss": np.array(np.nan)}, "logits: NaN, wrong; 1 more is wrong"),
        ({"loss": np.array(np.inf)}, "loss: "),
    ],
)
def test_what_is_not_finite_is_a_failure(answers, sound, changes, said):
    outcome = outcome_of(answers({**sound, **changes}))
    assert outcome.rungs["forward"].says.startswith(said)
    assert outcome.failed


def test_a_program_that_cannot_compute_a_case_says_why():
    outcome = outcome_of('echo "there is no dropout here" > "$0/unable.txt"')
    assert states(outcome) == dict.fromkeys(RUNGS, NOT_SHOWN)
    assert outcome.rungs["forward"].says == "there is no dropout here"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo first >&2; echo 'out of luck' >&2; exit 1", "ended with exit status 1: out of luck"),
        ("kill -9 $$", "was ended by signal 9"),
        ("true", "wrote no computed.safetensors"),
        ('echo garbage > "$0/computed.safetensors"', "the answer computed.safetensors is truncated, damaged"),
        (': > "$0/computed.safetensors"', "the answer computed.safetensors is truncated, damaged"),
        ('head -c 2000 "$0/given.safetensors" > "$0/computed.safetensors"', "is truncated, damaged"),
        ("head -c 9999 /dev/urandom; head -c 9999 /dev/urandom >&2", "wrote no computed.safetensors"),
        ("head -c 9999 /dev/urandom >&2; exit 1", "ended with exit status 1"),
        ('mkdir "$0/computed.safetensors"', "is no regular file"),
        ('mkfifo "$0/computed.safetensors"', "is no regular file"),
        ('cp "$0/given.safetensors" "$0/computed.safetensors"', "tok_emb: missing"),
        ("printf '\\033[31mred\\n' >&2; exit 3", "ended with exit status 3: ?[31mred"),
    ],
)
def test_what_goes_wrong_is_told_in_a_line_and_never_a_pass(script, said):
    outcome = outcome_of(script)
    assert said in outcome.says
    assert outcome.failed
    assert outcome.says.isprintable()
    assert PASSED not in states(outcome).values()


@pytest.mark.parametrize(
    ("changes", "metadata", "said"),
    [
        ({"logitz": np.zeros(2)}, {}, "such as 'logitz'"),
        ({}, {"rungs": "forward fly"}, "names the rung 'fly'"),
        ({"logits": np.zeros((2, 3))}, {}, "logits: shape (2, 3)"),
        ({"logits": np.zeros((2, 5, 13), np.int64)}, {}, "logits: int64, expected float64"),
    ],
)
def test_an_answer_that_is_none_fails(answers, sound, changes, metadata, said):
    outcome = outcome_of(answers({**sound, **changes}, **metadata))
    assert outcome.failed
    assert said in outcome.says


def test_a_program_that_hangs_is_ended_and_no_other_case_is_run(tmp_path):
    pid = tmp_path / "pid"
    port = shell(f"sleep 600 & echo $! > {shlex.quote(str(pid))}; sleep 600", SHORT)
    found = climb(port, [SMALL, SMALL._replace(name="again")], by="numpy")
    assert found.outcomes[0].fault == "did not end within 0.2 s"
    assert found.outcomes[1].fault == "not run, because 1-one-head exceeded the time limit"
    assert not found.conforms
    assert not found.smallest
    if pid.exists() and Path("/proc").is_dir():
        assert ends(pid.read_text().strip()), "what it started is ended, too"


def ends(pid):
    """Whether the process that was killed ends soon, as it does once a busy system runs it again."""
    stat = Path(f"/proc/{pid}/stat")
    latest = time.monotonic() + SECONDS
    while time.monotonic() < latest:
        try:
            if stat.read_text().split()[2] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_a_program_may_have_arguments_and_is_found_in_the_current_folder(answers, sound, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "my port"
    script.write_text(f'#!/bin/sh\n[ "$1" = -x ] || exit 1\nset -- "$2"\n{answers(sound).replace("$0", "$1")}\n')
    script.chmod(0o755)
    assert not judge(Program("'./my port' -x", SECONDS), SMALL, "numpy").failed
