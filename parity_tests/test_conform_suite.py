"""`pytest --pyargs numpygpt.checks.suite` judges a port in a folder of its own, as its author would run it."""

import pytest

from parity_tests.command import python

PORT = """
import numpy as np
from numpygpt.checks.trace import is_given, retrace


class Sound:
    def run(self, config, settings, given):
        tensors = {}

        def tell(name, array):
            if not is_given(name):
                tensors[name] = np.array(array)

        retrace(config, settings, given, np.float64, tell)
        return tensors


class ForwardOnly(Sound):
    rungs = ("forward",)

    def run(self, config, settings, given):
        tensors = super().run(config, settings, given)
        return {name: tensors[name] for name in ("logits", "loss")}


class Wrong(ForwardOnly):
    def run(self, config, settings, given):
        return {name: 2 * array for name, array in super().run(config, settings, given).items()}
"""


@pytest.fixture
def suite(tmp_path):
    """A function that runs the suite with an adapter of PORT."""
    (tmp_path / "my_port.py").write_text(PORT)

    def run(*options):
        arguments = ["-p", "no:cacheprovider", "-rN", *options]  # no summary, which under CI repeats whole messages
        return python("-m", "pytest", "-q", "--pyargs", "numpygpt.checks.suite", *arguments, cwd=tmp_path)

    return run


def test_a_sound_port_passes(suite):
    done = suite("--adapter", "my_port:Sound", "--draws", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "48 passed, 1 skipped" in done.stdout, "the drawn model generates nothing"


def test_what_is_not_shown_is_skipped(suite):
    done = suite("--adapter", "my_port:ForwardOnly", "--draws", 0, "-k", "1-one-head")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 5 skipped" in done.stdout


def test_a_wrong_port_fails_unless_it_is_expected_and_each_cause_is_diagnosed_once(suite, tmp_path):
    (tmp_path / "known.toml").write_text('[[fail]]\ncase = "2-*"\nrung = "forward"\nreason = "doubled"\n')
    options = ("--draws", 0, "-k", "head-forward or heads-forward or blocks-forward", "--expect", "known.toml")
    done = suite("--adapter", "my_port:Wrong", *options)
    assert done.returncode == 1
    assert "logits: " in done.stdout
    assert "2 failed" in done.stdout
    assert "1 xfailed" in done.stdout
    assert done.stdout.count("your `logits` is 2 times what its inputs lead to") == 1
    assert done.stdout.count("to look further: numpygpt diff ") == 1


def test_without_a_port_one_line_says_what_to_give(suite):
    done = suite()
    assert done.returncode != 0
    assert "give one of --adapter package.module:Adapter and --command WORDS" in done.stdout + done.stderr
