"""Memory for captured calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np

from .arena import Arena
from .base import Array
from .reduction import Reduction

__all__ = ["ArenaRoom", "Room"]

Again = Callable[[], Any]


class Room:
    """Memory for captured calls, all of which stays in use."""

    def __init__(self, be: Any) -> None:
        # While calls are noted, the backend's name for it means another.
        self._empty = be.empty
        self._kept: list[Array] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Unset values."""
        return self._empty(shape, dtype)

    def moved(self, x: Array) -> Array:
        """`x`, or what takes its place in this memory."""
        self._kept.append(x)
        return x

    def detached(self, again: Again) -> Again:
        """A call that keeps no memory in use."""
        return again


class ArenaRoom(Room):
    """Memory that calls use again within a run, as an eager run does.

    While calls are noted, what the function lets go gives its memory to what comes later. The notes
    don't keep it: they refer to arrays by their aliases, which the arena does not count. Calls are
    made again in the same order, so what is free for one is free for it each time.
    """

    def __init__(self, be: Any, shared: bool = False) -> None:
        super().__init__(be)
        self._be = be
        self._arena = Arena(shared=shared, smallest=0)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self._arena.empty(shape, dtype)

    def holds(self, x: Array) -> bool:
        """Whether `x` lies here."""
        return self._arena.holds(x.ctypes.data)

    def moved(self, x: Array) -> Array:
        if self.holds(x):
            return x
        out = self._be.empty_ordered(x, x.shape, x.dtype, self.empty)
        np.copyto(out, x)
        if not self.holds(out):
            # Kept, so that no array from outside comes to lie where calls know this one.
            self._kept.append(out)
        return out

    def detached(self, again: Again) -> Again:
        found: Again = _Detaching(self._alias).of(again)
        return found

    def _alias(self, x: Array) -> Array:
        return self._arena.alias(x) if self.holds(x) else x


_OWN = __name__.partition(".")[0] + "."
_COMMON = __name__.rpartition(".")[0] + "."
"""Where the types of what is common to all calls are defined, such as backends."""


class _Detaching:
    """Copies of functions, and of the library's objects, that refer to other arrays.

    What is of another type stays as it is, with the memory that it refers to.
    """

    def __init__(self, alias: Callable[[Array], Array]) -> None:
        self._alias = alias
        self._known: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        """`value`, or a copy of it with an alias for each array that it refers to."""
        kind = type(value)
        if kind is np.ndarray:
            return self._alias(value)
        copied = self._copier(kind)
        if copied is None:
            return value
        # In a circle the value itself, until its copy is there.
        if id(value) not in self._known:
            self._known[id(value)] = value
            self._known[id(value)] = copied(value)
        return self._known[id(value)]

    def _copier(self, kind: type) -> Callable[[Any], Any] | None:
        if issubclass(kind, (tuple, list)):
            return self._sequence
        if kind is dict:
            return self._dict
        if kind is FunctionType:
            return self._function
        if kind is MethodType:
            return lambda x: _changed(
                x, (x.__self__,), self.of, lambda s: MethodType(x.__func__, s)
            )
        if kind is partial:
            return self._partial
        where = kind.__module__
        is_own = (where.startswith(_OWN) and not where.startswith(_COMMON)) or kind is Reduction
        return self._object if is_own and kind.__dictoffset__ else None

    def _sequence(self, value: Any) -> Any:
        kind = type(value)
        make = getattr(kind, "_make", kind)
        return _changed(value, value, self.of, lambda *items: make(items))

    def _dict(self, value: dict[Any, Any]) -> Any:
        return _changed(
            value, value.values(), self.of, lambda *items: dict(zip(value, items, strict=True))
        )

    def _partial(self, value: partial[Any]) -> Any:
        parts = value.func, value.args, value.keywords
        return _changed(value, parts, self.of, lambda fn, args, kw: partial(fn, *args, **kw))

    def _object(self, value: Any) -> Any:
        def made(attributes: dict[str, Any]) -> Any:
            new = copy.copy(value)
            vars(new).update(attributes)
            return new

        return _changed(value, (vars(value),), self.of, made)

    def _function(self, value: FunctionType) -> Any:
        cells = value.__closure__ or ()
        parts = [_content(cell) for cell in cells]

        def made(defaults: Any, keywords: Any, *contents: Any) -> Any:
            closure = tuple(
                cell if new is old else CellType(new)
                for cell, old, new in zip(cells, parts, contents, strict=True)
            )
            new = FunctionType(
                value.__code__, value.__globals__, value.__name__, defaults, closure or None
            )
            new.__kwdefaults__ = keywords
            new.__qualname__ = value.__qualname__
            return new

        return _changed(value, (value.__defaults__, value.__kwdefaults__, *parts), self.of, made)


def _content(cell: CellType) -> Any:
    """What a cell holds; the cell itself if that is nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell


def _changed(value: Any, parts: Any, of: Callable[[Any], Any], make: Callable[..., Any]) -> Any:
    """`value`, or what is made of other parts than it has."""
    parts = list(parts)
    others = [of(part) for part in parts]
    is_same = all(a is b for a, b in zip(parts, others, strict=True))
    return value if is_same else make(*others)
