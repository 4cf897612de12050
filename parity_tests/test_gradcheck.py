"""gradcheck for functions that anybody wrote: it finds what is wrong, passes what is right, and says what it saw."""

import functools
import json
import re

import numpy as np
import pytest
from hypothesis import settings

from numpygpt.checks import gradcheck
from numpygpt.checks.analytic import LOOSEST, Method
from numpygpt.checks.backwards import Backwards
from numpygpt.checks.derivatives import Derivatives
from numpygpt.checks.directions import EVERY_ELEMENT, Directions
from numpygpt.checks.gradients import Reference, _judged
from numpygpt.errors import InputError
from numpygpt.layers import feed_forward
from numpygpt.layers import parameters as p
from numpygpt.ops import cross_entropy, embedding, layer_norm, linear, softmax
from parity_tests import user_operations as theirs
from parity_tests.command import python, run
from parity_tests.house_check import BUGS_OF_GELU, CHECKED, MODEL, real_only, with_errors
from parity_tests.tolerances import COMPLEX_STEP, SEEN


def rng(seed=7):
    return np.random.default_rng(seed)


X = rng().standard_normal((3, 4))
LARGE = rng().standard_normal((EVERY_ELEMENT, 3))


def check(operation, inputs=None, **options):
    inputs = operation.example(rng()) if inputs is None else inputs
    return gradcheck(operation.forward, operation.backward, inputs, **options)


def verdicts(report):
    return {row.argument: row.verdict for row in report.rows}


def said(report, argument):
    (words,) = [row.said for row in report.rows if row.argument == argument]
    return words


# What is right passes, in each form


def test_the_contract_of_an_operation():
    report = check(layer_norm, {"x": X, "scale": X[0], "shift": X[1], "eps": 0.3})
    assert report.verdict == "pass"
    assert verdicts(report) == dict.fromkeys(("x", "scale", "shift"), "right")
    assert {row.method for row in report.rows} == {"complex step"}
    assert all(row.allowed == COMPLEX_STEP for row in report.rows)


def test_plain_tuples_in_and_out():
    report = gradcheck(theirs.rms_norm_forward, theirs.rms_norm_backward, theirs.rms_norm_example(rng()))
    assert (report.verdict, list(verdicts(report))) == ("pass", ["x", "weight"])


def test_several_outputs_of_which_one_has_no_gradient_and_options_by_keyword():
    report = gradcheck(theirs.two_heads_forward, theirs.two_heads_backward, theirs.two_heads_example(rng()))
    assert report.verdict == "pass", str(report)


def test_a_scalar_loss_of_integer_targets():
    report = gradcheck(theirs.mean_loss, cross_entropy.backward, (X, np.array([0, 3, 1])))
    assert verdicts(report) == {"logits": "right"}


def test_trees_of_parameters_ids_and_none():
    weights = rng().standard_normal((8, 4)), rng().standard_normal((4, 8))
    tree = p.FeedForward((p.Linear(weights[0], X[:, :1].sum() * np.ones(8)), (), p.Linear(weights[1], None)))
    report = check(feed_forward, {"x": X, "parameters": tree})
    names = ["x", "parameters.layers.0.weight", "parameters.layers.0.bias", "parameters.layers.2.weight"]
    assert (report.verdict, list(verdicts(report))) == ("pass", names)
    ids = check(embedding, (np.array([[1, 0, 1]]), X))
    assert verdicts(ids) == {"weight": "right"}


@pytest.mark.parametrize("prefix", ["", "d_", "d", "grad_"])
def test_a_gradient_may_have_any_of_four_names(prefix):
    def backward(d_y, saved):
        return {f"{prefix}{name}": gradient for name, gradient in linear.backward(d_y, saved)._asdict().items()}

    inputs = {"x": X, "weight": LARGE[:2, :1] @ X[:1], "bias": X[0, :2]}
    assert gradcheck(linear.forward, backward, inputs).verdict == "pass"


def test_float32_and_numbers_without_axes_are_taken_as_float64():
    def forward(x, factor):
        assert x.real.dtype == factor.real.dtype == np.float64
        return x * factor

    def backward(d_y, x, factor):
        return d_y * factor, (d_y * x).sum()

    assert gradcheck(forward, backward, (X.astype(np.float32), np.array(2.5))).verdict == "pass"


