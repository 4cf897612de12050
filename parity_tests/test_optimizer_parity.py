"""AdamW, clipping and the learning-rate schedules are PyTorch's."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numpygpt.checks.compare import compare, normwise
from numpygpt.training.adamw import AdamW
from numpygpt.training.clipping import clip_grad_norm
from numpygpt.training.schedules import constant, warmup_cosine
from parity_tests.strategies import scales, seeds
from torchgpt.checks.parity import reference

BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64])
STEPS = 50
LOOKED_AT = (1, 2, 25, 50)

#: These make PyTorch step one tensor at a time, so that its rounding errors can be modeled for each operation.
PLAIN = {"foreach": False, "fused": False}


@st.composite
def trainings(draw, dtype):
    """Options, the weights of two parameters, and their gradients at every step, near eps, ordinary or huge."""
    rng = np.random.default_rng(draw(seeds))
    eps = draw(st.sampled_from([1e-8, 1e-3]))
    options = {
        "lr": draw(st.sampled_from([1e-3, 0.1])),
        "betas": draw(st.sampled_from([(0.9, 0.999), (0.0, 0.95), (0.5, 0.0)])),
        "eps": eps,
        "weight_decay": draw(st.sampled_from([0.0, 0.01, 0.5])),
    }
    shapes = {"weight": (5, 4), "bias": (7,)}
    size = draw(st.sampled_from([eps, 0.1 * eps, 10 * eps, 1.0, 1e3]))
    weights = {name: (draw(scales) * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}
    gradients = {name: (size * rng.standard_normal((STEPS, *shape))).astype(dtype) for name, shape in shapes.items()}
    if draw(st.booleans()):
        gradients["weight"][:, 0] = 0  # as for the unused row of an embedding
    return options, weights, gradients


def tensors_of(step, parameters, exp_avg, exp_avg_sq):
    kinds = {"parameter": parameters, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    return {f"step {step}, {kind} {name}": arrays[name].copy() for kind, arrays in kinds.items() for name in arrays}


def in_numpy(options, weights, gradients):
    parameters = {name: array.copy() for name, array in weights.items()}
    optimizer = AdamW(parameters, **options)
    tensors = {}
    for step in range(1, STEPS + 1):
        optimizer.step({name: gradient[step - 1] for name, gradient in gradients.items()})
        if step in LOOKED_AT:
            tensors |= tensors_of(step, parameters, optimizer.exp_avg, optimizer.exp_avg_sq)
    return tensors


def in_torch(options, weights, gradients):
    def prepare(dtype):
        given_weights = {name: torch.from_numpy(array.astype(dtype)) for name, array in weights.items()}
        given_gradients = {name: torch.from_numpy(gradient.astype(dtype)) for name, gradient in gradients.items()}

        def run(copies):
            parameters = {
                name: weight.expand(copies, *weight.shape).clone().requires_grad_()
                for name, weight in given_weights.items()
            }
            optimizer = torch.optim.AdamW(parameters.values(), **options, **PLAIN)
            tensors = {}
            for step in range(1, STEPS + 1):
                for name, parameter in parameters.items():
                    parameter.grad = given_gradients[name][step - 1].expand_as(parameter).clone()
                optimizer.step()
                if step in LOOKED_AT:
                    moments = (
                        {name: optimizer.state[parameter][moment].numpy() for name, parameter in parameters.items()}
                        for moment in ("exp_avg", "exp_avg_sq")
                    )
                    values = {name: parameter.detach().numpy() for name, parameter in parameters.items()}
                    tensors |= tensors_of(step, values, *moments)
            return tensors

        return run

    return prepare


@BOTH
@settings(max_examples=10)
@given(data=st.data())
def test_parameters_and_both_moments_over_fifty_steps(dtype, data):
    training = data.draw(trainings(dtype))
    judged_by = reference(in_torch(*training), dtype)
    found = compare(in_numpy(*training), judged_by.truth, judged_by.allowed, dtype=dtype)
    assert not [comparison for comparison in found if not comparison.passed]


def test_a_changed_learning_rate_counts_from_the_next_step():
    rng = np.random.default_rng(0)
    weight, gradients = rng.standard_normal((3, 4)), rng.standard_normal((4, 3, 4))
    ours = {"weight": weight.copy()}
    theirs = torch.nn.Parameter(torch.from_numpy(weight.copy()))
    optimizer, torch_optimizer = AdamW(ours, lr=0.1), torch.optim.AdamW([theirs], lr=0.1)
    for lr, gradient in zip((0.1, 0.3, 0.0, 0.02), gradients, strict=True):
        optimizer.lr = torch_optimizer.param_groups[0]["lr"] = lr
        optimizer.step({"weight": gradient})
        theirs.grad = torch.from_numpy(gradient)
        torch_optimizer.step()
    expected = {"weight": theirs.detach().numpy()}
    found = compare(ours, expected, {"weight": normwise(expected["weight"])}, dtype=np.float64)
    assert not [comparison for comparison in found if not comparison.passed]


@BOTH
@settings(max_examples=10)
@given(seed=seeds, size=scales, max_norm=st.sampled_from([1e-3, 1.0, 7.0, 1e3]))
def test_clipping_and_the_norm_it_returns(dtype, seed, size, max_norm):
    rng = np.random.default_rng(seed)
    gradients = {"a": size * rng.standard_normal((3, 4)), "b": rng.standard_normal(7), "c": np.zeros(2)}
    gradients = {name: gradient.astype(dtype) for name, gradient in gradients.items()}

    def in_torch(dtype):
        given_gradients = {name: torch.from_numpy(gradient.astype(dtype)) for name, gradient in gradients.items()}
        parameters = {name: torch.nn.Parameter(torch.empty_like(array)) for name, array in given_gradients.items()}

        def run(_):
            for name, parameter in parameters.items():
                parameter.grad = given_gradients[name].clone()
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm, foreach=False)
            clipped = {name: parameter.grad.numpy() for name, parameter in parameters.items()}
            return {name: array[np.newaxis] for name, array in {"norm": norm.numpy(), **clipped}.items()}

        return run

    judged_by = reference(in_torch, dtype, at_once=1)
    norm = clip_grad_norm(gradients, max_norm)
    ours = {"norm": np.asarray(norm, dtype), **gradients}
    found = compare(ours, judged_by.truth, judged_by.allowed, dtype=dtype)
    assert not [comparison for comparison in found if not comparison.passed]


# Schedules


def rates_of(make_scheduler, peak_lr, steps):
    """The learning rates that a scheduler of PyTorch sets for step 0, 1, ..."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak_lr)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(rates)


