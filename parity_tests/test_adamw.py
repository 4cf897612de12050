"""AdamW: its groups, what it refuses before anything is changed, and what it shares and copies."""

import copy
import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from numpygpt.checks.compare import compare, normwise
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import read_checkpoint, write_checkpoint
from numpygpt.model.gpt import GPTModel
from numpygpt.training.adamw import AdamW
from numpygpt.training.clipping import clip_grad_norm
from numpygpt.training.groups import Group, NamedGroup, groups_of, named_groups
from numpygpt.training.optimizer import refuse_misnamed
from numpygpt.tree import nothing
from parity_tests.strategies import seeds

CONFIG = {
    "vocab_size": 11,
    "context_length": 5,
    "emb_dim": 6,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}


def is_vector(name, array):
    return array.ndim < 2


def is_norm(name, array):
    return "norm" in name


def everything(name, array):
    return True


def arrays_of(rng, dtype=np.float64):
    shapes = {"weight": (5, 4), "bias": (4,), "norm.scale": (4,), "table": (3, 2, 4)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def state_of(optimizer):
    """A copy of all that an optimizer has."""
    return copy.deepcopy((optimizer.state_dict(), optimizer.parameters))


def assert_unchanged(optimizer, before):
    state, parameters = before
    now = optimizer.state_dict()
    for key in ("exp_avg", "exp_avg_sq"):
        assert_equal(now.pop(key), state.pop(key))
    assert now == state
    assert_equal(optimizer.parameters, parameters)


def assert_equal(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert np.array_equal(ours[name], theirs[name]), name


# Groups


@given(seed=seeds, split=st.sampled_from(["decay", "scale", "both", "three"]))
def test_groups_are_pytorchs_parameter_groups(seed, split):
    """They take five steps of a schedule in float64. Each group's rate is a multiple of the optimizer's."""
    rng = np.random.default_rng(seed)
    weights, rates = arrays_of(rng), [0.1, 0.03, 0.3, 0.0, 0.02]
    gradients = [arrays_of(rng) for _ in rates]
    groups = {
        "decay": [Group(is_vector, weight_decay=0.0)],
        "scale": [Group(is_vector, lr_scale=0.1)],
        "both": [Group(is_vector, lr_scale=3.0, weight_decay=0.5)],
        "three": [Group(is_norm, 0.0, 0.7), Group(is_vector, 0.5), Group(everything, 2.0, 0.0)],
    }[split]
    ours = {name: array.copy() for name, array in weights.items()}
    optimizer = AdamW(ours, weight_decay=0.2, groups=groups)
    theirs = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in weights.items()}
    torch_groups, left = [], dict(theirs)
    for group in [*groups, Group(everything)]:
        names = [name for name in left if group.matches(name, weights[name])]
        decay = 0.2 if group.weight_decay is None else group.weight_decay
        torch_groups.append((group.lr_scale, {"params": [left.pop(name) for name in names], "weight_decay": decay}))
    torch_optimizer = torch.optim.AdamW([group for _, group in torch_groups if group["params"]], foreach=False)
    scales = [scale for scale, group in torch_groups if group["params"]]
    for rate, gradient in zip(rates, gradients, strict=True):
        optimizer.lr = rate
        optimizer.step(gradient)
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(gradient[name])
        for scale, group in zip(scales, torch_optimizer.param_groups, strict=True):
            group["lr"] = scale * rate
        torch_optimizer.step()
    expected = {name: parameter.detach().numpy() for name, parameter in theirs.items()}
    allowed = {name: normwise(array) for name, array in expected.items()}
    assert not [found for found in compare(ours, expected, allowed, dtype=np.float64) if not found.passed]


def test_matrices_decay_and_biases_and_norms_do_not_in_one_line():
    model = GPTModel(CONFIG)
    optimizer = AdamW(
        model, lr=0.5, weight_decay=0.1, groups=[Group(lambda name, array: array.ndim < 2, weight_decay=0.0)]
    )
    (group,) = optimizer.groups
    assert set(group.names) == {name for name in model.named_parameters() if name.endswith(("bias", "scale", "shift"))}
    before = {name: array.copy() for name, array in model.named_parameters().items()}
    optimizer.step({name: np.zeros_like(array) for name, array in before.items()})
    for name, array in model.named_parameters().items():
        assert np.array_equal(array, before[name] * np.float32(1 - 0.5 * 0.1 * (name not in group.names))), name


def test_the_first_group_that_matches_counts():
    groups = [Group(is_norm, 0.5), Group(is_vector, weight_decay=0.0), Group(everything, 2.0)]
    optimizer = AdamW(arrays_of(np.random.default_rng(1)), groups=groups)
    assert optimizer.groups == [
        NamedGroup(("norm.scale",), 0.5, None),
        NamedGroup(("bias",), 1.0, 0.0),
        NamedGroup(("weight", "table"), 2.0, None),
    ]


@pytest.mark.parametrize(
    "groups",
    [
        [Group(lambda name, array: False)],
        [Group(everything), Group(is_norm)],
        [Group(is_vector), Group(is_norm)],
    ],
)
def test_a_group_that_gets_no_parameter_is_refused(groups):
    with pytest.raises(InputError, match=f"^group {len(groups) - 1} of the optimizer matches no parameter that an"):
        AdamW(arrays_of(np.random.default_rng(1)), groups=groups)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (Group(everything, -1.0), "lr_scale is -1.0; expected a number of 0 or more"),
        (Group(everything, math.nan), "lr_scale is nan; expected"),
        (Group(everything, weight_decay=-0.5), "weight_decay is -0.5; expected"),
        (Group(everything, weight_decay=math.inf), "weight_decay is inf; expected"),
    ],
)
def test_a_groups_numbers_are_checked(group, message):
    with pytest.raises(InputError, match=message):
        AdamW(arrays_of(np.random.default_rng(1)), groups=[group])


