"""What a function refers to: the arrays, and the values that it could change."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from .base import Backend
from .calls import Calls
from .fused import Fused

__all__ = ["reach", "walk"]

_APART = (Backend, Calls, Fused, ModuleType, type, CodeType)
"""Types of what is common to all functions, or remembers what it has found."""

_LIBRARY = __name__.partition(".")[0] + "."

_VALUES = (int, float, complex, str, bytes, np.generic, np.dtype)


def reach(fn: Any) -> tuple[list[Any], list[Any]]:
    """The NumPy arrays that `fn` refers to, by way of whatever it refers to, and a description of
    all of it, equal as long as numbers, containers and the places of arrays stay the same.
    """
    arrays: list[Any] = []
    state: list[Any] = []
    for found in walk(fn, np.ndarray):
        if isinstance(found, _VALUES):
            state.append(repr(found))
        elif isinstance(found, np.ndarray):
            arrays.append(found)
            state.append((found.ctypes.data, found.shape, found.strides, found.dtype))
        else:
            state.append(type(found))
    return arrays, state


def walk(fn: Any, end: type) -> Iterator[Any]:
    """What `fn` refers to, by way of whatever it refers to but what is an `end`.

    Of functions what they enclose and their defaults count, and the names of their module that they
    use: but for the library's own, whose modules hold nothing that changes.
    """
    seen: set[int] = set()
    stack = [fn]
    # What was found stays alive, so that no other object gets its identity meanwhile.
    kept: list[Any] = []
    while stack:
        found = stack.pop()
        if isinstance(found, _VALUES):
            yield found
            continue
        if found is None or isinstance(found, _APART) or id(found) in seen:
            continue
        seen.add(id(found))
        kept.append(found)
        yield found
        if isinstance(found, end):
            continue
        if isinstance(found, FunctionType):
            stack += (found.__closure__, found.__defaults__, found.__kwdefaults__)
            if not str(found.__module__).startswith(_LIBRARY):
                stack += (found.__globals__.get(name) for name in _names(found.__code__))
        elif isinstance(found, dict):
            stack += (x for pair in found.items() for x in pair)
        else:
            stack += gc.get_referents(found)


def _names(code: CodeType) -> Iterator[str]:
    """Names of a module that code may use, and functions made in it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)
