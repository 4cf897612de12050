"""The check of the gradients of numpygpt passes what is right, finds what is wrong, and else gives no verdict."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from numpygpt.checks import own_gradients
from numpygpt.checks.derivatives import ROUNDING, STEP, THRESHOLD, complex_step
from numpygpt.checks.own_gradients import Case, Verdict, check, judge
from numpygpt.checks.records import OPERATIONS
from numpygpt.layers import parameters as p
from numpygpt.layers import projection
from numpygpt.ops import cross_entropy, gelu, gelu_erf, layer_norm, linear, softmax
from parity_tests.command import python, run


def rng():
    return np.random.default_rng(7)


X, Y = rng().standard_normal((2, 2, 3))
CASES = [
    Case("linear", linear, {"x": X, "weight": rng().standard_normal((4, 3)), "bias": np.arange(4.0)}),
    Case("layer_norm", layer_norm, {"x": X, "scale": Y[0], "shift": Y[1]}, {"eps": 0.5}),
    Case("gelu", gelu, {"x": X}),
    Case("softmax", softmax, {"x": X}),
    Case("cross_entropy", cross_entropy, {"logits": X, "targets": np.array([2, 0])}),
]
MODELS = {f"model, {what}{tied}" for what in ("logits", "loss") for tied in ("", ", tied")}


def with_backward(case, wrong):
    """The case with `wrong(gradients)` in place of the gradients of its backward."""
    operation = SimpleNamespace(
        forward=case.operation.forward,
        backward=lambda d_output, saved: wrong(case.operation.backward(d_output, saved)),
    )
    return case._replace(operation=operation)


SHIPPED = [(name, record) for name, record in OPERATIONS.items() if not isinstance(record.complex_step, str)]


def rows(output):
    """The cells of the command's table, which has a row for each gradient."""
    has_an_error = re.compile(r"\s(\d\.\de[+-]\d\d|inf)\s")
    return [re.split(r"\s{2,}", line) for line in output.splitlines() if has_an_error.search(line)]


# Every case


def test_every_gradient_of_the_project_is_right():
    """The command runs as a person runs it, on every operation, every layer, and the small model, untied and tied."""
    done = python("-m", "numpygpt", "gradcheck")
    assert done.stderr == ""
    assert done.returncode == 0
    assert re.search(r"^\d+ right\b.*, \d+ zero, 0 wrong$", done.stdout, re.MULTILINE)
    table = rows(done.stdout)
    assert {case for case, *_ in table} == {case.name for case in own_gradients.cases(rng())} | MODELS
    assert {name for name, _ in SHIPPED} <= {case.partition(",")[0] for case, *_ in table}
    zeros = [gradient for _, gradient, *_, verdict in table if verdict == "zero, as it should be"]
    assert zeros
    assert all(gradient.endswith(".W_key.bias") for gradient in zeros), "every other gradient must get a verdict"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_right_backward_passes_for_every_argument(case):
    verdicts = check(case, rng())
    differentiated = [f"d_{name}" for name, array in case.arguments.items() if array.dtype == np.float64]
    assert [verdict.gradient for verdict in verdicts] == differentiated
    assert all(verdict.passed is True for verdict in verdicts)


# Wrong backwards


@pytest.mark.parametrize(
    ("case", "field"),
    [
        pytest.param(case, field, id=f"{case.name}-{field}")
        for case in CASES
        for field in case.operation.Gradients._fields
    ],
)
def test_an_error_just_above_the_threshold_is_found_and_one_just_below_is_not(case, field):
    for factor, passes in ((1 + 10 * THRESHOLD, False), (1 + THRESHOLD / 10, True)):
        scaled = with_backward(
            case, lambda g, factor=factor: g._replace(**{field: getattr(g, field) * factor})
        )
        verdicts = {verdict.gradient: verdict.passed for verdict in check(scaled, rng())}
        assert verdicts.pop(f"d_{field}") is passes
        assert all(verdicts.values()), "the other gradients are right"