def test_a_run_with_groups_goes_on_from_a_checkpoint_without_naming_them_again(tmp_path):
    rng = np.random.default_rng(1)
    gradients = [arrays_of(rng, np.float32) for _ in range(4)]
    whole, first = (arrays_of(np.random.default_rng(2), np.float32) for _ in range(2))
    groups = [Group(is_norm, 0.5), Group(is_vector, weight_decay=0.0)]
    uninterrupted, before = AdamW(whole, weight_decay=0.3, groups=groups), AdamW(first, weight_decay=0.3, groups=groups)
    for gradient in gradients[:2]:
        uninterrupted.step(gradient)
        before.step(gradient)
    write_checkpoint(tmp_path, {"optimizer": before.section()})
    after = AdamW(first)
    after.load_section(read_checkpoint(tmp_path))
    for gradient in gradients[2:]:
        uninterrupted.step(gradient)
        after.step(gradient)
    assert_equal(first, whole)
    assert after.groups == uninterrupted.groups


# What is trained only


def test_there_are_moments_for_what_is_trained_only():
    model = GPTModel(CONFIG)
    trained = {name: array for name, array in model.named_parameters().items() if name.startswith("trf_blocks.1.")}
    optimizer = AdamW(trained)
    assert list(optimizer.exp_avg) == list(optimizer.exp_avg_sq) == list(trained)
    ids = np.arange(10).reshape(2, 5)
    _, grads = model.loss_and_grads(ids, ids, trained=lambda name: name in trained)
    before = {name: array.copy() for name, array in model.named_parameters().items()}
    optimizer.step(grads)
    moved = {name for name, array in model.named_parameters().items() if not np.array_equal(array, before[name])}
    assert moved == set(trained)


