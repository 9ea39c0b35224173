"""Elementwise expressions on NumPy arrays: large ones part by part, on the worker pool."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import workers
from .expression import Program, UntraceableError, trace, where

__all__ = ["Fused"]

FUSE_ELEMENTS = 1 << 17
"""Elements of one part of an elementwise expression. Parts of 2**17 to 2**18 ran twice as fast on
two threads as parts of 2**14: each ufunc call takes the interpreter lock once."""

PROGRAM_BYTES = 1 << 14
"""For smaller arrays temporaries cost less than the list of calls that saves them."""

_plain = SimpleNamespace(**{**vars(np), "where": where})
_apart: frozenset[int] = frozenset()


class Fused:
    """The expression `fn(xp, *arrays, *scalars)` as a function of arrays and scalars.

    `backend` gives memory and threads.
    """

    def __init__(self, fn: Callable[..., Any], backend: Any) -> None:
        self.fn = fn
        self.backend = backend
        self._programs: dict[Any, Program | None] = {}

    def __call__(self, *args: Any, out: Any = None) -> Any:
        largest = 0
        for a in args:
            if type(a) is np.ndarray and a.nbytes > largest:
                largest = a.nbytes
        if largest < PROGRAM_BYTES:
            return self._plainly(args, out)
        arrays = [a for a in args if isinstance(a, np.ndarray)]
        shape = arrays[0].shape
        if any(a.shape != shape for a in arrays):
            shape = np.broadcast_shapes(*(a.shape for a in arrays))
        full = [isinstance(a, np.ndarray) and a.shape == shape for a in args]
        program = self._program(args, full)
        if program is None or not any(full):
            return self._plainly(args, out)
        if out is None:
            out = self._outputs(program, args, full, shape)
        outs = out if isinstance(out, tuple) else (out,)
        aliases = _aliases(args, outs, shape)
        if aliases is None:
            return self._plainly(args, out)
        if largest < workers.INLINE_BYTES or self.backend.pool.inside:
            program.run(args, outs, outs[0].shape, aliases, self._scratch)
        else:
            self._parts(program, args, outs, shape, aliases)
        return out

    def _plainly(self, args: tuple[Any, ...], out: Any) -> Any:
        """Evaluated as it stands, temporaries and all."""
        result = self.fn(_plain, *args)
        if out is None:
            if type(result) is tuple:
                return tuple(np.asarray(r) for r in result)
            return result if type(result) is np.ndarray else np.asarray(result)
        if isinstance(out, tuple):
            for target, value in zip(out, result, strict=True):
                np.copyto(target, value, casting="same_kind")
        else:
            np.copyto(out, result, casting="same_kind")
        return out

    def _program(self, args: tuple[Any, ...], full: list[bool]) -> Program | None:
        """The calls for arguments of these kinds, found once; None where there is no such list."""
        key = (
            *(a.dtype if isinstance(a, np.ndarray) else type(a) for a in args),
            *full,
        )
        if key not in self._programs:
            try:
                self._programs[key] = trace(self.fn, args, full)
            except UntraceableError:
                self._programs[key] = None
        return self._programs[key]

    def _scratch(self, number: int, shape: tuple[int, ...], dtype: Any) -> Any:
        return self.backend.workspace(f"expression {number}", shape, dtype)

    def _outputs(
        self, program: Program, args: tuple[Any, ...], full: list[bool], shape: tuple[int, ...]
    ) -> Any:
        """Arrays for the results, in the memory order of the first operand of their shape."""
        like = next(a for a, f in zip(args, full, strict=True) if f)
        dtypes = (
            args[r].dtype if dtype is None else dtype
            for r, dtype in zip(program.results, program.dtypes, strict=True)
        )
        made = tuple(self.backend.empty_ordered(like, shape, dtype) for dtype in dtypes)
        return made if program.several else made[0]

    def _parts(
        self,
        program: Program,
        args: tuple[Any, ...],
        outs: tuple[Any, ...],
        shape: tuple[int, ...],
        aliases: tuple[frozenset[int], ...],
    ) -> None:
        arrays = [a for a in args if isinstance(a, np.ndarray)]
        flat = _flat([*arrays, *outs])
        if flat is not None:
            arrays, outs = flat[: len(arrays)], tuple(flat[len(arrays) :])
            shape = arrays[0].shape
        elif not shape or shape[0] == 1:
            program.run(args, outs, shape, aliases, self._scratch)
            return
        # An operand is split along the first axis unless it is broadcast along it.
        split = [a.ndim == len(shape) and a.shape[0] == shape[0] for a in arrays]
        rows = max(1, FUSE_ELEMENTS * shape[0] // max(1, math.prod(shape)))
        parts = workers.staggered(shape[0], -(-shape[0] // rows))

        def body(i: int) -> None:
            part = parts[i]
            operands = iter(a[part] if s else a for a, s in zip(arrays, split, strict=True))
            given = [next(operands) if isinstance(a, np.ndarray) else a for a in args]
            into = [o[part] for o in outs]
            program.run(given, into, into[0].shape, aliases, self._scratch)

        self.backend.pool.run(body, len(parts))


def _aliases(
    args: tuple[Any, ...], outs: tuple[Any, ...], shape: tuple[int, ...]
) -> tuple[frozenset[int], ...] | None:
    """For each output the arguments that are it; None where one overlaps it in another way, or
    where the output is larger than what the arguments make.
    """
    found = []
    for out in outs:
        same = _apart
        if out.shape != shape:
            return None
        for i, a in enumerate(args):
            if isinstance(a, np.ndarray) and np.may_share_memory(a, out):
                if not _is_same(a, out):
                    return None
                same = same | {i}
        found.append(same)
    return tuple(found)


def _is_same(a: Any, b: Any) -> bool:
    """Whether two arrays are the same elements in the same order."""
    if a is b:
        return True
    alike = a.shape == b.shape and a.strides == b.strides and a.dtype == b.dtype
    return bool(alike and a.__array_interface__["data"] == b.__array_interface__["data"])


def _flat(arrays: list[Any]) -> list[Any] | None:
    """The arrays as vectors over the same places in memory order; None if that takes a copy."""
    first = arrays[0]
    if any(a.shape != first.shape for a in arrays):
        return None
    if all(a.flags.c_contiguous for a in arrays):
        return [a.reshape(-1) for a in arrays]
    order = sorted(range(first.ndim), key=lambda axis: -first.strides[axis])
    flat = [a.transpose(order) for a in arrays]
    if not all(a.flags.c_contiguous for a in flat):
        return None
    return [a.reshape(-1) for a in flat]