@pytest.fixture(scope="module")
def house():
    """What gradcheck says of each operation: `parity_tests.house_check`, in a process without checks of annotations."""
    done = python("-m", "parity_tests.house_check", SEEN)
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [*CHECKED, MODEL])
def test_every_operation_of_the_house_passes_where_it_has_a_verdict(house, name):
    """A gradient that is zero by theory, as that of the bias of keys, has none."""
    verdicts, _ = house[name]
    assert "right" in verdicts.values()
    assert all(verdict == "right" or "W_key.bias" in leaf for leaf, verdict in verdicts.items()), verdicts


@pytest.mark.parametrize("name", [*CHECKED, MODEL])
def test_an_error_of_1e_9_in_any_gradient_of_any_operation_is_seen(house, name):
    verdicts, with_errors = house[name]
    missed = [leaf for leaf, verdict in verdicts.items() if verdict == "right" and with_errors[leaf] != "WRONG"]
    assert not missed


# Real cases


def test_a_swiglu_that_writes_every_row_to_row_0_is_caught_and_a_sum_would_not_see_it():
    right, wrong = (
        operation.backward(np.ones((4, 5)), tuple(theirs.swiglu.example(rng()).values()))
        for operation in (theirs.swiglu, theirs.swiglu_to_row_0)
    )
    np.testing.assert_array_max_ulp(wrong.gate.sum(axis=0), right.gate.sum(axis=0))
    assert check(theirs.swiglu).verdict == "pass"
    report = check(theirs.swiglu_to_row_0)
    assert verdicts(report) == {"gate": "WRONG", "up": "WRONG"}
    assert said(report, "gate") == "is zero in row 1, 2, 3 of 4; row 0 holds the sum of all"


def test_an_rms_norm_whose_weight_has_the_gradient_none():
    report = check(theirs.rms_norm_without_weight)
    assert (report.verdict, verdicts(report)) == ("fail", {"x": "right", "weight": "WRONG"})
    assert said(report, "weight") == "is missing: backward returns none"
    assert "d_weight is missing" in str(report)


def test_the_weight_gradient_of_llm_c_layer_norm():
    report = check(theirs.layer_norm_of_llm_c)
    assert verdicts(report) == {"x": "right", "scale": "WRONG", "shift": "right"}


@pytest.mark.parametrize("bug", BUGS_OF_GELU)
def test_a_slightly_wrong_slope_of_gelu_is_seen_by_complex_step_and_by_differences(house, bug):
    """In a small and in a large tensor."""
    assert house[bug] == ["complex step: WRONG", "differences: WRONG"] * 2


# How small an error is seen


@pytest.mark.parametrize("x", [X, LARGE], ids=["small", "large"])
def test_differences_see_what_they_say_and_pass_what_is_right(x):
    (row,) = gradcheck(real_only(theirs.gelu.forward), theirs.gelu.backward, (x,)).rows
    assert (row.method, row.verdict) == ("differences", "right")
    assert row.error <= row.allowed <= SEEN
    wrong = with_errors(theirs.gelu.backward, 4 * row.allowed)
    assert gradcheck(real_only(theirs.gelu.forward), wrong, (x,)).verdict == "fail"


def test_one_wrong_element_of_a_large_gradient_is_seen():
    def wrong(d_y, saved):
        d_x = theirs.gelu.backward(d_y, saved)["x"]
        d_x[57, 2] *= 1.001
        return (d_x,)

    assert gradcheck(theirs.gelu.forward, wrong, (LARGE,)).verdict == "fail"


@pytest.mark.long_run
def test_no_false_alarm_in_clean_runs():
    """Up to 10,000 runs with `make parity-long`, at scales from 1e-3 to 1e3. Of 108, each kind has 6."""
    runs = max(108, settings().max_examples)
    done = python("-m", "parity_tests.clean_runs", runs)
    assert done.stderr == ""
    assert re.fullmatch(rf"([\w ]+: \d+ pass, \d+ no verdict, 0 fail\n)+{runs} runs, 0 false alarms\n", done.stdout)


# What cannot be judged, in words


def test_a_gradient_that_the_cotangent_annihilates_gets_no_verdict():
    report = check(theirs.softmax_sum, (X,))
    assert (report.verdict, verdicts(report)) == ("no verdict", {"x": "no verdict"})
    assert "is zero for every random cotangent" in said(report, "x")


def test_a_gradient_that_should_be_zero_and_is_not_is_wrong():
    report = gradcheck(theirs.softmax_sum.forward, lambda d_sum, x: d_sum * x, (X,))
    assert report.verdict == "fail"


