"""What operations return, and how parts of a batch are handed on while they are in the cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from ..backend import Array

__all__ = ["Done", "Emit", "Into", "Order", "OwnVjp", "Take", "Vjp"]

Vjp: TypeAlias = Callable[[Array], tuple[Array | None, ...]]
"""From the gradient of the output to the gradients of the inputs, None where not needed."""


class OwnVjp(partial[tuple[Array | None, ...]]):
    """A vjp `fn(gy, own=False)` that returns arrays to which nothing else refers, each in memory of
    its own.

    With `own` nothing else refers to `gy` either, and a gradient may be written in its place: that
    saves memory, and time, as memory that was not used for long is slow to write to. (A call of
    `partial` itself costs no call of a Python function.)
    """


Take: TypeAlias = Callable[[slice], Array]
"""Maps `(n, *S, C)` of some images, made when asked for; valid until the next call on the thread.
"""

Into: TypeAlias = Callable[[slice], Array]
"""Where the maps `(n, *OUT, O)` of some images are to be written."""

Done: TypeAlias = Callable[[slice, Array], None]
"""Told when the maps of some images are complete, while they are in the cache."""

Order: TypeAlias = Callable[[Array], Array]
"""A view of pooled maps `(n, *OUT, O)` in the order of taps."""

Emit: TypeAlias = Callable[[slice, list[Array], Order | None], None]
"""Gets, or fills, the taps of some images: what each place of a pooling's kernel meets, in row
order, arrays of one shape. Their elements are in the order of pooled maps, or in one that is given.
Backward asks for the same parts as forward, unless the order is that of pooled maps.
"""
