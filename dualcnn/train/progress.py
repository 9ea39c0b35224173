"""What a training says: a bar while an epoch runs on a terminal, one line an epoch anywhere."""

from __future__ import annotations

import math
import sys
import time
from typing import Any, Protocol, TextIO

from .loop import Callback, TrainingState
from .metrics import Epoch

__all__ = ["Progress"]

PERIOD = 0.1
"""Seconds between two drawings of the bar."""

CELLS = 30
"""Characters that the bar is wide."""


class Progress(Callback):
    """Prints a line an epoch to `stream` (standard output), under a bar if that is a terminal.

    The bar is tqdm's where tqdm is installed.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._bar: _Bar | None = None

    def on_batch_end(self, state: TrainingState) -> None:
        if not self._stream.isatty():
            return
        if self._bar is None:
            title = f"epoch {state.epoch}/{state.epochs}"
            self._bar = _new_bar(title, state.batches, self._stream)
        self._bar.update()

    def on_epoch_end(self, state: TrainingState) -> None:
        self._close()
        self._stream.write(f"{describe(state.history[-1], state.epochs)}\n")
        self._stream.flush()

    def on_fit_end(self, state: TrainingState) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def describe(row: Epoch, epochs: int) -> str:
    """One epoch in one line."""
    place = f"epoch {row.epoch:{len(str(epochs))}}/{epochs}"
    return "  ".join([place, *row.measured(), f"{row.seconds:.1f} s"])


class _Bar(Protocol):
    def update(self) -> Any: ...

    def close(self) -> None: ...


def _new_bar(title: str, total: int | None, stream: TextIO) -> _Bar:
    try:
        from tqdm import tqdm
    except ImportError:
        return _PlainBar(title, total, stream)
    bar: _Bar = tqdm(
        desc=title, total=total, file=stream, leave=False, unit=" batches", mininterval=PERIOD
    )
    return bar


class _PlainBar:
    """A bar of plain characters on one line, which `close` clears."""

    def __init__(self, title: str, total: int | None, stream: TextIO) -> None:
        self._title = title
        self._total = total
        self._stream = stream
        self._count = 0
        self._drawn = -math.inf
        self._width = 0

    def update(self) -> None:
        self._count += 1
        now = time.monotonic()
        if now - self._drawn >= PERIOD:
            self._drawn = now
            self._write(self._text())

    def close(self) -> None:
        self._write("")
        self._stream.write("\r")
        self._stream.flush()

    def _text(self) -> str:
        if not self._total:
            return f"{self._title} {self._count} batches"
        full = CELLS * self._count // self._total
        return f"{self._title} [{'#' * full:.<{CELLS}}] {self._count}/{self._total}"

    def _write(self, text: str) -> None:
        # Spaces over what was there: not every terminal knows how to clear a line.
        self._stream.write(f"\r{text:{self._width}}")
        self._stream.flush()
        self._width = len(text)
