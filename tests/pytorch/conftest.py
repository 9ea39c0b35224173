"""Tables of what was held to PyTorch: tests fill them, the end of the run shows them.

A test takes the fixture `record` and calls it with the name of a table and one row, its cells by
column:

    def test_conv2d(record):
        record("pytorch-ops", operator="conv2d", samples=30, passed=30)

The first cell names the row: a later call with the same first cell adds its other cells to that
row. Columns stand in the order in which they first came; a table belongs to one test file. With
`--write-proof` the tables go to the places of their names in docs/proof.md, but only from a run in
which every test passed and none of those files was left out in part.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import proof
import pytest

Tables = dict[str, dict[object, dict[str, object]]]
HERE = pathlib.Path(__file__).parent
_partial = pytest.StashKey[bool]()


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`record(table, **cells)`: a row of a table, or further cells of it."""

    def add(table: str, **cells: object) -> None:
        # A property of the test travels with its report, from another process too.
        request.node.user_properties.append(("table row", (table, cells)))

    return add


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE:
            item.config.stash[_partial] = True


def _is_whole(config: pytest.Config) -> bool:
    """Whether no test of this folder was left out of a file that ran."""
    option = config.option
    chosen = option.keyword or option.markexpr or option.deselect or "::" in " ".join(config.args)
    return not (chosen or config.stash.get(_partial, False))


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    tables = _tables(terminalreporter)
    if not tables:
        return
    whole = exitstatus == 0 and _is_whole(config)
    for name, rows in tables.items():
        header = list(dict.fromkeys(column for row in rows.values() for column in row))
        text = proof.table(header, ([row.get(c, "") for c in header] for row in rows.values()))
        terminalreporter.section(name)
        terminalreporter.write_line(text)
        if config.getoption("--write-proof") and whole:
            try:
                proof.write(name, text)
            except ValueError as error:
                terminalreporter.write_line(str(error), red=True)
    if config.getoption("--write-proof") and not whole:
        terminalreporter.write_line(
            "docs/proof.md keeps its tables: tests failed, or a part of them was left out", red=True
        )


def _tables(terminalreporter: Any) -> Tables:
    tables: Tables = {}
    files: dict[str, str] = {}
    for outcome in ("passed", "failed", "skipped", "xfailed", "xpassed"):
        for report in terminalreporter.getreports(outcome):
            for kind, value in getattr(report, "user_properties", ()):
                if kind != "table row":
                    continue
                table, cells = value
                file = report.nodeid.partition("::")[0]
                if files.setdefault(table, file) != file:
                    raise pytest.UsageError(f"table {table!r}: rows from {files[table]} and {file}")
                key = next(iter(cells.values()))
                tables.setdefault(table, {}).setdefault(key, {}).update(cells)
    return tables
