"""The examples print these figures: by hand and by PyTorch, and by hand alone where PyTorch is missing."""

import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from numpygpt.gradcheck import complex_step, judge
from parity_tests.properties import agree

EXAMPLES = Path(__file__).parents[1] / "examples"

AUTODIFF = """\
by hand:     loss 0.0852   d_w -0.0898   d_b -0.0817
by PyTorch:  loss 0.0852   d_w -0.0898   d_b -0.0817
"""

RELU_NETWORK = """\
step       by hand    by PyTorch
   0      0.714063      0.714063
   1      0.695243      0.695243
   2      0.679668      0.679668
   5      0.640597      0.640597
  10      0.569131      0.569131
  20      0.422011      0.422011
  50      0.132169      0.132169
  99      0.049610      0.049610
"""

PARAMETER_COUNT = """\
token embedding, 50257 x 768                                  38,597,376
position embedding, 1024 x 768                                   786,432
one block: queries, keys, values, 3 x 768 x 768, no bias       1,769,472
one block: output projection, 768 x 768 + 768                    590,592
one block: feed-forward in, 3072 x 768 + 3072                  2,362,368
one block: feed-forward out, 768 x 3072 + 768                  2,360,064
one block: two norms, 2 x (scale 768 + shift 768)                  3,072
final norm, scale 768 + shift 768                                  1,536
output head, 50257 x 768, no bias                             38,597,376
one block                                                      7,085,568
12 blocks                                                     85,026,816
total                                                        163,009,536   621.83 MiB in float32
total where the head is the token embedding, as in GPT-2     124,412,160
numpygpt counts                                              163,009,536
PyTorch counts                                               163,009,536
"""

PROBABILITIES = """\
             T = 1   T = 0.1     T = 5
closer      0.0609    0.0000    0.1546
every       0.0016    0.0000    0.0750
effort      0.0001    0.0000    0.0429
forward     0.5721    0.9910    0.2421
inches      0.0034    0.0000    0.0869
moves       0.0001    0.0000    0.0454
pizza       0.0001    0.0000    0.0430
toward      0.3576    0.0090    0.2203
you         0.0040    0.0000    0.0898
"""

TEMPERATURE = f"""\
the likeliest word: forward

probabilities at three temperatures
{PROBABILITIES}
the same by PyTorch
{PROBABILITIES}
the three likeliest words alone
closer      0.0615
forward     0.5775
toward      0.3610

1000 draws at temperature 1, PyTorch's of seed 123
73 x closer
0 x every
0 x effort
582 x forward
2 x inches
0 x moves
0 x pizza
343 x toward
0 x you
"""

#: {example: (what it prints, [(a part of it, what stands there without PyTorch)])}
OUTPUTS = {
    "autodiff": (AUTODIFF, [("loss 0.0852   d_w -0.0898   d_b -0.0817\n", "skipped, PyTorch is not installed\n")]),
    "relu_network": (RELU_NETWORK, []),
    "parameter_count": (
        PARAMETER_COUNT,
        [(PARAMETER_COUNT.splitlines()[-1], "PyTorch's count is skipped: PyTorch is not installed")],
    ),
    "temperature": (TEMPERATURE, [(PROBABILITIES, "skipped: PyTorch is not installed\n")]),
}


def printed_by(name, capsys):
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def test_every_example_has_its_output_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(OUTPUTS)


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_example_prints_its_figures(name, capsys):
    assert printed_by(name, capsys) == OUTPUTS[name][0]


@pytest.mark.parametrize("name", OUTPUTS)
def test_without_pytorch_the_rest_is_printed_and_the_gap_noted(name, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "torchgpt", None)
    expected, replacements = OUTPUTS[name]
    for part, note in replacements:
        expected = note.join(expected.rsplit(part, maxsplit=1))
    if name == "relu_network":
        expected = "PyTorch is not installed: its column is skipped\n" + "".join(
            line[:18] + "\n" for line in expected.splitlines()
        )
    assert printed_by(name, capsys) == expected


def test_the_gradients_by_hand_are_complex_steps():
    network = runpy.run_path(str(EXAMPLES / "relu_network.py"))
    x, y, parameters = network["data_and_parameters"]()

    def loss(name, stepped):
        return network["forward"](x, y, {**parameters, name: stepped})[0]

    references = {name: complex_step(partial(loss, name), parameter) for name, parameter in parameters.items()}
    _, saved = network["forward"](x, y, parameters)
    verdicts = judge("relu_network", network["backward"](saved, parameters), references)
    assert [verdict.passed for verdict in verdicts] == [True] * 4


def test_both_networks_learn_along_one_curve():
    network = runpy.run_path(str(EXAMPLES / "relu_network.py"))
    losses, by_torch = np.array(network["train"]()), np.array(network["train_by_torch"]())
    agree(losses, by_torch, "losses")
    assert losses[-1] < losses[0] / 10
