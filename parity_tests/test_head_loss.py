"""The head and its loss in blocks of rows equal the loss of the whole logits, which never exist."""

import sys
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import torchgpt
from numpygpt.checks.compare import compare, difference, largest, scaled
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from parity_tests.properties import CONFIG, INPUTS, TARGETS, TIED, agree, weights
from parity_tests.strategies import seeds, source
from parity_tests.tolerances import FACTOR
from torchgpt import head_loss
from torchgpt.checks.parity import reference, rounding_errors, run_in_copies
from torchgpt.head_loss import loss_sum

N, D, V = 7, 4, 11


def arrays(rows=N, scale=1.0, seed=1):
    """Hidden states, a weight, and targets of which some do not count."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, V, rows)
    targets[1::3] = IGNORE_INDEX
    return scale * rng.standard_normal((rows, D)), rng.standard_normal((V, D)), targets


def whole(hidden, weight, targets):
    """The same loss of the whole logits."""
    return F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum", ignore_index=IGNORE_INDEX)


def loss_and_gradients(function, hidden, weight, targets, d_loss=1.0):
    """The loss of arrays, and the gradients of hidden and weight, as arrays by name."""
    leaves = {name: torch.tensor(array, requires_grad=True) for name, array in (("hidden", hidden), ("weight", weight))}
    loss = function(*leaves.values(), torch.from_numpy(targets))
    gradients = torch.autograd.grad(loss, list(leaves.values()), torch.tensor(d_loss, dtype=loss.dtype))
    tensors = {"loss": loss.detach(), **{f"d_{name}": d for name, d in zip(leaves, gradients, strict=True)}}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def in_copies(hidden, weight, targets, d_loss, dtype):
    """The computation with whole logits, as `torchgpt.checks.parity.reference` takes it."""
    leaves = {"hidden": torch.from_numpy(hidden.astype(dtype)), "weight": torch.from_numpy(weight.astype(dtype))}

    def forward(tensors, watch):
        loss = whole(tensors["hidden"], tensors["weight"], torch.from_numpy(targets))
        watch("loss", loss)
        return loss

    def run(copies):
        tensors = run_in_copies(forward, leaves, {"loss": np.asarray(d_loss, dtype)}, copies)
        return {name: tensors[name] for name in ("loss", "d_hidden", "d_weight")}

    return run


def assert_agrees(ours, hidden, weight, targets, d_loss, dtype):
    judged_by = reference(partial(in_copies, hidden, weight, targets, d_loss), dtype)
    wrong = [c for c in compare(ours, judged_by.truth, judged_by.allowed, dtype=dtype) if not c.passed]
    assert not wrong, wrong


# The values


@st.composite
def problems(draw):
    """Arrays of any scale, some targets of which do not count, and the gradient of the loss."""
    with source(draw, ordinary=False) as drawn:
        rows, vocab_size, emb_dim = drawn.size(6), drawn.choose.integer(2, 9), drawn.size(5)
        hidden, weight = drawn.normal(rows, emb_dim), drawn.normal(vocab_size, emb_dim)
        targets, d_loss = drawn.targets(vocab_size, rows), float(drawn.normal(1)[0])
    return hidden.astype(np.float32), weight.astype(np.float32), targets, d_loss


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(problems(), st.integers(1, 7))
def test_loss_and_gradients_are_those_of_whole_logits(dtype, problem, rows_at_once):
    hidden, weight, targets, d_loss = problem
    function = partial(loss_sum, rows_at_once=rows_at_once)
    ours = loss_and_gradients(function, hidden.astype(dtype), weight.astype(dtype), targets, d_loss)
    assert_agrees(ours, *problem, dtype)


@pytest.mark.parametrize("rows_at_once", [1, 3, N, N + 1], ids="{} rows at once".format)
@pytest.mark.parametrize("targets", ["some ignored", "all ignored", "none ignored", "one row", "no row"])
def test_any_number_of_rows_at_once_will_do(targets, rows_at_once):
    hidden, weight, ids = arrays({"one row": 1, "no row": 0}.get(targets, N))
    if targets == "all ignored":
        ids[:] = IGNORE_INDEX
    if targets == "none ignored":
        ids[:] = np.arange(N)
    ours = loss_and_gradients(partial(loss_sum, rows_at_once=rows_at_once), hidden, weight, ids, 0.7)
    for name, expected in loss_and_gradients(whole, hidden, weight, ids, 0.7).items():
        agree(ours[name], expected, name)


@given(seeds)
@settings(max_examples=3)
def test_gradients_are_differences(seed):
    hidden, weight, targets = (torch.from_numpy(array) for array in arrays(seed=seed))
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda *two: 3 * loss_sum(*two, targets, rows_at_once=2), leaves)


def test_micro_batches_divided_by_all_their_targets_are_the_whole_batch():
    """The micro-batches have different numbers of targets that count, and one has none."""
    hidden, weight, targets = arrays()
    targets[:] = [1, IGNORE_INDEX, IGNORE_INDEX, 4, 5, 0, 10]
    counted = (targets != IGNORE_INDEX).sum()
    leaf = torch.tensor(weight, requires_grad=True)
    for rows in (slice(0, 1), slice(1, 3), slice(3, 7)):
        (loss_sum(torch.from_numpy(hidden[rows]), leaf, torch.from_numpy(targets[rows])) / counted).backward()
    expected = torch.tensor(weight, requires_grad=True)
    F.cross_entropy(torch.from_numpy(hidden) @ expected.T, torch.from_numpy(targets)).backward()
    agree(leaf.grad, expected.grad, "d_weight")


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_a_models_hidden_states_give_the_gradients_of_its_logits(config):
    model = torchgpt.GPTModel({**config.to_dict(), "drop_rate": 0.0}).double()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights(config).items()})
    inputs, targets = torch.from_numpy(INPUTS), torch.from_numpy(TARGETS).flatten()
    loss_sum(model.hidden(inputs).flatten(0, 1), model.out_head.weight, targets, rows_at_once=5).backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    F.cross_entropy(model(inputs).flatten(0, 1), targets, reduction="sum").backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("W_key.bias"):  # it moves a row's scores alike: its gradient is 0 except for rounding
            agree(ours[name], parameter.grad, name)


@pytest.mark.parametrize("power", [1, 2])
def test_a_second_derivative_is_refused(power):
    """The gradient of a power of the loss depends on the loss."""
    hidden, weight, targets = (torch.from_numpy(array) for array in arrays())
    loss = loss_sum(hidden, weight.requires_grad_(), targets) ** power
    (d_weight,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|differentiate twice"):
        d_weight.sum().backward()


# Other dtypes


@pytest.mark.parametrize("short", ["bfloat16", "float16"])
def test_under_autocast_products_are_short_and_the_rest_is_float32(short):
    """The loss has float32's budget from short logits, which are the same bits. The gradients have the short one's."""
    hidden, weight, targets = arrays(scale=2.0)
    hidden, weight = hidden.astype(np.float32), weight.astype(np.float32)
    with torch.autocast("cpu", getattr(torch, short)):
        logits = F.linear(torch.from_numpy(hidden), torch.from_numpy(weight))
        ours = loss_and_gradients(loss_sum, hidden, weight, targets, 0.7)
        pytorchs = loss_and_gradients(whole, hidden, weight, targets, 0.7)
    assert logits.dtype == getattr(torch, short)
    assert {array.dtype for array in ours.values()} == {np.dtype(np.float32)}
    identity = np.eye(V, dtype=np.float32)
    of_these_logits = loss_and_gradients(loss_sum, logits.float().numpy(), identity, targets)
    assert ours["loss"] == of_these_logits["loss"]
    assert_agrees(of_these_logits, logits.float().numpy(), identity, targets, 1.0, np.float32)

    run = in_copies(hidden, weight, targets, 0.7, np.float64)
    truth = {name: np.asarray(copies[0]) for name, copies in run(1).items()}
    rounding = rounding_errors(run, truth, short)
    allowed = {
        name: scaled(largest([rounding[name], difference(pytorchs[name], truth[name])]), FACTOR) for name in truth
    }
    wrong = [c for c in compare(ours, truth, allowed, dtype=np.float32) if not c.passed]
    assert not wrong, wrong


def test_autocast_leaves_float64_as_it_is():
    expected = loss_and_gradients(loss_sum, *arrays())
    with torch.autocast("cpu", torch.bfloat16):
        ours = loss_and_gradients(loss_sum, *arrays())
    assert all(np.array_equal(ours[name], expected[name]) for name in expected)


def test_a_nearly_certain_target_keeps_its_gradient_in_bfloat16():
    """Its probability is 0.999, which is 1 in bfloat16, but its gradient is not 0."""
    hidden, weight, targets = np.ones((1, 1), np.float32), np.array([[7.0], [0.0]], np.float32), np.array([0])
    with torch.autocast("cpu", torch.bfloat16):
        ours = loss_and_gradients(loss_sum, hidden, weight, targets)
    other = torch.sigmoid(torch.tensor(-7.0)).bfloat16().item()
    assert ours["d_weight"].tolist() == [[-other], [other]]


def test_bfloat16_weights_get_bfloat16_gradients_and_a_float32_loss():
    hidden, weight, targets = (torch.from_numpy(array) for array in arrays())
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    loss = loss_sum(hidden, weight, targets, rows_at_once=2)
    loss.backward()
    assert loss.dtype == torch.float32
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_the_sum_over_blocks_is_float32_for_bfloat16_weights():
    """256 blocks add 1 each, and then 257 would be 256 in bfloat16."""
    rows = 514
    hidden = torch.ones(rows, 1).bfloat16()
    weight = torch.zeros(2, 1).bfloat16().requires_grad_()
    loss_sum(hidden, weight, torch.zeros(rows, dtype=torch.int64), rows_at_once=1).backward()
    assert weight.grad.tolist() == [[-256.0], [256.0]]  # 257, rounded once


def test_shapes_are_planned_without_memory():
    hidden, weight, targets = (torch.from_numpy(array).to("meta") for array in arrays())
    loss_sum(hidden.requires_grad_(), weight.requires_grad_(), targets, rows_at_once=2).backward()
    assert (hidden.grad.shape, weight.grad.shape) == (hidden.shape, weight.shape)


# Time and memory


class Operations(TorchDispatchMode):
    """Within the `with`, what PyTorch computes.

    products   how many products of matrices
    largest    the number of elements of the largest tensor
    peak       the largest number of bytes of new tensors that were alive at the same time
    """

    def __init__(self):
        super().__init__()
        self.products = self.largest = self.peak = 0
        self.alive = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.largest = max(self.largest, result.numel())
            storage = StorageWeakRef(result.untyped_storage())
            alive = {known: size for known, size in self.alive.items() if not known.expired()}
            self.alive = alive | {storage: result.untyped_storage().nbytes()}
            self.peak = max(self.peak, sum(self.alive.values()))
        return result


def test_the_logits_never_exist():
    rows, rows_at_once = 64 * N, 8
    hidden, weight, targets = (torch.from_numpy(array) for array in arrays(rows))
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    with Operations() as operations:
        loss = loss_sum(*leaves, targets, rows_at_once=rows_at_once)
        loss.backward()
    assert operations.largest == max(rows * D, V * D, rows_at_once * V) < rows * V
    assert operations.peak < rows * V * hidden.element_size()
    with Operations() as evaluation, torch.no_grad():
        loss_sum(*leaves, targets, rows_at_once=rows_at_once)
    assert evaluation.peak < 3 * rows_at_once * V * hidden.element_size(), "the logits of several blocks are alive"


def test_no_gradient_is_computed_that_nobody_asks_for():
    hidden, weight, targets = (torch.from_numpy(array) for array in arrays())
    products = {}
    for hidden_too, weight_too in ((False, False), (True, False), (False, True), (True, True)):
        with Operations() as operations:
            loss = loss_sum(hidden.requires_grad_(hidden_too), weight.requires_grad_(weight_too), targets)
        products[hidden_too, weight_too] = operations.products
        assert loss.requires_grad == (hidden_too or weight_too)
    assert list(products.values()) == [1, 2, 2, 3]
    with Operations() as operations, torch.no_grad():
        assert not loss_sum(hidden, weight, targets).requires_grad
    assert operations.products == 1


@pytest.fixture
def unchecked(monkeypatch):
    """The module, loaded once more without the checks of the test run, which cannot be compiled."""
    spec = spec_from_file_location("unchecked", head_loss.__file__)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "unchecked", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's compiler does it
def test_it_is_compiled_into_one_graph(unchecked):
    hidden, weight, targets = arrays()
    function = torch.compile(partial(unchecked.loss_sum, rows_at_once=3), backend="aot_eager", fullgraph=True)
    expected = loss_and_gradients(partial(loss_sum, rows_at_once=3), hidden, weight, targets, 0.7)
    for name, array in loss_and_gradients(function, hidden, weight, targets, 0.7).items():
        agree(array, expected[name], name)


def test_blocks_that_are_compiled_alone_give_the_same(unchecked, monkeypatch):
    """The whole ones, and the shorter one at the end."""
    shapes = []

    def note(graph, inputs):
        shapes.append(tuple(inputs[0].shape))
        return graph.forward

    block = torch.compile(unchecked._block, backend=note, dynamic=False)
    monkeypatch.setattr(unchecked, "_compiled_block", lambda: block)
    hidden, weight, targets = arrays()
    expected = loss_and_gradients(partial(loss_sum, rows_at_once=3), hidden, weight, targets, 0.7)
    compiled = partial(unchecked.loss_sum, rows_at_once=3, compiled=True)
    for name, array in loss_and_gradients(compiled, hidden, weight, targets, 0.7).items():
        agree(array, expected[name], name)
    assert len(set(shapes)) == 2


# A vocabulary that is shared by a group of processes

SHARES = {0: slice(0, 6), 1: slice(6, V)}  # the vocabulary does not divide
#: {case: dtype, scale of the hidden states}
CASES = {
    "float64": (np.float64, 1.0),
    "float32": (np.float32, 1.0),
    "logits of 1e3": (np.float64, 300.0),
}


def compute_share(rank, folder):
    """What a process of the group computes; it writes the arrays of each case into the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(SHARES))
    try:
        for case, (dtype, scale) in CASES.items():
            hidden, weight, targets = arrays(scale=scale)
            function = partial(loss_sum, rows_at_once=3, first_id=SHARES[rank].start, group=dist.group.WORLD)
            share = weight[SHARES[rank]].astype(dtype)
            ours = loss_and_gradients(function, hidden.astype(dtype), share, targets, 0.7)
            with torch.no_grad():
                ours["evaluated"] = function(*map(torch.from_numpy, (hidden.astype(dtype), share, targets))).numpy()
            np.savez(f"{folder}/{case} {rank}.npz", **ours)
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """{case: the arrays of each process}."""
    folder = tmp_path_factory.mktemp("shares")
    torch.multiprocessing.spawn(compute_share, (str(folder),), nprocs=len(SHARES))
    return {case: [dict(np.load(folder / f"{case} {rank}.npz")) for rank in SHARES] for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_a_shared_vocabulary_gives_the_whole_loss_and_gradients(computed, case):
    dtype, scale = CASES[case]
    first, second = computed[case]
    for name in ("loss", "d_hidden", "evaluated"):
        assert np.array_equal(first[name], second[name]), name
    assert first["evaluated"] == first["loss"]
    d_weight = np.concatenate([first["d_weight"], second["d_weight"]])
    ours = {"loss": first["loss"], "d_hidden": first["d_hidden"], "d_weight": d_weight}
    hidden, weight, targets = arrays(scale=scale)
    assert_agrees(ours, hidden.astype(dtype), weight.astype(dtype), targets, 0.7, dtype)