WITHOUT_THE_RESIDUAL = """
import sys
from numpygpt.checks import own_gradients
from numpygpt.commands import main as cli
from numpygpt.model.config import GPTConfig
from numpygpt.layers import transformer_block

right = transformer_block.backward

def wrong(d_y, saved, **options):
    gradients = right(d_y, saved, **options)
    return gradients._replace(x=gradients.x - d_y)

transformer_block.backward = wrong
own_gradients.cases = lambda rng: iter(())
own_gradients.SMALL_MODEL = GPTConfig(5, 4, emb_dim=4, n_heads=2, n_layers=1, drop_rate=0.3, qkv_bias=False)
sys.exit(cli.main(["gradcheck"]))
"""


def test_a_wrong_backward_inside_a_model_is_found():
    """A gradient that lacks the path of the residual is wrong below the block, and right within it and above."""
    done = python("-c", WITHOUT_THE_RESIDUAL)
    assert done.stderr == ""
    assert done.returncode == 1
    wrong = {(case, gradient) for case, gradient, *_, verdict in rows(done.stdout) if verdict == "WRONG"}
    assert wrong == {(model, name) for model in MODELS for name in ("d_tok_emb.weight", "d_pos_emb.weight")}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_element_that_is_not_finite_fails(value):
    def spoil(gradients):
        gradients.x[1, 2] = value
        return gradients

    (verdict,) = check(with_backward(CASES[2], spoil), rng())
    assert verdict.passed is False


def test_a_missing_gradient_fails():
    verdicts = check(with_backward(CASES[0], lambda gradients: gradients._replace(bias=None)), rng())
    assert [verdict.passed for verdict in verdicts] == [True, True, False]


def test_a_gradient_that_nobody_asked_for_fails():
    some = CASES[0]._replace(options={"wanted": ("x", "bias")})
    assert [verdict.gradient for verdict in check(some, rng())] == ["d_x", "d_bias"]
    assert all(verdict.passed for verdict in check(some, rng()))
    unasked_too = with_backward(some, lambda gradients: gradients._replace(weight=np.ones((4, 3))))
    *asked_for, unasked = check(unasked_too, rng())
    assert [verdict.passed for verdict in asked_for] == [True, True]
    assert unasked == Verdict("linear", "d_weight", 12, float("inf"), False)


# Verdicts


def test_the_threshold_sees_the_smallest_real_mistakes_and_passes_what_is_right():
    """Constants of six digits in a backward gave an error of at least 1.5e-9; right code agrees to a few 1e-14."""
    assert THRESHOLD == 1e-11


def verdicts(ours, references):
    return [verdict.passed for verdict in judge("case", ours, references)]


def test_a_verdict_says_what_it_is_about():
    (verdict,) = judge("case", {"x": X}, {"x": X})
    assert verdict == Verdict("case", "d_x", X.size, 0.0, True)


def test_missing_misshaped_and_nan_gradients_fail():
    nan = X.copy()
    nan[0, 0] = np.nan
    references = {"x": X, "y": Y}
    assert verdicts({"x": X, "y": Y}, references) == [True, True]
    assert verdicts({"y": Y}, references) == [False, True]
    assert verdicts({"x": X.T, "y": Y}, references) == [False, True]
    assert verdicts({"x": X[:1], "y": Y}, references) == [False, True], "not even where it would broadcast"
    assert verdicts({"x": nan, "y": Y}, references) == [False, True]
    assert verdicts({"x": X, "y": Y}, {"x": nan, "y": Y})[0] is False, "a NaN in the reference"
    assert verdicts({"x": nan, "y": Y}, {"x": nan, "y": Y})[0] is False, "NaN does not equal NaN"


def test_a_zero_reference_gives_no_verdict():
    """Any multiple of zero is right, so nothing was checked. But a gradient that should be zero and is not is wrong."""
    zero = np.zeros((2, 3))
    rounding = ROUNDING / 2 * np.linalg.norm(Y) * X / np.linalg.norm(X)
    for reference in (zero, rounding):
        assert verdicts({"x": zero, "y": Y}, {"x": reference, "y": Y}) == [None, True]
        assert verdicts({"x": rounding, "y": Y}, {"x": reference, "y": Y}) == [None, True]
        assert verdicts({"x": X, "y": Y}, {"x": reference, "y": Y}) == [False, True]
        assert verdicts({"x": np.full((2, 3), np.nan), "y": Y}, {"x": reference, "y": Y}) == [False, True]
    assert verdicts({"x": zero}, {"x": zero}) == [None]
    assert verdicts({"x": rounding}, {"x": zero}) == [False]
    assert verdicts({}, {"x": zero}) == [False]


