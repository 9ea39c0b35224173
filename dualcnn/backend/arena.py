"""Memory for large arrays, used again as soon as nothing refers to it.

A training step allocates the same large arrays every time. Fresh memory costs a page fault for
each 4 KiB at its first touch; the arena hands out the block that an earlier array of the same size
left behind. Every array it gives out is a view that keeps its block alive, so a block whose only
reference is the arena's own is free: a result that somebody still holds is never overwritten.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np

__all__ = ["Arena"]

SMALLEST = 1 << 18
"""Below this many bytes the C library's own free lists serve as well, once they keep what is freed:
see `KEPT`."""

KEPT = 1 << 24
"""glibc starts by giving memory back to the system at 128 KiB, to fetch it again page by page: 850
page faults a training step of LeNet-5 at batch 64. After it has freed one block of this size it
keeps as much, and twice of it at the end of the heap (mallopt(3), M_MMAP_THRESHOLD). That step took
13.0 ms before and 10.9 after, at batch 16 6.3 and 5.0, at batch 1 1.7 and 1.2."""

IDLE_LIMIT = 1 << 29
"""Bytes of free blocks kept; beyond it all of them are given back."""

_ALIGNMENT = 64
# Reference counts say whether a block is free only where they are exact.
_EXACT = getattr(sys, "_is_gil_enabled", lambda: True)()


class _Block:
    """Memory and where in it a cache line starts."""

    __slots__ = ("memory", "offset")

    def __init__(self, nbytes: int) -> None:
        self.memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
        self.offset = -self.memory.ctypes.data % _ALIGNMENT

    @property
    def references(self) -> int:
        return sys.getrefcount(self.memory)

    @property
    def free(self) -> bool:
        return self.references == _UNUSED


_UNUSED = _Block(0).references


class Arena:
    """Blocks of memory by size."""

    def __init__(self) -> None:
        np.empty(KEPT, np.uint8)  # Never touched, so it costs 20 us and no memory.
        self._blocks: dict[int, list[_Block]] = {}
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array of unset values in C order."""
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < SMALLEST or not _EXACT:
            return np.empty(shape, dtype)
        with self._lock:
            block = self._take(nbytes)
            return np.ndarray(shape, dtype, block.memory, block.offset)

    def reset_lock(self) -> None:
        """Replace the lock in a forked child, where another thread may have left it held."""
        self._lock = threading.Lock()

    def _take(self, nbytes: int) -> _Block:
        for block in self._blocks.get(nbytes, ()):
            if block.free:
                return block
        if self._idle() > IDLE_LIMIT:
            self._drop()
        block = _Block(nbytes)
        self._blocks.setdefault(nbytes, []).append(block)
        return block

    def _idle(self) -> int:
        """Bytes in free blocks."""
        return sum(
            nbytes * sum(block.free for block in blocks) for nbytes, blocks in self._blocks.items()
        )

    def _drop(self) -> None:
        held = {n: [b for b in blocks if not b.free] for n, blocks in self._blocks.items()}
        self._blocks = {n: blocks for n, blocks in held.items() if blocks}

    def clear(self) -> None:
        """Give every free block back to the operating system."""
        with self._lock:
            self._drop()

    def memory(self) -> dict[str, int]:
        """Bytes held and, of these, bytes free."""
        with self._lock:
            held = sum(nbytes * len(blocks) for nbytes, blocks in self._blocks.items())
            return {"arena": held, "arena_free": self._idle()}
