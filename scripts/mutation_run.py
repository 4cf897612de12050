"""Change the mathematics in every place where cosmic-ray can, one change at a time, and see whether a test notices.

    pip install cosmic-ray==8.7.0
    python scripts/mutation_run.py RESULTS                                          # all that mutation.toml names
    python scripts/mutation_run.py RESULTS numpygpt/ops --tests parity_tests/test_op_parity.py
    python scripts/mutation_run.py RESULTS --again --seconds 60                     # what survived, with more tests

RESULTS is a folder. `tests.json` says which functions each test calls and how long it takes; `mutants.jsonl` has a line
for each change that was tried. A run that is stopped goes on where it was. docs/mutation.md says what came of it.

All tests are collected once. A change inside a function is tried in a fork of that process, which gives the function
its changed code and runs the tests that call it, those first that have killed its neighbors and the quick ones, for as
long as --seconds says. Constants and defaults are changed in the same way. What classes and decorators do at import is
tried at last, by importing the package anew. The tests run with 3 random draws, without the checks of annotations.
"""

import argparse
import os
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import Phase, settings
from mutate import ROOT
from mutate.anew import try_anew
from mutate.mutants import CONFIG, all_mutants
from mutate.results import Results
from mutate.session import Session

#: What the tests import that imports nothing of ours: it is in memory before the first fork.
SHARED = ("torch", "transformers", "peft", "trl", "matplotlib.pyplot", "tiktoken", "safetensors.numpy", "scipy.special")
#: The options of pytest. It must not rewrite assertions: a function with one would have other code than its text says.
PYTEST = ["-q", "-p", "no:cacheprovider", "--capture=no", "--tb=native", "--hypothesis-profile", "mutation"]
PYTEST += ["-m", "not long_form", "--assert=plain"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the folder of results")
    parser.add_argument("places", nargs="*", help="modules or folders (default: those of mutation.toml)")
    parser.add_argument("--tests", nargs="+", help="files of tests (default: those of mutation.toml)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of tests for a change (default 5)")
    parser.add_argument("--again", action="store_true", help="try what survived once more")
    arguments = parser.parse_args()
    folder = arguments.results.resolve()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    _prepare()
    results = Results(folder)
    mutants = list(all_mutants(arguments.places))
    tried_again = {"at import", *(("survived", "no test") if arguments.again else ())}
    todo = [mutant for mutant in mutants if results.outcomes.get(mutant, "at import") in tried_again]
    print(f"{len(mutants)} changes, {len(todo)} to try", flush=True)
    session = os.fork()
    if not session:
        tests = arguments.tests or [word for word in CONFIG["test-command"].split() if word.startswith("parity_tests")]
        pytest.main([*tests, *PYTEST], plugins=[Session(results, todo, arguments.seconds)])
        os._exit(0)
    os.waitpid(session, 0)
    results = Results(folder)
    left = [mutant for mutant in mutants if results.outcomes.get(mutant) == "at import"]
    try_anew(results, left, PYTEST, arguments.seconds)
    print(Counter(results.outcomes[mutant] for mutant in mutants if mutant in results.outcomes))


def _prepare() -> None:
    for name in SHARED:
        import_module(name)
    jaxtyping.install_import_hook = lambda *_: None
    settings.register_profile(
        "mutation",
        derandomize=True,
        deadline=None,
        max_examples=3,
        database=None,
        phases=[Phase.explicit, Phase.generate],
    )


if __name__ == "__main__":
    main()
