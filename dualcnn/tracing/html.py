"""A trace as one HTML page, with its style and its script inside."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

import numpy as np

from .picture import picture
from .result import Section, Step, Trace
from .tables import Cell, Grid, Sheet
from .text import GRADIENTS

__all__ = ["page"]

SHADES = 9
"""Steps of colour, from a number that is almost 0 to the largest of its step."""

PICTURES = 8
"""Pictures that are shown of a step whose tables are cut."""

HOVER = (
    "Point at a number, or go to a table with Tab and move with the arrow keys, to see what "
    "belongs to it; click to keep it, Escape to let go. Blue is positive, orange negative; the "
    "stronger the colour, the larger the number beside the others of its step."
)


def page(trace: Trace, limit: int) -> str:
    """The whole page; see `Trace.html`."""
    style, script = (
        (files("dualcnn.tracing") / name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    title = escape(f"Trace of {trace.model}")
    forward = [s for s in trace.sections if not s.backward]
    backward = [s for s in trace.sections if s.backward]
    both_ways = {s.name for s in forward} & {s.name for s in backward}
    mode = "training" if trace.training else "evaluation"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>One forward and one backward pass in {mode} mode. Loss: <b>{trace.loss:.4g}</b>.</p>
{_chain(forward)}
<p class="hint">{escape(HOVER)}</p>
</header>
<main>
<h2 id="forward">Forward</h2>
{_sections(forward, both_ways, limit)}
<h2 id="backward">Backward</h2>
<p>{escape(GRADIENTS)}</p>
{_sections(backward, both_ways, limit)}
</main>
<output class="readout" aria-live="polite"></output>
<script>
{script}</script>
</body>
</html>
"""


def _chain(forward: list[Section]) -> str:
    """The layers in their order with the shapes that they hand on, as links."""
    parts = []
    for section in forward:
        size = " × ".join(map(str, section.output.shape))
        name = escape(section.name)
        parts.append(f'<li><a href="#f-{name}">{name}</a> <span class="shape">{size}</span></li>')
    layers = "\n".join(parts)
    return f'<nav aria-label="Layers"><ol class="chain">\n{layers}\n</ol></nav>'


def _sections(sections: list[Section], both_ways: set[str], limit: int) -> str:
    return "\n".join(_section(section, both_ways, limit) for section in sections)


def _section(section: Section, both_ways: set[str], limit: int) -> str:
    here, there = ("b", "f") if section.backward else ("f", "b")
    name = escape(section.name)
    way = "back through " if section.backward else ""
    other = "forward" if section.backward else "backward"
    total = ""
    if section.total is not None:
        of, terms, plus = section.total.of, section.total.terms, section.total.plus
        total = f' data-of="{" ".join(of)}" data-terms="{" ".join(terms)}" data-plus="{plus}"'
    parts = [f'<section id="{here}-{name}"{total}>']
    parts.append(f"<h3>{way}{name} <small>{escape(section.title)}</small></h3>")
    parts.append(f"<p>{escape(section.text)}</p>")
    if section.recalled:
        recalled = _figures(section.recalled, limit)
        parts.append(f'<div class="recalled"><h4>From the forward pass</h4>\n{recalled}</div>')
    parts.append(_figures(section.steps, limit))
    if section.worked:
        worked = escape(section.worked)
        parts.append(f'<p class="worked"><b>Worked out:</b>\n<code>{worked}</code></p>')
    if section.name in both_ways:
        parts.append(f'<p class="jump"><a href="#{there}-{name}">{name} {other}</a></p>')
    parts.append("</section>")
    return "\n".join(parts)


def _figures(steps: Sequence[Step], limit: int) -> str:
    figures = "\n".join(_figure(step, limit) for step in steps)
    return f'<div class="steps">\n{figures}\n</div>'


