"""Batches that are sent to a CUDA device while it works on the ones before.

A copy runs beside the kernels only from pinned memory and on a stream of its own. There are two
places, each a pinned buffer and a device buffer, that batches take in turn. Two events of each keep
the streams in order: `sent`, after which the batch may be read on the device and the pinned buffer
be filled again, and `used`, after which the device buffer may be overwritten.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from . import counting
from .base import Array

__all__ = ["upload"]


class _Place:
    """A pinned and a device buffer for each source, and the events that order their use."""

    def __init__(self, be: Any, sources: Sequence[Any], batch_size: int) -> None:
        cp = be.cp
        shapes = [(batch_size, *source.shape[1:]) for source in sources]
        dtypes = [source.dtype for source in sources]
        self._pinned = [_pinned(cp, s, d) for s, d in zip(shapes, dtypes, strict=True)]
        self._device = [be.empty(s, d) for s, d in zip(shapes, dtypes, strict=True)]
        self._sent = cp.cuda.Event(disable_timing=True)
        self._used = cp.cuda.Event(disable_timing=True)
        self._rows = 0
        # The pool may have given out memory that kernels of this stream still work on.
        self._used.record(cp.cuda.get_current_stream())

    def send(self, sources: Sequence[Any], index: Any, stream: Any) -> None:
        """Copy these rows into the pinned buffers and from there, on `stream`, to the device."""
        self.wait()
        stream.wait_event(self._used)
        for source, pinned, device in zip(sources, self._pinned, self._device, strict=True):
            if isinstance(index, slice) or not source.flags.c_contiguous:
                # Of an array that isn't contiguous `take` would first make a copy, all of it.
                rows = source[index]
                self._rows = len(rows)
                np.copyto(pinned[: self._rows], rows)
            else:
                self._rows = len(index)
                # The indices are good; to check them NumPy would gather into memory of its own.
                np.take(source, index, axis=0, out=pinned[: self._rows], mode="clip")
            device[: self._rows].set(pinned[: self._rows], stream)
        self._sent.record(stream)

    def arrays(self, stream: Any) -> list[Array]:
        """The rows on the device, which work on `stream` may read from now on."""
        stream.wait_event(self._sent)
        return [device[: self._rows] for device in self._device]

    def release(self, stream: Any) -> None:
        """What is queued on `stream` by now is all that reads the rows."""
        self._used.record(stream)

    def wait(self) -> None:
        """Make the host wait until the pinned buffers are read."""
        _wait(self._sent)


def _wait(work: Any) -> None:
    """Wait for an event or a stream; what is done already does not count as a wait."""
    if not work.done:
        counting.note("wait")
    work.synchronize()


def _pinned(cp: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """A NumPy array in memory that the device reads by itself (`cupyx.empty_pinned`)."""
    memory = cp.cuda.alloc_pinned_memory(max(1, math.prod(shape) * dtype.itemsize))
    return np.ndarray(shape, dtype, memory)


def upload(
    be: Any, sources: Sequence[Any], batch_size: int, wanted: Iterable[Any]
) -> Iterator[list[Array]]:
    """`Backend.upload` for CuPy: see above."""
    cuda = be.cp.cuda
    indices = iter(wanted)
    with cuda.Device(be.index):
        stream = cuda.Stream(non_blocking=True)
        places = [_Place(be, sources, batch_size) for _ in range(2)]
    current, following = places

    def send(place: _Place) -> bool:
        for index in indices:
            with cuda.Device(be.index):
                place.send(sources, index, stream)
            return True
        return False

    try:
        more = send(current)
        while more:
            more = send(following)
            reader = cuda.get_current_stream()
            yield current.arrays(reader)
            current.release(reader)
            current, following = following, current
    finally:
        # A pass that is given up leaves a batch under way: its memory must not be given out yet.
        _wait(stream)
