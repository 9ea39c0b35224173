"""Memory for large arrays, used again as soon as nothing refers to it.

A training step allocates the same large arrays every time, and fresh memory costs a page fault for
each 4 KiB at its first touch. The arena takes memory in slabs and cuts blocks from them; blocks
that lie side by side and are free become one again, so that sizes need not match. (Blocks of exact
sizes held 425 MB after a step of a VGG, most of them free and too small for the next request.)

How a block is known to be free: the array that is given out is the only one that lies on the slab
itself. NumPy lets a view refer to the array at the end of its chain of bases, but stops before a
base of another type than the view's own, and slabs are of a type of their own. So whatever is made
from the array (views of views, other dtypes, `as_strided`, DLPack, buffers) keeps that very array
alive, and its weak reference says when nothing is left.
"""

from __future__ import annotations

import math
import mmap
import sys
import threading
import weakref
from bisect import bisect_left, insort
from collections import deque
from typing import Any

import numpy as np

from .pages import let_go

__all__ = ["Arena"]

SMALLEST = 1 << 18
"""Below this many bytes the C library's own free lists serve as well, once they keep what is freed:
see `KEPT`."""

KEPT = 1 << 24
"""glibc starts by giving memory back to the system at 128 KiB, to fetch it again page by page: 850
page faults a training step of LeNet-5 at batch 64. After it has freed one block of this size it
keeps as much, and twice of it at the end of the heap (mallopt(3), M_MMAP_THRESHOLD). That step took
13.0 ms before and 10.9 after, at batch 16 6.3 and 5.0, at batch 1 1.7 and 1.2."""

SLAB_BYTES = 1 << 26
"""What a slab holds, unless one request needs more. Pages never touched cost nothing."""

IDLE_LIMIT = 1 << 29
"""Bytes of free blocks kept; beyond it slabs that nobody uses are given back, when a request fits
in no free block or when they were not needed for long."""

PATIENCE = 1 << 12
"""Allocations, some tens of training steps, after which an unused slab may be given back."""

_ALIGNMENT = 64
# Elsewhere threads may free an array while its weak reference is taken; that was never tried.
_EXACT = getattr(sys, "_is_gil_enabled", lambda: True)()


class _Memory(np.ndarray[Any, Any]):
    """The bytes of a slab, of a type that nothing else has: see above."""

    def __array_finalize__(self, source: Any) -> None:
        if source is not None:
            raise TypeError("the arena's memory is seen through the arrays it gives out alone")


class _Slab:
    """Memory, of which the addresses from `start` to `top` have been in use."""

    __slots__ = ("address", "end", "memory", "start", "top", "used")

    def __init__(self, nbytes: int, shared: bool) -> None:
        size = nbytes + 2 * _ALIGNMENT
        self.memory = _Memory((size,), np.uint8, mmap.mmap(-1, size) if shared else None)
        self.address = self.memory.ctypes.data
        # A gap before the first block: those of two slabs never touch, and never become one.
        self.start = self.address + _ALIGNMENT - self.address % _ALIGNMENT
        self.end = self.start + nbytes
        self.top = self.start
        self.used = 0


class _Lease(weakref.ref[Any]):
    """Notices the end of the array in a block."""

    __slots__ = ("end", "slab", "start")
    slab: _Slab
    start: int
    end: int


