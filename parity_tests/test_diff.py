"""`numpygpt diff` names the first tensor that leaves its budget, whatever its name, and never passes a bad one.

The checks of annotations are off, because the tests take whole steps many times.
"""

import json
import os
import re
import subprocess
import sys
import tracemalloc
from html import unescape

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from numpygpt.checks.budgets import by_numpy
from numpygpt.checks.compare import Comparison, Norms, compare
from numpygpt.checks.dialects import ACTIVATIONS, open_candidate
from numpygpt.checks.diff import DOWNSTREAM, MISSING, WRONG, Finding, compared, diff
from numpygpt.checks.measure import BLOCK, all_measured, measured
from numpygpt.checks.records import BUGS
from numpygpt.checks.trace import Settings, is_given, is_parameter, is_state, record
from numpygpt.checks.trace_file import TraceFile, write_trace
from numpygpt.commands import diff as command
from numpygpt.errors import InputError
from numpygpt.formats import hugging_face, llm_c, nanogpt
from numpygpt.formats.tensor_file import StoredTensor, TensorFile
from numpygpt.model.config import GPTConfig
from parity_tests.candidates import FORMATS, candidate, tensors_of
from parity_tests.command import run
from parity_tests.properties import CONFIG
from parity_tests.test_parity_command import Page
from parity_tests.tolerances import FLOAT64_NORMWISE

SETTINGS = Settings(tokens=6)
#: What llm.c computes.
GPT2 = GPTConfig(
    vocab_size=11, context_length=8, emb_dim=12, n_heads=3, n_layers=2, drop_rate=0.0, qkv_bias=True, tie_weights=True
)


pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")


@pytest.fixture(scope="module")
def reference(without_checks_of_annotations, tmp_path_factory):
    return written(CONFIG, tmp_path_factory)


@pytest.fixture(scope="module")
def reference_gpt2(without_checks_of_annotations, tmp_path_factory):
    return written(GPT2, tmp_path_factory)


