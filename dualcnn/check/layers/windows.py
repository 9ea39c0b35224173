"""Windows of an image, and the mistakes that convolutions and poolings share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ..subject import Mistake, Right, Values

__all__ = ["masked", "not_times_stride", "overwritten", "pair", "skipped_gradients", "skipped_y"]


def pair(value: Any) -> tuple[int, int]:
    """A number or a pair as (height, width)."""
    return value if isinstance(value, tuple) else (value, value)


def masked(gy: Values, *keep: Any) -> Values:
    """A copy of gy with 0 everywhere but there."""
    only = np.zeros_like(gy)
    only[keep] = gy[keep]
    return only


# `=` for `+=`.


def overwritten(kernel: Callable[..., Any], by_offset: bool = False) -> Callable[..., Values]:
    """A gradient of x whose windows are written one over the other, where they should be added.

    `kernel(*inputs, **options)` is the kernel size. `by_offset` loops over the numbers of the
    kernel, as col2im does, and writes one number of every window at a time.
    """

    def wrong(right: Right, gy: Values, x: Values, *rest: Any, **options: Any) -> Values:
        rows, columns = pair(kernel(x, *rest, **options))
        down, across = pair(options["stride"])
        top, left = pair(options["padding"])
        skip, jump = pair(options.get("dilation", 1))
        windows = [(i, j) for i in range(gy.shape[2]) for j in range(gy.shape[3])]
        shares = {
            (i, j): right(masked(gy, slice(None), slice(None), i, j), x, *rest, **options)
            for i, j in windows
        }
        offsets = [(a, b) for a in range(rows) for b in range(columns)]
        order: Iterator[tuple[tuple[int, int], tuple[int, int]]]
        if by_offset:
            order = ((window, offset) for offset in offsets for window in windows)
        else:
            order = ((window, offset) for window in windows for offset in offsets)
        gx = np.zeros_like(x)
        for (i, j), (a, b) in order:
            row, column = i * down + a * skip - top, j * across + b * jump - left
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                gx[:, :, row, column] = shares[i, j][:, :, row, column]
        return gx

    return wrong


# Windows that start at (i, j) instead of (i * stride, j * stride).


def _start_of_y(right: Right, x: Values, *rest: Any, **options: Any) -> Values:
    height, width = right(x, *rest, **options).shape[2:]
    return right(x, *rest, **{**options, "stride": 1})[:, :, :height, :width]


def _start_of_gradient(forward: Any) -> Any:
    def wrong(right: Right, gy: Values, x: Values, *rest: Any, **options: Any) -> Values:
        near = {**options, "stride": 1}
        wide = np.zeros_like(np.asarray(forward(x, *rest, **near)[0]))
        wide[:, :, : gy.shape[2], : gy.shape[3]] = gy
        return right(wide, x, *rest, **near)

    return wrong


def not_times_stride(op: Any, gradients: Iterable[str]) -> Iterable[Mistake]:
    """The start of a window that wasn't multiplied by the stride."""
    for output in ("y", *gradients):
        yield Mistake(
            output,
            "start not times the stride",
            "ours with windows that start at [i, j]",
            "Window (i, j) starts at x[i * stride, j * stride].",
            _start_of_y if output == "y" else _start_of_gradient(op),
        )


# Rows, columns, samples that a loop leaves out.

ROUND = "A loop ends too early: range(n) runs up to n - 1 by itself."


def _blank(*there: Any) -> Any:
    """Y with zeros in those places."""

    def wrong(right: Right, *inputs: Any, **options: Any) -> Values:
        y = np.array(right(*inputs, **options))
        for place in there:
            y[place] = 0
        return y

    return wrong


def _without(*there: Any) -> Any:
    """The gradient as if gy were zero in those places."""

    def wrong(right: Right, gy: Values, *inputs: Any, **options: Any) -> Values:
        less = np.array(gy)
        for place in there:
            less[place] = 0
        return right(less, *inputs, **options)

    return wrong


ROW, COLUMN = (..., -1, slice(None)), (..., -1)
Told = tuple[str, str, tuple[Any, ...]]
EDGES: tuple[Told, ...] = (
    ("last row and column skipped", "the last row and column", (ROW, COLUMN)),
    ("last row skipped", "the last row", (ROW,)),
    ("last column skipped", "the last column", (COLUMN,)),
)
SAMPLES: tuple[Told, ...] = (
    ("last sample skipped", "the last sample", (-1,)),
    ("first sample skipped", "the first sample", (0,)),
)
BATCH = "The loop over the batch leaves it out: for n in range(len(x))."


def _square(right: Right, *inputs: Any, **options: Any) -> Values:
    y = right(*inputs, **options)
    return y[..., : y.shape[2]]


def skipped_y(images: bool = True) -> Iterable[Mistake]:
    """A forward that leaves zeros behind."""
    for name, told, there in EDGES if images else ():
        yield Mistake("y", name, f"ours, but with zeros in {told}", ROUND, _blank(*there))
    if images:
        yield Mistake(
            "y",
            "one row and column short",
            "ours without the last row and column",
            "y has (H - KH) // stride + 1 rows: the + 1 is missing.",
            lambda right, *x, **o: right(*x, **o)[:, :, :-1, :-1],
        )
        yield Mistake(
            "y",
            "square images assumed",
            "ours with no more columns than rows",
            "The number of columns comes from the height. Take height and width apart, or refuse "
            "what isn't square.",
            _square,
        )
    for name, told, there in SAMPLES:
        yield Mistake("y", name, f"ours, but with zeros for {told}", BATCH, _blank(*there))


def skipped_gradients(outputs: Iterable[str], images: bool = True) -> Iterable[Mistake]:
    """A backward that leaves some of gy out."""
    for output in outputs:
        for name, told, there in EDGES if images else ():
            yield Mistake(output, name, f"ours without {told} of gy", ROUND, _without(*there))
        for name, told, there in SAMPLES:
            yield Mistake(output, name, f"ours without {told} of gy", BATCH, _without(*there))
