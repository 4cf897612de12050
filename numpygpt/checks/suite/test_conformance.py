"""Each rung of each case of the ladder is a test."""

from pathlib import Path

import pytest

from numpygpt.checks.conform.adapter import Port, find_adapter
from numpygpt.checks.conform.cases import drawn, standard
from numpygpt.checks.conform.climbing import first_failures, outcome_of
from numpygpt.checks.conform.evidence import evidence_of
from numpygpt.checks.conform.expectations import read_expectations
from numpygpt.checks.conform.judging import BAD, EXPECTED, PASSED, Outcome
from numpygpt.checks.conform.process import Program
from numpygpt.checks.conform.rungs import RUNGS
from numpygpt.errors import InputError


class Ladder:
    """The port of a run of pytest, its cases, and the outcomes so far. InputError for options that cannot be used."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.getoption
        self.port = _port(option("--adapter"), option("--command"), option("--time-limit"))
        self.cases = {case.name: case for case in [*standard(), *drawn(option("--draws"), option("--ladder-seed"))]}
        self.expectations = read_expectations(option("--expect")) if option("--expect") else []
        self.outcomes: dict[str, Outcome] = {}
        self.examined: dict[str, list[str]] = {}

    def outcome(self, name: str) -> Outcome:
        """The outcome of a case, which is asked for once."""
        if name not in self.outcomes:
            before = list(self.outcomes.values())
            self.outcomes[name] = outcome_of(self.port, self.cases[name], "numpy", self.expectations, before)
        return self.outcomes[name]

    def evidence(self, name: str, rung: str, folder: Path) -> list[str]:
        """Lines about the first wrong tensor of the case, if that is on this rung and its cause was not met before."""
        outcome = self.outcome(name)
        if outcome not in first_failures(list(self.outcomes.values())) or outcome.rungs[rung].first != outcome.first:
            return []
        if name not in self.examined:
            self.examined[name] = evidence_of(self.port, outcome, "numpy", folder).lines
        return self.examined[name]


def _port(adapter: str | None, command: str | None, seconds: float) -> Port:
    if (adapter is None) == (command is None):
        raise InputError("give one of --adapter package.module:Adapter and --command WORDS")
    return find_adapter(adapter) if adapter is not None else Program(str(command), seconds)


LADDER = pytest.StashKey[Ladder]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each case and rung."""
    config = metafunc.config
    if LADDER not in config.stash:
        try:
            config.stash[LADDER] = Ladder(config)
        except InputError as error:
            raise pytest.UsageError(str(error)) from error
    if "rung" in metafunc.fixturenames:
        pairs = [(name, rung) for name in config.stash[LADDER].cases for rung in RUNGS]
        metafunc.parametrize(("case", "rung"), pairs, ids=[f"{name}-{rung}" for name, rung in pairs])


@pytest.fixture
def ladder(pytestconfig: pytest.Config) -> Ladder:
    """The ladder of this run."""
    return pytestconfig.stash[LADDER]


def test_rung(ladder: Ladder, case: str, rung: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The port computes what the reference does, or says that it does not compute it."""
    found = ladder.outcome(case).rungs[rung]
    if found.state in BAD:
        evidence = ladder.evidence(case, rung, tmp_path_factory.getbasetemp())
        pytest.fail("\n".join([found.says, *evidence]), pytrace=False)
    if found.state == EXPECTED:
        pytest.xfail(found.says)
    if found.state != PASSED:
        pytest.skip(f"{found.state}: {found.says}")


def test_something_is_shown(ladder: Ladder) -> None:
    """A port that shows nothing does not conform."""
    assert any(rung.state == PASSED for name in ladder.cases for rung in ladder.outcome(name).rungs.values())
