"""The parts of scripts/mutation_run.py: a change reaches every function and constant, and no fork does harm."""

import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from parity_tests.command import python

SCRIPTS = Path(__file__).parents[1] / "scripts"
TEXT = '''
from functools import cache

LIMIT = 3


@cache
def doubled(x, factor=2):
    return x * factor + LIMIT


class Kept:
    size = 1

    def grown(self):
        return [one + self.size for one in (1, 2)]
'''


@pytest.fixture
def parts(monkeypatch):
    """A module of scripts/mutate by its name; all are forgotten afterwards."""
    monkeypatch.syspath_prepend(SCRIPTS)
    yield lambda name: importlib.import_module(f"mutate.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "mutate"]:
        del sys.modules[name]


@pytest.fixture
def module(tmp_path, monkeypatch):
    path = tmp_path / "changeable.py"
    path.write_text(TEXT)
    spec = spec_from_file_location("changeable", path)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "changeable", module)
    spec.loader.exec_module(module)
    return module


def made(code, module, old, new):
    """What `make` says after a change of the module's text, and whether something at import differs."""
    assert TEXT.count(old) == 1
    path = Path(module.__file__)
    change = code.change(path, TEXT.replace(old, new))
    names, constants = code.make(change, code.functions_of(str(path)))
    return [name.split(":")[1] for name in names], constants, change.outside is not None


def test_a_function_gets_its_changed_code_wherever_it_is_kept(parts, module):
    assert made(parts("code"), module, "x * factor", "x - factor") == (["doubled"], False, False)
    assert module.doubled(5) == 5 - 2 + 3
    names, *_ = made(parts("code"), module, "one + self", "one - self")
    assert names == ["Kept.grown", "Kept.grown.<locals>.<listcomp>"][: len(names)]
    assert module.Kept().grown() == [0, 1]


def test_a_default_is_changed(parts, module):
    assert made(parts("code"), module, "factor=2", "factor=4") == (["doubled"], False, True)
    assert module.doubled(5) == 5 * 4 + 3


def test_a_constant_is_changed_in_each_module_that_has_it(parts, module, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "LIMIT", module.LIMIT, raising=False)
    assert made(parts("code"), module, "LIMIT = 3", "LIMIT = 7") == ([], True, True)
    assert module.doubled(5) == 5 * 2 + 7
    assert sys.modules[__name__].LIMIT == 7


@pytest.mark.parametrize(("old", "new"), [("size = 1", "size = 2"), ("@cache\n", "\n")])
def test_what_classes_and_decorators_do_is_left_to_a_new_import(parts, module, old, new):
    assert made(parts("code"), module, old, new) == ([], False, True)


def test_a_function_of_other_code_than_its_text_is_left_to_a_new_import_too(parts, module):
    module.doubled.__wrapped__.__code__ = (lambda x, factor: x).__code__
    assert made(parts("code"), module, "x * factor", "x - factor") == ([], False, False)


def test_a_change_of_a_comment_is_none(parts, module):
    assert made(parts("code"), module, "LIMIT = 3", "LIMIT = 3  # of all") == ([], False, False)


def test_a_fork_answers_and_may_loop_raise_or_end():
    """In a new process: one of the test run may have threads, with which no fork is safe."""
    done = python("-c", FORKS, cwd=SCRIPTS)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["{'outcome': None}", "it takes too long", *["the process ended"] * 3]


FORKS = """
import os, time
from mutate.forks import MEMORY, Ended, in_a_fork

print(in_a_fork(lambda: {"outcome": None}, 60))
for work, seconds in (
    (lambda: time.sleep(60), 0.3), (lambda: 1 / 0, 60), (lambda: os._exit(3), 60), (lambda: bytearray(2 * MEMORY), 60)
):
    found = in_a_fork(work, seconds)
    assert isinstance(found, Ended)
    print(found)
"""


def test_results_are_kept_and_what_has_killed_comes_first(parts, tmp_path, capsys):
    results = parts("results")
    first = results.Results(tmp_path)
    calls = ["ops/a.py:forward", "ops/b.py:forward"]
    first.add_tests(
        {
            "quick": {"passed": True, "seconds": 0.1, "calls": calls},
            "slow": {"passed": True, "seconds": 2.0, "calls": calls[:1]},
            "other": {"passed": True, "seconds": 0.1, "calls": calls[1:]},
            "failing": {"passed": False, "seconds": 0.1, "calls": calls},
        }
    )
    select, known = results.calls_into("ops/a.py"), {"quick", "slow", "other", "failing"}
    assert first.selection(["ops/a.py"], select, known, 1) == (["quick"], False)
    mutant = ("ops/a.py", "core/NumberReplacer", 0, 4)
    first.add(mutant, ("x + 1", "x + 2"), {"outcome": "killed", "test": "slow", "functions": calls[:1]})
    again = results.Results(tmp_path)
    assert again.outcomes == {mutant: "killed"}
    assert again.selection(["ops/a.py"], select, known, 3) == (["slow", "quick"], True)
    assert again.selection(["ops/a.py"], select, known - {"slow"}, 3) == (["quick"], True)
    assert "ops/a.py:4 killed slow" in capsys.readouterr().out