@pytest.mark.parametrize("forward", [lambda x: np.maximum(x, 0), lambda x: real_only(np.maximum)(x, 0)])
def test_a_kink_at_an_element_gets_no_verdict_and_the_rest_is_still_judged(forward):
    x = np.array([[1.0, 0.0], [-2.0, 3.0]])
    report = gradcheck(forward, lambda d_y, x: d_y * (x > 0), (x,))
    assert report.verdict == "no verdict"
    assert "at [0, 1]: the function has a kink there" in said(report, "x")
    assert gradcheck(forward, lambda d_y, x: 2 * d_y * (x > 0), (x,)).verdict == "fail"


def test_a_kink_beside_the_inputs_disturbs_nobody():
    for x in (np.array([1e-3, -1e-3, 1.0]), LARGE):
        report = gradcheck(real_only(lambda x: np.maximum(x, 0)), lambda d_y, x: d_y * (x > 0), (x,))
        assert report.verdict == "pass", str(report)


def test_a_function_that_draws_random_numbers_gets_no_verdict():
    draw = rng()
    report = gradcheck(lambda x: x * (draw.random(x.shape) < 0.5), lambda d_y, x: d_y, (X,))
    assert (report.verdict, report.rows) == ("no verdict", ())
    assert "gives another output when it is called again" in report.reason


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: np.round(x * 1e3) / 1e3 + 0 * np.abs(x),
        lambda x: np.abs(x) + 1e-2 * np.sin(1e15 * np.abs(x)),
    ],
    ids=["rounds to a grid", "is as good as random"],
)
def test_differences_that_are_too_inaccurate_give_no_verdict(forward):
    """Neither to a backward that might be right, nor to one that is surely wrong."""
    for factor in (1, 2):
        report = gradcheck(forward, lambda d_y, x, factor=factor: factor * d_y, (X,))
        assert (report.verdict, verdicts(report)) == ("no verdict", {"x": "no verdict"}), str(report)
        assert said(report, "x").startswith("cannot be judged: only an error above ")


# Values of different sizes


def softmax_of(scores):
    shares = np.exp(scores - scores.real.max(axis=-1, keepdims=True))
    shares = shares / shares.sum(axis=-1, keepdims=True)
    return shares, shares


def softmax_backward(d_y, shares):
    return shares * (d_y - (d_y * shares).sum(axis=-1, keepdims=True))


def gauss(x):
    return np.exp(-((x - 1e4) ** 2))


ROW = X[0]
OUTLIER = np.where(np.eye(3, 4) > 0, 1e5, X)
UNEVEN = {
    "softmax of masked scores": (softmax_of, softmax_backward, (np.where(np.tri(3, 4) > 0, X, -1e9),)),
    "softmax with a mask": (
        lambda scores, mask: softmax_of(scores + mask),
        lambda d_y, shares: (softmax_backward(d_y, shares),) * 2,
        (X, np.where(np.tri(3, 4) > 0, 0, -1e9)),
    ),
    "softmax at 1e5": (softmax.forward, softmax.backward, (X + 1e5,)),
    "layer_norm at 3e4": (layer_norm.forward, layer_norm.backward, (X + 3e4, ROW, ROW)),
    "tanh with an outlier": (np.tanh, lambda d_y, x: d_y * (1 - np.tanh(x) ** 2), (OUTLIER,)),
    "relu with an outlier": (lambda x: np.maximum(x, 0), lambda d_y, x: d_y * (x > 0), (OUTLIER,)),
    "sin at 1e6": (np.sin, lambda d_y, x: d_y * np.cos(x), (X + 1e6,)),
    "gauss at 1e4": (gauss, lambda d_y, x: -2 * d_y * (x - 1e4) * gauss(x), (X + 1e4,)),
}


@pytest.mark.parametrize("by", [lambda forward: forward, real_only], ids=["complex step", "differences"])
@pytest.mark.parametrize("name", UNEVEN)
def test_offsets_masks_and_outliers_disturb_nobody(name, by):
    """And a factor of 1.01 is seen there, so that the check is one."""
    forward, backward, inputs = UNEVEN[name]
    report = gradcheck(by(forward), backward, inputs)
    assert report.verdict == "pass", str(report)

    def wrong(d_y, *given):
        return backward(1.01 * d_y, *given)

    assert gradcheck(by(forward), wrong, inputs).verdict == "fail"


