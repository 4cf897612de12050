"""The optimizers beside AdamW: PyTorch's numbers, trajectories, checkpoints, moments on the disk, refusals."""

import copy
import errno
import inspect
import json
import math
import os
import re
import resource
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numpygpt.checks.compare import compare, normwise
from numpygpt.commands.main import main as numpygpt_command
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import read_checkpoint, write_checkpoint
from numpygpt.model.config import PRESETS, GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import parameter_shapes
from numpygpt.model.scheme import Scheme
from numpygpt.model.sizes import training_bytes
from numpygpt.training.adagrad import Adagrad
from numpygpt.training.adam import Adam
from numpygpt.training.adamw import AdamW
from numpygpt.training.disk_state import zeros_on_disk
from numpygpt.training.groups import Group
from numpygpt.training.lion import Lion
from numpygpt.training.muon import Muon, orthogonalized
from numpygpt.training.numpy_backend import NumpyBackend
from numpygpt.training.optimizers import OPTIMIZERS, new_optimizer, settings_of, state_bytes
from numpygpt.training.options import WEIGHT_DECAYS, Options
from numpygpt.training.rmsprop import RMSprop
from numpygpt.training.run import TrainingRun
from numpygpt.training.schedules import constant, warmup_cosine, warmup_linear, warmup_stable_decay
from numpygpt.training.sgd import SGD
from parity_tests import tiny_run
from parity_tests.command import TRAINING, run, write_text
from parity_tests.optimizer_properties import (
    WAYS,
    Way,
    arrays_of,
    by_singular_values,
    in_numpy,
    in_torch,
    muon_of_pytorch,
)
from parity_tests.strategies import scales, seeds
from parity_tests.tolerances import FACTOR, FLOAT64_CURVE
from parity_tests.torch_command import EXACT, curve, furthest, refusal, train
from torchgpt.checks.parity import reference
from torchgpt.commands.main import main as torchgpt_command
from torchgpt.engine import own_optimizers
from torchgpt.engine.optimizer import Optimizer
from torchgpt.parallel.model import ParallelModel

CONFIG = GPTConfig(vocab_size=13, context_length=6, emb_dim=6, n_heads=2, n_layers=2, drop_rate=0.0, qkv_bias=False)
#: The options of a run with each optimizer, at a learning rate that suits it.
CHOICES = {
    "adamw": {"lr": 0.01},
    "adam": {"lr": 0.01, "weight_decay": 0.01},
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "rmsprop": {"lr": 0.003, "momentum": 0.5, "weight_decay": 0.01},
    "adagrad": {"lr": 0.03, "weight_decay": 0.01},
    "lion": {"lr": 0.001, "weight_decay": 0.5},
    "muon": {"lr": 0.02, "rest_lr_scale": 0.2},
}


def arrays32(seed):
    return {name: array.astype(np.float32) for name, array in arrays_of(seed).items()}


def made(which, parameters, **changed):
    way = WAYS[which]
    return way.ours(parameters, **{**way.settings, **changed})


