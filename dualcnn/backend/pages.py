"""Memory that is given back to the system page by page, while its addresses stay taken."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["give_up", "let_go"]

_NO_ACCESS = 0
"""PROT_NONE, which the module `mmap` does not name."""


def give_up(spans: Sequence[tuple[Any, int, int]]) -> None:
    """Let go of the whole pages between addresses, which a forked process got from its parent, in
    this process alone.

    Each pair comes with what keeps the memory there from being something else's.

    Parent and child have each page in common until one of them writes to it; from then on each has
    its own, the child one that nobody reads. A step writes to all weights, gradients and state of
    an optimizer: 131 MB of a ResNet-18's were there twice.

    Whoever touches these pages nevertheless ends by a segmentation fault, rather than to go on with
    zeros.
    """
    libc = ctypes.CDLL(None)
    for _, start, end in spans:
        # Where that is refused memory stays twice: no reason to do without the process.
        if let_go(start, end):
            first, size = _whole(start, end)
            libc.mprotect(ctypes.c_void_p(first), ctypes.c_size_t(size), _NO_ACCESS)


def let_go(start: int, end: int) -> bool:
    """Give the whole pages between two addresses back to the system, under Linux; what lies there
    from now on is unset. False where nothing was given back.
    """
    first, size = _whole(start, end)
    if size <= 0 or sys.platform != "linux":
        return False
    what = ctypes.c_void_p(first), ctypes.c_size_t(size)
    return bool(ctypes.CDLL(None).madvise(*what, mmap.MADV_DONTNEED) == 0)


def _whole(start: int, end: int) -> tuple[int, int]:
    """Where the first whole page begins, and the bytes of all of them."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    return first, end // mmap.PAGESIZE * mmap.PAGESIZE - first
