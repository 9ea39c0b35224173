"""Ways to do what the CuPy backend's primitives do, timed side by side.

Each question names the ways and the one in use; where another is faster, the backend should change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gpu_timing import Clock, Step, medians

import dualcnn
from dualcnn import ops
from dualcnn.backend import Backend, CupyBackend, contraction, philox
from dualcnn.backend.base import Backend as Plain

Ways = dict[str, Step]


class Question(NamedTuple):
    """What is decided, the ways to do it, and the one that the backend takes now."""

    name: str
    ways: Ways
    used: str


def ask(be: CupyBackend, share: float = 1.0, patience: float = 3.0) -> list[dict[str, Any]]:
    """Time every question; `share` makes the arrays smaller, for trials."""
    clock, rows = Clock(be), []
    for make in QUESTIONS:
        with dualcnn.use(be):
            try:
                question = make(be, share)
                ms = medians(question.ways, clock, repeats=7, patience=patience)
            except Exception as error:
                # One way that fails must not hide the answers to other questions.
                rows.append({"question": make.__name__, "failed": repr(error)[:300]})
                continue
        fastest = min(ms, key=ms.__getitem__)
        rows.append(
            {"question": question.name, "ms": ms, "used": question.used, "fastest": fastest}
        )
    return rows


def launch_costs(be: CupyBackend) -> dict[str, float]:
    """Host microseconds to queue one call of each kind."""
    clock = Clock(be)
    small = [be.asarray(np.ones((64, 64)), "float32") for _ in range(3)]
    a, b, out = small
    fused = be.fuse(_scaled_sum)
    calls: dict[str, Step] = {
        "empty": lambda: be.empty((64, 64), a.dtype),
        "assign": lambda: be.assign(out, a),
        "fuse": lambda: fused(a, b, 2.0, out=out),
        "matmul": lambda: be.matmul(a, b, out=out),
        "mc->c": lambda: be.contract("mc->c", a),
    }
    return {name: round(clock.issue_us(call), 2) for name, call in calls.items()}


def _scaled_sum(xp: Any, a: Any, b: Any, factor: float) -> Any:
    return a + b * factor


def _maps(be: Backend, share: float, *shape: int) -> Any:
    """Random channels-last maps; the batch is scaled by `share`."""
    batch = max(1, round(shape[0] * share))
    draw = np.random.default_rng(0)
    return be.asarray(draw.standard_normal((batch, *shape[1:]), dtype=np.float32))


def columns(be: CupyBackend, share: float) -> Question:
    """How columns of a 3x3 convolution are made."""
    x = _maps(be, share, 64, 34, 34, 64)
    view = be.windows(x, (3, 3), (1, 1), (1, 1))
    rows = be.empty(tuple(view.shape), x.dtype)
    order = (3, 4, 5, 0, 1, 2)
    by_tap = be.empty(tuple(view.shape[i] for i in order), x.dtype)

    def taps() -> None:
        for i in range(3):
            for j in range(3):
                be.assign(rows[:, :, :, i, j], x[:, i : i + 32, j : j + 32])

    return Question(
        "columns of 3x3, 64 channels",
        {
            "row by row": lambda: be.assign(rows, view),
            "transposed": lambda: be.assign(by_tap, be.permute(view, order)),
            "a copy a tap": taps,
        },
        "row by row",
    )


def few_channels(be: CupyBackend, share: float) -> Question:
    """The same of 3 channels, which NumPy makes transposed."""
    x = _maps(be, share, 256, 34, 34, 3)
    view = be.windows(x, (3, 3), (1, 1), (1, 1))
    order = (3, 4, 5, 0, 1, 2)
    rows = be.empty(tuple(view.shape), x.dtype)
    by_tap = be.empty(tuple(view.shape[i] for i in order), x.dtype)
    return Question(
        "columns of 3x3, 3 channels",
        {
            "row by row": lambda: be.assign(rows, view),
            "transposed": lambda: be.assign(by_tap, be.permute(view, order)),
        },
        "transposed",
    )


def channel_sums(be: CupyBackend, share: float) -> Question:
    """A sum a channel."""
    x = be.reshape(_maps(be, share, 256, 32, 32, 64), (-1, 64))
    ones = be.full((1, x.shape[0]), 1.0, x.dtype)
    ways: Ways = {
        "one stage": lambda: be.cp.sum(x, axis=0),
        "product with ones": lambda: be.cp.matmul(ones, x),
    }
    for rows in (64, 256, 1024):
        ways[f"stages of {rows}"] = _staged(be, rows, "mc->c", x)
    return Question("sum a channel", ways, f"stages of {contraction.STAGE_ROWS}")


def channel_products(be: CupyBackend, share: float) -> Question:
    """A sum of products a channel."""
    x = be.reshape(_maps(be, share, 256, 32, 32, 64), (-1, 64))
    y = be.copy(x)
    ones = be.full((1, x.shape[0]), 1.0, x.dtype)
    ways: Ways = {
        "einsum": lambda: be.cp.einsum("mc,mc->c", x, y),
        "product with ones": lambda: be.cp.matmul(ones, x * y),
    }
    for rows in (64, 256, 1024):
        ways[f"stages of {rows}"] = _staged(be, rows, "mc,mc->c", x, y)
    return Question("sum of products a channel", ways, f"stages of {contraction.STAGE_ROWS}")


def _staged(be: CupyBackend, rows: int, subscripts: str, *operands: Any) -> Step:
    def run() -> None:
        before = contraction.STAGE_ROWS
        contraction.STAGE_ROWS = rows
        try:
            be.contract(subscripts, *operands)
        finally:
            contraction.STAGE_ROWS = before

    return run


def folding(be: CupyBackend, share: float) -> Question:
    """Columns of a strided convolution back to pixels."""
    cols = be.reshape(_maps(be, share, 64, 16, 16, 3 * 3 * 64), (-1, 16, 16, 3, 3, 64))
    given = ((33, 33), (2, 2), (1, 1))
    return Question(
        "fold of 3x3, stride 2",
        {
            "gather": lambda: be.fold(cols, *given),
            "a sum a tap": lambda: Plain.fold(be, cols, *given),
        },
        "gather",
    )


def padding(be: CupyBackend, share: float) -> Question:
    """A frame of zeros."""
    x = _maps(be, share, 64, 32, 32, 64)
    widths = ((0, 0), (1, 1), (1, 1), (0, 0))
    out = be.empty((x.shape[0], 34, 34, 64), x.dtype)
    return Question(
        "padding",
        {
            "fill and copy": lambda: be.pad(x, widths, out=out),
            "borders and copy": lambda: Plain.pad(be, x, widths, out=out),
        },
        "fill and copy",
    )


def accumulation(be: CupyBackend, share: float) -> Question:
    """A weight gradient added to what is there."""
    rows = be.reshape(_maps(be, share, 64, 32, 32, 64), (-1, 64))
    cols = be.reshape(_maps(be, share, 64, 32, 32, 576), (-1, 576))
    out = be.zeros((64, 576), rows.dtype)
    g = be.permute(rows, (1, 0))
    return Question(
        "product added to an array",
        {
            "by cuBLAS": lambda: be.matmul(g, cols, out=out, accumulate=True),
            "product, then a sum": lambda: be.cp.add(out, be.cp.matmul(g, cols), out=out),
        },
        "by cuBLAS",
    )


def random_words(be: CupyBackend, share: float) -> Question:
    """The words of a dropout."""
    n = max(4, round((1 << 22) * share))
    return Question(
        "random words",
        {
            "kernel": lambda: be.random_bits(n, 1, 2),
            "array operations": lambda: philox.stream_words(be, n, 1, 2),
        },
        "kernel",
    )


CONVOLUTIONS = (
    # batch, size, channels, outputs
    (256, 32, 64, 64),
    (256, 16, 128, 128),
    (256, 8, 256, 256),
    (128, 26, 32, 64),
)


def convolution(shape: tuple[int, ...]) -> Callable[[CupyBackend, float], Question]:
    """Which algorithm a 3x3 convolution should run by, forward and backward."""
    batch, size, channels, outputs = shape

    def make(be: CupyBackend, share: float) -> Question:
        x = be.permute(_maps(be, share, batch, size, size, channels), (0, 3, 1, 2))
        w = be.permute(_maps(be, 1.0, outputs, 3, 3, channels), (0, 3, 1, 2))

        def run(algorithm: str) -> Step:
            def both() -> None:
                y, vjp = ops.conv2d(x, w, padding=1, algorithm=algorithm)
                vjp(y)

            return both

        names = ("im2col", "winograd2", "winograd4")
        ways = {name: run(name) for name in names}
        return Question(f"3x3, {batch} x {size}x{size}, {channels} to {outputs}", ways, "im2col")

    make.__name__ = f"convolution {shape}"
    return make


def depthwise(be: CupyBackend, share: float) -> Question:
    """One kernel a channel."""
    x = be.permute(_maps(be, share, 128, 32, 32, 64), (0, 3, 1, 2))
    w = be.permute(_maps(be, 1.0, 64, 3, 3, 1), (0, 3, 1, 2))

    def run(algorithm: str) -> Step:
        def both() -> None:
            y, vjp = ops.conv2d(x, w, padding=1, groups=64, algorithm=algorithm)
            vjp(y)

        return both

    ways = {name: run(name) for name in ("im2col", "depthwise")}
    return Question("depthwise 3x3, 128 x 32x32, 64 channels", ways, "im2col")


QUESTIONS: tuple[Callable[[CupyBackend, float], Question], ...] = (
    columns,
    few_channels,
    channel_sums,
    channel_products,
    folding,
    padding,
    accumulation,
    random_words,
    depthwise,
    *(convolution(shape) for shape in CONVOLUTIONS),
)
