"""Whether operations are recorded for gradients, what casts their inputs, and who is shown them.

All of it belongs to their context: a thread or a task that changes it changes nothing for others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from .backend import Array

__all__ = [
    "Caster",
    "Watcher",
    "capturing",
    "casting",
    "changes",
    "check_unchanged",
    "enable_grad",
    "is_grad_enabled",
    "no_grad",
    "note_change",
    "note_mode",
    "note_update",
    "recording",
    "updates",
    "watch",
    "watching",
]

Watcher = Callable[[Callable[..., Any], list[Any], dict[str, Any], Array, Any], Any]
"""`watcher(op, arrays, params, y, vjp)`; what it returns takes the place of the `vjp`."""

Caster = Callable[[Callable[..., Any], tuple[Any, ...]], tuple[Any, ...]]
"""`caster(op, inputs)`: what the operation is given instead."""

recording: ContextVar[bool] = ContextVar("dualcnn_recording", default=True)
watching: ContextVar[Watcher | None] = ContextVar("dualcnn_watcher", default=None)

capturing: ContextVar[bool] = ContextVar("dualcnn_capturing", default=False)
"""Whether `capture` notes what runs now."""

_changes = [0]

updates = [0]
"""How many times values of parameters were written over, as an optimizer's step does."""

_modes = [0]
_marks: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_lock = threading.Lock()

casting: ContextVar[Caster | None] = ContextVar("dualcnn_casting", default=None)
"""What `amp.autocast` does to the inputs of an operation."""


@contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing within the block, or within the function that it decorates."""
    token = recording.set(False)
    try:
        yield
    finally:
        recording.reset(token)


@contextmanager
def enable_grad() -> Iterator[None]:
    """Record within the block, or within the function that it decorates, also inside `no_grad`."""
    token = recording.set(True)
    try:
        yield
    finally:
        recording.reset(token)


@contextmanager
def watch(watcher: Watcher) -> Iterator[None]:
    """Show each operation within the block to `watcher`."""
    token = watching.set(watcher)
    try:
        yield
    finally:
        watching.reset(token)


def note_change() -> None:
    """Say that what decides about calls changed: an option, a hook, the array of a parameter."""
    _changes[0] += 1


def note_mode(module: Any) -> None:
    """Say that a module went from one of its two modes to the other.

    Unlike a change this is undone when it is said again: training goes on as before validation.
    """
    with _lock:
        mark = _marks.get(module)
        if mark is None:
            mark = _marks[module] = int.from_bytes(os.urandom(8))
        # A sum of random marks that any order of switches arrives at, and no other set of modules.
        _modes[0] ^= mark


def note_update(leaf: Any) -> None:
    """Say that values were written over: what was computed from the old ones has no gradients any
    more that need them.
    """
    updates[0] += 1
    leaf._updated_at = updates[0]


def check_unchanged(node: Any) -> None:
    """Raise `RuntimeError` if gradients of a recorded result need values written over since.

    Those of a leaf can matter to the gradient of what it is applied to, the first input, those of
    a first input to the others'; and only if the closure has them. Not noticed is what came by a
    view of the leaf, or alone.
    """
    parents = [p if getattr(p, "_requires_grad", False) else None for p in node._parents]
    first, others = parents[:1], parents[1:]
    for place, leaf in enumerate(parents):
        if leaf is None or leaf._updated_at <= node._made_at:
            continue
        rest = first if place else others
        if any(p is not None for p in rest) and leaf.backend.holds(node._vjp, leaf._data):
            raise RuntimeError(
                f"a parameter of shape {leaf.shape} was updated after the forward pass that this "
                "backward belongs to; gradients would mix old and new values. Fix: call backward "
                "before the update, or compute the loss again"
            )


def changes() -> tuple[int, int]:
    """What was said until now; what was kept for another answer may be out of date."""
    return _changes[0], _modes[0]


def is_grad_enabled() -> bool:
    """Whether operations are recorded now."""
    return recording.get()
