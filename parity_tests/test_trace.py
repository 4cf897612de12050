"""A trace has every tensor of a few steps, as PyTorch computes them, and others can read its file.

The checks of annotations are off, because the tests take whole steps many times.
"""

import hashlib
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from numpygpt.checks.budgets import FORMATS, budgets_of, by_numpy
from numpygpt.checks.compare import compare
from numpygpt.checks.formulas import BACKWARD, BLOCK, FORWARD, OF_PARAMETERS, formula
from numpygpt.checks.standard import STANDARD
from numpygpt.checks.trace import Settings, checked, given, is_given, masks_of, record, shortened
from numpygpt.checks.trace_file import BUDGET, TraceFile, has_budget, write_trace
from numpygpt.commands import trace as command
from numpygpt.commands.trace import DEFAULT_CONFIG, DEFAULT_SETTINGS
from numpygpt.formats import llm_c
from numpygpt.model.gpt import GPTModel
from parity_tests.command import run
from parity_tests.properties import CONFIG, TIED
from parity_tests.tolerances import FLOAT64_NORMWISE
from torchgpt.bridge import dropout_masks, to_torch

DOCS = Path(__file__).parent.parent / "docs"
SETTINGS = Settings(tokens=6)


pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")


@cache
def trace_of(config=CONFIG, dtype="float64"):
    return record(config, SETTINGS._replace(dtype=dtype))


@cache
def budgets(config=CONFIG, by="numpy", dtype="float64"):
    return budgets_of(trace_of(config, dtype), by)


@pytest.fixture
def path(tmp_path):
    """A file with the trace of CONFIG."""
    path = tmp_path / "reference.safetensors"
    write_trace(path, trace_of(), *budgets())
    return path


def judged(trace, ours, format_, found):
    names = [name for name in trace.tensors if has_budget(name)]
    return [
        comparison
        for comparison in compare(
            {name: ours[name] for name in names},
            {name: trace.tensors[name] for name in names},
            found[format_],
            dtype=ours[names[0]].dtype,
        )
        if not comparison.passed
    ]


# What is in a trace


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_optimizer_steps_are_those_of_pytorch(config):
    trace = trace_of(config)
    model = to_torch(GPTModel.from_state_dict(config, {n: trace.tensors[n] for n in parameters(trace)}), copy=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS.lr, weight_decay=SETTINGS.weight_decay)
    inputs, targets = (torch.from_numpy(trace.tensors[name]) for name in ("inputs", "targets"))
    for step in (1, 2):
        optimizer.zero_grad()
        with dropout_masks(model, masks_of(config, trace.tensors)):
            loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        before = "" if step == 1 else f"step{step}."
        close(trace.tensors[f"{before}loss"], loss)
        for name, parameter in model.named_parameters():
            if not name.endswith("W_key.bias"):  # its gradient is zero except for rounding
                close(trace.tensors[f"{before}d_{name}"], parameter.grad)
        optimizer.step()
        for name, parameter in model.named_parameters():
            if not name.endswith("W_key.bias"):
                close(trace.tensors[f"step{step}.{name}"], parameter)
                for moments in ("exp_avg", "exp_avg_sq"):
                    close(trace.tensors[f"step{step}.{moments}.{name}"], optimizer.state[parameter][moments])


def parameters(trace):
    return [name for name in trace.tensors if is_given(name) and trace.tensors[name].dtype == np.float64]


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.linalg.norm(ours - theirs) <= FLOAT64_NORMWISE * np.linalg.norm(theirs)


def test_generated_tokens_are_the_likeliest_without_dropout():
    trace = trace_of()
    model = GPTModel.from_state_dict(CONFIG, {name: trace.tensors[name] for name in parameters(trace)})
    text = list(trace.tensors["generated.prompt"])
    for logits, token in zip(trace.tensors["generated.logits"], trace.tensors["generated.tokens"], strict=True):
        expected = model(np.array([text]))[0, -1]
        assert np.linalg.norm(logits - expected) <= FLOAT64_NORMWISE * np.linalg.norm(expected)
        assert token == expected.argmax()
        text.append(token)


def test_every_activation_has_a_gradient_and_a_line_that_says_how_it_is_computed():
    names = list(trace_of().tensors)
    activations = names[names.index("tok_emb") : names.index("loss")]
    assert all(f"d_{name}" in names for name in activations)
    for general in (*FORWARD, *BACKWARD):
        assert any(BLOCK.sub("{i}", name) == general for name in names), general
    assert all(formula(name) for name in names)


def test_targets_are_the_inputs_one_place_later_and_some_ids_occur_twice():
    inputs, targets = trace_of().tensors["inputs"], trace_of().tensors["targets"]
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    assert len(np.unique(inputs)) < inputs.size


