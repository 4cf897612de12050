"""The plugin of pytest that gives the suite its options: those of `numpygpt conform` under the same names.

pytest loads it by an entry point, since it reads no options from the files of a suite that is named by `--pyargs`. It
adds nothing to a run that does not name the suite.
"""

from pathlib import Path
from typing import Any

import pytest

from numpygpt.checks.suite import SUITE


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(parser: pytest.Parser, args: list[str]) -> None:
    """Declare the options, if the suite is among the arguments."""
    if not any(argument.partition("::")[0].startswith(SUITE) for argument in args):
        return
    group = parser.getgroup("numpygpt conformance")
    options: dict[str, dict[str, Any]] = {
        "--adapter": {"metavar": "MODULE:NAME", "help": "a class in Python with a method run"},
        "--command": {"metavar": "WORDS", "help": "a program, which gets a folder as its last argument"},
        "--draws": {"type": int, "default": 8, "help": "how many models hypothesis draws"},
        "--ladder-seed": {"type": int, "default": 0, "help": "of the drawn models"},
        "--time-limit": {"type": float, "default": 60.0, "help": "the most seconds of --command for a case"},
        "--expect": {"type": Path, "metavar": "FILE", "help": "a TOML file of known skips and failures"},
    }
    for name, settings in options.items():
        group.addoption(name, **settings)
