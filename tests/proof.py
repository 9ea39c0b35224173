"""Tables of what was checked, printed and written into `docs/proof.md`.

A page marks the place of a table by the comments `<!-- NAME -->` and `<!-- /NAME -->`; what lies
between them is written anew by the run that made the table.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Sequence

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "proof.md"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, numbers to the right, its columns aligned for reading as text."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [
        all(re.fullmatch(r"[\d.,e+-]*", row[column]) for row in cells[1:])
        for column in range(len(header))
    ]

    def line(row: Sequence[str]) -> str:
        placed = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        return f"| {' | '.join(placed)} |"

    rule = [("-" * (w - 1) + ":") if r else "-" * w for w, r in zip(widths, numeric, strict=True)]
    return "\n".join([line(cells[0]), line(rule), *(line(row) for row in cells[1:])])


def write(name: str, text: str, page: pathlib.Path = PAGE) -> None:
    """Put the text in the place of that name; raises `ValueError` if the page has none."""
    before = page.read_text(encoding="utf-8")
    place = re.compile(
        rf"(?<=<!-- {re.escape(name)} -->\n).*?(?=<!-- /{re.escape(name)} -->)", re.S
    )
    if not place.search(before):
        raise ValueError(f"{page}: expected the lines <!-- {name} --> and <!-- /{name} -->")
    page.write_text(place.sub(lambda _: f"\n{text}\n\n", before), encoding="utf-8")
