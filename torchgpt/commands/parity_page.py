"""The parity report as a page of its own: a heat map and a table, in HTML without scripts or other files."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchgpt.checks.parity import Row

#: Shares of the budget up to which a cell has a color, from light to dark, each about three times the one before.
SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)

BLOCK = re.compile(r"trf_blocks\.(\d+)\.?")
#: The layers before and after the blocks 0, 1, ...
EMBEDDINGS, HEAD = -1.0, math.inf

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Parity with PyTorch: $summary</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em; color: #1a1a1a; background: #fff }
p { max-width: 60em }
dt { font-weight: bold; float: left; width: 8em }
dd { margin-left: 8em }
table { border-collapse: collapse }
.maps { display: flex; gap: 2em; overflow-x: auto; padding-bottom: 1em; align-items: flex-end }
.map { font-size: 11px }
.map caption { font-size: 15px; font-weight: bold; text-align: left; padding-bottom: .5em }
.map thead th { font-weight: normal; vertical-align: bottom; padding-bottom: .4em }
.map thead span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap }
.map tbody th { font-weight: normal; text-align: right; padding-right: .6em; white-space: nowrap }
.map td { min-width: 24px; height: 24px; text-align: center; padding: 0 }
.map td[class], .legend span { border: 1px solid #fff }
.legend span { display: inline-block; min-width: 24px; height: 24px; line-height: 24px; font-size: 11px;
  text-align: center; margin-left: 1em }
.used0 { background: #f0f4fa } .used1 { background: #cfdff0 } .used2 { background: #9dc0e0 }
.used3 { background: #5a95c9; color: #fff } .used4 { background: #20598f; color: #fff }
td.wrong, .legend span.wrong { background: #c8102e; color: #fff; font-weight: bold; border: 3px solid #000 }
.rows td, .rows th { padding: .1em 1em .1em 0; text-align: right }
.rows td:first-child, .rows th:first-child, .rows td:last-child, .rows th:last-child { text-align: left }
.rows td { font-family: ui-monospace, monospace; font-size: 13px }
</style>
<h1>Parity with PyTorch</h1>
<p><strong>$summary</strong></p>
<dl>
$facts
</dl>
<p>One training step was taken twice on the same weights, token ids and dropout masks: by NumPy, with gradients derived
by hand, and by PyTorch. Each cell is a tensor: an activation of the forward, its gradient in the backward, or the
gradient of a parameter; its layer stands to the left, its name above. The number is the share of its error budget that
NumPy's error uses, in percent, and so is the color, on a logarithmic scale. The truth is PyTorch in float64. In float32
the budget is 4 times the larger of PyTorch's own error and what random rounding errors do to this tensor; in float64, 4
times what rounding errors do, and for the whole tensor at least 1e-12 of its size. The whole and each row of it has a
budget; the one that uses most of its own counts. A tensor that uses more than 100%, or cannot be compared, is wrong and
marked ✗. A wrong tensor makes those computed from it wrong: look at the first, from above in the forward, from below in
the backward. Point at a cell to see its numbers.</p>
<p class="legend">$legend</p>
<div class="maps">
$maps
</div>
<h2>Every tensor</h2>
<p>Errors are Euclidean norms, relative to the tensor's own; those of a tensor that is zero but for rounding, to what
cancels in it.</p>
<table class="rows">
<thead><tr><th>tensor</th><th>ours</th><th>PyTorch</th><th>budget</th><th>used</th><th>verdict</th></tr></thead>
<tbody>
$rows
</tbody>
</table>
</html>
""")


def page(rows: Sequence["Row"], summary: str, facts: Mapping[str, str]) -> str:
    """The page.

    rows      the report's
    summary   a line that says how it ended
    facts     what was computed, and with what
    """
    activations = {row.name for row in rows}
    maps = {
        "Forward: activations": [row for row in rows if not row.name.startswith("d_")],
        "Backward: gradients of activations": [row for row in rows if _activation(row.name) in activations],
        "Backward: gradients of parameters": [
            row for row in rows if row.name.startswith("d_") and _activation(row.name) not in activations
        ],
    }
    return PAGE.substitute(
        summary=escape(summary),
        facts="\n".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items()),
        legend="".join(_legend()),
        maps="\n".join(_map(caption, mapped) for caption, mapped in maps.items() if mapped),
        rows="\n".join(map(_row, rows)),
    )


def _activation(name: str) -> str | None:
    """`x` of the gradient `d_x`."""
    return name.removeprefix("d_") if name.startswith("d_") else None


def _map(caption: str, rows: Sequence["Row"]) -> str:
    """A table with a row a layer, from the embeddings to the head, and a column a tensor, in the report's order."""
    cells = {_place(row.name): row for row in rows}
    layers = sorted({layer for layer, _ in cells})
    columns = list(dict.fromkeys(column for _, column in cells))
    head = "".join(f"<th><span>{escape(column)}</span></th>" for column in columns)
    body = "\n".join(
        f"<tr><th>{_layer(layer)}</th>{''.join(_cell(cells.get((layer, column))) for column in columns)}</tr>"
        for layer in layers
    )
    return (
        f'<table class="map"><caption>{caption}</caption>\n<thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table>"
    )


def _place(name: str) -> tuple[float, str]:
    """The layer of a tensor, counted from the embeddings to the head, and its name within it."""
    name = name.removeprefix("d_")
    block = BLOCK.match(name)
    if block:
        return float(block[1]), name[block.end() :] or "output"
    return EMBEDDINGS if "_emb" in name else HEAD, name


def _layer(layer: float) -> str:
    return {EMBEDDINGS: "embeddings", HEAD: "head"}.get(layer) or f"block {layer:.0f}"


def _cell(row: "Row | None") -> str:
    if row is None:
        return "<td></td>"
    return f'<td class="{_class(row)}" title="{escape(_title(row))}">{_mark(row)}</td>'


def _class(row: "Row") -> str:
    if not row.passed:
        return "wrong"
    return f"used{next(step for step, share in enumerate(SHARES) if row.used <= share)}"


def _mark(row: "Row") -> str:
    return f"{100 * row.used:.0f}" if row.passed else "✗"


def _title(row: "Row") -> str:
    return f"{row.name}: " + ", ".join(f"{what} {value}" for what, value in _numbers(row).items())


def _numbers(row: "Row") -> dict[str, str]:
    return {
        "ours": f"{row.error:.1e}",
        "PyTorch": "-" if row.pytorch is None else f"{row.pytorch:.1e}",
        "budget": f"{row.budget:.1e}",
        "used": f"{row.used:.0%}",
        "verdict": row.verdict,
    }


def _legend() -> Iterable[str]:
    yield "Share of the budget used:"
    for step, share in enumerate(SHARES):
        yield f'<span class="used{step}">{share:.0%}</span> or less'
    yield '<span class="wrong">✗</span> wrong'


def _row(row: "Row") -> str:
    mark = "" if row.passed else "✗ "
    *numbers, verdict = _numbers(row).values()
    cells = "".join(f"<td>{escape(text)}</td>" for text in (row.name, *numbers, mark + verdict))
    return f"<tr>{cells}</tr>"
