"""Tensor and the tape: reverse-mode differentiation of coarse operations.

A Tensor that came from an operation holds its parents and the operation's `vjp`. `backward` walks
the graph from the result to the leaves once, and frees each closure as it passes. First order only.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any, NoReturn

from . import backend
from .backend import Array, Backend
from .backend.calls import CaptureError
from .operators import Operators
from .ops.types import OwnVjp
from .recording import (
    capturing,
    casting,
    check_unchanged,
    enable_grad,
    is_grad_enabled,
    no_grad,
    note_change,
    note_update,
    recording,
    updates,
    watch,
    watching,
)
from .values import Values

__all__ = ["Tensor", "apply", "enable_grad", "is_grad_enabled", "no_grad", "watch"]


def apply(op: Callable[..., Any], *inputs: Any, **params: Any) -> Any:
    """Run `op` on Tensors, arrays, numbers or None and record it if an input wants a gradient.

    `op(*arrays, **params)` returns `(y, vjp)`, as the operations of `dualcnn.ops` do; if it has a
    keyword `needs` it is told which inputs want a gradient. A `vjp` of None says that none passes.
    Returns the Tensor of `y`; for an operation with a third result, `(Tensor, extra)`.

    >>> def double(x):
    ...     return x * 2, lambda gy: (gy * 2,)
    >>> y = dualcnn.apply(double, x)
    """
    caster = casting.get()
    if caster is not None:
        inputs = caster(op, inputs)
    needs, arrays = [], []
    for x in inputs:
        if isinstance(x, Tensor):
            needs.append(x.requires_grad)
            arrays.append(x._data)
        else:
            needs.append(False)
            arrays.append(x if x is None or backend.is_array(x) else _plain(x))
    recorded = recording.get() and True in needs
    if _takes_needs(op):
        params["needs"] = tuple(needs) if recorded else (False,) * len(inputs)
    y, vjp, *extra = op(*arrays, **params)
    watcher = watching.get()
    if watcher is not None:
        vjp = watcher(op, arrays, params, y, vjp)
    result = Tensor.__new__(Tensor)
    result._data = y if backend.is_array(y) else _as_array(y)
    if recorded and vjp is not None:
        result._requires_grad = True
        result._parents = inputs
        result._vjp = vjp
        result._made_at = updates[0]
    return (result, *extra) if extra else result


@cache
def _takes_needs(op: Callable[..., Any]) -> bool:
    return "needs" in inspect.signature(op).parameters


def _plain(x: Any) -> Any:
    """The array of a Tensor, and the Python number of a NumPy scalar, which would widen dtypes."""
    if isinstance(x, Tensor):
        return x._data
    return x.item() if backend.is_scalar(x) else x


def _freed(gy: Array) -> NoReturn:
    raise RuntimeError(
        "backward ran through this graph before, and its closures were freed; compute the result "
        "again, or add the losses and call backward once"
    )


class Tensor(Values, Operators):
    """An array that can be differentiated with respect to.

    `data` is an array of any backend, or a list or number (floats become float32 on the current
    backend). Only floating-point Tensors may require a gradient. `.data` and `.grad` are arrays.
    """

    __array_ufunc__ = None  # NumPy arrays leave infix operators with a Tensor to the Tensor.

    # Of the class until they are set: most Tensors are results that live for a step.
    _data: Array
    _parents: tuple[Any, ...] = ()
    _vjp: Callable[[Array], tuple[Array | None, ...]] | None = None
    grad: Array | None = None
    data_slot: Array | None = None
    grad_slot: Array | None = None
    _requires_grad = False
    _lasts = False
    """Whether backward may come again, where the closure keeps nothing: of `autocast`'s copies."""
    _is_spent = False
    """Whether it came."""
    _made_at: float = 0
    _updated_at = 0
    """When it was recorded, and when its values were written over last, counted in `updates`."""

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        self._data = _as_array(data)
        if requires_grad:
            self._check_differentiable()
            self._requires_grad = True

    def _apply(self, op: Callable[..., Any], *inputs: Any, **params: Any) -> Any:
        return apply(op, *inputs, **params)

    # Copies, by copy.deepcopy and pickle: leaves without gradient, in no flat parameter buffer.

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self._data, "requires_grad": self.is_leaf and self.requires_grad}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Tensor.__init__(self, state["data"], state["requires_grad"])

    # What it is.

    @property
    def data(self) -> Array:
        """The array; assigning one replaces the values, in place in a flat parameter buffer."""
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        value = _as_array(value)
        if tuple(value.shape) != self.shape:
            raise ValueError(
                f"expected an array of shape {self.shape} for .data, got {tuple(value.shape)}"
            )
        if self.requires_grad and not backend.of(data=value).is_floating(value):
            raise TypeError(
                f"expected floating-point numbers for .data, as it requires a gradient, got "
                f"{value.dtype}"
            )
        if self.data_slot is None:
            if value is self._data:
                # After `tensor.data -= ...`.
                note_update(self)
                return
            self._data = value
            note_change()
        else:
            be = backend.of(data=self.data_slot)
            be.assign(self.data_slot, backend.asarray(value, self.data_slot.dtype, backend=be))
            note_update(self)

    @property
    def backend(self) -> Backend:
        """The backend that holds the array."""
        return backend.of(tensor=self._data)

    @property
    def device(self) -> str:
        """Where the array lies: "cpu", "cuda:0"."""
        return self.backend.device

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of all axes."""
        return tuple(self._data.shape)

    @property
    def dtype(self) -> Any:
        """The type of the elements."""
        return self._data.dtype

    @property
    def is_leaf(self) -> bool:
        """Whether it came from the user rather than from a recorded operation."""
        return self._vjp is None

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one axis."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def __repr__(self) -> str:
        note = ", requires_grad=True" if self.requires_grad else ""
        return f"{type(self).__name__}({self._data!r}{note})"

    # Gradients.

    def _set_requires_grad(self, value: bool) -> None:
        if value != self._requires_grad:
            self._requires_grad = value
            note_change()

    requires_grad = property(
        attrgetter("_requires_grad"), _set_requires_grad, doc="Whether a gradient is wanted."
    )

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Want a gradient of this leaf, or want none."""
        if requires_grad:
            self._check_differentiable()
        self.requires_grad = requires_grad
        return self

    def _check_differentiable(self) -> None:
        if not self.backend.is_floating(self._data):
            raise TypeError(
                f"only floating-point Tensors can require a gradient, got {self.dtype}; use "
                'astype("float32")'
            )

    def detach(self) -> Tensor:
        """A Tensor of the same array that the tape does not follow."""
        return Tensor(self._data)

    def backward(self, gradient: Any = None) -> None:
        """Add the gradient of this Tensor to `.grad` of every leaf that requires one.

        `gradient` is the gradient of what comes after, by default 1 for a single number. Raises
        `RuntimeError` where nothing was recorded or the graph was used before.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "nothing was recorded for this Tensor: no input required a gradient, or it was "
                "computed under no_grad()"
            )
        if capturing.get():
            raise CaptureError(
                "backward within a captured function would not set gradients again. Fix: call it "
                "on what the function returns"
            )
        self._walk(gradient, Tensor._accumulate)

    def _walk(self, gradient: Any, deliver: Callable[[Tensor, Array], None]) -> None:
        """`deliver(leaf, gradient)` for every leaf that wants one, as `backward` does."""
        be = self.backend
        if gradient is None:
            if self.numel() != 1:
                raise RuntimeError(
                    f"backward of a Tensor of shape {self.shape} needs backward(gradient) of that "
                    "shape; only a single number has the default gradient 1"
                )
            gradient = be.full(self.shape, 1.0, self.dtype)
        else:
            gradient = be.asarray(_plain(gradient), self.dtype)
            if gradient.shape != self._data.shape:
                _refuse_gradient(gradient, self)
        # With each, whether nothing but this tape refers to it.
        pending: dict[int, tuple[Array, bool]] = {id(self): (gradient, False)}
        parts: Any = None

        def hand(leaf: Tensor, part: Array) -> None:
            if not leaf._requires_grad:
                return
            if part.shape != leaf._data.shape:
                _refuse_gradient(part, leaf)
            known = pending.pop(id(leaf), None) if pending else None
            deliver(leaf, part if known is None else _sum(*known, part))

        nodes = _sorted_nodes(self)
        # The last to be differentiated: after it nothing else comes for a leaf.
        for last in nodes:
            if last._vjp is not None:
                break
        for node in reversed(nodes):
            found = pending.pop(id(node), None)
            if found is None:
                continue
            g, is_own = found
            if node._vjp is None:
                deliver(node, g)
                continue
            vjp, parents = node._vjp, node._parents
            if node._made_at < updates[0]:
                check_unchanged(node)
            if node._lasts:
                node._is_spent = True
            else:
                node._vjp, node._parents = _freed, ()
            makes_own = False
            try:
                if type(vjp) is OwnVjp:
                    makes_own = True
                    parts = vjp(g, is_own)
                elif node is last and isinstance(vjp, HandingVjp):
                    parts = vjp.fn(g, hand)
                else:
                    parts = vjp(g)
            except Exception as error:
                backend.tell_gradient(error, vjp, node._data, [id(p) for p in parents])
                raise
            if not isinstance(parts, (tuple, list)):
                raise TypeError(f"expected a vjp to return a tuple, got {type(parts).__name__}")
            for parent, part in zip(parents, parts, strict=False):
                if part is None or not isinstance(parent, Tensor) or not parent.requires_grad:
                    continue
                if part.shape != parent._data.shape:
                    _refuse_gradient(part, parent)
                key = id(parent)
                known = pending.get(key)
                if known is None:
                    pending[key] = part, makes_own
                else:
                    pending[key] = _sum(*known, part), True
            # Or they would lie there until the next vjp has returned.
            parts = part = known = found = None

    def leaves(self) -> list[Tensor]:
        """The Tensors that `backward` gives gradients: from the user, and wanting one."""
        return [node for node in _sorted_nodes(self) if node.is_leaf]

    def _accumulate(self, g: Array) -> None:
        be = backend.of(gradient=g)
        if g.dtype != self._data.dtype:
            g = be.cast(g, self._data.dtype)
        if self.grad is not None:
            be.fuse(_add)(self.grad, g, out=self.grad)
        elif self.grad_slot is not None:
            self.grad = be.assign(self.grad_slot, g)
        else:
            self.grad = be.copy(g)

    # Moves.

    def to(self, device: str | Backend) -> Tensor:
        """This Tensor on another backend; gradients come back the same way."""
        target = backend.get(device)
        if target is self.backend:
            return self
        result: Tensor = apply(_moved, self, target=target)
        return result

    def cpu(self) -> Tensor:
        """This Tensor on the host."""
        return self.to("cpu")

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        """The place of the largest element, of all or along `dim`; no gradient."""
        be = self.backend
        return Tensor(be.scalar(be.xp.argmax(self._data, axis=dim, keepdims=keepdim)))

    def _compared(self, relation: Callable[..., Any], other: Any) -> Any:
        other = _plain(other)
        be = backend.of(tensor=self._data, other=other)
        return Tensor(be.scalar(be.plainly(relation, self._data, other)))


def _as_array(data: Any) -> Array:
    if backend.is_array(data):
        return data
    if isinstance(data, Tensor):
        return data._data
    # NumPy's float64 is a float as well, but says what it is.
    if isinstance(data, (list, tuple, int, float)) and not hasattr(data, "dtype"):
        be = backend.current()
        array = be.asarray(data)
        default = be.dtype("float32")
        return be.asarray(data, default) if be.is_floating(array) else array
    if not hasattr(data, "shape") or not hasattr(data, "dtype"):
        raise TypeError(f"expected an array, a list or a number, got {type(data).__name__}")
    return backend.asarray(data) if backend.is_scalar(data) else data


def _sorted_nodes(last: Tensor) -> list[Tensor]:
    """All Tensors that lead to `last`, each after its parents; no recursion, so any depth."""
    order: list[Tensor] = []
    seen: set[int] = set()
    # Above a node lies None, and above that its parents: at None they are in order, all of them.
    stack: list[Any] = [last]
    while stack:
        node = stack.pop()
        if node is None:
            order.append(stack.pop())
        elif id(node) not in seen:
            seen.add(id(node))
            if node._vjp is None:
                order.append(node)
                continue
            stack += (node, None)
            # The first on top: `backward` then comes to weights, most often leaves, before it goes
            # down to inputs, and their gradients don't lie there until the end.
            for p in node._parents[::-1]:
                if isinstance(p, Tensor) and p.requires_grad:
                    stack.append(p)
    return order


class HandingVjp:
    """A vjp `fn(gy, hand)` that gives gradients of leaves to `hand(leaf, gradient)` as it finds
    them, in memory that it uses again. Where `hand` is None it returns them like others.
    """

    def __init__(self, fn: Callable[..., tuple[Array | None, ...]]) -> None:
        self.fn = fn

    def __call__(self, gy: Array) -> tuple[Array | None, ...]:
        return self.fn(gy, None)


def _refuse_gradient(g: Array, of: Tensor) -> NoReturn:
    raise ValueError(
        f"expected a gradient of shape {of.shape}, that of its Tensor, got {tuple(g.shape)}"
    )


def _sum(known: Array, is_own: bool, part: Array) -> Array:
    """The sum, in the place of the first where nothing but the tape refers to that."""
    out = known if is_own and known.dtype == part.dtype else None
    total: Array = backend.of(known=known, part=part).fuse(_add)(known, part, out=out)
    return total


def _add(xp: Any, a: Array, b: Array) -> Array:
    return a + b


def _moved(x: Array, *, target: Backend) -> Any:
    home = backend.of(x=x)
    return backend.asarray(x, backend=target), lambda gy: (backend.asarray(gy, backend=home),)
