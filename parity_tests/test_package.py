"""The package as pip installs it: everything that the code reads at run time is in the wheel and in the sdist."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from parity_tests.command import python

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder that holds the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", folder],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def in_the_wheel(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def in_the_sdist(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_every_file_of_both_packages_is_in_the_wheel_and_in_the_sdist(in_the_wheel, in_the_sdist):
    here = {
        str(path.relative_to(ROOT))
        for package in ("numpygpt", "torchgpt")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert here <= in_the_wheel
    assert here <= in_the_sdist
    assert {"numpygpt/py.typed", "torchgpt/py.typed"} <= here, "type checkers read our annotations"


@pytest.mark.parametrize(("file", "terms"), [("gpt2.tiktoken", "LICENSE"), ("the-verdict.txt", "NOTICE")])
def test_what_ships_has_its_terms_beside_it(in_the_wheel, file, terms):
    assert {f"numpygpt/data/{file}.gz", f"numpygpt/data/{file}.{terms}"} <= in_the_wheel
    assert any(name.endswith(f".dist-info/licenses/numpygpt/data/{file}.{terms}") for name in in_the_wheel)


def test_the_packages_of_the_wheel_find_what_ships_with_them(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpygpt; from numpygpt.data.story import find_verdict; from numpygpt.data.texts import read_text\n"
        "assert numpygpt.__file__.startswith(sys.argv[1])\n"
        "print(len(numpygpt.get_tokenizer('gpt2').encode(read_text(find_verdict()))))"
    )
    done = python("-c", code, tmp_path, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("5145\n", "")
