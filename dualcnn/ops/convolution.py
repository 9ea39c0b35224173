"""Convolution (cross-correlation, as in PyTorch) for n spatial axes, by the algorithm that fits."""

from __future__ import annotations

from typing import Any, cast

from .. import backend
from ..backend import Array, Backend
from . import chwn, geometry
from .algorithms import Algorithm, ByTap, chosen, leaves_images_last, overruled
from .geometry import Window, channels_first, channels_last, hashable, images_last
from .rows import Planes, Rows, plus
from .types import Done, Emit, Into, OwnVjp, Take, Vjp

__all__ = ["Convolution", "conv2d"]


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
    conv = Convolution(2, x, weight, bias, stride, padding, dilation, groups, algorithm)
    y = conv.empty()
    conv.forward(lambda images: y[images, ...], conv.adding(bias))

    def vjp(gy: Array, own: bool = False) -> tuple[Array | None, ...]:
        return conv.gradients(conv.taker(gy), needs)

    return channels_first(conv.be, y), OwnVjp(vjp)


class Convolution:
    """A convolution of given arrays, ready to run part by part: what `conv2d` and the operations
    that go on with its maps while they are in the cache have in common.
    """

    def __init__(
        self,
        n: int,
        x: Array,
        weight: Array,
        bias: Array | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        algorithm: str | None,
    ) -> None:
        be = self.be = backend.of(x=x, weight=weight, bias=bias)
        geometry.one_dtype(be, x=x, weight=weight, bias=bias)
        self.window = geometry.convolution(
            n,
            tuple(x.shape),
            tuple(weight.shape),
            None if bias is None else tuple(bias.shape),
            hashable(stride),
            hashable(padding),
            hashable(dilation),
            groups,
        )
        self.x, self.weight = channels_last(be, x), channels_last(be, weight)
        self.has_bias = bias is not None
        self.groups = groups
        self.shape = (x.shape[0], *self.window.out, weight.shape[0])
        """`(N, *OUT, O)`."""
        self.algorithm = self._chosen(algorithm)
        self.images_last = False
        """Whether maps lie as `(O, *OUT, N)` in memory rather than channels-last."""

    def _chosen(self, asked: str | None) -> Algorithm:
        """The algorithm, decided once for these shapes: 7 us."""
        # Another block, dtype or backend may want another one.
        key = (self.be, self.x.dtype, asked, overruled())
        known: Algorithm | None = self.window.plans.get(key)
        if known is None:
            known = chosen(self.be, asked, self.x, self.weight, self.window, self.groups)
            self.window.plans[key] = known
        return known

    def keep_images_last(self) -> None:
        """Let maps lie in that order if the algorithm makes them so."""
        self.images_last = leaves_images_last(self.algorithm)

    def empty(self, size: tuple[int, ...] | None = None) -> Array:
        """Unset maps `(N, *OUT, O)`, or of another spatial size, in their memory order."""
        shape = self.shape if size is None else (self.shape[0], *size, self.shape[-1])
        if self.images_last:
            return chwn.empty(self.be, shape, self.x.dtype)
        return self.be.empty(shape, self.x.dtype)

    def scratch(self, key: str, shape: tuple[int, ...]) -> Array:
        """The same for some images, in scratch."""
        be, dtype = self.be, self.x.dtype
        if not self.images_last:
            return be.workspace(key, shape, dtype)
        n, *size, channels = shape
        return images_last(be, be.workspace(key, (channels, *size, n), dtype))

    def rows(self, size: tuple[int, ...] | None = None) -> Rows | Planes:
        """The maps, or those of another spatial size, seen where a channel's values are in runs."""
        if self.images_last:
            return Planes(self.be)
        return Rows(self.be, self.window.out if size is None else size, self.shape[-1])

    def forward(self, into: Into, done: Done) -> None:
        """Convolve, without the bias; see `algorithms.Algorithm`."""
        args = self.be, self.x, self.weight, self.window, self.groups
        self.algorithm.forward(*args, into, done)

    def adding(self, bias: Array | None) -> Done:
        """What adds the bias, if there is one, to maps that are complete."""

        def add(images: slice, maps: Array) -> None:
            if bias is not None:
                rows = self.rows()
                flat = rows.flat(maps)
                self.be.fuse(plus)(flat, rows.wide(bias), out=flat)

        return add

    def taker(self, gy: Array) -> Take:
        """Parts of an incoming gradient `(N, O, *OUT)`."""
        gl = channels_last(self.be, gy)
        if not self.images_last:
            gl = self.be.contiguous(gl)
        return lambda images: gl[images, ...]

    def gradients(self, gy: Take, needs: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """Of x, weight and bias, those that are needed, in their public shapes."""
        wanted = (needs[0], needs[1], self.has_bias and needs[2])
        args = self.be, self.x, gy, self.weight, self.window, self.groups
        return self._public(self.algorithm.gradients(*args, wanted))

    def forward_by_tap(self, pooling: Window, emit: Emit) -> None:
        """Convolve, and hand on the outputs sorted by their place under a pooling's kernel, whose
        windows lie side by side.
        """
        be = self.be
        by_tap = self._by_tap(pooling)
        if by_tap is not None:
            by_tap.forward_by_tap(be, self.x, self.weight, self.window, pooling.kernel, emit)
            return

        def into(images: slice) -> Array:
            shape = (images.stop - images.start, *self.shape[1:])
            return be.workspace("maps", shape, self.x.dtype)

        sort = be.host and self.shape[-1] <= SHORT_RUN

        def done(images: slice, maps: Array) -> None:
            emit(images, _sorted(be, maps, pooling) if sort else _taps(maps, pooling), None)

        self.forward(into, done)

    def gradients_by_tap(
        self, pooling: Window, emit: Emit, needs: tuple[bool, ...]
    ) -> tuple[Array | None, ...]:
        """As `gradients`, from what `emit` writes to the taps."""
        be = self.be
        by_tap = self._by_tap(pooling)
        if by_tap is not None:
            args = be, self.x, emit, self.weight, self.window, pooling.kernel
            wanted = (needs[0], needs[1], self.has_bias and needs[2])
            return self._public(by_tap.gradients_by_tap(*args, wanted))
        covered = all(
            p == o * s for p, o, s in zip(pooling.size, pooling.out, pooling.stride, strict=True)
        )

        def take(images: slice) -> Array:
            shape = (images.stop - images.start, *self.shape[1:])
            maps = be.workspace("maps", shape, self.x.dtype)
            if not covered:
                be.assign(maps, 0)
            emit(images, _taps(maps, pooling), None)
            return maps

        return self.gradients(take, needs)

    def _by_tap(self, pooling: Window) -> ByTap | None:
        """The algorithm, if it sorts its outputs for this pooling."""
        key = (self.be, self.x.dtype, self.algorithm, pooling.kernel)
        sorts: bool | None = self.window.plans.get(key)
        if sorts is None:
            # A look-up: `isinstance` of a protocol takes 30 us.
            sorts = hasattr(self.algorithm, "sorts") and cast(ByTap, self.algorithm).sorts(
                self.be, self.x, self.weight, self.window, pooling.kernel
            )
            self.window.plans[key] = sorts
        return cast(ByTap, self.algorithm) if sorts else None

    def _public(self, found: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
        gx, gw, gb = found
        gx = None if gx is None else channels_first(self.be, gx)
        gw = None if gw is None else channels_first(self.be, gw)
        return gx, gw, gb


SHORT_RUN = 16
"""Up to this many channels, taps are copied out of the maps, where they are runs of so many numbers
of memory. The maxima of 2x2 taps of 26x26x8 and their places took 34 us, on copies 19, which take 8
to make."""


def _sorted(be: Backend, maps: Array, pooling: Window) -> list[Array]:
    """Copies of what each place of the kernel meets, each in one piece, in scratch."""
    view = be.view(_by_place, maps, pooling.kernel, pooling.out)
    taps = be.assign(be.workspace("taps", tuple(view.shape), view.dtype), view)
    taps = be.reshape_view(taps, (-1, *view.shape[len(pooling.kernel) :]))
    return [taps[i, ...] for i in range(taps.shape[0])]


def _by_place(be: Backend, maps: Array, kernel: tuple[int, ...], out: tuple[int, ...]) -> Array:
    """Maps `(n, *S, O)` as `(*K, n, *OUT, O)`, for windows side by side."""
    n = len(kernel)
    inner = [slice(0, o * k) for o, k in zip(out, kernel, strict=True)]
    pairs = [size for pair in zip(out, kernel, strict=True) for size in pair]
    cells = be.reshape_view(
        maps[(slice(None), *inner, slice(None))], (maps.shape[0], *pairs, maps.shape[-1])
    )
    return be.permute(cells, (*range(2, 2 * n + 1, 2), 0, *range(1, 2 * n, 2), 2 * n + 1))


def _taps(maps: Array, pooling: Window) -> list[Array]:
    """Views of maps `(n, *S, O)`: what each place of the kernel meets."""
    args = pooling.kernel, pooling.stride, pooling.dilation, pooling.out
    return [maps[index] for _, index in backend.tap_slices(*args)]