def test_leaves_may_differ_in_dtype():
    rng = np.random.default_rng(1)
    arrays = {"half": rng.standard_normal((3, 4)).astype(np.float32), "whole": rng.standard_normal((2, 4))}
    gradients = {name: rng.standard_normal(array.shape).astype(array.dtype) for name, array in arrays.items()}
    together, apart = copy.deepcopy(arrays), copy.deepcopy(arrays)
    optimizer = AdamW(together)
    alone = [AdamW({name: array}) for name, array in apart.items()]
    for _ in range(3):
        optimizer.step(gradients)
        for one, name in zip(alone, apart, strict=True):
            one.step({name: gradients[name]})
    assert_equal(together, apart)
    assert {name: array.dtype for name, array in optimizer.exp_avg.items()} == {"half": np.float32, "whole": np.float64}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_a_gradient_may_be_of_any_dtype_that_can_be_cast(dtype):
    values = np.array([[1.0, -2.0, 3.0]])
    for own in (np.float32, np.float64):
        cast, same = {"p": np.ones((1, 3), own)}, {"p": np.ones((1, 3), own)}
        AdamW(cast).step({"p": values.astype(dtype)})
        AdamW(same).step({"p": values.astype(own)})
        assert cast["p"].dtype == own
        difference = np.abs(cast["p"] - same["p"]).max()
        assert difference <= np.finfo(own).eps


# Memory layouts

LAYOUTS = {
    "in rows": lambda array: array,
    "in columns": lambda array: np.asfortranarray(array),
    "transposed": lambda array: np.ascontiguousarray(array.T).T,
    "every other row": lambda array: np.repeat(array, 2, axis=0)[::2],
    "every other column": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    "backwards": lambda array: np.ascontiguousarray(array[::-1])[::-1],
}
SHAPES = [(1100, 130), (3, 300, 200), (7,), (0, 3), (3, 0), (1, 1)]


@pytest.mark.parametrize(
    ("shape", "layout"), [((), "in rows"), *((shape, layout) for shape in SHAPES for layout in LAYOUTS)], ids=str
)
def test_any_memory_layout_and_shape_gives_the_same_bit_for_bit(shape, layout):
    """Two of the shapes are larger than one block."""
    rng = np.random.default_rng(1)
    value, gradients = rng.standard_normal(shape), [np.asarray(rng.standard_normal(shape)) for _ in range(2)]
    plain, other = {"p": np.array(value)}, {"p": LAYOUTS[layout](np.array(value))}
    optimizers = [AdamW(plain, lr=0.1), AdamW(other, lr=0.1)]
    for gradient in gradients:
        optimizers[0].step({"p": gradient})
        optimizers[1].step({"p": LAYOUTS[layout](gradient)})
    assert_equal(other, plain)
    assert not value.size or not np.array_equal(plain["p"], value)
    for array in (gradients[0].copy(), LAYOUTS[layout](gradients[0].copy())):
        factor = 1e-3 / (clip_grad_norm({"p": array}, 1e-3) + 1e-6)
        assert np.array_equal(array, gradients[0] * min(1, factor))


# Nothing is changed by what is refused


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


BAD_GRADIENTS = {
    "None": (lambda g: None, "no arrays ['table NoneType']"),
    "a list": (lambda g: g.tolist(), "no arrays ['table list']"),
    "another shape": (lambda g: g[:, :1], "misshaped ['table (3, 1, 4), expected (3, 2, 4)']"),
    "one that broadcasts": (lambda g: g[:1], "misshaped ['table (1, 2, 4), expected (3, 2, 4)']"),
    "complex": (lambda g: g + 0j, "of another dtype ['table complex64, expected float32']"),
    "objects": (lambda g: g.astype(object), "of another dtype ['table object, expected float32']"),
}


@pytest.mark.parametrize("bad", BAD_GRADIENTS)
def test_a_last_gradient_that_does_not_fit_leaves_all_as_it_was(bad):
    spoil, message = BAD_GRADIENTS[bad]
    rng = np.random.default_rng(1)
    optimizer, gradients = AdamW(arrays_of(rng, np.float32)), arrays_of(rng, np.float32)
    optimizer.step(gradients)
    before = state_of(optimizer)
    with pytest.raises(InputError, match=re.escape(f"gradients do not fit the parameters: {message}")):
        optimizer.step({**gradients, "table": spoil(gradients["table"])})
    assert_unchanged(optimizer, before)


