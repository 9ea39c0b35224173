"""A trace as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .result import Section, Step, Trace
from .tables import Grid, Sheet

__all__ = ["GRADIENTS", "text"]

GAP = "   "
INDENT = "    "
PADDING, WINNER = ".", "*"
GRADIENTS = (
    "A gradient says how much the loss grows for each unit that a number grows: gy of a layer's "
    "output, gx of its input, gw of its weight, gb of its bias."
)


def text(trace: Trace, limit: int, width: int) -> str:
    """All sections, one below the other; see `Trace.text`."""
    names = {step.name for step in trace.steps}
    mode = "training" if trace.training else "evaluation"
    blocks = [
        f"{trace.model} in {mode} mode, loss {trace.loss:.4g}",
        "\n".join(textwrap.wrap(trace.chain(), width, break_long_words=False)),
        _heading("Forward"),
        *(_section(s, names, limit, width) for s in trace.sections if not s.backward),
        _heading("Backward"),
        "\n".join(textwrap.wrap(GRADIENTS, width)),
        *(_section(s, names, limit, width) for s in trace.sections if s.backward),
    ]
    return "\n\n".join(blocks)


def _heading(title: str) -> str:
    return f"{title}\n{'=' * len(title)}"


def _section(section: Section, names: set[str], limit: int, width: int) -> str:
    title = _wrapped(f"{section.name}: {section.title}", width)
    head = [*title, "-" * max(map(len, title)), *textwrap.wrap(section.text, width)]
    blocks = ["\n".join(head)]
    # Numbers that another step has are not written twice, unless they are marked here.
    blocks += [
        f"{step.name} {step.shape} = {step.formula}"
        if step.formula in names and step.marks is None
        else _step(step, limit, width)
        for step in section.steps
    ]
    if section.worked:
        blocks.append("\n".join(_wrapped(f"worked out: {section.worked}", width)))
    return "\n\n".join(blocks)


def _wrapped(lines: str, width: int) -> list[str]:
    return [
        part
        for line in lines.splitlines()
        for part in textwrap.wrap(line, width, subsequent_indent=INDENT, break_long_words=False)
    ]


def _step(step: Step, limit: int, width: int) -> str:
    room = width - len(INDENT)
    sheet = _sheet(step, limit, room)
    head = f"{step.name} {step.shape}" + (f" = {step.formula}" if step.formula else "")
    notes = [step.note, sheet.digits.scale, sheet.note]
    if step.marks is not None:
        sign = PADDING if step.marks.meaning == "padding" else WINNER
        notes.append(f"{sign} {step.marks.meaning}")
    said = "; ".join(note for note in notes if note)
    lines = _wrapped(head + (f"  ({said})" if said else ""), width)
    if len(step.shape) < 2:
        return "\n".join([*lines, *_run(sheet, room)])
    blocks = [_grid(sheet, grid) for grid in sheet.grids()]
    return "\n".join([*lines, *_side_by_side(blocks, room)])


def _sheet(step: Step, limit: int, room: int) -> Sheet:
    """The step cut so that a row of numbers fits into the line."""
    sheet = Sheet(step, limit)
    if len(step.shape) < 2:
        return sheet
    # With fewer columns come other rows, perhaps with longer numbers and names.
    while True:
        name = max((len(n) + 2 for n in sheet.row_names()), default=0)
        most = max(1, (room - name + 2) // (_cell_width(sheet) + 2))
        if len(sheet.columns) <= most:
            return sheet
        sheet = Sheet(step, limit, most)


def _written(sheet: Sheet, grid: Grid) -> list[list[str]]:
    marks = sheet.step.marks
    padding = marks is not None and marks.meaning == "padding"
    rows = []
    for cells in sheet.cells(grid):
        if padding:
            rows.append([PADDING if c.marked and c.value == 0 else c.text for c in cells])
        elif marks is not None:
            rows.append([c.text + (WINNER if c.marked else " ") for c in cells])
        else:
            rows.append([c.text for c in cells])
    return rows


def _cell_width(sheet: Sheet) -> int:
    written = [t for grid in sheet.grids() for row in _written(sheet, grid) for t in row]
    return max((len(t) for t in (*written, *sheet.column_names())), default=1)


def _grid(sheet: Sheet, grid: Grid) -> list[str]:
    """A table, its caption above it."""
    rows, names, heads = _written(sheet, grid), sheet.row_names(), sheet.column_names()
    width = _cell_width(sheet)
    margin = max((len(n) for n in names), default=0)
    lines = [grid.caption] if grid.caption else []
    table: list[tuple[str, Sequence[str]]] = [("", heads)] if heads else []
    table += list(zip(names or [""] * len(rows), rows, strict=True))
    for name, cells in table:
        start = f"{name:<{margin}}" + ("  " if margin else "")
        lines.append((start + "  ".join(f"{cell:>{width}}" for cell in cells)).rstrip())
    return lines


def _run(sheet: Sheet, room: int) -> list[str]:
    """A vector over as many lines as it takes, under the names of its places."""
    (grid,) = sheet.grids()
    (cells,) = _written(sheet, grid)
    heads = sheet.column_names()
    width = _cell_width(sheet)
    most = max(1, (room + 2) // (width + 2))
    lines = []
    for start in range(0, len(cells), most):
        rows = (heads[start : start + most], cells[start : start + most])
        lines += [INDENT + "  ".join(f"{cell:>{width}}" for cell in row) for row in rows if row]
    return lines


def _side_by_side(blocks: Sequence[list[str]], room: int) -> list[str]:
    """Tables beside each other, as many as fit into a line, a blank line between the rows."""
    lines: list[str] = []
    row: list[list[str]] = []

    def flush() -> None:
        if lines and row:
            lines.append("")
        widths = [max(map(len, block)) for block in row]
        for i in range(max((len(block) for block in row), default=0)):
            parts = (
                (block[i] if i < len(block) else "").ljust(width)
                for block, width in zip(row, widths, strict=True)
            )
            lines.append((INDENT + GAP.join(parts)).rstrip())
        row.clear()

    for block in blocks:
        used = sum(max(map(len, b)) + len(GAP) for b in row)
        if row and used + max(map(len, block)) > room:
            flush()
        row.append(block)
    flush()
    return lines
