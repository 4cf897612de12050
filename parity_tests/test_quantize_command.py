"""Models with packed matrices on the disk: written, read by the commands, tuned, refused; and the schemes compared."""

import json
import math
import re

import numpy as np
import pytest

from numpygpt import GPTConfig, GPTModel
from numpygpt.adapt import dequantize, merge_lora, quantize
from numpygpt.adapt.adaptation import quantization_of
from numpygpt.adapt.packed import packed_section
from numpygpt.adapt.quantized import quantized_projections
from numpygpt.adapt.saving import model_of
from numpygpt.checks.planting import Bug, Change, planted
from numpygpt.data.texts import split_text
from numpygpt.errors import InputError
from numpygpt.evaluation.perplexity import TextScore, score_text
from numpygpt.evaluation.quantization import Compared, compared, errors
from numpygpt.formats import checkpoint as checkpoint_module
from numpygpt.formats.checkpoint import FILE_NAME, read_checkpoint, write_checkpoint
from numpygpt.formats.kinds import read_model
from numpygpt.numerics import fp4, schemes
from numpygpt.numerics.forms import Form, form_of, unfilled
from numpygpt.pictures.quantization import plot_quantization
from numpygpt.sections import Section
from numpygpt.tree import named
from parity_tests.command import TEXT, TRAINING, files, run, write_text
from parity_tests.small_models import assert_agrees

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")  # whole commands run

IDS = np.array([[72, 101, 32, 99]])
PROMPT = ("--prompt", "The ", "--max-new-tokens", 4, "--temperature", 0)
SCHEMES = (
    "nf4,double,block=8", "int8", "int4,block=row", "fp4,block=tensor", "zero_point8", "zero_point4",
    "quantile4,block=16", "dynamic8",
)  # fmt: skip
DOUBLE = "nf4,double,block=8"
TUNING = ("--steps", 2, "--batch-size", 3, "--eval-every", 2, "--eval-batches", 1, "--warmup-steps", 1, "--lr", 0.01)
#: Without targets among the matrices of the feed-forward: those stay packed and have no adapter.
LORA = ("--lora", "r=2,alpha=6,targets=W_query+W_value")
QUERY = "trf_blocks.0.att.W_query"