def test_a_small_output_that_is_left_of_numbers_of_size_1_is_no_wrong_gradient():
    """A loss of 1e-4 moves in steps of 1e-16, the last place of 1 + 1e-4, of which it is the logarithm."""
    logits = np.array([
        [-11.16633888, 1.8088615, 6.52517464, -12.56999456, 15.77836179],
        [17.69785961, -10.09465269, 0.24084233, 9.16403548, -23.58485132],
    ])  # fmt: skip
    report = gradcheck(real_only(cross_entropy.forward), cross_entropy.backward, (logits, np.array([4, 0])), seed=8644)
    assert report.verdict == "pass", str(report)


def test_no_verdict_is_wrong_that_allows_more_than_it_can_see():
    """At 1e13 the values are so coarse that a difference is nothing but rounding."""
    x = 1e13 + X
    report = gradcheck(real_only(np.sin), lambda d_y, x: 2 * d_y * np.cos(x), (x,))
    (row,) = report.rows
    assert (row.verdict, row.allowed > LOOSEST) == ("no verdict", True), str(report)


@pytest.mark.parametrize("size", [1e-4, 1e-5, 1e-6, 1e-7])
@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        (lambda x: np.maximum(x, 0), lambda d_y, x: d_y * (x > 0)),
        (np.abs, lambda d_y, x: d_y * np.sign(x)),
        (lambda x: np.clip(x, 0, 9), lambda d_y, x: d_y * (x > 0)),
    ],
    ids=["relu", "abs", "clip"],
)
def test_an_element_beside_a_kink_disturbs_nobody(forward, backward, size):
    x = X.copy()
    x[1, 2] = size
    for taken in (forward, real_only(forward)):
        report = gradcheck(taken, backward, (x,))
        assert report.verdict == "pass", str(report)
        assert gradcheck(taken, lambda d_y, x: backward(1.001 * d_y, x), (x,)).verdict == "fail"


def test_an_element_that_no_step_can_tell_from_a_kink_gets_no_verdict_and_the_rest_is_judged():
    x = X.copy()
    x[1, 2] = 1e-14
    report = gradcheck(np.abs, lambda d_y, x: d_y * np.sign(x), (x,))
    assert "at [1, 2]: the function has a kink there" in said(report, "x")
    assert gradcheck(np.abs, lambda d_y, x: 1.001 * d_y * np.sign(x), (x,)).verdict == "fail"


def test_a_dropped_imaginary_part_is_told_only_if_a_function_was_seen_that_drops_it():
    """And a backward that makes the mistake of complex step does not pass."""

    class Library:
        """A function of another library, into which nobody sees."""

        def __call__(self, x):
            plain = np.array(x.tolist())
            return x * np.array([abs(value) for value in plain.ravel()]).reshape(x.shape)

    right = gradcheck(Library(), lambda d_y, x: 2 * d_y * np.abs(x), (X,))
    assert right.verdict == "pass"
    assert right.notes == ("d_x: central differences, because complex step gives another derivative by x than "
                           "differences do",)  # fmt: skip
    detached = gradcheck(Library(), lambda d_y, x: d_y * np.abs(x), (X,))
    assert (detached.verdict, "the two methods disagree" in said(detached, "x")) == ("no verdict", True)
    seen = gradcheck(lambda x: x * np.abs(x), lambda d_y, x: d_y * np.abs(x), (X,))
    assert seen.verdict == "fail"


# What is wrong with the functions themselves


def faults(forward, backward, inputs=(X,)):
    report = gradcheck(forward, backward, inputs)
    assert report.verdict == "fail"
    return [*report.faults, *(row.said for row in report.rows if row.said)]


def test_a_wrong_shape():
    found = faults(theirs.gelu.forward, lambda d_y, saved: (theirs.gelu.backward(d_y, saved)["x"].T,))
    assert "has the shape (4, 3); expected (3, 4)" in found


def test_a_changed_input():
    def forward(x):
        y = x * 1.0
        x += 1
        return y

    assert faults(forward, lambda d_y, x: d_y) == ["forward changes its argument x"]

    def backward(d_y, x):
        x *= 0
        return d_y

    found = faults(lambda x: x * 1.0, backward)
    assert "backward changes its argument x" in found
    assert "forward changes its argument x" not in found


def test_a_changed_cotangent():
    def backward(d_y, x):
        d_y *= 2 * x
        return d_y

    assert faults(lambda x: x * x, backward) == ["backward changes its argument d_output"]