def assert_equal(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert np.array_equal(ours[name], theirs[name]), name


def test_every_optimizer_has_a_way_in_which_it_is_compared_and_a_choice_in_which_it_trains():
    assert {way.ours.kind for way in WAYS.values()} == OPTIMIZERS.keys() - {"adamw"}
    assert CHOICES.keys() == OPTIMIZERS.keys()


# PyTorch's numbers

TORCHS = {
    SGD: torch.optim.SGD,
    RMSprop: torch.optim.RMSprop,
    Adagrad: torch.optim.Adagrad,
    Adam: torch.optim.Adam,
    Lion: own_optimizers.Lion,
}
shares = st.sampled_from([0.0, 0.5, 0.9, 0.99])
eps = st.sampled_from([1e-8, 1e-3])
betas = st.tuples(shares, shares)


@st.composite
def ways(draw, classes=(SGD, RMSprop, Adagrad, Adam, Lion, Muon)):
    """An optimizer with settings, and PyTorch's with the same."""
    ours = draw(st.sampled_from(classes))
    chosen = {"lr": draw(st.sampled_from([1e-3, 0.1])), "weight_decay": draw(st.sampled_from([0.0, 0.01, 0.5]))}
    momentum = draw(shares)
    own = {
        SGD: {"momentum": momentum, "dampening": draw(st.sampled_from([0.0, 0.25]))},
        RMSprop: {"momentum": momentum, "alpha": draw(shares), "eps": draw(eps), "centered": draw(st.booleans())},
        Adagrad: {"eps": draw(eps)},
        Adam: {"betas": draw(betas), "eps": draw(eps)},
        Lion: {"betas": draw(betas)},
        Muon: {"momentum": momentum, "nesterov": draw(st.booleans()), "betas": draw(betas), "eps": draw(eps)},
    }[ours]
    if ours is SGD:
        own["nesterov"] = momentum > 0 and not own["dampening"] and draw(st.booleans())
    if ours is Muon:
        chosen |= {**own, "rest_lr_scale": draw(st.sampled_from([0.015, 1.0]))}
        return Way(Muon, chosen, partial(muon_of_pytorch, **chosen))
    chosen |= own
    return Way(ours, chosen, lambda parameters: [TORCHS[ours](list(parameters.values()), **chosen)])


@settings(max_examples=10)
@given(way=ways(), seed=seeds, size=scales)
def test_any_settings_give_pytorchs_parameters_and_moments_in_float64(way, seed, size):
    """Eight steps. In the first half, a row of an embedding has no gradient."""
    weights = arrays_of(seed)
    gradients = [
        {name: size * array for name, array in arrays_of([seed, step]).items()} for step in range(1, 9)
    ]
    for gradient in gradients[:4]:
        gradient["tok_emb.weight"][2] = 0
    ours = list(in_numpy(way, weights, copy.deepcopy(gradients)))[-1]
    theirs = list(in_torch(way, weights, gradients))[-1]
    allowed = {name: normwise(array) for name, array in theirs.items()}
    assert not [found for found in compare(ours, theirs, allowed, dtype=np.float64) if not found.passed]


@pytest.mark.parametrize("which", ["sgd_nesterov", "rmsprop_centered", "adagrad", "adam"])
def test_rounding_in_float32_is_within_the_budget(which):
    """Two steps, judged by PyTorch's own errors and by the errors of the rounding model."""
    way, names = WAYS[which], ("tok_emb.weight", "trf_blocks.0.norm1.scale")
    weights, *gradients = ({name: arrays32(seed)[name] for name in names} for seed in (1, 2, 3))

    def in_torch_by_dtype(dtype):
        def last(copies):
            parameters = {
                name: torch.from_numpy(array.astype(dtype)).expand(copies, *array.shape).clone().requires_grad_()
                for name, array in weights.items()
            }
            optimizer = TORCHS[way.ours](list(parameters.values()), **way.settings, foreach=False)
            for gradient in gradients:
                for name, parameter in parameters.items():
                    parameter.grad = torch.from_numpy(gradient[name].astype(dtype)).expand_as(parameter).clone()
                optimizer.step()
            return {name: parameter.detach().numpy() for name, parameter in parameters.items()}

        return last

    judged_by = reference(in_torch_by_dtype, np.float32)
    ours = {name: array.copy() for name, array in weights.items()}
    optimizer = way.ours(ours, **way.settings)
    for gradient in gradients:
        optimizer.step(gradient)
    found = compare(ours, judged_by.truth, judged_by.allowed, dtype=np.float32)
    assert not [comparison for comparison in found if not comparison.passed]


def test_where_pytorchs_centered_rmsprop_is_nan_ours_is_not():
    """The gradient is the same at each step, so its variance becomes 0, and rounding makes it negative at times."""
    gradient = {"p": np.full((1, 300), 1.0) + np.arange(300) / 300}
    ours = {"p": np.zeros((1, 300))}
    theirs = torch.nn.Parameter(torch.zeros((1, 300), dtype=torch.float64))
    optimizer = RMSprop(ours, alpha=0.5, centered=True)
    by_torch = torch.optim.RMSprop([theirs], alpha=0.5, centered=True)
    for _ in range(60):
        optimizer.step(gradient)
        theirs.grad = torch.from_numpy(gradient["p"].copy())
        by_torch.step()
    assert np.isnan(theirs.detach().numpy()).any()
    assert np.isfinite(ours["p"]).all()


def test_lion_by_the_sum_of_all_its_gradients():
    """m is a weighted sum of the gradients so far; the parameter is the sum of signs."""
    rng = np.random.default_rng(1)
    gradients, start = rng.standard_normal((12, 5, 4)), rng.standard_normal((5, 4))
    parameters = {"p": start.copy()}
    optimizer = Lion(parameters, lr=0.1, betas=(0.7, 0.95))
    expected = start.copy()
    for t, gradient in enumerate(gradients):
        memory = sum((0.05 * 0.95 ** (t - 1 - i) * g for i, g in enumerate(gradients[:t])), np.zeros_like(start))
        expected -= 0.1 * np.sign(0.7 * memory + 0.3 * gradient)
        optimizer.step({"p": gradient})
    found = compare(parameters, {"p": expected}, {"p": normwise(expected)}, dtype=np.float64)
    assert all(comparison.passed for comparison in found)


# Schedules


@given(
    warmup_steps=st.integers(0, 9),
    decay_steps=st.integers(1, 9),
    total_steps=st.integers(1, 30),
    peak_lr=st.sampled_from([4e-4, 0.3]),
    end=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_until_its_decay_begins_wsd_is_constant_however_long_the_run_is(
    warmup_steps, decay_steps, total_steps, peak_lr, end
):
    lengths = {"warmup_steps": warmup_steps, "total_steps": total_steps}
    rate = partial(warmup_stable_decay, peak_lr=peak_lr, min_lr=end * peak_lr, decay_steps=decay_steps, **lengths)
    rates = [rate(step) for step in range(total_steps + 12)]
    begins = max(warmup_steps, total_steps - decay_steps)
    assert rates[:begins] == [constant(step, peak_lr=peak_lr, warmup_steps=warmup_steps) for step in range(begins)]
    assert sorted(rates[begins:], reverse=True) == rates[begins:]
    assert set(rates[max(total_steps, warmup_steps) :]) == {end * peak_lr}
    if begins < total_steps:
        assert rates[begins] == peak_lr
    linear = partial(warmup_linear, peak_lr=peak_lr, min_lr=end * peak_lr, **lengths)
    whole = partial(rate, decay_steps=max(1, total_steps - warmup_steps))
    assert [linear(step) for step in range(40)] == [whole(step) for step in range(40)]


# Newton and Schulz

MATRICES = [(8, 8), (40, 6), (6, 40), (1, 5), (5, 1), (64, 48)]


@pytest.mark.parametrize("shape", MATRICES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_singular_values_become_about_1_and_the_singular_vectors_stay(shape, dtype):
    matrix = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    result = orthogonalized(matrix)
    assert result.dtype == dtype
    assert result.shape == shape
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    inside = left.T @ result @ right.T  # diagonal if the singular vectors have stayed
    expected = by_singular_values(matrix.astype(np.float64))
    large = values > 0.02 * np.linalg.norm(values)  # the others are too small to come up in five iterations
    assert (np.diag(inside)[large] > 0.6).all()
    assert (np.diag(inside) < 1.25).all()
    if dtype == np.float64:
        for theirs in (expected, own_optimizers.orthogonalized(torch.from_numpy(matrix)).numpy()):
            found = compare({"o": result}, {"o": theirs}, {"o": normwise(theirs)}, dtype=dtype)
            assert all(comparison.passed for comparison in found)


@pytest.mark.parametrize("shape", MATRICES, ids=str)
def test_rounding_of_newton_and_schulz_in_float32_is_within_that_of_pytorch(shape):
    matrix = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    truth = orthogonalized(matrix.astype(np.float64))
    ours, theirs = orthogonalized(matrix), own_optimizers.orthogonalized(torch.from_numpy(matrix)).numpy()
    assert np.linalg.norm(ours - truth) <= FACTOR * np.linalg.norm(theirs - truth)


def test_the_size_of_a_matrix_does_not_count_and_zeros_stay_zeros():
    matrix = np.random.default_rng(1).standard_normal((5, 7))
    assert np.array_equal(orthogonalized(matrix * 1024.0), orthogonalized(matrix)), "a power of two is exact"
    assert np.array_equal(orthogonalized(np.zeros((3, 4))), np.zeros((3, 4)))


def test_muon_is_for_the_matrices_inside_the_blocks_alone():
    optimizer = Muon(GPTModel(replace(CONFIG, qkv_bias=True)))
    matrices = {name for name, array in optimizer.parameters.items() if array.ndim == 2 and "trf_blocks" in name}
    assert set(optimizer.moments["momentum_buffer"]) == matrices
    assert set(optimizer.exp_avg) == set(optimizer.exp_avg_sq) == set(optimizer.parameters) - matrices
    assert {"tok_emb.weight", "pos_emb.weight", "out_head.weight"} <= set(optimizer.exp_avg)


# A run, without the checks of annotations, which the tests above have


@pytest.fixture(scope="module")
def text(without_checks_of_annotations, tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


def losses_of(training, steps):
    return [training.train_step().loss for _ in range(steps)]


@pytest.mark.parametrize("kind", CHOICES)
def test_a_resumed_run_is_the_run_that_never_stopped_bit_for_bit(kind, tmp_path, text):
    """It is resumed with its moments on the disk, which change nothing either."""
    options = {"optimizer": kind, "accumulate": 1, **CHOICES[kind]}
    whole, begun = (tiny_run.start(tmp_path / name, text, **options) for name in ("whole", "begun"))
    losses_of(whole, 3)
    losses_of(begun, 1)
    begun.save()
    resumed = tiny_run.resume(tmp_path / "begun", optimizer_state="disk")
    losses_of(resumed, 2)
    assert tiny_run.digest(resumed) == tiny_run.digest(whole)


# Both commands


@pytest.fixture
def folder(without_checks_of_annotations, tmp_path, monkeypatch):
    """The current folder, with text.txt in it. No picture is drawn."""
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    return tmp_path


def choice(kind):
    """The options of the command for this optimizer."""
    words = ["--optimizer", kind]
    for name, value in CHOICES[kind].items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, value]
    return words


@pytest.mark.parametrize("kind", CHOICES)
def test_each_command_goes_on_with_the_run_of_the_other(kind, folder):
    """Losses and gradient norms are those of NumPy alone, and both write the same sections."""
    common = (*EXACT, *choice(kind), "--schedule", "wsd", "--schedule-steps", 6, "--eval-every", 3)
    whole = curve(train("numpygpt", folder / "whole", *common, "--steps", 6))
    assert len({loss for loss, _ in whole}) == 6, "each step has another batch"
    for first, second in (("numpygpt", "torchgpt"), ("torchgpt", "numpygpt")):
        shared = train(first, folder / first, *common, "--steps", 3)
        train(second, shared, "--resume", shared, "--steps", 6)
        assert furthest(curve(shared), whole) <= FLOAT64_CURVE
    one, other = (read_checkpoint(folder / name) for name in ("whole", "numpygpt"))
    assert one.values("optimizer") == other.values("optimizer")
    assert one.layouts("optimizer") == other.layouts("optimizer")


@pytest.mark.long_form
@pytest.mark.parametrize("schedule", ["linear", "wsd"])
@pytest.mark.parametrize("kind", CHOICES)
def test_losses_and_gradient_norms_are_the_twins_along_a_hundred_steps(kind, schedule, folder):
    arguments = (*EXACT, *choice(kind), "--schedule", schedule, "--steps", 100)
    expected = curve(train("numpygpt", folder / "numpy", *arguments))
    assert np.mean(expected[-10:], axis=0)[0] < np.mean(expected[:10], axis=0)[0], "it learns"
    assert furthest(curve(train("torchgpt", folder / "torch", *arguments)), expected) <= FLOAT64_CURVE


# The moments on the disk


def test_moments_on_the_disk_are_those_in_memory_and_no_file_has_a_name(tmp_path):
    weights, gradients = arrays32(1), [arrays32(seed) for seed in (2, 3)]
    for which in WAYS:
        in_memory, on_disk = copy.deepcopy(weights), copy.deepcopy(weights)
        one, other = made(which, in_memory), made(which, on_disk, zeros=partial(zeros_on_disk, tmp_path / "state"))
        for gradient in gradients:
            one.step(gradient)
            other.step(gradient)
            assert list((tmp_path / "state").iterdir()) == []
        assert_equal(on_disk, in_memory)
        assert one.moments.keys() == other.moments.keys()
        for kind, arrays in one.moments.items():
            assert_equal(other.moments[kind], arrays)


def mapped_of(array):
    """The memory map that an array's bytes are in, or None."""
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array


def test_a_run_keeps_its_moments_in_the_folder_that_is_named_or_in_its_own(tmp_path, text, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "numpygpt.training.numpy_backend.zeros_on_disk",
        lambda folder, arrays: seen.append(folder) or zeros_on_disk(folder, arrays),
    )
    own = tiny_run.start(tmp_path / "own", text, optimizer_state="disk")
    named = tiny_run.start(
        tmp_path / "named", text, optimizer_state="disk", optimizer_state_dir=str(tmp_path / "elsewhere")
    )
    assert seen == [tmp_path / "own", tmp_path / "elsewhere"]
    for training in (own, named):
        arrays = [*training.backend.optimizer.exp_avg.values(), *training.backend.optimizer.exp_avg_sq.values()]
        assert len({id(mapped_of(array)) for array in arrays}) == 1, "one file"
        assert mapped_of(arrays[0]) is not None
        assert not any(map(np.shares_memory, arrays, arrays[1:]))
    own.train_step()
    own.save()
    changed = tiny_run.resume(tmp_path / "own", optimizer_state="memory")
    assert mapped_of(changed.backend.optimizer.exp_avg["tok_emb.weight"]) is None
    assert tiny_run.digest(changed) == tiny_run.digest(own)


def test_a_full_disk_is_one_line_before_the_training(tmp_path, monkeypatch, capsys):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    assert run("train", "--text", "text.txt", "--out", "run", *TRAINING, "--optimizer-state", "disk") == 2
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"numpygpt: error: the optimizer's state of [\d,]+ bytes cannot be put on the disk, in run: No space left on "
        r"device; name another folder with --optimizer-state-dir, or leave out --optimizer-state disk\n",
        line,
    ), line
    assert list(Path("run").iterdir()) == []


def cannot_reserve(monkeypatch, reason):
    """Take from the system the call that reserves bytes, or let the file system refuse it."""
    if reason is None:
        monkeypatch.delattr(os, "posix_fallocate")
        return

    def refuse(descriptor, offset, size):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "posix_fallocate", refuse)


@pytest.mark.parametrize("reason", [None, errno.EOPNOTSUPP])
def test_where_bytes_cannot_be_reserved_zeros_are_written(tmp_path, monkeypatch, reason):
    cannot_reserve(monkeypatch, reason)
    monkeypatch.setattr("numpygpt.training.disk_state.PIECE", 100)
    arrays = zeros_on_disk(tmp_path, [np.ones((7, 5)), np.ones((), np.float32)])
    assert [array.shape for array in arrays] == [(7, 5), ()]
    assert not any(array.any() for array in arrays)
    assert [array.dtype for array in arrays] == [np.float64, np.float32]


def test_a_disk_that_has_room_for_a_part_of_the_zeros_is_full(tmp_path, monkeypatch):
    """The last write puts as much as there is room for. It is the system's own limit of a file that stops it."""
    cannot_reserve(monkeypatch, None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match="the optimizer's state of 1,024 bytes cannot be put on the disk"):
            zeros_on_disk(tmp_path, [np.ones(128)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(tmp_path.iterdir())


def test_the_disk_takes_what_memory_cannot_hold(tmp_path, text, monkeypatch):
    """The machine has memory for a step without the moments, and not with them."""
    tokens = tiny_run.CONFIG.context_length
    ids = 3 * 9 * tokens * 2 * 8
    step = partial(training_bytes, tiny_run.CONFIG, 9, tokens, np.float32)
    monkeypatch.setattr("numpygpt.model.sizes.machine_memory", lambda: step(optimizer=0).peak + ids)
    with pytest.raises(InputError, match="a training step of this model on 3 times 9 x 6 tokens needs at least"):
        tiny_run.start(tmp_path / "memory", text)
    losses_of(tiny_run.start(tmp_path / "disk", text, optimizer_state="disk"), 1)
    losses_of(tiny_run.start(tmp_path / "none", text, optimizer="sgd"), 1)


def test_torchgpt_does_not_keep_its_state_on_the_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    line = refusal(capsys, "torchgpt", "train", "--text", "text.txt", "--out", "run", "--optimizer-state", "disk")
    assert line == "torchgpt: error: torchgpt keeps the optimizer's state in memory; choose --optimizer-state memory"


# Bytes


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("changes", [{}, {"tie_weights": True, "qkv_bias": True}, {"position": "sinusoidal"}], ids=str)
def test_the_bytes_of_the_moments_are_those_that_there_are(kind, changes):
    config = replace(CONFIG, **changes)
    chosen = settings_of(kind, CHOICES[kind])
    optimizer = new_optimizer(kind, GPTModel(config), chosen, [])
    held = sum(array.nbytes for arrays in optimizer.moments.values() for array in arrays.values())
    assert state_bytes(kind, chosen, config) == held


def test_info_has_the_bytes_of_each_optimizer(capsys):
    size = sum(math.prod(shape) for shape in parameter_shapes(PRESETS["book-124M"]).values())
    assert run("info", "--preset", "book-124M") == 0
    shown = dict(re.findall(r"^(\w+) +([\d,.]+)$", capsys.readouterr().out, re.M))
    assert shown["sgd"] == "0.0"
    for kind, moments in (("adamw", 2), ("adam", 2), ("rmsprop", 1), ("adagrad", 1), ("lion", 1)):
        assert shown[kind] == f"{4 * moments * size / 2**20:,.1f}"
    assert shown["lion"] < shown["muon"]
    heavy = ("--optimizer", "sgd", "--momentum", 0.9, "--optimizer-state", "disk")
    assert run("info", "--preset", "book-124M", *heavy) == 0
    told = capsys.readouterr().out
    assert "in float32, SGD:\n" in told
    assert re.search(r"^optimizer +0\.0 MiB$", told, re.M)
    assert f"on the disk, the optimizer's moments: {4 * size / 2**20:,.1f} MiB\n" in told


def test_the_table_of_the_documents_has_what_each_keeps():
    text = (Path(__file__).parents[1] / "docs" / "optimizers.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if re.match(r"\| `\w", line) and line.count(" | ") == 5]
    told = {first.strip("| `"): (kept, size) for first, _, kept, size, *_ in rows}
    assert told.keys() == OPTIMIZERS.keys()
    for kind, (kept, size) in told.items():
        every = [settings_of(kind, {"momentum": momentum} if momentum else {}) for momentum in momenta(kind)]
        names = ("trf_blocks.0.ff.layers.0.weight", "tok_emb.weight")
        counts = {len(OPTIMIZERS[kind].kinds_of(name, 2, chosen)) for chosen in every for name in names}
        assert {int(number) for number in size.split(" or ")} == {4 * count for count in counts}
        moments = {kind_ for chosen in every for name in names for kind_ in OPTIMIZERS[kind].kinds_of(name, 2, chosen)}
        assert all(f"`{moment}`" in kept or (kind == "muon" and moment in AdamW.kinds) for moment in moments)


def momenta(kind):
    return (0.0, 0.9) if "momentum" in OPTIMIZERS[kind].settings else (0.0,)


# Dtypes, refusals, saving


@pytest.mark.parametrize("which", WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_that_goes_in_comes_out(which, dtype):
    parameters = {name: array.astype(dtype) for name, array in arrays_of(1).items()}
    optimizer = made(which, parameters)
    for gradients_in in (np.float64, np.float32, np.float16):
        optimizer.step({name: array.astype(gradients_in) for name, array in arrays_of(2).items()})
    moments = [array for arrays in optimizer.moments.values() for array in arrays.values()]
    assert {array.dtype for array in (*parameters.values(), *moments)} == {np.dtype(dtype)}
    assert all(np.isfinite(array).all() for array in (*parameters.values(), *moments))


@pytest.mark.parametrize("which", WAYS)
def test_the_memory_layout_makes_no_difference(which):
    plain, other = arrays_of(1), {name: np.asfortranarray(array) for name, array in arrays_of(1).items()}
    one, two = made(which, plain), made(which, other)
    for seed in (2, 3):
        one.step(arrays_of(seed))
        two.step({name: np.asfortranarray(array) for name, array in arrays_of(seed).items()})
    allowed = {name: normwise(array) for name, array in plain.items()}
    assert all(found.passed for found in compare(other, plain, allowed, dtype=np.float64))


@pytest.mark.parametrize("which", WAYS)
def test_gradients_stay_as_they_are(which):
    """Momentum takes the gradient over, and must not take the array."""
    optimizer, gradients = made(which, arrays_of(1)), arrays_of(2)
    for _ in range(3):
        optimizer.step(gradients)
    assert_equal(gradients, arrays_of(2))


@pytest.mark.parametrize("which", WAYS)
def test_a_read_only_array_leaves_all_as_it_was(which):
    optimizer = made(which, arrays_of(1))
    optimizer.step(arrays_of(2))
    every = [*optimizer.moments.values(), optimizer.parameters]
    for arrays in every:
        before = copy.deepcopy(every)
        last = list(arrays)[-1]
        arrays[last].flags.writeable = False
        with pytest.raises(InputError, match=rf"are read-only: \['{last}'\]"):
            optimizer.step(arrays_of(3))
        arrays[last].flags.writeable = True
        for now, then in zip(every, before, strict=True):
            assert_equal(now, then)


@pytest.mark.parametrize("which", WAYS)
def test_groups_have_rates_of_their_own(which):
    """A group with the learning rate 0 does not move; what has no decay of its own has the optimizer's."""
    parameters = arrays_of(1)
    vectors = Group(lambda name, array: array.ndim < 2, weight_decay=0.0)
    groups = [Group(lambda name, array: "tok_emb" in name, lr_scale=0.0), vectors]
    optimizer = made(which, parameters, groups=groups)
    optimizer.step({name: np.zeros_like(array) for name, array in parameters.items()})
    moved = {name for name, array in arrays_of(1).items() if not np.array_equal(array, parameters[name])}
    decays = set(parameters) - {"tok_emb.weight", "trf_blocks.0.norm1.scale"}
    assert moved == (decays if WAYS[which].settings.get("weight_decay") else set())


@pytest.mark.parametrize("which", WAYS)
def test_a_state_goes_to_a_checkpoint_and_back_and_a_copy_is_as_good(which, tmp_path):
    optimizer = made(which, arrays_of(1), groups=[Group(lambda name, array: array.ndim < 2, 0.5, 0.0)])
    for seed in (2, 3):
        optimizer.step(arrays_of(seed))
    write_checkpoint(tmp_path, {"optimizer": optimizer.section()})
    values = optimizer.section().values
    assert json.loads(json.dumps(values)) == values
    again, copied = made(which, copy.deepcopy(optimizer.parameters), lr=0.7), copy.deepcopy(optimizer)
    again.load_section(read_checkpoint(tmp_path))
    for one in (optimizer, again, copied):
        one.step(arrays_of(4))
    for other in (again, copied):
        assert_equal(other.parameters, optimizer.parameters)
        assert other.groups == optimizer.groups
        for kind, arrays in optimizer.moments.items():
            assert_equal(other.moments[kind], arrays)


def test_the_state_of_another_optimizer_is_refused_by_its_kind(tmp_path):
    states = {which: made(which, arrays_of(1)) for which in ("adam", "lion", "sgd_nesterov")}
    adamw = AdamW(arrays_of(1))
    with pytest.raises(InputError, match=r"^the optimizer's state is of the kind 'adam'; expected 'adamw'$"):
        adamw.load_state_dict(states["adam"].state_dict())
    with pytest.raises(InputError, match=r"^the optimizer's state is of the kind 'adamw'; expected 'adam'$"):
        states["adam"].load_state_dict(adamw.state_dict())
    write_checkpoint(tmp_path, {"optimizer": states["lion"].section()})
    with pytest.raises(InputError, match=r"cannot be used: the optimizer's arrays are named .*exp_avg\."):
        states["sgd_nesterov"].load_section(read_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("which", "moment"),
    [("adam", "exp_avg_sq"), ("rmsprop", "square_avg"), ("adagrad", "sum"), ("muon", "exp_avg_sq")],
)
def test_a_checkpoint_with_negative_squares_is_refused_and_leaves_all_as_it_was(which, moment, tmp_path):
    optimizer, spoiled = made(which, arrays_of(1)), made(which, arrays_of(1))
    for one, seed in ((optimizer, 2), (spoiled, 3)):
        one.step(arrays_of(seed))
    spoiled.moments[moment]["out_head.weight"][0, 0] = -1.0
    write_checkpoint(tmp_path, {"optimizer": spoiled.section()})
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(InputError, match=rf"cannot be used: {moment} of \['out_head.weight'\] cannot be: expected"):
        optimizer.load_section(read_checkpoint(tmp_path))
    for kind in optimizer.moments:
        assert_equal(optimizer.state_dict()[kind], before.pop(kind))
    assert {key: value for key, value in optimizer.state_dict().items() if key in before} == before


def test_a_state_with_other_moments_is_refused_and_leaves_all_as_it_was():
    plain, heavy = SGD(arrays_of(1)), SGD(arrays_of(1), momentum=0.9)
    heavy.step(arrays_of(2))
    with pytest.raises(InputError, match=r"does not fit: missing \[\], unexpected \['momentum_buffer'\]"):
        plain.load_state_dict(heavy.state_dict())
    with pytest.raises(InputError, match=r"^the state does not fit .*'momentum': 0.0.*make the optimizer with these$"):
        heavy.load_state_dict({**heavy.state_dict(), "momentum": 0.0})
    assert plain.steps == 0
    assert heavy.momentum == 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(SGD, momentum=1.0), r"momentum is 1.0; expected a number in \[0, 1\)"),
        (partial(SGD, momentum=-0.1), r"momentum is -0.1; expected a number in \[0, 1\)"),
        (partial(SGD, dampening=math.nan), r"dampening is nan; expected a number in \[0, 1\)"),
        (partial(SGD, nesterov=True), "nesterov with momentum 0 and dampening 0; expected a momentum above 0 and no"),
        (partial(SGD, momentum=0.9, dampening=0.5, nesterov=True), "nesterov with momentum 0.9 and dampening 0.5"),
        (partial(RMSprop, alpha=1.0), r"alpha is 1.0; expected a number in \[0, 1\)"),
        (partial(RMSprop, eps=0.0), "eps is 0; expected at least 2.2"),
        (partial(Adagrad, eps=0.0), "eps is 0; expected at least 2.2"),
        (partial(Adam, betas=(0.9, 1.0)), r"betas are \(0.9, 1.0\); expected two numbers in \[0, 1\)"),
        (partial(Lion, lr=-1.0), "lr is -1.0; expected a number of 0 or more"),
        (partial(Lion, weight_decay=math.inf), "weight_decay is inf; expected a number of 0 or more"),
        (partial(Muon, rest_lr_scale=-1.0), "rest_lr_scale is -1.0; expected a number of 0 or more"),
    ],
)
def test_values_that_cannot_be_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make(arrays_of(1))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": 1}, "nesterov is 1; expected True or False"),
        ("rmsprop", {"centered": "yes"}, "centered is 'yes'; expected True or False"),
        ("muon", {"momentum": True}, r"momentum is True; expected a number in \[0, 1\)"),
        ("lion", {"eps": 1e-8}, "the optimizer lion has no eps; leave it out, or choose one that has: adamw, adam"),
    ],
)
def test_settings_are_checked_by_their_names(kind, given, message):
    with pytest.raises(InputError, match=message):
        settings_of(kind, given)


