"""Mixed precision: which operations run in float16 and which in float32.

Products take most of a network's time and bear rounded operands well, as they are summed in
float32; exponentials, powers, sums and losses need float32's range and digits. Everything else runs
in the dtype in which its input comes. Micikevicius and others, "Mixed precision training", 2018.

| dtype | operations |
| --- | --- |
| float16 | conv2d, linear, matmul, and what begins with one: conv2d_relu, conv2d_relu_max_pool2d |
| float32 | softmax, log_softmax, cross_entropy, nll_loss, mse_loss, sum, pow |
| the wider of its inputs' | add, sub, mul, div, concat |

PyTorch has the same lists, as far as there is the same operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Number
from typing import Any, NamedTuple

from . import ops
from .autograd import Tensor, apply, is_grad_enabled
from .recording import casting

__all__ = ["autocast", "is_autocast_enabled"]

NARROW = (
    ops.conv2d,
    ops.conv2d_relu,
    ops.conv2d_relu_max_pool2d,
    ops.linear,
    ops.matmul,
)
WIDE = (
    ops.softmax,
    ops.log_softmax,
    ops.cross_entropy,
    ops.nll_loss,
    ops.mse_loss,
    ops.sum,
    ops.pow,
)
WIDEST = (ops.add, ops.sub, ops.mul, ops.div, ops.concat)

_RULES: dict[Callable[..., Any], str] = {
    **dict.fromkeys(NARROW, "float16"),
    **dict.fromkeys(WIDE, "float32"),
    **dict.fromkeys(WIDEST, "widest"),
}
DTYPES = ("float16", "float32")
"""What is cast; whole numbers and float64 stay as they are."""


@contextmanager
def autocast(dtype: str = "float16", enabled: bool = True) -> Iterator[None]:
    """Within the block, or the function that it decorates, run products in float16.

    Parameters stay float32. An operation that runs in float16 gets a copy, made once while the
    block lasts and no gradient went back through it, and gradients arrive in float32. Small
    gradients would vanish in float16: `optim.GradScaler` multiplies the loss.

    Blocks nest, and belong to their thread or task. `backward` may come after the block: it follows
    the dtypes that forward had. `enabled=False` computes as without a block. Cast are Tensors and
    arrays of float32 and float16 in operations on Tensors; `dualcnn.ops` runs as it is given.

    >>> with dualcnn.autocast("float16"):
    ...     loss = F.cross_entropy(model(x), y)
    >>> scaler.scale(loss).backward()
    """
    if dtype != "float16":
        why = ": NumPy has none, and CuPy fuses no expressions of it" if dtype == "bfloat16" else ""
        raise ValueError(f'expected "float16" as dtype of autocast, got {dtype!r}{why}')
    token = casting.set(_Caster() if enabled else None)
    try:
        yield
    finally:
        casting.reset(token)


def is_autocast_enabled() -> bool:
    """Whether operations are cast now."""
    return casting.get() is not None


class _Copy(NamedTuple):
    """A leaf, kept alive so that its id stays its own, and what it was cast to."""

    leaf: Tensor
    cast: Tensor


class _Caster:
    """Casts the inputs of operations; the copies of leaves are kept."""

    def __init__(self) -> None:
        self._copies: dict[int, _Copy] = {}

    def __call__(self, op: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs in the dtype that the operation runs in."""
        rule = _RULES.get(op)
        if rule is None:
            return inputs
        kinds = [_kind(x) for x in inputs]
        if rule == "widest":
            rule = max((k for k in kinds if k), default="")
            # Of one kind: nothing to do, and the usual case.
            if not rule or kinds.count(rule) == len(kinds):
                return inputs
        pairs = zip(inputs, kinds, strict=True)
        return tuple([self._cast(x, rule) if kind and kind != rule else x for x, kind in pairs])

    def _cast(self, x: Any, dtype: str) -> Tensor:
        cached = isinstance(x, Tensor) and x.requires_grad and x.is_leaf and is_grad_enabled()
        known = self._copies.get(id(x)) if cached else None
        # Once backward came the leaf may have been updated.
        if known is not None and not known.cast._is_spent:
            return known.cast
        cast: Tensor = apply(ops.astype, x, dtype=dtype)
        if cached:
            cast._lasts = True
            self._copies[id(x)] = _Copy(x, cast)
        return cast


def _kind(x: Any) -> str:
    """The dtype of what may be cast, by name; "" for anything else, bare numbers among it."""
    dtype = str(getattr(x, "dtype", "")).rpartition(".")[2]
    return dtype if dtype in DTYPES and not isinstance(x, Number) else ""
