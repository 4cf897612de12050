"""The budgets of a trace, from PyTorch's rounding model (`torchgpt.checks.parity`).

The steps of the trace are taken by the PyTorch twin in float64, many times with the random rounding errors of a format.
The largest error of a tensor, and of each of its rows, times FACTOR, is its budget. Activations and gradients have the
errors of the format. AdamW is computed in float32, or in float64 if the format is float64.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from numpygpt.checks.budgets import FORMATS, Budgets, added, with_reference
from numpygpt.checks.compare import Norms, finite_norms, largest, scaled
from numpygpt.checks.trace import INPUTS, LOGITS, PROMPT, TARGETS, TOKENS, Trace, is_given, is_parameter, masks_of
from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import Array
from numpygpt.watch import Watch
from torchgpt.bridge import dropout_masks, to_torch
from torchgpt.checks.parity import FACTOR, MARGIN, REPORT_PROBES, Tensors, copies_at_once, rounding_errors, run_stacked
from torchgpt.checks.rounding import FORMATS as ROUNDING
from torchgpt.model import GPTModel as TorchGPTModel

#: How many runs there are for each format. By `torchgpt.checks.parity`, a sound run is then blamed for a row of one
#: value with a probability of 2e-6.
PROBES = 32
#: A model with more parameters gets fewer probes, because each is a run of the whole step.
MANY_PARAMETERS, FEW_PROBES = 1_000_000, REPORT_PROBES
#: PyTorch takes more threads only for models with more parameters: with tensors as small as these they only wait.
FEW_PARAMETERS = 100_000


def budgets(trace: Trace) -> tuple[str, Budgets]:
    """How the budgets were found, in a line, and the budgets by format and name."""
    model = GPTModel.from_state_dict(trace.config, _parameters(trace), np.float64)
    probes = PROBES if model.num_parameters() <= MANY_PARAMETERS else FEW_PROBES
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if model.num_parameters() <= FEW_PARAMETERS else threads)
    try:
        found = _budgets(trace, to_torch(model), probes, copies_at_once(model))
    finally:
        torch.set_num_threads(threads)
    how = f"{FACTOR:g} times the largest of {probes} runs of PyTorch in float64 with the rounding errors of the format"
    return how, found


def _budgets(trace: Trace, twin: TorchGPTModel, probes: int, at_once: int) -> Budgets:
    truth = {name: np.asarray(copies[0]) for name, copies in _run(trace, twin, 1).items()}
    found: Budgets = {}
    for format_ in FORMATS:
        state = FORMATS["float64" if format_ == "float64" else "float32"]
        run = _with_errors(trace, twin, MARGIN * state)
        errors = rounding_errors(run, truth, format_, probes=probes, at_once=at_once)
        smallest = ROUNDING[format_].underflow
        found[format_] = {
            name: with_reference(_at_least(scaled(error, FACTOR), smallest), truth[name], format_)
            for name, error in errors.items()
        }
        if trace.config.position == "sinusoidal":  # to PyTorch the table is a constant, but another computes it
            rounded = scaled(finite_norms(truth["pos_emb"]), FACTOR * FORMATS[format_])
            found[format_]["pos_emb"] = largest([found[format_]["pos_emb"], rounded])
    if trace.settings.dtype == "float32":
        own = found["float32"]
        found = {f: {name: added(allowed, own[name]) for name, allowed in of.items()} for f, of in found.items()}
    return found


def _at_least(allowed: Norms, smallest: float) -> Norms:
    """Numbers below the normal ones lose digits. The errors of the model are relative, and do not show this."""
    return Norms(max(allowed.tensor, smallest), np.maximum(allowed.rows, smallest))


def _parameters(trace: Trace) -> Tensors:
    return {name: array for name, array in trace.tensors.items() if is_parameter(name)}


def _with_errors(trace: Trace, twin: TorchGPTModel, error: float) -> Callable[[int], Tensors]:
    rng = np.random.default_rng(0)
    return lambda copies: _run(trace, twin, copies, lambda x: x * (1 + error * rng.standard_normal(x.shape)))


def _run(
    trace: Trace, twin: TorchGPTModel, copies: int, rounded: Callable[[Array], Array] = lambda x: x
) -> Tensors:
    """Every computed tensor of the trace, with the copies along a new first axis.

    rounded   gives the results of AdamW's operations their errors
    """
    p = {name: np.broadcast_to(array, (copies, *array.shape)) for name, array in _parameters(trace).items()}
    m, v = ({name: np.zeros_like(array, np.float64) for name, array in p.items()} for _ in range(2))
    tensors = _generate(trace, twin, copies)
    for step in range(1, trace.settings.steps + 1):
        found = _step(trace, twin, p, copies)
        if step > 1:
            found = {f"step{step}.{name}": found[name] for name in ("loss", *(f"d_{name}" for name in p))}
        tensors |= found
        before = "" if step == 1 else f"step{step}."
        gradients = {name: tensors[f"{before}d_{name}"] for name in p}
        p, m, v = _adamw(trace, step, (p, gradients, m, v), rounded)
        for kind, arrays in (("exp_avg.", m), ("exp_avg_sq.", v), ("", p)):
            tensors |= {f"step{step}.{kind}{name}": array for name, array in arrays.items()}
    return {name: tensors[name] for name in trace.tensors if not is_given(name) and name != TOKENS}


def _step(trace: Trace, twin: TorchGPTModel, parameters: Mapping[str, Array], copies: int) -> Tensors:
    """Activations, loss, and all gradients. The parameters are rounded to the format first, if they are not in it."""
    inputs, targets = (torch.from_numpy(trace.tensors[name]) for name in (INPUTS, TARGETS))

    def forward(weights: dict[str, Tensor], watch: Watch) -> Tensor:
        logits: Tensor = functional_call(twin, weights, (inputs, watch))
        watch("loss", F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        return logits

    stacked = _in_format(trace, parameters)
    masks = masks_of(trace.config, trace.tensors)
    if masks is None:
        return run_stacked(forward, stacked, {"loss": np.ones(())}, copies)
    with dropout_masks(twin, masks):
        return run_stacked(forward, stacked, {"loss": np.ones(())}, copies)


def _in_format(trace: Trace, parameters: Mapping[str, Array]) -> dict[str, Tensor]:
    """The given parameters are exact in every format; a product with 1 rounds those that AdamW has changed."""
    tensors = {name: torch.from_numpy(np.array(array, np.float64)) for name, array in parameters.items()}
    given = all(np.array_equal(array[0], trace.tensors[name]) for name, array in parameters.items())
    return tensors if given else {name: tensor * 1.0 for name, tensor in tensors.items()}


def _adamw(
    trace: Trace, step: int, state: tuple[Any, ...], rounded: Callable[[Array], Array]
) -> tuple[Tensors, Tensors, Tensors]:
    """The parameters, first and second moments after a step (`numpygpt.training.adamw` has the formulas)."""
    parameters, gradients, first, second = state
    s = trace.settings
    correction1, correction2 = 1 - s.beta1**step, np.sqrt(1 - s.beta2**step)
    p, m, v = {}, {}, {}
    for name, g in gradients.items():
        m[name] = rounded(first[name] + rounded((1 - s.beta1) * rounded(g - first[name])))
        v[name] = rounded(rounded(s.beta2 * second[name]) + rounded(rounded((1 - s.beta2) * g) * g))
        denominator = rounded(rounded(rounded(np.sqrt(v[name])) / correction2) + s.eps)
        decayed = rounded((1 - s.lr * s.weight_decay) * parameters[name])
        p[name] = rounded(decayed - rounded(s.lr / correction1 * rounded(m[name] / denominator)))
    return p, m, v


def _generate(trace: Trace, twin: TorchGPTModel, copies: int) -> Tensors:
    """The logits before each generated token, from one forward of the prompt and the tokens of the trace."""
    if TOKENS not in trace.tensors:
        return {}
    prompt, tokens = trace.tensors[PROMPT], trace.tensors[TOKENS]
    text = torch.from_numpy(np.concatenate([prompt, tokens[:-1]])[np.newaxis])

    def forward(weights: dict[str, Tensor], watch: Watch) -> Tensor:
        logits: Tensor = functional_call(twin, weights, (text,))
        watch("logits", logits)
        return logits

    weights = {
        name: torch.from_numpy(np.array(np.broadcast_to(array, (copies, *array.shape)), np.float64))
        for name, array in _parameters(trace).items()
    }
    no_gradient = np.zeros((*text.shape, trace.config.vocab_size))
    logits = run_stacked(forward, weights, {"logits": no_gradient}, copies)["logits"]
    return {LOGITS: logits[:, 0, len(prompt) - 1 :]}
