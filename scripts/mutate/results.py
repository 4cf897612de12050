"""The folder of results: what each test calls, and what came of each mutant."""

import json
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any


def calls_into(module: str) -> Callable[[str], bool]:
    """Whether a function of this name is one of the module's."""
    return lambda name: name.startswith(f"{module}:")


class Results:
    """What is known so far; each addition is in the files at once.

    tests      {test: passed, seconds, calls}, in tests.json
    outcomes   {(module, operator, occurrence, line): outcome, ...}, in mutants.jsonl; the last line of a mutant counts
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._tests_file, self._mutants_file = folder / "tests.json", folder / "mutants.jsonl"
        self.tests: dict[str, Any] = json.loads(self._tests_file.read_text()) if self._tests_file.exists() else {}
        self.outcomes: dict[tuple[Any, ...], str] = {}
        self._kills: Counter[tuple[str, str]] = Counter()
        lines = self._mutants_file.read_text().splitlines() if self._mutants_file.exists() else []
        for line in lines:
            self._count(json.loads(line))

    def add_tests(self, found: dict[str, Any]) -> None:
        self.tests |= found
        self._tests_file.write_text(json.dumps(self.tests))
        not_passed = [name for name, test in found.items() if not test["passed"]]
        seconds = sum(test["seconds"] for test in found.values())
        print(f"{len(found)} tests took {seconds:.0f} s; not passed: {not_passed}", flush=True)

    def add(self, mutant: tuple[Any, ...], change: tuple[str, str], facts: dict[str, Any]) -> None:
        one = {"mutant": mutant, "before": change[0], "after": change[1], **facts}
        with self._mutants_file.open("a") as file:
            print(json.dumps(one), file=file)
        self._count(one)
        module, _, _, line = mutant
        print(f"{time.strftime('%H:%M:%S')} {module}:{line} {facts['outcome']} {facts.get('test') or ''}", flush=True)

    def _count(self, one: dict[str, Any]) -> None:
        """What killed a mutant is likely to kill its neighbors.

        It may take longer than it did when it was measured, after tests whose references it shares. Its time is known
        if it was the first test.
        """
        self.outcomes[tuple(one["mutant"])] = one["outcome"]
        if one["outcome"] == "killed" and one.get("first") and one["test"] in self.tests:
            self.tests[one["test"]]["seconds"] = one["seconds"]
        for place in (one["mutant"][0], *one.get("functions", ())):
            self._kills[place, one.get("test") or ""] += 1

    def selection(
        self, places: Iterable[str], calls: Callable[[str], bool], collected: Container[str], seconds: float
    ) -> tuple[list[str], bool]:
        """The collected tests that call such a function, for so many seconds, and whether these are all.

        The first are those that have killed most mutants of these places (functions, or their module) for the time
        that they take, and the quick ones.
        """
        names = [
            name
            for name, test in self.tests.items()
            if name in collected and test["passed"] and any(calls(call) for call in test["calls"])
        ]
        names.sort(key=lambda name: (-self._kills_in_a_second(name, places), self.tests[name]["seconds"]))
        chosen: list[str] = []
        spent = 0.0
        for name in names:
            spent += self.tests[name]["seconds"]
            if chosen and spent > seconds:
                break
            chosen.append(name)
        return chosen, len(chosen) == len(names)

    def _kills_in_a_second(self, name: str, places: Iterable[str]) -> float:
        """A test that takes no time takes a hundredth of a second, for the fork.

        One that has killed nothing here has killed a twentieth, so that a quick one comes before a slow one that has.
        """
        return (0.05 + sum(self._kills[place, name] for place in places)) / (self.tests[name]["seconds"] + 0.01)