def test_frozen_names_are_no_gradients_of_an_optimizer_that_was_not_given_them():
    rng = np.random.default_rng(1)
    arrays = arrays_of(rng)
    optimizer = AdamW({"weight": arrays["weight"]})
    before = state_of(optimizer)
    for gradient in (None, arrays["bias"]):
        with pytest.raises(InputError, match=r"unexpected \['bias'\]"):
            optimizer.step({"weight": arrays["weight"], "bias": gradient})
    with pytest.raises(InputError, match=r"missing \['weight'\]"):
        optimizer.step({})
    assert_unchanged(optimizer, before)


@pytest.mark.parametrize("where", ["parameters", "exp_avg", "exp_avg_sq"])
def test_a_last_read_only_array_leaves_all_as_it_was(where):
    rng = np.random.default_rng(1)
    optimizer, gradients = AdamW(arrays_of(rng)), arrays_of(rng)
    optimizer.step(gradients)
    state = copy.deepcopy(optimizer.state_dict())
    getattr(optimizer, where)["table"].flags.writeable = False
    before = state_of(optimizer)
    with pytest.raises(InputError, match=r"are read-only: \['table'\]"):
        optimizer.step(gradients)
    if where != "parameters":
        state["step"] = 9
        with pytest.raises(InputError, match=r"are read-only: \['table'\]"):
            optimizer.load_state_dict(state)
    assert_unchanged(optimizer, before)


NO_PARAMETERS = [np.arange(3), np.ones(3, complex), np.ones(3, bool), np.ones(3, np.float16), [1.0], None]


@pytest.mark.parametrize("array", NO_PARAMETERS, ids=repr)
def test_what_cannot_be_trained_is_refused_and_may_be_frozen(array):
    arrays = {"good": np.ones(3), "bad": array}
    with pytest.raises(InputError, match=r"parameters to train are \['bad .*'\]; expected arrays of float32 or"):
        AdamW(arrays)
    AdamW(arrays, trained=lambda name: name == "good").step({"good": np.ones(3)})
    assert (arrays["good"] < 1).all()
    assert arrays["bad"] is array


def test_an_optimizer_with_nothing_to_train_is_refused():
    for make in (lambda: AdamW({}), lambda: AdamW(GPTModel(CONFIG), trained=nothing)):
        with pytest.raises(InputError, match="there are no parameters to train; expected at least one"):
            make()


@pytest.mark.parametrize(("dtype", "eps"), [(np.float32, 0.0), (np.float32, 1e-46), (np.float64, 0.0)])
def test_an_eps_that_is_0_beside_the_parameters_is_refused(dtype, eps):
    smallest = f"{np.finfo(dtype).tiny}, the smallest normal number of {np.dtype(dtype)}"
    expected = f"eps is {eps:g}; expected at least {smallest}"
    arrays = {"wide": np.ones(3), "narrow": np.ones(3, dtype), "long": np.ones(3, np.longdouble)}
    optimizer = AdamW(arrays)
    with pytest.raises(InputError, match=re.escape(expected)):
        AdamW(arrays, eps=eps)
    with pytest.raises(InputError, match=re.escape(expected)):
        optimizer.load_state_dict({**optimizer.state_dict(), "eps": eps})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_weight_without_a_gradient_stays_at_the_smallest_eps_and_for_any_betas(dtype):
    """Nothing divides 0 by 0, which would make it NaN."""
    almost_1 = math.nextafter(1, 0)
    for betas in ((0.0, 0.0), (5e-324, 5e-324), (0.9, 0.999), (almost_1, almost_1)):
        arrays = {"p": np.array([[1.0, -2.0]], dtype)}
        optimizer = AdamW(arrays, lr=1e-3, betas=betas, eps=float(np.finfo(dtype).tiny), weight_decay=0.0)
        for _ in range(2):
            optimizer.step({"p": np.array([[0.0, 1.0]], dtype)})
        assert arrays["p"][0, 0] == 1
        assert -2.1 < arrays["p"][0, 1] < -2, betas


