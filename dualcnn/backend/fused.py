"""Elementwise expressions on NumPy arrays: large ones part by part, on the worker pool."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from . import half, workers
from .choose import masked, where
from .expression import Aliases, Call, Program, deliver, trace
from .room import Again
from .straight import straight_numbers
from .symbols import UntraceableError

__all__ = ["Fused"]

FUSE_ELEMENTS = 1 << 17
"""Elements of one part of an elementwise expression. Parts of 2**17 to 2**18 ran twice as fast on
two threads as parts of 2**14: each ufunc call takes the interpreter lock once."""

ALONE_BYTES = 1 << 21
"""Expressions on smaller arrays run on the caller's thread: they take 0.2 ms, and to share them
costs as much. A LeNet step at batch 64 took 4.6 ms with 2**20 and 4.3 with 2**21 or 2**22."""

PROGRAM_BYTES = 1 << 14
"""Results of smaller arrays cost less as they stand than to look up the list of calls."""

SCRATCH_BYTES = 1 << 16
"""For smaller arrays fresh temporaries cost less than to look scratch up."""

KINDS = 256
"""Combinations of shapes and dtypes whose list of calls is kept, for each expression."""


class _Found(NamedTuple):
    """What is known of arguments and outputs of some kinds and shapes."""

    program: Program | None
    """The calls that make the results; None where they can't be listed."""
    shape: tuple[int, ...]
    """That of the results."""
    like: int
    """An argument of that shape."""
    largest: int
    """Bytes of the largest argument."""
    direct: Call | None
    """The calls on small arrays, and the pairs of argument and output that it may not overlap."""
    late: list[tuple[int, int]]


_plain = SimpleNamespace(**{**vars(np), "where": where, "masked": masked})
_apart: frozenset[int] = frozenset()


