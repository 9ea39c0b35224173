"""Calls of a backend's primitives, noted as `Capture` met them, and made again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from .base import Array
from .strided import StridedBackend

if TYPE_CHECKING:
    from .room import Again, Room
    from .sharing import Jobs, Sharing

__all__ = ["Call", "Calls", "CaptureError", "OtherwiseError"]


class CaptureError(RuntimeError):
    """What can't be computed again by the same calls."""


class OtherwiseError(Exception):
    """Numbers are such that a branch goes the other way than when calls were noted."""


OUTSIDE = "array from outside"
DECIDE = "decide"


class Call(NamedTuple):
    """A primitive as it was called: what makes it again, and what tells it from another."""

    again: Again
    name: str
    description: tuple[Any, ...]


class Calls:
    """A list of calls, and the memory of the arrays that they work on.

    Nothing else gets that memory. With `after` the calls go on from others, and know their arrays.
    With `shared` they are made by several processes.
    """

    def __init__(
        self, be: StridedBackend, after: Calls | None = None, shared: Sharing | None = None
    ) -> None:
        self.backend = be
        self.shared: Sharing | None = shared if after is None else after.shared
        if after is not None:
            self.room: Room = after.room
        else:
            self.room = be.room() if shared is None else shared.room
        self._jobs: Jobs | None = None
        self.noted: list[Call] = []
        self._steps: list[Callable[[], Any]] = []
        """What makes them again, one after the other."""
        self.scratch: dict[Any, Array] = {} if after is None else after.scratch
        """The calls' own, by purpose, shape and dtype."""
        self.decides = False
        """Whether a branch was taken by numbers: then `run` may raise `OtherwiseError`."""
        self.written: list[Array] = []
        """Arrays from outside that calls write to."""
        self.copied: list[tuple[int, int]] = [] if after is None else list(after.copied)
        """Addresses of arrays from outside that calls have copies of."""
        self._arguments: list[int] = []
        self._outside: list[Any] = []
        """What is not the calls' own, and is compared by its place, where nothing else may lie."""
        self._unset: set[int] = set() if after is None else after._unset
        """Arrays that no call has written yet, by their numbers."""
        self._results: tuple[Any, ...] = ()
        self._spans: list[tuple[int, int]] = [] if after is None else list(after._spans)

    def hold(self, x: Array, unset: bool = False) -> Array:
        """Take `x`, or what takes its place, for an array of the calls, known by the order in which
        it came; `unset` says that a call is still to write it.
        """
        x = self.room.placed(x)
        if unset and math.prod(x.shape):
            self._unset.add(len(self._spans))
        self._spans.append(self.span(x))
        return x

    def argument(self, x: Array) -> Array:
        """The same of what the computation is given; it may not be written to."""
        self._arguments.append(len(self._spans))
        return self.hold(x)

    def knows(self, x: Array) -> bool:
        """Whether `x` is one of the arrays of the calls, or a part of it."""
        start = self.backend.address(x)
        return any(first <= start < end for first, end in self._spans)

    def end(self, results: Sequence[Array | None]) -> None:
        """Tell what comes of the calls; in other calls that must be the same arrays."""
        self._results = tuple(self._described(x) for x in results)

    def note(self, name: str, again: Again, given: Sequence[Any], written: Sequence[Array]) -> None:
        """Add a call, what it was given and the arrays that it wrote to."""
        description = tuple(self._described(x) for x in (*given, *written))
        self._check_set(name, description[: len(given)], description[len(given) :])
        again = self.room.detached(again)
        self.noted.append(Call(again, name, description))
        self._steps += again if isinstance(again, tuple) else (again,)
        for x, described in zip(written, description[len(given) :], strict=True):
            if described[0] == OUTSIDE:
                self._check_uncopied(name, described[1])
                self.written.append(x)
            elif described[1] in self._arguments:
                raise CaptureError(
                    f"a captured function writes to an argument or, shared among processes, to a "
                    f"parameter ({name}), which is a copy. Fix: let it refer to that array itself, "
                    "not take it as argument"
                )

    def _check_set(self, name: str, given: tuple[Any, ...], written: tuple[Any, ...]) -> None:
        """Raise `CaptureError` where a call reads what no call has written."""
        self._unset.difference_update(described[1] for described in written)
        read = (d[1] for d in given if isinstance(d, tuple) and d[:1] == ("array",))
        if not self._unset.isdisjoint(read):
            raise CaptureError(
                f"a captured function reads an array that was made by the backend and written past "
                f"it ({name}); when it runs again, something else lies there. Fix: write with the "
                "backend's `assign`, or make the array once, outside the function"
            )

    def _check_uncopied(self, name: str, start: int) -> None:
        if any(first <= start < end for first, end in self.copied):
            raise CaptureError(
                f"a captured function writes to a parameter that it has used ({name}), of which "
                "other processes have a copy. Fix: capture it without processes"
            )

    def may_write(self, arrays: Sequence[Array]) -> None:
        """Tell that the next call may write to these, which can't be seen."""
        if self._unset:
            found = (self._number(self.backend.address(x)) for x in arrays)
            self._unset.difference_update(number for number in found if number is not None)

    def decide(self, flag: Array, value: bool) -> bool:
        """Note that a branch was taken by `flag`, which was `value`."""

        def again() -> None:
            if bool(flag) != value:
                raise OtherwiseError

        self.decides = True
        self.note(DECIDE, again, (flag, value), ())
        return value

    @property
    def may_be_shared(self) -> bool:
        """Whether processes share a job of these calls, or that is not known yet."""
        return self._jobs is None or any(number is not None for number in self._jobs)

    def forget(self) -> None:
        """Let go of the calls' memory. They can't be made again, but compared with others."""
        self.noted = [call._replace(again=_forgotten) for call in self.noted]
        self.room, self.shared = self.backend.room(), None
        self._steps, self.scratch, self.written = [], {}, []

    def run(self) -> None:
        """Make the calls again, on what the arrays hold now."""
        if self.shared is None:
            self._run()
        elif self._jobs is None:
            jobs: Jobs = []
            with self.shared.surveying(jobs):
                self._run()
            self._jobs = jobs
        else:
            with self.shared.sharing(self._jobs):
                self._run()

    def _run(self) -> None:
        for step in self._steps:
            step()

    def difference(self, other: Calls) -> str:
        """What is not the same in other calls, in words; "" where nothing is."""
        for i, (mine, others) in enumerate(zip(self.noted, other.noted, strict=False)):
            if mine.name != others.name:
                return f"call {i} was {mine.name}, and then {others.name}"
            for a, b in zip(mine.description, others.description, strict=False):
                if a != b:
                    return f"{mine.name}, call {i}, got {_words(a)}, and then {_words(b)}"
        if len(self.noted) != len(other.noted):
            return f"{len(self.noted)} calls were made, and then {len(other.noted)}"
        for a, b in zip(self._results, other._results, strict=False):
            if a != b:
                return f"what comes of them was {_words(a)}, and then {_words(b)}"
        return ""

    def _number(self, address: int) -> int | None:
        """Of the calls' array that lies there."""
        # The latest one: those before it have let go of their memory.
        for number in range(len(self._spans) - 1, -1, -1):
            first, end = self._spans[number]
            if first <= address < end:
                return number
        return None

    def is_view(self, x: Array, of: Sequence[Array]) -> bool:
        """Whether `x` lies in the memory of one of the arrays `of`."""
        start, end = self.span(x)
        spans = (self.span(array) for array in of)
        return start == end or any(first <= start < after for first, after in spans)

    def span(self, x: Array) -> tuple[int, int]:
        """The addresses of the first byte and after the last."""
        start = self.backend.address(x)
        reach = sum((n - 1) * step for n, step in zip(x.shape, x.strides, strict=True))
        return start, start + (reach + x.itemsize if math.prod(x.shape) else 0)

    def _described(self, x: Any) -> Any:
        """What must be the same when the same calls are made: of an array its place, not values."""
        if self.backend.owns(x):
            layout = (tuple(x.shape), tuple(x.strides), str(x.dtype))
            if not math.prod(x.shape):
                return "array", None, 0, layout
            start = self.backend.address(x)
            number = self._number(start)
            if number is not None:
                return "array", number, start - self._spans[number][0], layout
            self._outside.append(x)
            return OUTSIDE, start, 0, layout
        if hasattr(x, "__dlpack__"):
            self._outside.append(x)
            return "array from elsewhere", id(x), 0, (tuple(x.shape), (), str(x.dtype))
        if isinstance(x, (tuple, list)):
            return tuple(self._described(value) for value in x)
        if isinstance(x, (float, np.generic)):
            # Nothing equals NaN.
            return repr(x)
        return getattr(x, "__qualname__", x)


def _forgotten() -> NoReturn:
    raise AssertionError("calls that were forgotten can't be made again")


def _words(description: Any) -> str:
    if isinstance(description, tuple) and str(description[:1]).startswith("('array"):
        kind, number, _, (shape, _, dtype) = description
        which = f" {number}" if kind == "array" else ""
        return f"{kind}{which} of shape {shape} and {dtype}"
    return description if isinstance(description, str) else repr(description)
