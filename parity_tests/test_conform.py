"""numpygpt conform: who computes the same passes, and who does not fails at the rung and tensor where it goes wrong.

The checks of annotations are off, because the tests take whole steps many times.
"""

from pathlib import Path

import pytest

from numpygpt.checks.conform.adapter import InProcess, find_adapter
from numpygpt.checks.conform.cases import Case, described, drawn, standard
from numpygpt.checks.conform.climbing import climb
from numpygpt.checks.conform.judging import EMPTY, FAILED, NOT_SHOWN, PASSED, Outcome, Rung, judge
from numpygpt.checks.conform.rungs import RUNGS, rung_of
from numpygpt.checks.conform.shrinking import shrunk, sizes_of
from numpygpt.checks.standard import STANDARD
from numpygpt.checks.trace import given, is_given
from numpygpt.commands.conform import summary
from numpygpt.commands.conform_page import badge, page
from parity_tests import ports
from parity_tests.command import python, run

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations", "each_reference_is_made_once")

SMALL = Case("2-three-heads", *STANDARD["2-three-heads"])
HERE, ROOT = "parity_tests.ports", Path(__file__).parents[1]
FEW = ("--draws", 0, "--cases", "1-*")


def port(adapter):
    return InProcess(adapter(), adapter.__name__)


def outcome_of(adapter, case=SMALL):
    return judge(port(adapter), case, "numpy")


def states(outcome):
    return {name: rung.state for name, rung in outcome.rungs.items()}


# Rungs


def test_our_own_steps_pass_every_rung_with_every_tensor():
    outcome = outcome_of(ports.Sound)
    assert states(outcome) == dict.fromkeys(RUNGS, PASSED)
    assert all(rung.shown == rung.of > 0 for rung in outcome.rungs.values())


def test_each_tensor_of_a_trace_but_what_is_given_is_on_a_rung():
    tensors = ports.answer(SMALL.config, SMALL.settings, given(SMALL.config, SMALL.settings))
    assert {rung_of(name) for name in tensors} == set(RUNGS)
    assert all(rung_of(name) is None for name in given(SMALL.config, SMALL.settings))
    assert rung_of("d_trf_blocks.0.norm1") == "activation-gradients"
    assert rung_of("d_trf_blocks.0.norm1.scale") == "gradients"
    assert rung_of("step2.d_trf_blocks.0.norm1.scale") == rung_of("step2.loss") == "optimizer"