def test_weights_are_exact_in_every_format():
    for name in parameters(trace_of()):
        array = trace_of().tensors[name]
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert np.array_equal(torch.from_numpy(array).to(dtype).double().numpy(), array), (name, dtype)
        assert len(np.unique(array)) > 1, "a norm of ones would hide that it is missing"


def test_a_weight_is_changed_by_as_little_as_its_format_asks():
    values = np.array([1.0, 1 / 3, -1 / 3, 2.0**-24, 0.0, 100.0])
    assert np.array_equal(shortened(values)[[0, 3, 4, 5]], values[[0, 3, 4, 5]])
    assert shortened(values)[1] == 171 / 512 == -shortened(values)[2]


def test_another_seed_gives_another_trace_and_the_same_seed_the_same():
    again, other = given(CONFIG, SETTINGS), given(CONFIG, SETTINGS._replace(seed=1))
    assert all(np.array_equal(array, trace_of().tensors[name]) for name, array in again.items())
    assert not np.array_equal(other["tok_emb.weight"], again["tok_emb.weight"])


# The budgets


@pytest.mark.parametrize("by", ["numpy", "torch"])
def test_numpy_in_float32_is_within_the_budget_and_one_wrong_row_is_not(by):
    how, found = budgets(CONFIG, by)
    ours = dict(trace_of(CONFIG, "float32").tensors)
    assert how
    assert not judged(trace_of(), ours, "float32", found)
    wrong = ours["trf_blocks.1.norm2"].copy()
    wrong[1, 2] *= 1 + 1e-5
    assert [c.name for c in judged(trace_of(), ours | {"trf_blocks.1.norm2": wrong}, "float32", found)] == [
        "trf_blocks.1.norm2"
    ]


def test_a_trace_in_float32_allows_for_its_own_rounding_errors():
    _, found = by_numpy(trace_of(CONFIG, "float32"))
    assert not judged(trace_of(CONFIG, "float32"), trace_of().tensors, "float32", found)


def test_shorter_formats_have_larger_budgets():
    for by in ("numpy", "torch"):
        _, found = budgets(CONFIG, by)
        sizes = [found[format_]["logits"].tensor for format_ in ("float64", "float32", "float16", "bfloat16")]
        assert sizes == sorted(sizes)


def test_budgets_by_nobody_are_refused(tmp_path, capsys):
    assert run("trace", "--out", tmp_path / "a", "--budgets", "guess") == 2
    assert "expected one of: numpy, torch" in capsys.readouterr().err


# The file


def test_the_file_holds_the_trace(path):
    file = TraceFile(path)
    assert file.header.config == CONFIG
    assert file.header.settings == SETTINGS
    assert file.order == list(trace_of().tensors)
    for name, array in trace_of().tensors.items():
        assert np.array_equal(file.read(name), array)
        assert file.read(name).dtype == array.dtype
        assert file.header.computed[name] == formula(name)
    for format_ in FORMATS:
        allowed = file.budget(format_, "logits")
        assert allowed.tensor == budgets()[1][format_]["logits"].tensor
        assert np.array_equal(allowed.rows, budgets()[1][format_]["logits"].rows)


def test_the_page_of_the_format_has_every_line_of_the_file():
    page = (DOCS / "trace-format.md").read_text(encoding="utf-8")
    for general, line in (*FORWARD.items(), *BACKWARD.items(), *OF_PARAMETERS.items()):
        assert f"| `{general}` |" in page
        assert f"| {line} |" in page, line


