"""Gradient clipping by the norm of all gradients together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from .. import backend
from ..autograd import Tensor
from ..backend import Array, Backend
from .buffer import gradient_arrays

__all__ = ["clip_grad_norm_"]


def _power(xp: Any, g: Array, exponent: float) -> Array:
    return xp.abs(g) ** exponent


def _scaled(xp: Any, g: Array, norm: Array, max_norm: float) -> Array:
    factor = max_norm / (norm + 1e-6)
    # A factor of NaN would reach the gaps between parameters, and with them every later norm.
    return g * xp.where(factor < 1, factor, 1.0)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Array:
    """Scale the gradients of `parameters` so that their norm is at most `max_norm`.

    The norm is that of all elements together, of order `norm_type` (`math.inf` for the largest);
    gradients are multiplied by `max_norm / (norm + 1e-6)` where that is below one (Pascanu et al.
    2013, "On the difficulty of training recurrent neural networks"). Returns the norm before, a 0-d
    array; nothing waits for the device. A norm of NaN leaves the gradients as they are. With
    `error_if_nonfinite` the norm is read, and one that is infinite or NaN raises `RuntimeError`.
    """
    if not max_norm >= 0:
        raise ValueError(f"expected max_norm >= 0, got {max_norm!r}")
    if not norm_type > 0:
        raise ValueError(f"expected norm_type > 0, got {norm_type!r}")
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                "expected Tensors as parameters, such as model.parameters(), got a "
                f"{type(tensor).__name__}"
            )
    grads = gradient_arrays(list({id(tensor): tensor for tensor in tensors}.values()))
    if not grads:
        be = backend.current()
        return be.zeros((), be.dtype("float32"))
    be = backend.of(**{f"gradient_{i}": g for i, g in enumerate(grads)})
    norm = _norm(be, grads, float(norm_type))
    if error_if_nonfinite and not math.isfinite(float(backend.to_numpy(norm))):
        raise RuntimeError(
            f"the norm of the gradients is {float(backend.to_numpy(norm))}; with "
            "error_if_nonfinite=False they would be clipped all the same"
        )
    if max_norm < math.inf:
        for g in grads:
            # The norm of float16 may lie beyond its range.
            own = norm if be.is_half(g) else be.asarray(norm, g.dtype)
            be.fuse(_scaled)(g, own, float(max_norm), out=g)
    return norm


def _norm(be: Backend, grads: list[Array], order: float) -> Array:
    """The norm of all elements of the arrays, as a 0-d array."""
    xp = be.xp
    if all(math.prod(g.shape) == 0 for g in grads):
        return be.zeros((), grads[0].dtype)
    # Of no elements there is no maximum; squares of float16 would pass its range.
    grads = [be.widened(g) for g in grads if math.prod(g.shape)]
    if order == math.inf:
        return _combined(be, xp.max, [xp.max(xp.abs(g)) for g in grads])
    if order == 2:
        flat = [g if g.ndim == 1 else be.reshape(g, (math.prod(g.shape),)) for g in grads]
        return be.scalar(xp.sqrt(_combined(be, xp.sum, [be.contract("i,i->", g, g) for g in flat])))
    sums = [xp.sum(be.fuse(_power)(g, order)) for g in grads]
    return be.scalar(_combined(be, xp.sum, sums) ** (1 / order))


def _combined(be: Backend, reduce: Callable[[Array], Any], values: list[Any]) -> Array:
    """The reduction of 0-d arrays, in the widest dtype among them; a single one as it is."""
    arrays = [be.scalar(value) for value in values]
    if len(arrays) == 1:
        return arrays[0]
    dtype = be.xp.result_type(*arrays)
    return be.scalar(reduce(be.xp.stack([be.asarray(a, dtype) for a in arrays])))