def written(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "reference.safetensors"
    trace = record(config, SETTINGS)
    write_trace(path, trace, *by_numpy(trace))
    return TraceFile(path)


def tensors_in(reference):
    return {name: reference.read(name) for name in reference.order}


def saved(path, tensors, metadata=None):
    save_file({name: np.array(array, order="C") for name, array in tensors.items()}, path, metadata)
    return path


def wrong(reference, tensors, format_="float64"):
    return [(f.name, f.verdict) for f in diff(reference, candidate(tensors, reference, format_)).wrong]


# What agrees


@pytest.mark.parametrize("format_", FORMATS)
def test_a_sound_candidate_agrees_in_every_format(format_, reference):
    assert wrong(reference, tensors_of(CONFIG, SETTINGS, (), format_), format_) == []


def test_a_short_format_is_not_excused_by_a_longer_ones_budget(reference):
    assert wrong(reference, tensors_of(CONFIG, SETTINGS, (), "float32"), "float64")[0] == ("drop_emb", WRONG)
    assert wrong(reference, tensors_of(CONFIG, SETTINGS, (), "bfloat16"), "float32")[0][1] == WRONG


def test_large_tensors_are_compared_block_by_block_as_small_ones_are():
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((3, BLOCK // 50, 100))
    for dtype in (np.float64, np.float32):
        ours = (expected + 1e-3 * rng.standard_normal(expected.shape)).astype(dtype)
        allowed = Norms(1.0, np.full(expected[..., 0].size, 0.01))
        (slow,) = compare({"x": ours}, {"x": expected}, {"x": allowed}, dtype=dtype)
        fast = compared("x", ours, expected, allowed)
        assert fast.passed is slow.passed is False
        rounding = FLOAT64_NORMWISE if dtype == np.float64 else expected.shape[-1] * np.finfo(dtype).eps
        for one, other in zip(fast[2:], slow[2:], strict=True):
            assert abs(one - other) <= rounding * other


@pytest.mark.parametrize("value", [1e-200, 1e200])
def test_squares_that_overflow_or_underflow_are_not_trusted(value):
    expected = np.full((2, 3), value)
    allowed = Norms(value, np.full(2, value))
    assert not compared("x", 3 * expected, expected, allowed).passed
    assert compared("x", expected, expected, allowed).passed


# What is wrong


SPOILED = [
    "tok_emb.weight",
    "inputs",
    "keep.drop_emb",
    "tok_emb",
    "trf_blocks.1.att.attn_weights",
    "loss",
    "d_logits",
    "d_trf_blocks.0.ff.layers.1",
    "d_trf_blocks.1.norm2.scale",
    "d_tok_emb.weight",
    "step1.exp_avg.pos_emb.weight",
    "step1.exp_avg_sq.trf_blocks.0.att.out_proj.bias",
    "step1.tok_emb.weight",
    "step2.loss",
    "step2.d_final_norm.scale",
    "step2.final_norm.shift",
    "generated.logits",
    "generated.tokens",
]


@pytest.mark.parametrize("name", SPOILED)
def test_one_wrong_value_is_named_and_nothing_else(name, reference):
    tensors = tensors_in(reference)
    spoiled = np.array(tensors[name])
    at = (-1,) * spoiled.ndim
    spoiled[at] = not spoiled[at] if spoiled.dtype == bool else spoiled[at] + 1
    if name == "generated.tokens":
        spoiled[at] %= CONFIG.vocab_size
    assert wrong(reference, tensors | {name: spoiled}) == [(name, WRONG)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(value, reference):
    tensors = tensors_in(reference)
    for name in ("final_norm", "d_tok_emb.weight", "generated.logits"):
        spoiled = tensors[name].copy()
        spoiled.flat[3] = value
        assert wrong(reference, tensors | {name: spoiled})[0][0] == name


def damaged(reference, path, name, value):
    """The reference with another first value in a tensor."""
    with safe_open(reference.path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(reference.path)
    tensors[name].flat[0] = value
    return TraceFile(saved(path, tensors, metadata))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("final_norm", np.nan, "final_norm of the trace .* has a NaN"),
        ("tok_emb.weight", np.nan, "tok_emb.weight of the trace .* has a NaN"),
        ("budget.float64.logits", np.nan, "the budget of logits in float64 has numbers that are negative or not"),
        ("budget.float64.logits", np.inf, "the budget of logits in float64 has numbers"),
        ("budget.float64.logits", -1.0, "the budget of logits in float64 has numbers"),
    ],
)
def test_a_reference_that_would_pass_everything_or_nothing_is_refused(name, value, said, reference, tmp_path):
    broken = damaged(reference, tmp_path / "broken.safetensors", name, value)
    with pytest.raises(InputError, match=said):
        wrong(broken, tensors_in(reference))


def test_a_reference_that_is_not_there_is_told_so(tmp_path, capsys):
    path = tmp_path / "nothere"
    assert run("diff", path, path) == 2
    one_line(capsys, f"there is no file {path}; write a trace by numpygpt trace --out {path}")


def test_a_reference_whose_data_have_changed_is_refused_and_one_without_a_digest_is_read(reference, tmp_path, capsys):
    ours = saved(tmp_path / "ours.safetensors", tensors_in(reference))
    broken = damaged(reference, tmp_path / "broken.safetensors", "logits", 7.0).path
    assert run("diff", broken, ours) == 2
    error = capsys.readouterr().err
    assert f"the trace {broken} is damaged: SHA-256 of its data is " in error
    assert error.count("\n") == 1
    with safe_open(reference.path, framework="numpy") as file:
        metadata = {key: text for key, text in file.metadata().items() if key != "sha256"}
    old = saved(tmp_path / "old.safetensors", load_file(reference.path), metadata)
    assert run("diff", old, ours) == 0


def test_missing_and_misshapen_tensors_are_named(reference):
    tensors = tensors_in(reference)
    del tensors["trf_blocks.0.norm2"]
    tensors["final_norm"] = tensors["final_norm"][:, :-1]
    tensors["logits"] = tensors["logits"].astype(np.int64)
    found = diff(reference, candidate(tensors, reference))
    assert [(f.name, f.verdict, f.comparison.fault) for f in found.wrong] == [
        ("trf_blocks.0.norm2", MISSING, "missing"),
        ("final_norm", WRONG, "shape (2, 5, 12), expected (2, 6, 12)"),
        ("logits", WRONG, "int64, expected float64"),
    ]


def test_what_is_given_need_not_be_there_and_a_partial_candidate_needs_nothing(reference):
    computed = {name: array for name, array in tensors_in(reference).items() if not is_given(name)}
    assert wrong(reference, computed) == []
    only = {name: computed[name] for name in ("logits", "loss")}
    found = diff(reference, candidate(only, reference)._replace(partial=True))
    assert found.first is None
    assert len(found.findings) == 2
    assert "tok_emb" in found.left_out


def test_a_loss_of_one_element_is_a_scalar(reference):
    tensors = tensors_in(reference)
    assert wrong(reference, tensors | {"loss": tensors["loss"].reshape(1)}) == []


def test_what_follows_from_a_wrong_tensor_is_downstream(reference):
    found = diff(reference, candidate(tensors_of(CONFIG, SETTINGS, (BUGS["erf_gelu"],)), reference))
    own = [finding.name for finding in found.wrong if finding.verdict == WRONG]
    assert own == [
        "trf_blocks.0.ff.layers.1",
        "trf_blocks.1.ff.layers.1",
        "d_trf_blocks.1.ff.layers.0",
        "d_trf_blocks.0.ff.layers.0",
    ]
    downstream = {finding.name for finding in found.wrong if finding.verdict == DOWNSTREAM}
    assert downstream > {"trf_blocks.0.ff.layers.2", "loss", "d_tok_emb.weight", "step2.tok_emb.weight"}
    assert "generated.logits" in downstream


def test_another_token_passes_only_where_two_logits_are_as_close_as_rounding(reference):
    tensors = tensors_in(reference)
    logits, tokens = tensors["generated.logits"].copy(), tensors["generated.tokens"].copy()
    second = int(np.argsort(logits[1])[-2])
    assert second != tokens[1]
    tokens[1] = second
    logits[2:] = 7.0  # of another text
    other = tensors | {"generated.tokens": tokens, "generated.logits": logits}
    assert [name for name, _ in wrong(reference, other)] == ["generated.tokens"]
    gap = logits[1].max() - logits[1, second]
    near = candidate(other, reference)
    rows = reference.budget("float64", "generated.logits").rows

    class AsClose:
        """The reference with room for this gap."""

        def __getattr__(self, name):
            return getattr(reference, name)

        def budget(self, format_, name):
            room = reference.budget(format_, name)
            return Norms(gap, np.full_like(rows, gap)) if name == "generated.logits" else room

    assert diff(AsClose(), near).first is None


# Names


def of_dialect(reference, table):
    """The tensors of the reference under the names of another model's modules."""
    config = reference.header.config
    tensors = tensors_in(reference)
    theirs = {}
    for prefix in ("", "d_"):
        weights = {name: tensors[f"{prefix}{name}"] for name in tensors if is_parameter(name)}
        named = table.to_theirs(config, weights)
        theirs |= {f"{name}.grad" if prefix else name: array for name, array in named.items()}
        for general, ours in ACTIVATIONS.items():
            for i in range(config.n_layers):
                parts = [tensors[f"{prefix}{name.replace('{i}', str(i))}"] for name in ours]
                module = f"{prefix}transformer.{general.replace('{i}', str(i))}"
                theirs[module] = parts[0] if len(parts) == 1 else np.concatenate([merged(part) for part in parts], -1)
    theirs["transformer.wpe"] = theirs["transformer.wpe"][np.newaxis]
    return theirs


def merged(heads):
    return heads.swapaxes(1, 2).reshape(len(heads), heads.shape[2], -1)


@pytest.mark.parametrize("table", [hugging_face.TABLE, nanogpt.TABLE], ids=["hugging_face", "nanogpt"])
def test_names_of_other_models_are_understood(table, reference_gpt2, tmp_path):
    theirs = of_dialect(reference_gpt2, table)
    path = saved(tmp_path / "theirs.safetensors", theirs)
    found = open_candidate(path, reference_gpt2, partial=True)
    assert found.unknown in ([], ["lm_head.weight", "lm_head.weight.grad"])
    assert not found.proposed
    assert {"d_trf_blocks.1.att.W_key.bias", "trf_blocks.0.att.values", "d_pos_emb"} <= set(found.tensors)
    assert diff(reference_gpt2, found).first is None
    theirs["transformer.h.1.attn.c_attn"] = theirs["transformer.h.1.attn.c_attn"][..., ::-1]
    found = open_candidate(saved(path, theirs), reference_gpt2, partial=True)
    assert diff(reference_gpt2, found).first.name == "trf_blocks.1.att.queries"


def test_a_map_and_the_content_name_the_rest(reference, tmp_path, capsys):
    tensors = tensors_in(reference)
    theirs = {f"T{number}": array for number, array in enumerate(tensors.values()) if array.dtype == np.float64}
    ours = [name for name, array in tensors.items() if array.dtype == np.float64]
    names = dict(zip(theirs, ours, strict=True))
    path, table = saved(tmp_path / "theirs.safetensors", theirs), tmp_path / "names.json"
    table.write_text(json.dumps(names), encoding="utf-8")
    assert run("diff", reference.path, path, "--names", table, "--partial") == 0
    assert "all" in capsys.readouterr().out
    few = {"a": tensors["trf_blocks.0.norm1"] * (1 + 1e-3), "b": tensors["logits"]}
    assert run("diff", reference.path, saved(path, few), "--partial", "--no-diagnosis") == 1
    printed = capsys.readouterr().out
    assert "a is taken for trf_blocks.0.norm1 by its content, from which it differs by 1.0e-03" in printed
    assert "first divergence: trf_blocks.0.norm1" in printed


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"nothing": "logits"}, "names 'nothing', which is not in"),
        ({"logits": "lodgings"}, "the name 'lodgings', which is not in the trace"),
        ({"logits": "loss", "loss": "loss"}, "gives one name to several tensors"),
        ([], "holds a list"),
    ],
    ids=str,
)
def test_a_map_that_does_not_fit_is_refused(names, said, reference, tmp_path, capsys):
    table = tmp_path / "names.json"
    table.write_text(json.dumps(names), encoding="utf-8")
    assert run("diff", reference.path, reference.path, "--names", table) == 2
    one_line(capsys, said)


