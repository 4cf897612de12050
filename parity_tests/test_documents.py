"""What the documents say is true: links lead somewhere, commands are commands, code runs, rooms are as they say."""

import ast
import pkgutil
import re
import shlex
from pathlib import Path

import pytest

from numpygpt.commands import main as command
from parity_tests.command import python
from torchgpt.commands.main import PROGRAM

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}


def blocks(language):
    """(document, code) of every block of that language in the documents."""
    return [
        (name, code) for name, text in TEXTS.items() for code in re.findall(rf"```{language}\n(.*?)```", text, re.S)
    ]


def lines_of_shell(program):
    """(document, line) for every line that a reader may type and that begins with the name of the program."""
    return [
        (name, line.partition(" #")[0].strip())
        for name, code in blocks("sh")
        for line in code.splitlines()
        if line.startswith(f"{program} ")
    ]


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_to_a_file(name):
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]*)\)", TEXTS[name])]
    missing = [
        link for link in links if link and "://" not in link and not (ROOT / name).parent.joinpath(link).exists()
    ]
    assert not missing


@pytest.mark.parametrize(("name", "line"), lines_of_shell("numpygpt"))
def test_every_command_is_one(name, line):
    assert callable(command._parser(command.NUMPYGPT).parse_args(shlex.split(line)[1:]).run)


def commands_of_torchgpt():
    """(document, arguments of torchgpt) of every command that a reader may type, whole, alone or after torchrun's."""
    for name, code in blocks("sh"):
        for line in code.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line, comments=True) or [""]
            if program == "torchrun":
                yield name, arguments[arguments.index("torchgpt") + 1 :]
            elif program == "torchgpt":
                yield name, arguments


@pytest.mark.parametrize(("name", "arguments"), list(commands_of_torchgpt()))
def test_every_command_of_torchgpt_is_one(name, arguments):
    assert callable(command._parser(PROGRAM).parse_args(arguments).run)


@pytest.mark.parametrize(("name", "line"), lines_of_shell("python"))
def test_every_script_is_there(name, line):
    assert (ROOT / shlex.split(line)[1]).is_file()


def test_every_target_of_make_is_one():
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {target for text in TEXTS.values() for target in re.findall(r"`make ([a-z0-9-]+)", text)}
    named |= {shlex.split(line)[1] for _, line in lines_of_shell("make")}
    assert named <= targets
    assert named >= {"demo", "test", "lint", "install"}


@pytest.mark.parametrize("name", sorted({name for name, _ in blocks("python")}))
def test_the_code_of_a_document_runs(name):
    """It runs in a process of its own, without the checks of annotations."""
    done = python("-c", "".join(code for other, code in blocks("python") if other == name))
    assert (done.returncode, done.stderr) == (0, "")


def test_pictures_are_small():
    pictures = list((ROOT / "docs").glob("*.png"))
    assert pictures
    assert all(picture.stat().st_size < 150 * 1024 for picture in pictures)


@pytest.mark.parametrize("name", sorted(set(TEXTS) - {"docs/performance-log.md", "docs/mutation.md"}))
def test_every_path_and_module_in_code_quotes_is_there(name):
    """The two documents that tell of the past are exceptions."""
    for quoted in re.findall(r"`((?:numpygpt|torchgpt|parity_tests|scripts|docs)[/.][\w/.]*\w)[`(/]", TEXTS[name]):
        if "/" in quoted:
            assert (ROOT / quoted).exists(), quoted
        else:
            pkgutil.resolve_name(quoted)


# The rooms


ROOMS = re.findall(r"^numpygpt/([a-z0-9]+) ", TEXTS["docs/library.md"], re.M)


def imported_by(path):
    """The modules that a file imports, also inside of functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_room_is_listed():
    folders = {path.parent.name for path in (ROOT / "numpygpt").glob("*/__init__.py")}
    assert sorted(ROOMS) == sorted(folders)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_those_below_it_alone(room):
    above = {f"numpygpt.{name}" for name in ROOMS[: ROOMS.index(room)]}
    for path in (ROOT / "numpygpt" / room).rglob("*.py"):
        assert not {module for module in imported_by(path) if ".".join(module.split(".")[:2]) in above}, path


def test_modules_outside_of_the_rooms_import_from_none():
    rooms = {f"numpygpt.{name}" for name in ROOMS}
    for path in (ROOT / "numpygpt").glob("*.py"):
        if path.name not in ("__init__.py", "__main__.py"):  # the package's face, and the command's
            assert not {module for module in imported_by(path) if ".".join(module.split(".")[:2]) in rooms}, path


def test_numpygpt_imports_torchgpt_nowhere():
    for path in (ROOT / "numpygpt").rglob("*.py"):
        assert not [module for module in imported_by(path) if module.partition(".")[0] == "torchgpt"], path