def test_a_cotangent_that_kills_the_gradient_lets_nothing_pass():
    class Ones(np.random.Generator):
        def standard_normal(self, size=None):
            return np.ones(size)

    ones = Ones(np.random.PCG64())
    for backward in (lambda gradients: gradients, lambda gradients: gradients._replace(x=0 * gradients.x)):
        (verdict,) = check(with_backward(CASES[3], backward), ones)
        assert verdict.passed is not True


def test_the_cotangents_are_random():
    drawn = []

    def record(d_output, saved):
        drawn.append(d_output)
        return softmax.backward(d_output, saved)

    operation = SimpleNamespace(forward=softmax.forward, backward=record)
    generator = rng()
    for _ in range(2):
        check(Case("softmax", operation, {"x": X}), generator)
    assert drawn[0].shape == X.shape
    assert np.unique(drawn).size == 2 * X.size


# The complex step


def test_complex_step_is_exact_on_a_polynomial():
    gradient = complex_step(lambda x: (Y * x**3).sum(), X)
    assert gradient.dtype == np.float64
    (verdict,) = judge("cubes", {"x": 3 * Y * X**2}, {"x": gradient})
    assert verdict.error < 10 * np.finfo(np.float64).eps


def test_complex_step_sees_one_element_at_a_time_and_leaves_x_alone():
    before, seen = X.copy(), []
    complex_step(lambda x: seen.append(x.imag.copy()) or x.sum(), X)
    assert np.array_equal(X, before)
    assert len(seen) == X.size
    assert all(np.count_nonzero(imag) == 1 for imag in seen)
    assert np.array_equal(np.sum(seen, axis=0), np.full(X.shape, STEP))


def test_trees_of_parameters_are_checked_by_their_paths():
    operation = SimpleNamespace(forward=_gelu_of_weight, backward=_gelu_backward)
    (verdict,) = check(Case("gelu of a tree", operation, {"parameters": p.Linear(X)}), rng())
    assert (verdict.gradient, verdict.passed) == ("d_parameters.weight", True)


def _gelu_of_weight(parameters):
    return gelu.forward(parameters.weight)


def _gelu_backward(d_y, saved):
    return projection.Gradients(None, p.Linear(gelu.backward(d_y, saved).x))


# The command


@pytest.mark.parametrize(("factor", "status"), [(1, 0), (1 + 100 * THRESHOLD, 1)])
def test_the_command_exits_with_1_where_a_gradient_is_wrong_and_names_it(monkeypatch, capsys, factor, status):
    right = gelu.backward
    monkeypatch.setattr(gelu, "backward", lambda d_y, saved: gelu.Gradients(right(d_y, saved).x * factor))
    monkeypatch.setattr(own_gradients, "cases", lambda rng: iter(CASES[1:4]))
    monkeypatch.setattr(own_gradients, "check_model", lambda config, rng: [])
    assert run("gradcheck") == status
    out = capsys.readouterr().out
    wrong = [line.split()[:2] for line in out.splitlines() if line.endswith("WRONG")]
    assert wrong == [["gelu", "d_x"]] * status
    assert out.endswith(f"\n{5 - status} right, 0 zero, {status} wrong\n")


def test_without_scipy_everything_else_is_checked_and_what_is_left_out_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "scipy", None)
    in_a_layer = CASES[2]._replace(name="in a layer", options={"activation": "gelu_erf"})
    exact = [Case("exact", gelu_erf, {"x": X}), in_a_layer]
    models = []
    monkeypatch.setattr(own_gradients, "cases", lambda rng: iter([CASES[0], *exact]))
    monkeypatch.setattr(own_gradients, "check_model", lambda config, rng: models.append(config) or [])
    assert run("gradcheck") == 0
    assert capsys.readouterr().out.endswith(
        "\n3 right, 0 zero, 0 wrong\n"
        "not checked, because SciPy is not installed (pip install scipy): exact; in a layer\n"
    )
    assert [config.activation for config in models] == ["gelu_tanh", "gelu_tanh"]
    assert [config.bias for config in models] == [True, False]