def test_a_backward_that_accumulates():
    total = np.zeros_like(X)

    def backward(d_y, saved):
        total[...] += theirs.gelu.backward(d_y, saved)["x"]
        return total.copy()

    found = faults(theirs.gelu.forward, backward)
    assert any("gives another gradient when it is called again" in fault for fault in found)


def test_a_backward_that_is_not_linear():
    words = "backward gives for twice the d_output not twice the gradients: it is not linear"
    assert words in faults(lambda x: x * x, lambda d_y, x: 2 * x * np.clip(d_y, -0.1, 0.1))


def test_gradients_of_nothing_and_too_few_gradients():
    def named_wrongly(d_y, x):
        return {"x": d_y, "w": d_y}

    assert faults(lambda x: x * 1.0, named_wrongly) == ["backward returns a gradient of w, which is no input"]
    with_ids = faults(lambda x, ids: x[ids], lambda d_y, x, ids: (d_y, d_y), (X, np.arange(3)))
    assert with_ids == ["backward returns a gradient of ids, which is no array of floats"]
    few = faults(lambda x, y, z: x * y * z, lambda d, x, y, z: (d * y * z, d * x * z), (X, X, X))
    assert few[0] == "backward returns 2 gradients; expected 3, for x, y, z"


def test_gradients_of_other_types_and_nan():
    words = "has the dtype <U4; expected real numbers"
    assert faults(lambda x: x * x, lambda d_y, x: "text") == [words]
    assert faults(lambda x: x * x, lambda d_y, x: np.array([None])) == ["has the dtype object; expected real numbers"]
    found = faults(lambda x: x * x, lambda d_y, x: np.where(x > 0, np.nan, 2 * d_y * x))
    assert found == [f"has values that are NaN or infinite: {np.count_nonzero(X > 0)} of 12"]


def test_two_outputs_without_anything_saved():
    hint = "two outputs are returned as ((first, second), None)"
    report = gradcheck(lambda x: (2 * x, 3 * x), lambda d, x: d[0] * 2 + d[1] * 3, (X,))
    assert report.verdict == "fail"
    assert hint in report.notes[-1]
    with pytest.raises(InputError, match=re.escape(hint)):
        gradcheck(lambda x: (2 * x, 3 * x), lambda d, x: d["first"], (X,))


def test_gradients_that_are_swapped():
    weight = rng(8).standard_normal((4, 4))
    for left in (rng(9).standard_normal((4, 4)), X):
        report = gradcheck(lambda x, w: x @ w, lambda d_y, x, w: (x.T @ d_y, d_y @ w.T), (left, weight))
        assert verdicts(report) == {"x": "WRONG", "w": "WRONG"}
        assert said(report, "x").endswith("; it is the right d_w")
        assert said(report, "w").endswith("; it is the right d_x")


def test_a_factor_is_told_of_the_cotangent_with_the_largest_gradient():
    """Another one may show the larger error, of a gradient that has almost vanished."""
    right = np.array([[1.0, 2.0], [1e-8, 1e-8]]).T
    kinks = np.zeros(2, bool)
    reference = Reference(Directions((2,), rng()), Derivatives(right, np.zeros_like(right), kinks), Method())
    wrong = [2 * right[:, 0], right[:, 1] + 1.0]
    backwards = object.__new__(Backwards)
    backwards.of, backwards.noise = {"x": wrong}, {"x": 0.0}
    row = _judged("x", {"x": reference}, backwards, 1e-13)
    assert (row.verdict, row.said) == ("WRONG", "is 2 times the right one")
    assert row.error > 1e7


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: 2 * d, "is 2 times the right one"),
        (lambda d: -d, "is -1 times the right one"),
        (lambda d: d * (1 + 1e-7), r"is 1 \+ 1.0e-07 times the right one"),
        (lambda d: 0 * d, "is zero everywhere"),
        (lambda d: d.T, "is the transpose of the right one"),
        (lambda d: np.where(np.eye(4) > 0, np.nan, d), "has values that are NaN or infinite: 4 of 16"),
        (lambda d: d * (np.arange(4)[:, np.newaxis] != 2), "is zero in row 2 of 4"),
        (lambda d: d + np.eye(1, 16, 6).reshape(4, 4), r"differs in 1 of 16 elements, most at \[1, 2\]: it is .*"),
    ],
)
def test_what_is_wrong_is_said_in_words(spoil, words):
    square = rng().standard_normal((4, 4))
    report = gradcheck(theirs.gelu.forward, lambda d_y, saved: spoil(theirs.gelu.backward(d_y, saved)["x"]), (square,))
    assert re.fullmatch(words, said(report, "x"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: 2 * d, "is 2 times the right one"),
        (lambda d: d + 1, r"at \[\d+, \d\] is .*, and should be .*"),
        (lambda d: d + (np.arange(d.size).reshape(d.shape) == 4), "differs along random directions, .*"),
    ],
)
def test_and_so_it_is_of_a_large_tensor(spoil, words):
    report = gradcheck(theirs.gelu.forward, lambda d_y, saved: spoil(theirs.gelu.backward(d_y, saved)["x"]), (LARGE,))
    assert re.fullmatch(words, said(report, "x"))