@pytest.mark.parametrize(
    ("compiler", "source", "options"),
    [
        ("cc", "trace_reader.c", ["-std=c99", "-Wall", "-Wextra", "-Werror"]),
        ("rustc", "trace_reader.rs", ["--edition", "2021"]),
    ],
)
def test_a_reader_without_libraries_reads_the_file(compiler, source, options, path, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} on this machine")
    reader = tmp_path / "reader"
    subprocess.run([compiler, *options, "-o", reader, DOCS / source], check=True, timeout=120)
    done = subprocess.run([reader, path], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(trace_of().tensors)
    kinds = {"float64": "F64", "int64": "I64", "bool": "BOOL"}
    for line, (name, array) in zip(lines, trace_of().tensors.items(), strict=True):
        head, _, total = line.rpartition(" ")
        assert head == f"{name} {kinds[array.dtype.name]} {list(array.shape)}"
        masked = name.endswith(".attn_scores") and not name.startswith("d_")
        expected = array.sum()
        assert float(total) == expected or (not masked and abs(float(total) - expected) <= rounding(array))
    for damaged, cut in ((path.read_bytes()[:5], "truncated"), (path.read_bytes()[:-9], "truncated")):
        path.write_bytes(damaged)
        done = subprocess.run([reader, path], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert cut in done.stderr


def rounding(array):
    """What the order of the terms may change in a sum."""
    return array.size * np.finfo(np.float64).eps * np.abs(array).sum()


def test_the_reader_in_c_is_short():
    assert len((DOCS / "trace_reader.c").read_text(encoding="utf-8").splitlines()) < 150


# Files that are none


def changed_metadata(path, **changes):
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() | changes
    save_file(load_file(path), path, {name: text for name, text in metadata.items() if text is not None})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "2"}, "its version is '2'; expected '1': read it by a newer numpygpt"),
        ({"version": "old"}, "its version is 'old'; expected '1': write it anew"),
        ({"format": "other"}, "its format is 'other'"),
        ({"format": None}, "its format is None"),
        ({"config": "{"}, "its header is no JSON"),
        ({"config": "[]"}, "expected a GPTConfig"),
        ({"settings": "[]"}, "its settings are a list"),
        ({"settings": "{}"}, "seed is missing"),
        ({"order": None}, "order is missing"),
        ({"order": "tok_emb"}, "its header names 1 tensors in order"),
        ({"order": "loss\nloss", "computed": "a\nb"}, "its order names 'loss' more than once"),
        ({"computed": ""}, "says of 1 how they are computed"),
    ],
    ids=str,
)
def test_a_header_that_says_something_else_is_refused(path, changes, said):
    changed_metadata(path, **changes)
    refused(path, said)


def test_the_digest_is_that_of_the_bytes_after_the_header(path):
    contents = path.read_bytes()
    data = contents[8 + int.from_bytes(contents[:8], "little") :]
    assert TraceFile(path).header.digest == hashlib.sha256(data).hexdigest()


def refused(path, said):
    with pytest.raises(ValueError, match="trace") as raised:
        TraceFile(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [0, 7, 1000, -1])
def test_a_truncated_file_is_refused(path, size):
    path.write_bytes(path.read_bytes()[:size])
    refused(path, "truncated, damaged")


@pytest.mark.parametrize("name", ["logits", f"{BUDGET}bfloat16.logits", "tok_emb.weight"])
def test_a_file_without_one_of_its_tensors_is_refused(path, name):
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata)
    refused(path, name.removeprefix(f"{BUDGET}bfloat16."))


# The command


def test_the_command_writes_a_trace(tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    sizes = ["--emb-dim", 8, "--n-heads", 2, "--n-layers", 1, "--vocab-size", 7]
    assert run("trace", "--out", path, *sizes, "--steps", 1, "--dtype", "float32", "--budgets", "numpy") == 0
    file = TraceFile(path)
    assert file.header.config.emb_dim == 8
    assert file.read("logits").dtype == np.float32
    assert "step1.loss" not in file.order
    assert "step1.tok_emb.weight" in file.order
    assert f"wrote {path}: {len(file.order)} tensors in float32" in capsys.readouterr().out


def test_no_two_sizes_of_the_default_trace_are_equal():
    sizes = {name: getattr(DEFAULT_CONFIG, name) for name in ("vocab_size", "context_length", "emb_dim", "head_dim")}
    sizes |= {"heads": DEFAULT_CONFIG.n_heads, "layers": DEFAULT_CONFIG.n_layers, "hidden": 4 * DEFAULT_CONFIG.emb_dim}
    sizes |= {name: getattr(DEFAULT_SETTINGS, name) for name in ("batch_size", "tokens", "steps", "new_tokens")}
    assert len(set(sizes.values())) == len(sizes), sizes
    assert DEFAULT_SETTINGS.tokens < DEFAULT_CONFIG.context_length, "else no row of the positions is without a gradient"


def test_the_command_takes_the_default_sizes_and_the_numbers_of_adamw(tmp_path):
    path = tmp_path / "a.safetensors"
    numbers = {"lr": 0.5, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.0}
    options = [word for name, number in numbers.items() for word in (f"--{name.replace('_', '-')}", number)]
    assert run("trace", "--out", path, "--budgets", "numpy", *options) == 0
    header = TraceFile(path).header
    assert (header.config, header.settings) == (DEFAULT_CONFIG, DEFAULT_SETTINGS._replace(**numbers))


def test_a_large_model_has_budgets_by_numpy_unless_torch_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "MOST_FOR_TORCH", 0)
    sizes = ["--emb-dim", 8, "--n-heads", 2, "--n-layers", 1, "--vocab-size", 7, "--steps", 1]
    assert run("trace", "--out", tmp_path / "a", *sizes) == 0
    assert "NumPy's own float32 run" in capsys.readouterr().out
    assert run("trace", "--out", tmp_path / "a", *sizes, "--budgets", "torch") == 0
    assert "NumPy's own float32 run" not in capsys.readouterr().out


