"""A report as one HTML page that needs nothing else: pictures inside, a table that sorts, no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.figure import Figure

from .compare import show
from .table import Grid

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff }
body { margin: 2rem auto; max-width: 1500px; padding: 0 1.5rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
p { margin: .3rem 0; max-width: 60rem } .note { color: #555; font-size: .9rem }
.wide { overflow-x: auto } img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #999; position: sticky; top: 0; background: #fff }
th button { all: unset; cursor: pointer; font-weight: 600 } th button:focus-visible { outline: 2px solid #0072B2 }
th[aria-sort=ascending] button::after { content: " \\25B2" }
th[aria-sort=descending] button::after { content: " \\25BC" }
td.word, th.word { text-align: left } td.long { white-space: normal; min-width: 18rem }
tbody tr:hover { background: #f3f6fa }
summary { cursor: pointer } code { font-size: .9em }
"""
SCRIPT = """
for (const table of document.querySelectorAll("table.sorts")) table.querySelectorAll("th").forEach((head, column) =>
  head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.order;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what is not known stays at the end
      const by = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? by : -by;
    });
    table.tBodies[0].append(...rows);
  }));
"""
CAPTIONS = {
    "curves": "What k and width cost: a line joins means, a small dot is a seed, a dashed line is the dense twin.",
    "rows": "All rows, side by side.",
    "training": "Over training: a line is a run.",
}


def page(
    title: str,
    lines: Sequence[str],
    results: Grid,
    unfinished: Grid,
    figures: Mapping[str, Figure],
    shared: Mapping[str, object],
) -> str:
    """The page. ``lines``: plain sentences under the title. ``shared``: settings that all runs agree in."""
    parts = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(line)}</p>" for line in lines)]
    if results.rows:
        parts += ["<h2>Results</h2>", _table(results), f'<p class="note">{escape(results.note)}</p>']
    for name, figure in figures.items():
        parts += [f"<h2>{escape(CAPTIONS[name])}</h2>", f'<div class="wide">{_picture(figure, CAPTIONS[name])}</div>']
    if unfinished.rows:
        parts += ["<h2>Not finished, or ended early</h2>", _table(unfinished)]
    if shared:
        items = "\n".join(f"{escape(name)} = {escape(show(value))}" for name, value in shared.items())
        parts += [
            f"<h2>Settings</h2><details><summary>What all runs have in common</summary><pre>{items}</pre></details>"
        ]
    body = "\n".join(parts)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
<script>{SCRIPT}</script>
</body>
</html>
"""


def _table(grid: Grid) -> str:
    numeric = grid.numeric
    heads = "".join(
        f"<th{'' if number else ' class=word'}><button>{escape(head)}</button></th>"
        for head, number in zip(grid.heads, numeric, strict=True)
    )
    rows = []
    for cells in grid.rows:
        tds = []
        for cell, number in zip(cells, numeric, strict=True):
            kind = "" if number else f' class="word{" long" if len(cell.text) > 60 else ""}"'
            order = "" if cell.order is None else escape(str(cell.order), quote=True)
            tds.append(f'<td{kind} data-order="{order}">{escape(cell.text)}</td>')
        rows.append(f"<tr>{''.join(tds)}</tr>")
    body = "\n".join(rows)
    return (
        f'<div class="wide"><table class="sorts"><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def _picture(figure: Figure, text: str) -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    data = base64.b64encode(drawn.getvalue()).decode()
    return f'<img alt="{escape(text, quote=True)}" src="data:image/svg+xml;base64,{data}">'
