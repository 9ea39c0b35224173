"""Functions that are captured: which of their runs are kept, for which arguments and how long."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable
from functools import update_wrapper
from types import MethodType
from typing import Any

from .. import backend
from ..autograd import Tensor
from ..backend.strided import StridedBackend
from ..ops.algorithms import overruled
from ..recording import capturing, casting, changes, recording, watching
from .run import Run, is_array

__all__ = ["Captured", "capture"]

PATIENCE = 64
"""Runs in a row that are noted and not repeated, before a function is left alone."""

KINDS = 16
"""Kinds of arguments for which calls and memory are kept; the oldest gives way."""


def capture(fn: Callable[..., Any], processes: int | None = None) -> Captured:
    """`fn`, computed by the calls of the backend that it made before: the same numbers, sooner.

    `fn` takes Tensors and arrays, and other values that can be hashed, by position, and returns a
    Tensor or a tuple of them, of which the first can be differentiated. For each kind of arguments
    (shapes, dtypes) it runs until it made the same calls twice; from then on only these calls are
    made, for as long as no parameter is replaced and no module is in another mode. Their memory is
    theirs alone: on the CPU as much as an eager step needs, on a GPU all arrays of a whole run.

    What Python does in `fn` is not done again: prints, hooks, numbers worked out. What it decides
    there stays decided; only where the library itself looks at numbers, such as labels on the CPU,
    and they want other calls, `fn` runs. A list or a private attribute of a module that changes is
    not noticed, nor one Tensor in the place of another; what is assigned to its `.data` is.
    Optimizers and whatever reads a value belong outside.

    With `processes` that many share the work, the caller's among them, where it would otherwise be
    threads, and smaller pieces of it: sums round in another order, the same for any number of
    processes. They are forked when a function was captured, and end when its calls are given up or
    the program ends; on NumPy, under Linux. For them each run starts with a copy of the parameters,
    which backward goes by, also where a parameter has changed since. Of a function without a piece
    that is worth sharing nothing is shared, and none of this holds.

    Raises `CaptureError` where runs go on to differ, as with dropout, and says in which call. Where
    the backend can't tell memory apart, and within `autocast`, which belongs into `fn`, that just
    runs.

    >>> loss_of = dualcnn.capture(lambda x, y: F.cross_entropy(model(x), y))
    >>> for x, y in loader:
    ...     optimizer.zero_grad()
    ...     loss_of(x, y).backward()
    ...     optimizer.step()
    """
    return Captured(fn, processes)


MISSES = 3
"""Runs in a row that want other calls than those kept, after which the function is captured anew. A
VGG that overfits comes to a batch normalisation far from zero, and stays there."""


class Captured:
    """What `capture` returns; one call runs at a time."""

    def __init__(self, fn: Callable[..., Any], processes: int | None = None) -> None:
        if processes is not None and (type(processes) is not int or processes < 1):
            raise ValueError(
                f"expected a number of processes from 1, the caller's among them, or None for "
                f"threads, got {processes!r}"
            )
        self.fn = fn
        self.processes = processes
        self._runs: dict[Any, Run] = {}
        self._unshared: set[Any] = set()
        """Kinds of arguments whose calls have nothing that processes could share."""
        self._changes = changes()
        self._vain = 0
        self._lock = threading.RLock()
        update_wrapper(self, fn, updated=())
        # Runs that are let go may live on as garbage for a while, their processes with them.
        weakref.finalize(self, _close, self._runs)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if named:
            raise TypeError(
                f"expected the arguments of a captured function by position, got "
                f"{', '.join(named)} by name"
            )
        first, arrays = None, list(inputs)
        kinds: list[Any] = []
        for i, x in enumerate(inputs):
            is_tensor = isinstance(x, Tensor)
            a = arrays[i] = x._data if is_tensor else x
            if is_array(a):
                first = a if first is None else first
                strides = getattr(a, "strides", None)
                kinds.append((a.shape, strides, a.dtype, is_tensor and x._requires_grad))
            else:
                if x.__hash__ is None:
                    raise TypeError(
                        "expected Tensors, arrays, and values that can be hashed as arguments of a "
                        f"captured function, got a {type(x).__name__}. Fix: a tuple, or an array"
                    )
                # 1, 1.0 and True are equal, and so are 0.0 and -0.0.
                kinds.append((type(x), repr(x) if isinstance(x, float) else x))
        if first is None:
            raise TypeError(
                "expected a Tensor or an array among the arguments of a captured function, got "
                f"{', '.join(type(x).__name__ for x in inputs) or 'none'}"
            )
        be = backend.of(argument=first)
        is_seen = casting.get() is not None or watching.get() is not None
        if is_seen or capturing.get() or not isinstance(be, StridedBackend):
            return self.fn(*inputs)
        # What a process has captured, one forked from it does not go on with.
        key = be, tuple(kinds), recording.get(), overruled(), os.getpid()
        with self._lock:
            if self._changes != changes():
                self._changes = changes()
                self._give_up(len(self._runs))
                self._unshared.clear()
            run = self._runs.get(key)
            if run is not None and run.is_unshared:
                # Without processes no parameter is copied, and parts are larger.
                self._unshared.add(key)
                run.close()
                run = None
            if run is not None and run.is_confirmed:
                if run.again(arrays):
                    self._vain = 0
                    return run.results(inputs)
                if run.misses < MISSES:
                    return self.fn(*inputs)
                run.close()
                run = None
            self._vain += 1
            if self._vain > PATIENCE:
                return self._uncaptured(inputs)
            return self._first(key, run, be, inputs, arrays).results(inputs)

    def _uncaptured(self, inputs: tuple[Any, ...]) -> Any:
        if self._vain == PATIENCE + 1:
            warnings.warn(
                f"a captured function ran {PATIENCE} times and was never repeated, and runs as it "
                "is from now on: each time something had changed, such as a mode, the shape of an "
                "argument, or an attribute of a module, or there was no backward (no_grad says "
                "that none will come)",
                stacklevel=4,
            )
        return self.fn(*inputs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """Of a captured method the object's own, as of any function."""
        return self if instance is None else MethodType(self, instance)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return capture, (self.fn, self.processes)

    def _first(
        self,
        key: Any,
        before: Run | None,
        be: StridedBackend,
        inputs: tuple[Any, ...],
        arrays: list[Any],
    ) -> Run:
        """A run of the function itself, compared with the one before."""
        if before is not None:
            before.forget()
        size = 1 if key in self._unshared else self.processes or 1
        shared = be.sharing(size) if size > 1 else None
        run = Run(be, self.fn, inputs, arrays, before, shared)
        if key not in self._runs:
            self._give_up(len(self._runs) + 1 - KINDS)
        self._runs[key] = run
        return run

    def _give_up(self, count: int) -> None:
        """Let the oldest runs go."""
        for key in list(self._runs)[: max(0, count)]:
            self._runs.pop(key).close()


def _close(runs: dict[Any, Run]) -> None:
    for run in runs.values():
        run.close()
