"""A large model is replayed in parts, which say of its tensors what a replay of the whole model says.

The checks of annotations are off, because the tests take whole steps many times.
"""

import numpy as np
import pytest
from scipy.special import erf

from numpygpt.checks import diagnose as diagnosing
from numpygpt.checks import replay
from numpygpt.checks.budgets import by_numpy
from numpygpt.checks.causes import causes
from numpygpt.checks.diagnose import diagnose
from numpygpt.checks.diff import WRONG, diff
from numpygpt.checks.part import Part, parts_with
from numpygpt.checks.records import BUGS
from numpygpt.checks.replay import Replay
from numpygpt.checks.trace import Settings, record
from numpygpt.checks.trace_file import TraceFile, has_budget, write_trace
from numpygpt.model.config import GPTConfig
from parity_tests.candidates import candidate, tensors_of
from parity_tests.properties import CONFIG, TIED

SETTINGS = Settings(tokens=6)
#: What needs the whole vocabulary, or all parameters: one of each kind.
IN_NO_PART = (
    "logits", "loss", "d_logits", "d_final_norm", "tok_emb.weight", "d_pos_emb.weight", "step1.exp_avg.tok_emb.weight",
    "step2.loss", "step2.d_trf_blocks.0.norm1.scale", "step2.exp_avg.final_norm.scale", "generated.logits",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")


@pytest.fixture(scope="module")
def reference(without_checks_of_annotations, tmp_path_factory):
    return written(CONFIG, SETTINGS, tmp_path_factory)


@pytest.fixture
def taken_for_large(monkeypatch):
    """Every model is replayed in parts, and few causes are tried, because each takes time."""
    monkeypatch.setattr(replay, "MOST_PARAMETERS", 0)
    few = ("gelu_erf", "relu", "norm_scale_missing")
    monkeypatch.setattr(diagnosing, "causes", lambda *of: (cause for cause in causes(*of) if cause.name in few))
    monkeypatch.setattr(diagnosing, "fitted", lambda *of: ())


def written(config, settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "reference.safetensors"
    trace = record(config, settings)
    write_trace(path, trace, *by_numpy(trace))
    return TraceFile(path)


def with_erf(reference, block):
    """The reference's tensors, with the other GELU in one block."""
    tensors = {name: reference.read(name) for name in reference.order}
    x = tensors[f"trf_blocks.{block}.ff.layers.0"]
    tensors[f"trf_blocks.{block}.ff.layers.1"] = x * (1 + erf(x / np.sqrt(2))) / 2
    return tensors


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_each_part_computes_what_the_whole_model_computes(config, tmp_path_factory):
    """From the reference's own tensors every tensor of a part follows within its budget in float64."""
    reference = written(config, SETTINGS, tmp_path_factory)
    tensors = {name: reference.read(name) for name in reference.order}
    judged = set()
    for block in range(reference.header.config.n_layers):
        part = Part(reference, block)
        of_part = Replay(part, part.of_candidate(candidate(tensors, reference)))
        again = of_part.run()
        for name, of_whole in part.names.items():
            if has_budget(name):
                assert of_part.used(name, again[name]) <= 1, (block, of_whole)
                judged.add(of_whole)
    left = {name for name in reference.order if has_budget(name)} - judged
    assert {name for name in IN_NO_PART if has_budget(name) and name in reference.order} <= left
    assert not [name for name in left if "trf_blocks" in name and "step2" not in name]


def test_verdicts_are_those_of_the_whole_replay(reference, taken_for_large, monkeypatch):
    header = reference.header
    ours = candidate(tensors_of(header.config, header.settings, [BUGS["erf_gelu"]]), reference)
    in_parts = [finding.name for finding in diff(reference, ours).wrong if finding.verdict == WRONG]
    monkeypatch.undo()
    assert [name for name in in_parts if next(parts_with(reference, [name]), None)] == [
        finding.name for finding in diff(reference, ours).wrong if finding.verdict == WRONG
    ]


@pytest.mark.parametrize("block", [0, 1])
def test_the_cause_is_found_in_the_block_that_has_it(block, reference, taken_for_large):
    ours = candidate(with_erf(reference, block), reference)
    (diagnosis,) = diagnose(reference, ours, diff(reference, ours))
    assert diagnosis.name == f"trf_blocks.{block}.ff.layers.1"
    assert "gelu_erf" in diagnosis.offers[0].names


def test_what_the_candidate_lacks_between_blocks_is_the_references(reference, taken_for_large):
    tensors = with_erf(reference, 1)
    for name in ("trf_blocks.0", "d_final_norm"):
        del tensors[name]
    ours = candidate(tensors, reference)._replace(partial=True)
    (diagnosis,) = diagnose(reference, ours, diff(reference, ours))
    assert "gelu_erf" in diagnosis.offers[0].names


def test_names_in_words_are_those_of_the_trace(reference, taken_for_large):
    tensors = {name: reference.read(name) for name in reference.order}
    tensors["trf_blocks.1.norm2"] = tensors["trf_blocks.1.norm1"]
    ours = candidate(tensors, reference)
    lines = diagnose(reference, ours, diff(reference, ours))[0].lines
    assert "your `trf_blocks.1.norm2` equals your `trf_blocks.1.norm1` (exactly)" in lines


@pytest.mark.parametrize("name", [name for name in IN_NO_PART if has_budget(name)])
def test_what_is_in_no_part_is_said_to_be_in_none(name, reference, taken_for_large):
    tensors = {name: reference.read(name) for name in reference.order}
    tensors[name] = tensors[name] + 1
    ours = candidate(tensors, reference)
    (diagnosis,) = diagnose(reference, ours, diff(reference, ours))
    assert diagnosis.lines == [f"`{name}`: the cause is sought only within the blocks of so large a model: "
                               "trace one of fewer parameters"]  # fmt: skip


@pytest.mark.long_form
def test_a_model_above_the_limit_is_diagnosed(tmp_path_factory):
    config = GPTConfig(3000, 16, 384, 6, 6, 0.1, True)
    reference = written(config, Settings(tokens=8, batch_size=1, steps=1), tmp_path_factory)
    assert replay.only_in_parts(config)
    ours = candidate(with_erf(reference, 3), reference)
    (diagnosis,) = diagnose(reference, ours, diff(reference, ours))
    assert (diagnosis.name, diagnosis.offers[0].names[0]) == ("trf_blocks.3.ff.layers.1", "gelu_erf")
