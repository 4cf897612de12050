"""The experiments of gradcheck: how small an error each method sees, at which step, and which planted bug.

They run in a process of their own, without the checks of annotations, which would make them thirty times as slow.
"""

import re
import sys

import numpy as np
import pytest

from numpygpt.checks import experiments
from numpygpt.checks.lookup import Operation
from numpygpt.checks.records import BUGS
from numpygpt.errors import InputError
from numpygpt.pictures.step_sizes import plot_step_sizes
from parity_tests import user_operations as theirs
from parity_tests.command import python, run
from parity_tests.tolerances import COMPLEX_STEP

GELU = Operation("gelu", theirs.gelu.forward, theirs.gelu.backward, lambda rng: {"x": rng.standard_normal((2, 3))})
PNG = b"\x89PNG"


COMMANDS = {
    "six_digit_constants": ("--bug", "six_digit_constants"),
    "erf_slope_under_tanh": ("--bug", "erf_slope_under_tanh"),
    "erf_gelu": ("--bug", "erf_gelu"),
    "power": ("--power", "numpygpt.ops.gelu"),
    "sweep": ("--sweep", "--png", "sweep.png"),
}
ALL = """if True:
    import sys
    from numpygpt.commands.main import main
    for arguments in sys.argv[1:]:
        print("\\f", end="")
        assert main(["gradcheck", *arguments.split()]) == 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(scope="module")
def printed(folder):
    """What each of COMMANDS prints. They run in one process, so that PyTorch and JAX are loaded once."""
    done = python("-c", ALL, *map(" ".join, COMMANDS.values()), cwd=folder)
    assert done.returncode == 0, done.stderr
    return dict(zip(COMMANDS, done.stdout.split("\f")[1:], strict=True))


# --bug


@pytest.mark.parametrize(
    ("bug", "place", "seen_by"),
    [
        ("six_digit_constants", "numpygpt.ops.gelu", {"complex step", "differences"}),
        ("erf_slope_under_tanh", "numpygpt.ops.gelu", {"complex step", "differences", "jax", "torch slow"}),
        ("erf_gelu", "numpygpt.ops.gelu", set()),
    ],
)
def test_a_planted_bug_is_shown_with_the_methods_that_see_it(printed, bug, place, seen_by):
    out = printed[bug]
    assert out.startswith(f"{bug}: {BUGS[bug].what} ({BUGS[bug].seen_at})\nplanted in {place}\n")
    names = "complex step|differences|jax|torch slow|torch fast"
    methods = dict(re.findall(rf"^({names}) +(sees it|does not)\b", out, re.M))
    assert len(methods) == 5
    assert {method for method, sees in methods.items() if sees == "sees it"} == seen_by
    assert ("no check of gradients sees it here" in out) is not bool(seen_by)


def test_a_bug_outside_of_the_operations_is_planted_in_a_small_model(monkeypatch):
    planted = []
    monkeypatch.setattr(experiments, "methods", lambda: ({"first": lambda *pair: planted.append(pair) or "seen"}, []))
    place, sights = experiments.what_sees(BUGS["tied_head_gradient_forgotten"], 0)
    assert (place, [sight.says for sight in sights]) == ("a small whole model", ["seen"])
    (forward, backward, inputs) = planted[0]
    logits, saved = forward(**inputs)
    assert "parameters.tok_emb.weight" in backward(logits, saved)


# --power


def test_power_measures_the_smallest_error_that_is_seen():
    """A method that sees errors above a known size is measured as such."""

    def sees_above(size):
        def method(forward, backward, inputs):
            output, saved = forward(**inputs)
            ours, right = backward(output, saved)["x"], theirs.gelu.backward(output, saved)["x"]
            error = np.linalg.norm(ours - right) / np.linalg.norm(right)
            return "wrong" if error > size else ""

        return method

    assert experiments.smallest_seen(GELU, sees_above(3e-7), 0) == experiments.SIZES[5]
    assert experiments.smallest_seen(GELU, sees_above(10.0), 0) == np.inf
    assert experiments.smallest_seen(GELU, lambda *pair: "everything is wrong", 0) == experiments.SIZES[-1]


def test_ours_see_errors_of_1e_9_and_smaller_and_the_others_less(printed):
    header, row = (re.split(r"\s{2,}", line.strip()) for line in printed["power"].splitlines()[1:3])
    assert row[0] == "numpygpt.ops.gelu"
    seen = dict(zip(header, [np.inf if cell == "none" else float(cell) for cell in row[1:]], strict=True))
    assert COMPLEX_STEP <= seen["complex step"] <= 100 * COMPLEX_STEP
    assert seen["differences"] <= 100 * COMPLEX_STEP
    assert min(seen["jax"], seen["torch slow"], seen["torch fast"]) > 1000 * seen["complex step"]


def test_what_is_not_installed_is_named(monkeypatch):
    class Entry:
        name = "jax"

        def load(self):
            raise ImportError("no module named jax")

    monkeypatch.setattr(experiments, "entry_points", lambda group: [Entry()])
    methods, absent = experiments.methods()
    assert list(methods) == ["complex step", "differences"]
    assert absent == ["the checks of jax are left out: no module named jax"]


# --sweep


def test_the_sweep_has_the_v_of_differences_and_the_flat_line_of_complex_step():
    """The lowest error of a difference is where truncation and rounding are equal, at u^(1/2) or u^(1/3)."""
    errors = experiments.sweep(GELU, 0)
    assert list(errors) == [f"{m}, {d}" for d in ("float32", "float64") for m in ("forward", "central", "complex")]
    lowest = {method: int(np.argmin(series)) for method, series in errors.items()}  # k of the step 10^-k
    assert 7 <= lowest["forward, float64"] <= 9
    assert 4 <= lowest["central, float64"] <= 6
    assert 2 <= lowest["forward, float32"] <= 5
    for dtype in ("float32", "float64"):
        flat = errors[f"complex, {dtype}"][10:]
        assert max(flat) <= 10 * np.finfo(dtype).eps
        assert min(errors[f"central, {dtype}"]) > 10 * max(flat)


def test_a_forward_without_complex_numbers_has_no_line_of_complex_step():
    real = GELU._replace(forward=experiments.real_only(GELU.forward))
    errors = experiments.sweep(real, 0)
    assert np.isnan(errors["complex, float64"]).all()
    assert np.isfinite(errors["central, float64"]).all()


def test_the_command_prints_a_row_a_step_and_draws(printed, folder):
    out = printed["sweep"]
    assert len(re.findall(r"^ *1e[+-]\d\d( +\S+){6}$", out, re.M)) == len(experiments.SWEPT)
    assert out.endswith("wrote sweep.png\n")
    assert (folder / "sweep.png").read_bytes().startswith(PNG)


def test_a_picture_needs_series_of_one_length():
    with pytest.raises(InputError, match=r"there are 2 steps and series of \[3\] errors"):
        plot_step_sizes(np.ones(2), {"a": np.ones(3)})
    figure = plot_step_sizes(np.array([1.0, 0.1]), {"a, float32": [1.0, np.nan], "b, float64": [0.0, 2.0]})
    (axes,) = figure.axes
    assert [line.get_linestyle() for line in axes.lines] == ["--", "-"]


def test_without_matplotlib_a_line_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(experiments, "sweep", lambda operation, seed: {"a": experiments.SWEPT})
    assert run("gradcheck", "--sweep", "--png", tmp_path / "x.png") == 2
    assert "matplotlib is not installed" in capsys.readouterr().err