def test_tensors_that_the_trace_does_not_have_are_told(reference, tmp_path, capsys):
    path = saved(tmp_path / "more.safetensors", tensors_in(reference) | {"extra": np.full(7, 3.0)})
    assert run("diff", reference.path, path) == 0
    assert "not matched with any tensor of the trace: extra" in capsys.readouterr().out


def test_what_is_missing_is_told_with_the_option_for_it_and_mixed_dtypes_with_theirs(reference, tmp_path, capsys):
    few = {name: reference.read(name) for name in ("tok_emb", "loss", "logits", "step1.tok_emb.weight")}
    path = saved(tmp_path / "few.safetensors", few)
    assert run("diff", reference.path, path, "--no-diagnosis") == 1
    printed = capsys.readouterr().out
    assert "missing: pos_emb, drop_emb, " in printed
    assert "say --partial if the candidate need not have every tensor" in printed
    assert "mixed dtypes" not in printed
    saved(path, few | {"tok_emb": few["tok_emb"].astype(np.float16)})
    assert run("diff", reference.path, path, "--partial") == 0
    assert "warning: mixed dtypes, for it also has float64: the shortest" in capsys.readouterr().out
    saved(path, few | {name: few[name].astype(np.float16) for name in ("tok_emb", "logits")})
    assert run("diff", reference.path, path, "--partial") == 0
    assert "mixed dtypes" not in capsys.readouterr().out


