"""Elementwise expressions on float16: computed in float32, and rounded once, at the end.

Otherwise each operation would round its result to 11 bits, and NumPy would take ten times as long,
as few processors have float16 arithmetic. It is the memory that holds float16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any

__all__ = ["has_half", "in_float32", "is_narrow", "rounded", "takes_half", "widened"]

MARK = "_takes_half"


def has_half(args: Sequence[Any]) -> bool:
    """Whether there is an array of float16 among them."""
    return any(_is_half(a) for a in args)


def _is_half(x: Any) -> bool:
    return getattr(getattr(x, "dtype", None), "char", "") == "e"


def is_narrow(arrays: Sequence[Any]) -> bool:
    """Whether results are float16 too: no array is of a wider type."""
    return not any(a.dtype.kind == "f" and not _is_half(a) for a in arrays)


def widened(args: Sequence[Any]) -> list[Any]:
    """The arguments, those of float16 as float32."""
    return [a.astype("float32") if _is_half(a) else a for a in args]


def rounded(result: Any) -> Any:
    """Results in float32 as float16; those of other types as they are."""
    if isinstance(result, tuple):
        return tuple(rounded(r) for r in result)
    return result.astype("float16") if result.dtype.char == "f" else result


@lru_cache(maxsize=1024)
def in_float32(fn: Callable[..., Any], narrow: bool) -> Callable[..., Any]:
    """The expression `fn(xp, *arrays, *scalars)` for arrays of which some are float16."""

    @wraps(fn)
    def computed(xp: Any, *args: Any) -> Any:
        result = fn(xp, *widened(args))
        return rounded(result) if narrow else result

    setattr(computed, MARK, True)
    return computed


def takes_half(fn: Callable[..., Any]) -> bool:
    """Whether `in_float32` made it."""
    return hasattr(fn, MARK)