@given(
    peak_lr=st.sampled_from([4e-4, 0.3]),
    warmup_steps=st.integers(2, 9),
    cosine_steps=st.integers(1, 30),
    end=st.sampled_from([0.0, 0.1]),
)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
def test_warm_up_and_cosine_are_pytorchs_in_sequence(peak_lr, warmup_steps, cosine_steps, end):
    lr_scheduler = torch.optim.lr_scheduler
    total_steps, min_lr = warmup_steps + cosine_steps, end * peak_lr

    def in_sequence(optimizer):
        start_factor, warm_up_ends = 1 / warmup_steps, warmup_steps - 1
        warm_up = lr_scheduler.LinearLR(optimizer, start_factor, total_iters=warm_up_ends)
        cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=cosine_steps, eta_min=min_lr)
        return lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], milestones=[warmup_steps])

    options = {"peak_lr": peak_lr, "warmup_steps": warmup_steps, "total_steps": total_steps, "min_lr": min_lr}
    ours = np.array([warmup_cosine(step, **options) for step in range(total_steps + 1)])
    theirs = rates_of(in_sequence, peak_lr, total_steps + 1)
    found = compare({"lr": ours}, {"lr": theirs}, {"lr": normwise(theirs)}, dtype=np.float64)
    assert all(comparison.passed for comparison in found)


def test_the_schedules_drive_pytorchs_lambda_scheduler():
    options = {"peak_lr": 1.0, "warmup_steps": 3, "total_steps": 9, "min_lr": 0.1}
    for schedule in (partial(constant, peak_lr=1.0), partial(warmup_cosine, **options)):
        rates = rates_of(lambda optimizer, rate=schedule: torch.optim.lr_scheduler.LambdaLR(optimizer, rate), 0.5, 12)
        assert rates.tolist() == [0.5 * schedule(step) for step in range(12)]