class Fused:
    """The expression `fn(xp, *arrays, *scalars)` as a function of arrays and scalars.

    `backend` gives memory and threads.
    """

    def __init__(self, fn: Callable[..., Any], backend: Any) -> None:
        self.fn = fn
        self.backend = backend
        self._known: dict[Any, _Found] = {}

    def __call__(self, *args: Any, out: Any = None) -> Any:
        if out is None:
            for a in args:
                # Of 2 bytes: float16, perhaps, which is computed in another way.
                if isinstance(a, np.ndarray) and (a.nbytes >= PROGRAM_BYTES or a.itemsize == 2):
                    break
            else:
                return _delivered(self.fn(_plain, *args), None, args)
        outs = () if out is None else out if type(out) is tuple else (out,)
        key = _key(args, outs)
        if key is None:
            return self(*map(_bare, args), out=out)
        found = self._known.get(key)
        if found is None:
            found = self._found(key, args, outs)
        if found.direct is not None:
            for i, k in found.late:
                if np.may_share_memory(args[i], outs[k]):
                    break
            else:
                result = found.direct(args, outs, None)
                return result if out is None else out
        return self._at_length(found, args, out)

    def bound(self, *args: Any, out: Any) -> Again:
        """The call with these very arrays, after the look at them that a call starts with."""
        outs = out if type(out) is tuple else (out,)
        shape = outs[0].shape
        if shape and all(not isinstance(a, np.ndarray) or a.shape != shape for a in args):
            # Calls are listed for arguments of which one has the shape of the results.
            for i, a in enumerate(args):
                if isinstance(a, np.ndarray):
                    args = (*args[:i], np.broadcast_to(a, shape), *args[i + 1 :])
                    break
        key = _key(args, outs)
        if key is not None:
            found = self._known.get(key) or self._found(key, args, outs)
            aliases = _aliases(args, outs, found.shape)
            if found.program is not None and found.direct is not None and aliases is not None:
                steps = found.program.straight(args, outs, aliases)
                if steps is not None:
                    return steps
            # float16 is computed in float32.
            if not shape and len(outs) == 1 and not half.has_half([*args, out]):
                return straight_numbers(self.fn, args, out) or partial(self, *args, out=out)
        return partial(self, *args, out=out)

    def _at_length(self, found: _Found, args: tuple[Any, ...], out: Any) -> Any:
        """Evaluated into scratch, perhaps part by part, after a look at what overlaps what."""
        program, shape = found.program, found.shape
        if program is None:
            return self._plainly(args, out)
        if out is None:
            out = self._outputs(program, args, found.like, shape)
        outs = out if type(out) is tuple else (out,)
        aliases: Aliases | None = None
        # Where only the last call writes to the output, and makes its own copies of what it reads
        # there, there is nothing to look out for.
        pool = self.backend.pool
        is_small = found.largest * pool.local.ease < workers.INLINE_BYTES
        if not (is_small and program.writes_last and outs[0].shape == shape):
            aliases = _aliases(args, outs, shape)
            if aliases is None:
                return self._plainly(args, out)
        if found.largest * pool.local.ease < ALONE_BYTES or pool.local.inside:
            program.run(args, outs, aliases, self.backend.scratch)
        else:
            self._parts(program, args, outs, shape, aliases)
        return out

    def _plainly(self, args: tuple[Any, ...], out: Any) -> Any:
        """Evaluated as it stands, temporaries and all."""
        arrays = [a for a in args if isinstance(a, np.ndarray)]
        if half.has_half(arrays):
            result = self(*half.widened(args))
            return _delivered(half.rounded(result) if half.is_narrow(arrays) else result, out, args)
        return _delivered(self.fn(_plain, *args), out, args)

    def _found(self, key: tuple[Any, ...], args: tuple[Any, ...], outs: tuple[Any, ...]) -> _Found:
        """What is to be done with arguments and outputs of these kinds and shapes."""
        arrays = [a for a in args if isinstance(a, np.ndarray)]
        shape = np.broadcast_shapes(*(a.shape for a in arrays))
        full = [isinstance(a, np.ndarray) and a.shape == shape for a in args]
        program, direct = None, None
        late: list[tuple[int, int]] = []
        largest = max((a.nbytes for a in arrays), default=0)
        # Reductions of single numbers are no arrays that could be written to.
        if any(full) and shape and not half.has_half(arrays):
            with suppress(UntraceableError):
                program = trace(self.fn, args, full)
                # Without outputs results are made as they come: all of them must have the shape.
                fits = all(o.shape == shape for o in outs) if outs else program.fills
                if largest < SCRATCH_BYTES and fits:
                    direct, late = program.direct(outs)
        if len(self._known) >= KINDS:
            self._known.clear()
        like = full.index(True) if any(full) else 0
        found = self._known[key] = _Found(program, shape, like, largest, direct, late)
        return found

    def _outputs(
        self, program: Program, args: tuple[Any, ...], like: int, shape: tuple[int, ...]
    ) -> Any:
        """Arrays for the results, in the memory order of an operand of their shape."""
        dtypes = (
            args[r].dtype if dtype is None else dtype
            for r, dtype in zip(program.results, program.dtypes, strict=True)
        )
        made = tuple(self.backend.empty_ordered(args[like], shape, dtype) for dtype in dtypes)
        return made if program.several else made[0]

    def _parts(
        self,
        program: Program,
        args: tuple[Any, ...],
        outs: tuple[Any, ...],
        shape: tuple[int, ...],
        aliases: Aliases | None,
    ) -> None:
        arrays = [a for a in args if isinstance(a, np.ndarray)]
        flat = _flat([*arrays, *outs])
        if flat is not None:
            arrays, outs = flat[: len(arrays)], tuple(flat[len(arrays) :])
            shape = arrays[0].shape
        elif not shape or shape[0] == 1:
            program.run(args, outs, aliases, self.backend.scratch)
            return
        # An operand is split along the first axis unless it is broadcast along it.
        split = [a.ndim == len(shape) and a.shape[0] == shape[0] for a in arrays]
        rows = max(1, FUSE_ELEMENTS * shape[0] // max(1, math.prod(shape)))
        parts = self.backend.pool.divided(shape[0], -(-shape[0] // rows))

        def body(i: int) -> None:
            part = parts[i]
            operands = iter(a[part] if s else a for a, s in zip(arrays, split, strict=True))
            given = [next(operands) if isinstance(a, np.ndarray) else a for a in args]
            into = [o[part] for o in outs]
            program.run(given, into, aliases, self.backend.scratch)

        self.backend.pool.run(body, len(parts))


def _key(args: tuple[Any, ...], outs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Kinds and shapes of arguments and outputs; None where an argument is a subclass's.

    Such as that of a memory-mapped file: results are no such arrays.
    """
    key: list[Any] = []
    for a in args:
        if type(a) is np.ndarray:
            key += (a.shape, a.dtype)
        elif isinstance(a, np.ndarray):
            return None
        else:
            key.append(type(a))
    for o in outs:
        key += (o.shape, o.dtype, o.flags.c_contiguous)
    return tuple(key)


def _bare(a: Any) -> Any:
    return np.asarray(a) if isinstance(a, np.ndarray) else a


def _delivered(result: Any, out: Any, args: tuple[Any, ...]) -> Any:
    """Results as arrays, or written to `out`."""
    if out is None:
        if type(result) is np.ndarray:
            return result
        if type(result) is tuple:
            return tuple(np.asarray(r) for r in result)
        return np.asarray(result)
    if not isinstance(out, tuple):
        np.copyto(out, result, casting="same_kind")
    elif any(value is a for value in result for a in args):
        deliver(list(zip(out, result, strict=True)))
    else:
        # What was computed lies in memory of its own.
        for target, value in zip(out, result, strict=True):
            np.copyto(target, value, casting="same_kind")
    return out


def _aliases(
    args: tuple[Any, ...], outs: tuple[Any, ...], shape: tuple[int, ...]
) -> Aliases | None:
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
