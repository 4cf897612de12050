"""Which changes there are: every place of a module where an operator of cosmic-ray applies."""

import re
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import mutate_code

from mutate import ROOT

CONFIG = tomllib.loads((ROOT / "scripts" / "mutation.toml").read_text())["cosmic-ray"]


class Mutant(NamedTuple):
    """The `occurrence`-th place of a module where an operator applies, and the line where that is."""

    module: str
    operator: str
    occurrence: int
    line: int


def all_mutants(places: list[str]) -> Iterator[Mutant]:
    """The mutants of these modules and folders, or of those in mutation.toml, which also says what is excluded."""
    excluded = re.compile("|".join(CONFIG["filters"]["operators-filter"]["exclude-operators"]))
    names = [name for name in cosmic_ray.plugins.operator_names() if not excluded.match(name)]
    operators = {name: cosmic_ray.plugins.get_operator(name) for name in names}
    ready = {name: operator() for name, operator in operators.items() if not operator.arguments()}
    for path in _files(places or CONFIG["module-path"]):
        nodes = list(ast_nodes(get_ast_from_path(path)))
        for name, operator in ready.items():
            positions = [start for node in nodes for start, _ in operator.mutation_positions(node)]
            for occurrence, (line, _) in enumerate(positions):
                yield Mutant(path.relative_to(ROOT).as_posix(), name, occurrence, line)


def _files(places: list[str]) -> Iterator[Path]:
    for place in places:
        path = ROOT / place
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


@lru_cache(2)
def changed_text(mutant: Mutant) -> str:
    """The whole text of the module with the change."""
    operator = cosmic_ray.plugins.get_operator(mutant.operator)()
    return str(mutate_code((ROOT / mutant.module).read_text(), operator, mutant.occurrence))


def changed_line(mutant: Mutant) -> tuple[str, str]:
    """The first line that differs, before and after."""
    before, after = (ROOT / mutant.module).read_text().splitlines(), changed_text(mutant).splitlines()
    old, new = next(((old, new) for old, new in zip(before, after, strict=False) if old != new), ("", ""))
    return old.strip(), new.strip()
