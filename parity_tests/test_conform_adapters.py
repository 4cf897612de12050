"""The adapters that ship conform. They are asked in other processes, which lack the checks of annotations."""

import re
from pathlib import Path

import pytest
from hypothesis import settings

from numpygpt.checks.conform.judging import PASSED
from numpygpt.checks.conform.rungs import RUNGS
from numpygpt.checks.standard import STANDARD
from parity_tests.command import python

EXAMPLES = Path(__file__).parents[1] / "examples" / "conformance"
#: Compiling takes too long for fewer examples than those of `make parity-long`.
MANY = 1000


def conform(*options, **settings):
    return python("-m", "numpygpt", "conform", *options, **settings)


def test_pytorch_and_hugging_face_conform():
    """One process asks all three, because importing PyTorch takes longer than the ladder."""
    code = (
        "from numpygpt.commands.main import main\n"
        "for name in ('Eager', 'Sdpa', 'HuggingFace'):\n"
        "    adapter = f'torchgpt.checks.adapters:{name}'\n"
        "    print(main(['conform', '--adapter', adapter, '--draws', '2']))\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line == "0" for line in lines) == 3, done.stdout
    assert sum(line.startswith("conforms in 9 cases: forward") for line in lines) == 1
    assert sum(bool(re.match(r"conforms in [78] of 9 cases, \d not computed: forward", line)) for line in lines) == 2
    assert sum(line.startswith("not shown: it draws its own dropout masks") for line in lines) == 2


@pytest.mark.long_form
def test_a_compiled_model_conforms():
    if settings().max_examples < MANY:
        pytest.skip("compiling takes 40 s; make parity-long runs it")
    done = conform("--adapter", "torchgpt.checks.adapters:Compiled", "--cases", "1-*", "--draws", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not shown: activations, activation-gradients, generation" in done.stdout


def test_the_example_in_jax_conforms():
    done = conform("--adapter", "jax_gpt:Adapter", "--cases", "6-*", "--draws", 0, cwd=EXAMPLES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "conforms in 1 case: forward 2/2 tensors, activations 21/21" in done.stdout
    assert "not shown" not in done.stdout


def test_the_example_in_tinygrad_conforms():
    """One step and one new token of the smallest model, because tinygrad takes long to make its kernels."""
    code = (
        "from numpygpt.checks.conform.adapter import find_adapter\n"
        "from numpygpt.checks.conform.cases import standard\n"
        "from numpygpt.checks.conform.judging import judge\n"
        "case = standard()[0]\n"
        "case = case._replace(settings=case.settings._replace(steps=1, new_tokens=1))\n"
        "outcome = judge(find_adapter('tinygrad_gpt:Adapter'), case, 'numpy')\n"
        "print(outcome.says, *(f'{name} {rung.state} {rung.shown}/{rung.of}' for name, rung in outcome.rungs.items()))"
    )
    done = python("-c", code, cwd=EXAMPLES)
    assert done.returncode == 0, done.stderr
    shown = [word for word in done.stdout.split() if "/" in word]
    assert shown == ["2/2", "21/21", "18/18", "22/22", "54/54", "2/2"]
    assert done.stdout.split().count(PASSED) == len(RUNGS)


@pytest.mark.long_form
@pytest.mark.parametrize("name", STANDARD)
def test_the_example_in_tinygrad_climbs_the_ladder(name):
    done = conform("--adapter", "tinygrad_gpt:Adapter", "--draws", 0, "--cases", name, cwd=EXAMPLES)
    if name == "7-exact-gelu":
        assert "not shown: erf of tinygrad is exact to 1e-7 only" in done.stdout
    else:
        assert done.returncode == 0, done.stdout + done.stderr
        assert "conforms in 1 case: forward" in done.stdout