@pytest.mark.parametrize("lr", [-1.0, math.nan, math.inf])
def test_a_learning_rate_is_checked_when_it_is_set(lr):
    optimizer = AdamW(arrays_of(np.random.default_rng(1)), lr=0.5)
    with pytest.raises(InputError, match=re.escape(f"lr is {lr!r}; expected a number of 0 or more")):
        optimizer.lr = lr
    assert optimizer.lr == 0.5


def with_moment(key, spoil):
    def change(state):
        state[key]["table"] = spoil(state[key]["table"])

    return change


def with_value(key, value):
    def change(state):
        state[key] = value

    return change


def without(key):
    def change(state):
        del state[key]

    return change


GROUP = {"names": ["bias"], "lr_scale": 1.0, "weight_decay": None}
BAD_STATES = [
    *[without(key) for key in ("step", "lr", "betas", "eps", "weight_decay", "groups", "exp_avg", "exp_avg_sq")],
    *[with_value("step", value) for value in (-5, math.nan, "x", 1.5, True, None, 2**63, 10**400)],
    *[with_value("lr", value) for value in (-1.0, math.nan, math.inf, "x", None, True, 10**400)],
    *[with_value("eps", value) for value in (-1e-9, 0, 1e-46, math.nan, "x")],
    *[with_value("weight_decay", value) for value in (-1e-9, math.nan, "x")],
    *[with_value("betas", value) for value in ([2, 3], [0.9], [0.9, math.nan], [0.9, "x"], [0.9, 1], 0.9, "xx", None)],
    *[with_value("groups", value) for value in (None, {}, [5], [{}], [GROUP, GROUP], [{**GROUP, "more": 1}])],
    *[
        with_value("groups", [{**GROUP, **change}])
        for change in ({"names": "bias"}, {"names": [1]}, {"names": ["x"]}, {"lr_scale": -1.0}, {"weight_decay": "x"})
    ],
    with_value("more", 1),
    *[with_value(key, value) for key in ("exp_avg", "exp_avg_sq") for value in (None, [], {})],
    *[
        with_moment(key, spoil)
        for key in ("exp_avg", "exp_avg_sq")
        for spoil in (
            lambda array: array[:1],
            lambda array: array.astype(np.float64),
            lambda array: array.view(np.int32),
            lambda array: array + 0j,
            lambda array: array.astype(">f4").view(">i4"),
            lambda array: array * np.float32(math.nan),
            lambda array: array + np.float32(math.inf),
            lambda array: array.tolist(),
            lambda array: None,
        )
    ],
    with_moment("exp_avg_sq", lambda array: -array),
]


@pytest.mark.parametrize("change", BAD_STATES)
def test_a_state_that_cannot_be_is_refused_and_leaves_all_as_it_was(change):
    rng = np.random.default_rng(1)
    optimizer, other = (AdamW(arrays_of(rng, np.float32), groups=[Group(is_vector, 0.5)]) for _ in range(2))
    for one in (optimizer, other):
        one.step(arrays_of(rng, np.float32))
    other.lr, other.betas, other.eps, other.weight_decay, other.steps = 0.5, (0.5, 0.5), 0.5, 0.5, 7
    state, before = copy.deepcopy(other.state_dict()), state_of(optimizer)
    change(state)
    with pytest.raises(InputError):
        optimizer.load_state_dict(state)
    assert_unchanged(optimizer, before)
    optimizer.load_state_dict(other.state_dict())
    assert_unchanged(optimizer, (copy.deepcopy(other.state_dict()), before[1]))


