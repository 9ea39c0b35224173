"""One BLAS thread while the worker pool runs, and the caller's own setting afterwards.

BLAS thread counts belong to the process, so the limit is counted: the first holder saves what was
set, the last one puts it back. Two workers with one BLAS thread each beat one product with two
threads (36 ms against 50 for an im2col convolution of 64 maps of 64x32x32 on two cores), and two
workers with two threads each lose to both.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["has_small_kernels", "single_threaded", "thread_counts"]

WITH_SMALL_KERNELS = {"skylakex", "cooperlake", "sapphirerapids"}
"""OpenBLAS's names of the machines for which it multiplies small matrices without packing them:
those with AVX-512, whoever made them."""

_lock = threading.Lock()
_holders = 0
_saved: list[int] = []


@cache
def _libraries() -> list[Any]:
    """The controllers of the process's BLAS libraries; to look for them takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    controller = ThreadpoolController().select(user_api="blas")
    return list(controller.lib_controllers)


@cache
def has_small_kernels() -> bool:
    """Whether small products are multiplied as their operands lie in memory."""
    found = (getattr(library, "architecture", None) for library in _libraries())
    return any(str(name).lower() in WITH_SMALL_KERNELS for name in found)


def thread_counts() -> list[int]:
    """How many threads each BLAS library of the process uses now."""
    return [library.get_num_threads() for library in _libraries()]


@contextmanager
def single_threaded() -> Iterator[None]:
    """Hold every BLAS library at one thread within the block."""
    global _holders, _saved
    with _lock:
        if _holders == 0:
            _saved = thread_counts()
            _set([1] * len(_saved))
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0:
                _set(_saved)


def _set(counts: list[int]) -> None:
    for library, count in zip(_libraries(), counts, strict=True):
        library.set_num_threads(count)


def _after_fork() -> None:
    """A child of a process that was inside the block starts with the caller's setting."""
    global _holders, _lock
    _lock = threading.Lock()
    if _holders:
        _holders = 0
        _set(_saved)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