@pytest.fixture(scope="module")
def base(without_checks_of_annotations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    assert run("train", "--text", write_text(folder), "--out", folder / "run", *TRAINING) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def packed(base):
    return pack(base, base.parent / "packed", DOUBLE)


@pytest.fixture(scope="module")
def tuned(packed):
    """A run that tunes an adapter over the packed model."""
    return tune(packed, packed.parent / "tuned", *LORA)


@pytest.fixture(scope="module")
def tuned_in_memory(base):
    """A run that tunes an adapter over a model that is quantized in memory alone."""
    return tune(base, base.parent / "tuned-in-memory", *LORA, "--quantize", "nf4")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A text of a few windows."""
    return write_text(tmp_path_factory.mktemp("short"), TEXT[:20])


def pack(base, out, scheme):
    assert run("quantize", "--checkpoint", base, "--scheme", scheme, "--out", out) == 0
    return out


def tune(checkpoint, out, *options):
    data = out.parent / "text.txt"
    assert run("finetune", "--checkpoint", checkpoint, "--data", data, "--out", out, *TUNING, *options) == 0
    return out


def quantized(base, words):
    scheme, options = quantization_of(words)
    return quantize(model_of(read_model(base)), scheme, **options)


def error_of(capsys, *arguments):
    capsys.readouterr()
    assert run(*arguments) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(r"numpygpt: error: .*\n", line.rpartition("\r")[2])
    return line.partition("error: ")[2].strip()


def changed(packed, folder, change):
    """A copy of the packed checkpoint whose section `change(values, arrays)` has changed; its hashes are right."""
    saved = read_checkpoint(packed)
    values, arrays = saved.values("model"), saved.arrays("model")
    change(values, arrays)
    write_checkpoint(folder, {"model": Section(values, arrays)})
    return folder


# Forms


@pytest.mark.parametrize("shape", [(6, 5), (3, 600)])
@pytest.mark.parametrize("words", [*schemes.SCHEMES, "nf4,double", "quantile8,double", "int4,block=7", "fp4,block=1"])
def test_a_form_knows_every_array_before_it_is_read(words, shape):
    scheme, options = quantization_of(words)
    array = schemes.quantize(np.random.default_rng(0).standard_normal(shape), scheme, **options)
    form = form_of(array)
    assert (form.scheme, form.double) == (scheme, "double" in words)
    assert Form.of_dict(json.loads(json.dumps(form.to_dict()))) == form
    known = {name: (leaf.dtype, leaf.shape) for name, leaf in named(unfilled(form))}
    assert known == {name: (leaf.dtype, leaf.shape) for name, leaf in named(array)}


def test_a_form_takes_no_memory_for_the_values():
    huge = unfilled(Form("nf4", (10**6, 10**6), 64, double=True))
    assert huge.codes.size == 5 * 10**11


# Written and read


def assert_reads_as_it_was(base, out, words):
    """What is read from the disk computes, bit for bit, what the model in memory computes."""
    pack(base, out, words)
    model, expected = model_of(read_model(out)), quantized(base, words)
    assert model.named_parameters().keys() == expected.named_parameters().keys()
    assert quantized_projections(model).keys() == quantized_projections(expected).keys()
    assert np.array_equal(model(IDS), expected(IDS))


@pytest.mark.parametrize("words", SCHEMES)
def test_a_packed_model_reads_as_it_was(base, tmp_path, words):
    assert_reads_as_it_was(base, tmp_path, words)


NESTED = "__import__('numpygpt.tree', fromlist=['tree']).mapped_by_name(lambda n, a: 0 * a if 'rest.absmax' in n else a"
BUGS = (
    Bug(
        "codes_under_another_name",
        "the codes of the queries are saved under the name of the keys",
        "no public report known",
        "logits",
        (),
        (
            Change(
                "adapt.packed:packed_arrays",
                "{name: node.weight for",
                "{name.translate({}).replace('W_query', '?').replace('W_key', 'W_query').replace('?', 'W_key')"
                ": node.weight for",
            ),
        ),
    ),
    Bug(
        "nested_constants_dropped",
        "what is read has no constants of double quantization, and each block has their mean",
        "bitsandbytes#1549",
        "logits",
        (),
        (
            Change(
                "adapt.packed:_with_weights",
                "QuantizedLinear(weights[projection],",
                f"QuantizedLinear({NESTED}, weights[projection]),",
            ),
        ),
    ),
    Bug(
        "usual_block_size",
        "the size of a block is not saved: what is read has the usual one",
        "no public report known",
        "logits",
        (),
        (Change("numerics.forms:form_of", "quantized.shape, quantized.block_size", "quantized.shape, 64"),),
    ),
)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_in_what_is_saved_would_be_seen(base, tmp_path, bug):
    with planted(bug), pytest.raises((AssertionError, InputError)):
        assert_reads_as_it_was(base, tmp_path, DOUBLE)


def by_the_page(form, arrays):
    """The values of a packed matrix from its arrays, as docs/checkpoint-format.md says it."""
    size, double, scheme = math.prod(form["shape"]), form["double"], form["scheme"]
    codes = arrays["codes"].astype(np.int64)
    if scheme.endswith("4"):
        codes = np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)[:size]
    block = np.arange(size) // form["block_size"]
    if scheme.startswith("zero_point"):
        return (codes - arrays["zeros"].astype(np.int64)[block]) * arrays["steps"].astype(np.float64)[block]
    if double:
        rest = {name: arrays[f"absmax.rest.{name}"] for name in ("codes", "absmax", "levels")}
        constants = rest["levels"][rest["codes"]] * rest["absmax"][np.arange(len(rest["codes"])) // 256]
        absmax = (constants + arrays["absmax.mean"])[block].astype(np.float64)
    else:
        absmax = arrays["absmax"][block].astype(np.float64)
    if scheme.startswith("int"):
        return (codes if scheme == "int8" else codes - 8) * absmax / (127 if scheme == "int8" else 7)
    return arrays["levels"].astype(np.float64)[codes] * absmax


@pytest.mark.parametrize("words", SCHEMES)
def test_a_reader_in_another_language_has_all_it_needs(base, words):
    model = quantized(base, words)
    section = packed_section(model, None)
    assert section.values["quantized"].keys() == quantized_projections(model).keys()
    for name, node in quantized_projections(model).items():
        prefix = f"{name}.weight."
        arrays = {key.removeprefix(prefix): a for key, a in section.arrays.items() if key.startswith(prefix)}
        expected = schemes.dequantize(node.weight, np.float64)
        assert_agrees(by_the_page(section.values["quantized"][name], arrays), expected.reshape(-1))


def test_a_packed_file_is_small(tmp_path):
    """At most 0.16 of float32's bytes for the matrices, with all that the file has of them but its headers."""
    config = GPTConfig(
        vocab_size=7, context_length=4, emb_dim=128, n_heads=2, n_layers=1, drop_rate=0.0, qkv_bias=True
    )
    model = GPTModel(config)
    whole = sum(4 * math.prod(node.weight.shape) for node in quantized_projections(quantize(model)).values())
    others = sum(array.nbytes for array in quantize(model).named_parameters().values())
    for options in ({}, {"double": True}):
        path = write_checkpoint(tmp_path, {"model": packed_section(quantize(model, "nf4", **options), None)})
        layouts = read_checkpoint(path).layouts("model").values()
        held = sum(math.prod(layout.shape) * np.dtype(layout.dtype).itemsize for layout in layouts)
        assert held - others <= 0.16 * whole
        assert path.stat().st_size < held + 30_000


def test_commands_compute_with_a_packed_model(base, packed, short, tmp_path, capsys):
    capsys.readouterr()
    said = []
    for options in (("--checkpoint", packed), ("--checkpoint", base, "--quantize", DOUBLE)):
        assert run("generate", *options, *PROMPT) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert run("attention", "--checkpoint", packed, "--prompt", "The", "--out", tmp_path / "attention.png") == 0
    assert run("embeddings", "--checkpoint", packed, "--out", tmp_path / "embeddings.png") == 0
    assert run("evaluate", "--checkpoint", packed, "--text", short) == 0
    capsys.readouterr()
    assert run("info", "--checkpoint", packed) == 0
    arrays = read_checkpoint(packed).arrays("model")
    size = sum(array.nbytes for name, array in arrays.items() if ".weight." in name)
    assert f"6 matrices in nf4,double,block=8: {size:,} bytes, " in capsys.readouterr().out


# Tuned


def test_an_adapter_is_tuned_over_a_packed_model(base, packed, tuned, tmp_path, capsys):
    """The run needs the packed base, and no other. Merged, it is a whole model that computes the same."""
    assert run("finetune", "--resume", tuned, "--steps", 3) == 0
    model = model_of(read_model(tuned))
    assert quantized_projections(model).keys() == quantized_projections(model_of(read_model(packed))).keys()
    assert not np.array_equal(model(IDS), model_of(read_model(packed))(IDS))
    assert run("merge", "--checkpoint", tuned, "--out", tmp_path / "merged") == 0
    merged = model_of(read_model(tmp_path / "merged"))
    assert np.array_equal(merged(IDS), dequantize(merge_lora(model))(IDS))
    assert run("info", "--checkpoint", tuned) == 0
    generate = ("generate", *PROMPT)
    assert run(*generate, "--checkpoint", packed, "--adapter", tuned / "adapter") == 0
    assert "trained on other weights" in error_of(capsys, *generate, "--checkpoint", tuned, "--base", base)


def test_merging_over_a_quantized_model_makes_every_matrix_whole(base, tuned_in_memory, tmp_path):
    """Those without an adapter, too."""
    assert run("merge", "--checkpoint", tuned_in_memory, "--out", tmp_path / "merged") == 0
    merged = model_of(read_model(tmp_path / "merged"))
    assert merged.named_parameters().keys() == model_of(read_model(base)).named_parameters().keys()


def test_one_other_code_is_another_base(packed, tuned, tmp_path, capsys):
    def flip(values, arrays):
        arrays[f"{QUERY}.weight.codes"][3] ^= 1

    other = changed(packed, tmp_path / "other", flip)
    line = error_of(capsys, "generate", *PROMPT, "--checkpoint", tuned, "--base", other)
    assert "was trained on other weights than those of" in line


# Refused


def test_who_needs_whole_matrices_refuses_packed_ones(base, packed, tmp_path, capsys):
    data = ("--data", base.parent / "text.txt", "--out", tmp_path / "x")
    needs_whole = "its matrices are quantized, and whole ones are needed; name the model it was made of"
    assert needs_whole in error_of(capsys, "convert", packed, tmp_path / "x", "--to", "numpygpt")
    assert needs_whole in error_of(capsys, "parity", "--checkpoint", packed)
    assert "holds a model but no training run" in error_of(capsys, "train", "--resume", packed)
    frozen = "the model's matrices are quantized, and frozen; add an adapter: --lora r=8,alpha=16"
    assert frozen in error_of(capsys, "finetune", "--checkpoint", packed, *data)
    again = ("quantize", "--checkpoint", packed, "--scheme", "int8", "--out", tmp_path / "x")
    twice = "W_query is quantized already; quantize the model that it was made of"
    assert twice in error_of(capsys, *again)
    assert twice in error_of(capsys, "generate", *PROMPT, "--checkpoint", packed, "--quantize", "int8")
    assert twice in error_of(capsys, "finetune", "--checkpoint", packed, *data, *LORA, "--quantize", "nf4")
    assert not (tmp_path / "x").exists()


def test_an_adapters_run_is_merged_before_it_is_quantized(tuned, tmp_path, capsys):
    arguments = ("quantize", "--checkpoint", tuned, "--scheme", "nf4", "--out", tmp_path / "x")
    assert "make one model of both: numpygpt merge" in error_of(capsys, *arguments)
    with pytest.raises(InputError, match="the model has an adapter"):
        packed_section(model_of(read_model(tuned)), None)


def form(**entries):
    return lambda values, arrays: values["quantized"][QUERY].update(entries)


def array(name, made):
    def change(values, arrays):
        arrays[f"{QUERY}.weight.{name}"] = made(arrays[f"{QUERY}.weight.{name}"])

    return change


CHANGES = {
    "scheme": (form(scheme="nf5"), f"the quantized matrix of {QUERY}: the scheme of quantization is 'nf5'; expected"),
    "another scheme": (form(scheme="int8", double=False), "unexpected: "),
    "levels of another": (form(scheme="fp4"), f"the codes of {QUERY} are of fp4, and their levels of nf4"),
    "levels before its own": (
        array("levels", lambda levels: fp4.LEVELS.astype(levels.dtype)),
        f"the codes of {QUERY} are of nf4, and their levels of fp4",
    ),
    "levels of the constants": (
        array("absmax.rest.levels", lambda levels: levels[::-1].copy()),
        f"the codes of {QUERY} are of dynamic8, and their levels of quantile8",
    ),
    "shape": (form(shape=[4, 16]), "has the shape (4, 16); by the configuration, expected (8, 8)"),
    "longer shape": (form(shape=[16, 4]), "has the shape (16, 4); by the configuration, expected (8, 8)"),
    "shape of texts": (form(shape=["8", 8]), "shape is ['8', 8]; expected a list of numbers from 1"),
    "block": (form(block_size=0), "block_size is 0; expected a number from 1"),
    "other blocks": (form(block_size=16), f"misshaped: {QUERY}.weight.absmax.rest.codes (8,), expected (4,)"),
    "double": (form(double="yes"), "double is 'yes'; expected bool"),
    "double of int8": (form(scheme="int8"), "double is True, and the constants of int8 are never quantized"),
    "codes cut": (array("codes", lambda codes: codes[:-1]), f"misshaped: {QUERY}.weight.codes (31,), expected (32,)"),
    "codes of another dtype": (
        array("codes", lambda codes: codes.astype(np.int8)),
        f"of another dtype: {QUERY}.weight.codes int8, expected uint8",
    ),
    "codes missing": (lambda values, arrays: arrays.pop(f"{QUERY}.weight.codes"), f"missing: {QUERY}.weight.codes"),
    "no such matrix": (
        lambda values, arrays: values["quantized"].update({"head": values["quantized"][QUERY]}),
        "the quantized matrix of head has the shape (8, 8); by the configuration, expected no such matrix",
    ),
    "an embedding": (
        lambda values, arrays: values["quantized"].update({"tok_emb": Form("nf4", (256, 8), 8, False).to_dict()}),
        "missing: tok_emb.weight.codes",
    ),
    "not a dict": (lambda values, arrays: values.update(quantized=[1]), "quantized is [1]; expected dict"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit_is_refused(packed, tmp_path, capsys, name):
    change, message = CHANGES[name]
    folder = changed(packed, tmp_path / "changed", change)
    assert message in error_of(capsys, "generate", *PROMPT, "--checkpoint", folder)


def test_constants_that_are_not_finite(packed, tmp_path, capsys, monkeypatch):
    def spoil(values, arrays):
        arrays[f"{QUERY}.weight.absmax.mean"][0] = np.nan

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, "_is_finite", lambda array: True)
        folder = changed(packed, tmp_path / "nan", spoil)
    line = error_of(capsys, "generate", *PROMPT, "--checkpoint", folder)
    assert f"holds values that are not finite in model.{QUERY}.weight.absmax.mean" in line


def test_a_weight_that_is_no_number_is_refused_and_the_packed_model_stays(base, tmp_path, capsys, monkeypatch):
    out = pack(base, tmp_path / "packed", "int8")
    before, saved = files(tmp_path), read_checkpoint(base)
    values, arrays = saved.values("model"), saved.arrays("model")
    arrays[f"{QUERY}.weight"][1, 2] = np.nan
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, "_is_finite", lambda array: True)
        write_checkpoint(tmp_path / "nan", {"model": Section(values, arrays)})
    again = ("quantize", "--checkpoint", tmp_path / "nan", "--scheme", "nf4", "--out", out, "--overwrite")
    assert f"holds values that are not finite in model.{QUERY}.weight" in error_of(capsys, *again)
    assert {name: contents for name, contents in files(tmp_path).items() if not name.startswith("nan")} == before


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_a_model_with_a_weight_that_is_no_number_is_not_quantized(base, scheme):
    model = model_of(read_model(base))
    model.named_parameters()[f"{QUERY}.weight"][1, 2] = np.nan
    with pytest.raises(InputError, match=r"1 of 64 values to quantize are not finite .*, the first nan at \(1, 2\)"):
        quantize(model, scheme)


def test_damage_is_found(packed, tmp_path, capsys):
    contents = bytearray((packed / FILE_NAME).read_bytes())
    layout = json.loads(contents[8 : 8 + int.from_bytes(contents[:8], "little")])
    first, _ = layout[f"model.{QUERY}.weight.codes"]["data_offsets"]
    contents[8 + int.from_bytes(contents[:8], "little") + first] ^= 16
    (tmp_path / FILE_NAME).write_bytes(contents)
    line = error_of(capsys, "generate", *PROMPT, "--checkpoint", tmp_path)
    assert f"is damaged: the bytes of model.{QUERY}.weight.codes are not those that were saved" in line


def test_options_that_do_not_fit_are_refused(base, packed, tmp_path, capsys):
    before = files(base.parent)
    model = ("quantize", "--checkpoint", base)
    assert "--scheme is missing; expected one such as nf4,double" in error_of(capsys, *model, "--out", tmp_path / "x")
    assert "--out is missing; expected a folder" in error_of(capsys, *model, "--scheme", "nf4")
    out = ("--out", tmp_path / "x")
    assert "the scheme of quantization is 'nf5'" in error_of(capsys, *model, "--scheme", "nf5", *out)
    assert "--schemes can only be used with --compare" in error_of(capsys, *model, "--schemes", "nf4", *out)
    assert "leave out --scheme and --overwrite" in error_of(capsys, *model, "--compare", "--scheme", "nf4")
    assert "--tokens is 1; expected 2 or more" in error_of(capsys, *model, "--compare", "--tokens", 1)
    assert "quantize has 'twice'" in error_of(capsys, *model, "--compare", "--schemes", "nf4,twice")
    assert "quantize has 'block=x'; expected" in error_of(capsys, *model, "--compare", "--schemes", "nf4,block=x")
    no_run = ("quantize", "--compare", "--checkpoint", packed)
    assert "is a model without a training run, and so without a text; add --text" in error_of(capsys, *no_run)
    itself = (*model, "--scheme", "nf4", "--out", base)
    assert "already holds a model; replace it with --overwrite" in error_of(capsys, *itself)
    assert "is the model itself, which would be lost" in error_of(capsys, *itself, "--overwrite")
    assert files(base.parent) == before
    assert not (tmp_path / "x").exists()


def test_a_packed_model_is_replaced_if_it_may_be(base, tmp_path):
    pack(base, tmp_path, "nf4")
    assert run("quantize", "--checkpoint", base, "--scheme", "int8", "--out", tmp_path, "--overwrite") == 0
    assert np.array_equal(model_of(read_model(tmp_path))(IDS), quantized(base, "int8")(IDS))


# Compared


def rows_of(printed):
    """{scheme: its other cells} of the table that was printed, in its order."""
    lines = printed.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("scheme"))
    cells = [re.split(r" {3,}", line.strip()) for line in lines[first + 1 : -1]]
    return {scheme: rest for scheme, *rest in cells}