def computed_with_a_wrong_score(reference):
    tensors = {name: array for name, array in tensors_in(reference).items() if not is_given(name)}
    return tensors | {"trf_blocks.1.att.attn_scores": tensors["trf_blocks.1.att.attn_scores"] * 3}


def test_a_wrong_tensor_is_found_by_how_the_names_of_others_differ(reference, tmp_path, capsys):
    theirs = {
        f"my/{name.replace('trf_blocks.', 'L').replace('.att.', '.A_')}": array
        for name, array in computed_with_a_wrong_score(reference).items()
    }
    path = saved(tmp_path / "theirs.safetensors", theirs)
    assert run("diff", reference.path, path, "--no-diagnosis") == 1
    printed = capsys.readouterr().out
    assert "taken by their names, which differ from ours as those do: " in printed
    assert "first divergence: trf_blocks.1.att.attn_scores, " in printed
    assert ", 0 of them downstream or missing" in printed
    assert "not matched" not in printed
    assert printed.count("\n") < 15


def test_what_may_be_a_tensor_that_is_not_matched_is_told(reference, tmp_path, capsys):
    """Names of numbers alone teach nothing."""
    tensors = computed_with_a_wrong_score(reference)
    place = list(tensors).index("trf_blocks.1.att.attn_scores")
    names = np.random.default_rng(0).permutation(len(tensors))
    theirs = {f"T{number:03}": array for number, array in zip(names, tensors.values(), strict=True)}
    assert run("diff", reference.path, saved(tmp_path / "theirs.safetensors", theirs)) == 1
    printed = capsys.readouterr().out
    assert "first divergence: trf_blocks.1.att.attn_scores, not matched; " in printed
    assert f"it is not matched; `T{names[place]:03}` may be it, of the same shape: map it by --names; " in printed


