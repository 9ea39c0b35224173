"""What a training prints, on a terminal and elsewhere."""

from __future__ import annotations

import io
import math
import sys

import pytest

from dualcnn.train import Epoch, History, Progress, TrainingState

ROWS = [
    Epoch(1, 0.51234, 0.8765, 0.25, 0.925, 0.1, 2.04),
    Epoch(2, 0.25, math.nan, None, None, 0.1, 61.0),
]
LINES = [
    "epoch  1/10  loss 0.5123  accuracy 87.65 %  validation loss 0.2500  accuracy 92.50 %  2.0 s",
    "epoch  2/10  loss 0.2500  61.0 s",
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(stream: io.StringIO, batches: int | None = 4, rows: list[Epoch] = ROWS) -> str:
    progress = Progress(stream)
    state = TrainingState(None, None, 10, batches)  # type: ignore[arg-type]
    progress.on_fit_begin(state)
    for row in rows:
        state.epoch = row.epoch
        for batch in range(1, 5):
            state.batch = batch
            progress.on_batch_end(state)
        state.history = History([*state.history, row])
        progress.on_epoch_end(state)
    progress.on_fit_end(state)
    return stream.getvalue()


def last_seen(written: str) -> list[str]:
    """The lines that a terminal shows in the end: a return starts the line again."""
    shown = []
    for line in written.split("\n"):
        cells: list[str] = []
        for piece in line.split("\r"):
            cells[: len(piece)] = piece
        shown.append("".join(cells).rstrip())
    return shown


def test_plain_lines_elsewhere():
    assert show(io.StringIO()) == "".join(f"{line}\n" for line in LINES)


def test_output_goes_where_standard_output_goes(capsys):
    progress = Progress()
    state = TrainingState(None, None, 10, 4, 1, 4, History(ROWS[:1]))  # type: ignore[arg-type]
    progress.on_epoch_end(state)
    assert capsys.readouterr().out == f"{LINES[0]}\n"


@pytest.mark.parametrize("batches", [4, None])
def test_own_bar(monkeypatch, batches):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr("dualcnn.train.progress.PERIOD", 0.0)
    written = show(Terminal(), batches)
    assert ("epoch 1/10 [" + "#" * 15 + "." * 15 + "] 2/4" in written) == (batches == 4)
    assert ("epoch 1/10 2 batches" in written) == (batches is None)
    assert last_seen(written) == [*LINES, ""]


def test_own_bar_draws_rarely(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr("dualcnn.train.progress.PERIOD", 3600.0)
    assert show(Terminal()).count("[") == len(ROWS)


def test_bar_of_tqdm():
    pytest.importorskip("tqdm", reason="tqdm isn't installed")
    written = show(Terminal())
    assert "epoch 1/10:" in written
    shown = last_seen(written.replace("\x1b[A", ""))
    assert [line for line in shown if line] == LINES


def test_the_bar_goes_when_training_stops(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    stream = Terminal()
    progress = Progress(stream)
    state = TrainingState(None, None, 10, 4, 1, 1)  # type: ignore[arg-type]
    progress.on_batch_end(state)
    progress.on_fit_end(state)
    assert last_seen(stream.getvalue()) == [""]