def test_schemes_are_compared(base, short, tmp_path, capsys):
    capsys.readouterr()
    chosen = ("int4", "nf4", "int8", "nf4,double,block=32")
    arguments = ("--compare", "--text", short, "--out", tmp_path / "new", "--schemes", *chosen)
    assert run("quantize", "--checkpoint", base, *arguments) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"wrote {tmp_path / 'new' / 'quantization.png'}"
    assert (tmp_path / "new" / "quantization.png").read_bytes().startswith(b"\x89PNG")
    table = rows_of(printed)
    assert set(table) == {"not quantized", *chosen}
    assert next(iter(table)) == "not quantized"
    sizes = [float(cells[1]) for cells in table.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert run("evaluate", "--checkpoint", base, "--text", short) == 0
    perplexity = re.search(r"perplexity a token +(\S+)", capsys.readouterr().out)[1]
    assert float(table["not quantized"][4]) == float(perplexity)


def test_the_text_is_the_validation_part_of_the_runs(base, capsys):
    capsys.readouterr()
    assert run("quantize", "--checkpoint", base, "--compare", "--schemes", "int8", "--out", base.parent / "c") == 0
    printed = capsys.readouterr().out
    part = np.frombuffer(split_text(TEXT)[1].encode(), np.uint8).astype(np.int64)
    assert f"the validation part of its text: the first {len(part)} tokens" in printed
    score = score_text(model_of(read_model(base)), part, length=6, stride=3, batch_size=4)
    assert rows_of(printed)["not quantized"][4] == f"{score.perplexity:.6g}"


def test_what_a_scheme_costs(base):
    model, done = model_of(read_model(base)), []
    ids = np.frombuffer(TEXT[:20].encode(), np.uint8).astype(np.int64)
    rows = {row.scheme: row for row in compared(model, ["int8", "nf4"], ids, advance=done.append)}
    assert sum(done) == 3 * (len(ids) - 1)
    assert list(rows) == [None, "int8", "nf4"]
    packed = quantize(model, "nf4")
    names = [f"{name}.weight" for name in quantized_projections(packed)]
    whole, values = (of.named_parameters() for of in (model, dequantize(packed)))
    before, after = (np.concatenate([arrays[name].ravel() for name in names]) for arrays in (whole, values))
    size = np.sqrt((before.astype(np.float64) ** 2).mean())
    off = (after.astype(np.float64) - before) / size
    assert_agrees(np.array([*errors(model, packed)]), np.array([np.sqrt((off**2).mean()), np.abs(off).max()]))
    assert rows["nf4"][1:3] == errors(model, packed)
    assert rows["nf4"].bytes == sum(node.weight.bytes() for node in quantized_projections(packed).values())
    assert rows[None].bytes == before.nbytes
    assert rows["nf4"].share == rows["nf4"].bytes / before.nbytes
    assert rows["nf4"].score == score_text(packed, ids, length=6, stride=3)
    zeros = GPTModel(model.config)
    for array in zeros.named_parameters().values():
        array[...] = 0
    assert errors(zeros, quantize(zeros, "nf4")) == (0, 0)


def row_of(scheme, nats, error=0.5, share=0.25):
    return Compared(scheme, error, 0.1, 8, share, TextScore(nats, 1))


def test_a_chart_has_three_bars_for_each_scheme():
    figure = plot_quantization([row_of(None, 1.0), row_of("nf4", 1.5, 0.25, 0.125), row_of("int8", 0.9)])
    shares, found, changes = ([bar.get_width() for bar in axes.patches] for axes in figure.axes)
    assert (shares, found) == ([0.125, 0.25], [0.25, 0.5])
    assert_agrees(np.array(changes), 100 * (np.exp([0.5, -0.1]) - 1))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["nf4", "int8"]
    with pytest.raises(InputError, match="no scheme of quantization is compared"):
        plot_quantization([row_of(None, 1.0)])
    with pytest.raises(InputError, match="the perplexities are not all finite"):
        plot_quantization([row_of(None, 1.0), row_of("nf4", 1e6)])
