"""Memory that a forked process got from its parent and does not need."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from typing import Any

__all__ = ["give_up"]

_NO_ACCESS = 0
"""PROT_NONE, which the module `mmap` does not name."""


def give_up(spans: Sequence[tuple[Any, int, int]]) -> None:
    """Let go of the whole pages between addresses, in this process alone, under Linux.

    Each pair comes with what keeps the memory there from being something else's.

    Parent and child have each page in common until one of them writes to it; from then on each has
    its own, the child one that nobody reads. A step writes to all weights, gradients and state of
    an optimizer: 131 MB of a ResNet-18's were there twice.

    Whoever touches these pages nevertheless ends by a segmentation fault, rather than to go on with
    zeros.
    """
    libc = ctypes.CDLL(None)
    for _, start, end in spans:
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        size = end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if size > 0:
            what = ctypes.c_void_p(first), ctypes.c_size_t(size)
            # Where that is refused memory stays twice: no reason to do without the process.
            if libc.madvise(*what, mmap.MADV_DONTNEED) == 0:
                libc.mprotect(*what, _NO_ACCESS)
