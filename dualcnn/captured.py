"""A function computed anew by the calls that its first runs made, without Python between them.

A step of a small net is mostly Python: layers that look for their arguments, shapes that are
checked, a tape that is written and read. All of it comes out the same every time. `capture` notes
what calls of the backend a function of arrays makes, forward and backward, and then makes those.
That is what `torch.cuda.make_graphed_callables` does with CUDA graphs, here on any backend.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, update_wrapper
from types import MethodType
from typing import TYPE_CHECKING, Any, NoReturn

from . import backend
from .autograd import Tensor, apply
from .backend import Array
from .backend.calls import DECIDE, Calls, CaptureError, OtherwiseError
from .backend.capture import Capture
from .backend.strided import StridedBackend
from .ops.algorithms import overruled
from .recording import capturing, casting, changes, recording, watching

if TYPE_CHECKING:
    from .backend.sharing import Sharing

__all__ = ["CaptureError", "Captured", "capture"]

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
    not noticed. Optimizers and whatever reads a value belong outside.

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
        self._runs: dict[Any, _Run] = {}
        self._unshared: set[Any] = set()
        """Kinds of arguments whose calls have nothing that processes could share."""
        self._changes = changes()
        self._vain = 0
        self._lock = threading.RLock()
        update_wrapper(self, fn, updated=())
        # Runs that are let go may live on as garbage for a while, their processes with them.
        weakref.finalize(self, _close, self._runs)

    def __call__(self, *inputs: Any) -> Any:
        arrays = [x._data if isinstance(x, Tensor) else x for x in inputs]
        first = next((a for a in arrays if _is_array(a)), None)
        if first is None:
            raise TypeError(
                "expected a Tensor or an array among the arguments of a captured function, got "
                f"{', '.join(type(x).__name__ for x in inputs) or 'none'}"
            )
        be = backend.of(argument=first)
        is_seen = casting.get() is not None or watching.get() is not None
        if is_seen or capturing.get() or not isinstance(be, StridedBackend):
            return self.fn(*inputs)
        kinds: list[Any] = []
        for x, a in zip(inputs, arrays, strict=True):
            if _is_array(a):
                kinds.append((a.shape, a.strides, a.dtype, x is not a and x.requires_grad))
            else:
                # 1, 1.0 and True are equal, and so are 0.0 and -0.0.
                kinds.append((type(x), repr(x) if isinstance(x, float) else x))
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
        before: _Run | None,
        be: StridedBackend,
        inputs: tuple[Any, ...],
        arrays: list[Any],
    ) -> _Run:
        """A run of the function itself, compared with the one before."""
        if before is not None:
            before.forget()
        size = 1 if key in self._unshared else self.processes or 1
        shared = be.sharing(size) if size > 1 else None
        run = _Run(be, self.fn, inputs, arrays, before, shared)
        if key not in self._runs:
            self._give_up(len(self._runs) + 1 - KINDS)
        self._runs[key] = run
        return run

    def _give_up(self, count: int) -> None:
        """Let the oldest runs go."""
        for key in list(self._runs)[: max(0, count)]:
            self._runs.pop(key).close()


class _Run:
    """One run of a function: its calls forward and backward, and the arrays they work on."""

    def __init__(
        self,
        be: StridedBackend,
        fn: Callable[..., Any],
        inputs: tuple[Any, ...],
        arrays: list[Any],
        before: _Run | None,
        shared: Sharing | None,
    ) -> None:
        self._backend = be
        self._shared = shared
        self._process = os.getpid()
        self._forward = Calls(be, shared=shared)
        self._backward: Calls | None = None
        self.is_confirmed = False
        """Whether the run before made the same calls."""
        self._differences: int = 0 if before is None else before._differences
        self._number = 0
        self.misses = 0
        """Runs in a row that asked for other calls."""
        self._inputs = [
            self._forward.argument(be.copy(be.asarray(a))) if _is_array(a) else a for a in arrays
        ]
        given = [_like(x, a) for x, a in zip(inputs, self._inputs, strict=True)]
        with _noting(self._forward):
            found = fn(*given)
        self._kind = type(found)
        self._outputs: list[Tensor] = list(found) if isinstance(found, (tuple, list)) else [found]
        self._check_outputs()
        self._forward.end([output._data for output in self._outputs])
        self._is_differentiable = self._outputs[0].requires_grad
        leaves = self._outputs[0].leaves() if self._is_differentiable else []
        # Arguments come again each time; what else wants a gradient is the same.
        places = {id(g): i for i, g in enumerate(given)}
        self._parameters = [leaf for leaf in leaves if id(leaf) not in places]
        self._wanting = [places[id(leaf)] for leaf in leaves if id(leaf) in places]
        self._leaves = [*self._parameters, *(given[i] for i in self._wanting)]
        self._saved: list[tuple[Array, Array]] | None = None
        self._gy: Array = None
        self._gradients: tuple[Array | None, ...] = ()
        self._before: _Run | None = None
        if before is None or (self._is_differentiable and before._backward is None):
            return
        if self._is_as(before._forward, self._forward):
            self.is_confirmed = not self._is_differentiable
            self._before = before if self._is_differentiable else None

    def _is_as(self, first: Calls, second: Calls) -> bool:
        """Whether the calls are the same; raises `CaptureError` if they never become so.

        A first run may have more to do than later ones, such as giving lazy layers their shapes.
        """
        found = first.difference(second)
        # Another branch by other numbers may come and go.
        self._differences += bool(found) and not found.startswith(DECIDE)
        if self._differences > 1:
            raise CaptureError(
                f"runs of a captured function differ: {found}. It depends on something that is no "
                "array among its arguments and parameters, such as a random number, a count, a "
                "value that was read, or arithmetic on arrays past dualcnn. Fix: leave that outside"
            )
        return not found

    def close(self) -> None:
        """End the processes, if there are any; calls go on in threads."""
        if self._shared is not None:
            self._shared.close()

    @property
    def is_unshared(self) -> bool:
        """Whether it has processes and no work for them."""
        if self._shared is None or self._forward.may_be_shared:
            return False
        if not self._is_differentiable:
            return True
        return self._backward is not None and not self._backward.may_be_shared

    def forget(self) -> None:
        """Let go of all memory, unless backward is still to come: what is left are calls to compare
        those of the next run with.
        """
        if self._is_differentiable and self._backward is None:
            return
        self._forward.forget()
        if self._backward is not None:
            self._backward.forget()
        self.close()
        self._shared = None
        self._inputs, self._outputs, self._leaves = [], [], []
        self._gradients, self._gy = (), None

    def _check_outputs(self) -> None:
        odd = [type(x).__name__ for x in self._outputs if not isinstance(x, Tensor)]
        if odd or not self._outputs:
            raise CaptureError(
                "expected a captured function to return a Tensor or a tuple of Tensors, got "
                f"{odd[0] if odd else 'an empty tuple'}"
            )

    def again(self, arrays: list[Any]) -> bool:
        """Compute the outputs for other arguments; False where these ask for other calls."""
        be = self._backend
        for mine, x in zip(self._inputs, arrays, strict=True):
            if _is_array(x):
                be.assign(mine, be.asarray(x))
        self._number += 1
        if not self._forward.decides:
            self._forward.run()
            return True
        if self._saved is None:
            self._saved = [(x, be.empty_like(x)) for x in self._forward.written]
        for x, saved in self._saved:
            be.assign(saved, x)
        try:
            self._forward.run()
        except OtherwiseError:
            self.misses += 1
            # What was written, such as running statistics, is for the function to write.
            for x, saved in self._saved:
                be.assign(x, saved)
            return False
        self.misses = 0
        return True

    def results(self, inputs: tuple[Any, ...]) -> Any:
        """The outputs, in memory that the next run leaves alone."""
        results = [Tensor(self._backend.copy(output._data)) for output in self._outputs]
        for result, output in zip(results, self._outputs, strict=True):
            if output.requires_grad:
                result._requires_grad = True
                result._vjp = _refuse
        if self._is_differentiable:
            results[0]._parents = (*self._parameters, *(inputs[i] for i in self._wanting))
            results[0]._vjp = partial(self._vjp, self._number)
        if not issubclass(self._kind, (tuple, list)):
            return results[0]
        return self._kind(*results) if hasattr(self._kind, "_fields") else self._kind(results)

    def _vjp(self, number: int, gy: Array) -> tuple[Array | None, ...]:
        if number != self._number:
            raise RuntimeError(
                "the captured function ran again before backward of its earlier result, and only "
                "the latest can be differentiated. Fix: call backward after each run"
            )
        if self._shared is not None and self._process != os.getpid():
            raise RuntimeError(
                "backward of a result that another process computed would write to memory that "
                "both see. Fix: call the captured function in this process first"
            )
        if self._backward is None:
            self._capture_backward(gy)
        else:
            self._backend.assign(self._gy, gy)
            self._backward.run()
        # Parameters take copies at once; what comes before an argument may keep what it is given.
        first = len(self._parameters)
        return *self._gradients[:first], *map(self._copied, self._gradients[first:])

    def _copied(self, gradient: Array | None) -> Array | None:
        return None if gradient is None else self._backend.copy(gradient)

    def _capture_backward(self, gy: Array) -> None:
        backward = Calls(self._backend, after=self._forward)
        self._gy = backward.hold(self._backend.copy(gy))
        found: dict[int, Array] = {}

        def deliver(leaf: Tensor, gradient: Array) -> None:
            found[id(leaf)] = gradient

        with _noting(backward):
            self._outputs[0]._walk(self._gy, deliver)
        self._gradients = tuple(found.get(id(leaf)) for leaf in self._leaves)
        backward.end([g for g in self._gradients if g is not None])
        self._backward = backward
        if self._before is not None and self._before._backward is not None:
            self.is_confirmed = self._is_as(self._before._backward, backward)
            self._before = None


@contextmanager
def _noting(calls: Calls) -> Iterator[None]:
    """Note what is called of the backend within the block."""
    within = capturing.set(True)
    try:
        with Capture(calls) as capture:
            if calls.shared is None:
                yield
                return
            token = casting.set(partial(_mirrored, capture))
            try:
                with calls.shared.alone():
                    yield
            finally:
                casting.reset(token)
    finally:
        capturing.reset(within)


def _mirrored(capture: Capture, op: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs of an operation, parameters in memory that other processes see."""
    if op is _seen:
        return inputs
    found = []
    for x in inputs:
        if isinstance(x, Tensor) and x.is_leaf:
            mirror = capture.mirror(x._data)
            if mirror is not x._data:
                x = apply(_seen, x, mirror=mirror)
        found.append(x)
    return tuple(found)


def _seen(x: Array, *, mirror: Array) -> Any:
    return mirror, lambda gy: (gy,)


def _close(runs: dict[Any, _Run]) -> None:
    for run in runs.values():
        run.close()


def _refuse(gy: Array) -> NoReturn:
    raise RuntimeError(
        "only the first Tensor that a captured function returns can be differentiated. Fix: return "
        "one loss, all terms of it added up, first"
    )


def _is_array(x: Any) -> bool:
    return backend.is_array(x) or hasattr(x, "__dlpack__")


def _like(x: Any, array: Any) -> Any:
    """`array` as the Tensor that `x` is, if it is one."""
    if not isinstance(x, Tensor):
        return array
    tensor = Tensor(array)
    tensor._requires_grad = x.requires_grad
    return tensor
