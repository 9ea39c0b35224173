"""Convolution (cross-correlation, as in PyTorch) for n spatial axes, by the algorithm that fits."""

from __future__ import annotations

from typing import Any

from .. import backend
from ..backend import Array
from . import geometry
from .algorithms import chosen
from .geometry import channels_first, channels_last, hashable
from .types import Vjp

__all__ = ["conv2d"]


@geometry.or_one_image(2)
def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    algorithm: str | None = None,
    needs: tuple[bool, ...] = (True, True, True),
) -> tuple[Array, Vjp]:
    """Convolve images `(N, C, H, W)` with weights `(O, C/groups, KH, KW)` to `(N, O, OH, OW)`,
    or one image `(C, H, W)` to `(O, OH, OW)`.

    `OH = (H + padding - dilation * (KH - 1) - 1) // stride + 1`, likewise `OW`. `stride` and
    `dilation` are a number or a pair. `padding` is a number, a pair (height, width), four numbers
    (top, left, bottom, right), "valid" or, with stride 1, "same". `algorithm` is one of
    `algorithms.NAMES`; None leaves the choice to the library. Raises `GeometryError` when shapes do
    not fit. Dumoulin, Visin, "A guide to convolution arithmetic", 2016.

    >>> y, vjp = conv2d(x, weight, bias, padding=1)
    >>> gx, gw, gb = vjp(gy)
    """
    return _convolve(2, x, weight, bias, stride, padding, dilation, groups, algorithm, needs)


def _convolve(
    n: int,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    algorithm: str | None,
    needs: tuple[bool, ...],
) -> tuple[Array, Vjp]:
    be = backend.of(x=x, weight=weight, bias=bias)
    geometry.one_dtype(be, x=x, weight=weight, bias=bias)
    window = geometry.convolution(
        n,
        tuple(x.shape),
        tuple(weight.shape),
        None if bias is None else tuple(bias.shape),
        hashable(stride),
        hashable(padding),
        hashable(dilation),
        groups,
    )
    xl, wl = channels_last(be, x), channels_last(be, weight)
    by = chosen(be, algorithm, xl, wl, window, groups)
    yl = by.forward(be, xl, wl, bias, window, groups)
    y = channels_first(be, yl)

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        gl = channels_last(be, be.in_order_of(gy, y))
        wanted = (needs[0], needs[1], bias is not None and needs[2])
        gx, gw, gb = by.gradients(be, xl, gl, wl, window, groups, wanted)
        gx, gw = (None if g is None else channels_first(be, g) for g in (gx, gw))
        return gx, gw, gb

    return y, vjp
