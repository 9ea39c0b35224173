"""What a computation calls of a backend, noted so that it can be called again without Python.

Within `with Capture(calls):` each primitive that writes an array is noted in `calls` with its
arguments. `calls.run()` makes the same calls again: what lies in the arrays then is computed anew,
into the arrays of the first time. That is what a CUDA graph does on a GPU, here for any backend.

Only arrays are computed anew. What Python worked out (a learning rate, a branch, a random stream)
stays as it was, and arithmetic that went past the backend is not seen. Both show when the same is
captured twice: `Calls.difference` finds a constant, or an array from outside, that is another.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .base import Array
from .calls import Calls
from .places import frame
from .reach import reach

__all__ = ["Capture"]

MAKING = "sum", "max", "fold", "sum_centred", "random_bits", "cast", "widened", "asarray", "scalar"
"""Primitives that make an array, or return the one that they were given."""

_one_at_a_time = threading.RLock()


class Capture:
    """A block in which calls of one backend's primitives on this thread are noted in `calls`.

    What is read there would stay as it is, so `Backend.reads()` is False; branches taken by
    `Backend.decide` are noted.
    """

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.backend = calls.backend
        self.is_noting = False
        self._depth = 0
        self._thread = threading.get_ident()

    def __enter__(self) -> Capture:
        _one_at_a_time.acquire()
        be = self.backend
        own: dict[str, Callable[..., Any]] = {
            "empty": self._empty,
            "full": self._full,
            "constant": self.unseen(be.constant),
            "assign": self._assign,
            "add_to": self._add_to,
            "contiguous": self._contiguous,
            "reshape": self._reshape,
            "workspace": self._workspace,
            "framed": self._framed,
            "pad": self._pad,
            "blocks": self._blocks,
            "reduce_blocks": self._reduce_blocks,
            "matmul": self._matmul,
            "contract": self._contract,
            "fuse": self._fuse,
            "plainly": self._plainly,
            "decide": self._decide,
            "reads": lambda: False,
            **{name: partial(self._made, name) for name in MAKING},
        }
        self._primitives = {name: getattr(be, name) for name in own}
        self._xp = be.xp
        # Attributes of the instance come before those of its class.
        for name, method in own.items():
            setattr(be, name, self.noting(method, self._primitives[name]))
        be.xp = _Namespace(self, be.xp)
        self.is_noting = True
        return self

    def __exit__(self, *error: object) -> None:
        self.is_noting = False
        for name in self._primitives:
            delattr(self.backend, name)
        self.backend.xp = self._xp
        # An expression asked for here, which a noted call may refer to, would close a circle, and
        # the calls and their memory would live on until the garbage collector comes.
        del self.calls
        _one_at_a_time.release()

    def noting(
        self, method: Callable[..., Any], primitive: Callable[..., Any]
    ) -> Callable[..., Any]:
        """`method` for calls from outside on this thread; other threads, and what a primitive
        calls in its turn, get the primitive.
        """

        def call(*args: Any, **options: Any) -> Any:
            if self._depth or threading.get_ident() != self._thread:
                return primitive(*args, **options)
            return method(*args, **options)

        return call

    def unseen(self, primitive: Callable[..., Any]) -> Callable[..., Any]:
        """`primitive`, of whose own calls none is noted."""

        def call(*args: Any, **options: Any) -> Any:
            self._depth += 1
            try:
                return primitive(*args, **options)
            finally:
                self._depth -= 1

        return call

    # Memory.

    def _empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.calls.hold(self.calls.room.empty(shape, dtype), unset=True)

    def _full(self, shape: tuple[int, ...], value: float, dtype: Any) -> Array:
        return self._assign(self._empty(shape, dtype), value)

    def _workspace(self, key: str, shape: tuple[int, ...], dtype: Any) -> Array:
        # Of the calls' own: what runs in between must neither find nor leave anything there.
        name = (key, shape, str(dtype))
        if name not in self.calls.scratch:
            self.calls.scratch[name] = self._empty(shape, dtype)
        return self.calls.scratch[name]

    def _framed(self, key: str, x: Array, widths: Sequence[tuple[int, int]]) -> Array:
        shape, inner = frame(x.shape, widths)
        name = (key, shape, str(x.dtype), tuple(widths))
        if name not in self.calls.scratch:
            # The zeros around are written once: nothing else is to come there.
            zeros = self.calls.hold(self.calls.room.lasting(shape, x.dtype))
            self.calls.scratch[name] = self.unseen(self._primitives["assign"])(zeros, 0)
        out = self.calls.scratch[name]
        self._assign(out[inner], x)
        return out

    def mirror(self, x: Array) -> Array:
        """What other processes see of an array from outside: a copy, made anew in each run."""
        if self.calls.knows(x) or not math.prod(x.shape):
            return x
        key = "mirror", self.backend.address(x), x.shape, x.strides, str(x.dtype)
        if key not in self.calls.scratch:
            mirror = self.calls.scratch[key] = self.calls.argument(x)
            again = self.backend.bound(self._primitives["assign"], mirror, x)
            self.calls.note("mirror", again, (x,), ())
            self.calls.copied.append(self.calls.span(x))
        return self.calls.scratch[key]

    # Copies.

    def _assign(self, out: Array, x: Any) -> Array:
        self.unseen(self._primitives["assign"])(out, x)
        return self._copied(out, x)

    def _copied(self, out: Array, x: Any) -> Array:
        again = self.backend.bound(self._primitives["assign"], out, x)
        self.calls.note("assign", again, (x,), (out,))
        return out

    def _add_to(self, out: Array, x: Array) -> Array:
        add_to = self._primitives["add_to"]
        self.unseen(add_to)(out, x)
        self.calls.note("add_to", self.backend.bound(add_to, out, x), (x,), (out,))
        return out

    def _contiguous(self, x: Array) -> Array:
        found = self.unseen(self._primitives["contiguous"])(x)
        return found if self.calls.is_view(found, (x,)) else self._copied(self.calls.hold(found), x)

    def _reshape(self, x: Array, shape: tuple[int, ...]) -> Array:
        found = self.unseen(self._primitives["reshape"])(x, shape)
        if self.calls.is_view(found, (x,)):
            return found
        found = self.calls.hold(found)
        self._copied(self.backend.reshape_view(found, tuple(x.shape)), x)
        return found

    def _pad(
        self, x: Array, widths: Sequence[tuple[int, int]], value: float = 0.0, out: Any = None
    ) -> Array:
        if out is None:
            out = self._empty(frame(x.shape, widths)[0], x.dtype)
        return self.written("pad", self._primitives["pad"], (x, tuple(widths), value), out)

    # Arithmetic.

    def _matmul(
        self, a: Array, b: Array, out: Array | None = None, accumulate: bool = False
    ) -> Array:
        matmul = self._primitives["matmul"]
        if accumulate:
            matmul = partial(matmul, accumulate=True)
        return self.written("matmul", matmul, (a, b), out)

    def _contract(
        self, subscripts: str, *operands: Array, out: Array | None = None, accumulate: bool = False
    ) -> Array:
        contract = self._primitives["contract"]
        if accumulate:
            contract = partial(contract, accumulate=True)
        return self.written("contract", contract, (subscripts, *operands), out)

    def _fuse(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        fused = self._primitives["fuse"](fn)

        def call(*args: Any, out: Any = None) -> Any:
            return self.written(fn.__qualname__, fused, args, out)

        # What is asked for here may be called within a part, on any thread, or on the way back,
        # when another capture notes.
        noting = self.noting(call, fused)

        def later(*args: Any, out: Any = None) -> Any:
            return (noting if self.is_noting else self._present("fuse")(fn))(*args, out=out)

        return later

    def _present(self, name: str) -> Callable[..., Any]:
        """The backend's primitive as it is now: its own, or that of another capture."""
        return getattr(self.backend, name)  # type: ignore[no-any-return]

    def written(
        self,
        name: str,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        out: Any,
        options: tuple[Any, ...] = (),
    ) -> Any:
        """Of a primitive that writes to `out`, or made an array and could have written to it.

        `options` are what the call got besides.
        """
        found = self.unseen(call)(*args, out=out)
        outs = found if isinstance(found, tuple) else (found,)
        if out is None:
            outs = tuple(map(self.calls.hold, outs))
            found = outs if isinstance(found, tuple) else outs[0]
        self.calls.note(name, self.backend.bound(call, *args, out=found), (*args, *options), outs)
        return found

    def _plainly(self, fn: Callable[..., Any], *args: Any) -> Any:
        plainly = partial(self._primitives["plainly"], fn)
        return self.stored(fn.__qualname__, self.unseen(plainly)(*args), plainly, *args)

    def _made(self, name: str, *args: Any, **options: Any) -> Any:
        primitive = self._primitives[name]
        found = self.unseen(primitive)(*args, **options)
        return self.stored(name, found, primitive, *args, **options)

    def stored(
        self, name: str, found: Any, primitive: Callable[..., Any], *args: Any, **options: Any
    ) -> Any:
        """Note what made `found`, unless that is memory which was there before."""
        be = self.backend
        if isinstance(found, np.generic):
            found = self._primitives["scalar"](found)
        made = found if isinstance(found, tuple) else (found,)
        given = [a for a in args if be.owns(a)]
        if not all(be.owns(m) and not self.calls.is_view(m, given) for m in made):
            return found
        is_one = made[0] is found
        made = tuple(map(self.calls.hold, made))
        found = made[0] if is_one else made
        if is_one:
            again = be.bound_into(found, primitive, *args, **options)
        else:
            assign = self._primitives["assign"]

            def again() -> None:
                for target, value in zip(made, primitive(*args, **options), strict=True):
                    assign(target, value)

        self.calls.note(name, again, (*args, *options.values()), made)
        return found

    # Parts of a batch: those that other threads take part in are one call.

    def _blocks(self, n: int, bytes_each: int, body: Callable[[slice], None]) -> None:
        blocks = partial(self._primitives["blocks"], n, bytes_each, body)
        if not self.backend.shares(n, bytes_each):
            blocks()
            return
        self.unseen(blocks)()
        self.calls.may_write(reach(body)[0])
        self.calls.note("blocks", blocks, (n, bytes_each, body), ())

    def _reduce_blocks(self, n: int, bytes_each: int, *what: Any) -> list[Array]:
        if not self.backend.shares(n, bytes_each):
            return list(self._primitives["reduce_blocks"](n, bytes_each, *what))
        reduce = self.backend.reduction(n, bytes_each, *what, empty=self._empty)
        totals = self.unseen(reduce)()
        self.calls.may_write(reach(what)[0])
        self.calls.note("reduce_blocks", reduce, (n, bytes_each, *what), totals)
        return list(totals)

    # Values.

    def _decide(self, flag: Array) -> bool:
        return self.calls.decide(flag, self._primitives["decide"](flag))


class _Namespace:
    """The array namespace, its functions noted as primitives are."""

    def __init__(self, capture: Capture, xp: Any) -> None:
        self._capture = capture
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._xp, name)
        if not callable(value) or isinstance(value, type):
            return value
        capture = self._capture

        # What a ufunc is to write to may also come by position.
        taken = getattr(value, "nin", None)

        def call(*args: Any, out: Any = None, **options: Any) -> Any:
            if taken is not None and len(args) > taken:
                args, out = args[:taken], args[taken:]
            if isinstance(out, tuple) and len(out) == 1:
                (out,) = out
            others = tuple(options.values())
            if out is not None:
                return capture.written(name, partial(value, **options), args, out, others)
            found = value(*args, **options)
            # What returns nothing wrote to its first argument, what returns a later one to that.
            if found is None:
                into = args[0] if args else None
            else:
                into = next((a for a in args[1:] if a is found), None)
            if not capture.backend.owns(into):
                return capture.stored(name, found, value, *args, **options)
            again = partial(value, *args, **options)
            capture.calls.note(name, again, (*args, *others), (into,))
            return found

        return capture.noting(call, value)
