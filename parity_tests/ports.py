"""Implementations for `numpygpt conform`: our own steps, with one thing wrong, or an answer that is none."""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from numpygpt.checks.conform.cases import reference
from numpygpt.checks.planting import planted
from numpygpt.checks.records import BUGS
from numpygpt.checks.trace import is_given, is_parameter, retrace

_FOLDER = TemporaryDirectory()


@cache
def reference_once(case, by):
    """The trace of a case, which is made once for all tests of a process."""
    return reference(case, Path(_FOLDER.name) / f"{len(list(Path(_FOLDER.name).iterdir()))}.safetensors", by)


def once(case, path, by):
    """In the place of `reference`."""
    return reference_once(case, by)


class Sound:
    """Our own steps."""

    def run(self, config, settings, given):
        return answer(config, settings, given)


def answer(config, settings, given, after=lambda name, array: None):
    """Every computed tensor. `after` may change an array once it is told, before it is used."""
    tensors = {}

    def tell(name, array):
        if not is_given(name):
            tensors[name] = np.array(array)
            after(name, array)

    retrace(config, settings, given, np.float64, tell)
    return tensors


class ErfGelu:
    def run(self, config, settings, given):
        other = {"gelu_tanh": "gelu_erf", "gelu_erf": "gelu_tanh"}[config.activation]
        return answer(replace(config, activation=other), settings, given)


class TransposedWeight:
    """It reads the output projection the other way round."""

    def run(self, config, settings, given):
        weight = "trf_blocks.0.att.out_proj.weight"
        return answer(config, settings, {**given, weight: given[weight].T})


class QkvOrder:
    """It takes keys for queries."""

    def run(self, config, settings, given):
        def other(name):
            swapped = {"W_query": "W_key", "W_key": "W_query"}
            parts = name.split(".")
            return ".".join(swapped.get(part, part) for part in parts)

        return answer(config, settings, {name: given[other(name)] for name in given})


class CoupledDecay:
    """Adam with the decay in the gradient, in the place of AdamW."""

    def run(self, config, settings, given):
        parameters = {name: array.astype(np.float64) for name, array in given.items() if is_parameter(name)}

        def after(name, array):
            before, d, parameter = name.rpartition("d_")
            if d and parameter in parameters and before in ("", "step2."):
                array += settings.weight_decay * parameters[parameter]
            step, _, parameter = name.partition(".")
            if step in ("step1", "step2") and parameter in parameters:
                parameters[parameter] = array

        return answer(config, settings._replace(weight_decay=0.0), given, after)


class ForwardOnly:
    """It has no backward, and says so; it does not show attention's weights either."""

    rungs = ("forward", "activations")
    not_shown = ("*.att.attn_*",)

    def run(self, config, settings, given):
        tensors = answer(config, settings, given)
        shown = {name: array for name, array in tensors.items() if not name.startswith(("d_", "step", "generated."))}
        return {name: array for name, array in shown.items() if ".att.attn_" not in name}


class WrongForwardOnly(ForwardOnly):
    wrong = "final_norm"

    def run(self, config, settings, given):
        tensors = super().run(config, settings, given)
        return {**tensors, self.wrong: 2 * tensors[self.wrong]}


class LongDoubles:
    """Its logits are wrong, and every number is of a dtype or byte order that safetensors does not have."""

    format, wrong = "float32", "logits"

    def run(self, config, settings, given):
        tensors = answer(config, settings, given)
        tensors[self.wrong] = -tensors[self.wrong]
        dtypes = {"f": np.longdouble, "i": ">i8"}
        return {name: array.astype(dtypes[array.dtype.kind]) for name, array in tensors.items()}


class WithBug:
    """Our own steps with a planted bug in them."""

    def __init__(self, name):
        self.bug = BUGS[name]

    def run(self, config, settings, given):
        with planted(self.bug):
            return answer(config, settings, given)


def merged_without_transpose():
    """A function that makes an adapter."""
    return WithBug("heads_merged_without_transpose")


class WithoutDropout(Sound):
    def unable(self, config, settings):
        return "no dropout" if config.drop_rate else None


class NoGenerationUnsaid:
    def run(self, config, settings, given):
        return {n: a for n, a in answer(config, settings, given).items() if not n.startswith("generated.")}


class WithNaN:
    def run(self, config, settings, given):
        tensors = answer(config, settings, given)
        tensors["d_final_norm.scale"][0] = np.nan
        return tensors


class WrongName:
    def run(self, config, settings, given):
        return {**answer(config, settings, given), "logitz": np.zeros(3)}


class ChangedInput:
    def run(self, config, settings, given):
        return {**answer(config, settings, given), "inputs": given["inputs"] + 1}


class Crash:
    def run(self, config, settings, given):
        raise RuntimeError("no more\nof this")


class Exits:
    def run(self, config, settings, given):
        sys.exit(0)


def exits():
    sys.exit(0)


class NoDict:
    def run(self, config, settings, given):
        return [1, 2]


class Words:
    def run(self, config, settings, given):
        return {"logits": np.array(["a"])}


class Nothing:
    rungs = ()

    def run(self, config, settings, given):
        return {}


class FailsFromTwoHeadsOn:
    """The heads are merged in the wrong order, which one head hides; and only where there are at least three tokens."""

    def run(self, config, settings, given):
        def after(name, array):
            if name == "trf_blocks.0.att.context_vec" and config.n_heads > 1 and settings.tokens > 2:
                array += 1e-3

        tensors = answer(config, settings, given, after)
        if config.n_heads > 1 and settings.tokens > 2:
            tensors["trf_blocks.0.att.context_vec"] = tensors["trf_blocks.0.att.context_vec"] + 1e-3
        return tensors


class NoAdapter:
    """It has no method run."""


class BadRung(Sound):
    rungs = ("fly",)


def makes():
    """A function that makes an adapter."""
    return Sound()