def test_a_state_of_llm_c_is_compared(reference_gpt2, tmp_path, capsys):
    path = tmp_path / "state.bin"
    tensors = tensors_in(reference_gpt2)
    llm_c.write_state(path, GPT2, tensors)
    assert run("diff", reference_gpt2.path, path) == 0
    assert "is judged as float32" in capsys.readouterr().out
    tensors["d_trf_blocks.1.norm2.scale"] = 2 * tensors["d_trf_blocks.1.norm2.scale"]  # llm.c#428
    llm_c.write_state(path, GPT2, tensors)
    assert run("diff", reference_gpt2.path, path, "--no-diagnosis") == 1
    assert "first divergence: d_trf_blocks.1.norm2.scale" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-4])
    assert run("diff", reference_gpt2.path, path) == 2
    one_line(capsys, "truncated")


# Formats


@pytest.mark.parametrize(("dtype", "format_"), [(np.float32, "float32"), (np.float16, "float16")])
def test_the_shortest_dtype_says_the_format(dtype, format_, reference, tmp_path, capsys):
    short = {
        name: array.astype(dtype) if array.dtype.kind == "f" and not is_state(name) else array
        for name, array in tensors_of(CONFIG, SETTINGS, (), format_).items()
    }
    path = saved(tmp_path / "short.safetensors", short)
    assert run("diff", reference.path, path) == 0
    assert f"is judged as {format_}" in capsys.readouterr().out
    assert run("diff", reference.path, path, "--dtype", "float64", "--no-diagnosis") == 1
    assert run("diff", reference.path, path, "--dtype", "bfloat16") == 0


# Files that are none


def one_line(capsys, said):
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


def future(path, tmp_path):
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() | {"version": "9"}
    return saved(tmp_path / "future.safetensors", load_file(path), metadata)


