"""`fuse`: what CuPy can trace, and nothing else."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from stand_in.array import counters, lift, lower, ndarray

CUDA_NAMES = """
    abs acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp2 expm1
    fabs floor fma fmax fmin fmod frexp hypot ldexp lgamma log log10 log1p log2 logb max min modf
    nearbyint nextafter norm pow remainder rint round rsqrt sin sincos sinh sqrt tan tanh tgamma
    trunc
"""
"""Functions of CUDA's own, after which no kernel may be named."""

PARAMETER_BYTES = 32764
"""What CUDA passes to a kernel at most."""


class Traced(ndarray):
    """An array inside a fused function: elementwise operations only."""

    def __getattr__(self, name: str) -> Any:
        if name in ("dtype", "ndim"):
            return getattr(self._host, name)
        raise AttributeError(f"{name!r} isn't available inside a fused function")

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("only elementwise operations can be fused")

    view = fill = set = get = item = tolist = _refuse
    __len__ = __iter__ = __getitem__ = __bool__ = __float__ = __int__ = _refuse
    T = mT = base = data = device = property(_refuse)

    def __setitem__(self, key: Any, value: Any) -> None:
        if key is not ... and key != slice(None):
            raise TypeError("a fused function assigns whole arrays only")
        with np.errstate(all="ignore"):
            self._host[...] = lower(value)


class Scalar:
    """A scalar argument of a fused function. It may meet arrays but has no operators of its own:
    from scalars alone CuPy's fusion would compute in half precision.
    """

    __array_ufunc__ = None
    __slots__ = ("under_trace",)

    def __init__(self, value: np.generic) -> None:
        self.under_trace = value


def fuse(*args: Any, kernel_name: str | None = None) -> Any:
    """`fuse(fn)`, `@fuse` or `@fuse(kernel_name=...)`."""
    if not args:
        return functools.partial(fuse, kernel_name=kernel_name)
    (fn,) = args
    if not (kernel_name or fn.__name__).isidentifier():
        raise TypeError(f"CuPy can't name a kernel after {fn}: pass kernel_name")
    if (kernel_name or fn.__name__) in CUDA_NAMES.split():
        raise RuntimeError(f"CUDA has a function {kernel_name or fn.__name__}: it won't compile")

    def fused(*operands: Any, **named: Any) -> Any:
        if named:
            raise TypeError(f"a fused function takes no keyword arguments, got {sorted(named)}")
        if not any(isinstance(operand, ndarray) for operand in operands):
            return fn(*operands)
        arrays = [operand for operand in operands if isinstance(operand, ndarray)]
        if sum(16 * array.ndim + 16 for array in arrays) > PARAMETER_BYTES:
            raise RuntimeError("formal parameter space overflowed: too many arrays for a kernel")
        before = counters.launches
        result = fn(*(_trace(operand) for operand in operands))
        counters.launches = before + 1
        return _untrace(result)

    return fused


def _trace(operand: Any) -> Any:
    if isinstance(operand, ndarray):
        traced = ndarray.__new__(Traced)
        traced._host = operand._host
        return traced
    if isinstance(operand, np.generic):
        return Scalar(operand)
    if isinstance(operand, np.ndarray):
        raise TypeError(f"Unsupported type {type(operand)}")
    if isinstance(operand, (bool, int, float)):
        raise TypeError(
            f"expected a typed scalar such as numpy.float32({operand}), got {type(operand)}: "
            "fusion compiles Python numbers as the narrowest type that holds them"
        )
    raise TypeError(f"a fused function takes arrays and scalars, got {type(operand)}")


def _untrace(result: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(_untrace(item) for item in result)
    if isinstance(result, Traced):
        return lift(result._host)
    if result is None:
        return None
    raise TypeError(f"a fused function returns arrays, got {type(result)}")
