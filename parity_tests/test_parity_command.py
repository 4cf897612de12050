"""`numpygpt parity`: the table, the page with its heat map, the exit status, and bad input before any computation."""

import json
import os
import re
import sys
from functools import cache
from html.parser import HTMLParser

import pytest
from matplotlib.colors import to_hex

from numpygpt.checks.planting import planted
from numpygpt.checks.records import BUGS
from numpygpt.model.config import PRESETS, GPTConfig
from parity_tests.command import files, run
from torchgpt.checks.parity import REPORT_PROBES, Row, numpy_step, report
from torchgpt.commands.parity import DEFAULT_CONFIG, summary
from torchgpt.commands.parity_map import COLORS, WRONG
from torchgpt.commands.parity_page import page
from torchgpt.commands.parity_picture import plot_parity

SMALL = GPTConfig(vocab_size=7, context_length=5, emb_dim=6, n_heads=2, n_layers=2, drop_rate=0.25, qkv_bias=True)


@cache
def small_report():
    """The report on SMALL with all defaults."""
    return report(SMALL)


@pytest.fixture
def config(tmp_path):
    """A file with the configuration SMALL."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL.to_dict()), encoding="utf-8")
    return path


class Page(HTMLParser):
    """What a page has: the cells of the heat maps, the rows of the table below, and every tag and address."""

    def __init__(self, html):
        super().__init__()
        self.cells, self.rows, self.tags, self.addresses = [], [], set(), []
        self.caption, self.cell, self.row, self.inside = None, None, None, None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes.items() if name in ("src", "href", "action", "data")]
        self.inside = tag
        if tag == "caption":
            self.caption = ""
        if tag == "td" and "title" in attributes:
            self.cell = {"map": self.caption, **attributes, "text": ""}
            self.cells.append(self.cell)
        elif tag == "td":
            self.cell = {"text": ""}
        if tag == "tr":
            self.row = []

    def handle_data(self, data):
        if self.inside == "caption":
            self.caption += data
        elif self.inside == "td":
            self.cell["text"] += data

    def handle_endtag(self, tag):
        if tag == "td":
            self.row.append(self.cell["text"])
        if tag == "tr" and len(self.row) == 6:
            self.rows.append(self.row)
        self.inside = None


def shown(rows):
    return Page(page(rows, summary(rows), {"configuration": "x", "seed": "0"}))


def title(row):
    pytorch = "-" if row.pytorch is None else f"{row.pytorch:.1e}"
    return (
        f"{row.name}: ours {row.error:.1e}, PyTorch {pytorch}, budget {row.budget:.1e}, used {row.used:.0%}, "
        f"verdict {row.verdict}"
    )


# The table


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_table_has_the_reports_rows_in_its_order(config, capsys, dtype):
    assert run("parity", "--config", config, "--dtype", dtype, "--seed", 3) == 0
    head, *lines, last = capsys.readouterr().out.splitlines()
    rows = report(SMALL, dtype, 3)
    assert head.split() == ["tensor", "ours", "PyTorch", "budget", "used", "verdict"]
    for line, row in zip(lines, rows, strict=True):
        pytorch = [] if row.pytorch is None else [f"{row.pytorch:.1e}"]
        expected = [row.name, f"{row.error:.1e}", *pytorch, f"{row.budget:.1e}", f"{row.used:.0%}", row.verdict]
        assert line.split() == expected
    worst = max(rows, key=lambda row: row.used)
    assert last == f"all {len(rows)} tensors agree; the most of a budget is used by {worst.name}, {worst.used:.0%}"


def test_a_wrong_tensor_gives_status_1_and_the_first_is_named(config, capsys, tmp_path):
    bug = BUGS["scale_by_emb_dim"]
    with planted(bug):
        assert run("parity", "--config", config, "--html", tmp_path / "page.html") == 1
    *lines, last, written = capsys.readouterr().out.splitlines()
    wrong = [line.split()[0] for line in lines if line.endswith("   OVER BUDGET")]
    assert wrong[0] == bug.first_wrong
    assert re.fullmatch(
        rf"{len(wrong)} of {len(lines) - 1} tensors WRONG; the first: {re.escape(bug.first_wrong)}, "
        r"over budget, \d+% used",
        last,
    )
    assert written == f"wrote {tmp_path / 'page.html'}"
    marked = [cell for cell in Page((tmp_path / "page.html").read_text("utf-8")).cells if cell["class"] == "wrong"]
    assert {cell["title"].partition(":")[0] for cell in marked} == set(wrong)
    assert {cell["text"] for cell in marked} == {"✗"}
    verdicts = {row[0]: row[-1] for row in Page((tmp_path / "page.html").read_text("utf-8")).rows}
    assert {name for name, verdict in verdicts.items() if verdict.startswith("✗ ")} == set(wrong)


def test_a_tensor_without_an_error_to_measure_is_told_by_its_verdict():
    rows = [Row("logits", float("inf"), None, 0.0, float("inf"), "missing", passed=False)]
    assert summary(rows) == "1 of 1 tensors WRONG; the first: logits, missing"


def test_the_default_model_has_every_part_and_no_two_equal_sizes(capsys):
    sizes = [DEFAULT_CONFIG.vocab_size, DEFAULT_CONFIG.context_length, DEFAULT_CONFIG.emb_dim, DEFAULT_CONFIG.n_heads]
    sizes += [DEFAULT_CONFIG.n_layers, DEFAULT_CONFIG.head_dim, 4 * DEFAULT_CONFIG.emb_dim]
    assert len(set(sizes)) == len(sizes)
    assert DEFAULT_CONFIG.drop_rate > 0
    assert DEFAULT_CONFIG.qkv_bias
    assert run("parity") == 0
    assert f"\nall {len(report(DEFAULT_CONFIG))} tensors agree" in capsys.readouterr().out


def test_the_rounding_runs_are_what_the_progress_goes_through():
    seen = []
    report(SMALL, progress=lambda runs: seen.append(runs) or iter(runs))
    assert [(runs.start, runs.stop) for runs in seen] == [(0, REPORT_PROBES)]


def test_a_bar_shows_the_rounding_runs(capsys, monkeypatch):
    """The bar comes after two seconds, which no run here takes."""
    bars = []

    def slow_report(cfg, *arguments, progress, **options):
        assert list(progress(range(3))) == [0, 1, 2]
        return small_report()

    monkeypatch.setattr("tqdm.tqdm", lambda runs, **options: bars.append(options) or runs)
    monkeypatch.setattr("torchgpt.checks.parity.report", slow_report)
    assert run("parity") == 0
    assert [(bar["desc"], bar["delay"]) for bar in bars] == [("rounding errors", 2)]


# The configuration


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--config", "config.json"), SMALL),
        (("--config", "config.json", "--n-layers", 1, "--no-qkv-bias"), {"n_layers": 1, "qkv_bias": False}),
        (("--config", "config.json", "--vocab-size", 9, "--drop-rate", 0), {"vocab_size": 9, "drop_rate": 0.0}),
        ((), DEFAULT_CONFIG),
        (("--preset", "gpt2-medium"), PRESETS["gpt2-medium"]),
    ],
)
def test_the_configuration_comes_from_a_file_a_preset_or_the_options(
    config, capsys, monkeypatch, options, expected
):
    given = []
    monkeypatch.setattr(
        "torchgpt.checks.parity.report", lambda cfg, *arguments, **options: given.append(cfg) or small_report()
    )
    monkeypatch.setattr("numpygpt.model.sizes.machine_memory", lambda: None)  # so that there is enough for any of them
    monkeypatch.chdir(config.parent)
    assert run("parity", *options) == 0
    assert given == [expected if isinstance(expected, GPTConfig) else GPTConfig(**{**SMALL.to_dict(), **expected})]


def test_info_and_train_start_from_a_file_too(config, capsys, tmp_path, monkeypatch):
    assert run("info", "--config", config, "--n-layers", 3) == 0
    out = capsys.readouterr().out
    assert "vocab_size 7\n" in out
    assert "n_layers 3\n" in out
    assert run("train", "--resume", tmp_path, "--config", config) == 2
    assert "--config cannot change in a resumed run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "size"), [((), (2, 5)), (("--batch-size", 3), (3, 5)), (("--batch-size", 1, "--tokens", 4), (1, 4))]
)
def test_the_size_of_the_step_is_that_of_the_options(config, capsys, monkeypatch, options, size):
    taken = []

    def recorded(model, batch):
        taken.append(batch)
        return numpy_step(model, batch)

    monkeypatch.setattr("torchgpt.checks.parity.numpy_step", recorded)
    page = config.parent / "page.html"
    assert run("parity", "--config", config, "--html", page, *options) == 0
    (batch,) = taken
    assert (batch.inputs.shape, batch.targets.shape) == (size, size)
    assert "<dt>step</dt><dd>{} x {} tokens</dd>".format(*size) in page.read_text("utf-8")


# The page


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_heat_map_has_each_tensor_once_with_its_numbers(dtype):
    rows = report(SMALL, dtype)
    found = shown(rows)
    assert sorted(cell["title"] for cell in found.cells) == sorted(map(title, rows))
    by_title = {cell["title"]: cell for cell in found.cells}
    for row in rows:
        cell = by_title[title(row)]
        activation = row.name.removeprefix("d_")
        kind = "activations" if activation == row.name else "gradients of parameters"
        if activation != row.name and activation in {each.name for each in rows}:
            kind = "gradients of activations"
        assert cell["map"].endswith(f": {kind}")
        assert cell["text"] == f"{100 * row.used:.0f}"
        step = int(cell["class"].removeprefix("used"))
        assert row.used <= COLORS[step].share
        assert step == 0 or row.used > COLORS[step - 1].share


def test_the_table_below_has_every_row():
    rows = small_report()
    expected = [title(row).replace(": ours", ", ours") for row in rows]
    assert [
        f"{name}, ours {ours}, PyTorch {pytorch}, budget {budget}, used {used}, verdict {verdict}"
        for name, ours, pytorch, budget, used, verdict in shown(rows).rows
    ] == expected


def test_names_are_escaped_and_the_page_needs_nothing_else():
    name = 'a<b onload="x">&c'
    html = page([Row(name, 0.1, None, 0.2, 0.5, "agrees", passed=True)], "a < b", {"<i>": "&amp;"})
    found = Page(html)
    assert "b" not in found.tags
    assert "i" not in found.tags
    assert not {"script", "link", "img", "iframe", "object"} & found.tags
    assert not found.addresses
    assert not re.search(r"url\(|@import|https?:", html)
    assert found.cells[0]["title"].startswith(f"{name}: ours")
    assert found.rows[0][0] == name
    assert "<strong>a &lt; b</strong>" in html


def test_the_page_says_what_was_computed_and_replaces_an_older_one_at_once(config, capsys, tmp_path):
    path = tmp_path / "pages" / "page.html"
    path.parent.mkdir()
    path.write_text("older")
    assert run("parity", "--config", config, "--dtype", "float64", "--seed", 8, "--html", path) == 0
    html = path.read_text("utf-8")
    assert list(files(path.parent)) == ["page.html"]
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html))
    assert facts["configuration"].startswith("vocab_size 7, context_length 5, emb_dim 6,")
    assert (facts["dtype"], facts["seed"]) == ("float64", "8")
    assert re.fullmatch(r"numpygpt \S+, NumPy \S+, PyTorch \S+, Python \S+, \w+ \w+", facts["versions"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", facts["date"])
    assert html.count(re.search(r"all \d+ tensors agree", capsys.readouterr().out)[0]) == 2


# The picture


def test_the_picture_has_a_cell_for_each_tensor_in_the_color_of_its_share(tmp_path):
    rows = [
        Row("tok_emb", 0.1, None, 10.0, 0.01, "agrees", passed=True),
        Row("trf_blocks.0", 1.0, None, 5.0, 0.2, "agrees", passed=True),
        Row("logits", 1.0, None, 0.5, 2.0, "over budget", passed=False),
        Row("d_tok_emb", 0.1, None, 0.1, 1.0, "agrees", passed=True),
        Row("d_tok_emb.weight", 0.1, None, 5.0, 0.02, "agrees", passed=True),
    ]
    figure = plot_parity(rows, "so it ends", tmp_path / "parity.png")
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")
    assert figure.get_suptitle() == "numpygpt against PyTorch: so it ends"
    drawn = {
        axes.get_title(loc="left"): [
            (
                axes.get_yticklabels()[round(cell.get_y())].get_text(),
                axes.get_xticklabels()[round(cell.get_x())].get_text(),
                to_hex(cell.get_facecolor()),
                text.get_text(),
            )
            for cell, text in zip(axes.patches, axes.texts, strict=True)
        ]
        for axes in figure.axes
    }
    colors = [color.of_cell for color in COLORS]
    assert drawn == {
        "Forward: activations": [
            ("embeddings", "tok_emb", colors[0], "1"),
            ("block 0", "output", colors[3], "20"),
            ("head", "logits", WRONG.of_cell, "✗"),
        ],
        "Backward: gradients of activations": [("embeddings", "tok_emb", colors[4], "100")],
        "Backward: gradients of parameters": [("embeddings", "tok_emb.weight", colors[1], "2")],
    }


def test_the_command_draws_the_picture(config, capsys, monkeypatch, tmp_path):
    rows = small_report()
    monkeypatch.setattr("torchgpt.checks.parity.report", lambda *arguments, **options: rows)
    drawn = []
    monkeypatch.setattr("torchgpt.commands.parity.plot_parity", lambda *arguments: drawn.append(arguments))
    assert run("parity", "--config", config, "--png", tmp_path / "parity.png") == 0
    assert drawn == [(rows, summary(rows), tmp_path / "parity.png")]
    assert capsys.readouterr().out.endswith(f"\nwrote {tmp_path / 'parity.png'}\n")


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--html", "nowhere/page.html"), "there is no folder nowhere; make it, or name another"),
        (("--html", "pipe"), "cannot write pipe: it is a pipe or a device; name a regular file"),
        (("--html", "/dev/null"), "cannot write /dev/null: it is a pipe or a device"),
        (("--html", "x" * 300), "cannot write x{300}: File name too long; name another"),
        (("--html", "new", "--png", "new"), "--html and --png both name new; name two files"),
        (("--png", "nowhere/parity.png"), "there is no folder nowhere; make it, or name another"),
        (("--config", "pipe"), "cannot read the configuration pipe: it is a pipe or a device"),
        (("--config", "deep.json"), r"the configuration deep\.json is no JSON: "),
        (("--emb-dim", 999_999), r"the step in float64 needs at least [\d,]+\.\d GiB of memory, and this machine has "),
        (("--batch-size", 10**15), "the step in float64 needs at least .*: make it smaller"),
        (("--n-layers", 10**12), "n_layers is 1000000000000; expected at most 2147483647"),
        (("--html", "folder"), "cannot write folder: it is a folder; name a file in it"),
        (("--config", "nowhere.json"), r"cannot read the configuration nowhere\.json: No such file"),
        (("--config", "no.json"), r"the configuration no\.json is no JSON: "),
        (("--config", "latin.json"), r"the configuration latin\.json is no JSON: .*decode"),
        (("--config", "list.json"), r"list\.json cannot be used: the configuration is a list; expected .* a dict"),
        (("--config", "keys.json"), r"keys\.json cannot be used: configuration keys: missing \['vocab_size', "),
        (("--config", "config.json", "--n-heads", 4), "emb_dim 6 is not divisible by n_heads 4"),
        (("--config", "config.json", "--preset", "gpt2"), "--preset: not allowed with argument --config"),
        (("--dtype", "float16"), "argument --dtype: invalid choice: 'float16'"),
        (("--config", "config.json", "--batch-size", 0), "a step on 0 x 5 tokens; expected at least 1 x 1"),
        (("--config", "config.json", "--tokens", 6), "a step on 2 x 6 tokens; .* at most context_length 5 tokens"),
        (("--seed", 2**64), f"seed: found {2**64}; give an int"),
    ],
)
def test_bad_input_gets_one_line_before_the_computation(unchecked, config, capsys, monkeypatch, options, message):
    folder = config.parent
    (folder / "folder").mkdir()
    (folder / "deep.json").write_text("[" * 100_000)
    os.mkfifo(folder / "pipe")
    for name, contents in (("no", b"{"), ("latin", b"\xe9"), ("list", b"[]"), ("keys", b'{"n_layer": 1}')):
        (folder / f"{name}.json").write_bytes(contents)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("torchgpt.checks.parity.step_reference", None)  # cannot be called
    before = files(folder)
    assert run("parity", *options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"numpygpt( parity)?: error: .*\n", printed.err)
    assert re.search(message, printed.err)
    assert files(folder) == before


def test_a_page_that_cannot_be_written_is_told_in_one_line(config, capsys, monkeypatch, tmp_path):
    def no_space(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpygpt.files.replacing", no_space)
    assert run("parity", "--config", config, "--html", tmp_path / "page.html") == 2
    assert "page.html: No space left on device; name another\n" in capsys.readouterr().err


def test_without_pytorch_the_install_line_is_given(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchgpt"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run("parity") == 2
    assert capsys.readouterr() == (
        "", "numpygpt: error: torchgpt needs PyTorch, which is not installed: pip install 'numpygpt[torch]'\n"
    )  # fmt: skip