@pytest.mark.parametrize("which", [0, 1])
def test_damaged_truncated_and_future_files_are_refused(which, reference, tmp_path, capsys):
    contents = reference.path.read_bytes()
    bad = tmp_path / "bad.safetensors"

    def refused(path, said):
        paths = [reference.path, reference.path]
        paths[which] = path
        assert run("diff", *paths) == 2
        one_line(capsys, said)

    for cut in (0, 5, 500, len(contents) // 2, len(contents) - 1):
        bad.write_bytes(contents[:cut])
        refused(bad, "damaged")
    bad.write_bytes(b"\xff" * 8 + contents[8:])
    refused(bad, "damaged")
    bad.write_bytes(contents[:8] + contents[8:].replace(b'"dtype"', b'"dtyqe"', 1))
    refused(bad, "damaged")
    refused(future(reference.path, tmp_path), "its version is '9'; expected '1'")
    refused(tmp_path / "nothing", "nothing")
    refused(tmp_path, str(tmp_path))


@pytest.mark.parametrize("which", [0, 1])
def test_a_header_that_has_a_name_twice_is_refused(which, reference, tmp_path, capsys):
    contents = reference.path.read_bytes()
    length = int.from_bytes(contents[:8], "little")
    header = contents[8 : 8 + length].rstrip()
    begin, end = json.loads(header)["loss"]["data_offsets"]
    again = b', "loss": {"dtype": "F64", "shape": [], "data_offsets": [%d, %d]}}' % (begin - 8, end - 8)
    header = header[:-1] + again
    header += b" " * (-len(header) % 8)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(len(header).to_bytes(8, "little") + header + contents[8 + length :])
    paths = [reference.path, reference.path]
    paths[which] = bad
    assert run("diff", *paths) == 2
    one_line(capsys, "damaged")


def test_a_file_without_any_tensor_of_the_trace_is_refused(reference, tmp_path, capsys):
    path = saved(tmp_path / "other.safetensors", {"x": np.full(3, 7.0)})
    assert run("diff", reference.path, path) == 2
    one_line(capsys, "has none of the tensors of the trace; it has x")


def test_a_file_of_weights_is_no_reference(reference, tmp_path, capsys):
    path = saved(tmp_path / "weights.safetensors", {"tok_emb.weight": np.zeros((3, 3))})
    assert run("diff", path, reference.path) == 2
    one_line(capsys, "its format is None; expected 'numpygpt.trace'")


@pytest.mark.parametrize(
    ("used", "allowed", "said"),
    [
        (1.04, 1.0, "1.04 times its budget"),
        (1.0004, 1.0, "1.00 times its budget"),
        (23.4, 1.0, "23 times its budget"),
        (3.2e306, 1e-300, "more than 1e+16 times its budget"),
        (np.inf, 0.0, "differs where it must be equal"),
    ],
)
def test_how_far_off_a_tensor_is_is_told_in_words(used, allowed, said):
    assert Finding(Comparison("logits", "", 1.0, 1.0, allowed, used), None, WRONG).off == said


# The command and its page


def test_the_command_says_where_it_first_diverges_and_writes_a_page(reference, tmp_path, capsys):
    path = saved(tmp_path / "bug.safetensors", tensors_of(CONFIG, SETTINGS, (BUGS["erf_gelu"],)))
    html = tmp_path / "page.html"
    assert run("diff", reference.path, path, "--html", html) == 1
    printed = capsys.readouterr().out
    assert "first divergence: trf_blocks.0.ff.layers.1" in printed
    line = next(line for line in printed.splitlines() if "erf_gelu" in line)
    assert line.startswith("your `trf_blocks.0.ff.layers.1` is what it would be if the erf form stands in ")
    assert re.search(r"\((exactly|relative difference \d\.\de-\d\d); cause: erf_gelu", line)
    page = Page(html.read_text(encoding="utf-8"))
    assert not page.addresses
    assert "script" not in page.tags
    first = [cell for cell in page.cells if "first" in cell["class"]]
    assert [cell["title"].partition(":")[0] for cell in first] == ["trf_blocks.0.ff.layers.1"]
    assert "wrong" in first[0]["class"]
    assert {cell["title"].partition(":")[0] for cell in page.cells} == {
        name for name in reference.order if not is_given(name) or name in load_file(path)
    }
    text = html.read_text(encoding="utf-8")
    assert line in unescape(text)
    assert text.count('<rect class="candidate"') == text.count('<rect class="reference"') > 1
    assert "The two differ most at (" in text


def test_a_page_that_cannot_be_written_is_refused_first(reference, tmp_path, capsys):
    assert run("diff", reference.path, reference.path, "--html", tmp_path / "no" / "page.html") == 2
    one_line(capsys, "there is no folder")


# Large traces


def test_the_memory_of_a_comparison_does_not_grow_with_the_tensors(tmp_path):
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((8192, 1024), np.float32)
    files = [
        TensorFile(saved(tmp_path / f"{name}.safetensors", {"x": array}))
        for name, array in (("ours", expected * np.float32(1 + 1e-6)), ("expected", expected))
    ]
    tracemalloc.start()
    found = all_measured({"x": (StoredTensor(files[0], "x"), StoredTensor(files[1], "x"))})["x"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < expected.nbytes / 2
    whole = measured(expected * np.float32(1 + 1e-6), expected)
    assert found.size == whole.size
    assert found.error.tensor == whole.error.tensor
    assert np.array_equal(found.error.rows, whole.error.rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_equal_infinities_differ_by_nothing_and_others_by_everything(dtype):
    scores = np.array([[1, -np.inf, -np.inf], [2, 3, -np.inf]], dtype)
    found = measured(scores + dtype(0.5), scores)
    assert np.array_equal(found.error.rows, np.sqrt([0.25, 0.5]))
    assert measured(-scores, scores) is None
    assert measured(np.where(np.isinf(scores), dtype(-1e9), scores), scores) is None


def test_a_file_that_becomes_shorter_while_it_is_compared_is_refused(reference, tmp_path, capsys, monkeypatch):
    path = saved(tmp_path / "ours.safetensors", tensors_in(reference))
    monkeypatch.setattr(command, "open_candidate", lambda *of, **options: cut(path, open_candidate(*of, **options)))
    assert run("diff", reference.path, path) == 2
    one_line(capsys, "the file has become shorter")


def cut(path, opened):
    """The candidate that was opened, whose file has lost its second half since."""
    os.truncate(path, path.stat().st_size // 2)
    return opened


#: Compares a file with itself, and prints the most memory that the process has had. Unlike getrusage, Linux's VmHWM
#: does not count what the parent had when the process began.
MEMORY_OF_DIFF = """
import sys
from pathlib import Path
from numpygpt.commands.main import main
assert main(["diff", sys.argv[1], sys.argv[1]]) == 0
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
@pytest.mark.long_form
def test_two_traces_of_a_124m_step_take_less_than_two_gigabytes(tmp_path):
    config = GPTConfig(50257, 1024, 768, 12, 12, 0.0, True, tie_weights=True)
    trace = record(config, Settings(tokens=16, batch_size=1, steps=1, dtype="float32", new_tokens=0))
    path = tmp_path / "large.safetensors"
    budgets = {
        format_: {
            name: Norms(np.inf, np.full(max(1, array[..., 0].size if array.ndim else 1), np.inf))
            for name, array in trace.tensors.items()
            if not is_given(name)
        }
        for format_ in ("float64", "float32", "tf32", "bfloat16", "float16")
    }
    write_trace(path, trace, "none", budgets)
    del trace, budgets
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_DIFF, path], capture_output=True, text=True, check=True, timeout=600
    )
    assert int(done.stdout.split()[-1]) < 2 * 2**20, "in KiB"