def test_muon_needs_whole_matrices():
    model = object.__new__(ParallelModel)
    model.scheme, model.shapes = Scheme(fsdp=2), {}
    with pytest.raises(InputError, match=r"^muon needs whole matrices, and fsdp=2 cuts them; choose --parallel"):
        Optimizer(model, Options(optimizer="muon"))


def test_an_old_run_at_a_constant_rate_has_no_warm_up():
    saved = Options(schedule="constant").to_dict()
    assert Options.of_checkpoint(saved).learning_rate(0) < Options.lr
    for name in ("optimizer", "momentum", "nesterov", "rest_lr_scale", "decay_steps", "optimizer_state"):
        del saved[name]
    assert Options.of_checkpoint(saved).learning_rate(0) == Options.lr
    assert Options.of_checkpoint(saved).optimizer == "adamw"


#: The optimizers whose weight decay is a part of the gradient.
IN_THE_GRADIENT = ("adam", "sgd", "rmsprop", "adagrad")


@pytest.mark.parametrize("kind", CHOICES)
def test_the_weight_decay_of_a_run_is_its_optimizers_unless_it_is_given(kind):
    """What decays in the gradient decays by 0. The run keeps the number, so that another default changes no old run."""
    usual = 0.0 if kind in IN_THE_GRADIENT else 1.0 if kind == "lion" else 0.1
    options = Options(optimizer=kind)
    assert options.optimizer_settings["weight_decay"] == options.settled().weight_decay == usual
    for chosen in (0.0, 0.25):
        options = Options(optimizer=kind, weight_decay=chosen)
        assert options.optimizer_settings["weight_decay"] == options.settled().weight_decay == chosen
    assert Options.of_checkpoint(options.to_dict()) == options