# Who drops the imaginary part


@pytest.mark.parametrize(
    ("forward", "function"),
    [
        (lambda x: np.abs(x) * x, "np.absolute"),
        (lambda x: x / np.linalg.norm(x), "np.linalg.norm"),
        (lambda x: x - np.std(x), "np.std"),
        (lambda x: x * x.var(), ".var"),
        (lambda x: np.conj(x) * x, "np.conjugate"),
        (lambda x: x * x.real, ".real"),
        (lambda x: x * x.astype(float), ".astype|discards the imaginary part"),
        (lambda x: x * np.vdot(x, x), "np.vdot"),
    ],
)
def test_who_drops_the_imaginary_part_is_named_with_the_line(forward, function):
    report = gradcheck(forward, lambda d_y, x: d_y, (X,))
    (note,) = report.notes
    assert re.search(function, note), note
    assert f"(test_gradcheck.py, line {forward.__code__.co_firstlineno})" in note
    assert report.rows[0].method == "differences"


def test_a_forward_that_refuses_complex_numbers_is_quoted():
    (note,) = gradcheck(real_only(theirs.gelu.forward), theirs.gelu.backward, (X,)).notes
    assert "for a complex x, forward raises TypeError: only real numbers (house_check.py, line" in note


def test_only_the_argument_whose_imaginary_part_is_dropped_goes_by_differences():
    def forward(x, w):
        return x * np.abs(w), (x, w)

    def backward(d_y, saved):
        x, w = saved
        return d_y * np.abs(w), d_y * x * np.sign(w)

    report = gradcheck(forward, backward, (X, 1e-4 * rng(8).standard_normal(X.shape)))
    assert report.verdict == "pass"
    assert [row.method for row in report.rows] == ["complex step", "differences"]


# The report


def test_print_is_a_table_with_a_row_an_argument():
    lines = str(check(theirs.layer_norm_of_llm_c)).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["gradient", "d_x", "d_scale", "d_shift"]
    assert lines[4].startswith("d_scale ")
    assert lines[-1] == "fail: wrong: d_scale"


def test_the_same_seed_gives_the_same_report_and_another_seed_another():
    reports = [gradcheck(theirs.gelu.forward, theirs.gelu.backward, (LARGE,), seed=seed) for seed in (1, 1, 2)]
    assert reports[0] == reports[1] != reports[2]


def test_three_random_cotangents_are_used():
    seen = []

    def backward(d_y, saved):
        seen.append(d_y.copy())
        return theirs.gelu.backward(d_y, saved)

    x = rng(seed=5).standard_normal(X.shape)
    gradcheck(theirs.gelu.forward, backward, (x,), seed=5)
    assert len({d_y.tobytes() for d_y in seen}) >= 3
    assert all(np.unique(d_y).size == X.size for d_y in seen)
    assert not any(np.isin(x, d_y / factor).any() for d_y in seen for factor in (1, 2)), "a cotangent is no input"


# Input that cannot be used


