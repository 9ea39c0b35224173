"""Calls of NumPy's primitives with arrays that stay, as `Calls` makes them.

What a primitive finds out about its arguments (whether BLAS can read them, which ufuncs an
expression is) is found out once, and what is left is NumPy's own function. Forward and backward
of net e took 369 us as calls of the primitives, and take 197 so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import numpy as np

from .fused import Fused
from .products import SERIAL_PRODUCT, for_blas, is_for_ones
from .room import Again
from .straight import straight_plainly
from .workers import COPIED_BYTES

__all__ = ["bound", "bound_into"]


def bound(
    be: Any, primitive: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> Again:
    """The quickest call that does what `primitive(*args, **options)` does to these arrays."""
    if isinstance(primitive, Fused):
        return primitive.bound(*args, **options)
    name = _method(primitive)
    if name == "assign":
        out, x = args
        if isinstance(x, np.ndarray) and out.nbytes < COPIED_BYTES:
            return partial(np.copyto, out, x, casting="same_kind")
    elif name == "add_to":
        out, x = args
        return partial(np.add, out, x, out)
    elif name == "matmul":
        (a, b), out = args, options["out"]
        # Of 2 bytes: float16, perhaps, whose products are other ones.
        is_plain = min(a.itemsize, b.itemsize) > 2 and for_blas(a) is a and for_blas(b) is b
        if is_plain and out.size * a.shape[-1] < SERIAL_PRODUCT:
            # What `products.multiply` comes to for so few.
            outer = a.shape[-1] == 1 and a.ndim > 1 and b.ndim > 1
            return partial(np.multiply if outer else np.matmul, a, b, out)
    elif name == "contract" and args[0] == "mc->c":
        x, out = args[1], options["out"]
        if is_for_ones(x) and x.size < SERIAL_PRODUCT:
            return partial(np.matmul, be.ones_for(x), x, out)
    return partial(primitive, *args, **options)


def bound_into(
    be: Any,
    out: Any,
    primitive: Callable[..., Any],
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> Again:
    """The same where `primitive` makes an array, which is to be written to `out`."""
    if isinstance(primitive, np.ufunc):
        return partial(primitive, *args, out=out, **options)
    if isinstance(primitive, partial) and _method(primitive.func) == "plainly":
        steps = straight_plainly(primitive.args[0], args, out)
        return steps or partial(_stored, out, primitive.args[0], np, *args)
    if primitive is np.sum and set(options) == {"axis"}:
        x = args[0]
        if isinstance(x, np.ndarray) and x.dtype == out.dtype:
            return partial(np.add.reduce, x, options["axis"], out=out)
    name = _method(primitive)
    if name == "cast":
        return partial(np.copyto, out, args[0], casting="unsafe")
    if name in ("sum", "max") and out.itemsize > 2 and not options:
        reduce = np.add.reduce if name == "sum" else np.maximum.reduce
        axis = args[1] if len(args) > 1 else None
        return partial(reduce, args[0], axis, out=out, keepdims=axis is not None)
    return lambda: be.assign(out, primitive(*args, **options))


def _stored(out: Any, fn: Callable[..., Any], *args: Any) -> None:
    np.copyto(out, fn(*args), casting="same_kind")


def _method(primitive: Callable[..., Any]) -> str:
    """The name of a backend's method; "" of anything else."""
    return primitive.__name__ if isinstance(primitive, MethodType) else ""
