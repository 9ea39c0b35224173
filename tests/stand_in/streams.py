"""Streams and events of the stand-in.

The null stream works at once, as all of the stand-in does. What is queued on another stream is left
undone until somebody waits for it: a copy that nobody waited for is not there yet. `log` holds what
was asked for, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np

log: list[tuple[Any, ...]] = []
"""("copy", stream, address), ("record", event, stream), ("wait", stream, event)."""

pinned: set[int] = set()
"""Addresses of pinned memory."""


class Stream:
    """Work in order: of the null stream done at once, of others when it is waited for."""

    null: Stream
    ptr = 0

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self._at_once = null
        self._queue: list[Callable[[], None]] = []
        self._finished = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def use(self) -> Self:
        return self

    def enqueue(self, work: Callable[[], None]) -> None:
        """Do `work` after what was asked for before."""
        self._queue.append(work)
        if self._at_once:
            self.finish(len(self._queue))

    def finish(self, count: int) -> None:
        """Do the first `count` pieces of work, as far as they are not done."""
        while self._finished < count:
            work = self._queue[self._finished]
            self._finished += 1
            work()

    @property
    def asked(self) -> int:
        """Pieces of work asked for so far."""
        return len(self._queue)

    @property
    def done(self) -> bool:
        return self._finished == len(self._queue)

    def synchronize(self) -> None:
        self.finish(len(self._queue))

    def wait_event(self, event: Event) -> None:
        log.append(("wait", self, event))
        self.enqueue(event.mark())


Stream.null = Stream(null=True)


class Event:
    """A place in the work of a stream; at first one that is reached already."""

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        self._stream = Stream.null
        self._count = 0

    def record(self, stream: Stream | None = None) -> None:
        self._stream = stream or Stream.null
        self._count = self._stream.asked
        log.append(("record", self, self._stream))

    def mark(self) -> Callable[[], None]:
        """What brings the stream to where it was recorded by now: a later record is another."""
        stream, count = self._stream, self._count
        return lambda: stream.finish(count)

    @property
    def done(self) -> bool:
        return self._stream._finished >= self._count

    def synchronize(self) -> None:
        self.mark()()


def alloc_pinned_memory(size: int) -> Any:
    memory = np.full(size, 0xA5, np.uint8)
    pinned.add(memory.ctypes.data)
    return memory


def copy(target: np.ndarray[Any, Any], source: np.ndarray[Any, Any], stream: Stream | None) -> None:
    """A copy to the device on `stream`, which reads `source` when its turn comes."""
    chosen = stream or Stream.null
    if chosen is not Stream.null and source.ctypes.data not in pinned:
        raise RuntimeError("a copy from memory that isn't pinned waits: it is not asynchronous")
    log.append(("copy", chosen, target.ctypes.data))

    def work() -> None:
        target[...] = source

    chosen.enqueue(work)