def _figure(step: Step, limit: int) -> str:
    sheet = Sheet(step, limit)
    values = np.abs(np.asarray(sheet.values, np.float64))
    finite = values[np.isfinite(values)]
    largest = float(finite.max()) if finite.size else 0.0
    formula = f"<br><code>= {escape(step.formula)}</code>" if step.formula else ""
    notes = [step.note, sheet.digits.scale, sheet.note]
    if step.marks is not None:
        sign = "hatched" if step.marks.meaning == "padding" else "framed"
        notes.append(f"{sign}: {step.marks.meaning}")
    said = "; ".join(escape(note) for note in notes if note)
    grids = sheet.grids()
    widest = max(len(c.text) for grid in grids for row in sheet.cells(grid) for c in row)
    parts = [
        f'<figure data-step="{escape(step.label)}" data-cut="{" ".join(sheet.cut)}" '
        f'style="--digits:{widest}">',
        f'<figcaption><b title="{escape(step.name)}">{escape(step.label)}</b> '
        f'<code class="shape">{step.shape}</code>{formula}'
        + (f'<span class="note">{said}</span>' if said else "")
        + "</figcaption>",
    ]
    if step.kind == "images" and sheet.cropped:
        parts.append(_pictures(sheet, largest))
    tables = "".join(_table(sheet, grid, largest) for grid in grids)
    parts.append(f'<div class="grids">{tables}</div>')
    parts.append("</figure>")
    return "\n".join(parts)


def _pictures(sheet: Sheet, largest: float) -> str:
    """All of each image, up to some, as small pictures."""
    found = []
    step = sheet.step
    for lead in list(np.ndindex(*sheet.lead))[:PICTURES]:
        values = np.asarray(sheet.values[lead], np.float64)
        caption = sheet.caption(lead)
        about = f"{step.name}{', ' if caption else ''}{caption}"
        told = f"{about}: numbers from {values.min():.3g} to {values.max():.3g} as colours"
        source = picture(values, largest)
        width = max(112, 4 * values.shape[1])
        found.append(
            f'<span class="picture"><img src="{source}" width="{width}" alt="{escape(told)}">'
            f"<small>{escape(caption)}</small></span>"
        )
    left = sheet.count - len(found)
    more = f"<small>and {left} more</small>" if left else ""
    return f'<div class="grids">{"".join(found)}{more}</div>'


def _table(sheet: Sheet, grid: Grid, largest: float) -> str:
    step = sheet.step
    rows, heads = sheet.row_names(), sheet.column_names()
    if step.kind == "images" and sheet.cropped:
        rows, heads = [str(i) for i in grid.rows], [str(i) for i in grid.columns]
    focus = ' tabindex="0"' if step.link is not None else ""
    caption = escape(grid.caption)
    lines = [f'<table{focus} aria-label="{escape(step.name)}{", " if caption else ""}{caption}">']
    if caption:
        lines.append(f"<caption>{caption}</caption>")
    if heads:
        corner = "<td></td>" if rows else ""
        cells = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
        lines.append(f"<tr>{corner}{cells}</tr>")
    for i, row in enumerate(sheet.cells(grid)):
        head = f'<th scope="row">{escape(rows[i])}</th>' if rows else ""
        lines.append(f"<tr>{head}{''.join(_cell(step, cell, largest) for cell in row)}</tr>")
    lines.append("</table>")
    return "".join(lines)


def _cell(step: Step, cell: Cell, largest: float) -> str:
    classes = []
    if cell.value and largest and np.isfinite(cell.value):
        shade = max(1, round(SHADES * abs(cell.value) / largest))
        classes.append(f"{'p' if cell.value > 0 else 'n'}{shade}")
    if cell.marked and step.marks is not None:
        classes.append("pad" if step.marks.meaning == "padding" else "win")
    attributes = f' class="{" ".join(classes)}"' if classes else ""
    if step.link is not None:
        own, lit = step.link(cell.index)
        attributes += f' data-k="{own}"' + (f' data-h="{lit}"' if lit != own else "")
    return f"<td{attributes}>{cell.text.replace('-', '−')}</td>"
