"""What is expected of a port, and the reports: JUnit XML and the page."""

from xml.etree import ElementTree

import pytest

from numpygpt.checks.conform.adapter import InProcess
from numpygpt.checks.conform.cases import Case
from numpygpt.checks.conform.climbing import climb
from numpygpt.checks.conform.expectations import Expectation, read_expectations
from numpygpt.checks.conform.judging import EXPECTED, FAILED, PASSED, SKIPPED, UNEXPECTED
from numpygpt.checks.conform.junit import junit
from numpygpt.checks.conform.rungs import RUNGS
from numpygpt.checks.standard import STANDARD
from numpygpt.commands.conform import summary
from numpygpt.commands.conform_page import page
from parity_tests import ports
from parity_tests.command import run

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations", "each_reference_is_made_once")

SMALL = Case("1-one-head", *STANDARD["1-one-head"])
FEW = ("--draws", 0, "--cases", "1-*")


def climbed(adapter, *expectations):
    return climb(InProcess(adapter(), adapter.__name__), [SMALL], by="numpy", expectations=expectations, shrink=False)


def expected(kind, rung="*", case="*"):
    return Expectation(kind, case, rung, "because")


def states(found):
    return {name: rung.state for name, rung in found.outcomes[0].rungs.items()}


# Expectations


def test_an_expected_failure_does_not_count():
    found = climbed(ports.CoupledDecay, expected("fail", "optimizer"))
    assert states(found) == {**dict.fromkeys(RUNGS, PASSED), "optimizer": EXPECTED}
    assert found.outcomes[0].rungs["optimizer"].says.startswith("because (step1.exp_avg")
    assert found.conforms


def test_an_unexpected_pass_is_a_failure():
    found = climbed(ports.Sound, expected("fail", "optimizer"))
    assert states(found) == {**dict.fromkeys(RUNGS, PASSED), "optimizer": UNEXPECTED}
    assert not found.conforms


def test_a_skipped_rung_is_not_judged_and_a_skipped_case_not_run():
    found = climbed(ports.CoupledDecay, expected("skip", "opt*", "1-*"))
    assert states(found) == {**dict.fromkeys(RUNGS, PASSED), "optimizer": SKIPPED}
    assert found.conforms
    assert states(climbed(ports.CoupledDecay, expected("skip", case="2-*")))["optimizer"] == FAILED
    found = climbed(ports.Crash, expected("skip"))
    assert states(found) == dict.fromkeys(RUNGS, SKIPPED)
    assert not found.conforms, "nothing was shown"


def test_a_crash_may_be_expected():
    assert states(climbed(ports.Crash, expected("fail"))) == dict.fromkeys(RUNGS, EXPECTED)


def test_the_file_of_expectations(tmp_path, capsys):
    path = tmp_path / "known.toml"
    path.write_text('[[fail]]\nrung = "optimizer"\nreason = "Adam"\n[[skip]]\ncase = "5-*"\nreason = "no dropout"\n')
    assert read_expectations(path) == [
        Expectation("fail", "*", "optimizer", "Adam"),
        Expectation("skip", "5-*", "*", "no dropout"),
    ]
    assert run("conform", "--adapter", "parity_tests.ports:CoupledDecay", *FEW, "--expect", path) == 0
    assert "failed as expected: Adam (step1.exp_avg.tok_emb.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ("[[fail]", "cannot be used"),
        ("fail = 3", "it has 'fail'; expected [[skip]] and [[fail]]"),
        ("[[xfail]]\nreason = 'a'", "it has 'xfail'"),
        ("[[fail]]\nrung = 'optimizer'", "reason is missing"),
        ("[[fail]]\nreason = 3", "reason is 3"),
        ("[[fail]]\nreason = 'a'\nrung = 'optimiser'", "the rung 'optimiser'; expected one of: forward"),
        ("[[fail]]\nreason = 'a'\nwhy = 'b'", "expected case, rung and reason"),
        ("fail = [3]", "expected case, rung and reason"),
        ("\0", "cannot be used"),
    ],
    ids=repr,
)
def test_a_file_of_expectations_that_is_none_is_refused(contents, said, tmp_path, capsys):
    path = tmp_path / "known.toml"
    path.write_text(contents)
    assert run("conform", "--adapter", "parity_tests.ports:Sound", *FEW, "--expect", path) == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(path) in error
    assert error.count("\n") == 1


def test_a_missing_file_of_expectations_is_refused(tmp_path, capsys):
    assert run("conform", "--adapter", "parity_tests.ports:Sound", *FEW, "--expect", tmp_path / "none") == 2
    assert "No such file" in capsys.readouterr().err


# Reports


def test_junit_has_a_suite_for_each_case_and_a_test_for_each_rung():
    root = ElementTree.fromstring(junit(climbed(ports.CoupledDecay, expected("skip", "generation"))))
    (suite,) = root
    assert suite.attrib | {"time": ""} == {
        "name": "1-one-head", "tests": "6", "failures": "1", "skipped": "1", "errors": "0", "time": ""
    }  # fmt: skip
    outcome = {test.get("name"): [child.tag for child in test] for test in suite}
    assert outcome == {**{rung: [] for rung in RUNGS}, "optimizer": ["failure"], "generation": ["skipped"]}
    assert "step1.exp_avg.tok_emb.weight" in suite.find(".//failure").get("message")


def test_the_page_has_a_badge_and_escapes_every_text():
    found = climbed(ports.ForwardOnly)
    html = page(found, summary(found), {"implementation": "<b>&"})
    assert "2 of 6 rungs" in html
    assert "&lt;b&gt;&amp;" in html
    assert "<b>" not in html
    assert html.count("not shown</td>") == 4
    failing = climbed(ports.CoupledDecay)
    html = page(failing, summary(failing), {})
    assert ">fails</text>" in html
    assert html.count('<td class="wrong"') == 1
    assert "<h2>What failed</h2>" in html


def test_the_command_writes_both_reports(tmp_path, capsys):
    paths = tmp_path / "out.xml", tmp_path / "out.html"
    options = ("--junit", paths[0], "--html", paths[1])
    assert run("conform", "--adapter", "parity_tests.ports:Sound", *FEW, *options) == 0
    assert ElementTree.parse(paths[0]).getroot().tag == "testsuites"
    assert paths[1].read_text(encoding="utf-8").startswith("<!doctype html>")
    assert capsys.readouterr().out.count("wrote ") == 2
