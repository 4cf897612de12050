"""The examples print these figures, by hand and by PyTorch, or only by hand if PyTorch is missing."""

import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from numpygpt.checks.derivatives import complex_step
from numpygpt.checks.own_gradients import judge
from parity_tests.properties import agree
from parity_tests.tolerances import FLOAT64_CURVE

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

TINY_GPT = """\
step      numpygpt    by PyTorch
   0       16.0204       16.0204
   5        2.8811        2.8811
  10        1.7722        1.7722
  20        1.3899        1.3899
  40        1.3063        1.3063
  59        1.3033        1.3033
floor       1.3015
"""

DECODERS = """\
greedy                    the cat slept on the sofa .   0.1120
beam search, 2 beams      the dog slept on the rug .    0.4420
beam search, 4 beams      the dog slept on the rug .    0.4420
temperature 1             the cat ran to the door .     0.1105
temperature 3             the cat sat on on sofa .      0.0000
temperature 3, top-k 2    the dog slept on the rug .    0.4420
temperature 3, top-p 0.6  the dog slept on the rug .    0.4420
"""

WORD_VECTORS = """\
share of the variance      0.247   0.191
.                         -1.045  -0.656
cat                       -2.821  -0.946
dog                        0.410   2.113
door                       2.388  -0.142
mat                        0.318   0.012
on                        -1.316  -2.281
ran                        0.908   4.654
rug                       -1.085   0.215
sat                       -0.158  -0.557
slept                      0.048  -0.544
sofa                       5.096  -2.058
the                       -1.070  -0.233
to                        -1.673   0.424
wrote runs/word_vectors.png
"""

ATTENTION_MAPS = """\
head 0     the     dog   slept      on     the     rug
the      1.000
dog      0.000   1.000
slept    0.338   0.000   0.662
on       0.344   0.182   0.204   0.270
the      0.000   1.000   0.000   0.000   0.000
rug      0.156   0.001   0.207   0.043   0.589   0.004
head 1     the     dog   slept      on     the     rug
the      1.000
dog      0.570   0.430
slept    0.877   0.057   0.066
on       0.459   0.102   0.248   0.191
the      0.001   0.999   0.000   0.000   0.000
rug      0.001   0.000   0.573   0.399   0.018   0.009
rows that sum to 1: 12 of 12
wrote runs/attention_maps.png
"""

POSITIONS = """\
  0   0.0000   1.0000   0.0000   1.0000   0.0000   1.0000   0.0000   1.0000
  1   0.8415   0.5403   0.0998   0.9950   0.0100   1.0000   0.0010   1.0000
  2   0.9093  -0.4161   0.1987   0.9801   0.0200   0.9998   0.0020   1.0000
  3   0.1411  -0.9900   0.2955   0.9553   0.0300   0.9996   0.0030   1.0000
  4  -0.7568  -0.6536   0.3894   0.9211   0.0400   0.9992   0.0040   1.0000
  5  -0.9589   0.2837   0.4794   0.8776   0.0500   0.9988   0.0050   1.0000
"""

SINUSOIDAL_POSITIONS = f"""\
numpygpt: a line a position, a column a feature
{POSITIONS}by PyTorch
{POSITIONS}dot products: the same along each diagonal, and largest on the main one
  0   4.0000   3.5353   2.5637   1.9649   2.2666   3.1600
  1   3.5353   4.0000   3.5353   2.5637   1.9649   2.2666
  2   2.5637   3.5353   4.0000   3.5353   2.5637   1.9649
  3   1.9649   2.5637   3.5353   4.0000   3.5353   2.5637
  4   2.2666   1.9649   2.5637   3.5353   4.0000   3.5353
  5   3.1600   2.2666   1.9649   2.5637   3.5353   4.0000
"""

#: {example: (what it prints, [(a part of it, what is printed there without PyTorch)])}
OUTPUTS = {
    "autodiff": (AUTODIFF, [("loss 0.0852   d_w -0.0898   d_b -0.0817\n", "skipped, PyTorch is not installed\n")]),
    "relu_network": (RELU_NETWORK, []),
    "parameter_count": (
        PARAMETER_COUNT,
        [(PARAMETER_COUNT.splitlines()[-1], "PyTorch's count is skipped: PyTorch is not installed")],
    ),
    "temperature": (TEMPERATURE, [(PROBABILITIES, "skipped: PyTorch is not installed\n")]),
    "sinusoidal_positions": (SINUSOIDAL_POSITIONS, [(POSITIONS, "skipped: PyTorch is not installed\n")]),
    "tiny_gpt": (TINY_GPT, []),
    "decoders": (DECODERS, []),
    "word_vectors": (WORD_VECTORS, []),
    "attention_maps": (ATTENTION_MAPS, []),
}


@pytest.fixture(autouse=True)
def beside_the_others_in_an_empty_folder(tmp_path, monkeypatch):
    """Each example can import the others, and writes its pictures into an empty folder."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)


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
    if name in ("relu_network", "tiny_gpt"):
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


@pytest.mark.parametrize("name", ["word_vectors", "attention_maps"])
def test_an_example_draws_its_picture(name, capsys, tmp_path):
    printed_by(name, capsys)
    assert (tmp_path / "runs" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_tiny_gpt_learns_along_pytorchs_curve_and_not_below_its_floor():
    example = runpy.run_path(str(EXAMPLES / "tiny_gpt.py"))
    losses = np.array(example["trained"]()[1])
    assert np.abs(losses - example["losses_by_torch"]()).max() <= FLOAT64_CURVE
    assert np.exp(losses.min()) > example["floor"]()
