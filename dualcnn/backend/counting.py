"""What crosses between host and device, counted: waits of the host, and copies either way.

A device works through its queue while the host goes on. Whatever brings a value to the host makes
it wait for the whole queue, and some do so unasked: `float(loss)`, a boolean mask as an index,
`if x > 0`. Within `count()` each is noted, with the line that asked for it.
"""

from __future__ import annotations

import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Counts", "count", "note", "watched"]

HERE = str(Path(__file__).parent)
LIBRARY = str(Path(__file__).parent.parent)


@dataclass
class Counts:
    """What was counted within a block; `str` of it says where."""

    synchronizations: int = 0
    """Times that the host waited for the device's queue."""
    to_host: int = 0
    """Arrays copied from the device; each is a wait too."""
    to_device: int = 0
    """Arrays copied to the device."""
    bytes: int = 0
    """Of both kinds of copies."""
    where: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often a line did what: `("wait", "train.py:12")`; the line is one outside the library."""

    @property
    def host_copies(self) -> int:
        """Arrays copied, either way."""
        return self.to_host + self.to_device

    def __str__(self) -> str:
        head = (
            f"{self.synchronizations} synchronizations, {self.to_host} copies to the host, "
            f"{self.to_device} to the device, {self.bytes} bytes"
        )
        lines = [f"  {n} x {what} at {line}" for (what, line), n in self.where.most_common()]
        return "\n".join([head, *lines])


_open: list[Counts] = []
_lock = threading.Lock()


class _Inside(threading.local):
    depth = 0


_inside = _Inside()


@contextmanager
def count() -> Iterator[Counts]:
    """Count what crosses between host and device within the block, on all threads.

    Nothing does on the CPU. What goes past CuPy's arrays, such as a call of CUDA's own functions,
    is not seen.

    >>> with dualcnn.backend.count() as counts:
    ...     train.train_step(model, x, y, optimizer)
    >>> counts.synchronizations
    0
    """
    counts = Counts()
    with _lock:
        _open.append(counts)
        for patch in _patches.values():
            patch.apply()
    try:
        yield counts
    finally:
        with _lock:
            # By identity: equal counts of another block are not this one's.
            _open[:] = [c for c in _open if c is not counts]
            if not _open:
                for patch in _patches.values():
                    patch.undo()


def note(what: str, nbytes: int = 0) -> None:
    """Count a "wait", a copy "to host", which waits too, or a copy "to device"."""
    if not _open or _inside.depth:
        return
    line = _asking()
    with _lock:
        for counts in _open:
            counts.synchronizations += what != "to device"
            counts.to_host += what == "to host"
            counts.to_device += what == "to device"
            counts.bytes += nbytes
            counts.where[what, line] += 1


@contextmanager
def _noted() -> Iterator[None]:
    """What happens within is part of something noted already."""
    _inside.depth += 1
    try:
        yield
    finally:
        _inside.depth -= 1


def _asking() -> str:
    """The innermost line outside the library, and the library's through which it asks."""
    frame: types.FrameType | None = sys._getframe(2)
    through = ""
    while frame is not None:
        path = frame.f_code.co_filename
        line = f"{path}:{frame.f_lineno}"
        if not path.startswith(LIBRARY):
            return f"{line} through {through}" if through else line
        if not through and not path.startswith(HERE):
            through = line
        frame = frame.f_back
    return through


class _Patch:
    """Methods of an array class that wait, replaced while someone counts."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._own: dict[str, Any] = {}
        self._applied = False

    def apply(self) -> None:
        if self._applied:
            return
        self._applied = True
        for name, describe in METHODS.items():
            method = getattr(self._kind, name, None)
            if method is not None:
                # None where the method is a base class's, and comes back when ours is gone.
                self._own[name] = vars(self._kind).get(name)
                setattr(self._kind, name, _noting(method, describe))

    def undo(self) -> None:
        for name, own in self._own.items():
            if own is None:
                delattr(self._kind, name)
            else:
                setattr(self._kind, name, own)
        self._own.clear()
        self._applied = False


def _noting(method: Any, describe: Callable[..., str | None]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **named: Any) -> Any:
        what = describe(self, *args)
        if what is None:
            return method(self, *args, **named)
        note(what, 0 if what == "wait" else self.nbytes)
        with _noted():
            return method(self, *args, **named)

    return call


def _by_mask(x: Any, key: Any, *value: Any) -> str | None:
    keys = key if isinstance(key, tuple) else (key,)
    masks = (getattr(getattr(k, "dtype", None), "kind", "") == "b" and k.ndim for k in keys)
    return "wait" if any(masks) else None


METHODS: dict[str, Callable[..., str | None]] = {
    "get": lambda x, *args: "to host",
    **dict.fromkeys(
        ("item", "tolist", "__float__", "__int__", "__bool__", "__complex__", "__index__"),
        lambda x, *args: "to host",
    ),
    "nonzero": lambda x, *args: "wait",
    "set": lambda x, *args: "to device",
    "__getitem__": _by_mask,
    "__setitem__": _by_mask,
}
"""What each method of an array does beside its work, None for nothing."""

_patches: dict[Any, _Patch] = {}


def watched(kind: Any) -> None:
    """Count what methods of that array class do, too."""
    with _lock:
        if kind not in _patches:
            _patches[kind] = _Patch(kind)
            if _open:
                _patches[kind].apply()
