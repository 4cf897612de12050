"""The adapters that ship conform. They are asked in other processes, which lack the checks of annotations."""

from pathlib import Path

import pytest
from hypothesis import settings

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
    assert sum(line.startswith("conforms in 9 cases: forward") for line in lines) == 3
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
    assert "conforms in 1 cases: forward 2/2 tensors, activations 21/21" in done.stdout
    assert "not shown" not in done.stdout