@pytest.mark.parametrize("kind", CHOICES)
def test_the_usual_weight_decay_is_0_where_it_reaches_the_moments(kind):
    """A step without gradients tells: what is in the moments then can only be the decay."""
    optimizer = new_optimizer(kind, GPTModel(CONFIG), settings_of(kind, {**CHOICES[kind], "weight_decay": 0.5}), [])
    optimizer.step({name: np.zeros_like(array) for name, array in optimizer.parameters.items()})
    is_reached = any(array.any() for arrays in optimizer.moments.values() for array in arrays.values())
    assert is_reached == (kind in IN_THE_GRADIENT) == (WEIGHT_DECAYS[kind] == 0)


@pytest.mark.parametrize("program", ["numpygpt", "torchgpt"])
def test_both_commands_train_and_keep_the_same_usual_weight_decay(program, folder, capsys):
    main_of = {"numpygpt": numpygpt_command, "torchgpt": torchgpt_command}
    for kind, usual in (("adam", 0.0), ("lion", 1.0)):
        trained = read_checkpoint(train(program, folder / kind, *EXACT, "--optimizer", kind, "--steps", 1))
        assert trained.values("run")["options"]["weight_decay"] == usual
        assert trained.values("optimizer")["weight_decay"] == usual
    assert main_of[program](["train", "--help"]) == 0
    told = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "(default: 0.1 with adamw and muon, 1 with lion, 0 with the others" in told
    assert "a part of the gradient with adam, sgd, rmsprop and adagrad" in told


