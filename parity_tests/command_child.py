"""Runs commands of `numpygpt` one after another: `python -m parity_tests.command_child`.

Each line on standard input has the words of a command, as a list in JSON. A line on standard output has its exit status
and what it printed. No picture of losses is drawn. This process lacks the checks that the test run installs, which make
a step in NumPy a hundred times as long.
"""

import contextlib
import io
import json
import sys

from numpygpt.commands.main import main
from numpygpt.training.run import TrainingRun


def answer(words):
    """The exit status, and what was printed to standard output and to standard error."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(words)
    return status, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    TrainingRun.plot = lambda training: "no picture"
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