@pytest.mark.parametrize(
    ("forward", "inputs", "message"),
    [
        (lambda x: x, {"y": X}, "missing x; unknown y"),
        (lambda x: x, (X, X), "there are 2 inputs; forward takes 1: x"),
        (lambda x: x, 7, "the inputs are a int; expected a dict"),
        (lambda x: x, {"x": 7}, "none of the inputs (x) has a gradient"),
        (lambda x: x, {"x": 1j * X}, "the input x is complex128; expected real numbers"),
        (lambda x: x, {"x": X + np.inf}, "the input x has values that are not finite"),
        (lambda x: np.log(0 * x), {"x": X}, "the output of forward is not finite: 12 of 12 values are NaN or infinite"),
        (lambda x: 1j * x, {"x": X}, "forward gives complex numbers for real inputs"),
        (lambda x: "text", {"x": X}, "forward returned a str without a floating-point array"),
        (lambda x: x[:0], {"x": X}, "the output of forward is empty"),
        (lambda x: x[7], {"x": X}, "forward raises IndexError: index 7 is out of bounds"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_input_that_cannot_be_used_is_told_in_a_line(forward, inputs, message):
    with np.errstate(all="ignore"), pytest.raises(InputError, match=re.escape(message)) as told:
        gradcheck(forward, lambda d_y, x: d_y, inputs)
    assert "\n" not in str(told.value)


# The command


OURS = "parity_tests.user_operations"


@pytest.mark.parametrize(
    ("name", "status"),
    [
        (f"{OURS}:swiglu", 0),
        (f"{OURS}:rms_norm", 0),
        (f"{OURS}:two_heads", 0),
        ("numpygpt.ops.layer_norm", 0),
        (f"{OURS}:swiglu_to_row_0", 1),
        (f"{OURS}:rms_norm_without_weight", 1),
        (f"{OURS}:softmax_sum", 1),
    ],
)
def test_an_operation_is_checked_by_its_name(capsys, name, status):
    assert run("gradcheck", name) == status
    out = capsys.readouterr().out
    assert re.search(r"^(pass|fail|no verdict): .*\n\Z", out, re.M)
    assert out.startswith("gradient ")


def test_inputs_of_given_shapes_and_several_points(capsys):
    assert run("gradcheck", f"{OURS}:rms_norm", "--shape", "x=2,3,4", "weight=4", "--seeds", 3) == 0
    out = capsys.readouterr().out
    assert re.search(r"^d_x +24 ", out, re.M)
    assert out.endswith("3 of 3 points pass\n")
    assert run("gradcheck", f"{OURS}:swiglu_to_row_0", "--seeds", 2) == 1
    assert capsys.readouterr().out.endswith("0 of 2 points pass\n")


def test_a_module_of_the_current_folder_is_found(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def forward(x):\n    return x * x, x\n"
        "def backward(d_y, x):\n    return (2 * d_y * x,)\n"
        "def example(rng):\n    return (rng.standard_normal(4),)\n"
    )
    done = python("-m", "numpygpt", "gradcheck", "mine", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    command = "import sys; from numpygpt.commands.main import main; sys.path.remove(''); sys.exit(main())"
    done = python("-c", command, "gradcheck", "mine", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere:f",), "there is no module nowhere, neither installed nor in this folder"),
        (("not a name:f",), "'not a name' is no name of a module; expected package.module:operation"),
        ((f"{OURS}:missing",), f"{OURS}:missing is not there; expected an object with forward and backward"),
        ((f"{OURS}:NOT_AN_OPERATION",), f"{OURS}:NOT_AN_OPERATION is a float; expected an object with forward"),
        ((f"{OURS}:lonely",), f"{OURS}:lonely is a function without a backward; expected an object"),
        ((OURS,), f"{OURS} is a module without forward and backward; expected an object"),
        ((f"{OURS}:raises",), "forward raises IndexError: row 7 of 3 (user_operations.py, line"),
        ((f"{OURS}:raises_backward",), "backward raises ValueError: matmul: "),
        ((f"{OURS}:not_finite",), "the output of forward is not finite: 6 of 6 values are NaN or infinite"),
        ((f"{OURS}:bad",), "example raises RuntimeError: no data here"),
        (("numpygpt.layers:transformer_block.nothing",), "numpygpt.layers:transformer_block.nothing is not there"),
        ((f"{OURS}:swiglu", "--shape", "gate=2,x"), "--shape gate=2,x; expected NAME=N,N with sizes of 1 or more"),
        ((f"{OURS}:swiglu", "--shape", "gate"), "--shape gate; expected NAME=N,N"),
        ((f"{OURS}:swiglu", "--shape", "gate=0"), "--shape gate=0; expected NAME=N,N"),
        ((f"{OURS}:swiglu", "--shape", "gate=2"), "missing up; unknown none"),
        ((f"{OURS}:swiglu", "--seeds", 0), "--seeds is 0; expected 1 or more"),
        ((f"{OURS}:swiglu", "--seed", -1), "--seed is -1; expected 0 or more"),
        (("--seeds", 2), "error: --seeds has no meaning here; leave it out (it goes with MODULE:NAME"),
        (("--shape", "x=2"), "error: --shape has no meaning here; leave it out (it goes with MODULE:NAME"),
        ((f"{OURS}:ends",), "forward ends the program: SystemExit(0) (user_operations.py, line"),
        (("--bug", "no_such_bug"), "there is no planted bug 'no_such_bug'; the names most like it are "),
        (("numpygpt.ops.gelu", "--bug", "erf_gelu"), "MODULE:NAME has no meaning here; leave it out (it goes with a"),
        (("--png", "x.png"), "--png has no meaning here; leave it out (it goes with --sweep)"),
        (("--sweep", "--png", "no/such/folder/x.png"), "no/such/folder"),
    ],
)
def test_bad_input_is_told_in_a_line(capsys, arguments, message):
    assert run("gradcheck", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"numpygpt: error: .*\n", printed.err), printed.err
    assert message in printed.err


def test_an_operation_without_an_example_and_a_module_that_cannot_be_imported(capsys, monkeypatch, tmp_path):
    (tmp_path / "without_example.py").write_text("def forward(x):\n    return x\ndef backward(d, x):\n    return d\n")
    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "unreadable.py").write_text("def (:\n")
    (tmp_path / "ending.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, message in {
        "without_example": "without_example has no function example(rng)",
        "broken": "importing broken raises ModuleNotFoundError: No module named 'a_package_that_is_not_there'",
        "unreadable": "importing unreadable raises SyntaxError: invalid syntax",
        "ending": "importing ending ends the program: SystemExit(0) (ending.py, line 2)",
    }.items():
        assert run("gradcheck", name) == 2
        assert message in capsys.readouterr().err


# Functions of other libraries


TORCH = """
import numpy as np
import torch


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * x * weight

    @staticmethod
    def backward(ctx, d_y):
        x, weight = ctx.saved_tensors
        return 2 * x * weight * d_y, (x * x * d_y).sum(0)


class Wrong(Square):
    @staticmethod
    def backward(ctx, d_y):
        d_x, d_weight = Square.backward(ctx, d_y)
        return d_x, None


def example(rng):
    return {"x": rng.standard_normal((3, 4)), "weight": rng.standard_normal(4)}
"""

JAX = """
import jax
import jax.numpy as jnp


@jax.jit
def right(x, ids):
    return jnp.tanh(x)[ids]


@jax.custom_vjp
def wrong(x, ids):
    return jnp.tanh(x)[ids]


def forward(x, ids):
    return wrong(x, ids), (x, ids)


def backward(saved, d_y):
    x, ids = saved
    return jnp.zeros_like(x).at[ids].set(d_y * (1 - jnp.tanh(x[ids]) ** 2)), None


wrong.defvjp(forward, backward)


def example(rng):
    return {"x": rng.standard_normal(4), "ids": rng.integers(0, 2, 6)}
"""


@pytest.mark.parametrize(
    ("source", "right", "wrong", "words"),
    [
        (TORCH, "Square", "Wrong", "d_weight is missing: backward returns none"),
        (JAX, "right", "wrong", "d_x differs in"),
    ],
    ids=["torch", "jax"],
)
def test_a_function_of_another_library_is_found_and_checked(capsys, monkeypatch, tmp_path, source, right, wrong, words):
    name = f"functions_{right.lower()}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert run("gradcheck", f"{name}:{right}") == 0
    assert "complex step" in capsys.readouterr().out
    assert run("gradcheck", f"{name}:{wrong}") == 1
    assert words in capsys.readouterr().out


def test_any_function_of_tensors_is_checked_through_its_adapter():
    import torch

    from torchgpt.checks.gradcheck_adapter import pair

    attend = functools.partial(torch.nn.functional.layer_norm, normalized_shape=(4,))
    assert gradcheck(*pair(attend), (X,)).verdict == "pass"

    def two(x, ids):
        return x.softmax(-1)[ids], x.relu().sum()

    assert gradcheck(*pair(two), (X, np.array([0, 2, 2]))).verdict == "pass"


def test_importing_the_check_loads_neither_torch_nor_jax():
    code = "import sys; from numpygpt.checks import gradcheck; print(sorted({'torch', 'jax'} & set(sys.modules)))"
    assert python("-c", code).stdout == "[]\n"
