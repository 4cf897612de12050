"""scripts/gpu_parity.py on the CPU at a small size: every tensor is named, rounding passes, mistakes do not."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from numpygpt.model.config import GPTConfig
from parity_tests.command import files, python
from torchgpt.checks.rounding import FORMATS

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_parity.py"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(SCRIPT.parent))
    script = import_module(SCRIPT.stem)

CONFIG = GPTConfig(vocab_size=13, context_length=7, emb_dim=12, n_heads=3, n_layers=2, drop_rate=0.1, qkv_bias=True)
VARIANTS = [f"{name} {attention}" for name in ("float32", "bfloat16", "float16") for attention in ("math", "sdpa")]
NAMES = list(script.numpy_truth(CONFIG, 2, 7, 0).tensors)
INSIDE = [name for name in NAMES if name.endswith((".attn_scores", ".attn_weights", ".att.dropout"))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with CONFIG in a file, on a machine that seems to have no GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    return tmp_path


def run(*arguments):
    return script.main(["--config", "config.json", *map(str, arguments)])


def spoil(monkeypatch, change):
    """Change the tensors of PyTorch in bfloat16."""
    right = script.torch_tensors

    def torch_tensors(truth, variant, device):
        tensors = right(truth, variant, device)
        if variant.name == "bfloat16 math":
            change(tensors)
        return tensors

    monkeypatch.setattr(script, "torch_tensors", torch_tensors)


def test_every_tensor_has_a_line_with_a_cell_a_variant(folder, capsys):
    assert run("--json", "out.json", "--markdown", "out.md", "--seed", 5) == 0
    out = capsys.readouterr().out
    first, *lines = out.splitlines()
    assert first == "there is no GPU here: this is the CPU, which has no TF32"
    table, summary = lines[: lines.index("")], lines[lines.index("") + 1 : -2]
    assert table[0].split("  ")[0] == "tensor"
    assert [line.split()[0] for line in table[1:]] == NAMES
    for line in table[1:]:
        assert line.count(" u)") == (3 if line.split()[0] in INSIDE else 6)
    assert [line.split("  ")[0] for line in summary] == ["variant", *VARIANTS]
    assert lines[-2:] == ["wrote out.json", "wrote out.md"]
    report = json.loads((folder / "out.json").read_text())
    assert (report["config"], report["seed"], report["tokens"]) == (CONFIG.to_dict(), 5, 7)
    assert list(report["variants"]) == VARIANTS
    for variant, tensors in report["variants"].items():
        assert [name for name in NAMES if name not in tensors] == (INSIDE if variant.endswith("sdpa") else [])
        u = FORMATS[variant.split()[0]].roundoff
        for found in tensors.values():
            assert found["verdict"] == "within rounding"
            assert found["error"] <= found["budget"]
            assert found["in_roundoffs"] == found["error"] / u
    errors = [report["variants"][f"{name} math"]["logits"]["error"] for name in ("float32", "float16", "bfloat16")]
    assert errors == sorted(errors)
    markdown = [line.strip("| ").split(" | ") for line in (folder / "out.md").read_text().splitlines() if "|" in line]
    assert [cells[0] for cells in markdown] == ["variant", "---", *VARIANTS, "tensor", "---", *NAMES]
    assert len({len(cells) for cells in markdown[:8]}) == 1


def test_an_error_beyond_rounding_is_found(folder, capsys, monkeypatch):
    def change(tensors):
        tensors["trf_blocks.1.att.queries"] *= 1.2

    spoil(monkeypatch, change)
    assert run() == 1
    out = capsys.readouterr().out
    (wrong,) = [line for line in out.splitlines()[: len(NAMES) + 2] if "OVER BUDGET" in line]
    assert wrong.startswith("trf_blocks.1.att.queries ")
    assert f"{len(NAMES) - 1} of {len(NAMES)} " in out


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [("logits", np.nan, "NAN"), ("d_trf_blocks.0.norm1", np.inf, "INFINITE"), ("loss", None, "MISSING")],
)
def test_what_cannot_be_measured_is_wrong(folder, capsys, monkeypatch, name, value, shown):
    def change(tensors):
        if value is None:
            del tensors[name]
        else:
            tensors[name].flat[-1] = value

    spoil(monkeypatch, change)
    assert run("--json", "out.json") == 1
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines[: len(NAMES) + 2] if shown in line]
    assert line.split()[0] == name
    found = json.loads((folder / "out.json").read_text())["variants"]["bfloat16 math"][name]
    assert (found["error"], found["verdict"].upper()) == (None, shown)


NOT_IMPLEMENTED = RuntimeError("\"addmm\" not implemented for 'Half'")
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the documentation.")


def refuse(monkeypatch, formats, error):
    """PyTorch cannot compute in these formats."""
    right = script.torch_tensors

    def torch_tensors(truth, variant, device):
        if variant.format in formats:
            raise error
        return right(truth, variant, device)

    monkeypatch.setattr(script, "torch_tensors", torch_tensors)


@pytest.mark.parametrize("error", [NOT_IMPLEMENTED, OUT_OF_MEMORY], ids=["not implemented", "out of memory"])
def test_a_variant_that_the_device_does_not_compute_is_left_out(folder, capsys, monkeypatch, error):
    """The others are reported."""
    refuse(monkeypatch, ["bfloat16"], error)
    assert run("--json", "out.json", "--markdown", "out.md") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].count(" math") == 2
    reason = str(error).splitlines()[0]
    left_out = [line for line in lines if "left out" in line]
    assert [line.split("  ")[0] for line in left_out] == ["bfloat16 math", "bfloat16 sdpa"]
    assert all(line.endswith(f"  left out: {reason}") for line in left_out)
    report = json.loads((folder / "out.json").read_text())
    assert list(report["variants"]) == [name for name in VARIANTS if not name.startswith("bfloat16")]
    assert report["left_out"] == dict.fromkeys(["bfloat16 math", "bfloat16 sdpa"], reason)
    assert (folder / "out.md").read_text().count(f"| left out: {reason} |") == 2


def test_where_no_variant_can_be_computed_nothing_is_said_to_be_right(folder, capsys, monkeypatch):
    refuse(monkeypatch, FORMATS, OUT_OF_MEMORY)
    assert run("--json", "out.json") == 2
    error = "gpu_parity: error: no variant could be computed here: CUDA out of memory. Tried to allocate 2 GiB.\n"
    assert capsys.readouterr().err == error
    assert not (folder / "out.json").exists()


def test_another_error_is_not_hidden(folder, monkeypatch):
    refuse(monkeypatch, ["bfloat16"], RuntimeError("sizes do not match"))
    with pytest.raises(RuntimeError, match="sizes do not match"):
        run()


def test_without_pytorch_the_install_line_is_given():
    done = python("-c", f"import runpy, sys; sys.modules['torch'] = None; runpy.run_path({str(SCRIPT)!r})")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "gpu_parity: error: torchgpt needs PyTorch, which is not installed: pip install 'numpygpt[torch]'\n"
    )


def test_every_format_holds_the_weights_exactly():
    truth = script.numpy_truth(CONFIG, 2, 7, 0)
    for array in truth.model.named_parameters().values():
        tensor = torch.from_numpy(array)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert torch.equal(tensor.to(dtype).double(), tensor)


def test_tf32_is_float32_with_other_products():
    assert [script.Variant(name, "math").dtype for name in FORMATS] == [
        torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.float16
    ]  # fmt: skip


@pytest.mark.parametrize("before", ["highest", "high"])
def test_the_precision_of_products_is_restored(before):
    own = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(before)
        with script.precision_of_products("high"):
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--json", "nowhere/a.json"), "cannot write nowhere/a.json: there is no folder nowhere"),
        (("--markdown", "."), "it is a folder; name a file in it"),
        (("--probes", 0), "--probes is 0; expected at least 1"),
        (("--tokens", 8), "a step on 2 x 8 tokens; expected at least 1 x 1, and at most context_length 7 tokens"),
        (("--n-heads", 5), "emb_dim 12 is not divisible by n_heads 5"),
    ],
)
def test_bad_input_gets_one_line_before_the_computation(folder, capsys, monkeypatch, options, message):
    monkeypatch.setattr(script, "numpy_truth", None)  # cannot be called
    before = files(folder)
    assert run(*options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("gpu_parity: error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert files(folder) == before