class Arena:
    """Slabs, and the free blocks in them by address and by size.

    Arrays of fewer than `smallest` bytes are the C library's. With `shared` none is: processes that
    are forked later see what is written to slabs, as their parent sees what these write.
    """

    def __init__(self, shared: bool = False, smallest: int = SMALLEST) -> None:
        self.shared = shared
        self.smallest = 0 if shared else smallest
        np.empty(KEPT, np.uint8)  # Never touched, so it costs 20 us and no memory.
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Start anew in a forked child: another thread may have held the lock, and fresh pages cost
        less than those shared with the parent, which are copied when written to.
        """
        self._lock = threading.RLock()
        self._changing = False
        self._forget()

    def _forget(self) -> None:
        """Know of no slab: each lives on as long as arrays in it do."""
        self._slabs: list[_Slab] = []
        self._leases: dict[int, _Lease] = {}
        # Arrays end on any thread, at any moment, even while the lists change: a deque's `append`
        # is all that happens then.
        self._ended: deque[_Lease] = deque()
        # Free blocks: their ends and slabs by start, their starts by end, and sorted by size.
        self._starts: dict[int, tuple[int, _Slab]] = {}
        self._ends: dict[int, int] = {}
        self._sizes: list[tuple[int, int]] = []
        self._count = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array of unset values in C order; 3 to 5 us with 1000 blocks in use."""
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < self.smallest or dtype.hasobject or not _EXACT:
            return np.empty(shape, dtype)
        with self._lock:
            # True where a finalizer or a signal handler calls in the middle of a change.
            if self._changing:
                return np.empty(shape, dtype)
            self._changing = True
            try:
                # No block is of 0 bytes: it would begin where another one does.
                return self._cut(shape, dtype, max(1, -(-nbytes // _ALIGNMENT)) * _ALIGNMENT)
            except BaseException:
                # Ctrl-C, or no memory: half changed lists must not be used.
                self._forget()
                raise
            finally:
                self._changing = False

    def holds(self, address: int) -> bool:
        """Whether memory at an address belongs to one of the slabs."""
        return any(slab.start <= address < slab.end for slab in self._slabs)

    def spans(self) -> list[tuple[Any, int, int]]:
        """The slabs, each kept as long as it is known here, and the addresses between which arrays
        lie.
        """
        with self._lock:
            return [(slab.memory, slab.start, slab.top) for slab in self._slabs]

    def alias(self, x: Any) -> Any:
        """The elements of `x`, which lies here, as an array that does not keep their memory in use:
        once nothing but such arrays refers to it, they see what comes there next.
        """
        address = x.ctypes.data
        slab = next(slab for slab in self._slabs if slab.start <= address < slab.end)
        alias = np.ndarray(x.shape, x.dtype, slab.memory, address - slab.address, x.strides)
        alias.flags.writeable = x.flags.writeable
        return alias

    def clear(self) -> None:
        """Give slabs in which no array lies back to the operating system, and the free end of each
        other slab.
        """
        with self._lock:
            if self._changing:
                return
            self._changing = True
            try:
                self._gather()
                self._drop(self._count + 1, 0)
                for slab in self._slabs:
                    self._lower(slab)
            except BaseException:
                # As in `empty`.
                self._forget()
                raise
            finally:
                self._changing = False

    def memory(self) -> dict[str, int]:
        """Bytes held and, of these, bytes free."""
        with self._lock:
            if not self._changing:
                self._gather()
            return {"arena": sum(s.top - s.start for s in self._slabs), "arena_free": self._idle()}

    def _cut(self, shape: tuple[int, ...], dtype: Any, size: int) -> Any:
        self._gather()
        slab, start = self._take(size)
        array = np.ndarray(shape, dtype, slab.memory, start - slab.address)
        lease = _Lease(array, self._ended.append)
        lease.slab, lease.start, lease.end = slab, start, start + size
        self._leases[start] = lease
        return array

    def _idle(self) -> int:
        """Bytes in free blocks."""
        return sum(size for size, _ in self._sizes)

    def _gather(self) -> None:
        """Take back the blocks whose arrays have ended."""
        while self._ended:
            lease = self._ended.popleft()
            start, end, slab = lease.start, lease.end, lease.slab
            del self._leases[start]
            slab.used = self._count
            if start in self._ends:
                start = self._remove(self._ends[start])
            if end in self._starts:
                after, end = end, self._starts[end][0]
                self._remove(after)
            self._add(start, end, slab)

    def _add(self, start: int, end: int, slab: _Slab) -> None:
        """List a free block."""
        self._starts[start] = end, slab
        self._ends[end] = start
        insort(self._sizes, (end - start, start))

    def _remove(self, start: int) -> int:
        """Take a free block off the lists."""
        end, _ = self._starts.pop(start)
        del self._ends[end]
        del self._sizes[bisect_left(self._sizes, (end - start, start))]
        return start

    def _take(self, size: int) -> tuple[_Slab, int]:
        """A slab and an address in it: of the smallest free block that serves, else of memory that
        was never touched.
        """
        self._count += 1
        if self._count % PATIENCE == 0 and self._idle() > IDLE_LIMIT:
            self._drop(self._count - PATIENCE, IDLE_LIMIT)
        at = bisect_left(self._sizes, (size, 0))
        if at < len(self._sizes):
            start = self._sizes[at][1]
            end, slab = self._starts[start]
            self._remove(start)
            if end - start > size:
                self._add(start + size, end, slab)
            return slab, start
        for slab in self._slabs:
            # The last free block grows by what it lacks.
            start = self._ends.get(slab.top, slab.top)
            if start + size <= slab.end:
                if start < slab.top:
                    self._remove(start)
                slab.top = start + size
                return slab, start
        if self._idle() > IDLE_LIMIT:
            self._drop(self._count, IDLE_LIMIT)
        slab = _Slab(max(size, SLAB_BYTES), self.shared)
        slab.top += size
        self._slabs.append(slab)
        return slab, slab.start

    def _drop(self, before: int, keep: int) -> None:
        """Give back slabs without a block in use, those unused for longest first, until only `keep`
        bytes are free; none that was in use since the allocation `before`.
        """
        for slab in sorted(self._slabs, key=lambda slab: slab.used):
            if slab.used >= before or self._idle() <= keep:
                return
            if self._starts.get(slab.start, (0, slab))[0] == slab.top:
                self._remove(slab.start)
                self._slabs.remove(slab)

    def _lower(self, slab: _Slab) -> None:
        """Make the free end of a slab memory that was never touched, where that can be done."""
        start = self._ends.get(slab.top)
        # Pages that processes have in common stay as long as one of them has the slab.
        if start is not None and not self.shared and let_go(start, slab.top):
            self._remove(start)
            slab.top = start
