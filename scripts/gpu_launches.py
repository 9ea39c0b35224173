"""Calls of the CUDA driver, counted by NVIDIA's profiling interface: launches, copies, waits.

CUPTI comes with the CUDA toolkit, with PyTorch's wheels and as `nvidia-cuda-cupti`. It sees every
call of the process, CuPy's and PyTorch's alike.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DRIVER_CALLS = 1
"""CUPTI_CB_DOMAIN_DRIVER_API."""

ENTER = 0
"""CUPTI_API_ENTER."""

KINDS = {
    "launches": ("cuLaunch", "cuGraphLaunch"),
    "copies to host": ("cuMemcpyDtoH",),
    "copies to device": ("cuMemcpyHtoD",),
    "waits": ("cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize"),
}
"""Counted names, by how they begin."""


class _CallbackData(ctypes.Structure):
    """The first two fields of CUpti_CallbackData."""

    _fields_ = (("site", ctypes.c_int), ("name", ctypes.c_char_p))


_Callback = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.POINTER(_CallbackData)
)


class UnavailableError(RuntimeError):
    """Calls can't be counted here."""


def tally(calls: Counter[str]) -> dict[str, int]:
    """Calls by kind."""
    return {
        kind: sum(n for name, n in calls.items() if name.startswith(begins))
        for kind, begins in KINDS.items()
    }


def per_step(step: Callable[[], Any], settle: Callable[[], Any], steps: int = 4) -> dict[str, int]:
    """Driver calls of one step by kind, once it is warm; raises `UnavailableError`."""
    for _ in range(3):
        step()
    settle()
    with counting() as calls:
        for _ in range(steps):
            step()
    settle()
    return {kind: round(n / steps) for kind, n in tally(calls).items()}


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count the driver's calls within the block, by name."""
    library = _library()
    calls: Counter[str] = Counter()

    def note(user: Any, domain: int, number: int, data: Any) -> None:
        if data.contents.site == ENTER:
            calls[data.contents.name.decode()] += 1

    callback, subscriber = _Callback(note), ctypes.c_void_p()
    _check(library, library.cuptiSubscribe(ctypes.byref(subscriber), callback, None))
    try:
        _check(library, library.cuptiEnableDomain(1, subscriber, DRIVER_CALLS))
        yield calls
    finally:
        library.cuptiUnsubscribe(subscriber)


def _library() -> Any:
    for path in [*_candidates(), "libcupti.so"]:
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    raise UnavailableError("libcupti was not found: pip install nvidia-cuda-cupti")


def _candidates() -> list[Path]:
    found: list[Path] = []
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found += sorted(Path(folder).glob("**/libcupti.so.*"))
    found += sorted(Path("/usr/local").glob("cuda*/extras/CUPTI/lib64/libcupti.so*"))
    return [*found, *sorted(Path("/usr/local").glob("cuda*/lib64/libcupti.so*"))]


def _check(library: Any, status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        library.cuptiGetResultString(status, ctypes.byref(text))
        raise UnavailableError(f"CUPTI refuses: {(text.value or b'').decode()} ({status})")
