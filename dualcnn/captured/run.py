"""One run of a captured function: its calls, forward and backward, and the arrays they work on."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from .. import backend
from ..autograd import HandingVjp, Tensor, apply
from ..backend import Array
from ..backend.calls import DECIDE, Calls, CaptureError, OtherwiseError
from ..backend.capture import Capture
from ..backend.strided import StridedBackend
from ..recording import capturing, casting, updates

if TYPE_CHECKING:
    from ..backend.sharing import Sharing

__all__ = ["Run", "is_array"]

Hand = Callable[[Tensor, Array], None]


class Run:
    """One run of a function: its calls forward and backward, and the arrays they work on."""

    def __init__(
        self,
        be: StridedBackend,
        fn: Callable[..., Any],
        inputs: tuple[Any, ...],
        arrays: list[Any],
        before: Run | None,
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
            self._forward.argument(be.copy(be.asarray(a))) if is_array(a) else a for a in arrays
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
        self._given = [given[i] for i in self._wanting]
        self._taker = _Taker(self._parameters)
        self._saved: list[tuple[Array, Array]] | None = None
        self._gy: Array = None
        self._gradients: tuple[Array | None, ...] = ()
        self._before: Run | None = None
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
        self._inputs, self._outputs, self._given = [], [], []
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
            if is_array(x):
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
            results[0]._vjp = HandingVjp(partial(self._vjp, self._number))
            # With processes backward goes by copies of the parameters.
            results[0]._made_at = updates[0] if self._shared is None else math.inf
        if not issubclass(self._kind, (tuple, list)):
            return results[0]
        return self._kind(*results) if hasattr(self._kind, "_fields") else self._kind(results)

    def _vjp(self, number: int, gy: Array, hand: Hand | None) -> tuple[Array | None, ...]:
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
        kept: list[Array | None] = [None] * len(self._parameters)
        if hand is None:
            hand = partial(_keep, self._backend, kept, [id(leaf) for leaf in self._parameters])
        if self._shared is not None:
            hand = partial(_hand_outside, self._shared, hand)
        self._taker.hand = hand
        try:
            if self._backward is None:
                self._capture_backward(gy)
            else:
                self._backend.assign(self._gy, gy)
                self._backward.run()
        finally:
            del self._taker.hand
        # What comes before an argument may keep what it is given.
        return *kept, *(None if g is None else self._backend.copy(g) for g in self._gradients)

    def _capture_backward(self, gy: Array) -> None:
        backward = Calls(self._backend, after=self._forward)
        self._gy = backward.hold(self._backend.copy(gy))
        places = {id(leaf): i for i, leaf in enumerate(self._parameters)}
        found: dict[int, Array] = {}
        with _noting(backward) as capture:

            def deliver(leaf: Tensor, gradient: Array) -> None:
                if id(leaf) not in places:
                    found[id(leaf)] = gradient
                    return
                # At once, now as later: then its memory serves again.
                given = places[id(leaf)], gradient
                backward.note("gradient", partial(self._taker, *given), given, ())
                capture.unseen(self._taker)(*given)

            self._outputs[0]._walk(self._gy, deliver)
        self._gradients = tuple(found.get(id(leaf)) for leaf in self._given)
        backward.end([g for g in self._gradients if g is not None])
        self._backward = backward
        if self._before is not None and self._before._backward is not None:
            self.is_confirmed = self._is_as(self._before._backward, backward)
            self._before = None


class _Taker:
    """What noted calls give the gradients of parameters to.

    It has slots: to notes it stays itself, where other objects are copied for them.
    """

    __slots__ = ("hand", "parameters")
    hand: Hand

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters

    def __call__(self, place: int, gradient: Array) -> None:
        self.hand(self.parameters[place], gradient)


def _keep(
    be: StridedBackend,
    kept: list[Array | None],
    places: list[int],
    leaf: Tensor,
    gradient: Array,
) -> None:
    kept[places.index(id(leaf))] = be.copy(gradient)


def _hand_outside(shared: Sharing, hand: Hand, leaf: Tensor, gradient: Array) -> None:
    # What takes a gradient may share jobs, which processes don't know.
    with shared.outside():
        hand(leaf, gradient)


@contextmanager
def _noting(calls: Calls) -> Iterator[Capture]:
    """Note what is called of the backend within the block."""
    within = capturing.set(True)
    try:
        with Capture(calls) as capture:
            if calls.shared is None:
                yield capture
                return
            token = casting.set(partial(_mirrored, capture))
            try:
                with calls.shared.alone():
                    yield capture
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


def _refuse(gy: Array) -> NoReturn:
    raise RuntimeError(
        "only the first Tensor that a captured function returns can be differentiated. Fix: return "
        "one loss, all terms of it added up, first"
    )


def is_array(x: Any) -> bool:
    """Whether an argument of a captured function is an array, or can be made one."""
    return backend.is_array(x) or hasattr(x, "__dlpack__")


def _like(x: Any, array: Any) -> Any:
    """`array` as the Tensor that `x` is, if it is one."""
    if not isinstance(x, Tensor):
        return array
    tensor = Tensor(array)
    tensor._requires_grad = x.requires_grad
    return tensor