def test_the_standard_traces_are_written_by_one_command(tmp_path, monkeypatch):
    for name in list(STANDARD)[2:]:  # two are enough to see
        monkeypatch.delitem(STANDARD, name)
    assert run("trace", "--standard", tmp_path / "traces", "--budgets", "numpy") == 0
    written = {path.name.partition(".")[0]: TraceFile(path) for path in (tmp_path / "traces").iterdir()}
    assert {name: (file.header.config, file.header.settings) for name, file in written.items()} == STANDARD


@pytest.mark.parametrize("name", STANDARD)
def test_each_standard_trace_can_be_made_and_differs_from_the_others(name):
    checked(*STANDARD[name])
    assert [other for other, made in STANDARD.items() if made == STANDARD[name]] == [name]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tokens", 99], "at most context_length 11"),
        (["--steps", 0], "steps is 0"),
        (["--lr", "nan"], "--lr is nan; expected 0 or more"),
        (["--beta2", 1], "--beta2 is 1; expected 0 or more, and less than 1"),
        (["--new-tokens", 99], "new_tokens is 99"),
        (["--seed", -1], "--seed is -1"),
        (["--format", "llm.c"], "llm.c cannot compute this model, which has tie_weights False, not True"),
        (["--n-heads", 5], "not divisible"),
    ],
    ids=str,
)
def test_bad_input_of_the_command_is_one_line(options, said, tmp_path, capsys):
    assert run("trace", "--out", tmp_path / "a", *options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# llm.c


def test_llm_c_gets_its_state_and_its_model(tmp_path):
    path = tmp_path / "state.bin"
    sizes = ["--emb-dim", 8, "--n-heads", 2, "--vocab-size", 7, "--context-length", 5, "--batch-size", 2]
    assert run("trace", "--out", path, "--format", "llm.c", "--tie-weights", *sizes) == 0
    state, model = path.read_bytes(), (tmp_path / "state.model.bin").read_bytes()
    header = np.frombuffer(state, "<i4", 256)
    assert header[:4].tolist() == [20240327, 2, 2, 5]
    assert not header[4:].any()
    assert np.frombuffer(model, "<i4", 9).tolist() == [20240326, 3, 5, 7, 2, 2, 8, 128, 0]
    # as test_gpt2.c reads it
    logits = np.frombuffer(state, "<f4", 2 * 5 * 7, offset=4 * (256 + 2 * 10))
    L, D, V = 2, 8, 128
    shapes = [(V, D), (5, D), (L, D), (L, D), (L, 3 * D, D), (L, 3 * D), (L, D, D), (L, D)]
    shapes += [(L, D), (L, D), (L, 4 * D, D), (L, 4 * D), (L, D, 4 * D), (L, D), (D,), (D,)]
    gradients = np.frombuffer(state, "<f4", offset=4 * (256 + 20 + 70 + 1))
    parts = np.split(gradients, np.cumsum([np.prod(shape) for shape in shapes])[:-1])
    config = llm_config()
    ours = record(config, Settings(tokens=5, steps=1, new_tokens=0)).tensors
    assert np.array_equal(logits, ours["logits"].astype("<f4").reshape(-1))
    wte, qkvw, lnfb = parts[0].reshape(V, D), parts[4].reshape(L, 3, D, D), parts[15]
    assert np.array_equal(wte[:7], ours["d_tok_emb.weight"].astype("<f4"))
    assert not wte[7:].any()
    assert np.array_equal(qkvw[1, 2], ours["d_trf_blocks.1.att.W_value.weight"].astype("<f4"))
    assert np.array_equal(lnfb, ours["d_final_norm.shift"].astype("<f4"))
    read = llm_c.read_state(path, config)
    assert set(read) >= {"inputs", "targets", "logits", "loss", "d_trf_blocks.1.att.W_key.bias"}
    assert all(np.array_equal(array, ours[name].astype(array.dtype)) for name, array in read.items())


def llm_config():
    sizes = {"emb_dim": 8, "n_heads": 2, "vocab_size": 7, "context_length": 5, "tie_weights": True}
    return type(DEFAULT_CONFIG)(**{**DEFAULT_CONFIG.to_dict(), **sizes})


def test_a_state_of_llm_c_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "state.bin"
    trace = record(llm_config(), Settings(tokens=5, steps=1))
    llm_c.write_state(path, llm_config(), trace.tensors)
    whole = path.read_bytes()
    for contents, said in ((whole[:-4], "it is truncated"), (whole[:100], "begins with"), (b"", "begins with")):
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=said):
            llm_c.read_state(path, llm_config())


def test_the_settings_are_json(path):
    with safe_open(path, framework="numpy") as file:
        assert json.loads(file.metadata()["settings"]) == SETTINGS._asdict()
        assert json.loads(file.metadata()["config"])["emb_dim"] == CONFIG.emb_dim

