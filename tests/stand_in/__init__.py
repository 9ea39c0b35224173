"""A stand-in for CuPy 14 over NumPy's memory: `stand_in.cupy` takes the place of the module.

It refuses what CuPy refuses (NumPy operands, implicit conversion, keywords that CuPy lacks), shares
its habits (elementwise results in C order, out-of-range indices that wrap, views where it makes
views), is stricter where CuPy is silently wrong (duplicate indices in an assignment, arithmetic
between scalars inside `fuse`), and counts what costs time on a device: see `counters`.

Kernels written in CUDA C can't run here: their NumPy equals do, see `kernels`.
"""

from stand_in.array import Counters, counters, ndarray
from stand_in.module import cupy

__all__ = ["Counters", "counters", "cupy", "ndarray"]
