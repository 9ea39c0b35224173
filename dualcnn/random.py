"""Randomness that is the same on every device, under every version of NumPy.

A stream is named by `(seed, draw)`: every draw takes the next one, so two numbers are the whole
state and a run resumes from them. Words come from Philox 4x32-10 (`backend.random_bits`).
"""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

from . import backend
from .backend import Array, Backend

__all__ = [
    "Stream",
    "batch_stream",
    "get_state",
    "manual_seed",
    "next_stream",
    "normal",
    "permutation",
    "set_state",
    "uniform",
]


class Stream(NamedTuple):
    """One sequence of random words."""

    seed: int
    draw: int


_lock = threading.Lock()
_state = Stream(0, 0)
# Shuffles and batches draw from streams far above those that layers use: none depends on another.
_SHUFFLE = 1 << 63
_BATCH = 1 << 62
_EPOCHS, _STEPS, _LAYERS = 1 << 30, 1 << 24, 1 << 8


def manual_seed(seed: int) -> None:
    """Start the streams of initial weights and dropout anew from `seed`, 0 to 2**64 - 1."""
    if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise ValueError(f"expected a seed from 0 to 2**64 - 1, got {seed!r}")
    set_state(Stream(seed, 0))


def get_state() -> Stream:
    """The seed and how many streams were taken: all that a later run needs to go on from here."""
    return _state


def set_state(state: tuple[int, int]) -> None:
    """Go on from a state that `get_state` returned."""
    global _state
    with _lock:
        _state = Stream(*state)


def next_stream() -> Stream:
    """Take the next stream."""
    global _state
    with _lock:
        stream = _state
        _state = Stream(stream.seed, stream.draw + 1)
    return stream


def batch_stream(seed: int, epoch: int, step: int, layer: int = 0) -> Stream:
    """The stream of what is drawn for batch `step` of an epoch: for `layer`, one of several uses.

    Nothing else takes these streams, so what a batch gets depends on these four numbers alone.
    """
    bounds = {"epoch": (epoch, _EPOCHS), "step": (step, _STEPS), "layer": (layer, _LAYERS)}
    for name, (value, limit) in bounds.items():
        if not 0 <= value < limit:
            raise ValueError(f"expected {name} from 0 to {limit - 1}, got {value}")
    return Stream(seed, _BATCH + (epoch * _STEPS + step) * _LAYERS + layer)


def _unit(n: int, stream: Stream | None) -> Any:
    """`n` host doubles, evenly spread over the open interval (0, 1)."""
    host = backend.get("numpy")
    bits = backend.random_bits(host, n, *(stream or next_stream()))
    return (host.xp.astype(bits, host.dtype("float64")) + 0.5) * 2.0**-32


def _deliver(values: Any, shape: tuple[int, ...], dtype: Any, target: Any) -> Array:
    be = backend.current() if target is None else backend.get(target)
    return be.asarray(values.reshape(shape), dtype)


def uniform(
    shape: tuple[int, ...],
    low: float = 0.0,
    high: float = 1.0,
    *,
    stream: Stream | None = None,
    dtype: Any = "float32",
    backend: str | Backend | None = None,
) -> Array:
    """An array of that shape with values spread evenly over `low` to `high`, drawn on the host."""
    values = _unit(math.prod(shape), stream) * (high - low) + low
    return _deliver(values, shape, dtype, backend)


def normal(
    shape: tuple[int, ...],
    mean: float = 0.0,
    std: float = 1.0,
    *,
    stream: Stream | None = None,
    dtype: Any = "float32",
    backend: str | Backend | None = None,
) -> Array:
    """An array of normally distributed values, drawn on the host (Box, Muller, 1958)."""
    n = math.prod(shape)
    half = -(-n // 2)
    unit = _unit(2 * half, stream)
    xp = _host()
    radius = xp.sqrt(-2.0 * xp.log(unit[:half]))
    angle = 2.0 * math.pi * unit[half:]
    values = xp.concat([radius * xp.cos(angle), radius * xp.sin(angle)])[:n]
    return _deliver(values * std + mean, shape, dtype, backend)


def permutation(n: int, seed: int, epoch: int = 0) -> Any:
    """An order of `range(n)` for that epoch: a host array of int64."""
    host = backend.get("numpy")
    words = backend.random_bits(host, 2 * n, seed, _SHUFFLE + epoch).astype(host.dtype("uint64"))
    return host.xp.argsort((words[:n] << 32) | words[n:], stable=True).astype(host.dtype("int64"))


def _host() -> Any:
    return backend.get("numpy").xp