@pytest.mark.parametrize(
    ("adapter", "first", "rung", "passed"),
    [
        (ports.ErfGelu, "trf_blocks.0.ff.layers.1", "activations", ()),
        (ports.TransposedWeight, "trf_blocks.0.att.out_proj", "activations", ()),
        (ports.QkvOrder, "trf_blocks.0.att.queries", "activations", ()),
        (ports.WithNaN, "d_final_norm.scale", "gradients", set(RUNGS) - {"gradients"}),
        (ports.CoupledDecay, "step1.exp_avg.tok_emb.weight", "optimizer", set(RUNGS) - {"optimizer"}),
        (ports.NoGenerationUnsaid, "generated.logits", "generation", set(RUNGS) - {"generation"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_port_fails_at_its_rung_and_tensor(adapter, first, rung, passed):
    outcome = outcome_of(adapter)
    assert outcome.failed
    assert outcome.first == first
    assert outcome.rungs[rung].first == first
    assert first in outcome.says
    assert {name for name, state in states(outcome).items() if state == PASSED} == set(passed)


@pytest.mark.parametrize("bug", ["cache_shifted_by_one", "cache_stale"])
def test_a_broken_cache_fails_at_the_generation_alone(bug):
    outcome = judge(InProcess(ports.WithBug(bug), bug), SMALL, "numpy")
    assert states(outcome) == {**dict.fromkeys(RUNGS, PASSED), "generation": FAILED}
    assert outcome.first == "generated.logits"


def test_what_is_not_implemented_is_not_shown_and_not_passed():
    outcome = outcome_of(ports.ForwardOnly)
    assert not outcome.failed
    expected = {rung: PASSED if rung in ports.ForwardOnly.rungs else NOT_SHOWN for rung in RUNGS}
    assert states(outcome) == expected
    activations = outcome.rungs["activations"]
    assert activations.of - activations.shown == 2


def test_a_case_that_a_port_cannot_compute_is_not_shown():
    dropout = Case("5-dropout", *STANDARD["5-dropout"])
    assert states(outcome_of(ports.WithoutDropout, dropout)) == dict.fromkeys(RUNGS, NOT_SHOWN)
    assert states(outcome_of(ports.WithoutDropout)) == dict.fromkeys(RUNGS, PASSED)
    assert not climb(port(ports.WithoutDropout), [dropout], by="numpy").conforms


def test_a_rung_without_tensors_is_empty():
    case = SMALL._replace(settings=SMALL.settings._replace(new_tokens=0))
    assert states(outcome_of(ports.Sound, case)) == {**dict.fromkeys(RUNGS, PASSED), "generation": EMPTY}


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (ports.Crash, "raises RuntimeError: no more of this (ports.py, line"),
        (ports.Exits, "run ends the program: SystemExit(0)"),
        (ports.NoDict, "run returns a list; expected a dict of arrays"),
        (ports.Words, "logits is of dtype <U1; expected real numbers"),
        (ports.WrongName, "such as 'logitz'"),
        (ports.ChangedInput, "inputs was given, and has come back changed"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_no_answer_fails_every_rung_with_one_line(adapter, said):
    outcome = outcome_of(adapter)
    assert states(outcome) == dict.fromkeys(RUNGS, FAILED)
    assert said in outcome.fault
    assert "\n" not in outcome.fault


def test_who_shows_nothing_does_not_conform():
    found = climb(port(ports.Nothing), [SMALL], by="numpy")
    assert states(found.outcomes[0]) == dict.fromkeys(RUNGS, NOT_SHOWN)
    assert not found.conforms


# Cases


def test_the_same_seed_draws_the_same_models_and_another_seed_others():
    models = drawn(6, 0)
    assert len(models) == 6
    assert models == drawn(6, 0)
    assert models != drawn(6, 1)
    assert len({case.name for case in models}) == 6
    assert all(described(case.config, case.settings) in case.name for case in models)
    assert [case.name for case in standard()] == list(STANDARD)


def test_drawn_models_pass():
    found = climb(port(ports.Sound), drawn(4, 3), by="numpy")
    assert found.conforms
    assert not found.smallest


def test_a_failure_is_shrunk_to_the_smallest_sizes_that_fail():
    """Here the judge only looks at the sizes. Another failure, of one head, is not what is looked for."""
    asked = []

    def look(case):
        asked.append(case.name)
        sizes = sizes_of(case)
        first = "logits" if sizes["H"] == 1 else "trf_blocks.1.att.keys" if sizes["T"] > 2 and sizes["K"] > 1 else ""
        rungs = {rung: Rung(FAILED if first else PASSED, first=first) for rung in RUNGS}
        return Outcome(case, rungs, first=first)

    smallest = shrunk(look(Case("5-dropout", *STANDARD["5-dropout"])), look)
    assert smallest.first == "trf_blocks.1.att.keys"
    assert sizes_of(smallest.case) == {"L": 1, "H": 2, "K": 2, "B": 1, "T": 3, "steps": 1, "new_tokens": 0}
    assert len(asked) < 20


def test_the_command_names_the_smallest_model_that_fails(tmp_path):
    """The command runs in another process, which lacks the checks of annotations, because it takes many steps."""
    options = ("--cases", "2-*", "--draws", 0, "--keep", tmp_path)
    done = python("-m", "numpygpt", "conform", "--adapter", f"{HERE}:FailsFromTwoHeadsOn", *options, cwd=ROOT)
    assert done.returncode == 1
    assert "2-three-heads: the smallest model that fails so is B1-T3-H2-K1-L1: trf_blocks.0.att.context" in done.stdout


# The command


def test_the_command_tells_who_conforms(capsys):
    assert run("conform", "--adapter", f"{HERE}:Sound", *FEW) == 0
    printed = capsys.readouterr().out
    assert "1-one-head   ok" in printed
    assert "conforms in 1 case: forward 2/2 tensors" in printed
    assert run("conform", "--adapter", f"{HERE}:makes", *FEW) == 0


@pytest.mark.usefixtures("undiagnosed")
def test_the_command_tells_who_does_not_and_where(tmp_path, capsys):
    assert run("conform", "--adapter", f"{HERE}:CoupledDecay", *FEW, "--no-shrink", "--keep", tmp_path) == 1
    printed = capsys.readouterr().out
    assert "1-one-head, optimizer: step1.exp_avg.tok_emb.weight: " in printed
    assert "does not conform: 1 of 1 case fails, the first wrong tensor is step1.exp_avg.tok_emb.weight" in printed


def test_the_command_says_what_is_not_shown(capsys):
    assert run("conform", "--adapter", f"{HERE}:ForwardOnly", *FEW) == 0
    printed = capsys.readouterr().out
    assert "not shown: gradients, activation-gradients, optimizer, generation" in printed
    assert run("conform", "--adapter", f"{HERE}:Nothing", *FEW) == 1
    assert "does not conform: nothing was shown" in capsys.readouterr().out


def test_cases_that_a_port_cannot_compute_are_counted_in_the_last_line_and_the_badge():
    cases = [SMALL, Case("5-dropout", *STANDARD["5-dropout"])]
    found = climb(port(ports.WithoutDropout), cases, by="numpy")
    assert found.conforms
    assert summary(found).startswith("conforms in 1 of 2 cases, 1 not computed: forward 2/2 tensors")
    assert badge(found).says == "6 of 6 rungs in 1 of 2 cases"
    assert "conforms in 1 of 2 cases, 1 not computed" in page(found, summary(found), {})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--adapter", "parity_tests.ports"], "expected package.module:Adapter"),
        (["--adapter", "no_such_module:A"], "there is no module no_such_module"),
        (["--adapter", f"{HERE}:Absent"], "has no Absent"),
        (["--adapter", f"{HERE}:NoAdapter"], "has no method run"),
        (["--adapter", f"{HERE}:exits"], "making the adapter parity_tests.ports:exits ends the program: SystemExit(0)"),
        (["--adapter", f"{HERE}:BadRung"], "names the rung 'fly'; expected some of: forward"),
        (["--adapter", f"{HERE}:Sound", "--cases", "z"], "no case is like 'z'"),
        (["--adapter", f"{HERE}:Sound", "--draws", -1], "--draws is -1"),
        (["--adapter", f"{HERE}:Sound", "--seed", -1], "--seed is -1"),
        (["--adapter", f"{HERE}:Sound", "--timeout", 0], "--timeout is 0"),
        (["--adapter", f"{HERE}:Sound", "--timeout", "nan"], "--timeout is nan"),
        (["--adapter", f"{HERE}:Sound", "--html", "no/such/folder"], "there is no folder"),
        (["--command", ""], "--command is empty"),
        (["--command", "'a"], "No closing quotation"),
        (["--command", "/no/such/program"], "cannot run /no/such/program"),
        ([], "one of the arguments --adapter --command is required"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(options, said, capsys):
    assert run("conform", *FEW[:2], *options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_module_that_ends_the_program_is_no_adapter(tmp_path, monkeypatch, capsys):
    (tmp_path / "ends_at_once.py").write_text("import sys\nsys.exit()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert run("conform", "--adapter", "ends_at_once:Adapter", *FEW) == 2
    assert "importing ends_at_once ends the program: SystemExit() (ends_at_once.py, line 2)" in capsys.readouterr().err


def test_an_adapter_in_a_module_is_found():
    assert find_adapter(f"{HERE}:Sound").rungs == RUNGS
    assert not any(is_given(name) for name in RUNGS)
