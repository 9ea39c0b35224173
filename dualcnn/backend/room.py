"""Memory for captured calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np

from .arena import Arena
from .base import Array
from .reduction import Reduction

__all__ = ["Again", "ArenaRoom", "Room"]

Again = Callable[[], Any] | tuple[Callable[[], Any], ...]
"""What makes a call again, perhaps as several, one after the other."""


class Room:
    """Memory for captured calls. Here all of it stays in use, and theirs."""

    def __init__(self, be: Any) -> None:
        # The backend's own: its attribute is another while a `Capture` is open.
        self._empty = be.empty
        self._kept: list[Array] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Unset values: each run writes them before it reads them."""
        return self._empty(shape, dtype)

    def lasting(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Memory that nothing else in a run writes to."""
        return self._empty(shape, dtype)

    def placed(self, x: Array) -> Array:
        """`x`, or a copy that takes its place, where it lies in this memory."""
        self._kept.append(x)
        return x

    def detached(self, again: Again) -> Again:
        """The call, or one that does the same and keeps less memory in use."""
        return again


class ArenaRoom(Room):
    """Memory that calls use again within a run, as an eager run does.

    While calls are noted, what the function lets go gives its memory to what comes later. The notes
    don't keep it: they refer to arrays by their aliases, which the arena does not count. Calls are
    made again in the same order, so what is free for one is free for it each time.

    What lay somewhere at the end of a run is not there any more when the next one comes: but for
    `lasting` memory, a noted call has to write what another reads.
    """

    def __init__(self, be: Any, shared: bool = False) -> None:
        super().__init__(be)
        # What eager code has left free serves nobody while captured calls have their own: of a
        # ResNet-18 114 MB, in which its parameters were drawn.
        be.release()
        self._be = be
        self._arena = Arena(shared=shared, smallest=0)
        # Of their own, and kept, so that no block in it is ever another's.
        self._lasting = Arena(shared=shared, smallest=0)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self._arena.empty(shape, dtype)

    def lasting(self, shape: tuple[int, ...], dtype: Any) -> Array:
        found = self._lasting.empty(shape, dtype)
        self._kept.append(found)
        return found

    def holds(self, x: Array) -> bool:
        """Whether `x` lies here."""
        address = x.ctypes.data
        return self._arena.holds(address) or self._lasting.holds(address)

    def placed(self, x: Array) -> Array:
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
        # Lasting memory is kept anyway.
        return self._arena.alias(x) if self._arena.holds(x.ctypes.data) else x


_LIBRARY = __name__.partition(".")[0] + "."
_BACKEND = __name__.rpartition(".")[0] + "."


class _Detaching:
    """Copies of the library's functions and objects that refer to aliases of arrays.

    Copied are functions and methods, partial calls and containers, and the objects that operations
    work with: not a backend's, which are common to all calls, but for `Reduction`, which is one
    call's. Other people's functions and objects stay as they are, with the memory that they refer
    to: they may tell arrays apart by identity, or talk to each other by what they refer to.
    """

    def __init__(self, alias: Callable[[Array], Array]) -> None:
        self._alias = alias
        self._known: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        """`value`, or a copy of it with an alias for each array that it refers to."""
        copied = self._copier(value)
        if copied is None:
            return value
        # In a circle the value itself, until its copy is there.
        if id(value) not in self._known:
            self._known[id(value)] = value
            self._known[id(value)] = copied(value)
        return self._known[id(value)]

    def _copier(self, value: Any) -> Callable[[Any], Any] | None:
        kind = type(value)
        if kind is np.ndarray:
            return self._alias
        if kind in (tuple, list) or (issubclass(kind, tuple) and hasattr(kind, "_make")):
            return self._sequence
        if kind is dict:
            return self._dict
        if kind is partial:
            return self._partial
        if kind is CellType:
            return self._cell
        if kind is MethodType:
            return self._method if self._is_own(type(value.__self__)) else None
        if kind is FunctionType:
            return self._function if str(value.__module__).startswith(_LIBRARY) else None
        return self._object if self._is_own(kind) and kind.__dictoffset__ else None

    def _is_own(self, kind: type) -> bool:
        where = kind.__module__
        return kind is Reduction or (where.startswith(_LIBRARY) and not where.startswith(_BACKEND))

    def _sequence(self, value: Any) -> Any:
        kind = type(value)
        make = getattr(kind, "_make", kind)
        return self._changed(value, value, lambda *items: make(items))

    def _dict(self, value: dict[Any, Any]) -> Any:
        def made(*items: Any) -> Any:
            return dict(zip(value, items, strict=True))

        return self._changed(value, value.values(), made)

    def _partial(self, value: partial[Any]) -> Any:
        parts = value.func, value.args, value.keywords
        return self._changed(value, parts, lambda fn, args, kw: partial(fn, *args, **kw))

    def _method(self, value: MethodType) -> Any:
        return self._changed(
            value, (value.__self__,), lambda owner: MethodType(value.__func__, owner)
        )

    def _cell(self, value: CellType) -> Any:
        try:
            content = value.cell_contents
        except ValueError:
            # Nothing yet.
            return value
        return self._changed(value, (content,), CellType)

    def _function(self, value: FunctionType) -> Any:
        def made(defaults: Any, keywords: Any, *cells: CellType) -> Any:
            new = FunctionType(
                value.__code__, value.__globals__, value.__name__, defaults, cells or None
            )
            new.__kwdefaults__, new.__qualname__ = keywords, value.__qualname__
            new.__module__ = value.__module__
            return new

        parts = value.__defaults__, value.__kwdefaults__, *(value.__closure__ or ())
        return self._changed(value, parts, made)

    def _object(self, value: Any) -> Any:
        def made(attributes: dict[str, Any]) -> Any:
            new = copy.copy(value)
            vars(new).update(attributes)
            return new

        return self._changed(value, (vars(value),), made)

    def _changed(self, value: Any, parts: Iterable[Any], make: Callable[..., Any]) -> Any:
        """`value`, or what is made of other parts than it has."""
        parts = list(parts)
        others = [self.of(part) for part in parts]
        is_same = all(a is b for a, b in zip(parts, others, strict=True))
        return value if is_same else make(*others)