def test_the_backend_makes_what_the_options_say(tmp_path, text):
    training = tiny_run.start(tmp_path, text, optimizer="muon", momentum=0.8, nesterov=False, weight_decay=0.3, lr=0.5)
    assert isinstance(training.backend, NumpyBackend)
    values = training.backend.optimizer.values
    assert {name: values[name] for name in ("momentum", "nesterov", "weight_decay", "lr", "rest_lr_scale")} == {
        "momentum": 0.8, "nesterov": False, "weight_decay": 0.3, "lr": 0.5, "rest_lr_scale": 0.015
    }  # fmt: skip


# The defaults


def defaults(kind):
    """The defaults of a class's arguments, by name."""
    parameters = inspect.signature(kind).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


@pytest.mark.parametrize("kind", [Adagrad, Adam, AdamW, RMSprop, SGD])
def test_defaults_are_pytorchs(kind):
    ours, theirs = defaults(kind), defaults(getattr(torch.optim, kind.__name__))
    assert "lr" in ours
    assert {name: theirs[name] for name in ours if name in theirs} == {
        name: value for name, value in ours.items() if name in theirs
    }


def test_defaults_of_lion_and_muon_are_those_of_who_published_them():
    """Chen et al. 2023 for Lion; Keller Jordan for Muon, whose AdamW of the rest has a rate of 0.02 * 0.015 = 3e-4."""
    lion, muon = defaults(Lion), defaults(Muon)
    assert (lion["lr"], lion["betas"], lion["weight_decay"]) == (1e-4, (0.9, 0.99), 0.0)
    assert (muon["lr"], muon["momentum"], muon["weight_decay"], muon["nesterov"]) == (0.02, 0.95, 0.0, True)
    assert (muon["betas"], muon["eps"], muon["rest_lr_scale"]) == ((0.9, 0.95), 1e-10, 0.015)


@pytest.mark.parametrize("kind", [Lion, Muon])
def test_a_gradient_of_zeros_moves_nothing(kind):
    name, weight = "trf_blocks.0.ff.layers.0.weight", np.ones((3, 4))
    optimizer = kind({name: weight}, lr=0.5)
    optimizer.step({name: np.zeros((3, 4))})
    assert np.array_equal(weight, np.ones((3, 4)))


def test_a_schedule_ends_at_0_and_begins_at_its_peak_without_a_warm_up_unless_it_is_told_otherwise():
    steps = {"peak_lr": 0.5, "warmup_steps": 2, "total_steps": 8}
    assert constant(0, peak_lr=0.5) == 0.5
    assert warmup_linear(8, **steps) == warmup_cosine(8, **steps) == 0
    assert warmup_stable_decay(8, **steps, decay_steps=3) == 0