def test_a_state_in_another_byte_order_is_the_same_state():
    rng = np.random.default_rng(1)
    optimizer = AdamW(arrays_of(rng, np.float32))
    optimizer.step(arrays_of(rng, np.float32))
    state = copy.deepcopy(optimizer.state_dict())
    state["exp_avg"] = {name: array.astype(">f4") for name, array in state["exp_avg"].items()}
    again = AdamW(optimizer.parameters)
    again.load_state_dict(state)
    assert_equal(again.exp_avg, optimizer.exp_avg)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (read_only(np.ones(3)), "read-only: last"),
        (np.arange(3), "not floating-point: last int64"),
        (np.ones(3, complex), "not floating-point: last complex128"),
        (None, "no arrays: last NoneType"),
        ([1.0], "no arrays: last list"),
        (np.array([1.0, math.nan, 1.0]), "not finite in last"),
    ],
)
def test_a_last_gradient_that_cannot_be_clipped_leaves_all_as_they_were(last, message):
    gradients = {"first": np.full((2, 3), 4.0), "last": last}
    with pytest.raises(InputError, match=message):
        clip_grad_norm(gradients, 1.0)
    assert (gradients["first"] == 4).all()


# What is shared, and what is copied


def test_the_state_shares_the_moments_and_nothing_else():
    optimizer = AdamW(arrays_of(np.random.default_rng(1)), groups=[Group(is_vector)])
    state = optimizer.state_dict()
    for moments in ("exp_avg", "exp_avg_sq"):
        assert all(state[moments][name] is array for name, array in getattr(optimizer, moments).items())
        assert all(optimizer.section().arrays[f"{moments}.{name}"] is array for name, array in state[moments].items())
    state["betas"][0] = 0.5
    state["groups"][0]["names"].clear()
    state["lr"] = 7
    assert (optimizer.lr, optimizer.betas, optimizer.groups[0].names) == (1e-3, (0.9, 0.999), ("bias", "norm.scale"))


def test_loaded_moments_are_copied():
    rng = np.random.default_rng(1)
    optimizer, gradients = AdamW(arrays_of(rng)), arrays_of(rng)
    optimizer.step(gradients)
    state = copy.deepcopy(optimizer.state_dict())
    again = AdamW(copy.deepcopy(optimizer.parameters))
    own = dict(again.exp_avg)
    again.load_state_dict(state)
    for moments in ("exp_avg", "exp_avg_sq"):
        for array in state[moments].values():
            array[...] = -7
    state["betas"][0] = 0.5
    assert all(again.exp_avg[name] is array for name, array in own.items())
    for one in (optimizer, again):
        one.step(gradients)
    assert_equal(again.parameters, optimizer.parameters)


def test_an_optimizer_can_load_its_own_state():
    rng = np.random.default_rng(1)
    optimizer = AdamW(arrays_of(rng))
    optimizer.step(arrays_of(rng))
    before = state_of(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert_unchanged(optimizer, before)


def test_the_values_of_the_section_are_json():
    optimizer = AdamW(arrays_of(np.random.default_rng(1)), lr=0.5, groups=[Group(is_vector, 2)])
    values = optimizer.section().values
    assert json.loads(json.dumps(values)) == values
    assert type(values["groups"][0]["lr_scale"]) is float


# Groups by name, and the words that are refused


def test_all_parameters_decay_with_the_word_all():
    assert groups_of("all") == []
    (group,) = groups_of("matrices")
    assert [group.matches("any", np.zeros((2,) * axes)) for axes in (0, 1, 2)] == [True, True, False]


def test_a_group_may_have_every_parameter():
    group = {"names": ["a", "b"], "lr_scale": 0.5, "weight_decay": None}
    assert named_groups([group], {"a": np.zeros(1), "b": np.zeros(1)}) == [NamedGroup(("a", "b"), 0.5, None)]


@pytest.mark.parametrize("names", ["ab", ["a", 1]])
def test_the_names_of_a_group_are_a_list_of_texts(names):
    with pytest.raises(InputError, match="expected a list of texts"):
        named_groups([{"names": names, "lr_scale": 1.0, "weight_decay": None}], {"a": np.zeros(1), "b": np.zeros(1)})


def test_a_wrong_name_of_a_moment_is_told_what_the_names_are():
    with pytest.raises(InputError, match=r"named \['a'\]; expected m.NAME or v.NAME"):
        refuse_misnamed(["m.a", "a"], ["m", "v"])
