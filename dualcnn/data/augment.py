"""More training images out of those there are: crops, mirror images, moves, holes.

Each draws from a stream of `dualcnn.random`, where the images are: the same stream changes them in
the same way on every backend, and nothing waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend
from ..backend import Array, Backend
from ..ops.geometry import channels_first, channels_last
from ..random import Stream, next_stream

__all__ = ["Augmentation", "Cutout", "RandomCrop", "RandomHorizontalFlip", "RandomTranslate"]

Fill = float | Sequence[float]
"""The value of new pixels, or one value a channel, in the scale of the images."""


class Augmentation:
    """Changes the images of a batch at random, each by itself: `augment(x, stream)`.

    x: (N, C, H, W) of any dtype and backend, which is not written to. stream: what is drawn from;
    without one the next that `dualcnn.manual_seed` leads to. Returns images of the same dtype.
    One of your own overrides `rows`, or is any function of (x, stream).

    >>> loader = data.DataLoader(train, 512, shuffle=True, augment=[data.RandomHorizontalFlip()])
    """

    def __call__(self, x: Array, stream: Stream | None = None) -> Array:
        be = backend.of(x=x)
        if x.ndim != 4:
            raise ValueError(
                f"{type(self).__name__}: expected images (N, C, H, W), got shape {tuple(x.shape)}"
            )
        x = be.contiguous(channels_last(be, x))
        return channels_first(be, self.rows(be, x, next_stream() if stream is None else stream))

    def rows(self, be: Backend, x: Array, stream: Stream) -> Array:
        """What becomes of `x`, here (N, H, W, C)."""
        raise NotImplementedError


class RandomCrop(Augmentation):
    """Cuts out a part of `size` pixels, (H, W) or one number for both, from anywhere.

    padding: pixels around the image that may be cut out too, as many on each side.
    padding_mode: what is there: "constant", the value `fill`; "edge", the nearest pixel of the
    image; "reflect", the image mirrored at its outermost pixels, which are not repeated.
    Raises ValueError for images that are smaller than that.

    Example: RandomCrop(32, padding=4), for images of 32 x 32 pixels, as in He et al. 2015, "Deep
    residual learning for image recognition".
    """

    def __init__(
        self,
        size: int | Sequence[int],
        padding: int = 0,
        *,
        fill: Fill = 0,
        padding_mode: str = "constant",
    ) -> None:
        self.size = _size(size)
        self.padding = _count("padding", padding, 0)
        self.fill = fill
        self.padding_mode = padding_mode
        if padding_mode not in ("constant", "edge", "reflect"):
            raise ValueError(
                f'expected padding_mode "constant", "edge" or "reflect", got {padding_mode!r}'
            )

    def rows(self, be: Backend, x: Array, stream: Stream) -> Array:
        return self._cut(be, x, self.size, stream)

    def _cut(self, be: Backend, x: Array, size: tuple[int, int], stream: Stream) -> Array:
        n, height, width, _ = x.shape
        words = _words(be, 2 * n, stream)
        places, outside = [], []
        for axis, (whole, part) in enumerate(zip((height, width), size, strict=True)):
            self._check(whole, part)
            drawn = words[axis * n : (axis + 1) * n]
            first = _below(be, drawn, whole + 2 * self.padding - part + 1)[:, None]
            span = first, _range(be, part)[None, :], self.padding, whole - 1
            fold = _reflected if self.padding_mode == "reflect" else _nearest
            places.append(be.fuse(fold)(*span))
            outside.append(be.fuse(_outside)(*span))
        cut = _taken(be, x, *places)
        if self.padding_mode != "constant" or self.padding == 0:
            return cut
        return _replaced(be, _either, cut, outside, self.fill)

    def _check(self, whole: int, part: int) -> None:
        if whole + 2 * self.padding < part:
            raise ValueError(
                f"{type(self).__name__}: can't cut {part} pixels out of {whole} with "
                f"{self.padding} around them; use a larger padding or a smaller size"
            )
        if self.padding_mode == "reflect" and self.padding >= whole:
            raise ValueError(
                f"{type(self).__name__}: reflection gives at most {whole - 1} pixels around "
                f"{whole}, padding is {self.padding}"
            )


class RandomTranslate(RandomCrop):
    """Moves an image by up to `pixels` up or down and left or right; every move is as likely.

    What comes in at the border is as in `RandomCrop`: this is a crop of the image's own size.
    """

    def __init__(self, pixels: int, *, fill: Fill = 0, padding_mode: str = "constant") -> None:
        super().__init__(1, _count("pixels", pixels, 1), fill=fill, padding_mode=padding_mode)

    def rows(self, be: Backend, x: Array, stream: Stream) -> Array:
        return self._cut(be, x, (x.shape[1], x.shape[2]), stream)


class RandomHorizontalFlip(Augmentation):
    """Swaps left and right with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"expected a probability from 0 to 1, got {p!r}")
        self.p = p

    def rows(self, be: Backend, x: Array, stream: Stream) -> Array:
        n, height, width, _ = x.shape
        words = _words(be, n, stream)
        columns = be.fuse(_mirrored)(
            words[:, None], _range(be, width)[None, :], round(self.p * 2**32), width - 1
        )
        return _taken(be, x, _range(be, height)[None, :], columns)


class Cutout(Augmentation):
    """Fills a square of `size` pixels about a random pixel; a part of it may lie outside.

    DeVries and Taylor 2017, "Improved regularization of convolutional neural networks with cutout".
    """

    def __init__(self, size: int, fill: Fill = 0) -> None:
        self.size = _count("size", size, 1)
        self.fill = fill

    def rows(self, be: Backend, x: Array, stream: Stream) -> Array:
        n = x.shape[0]
        words = _words(be, 2 * n, stream)
        within = []
        for axis, whole in enumerate(x.shape[1:3]):
            centre = _below(be, words[axis * n : (axis + 1) * n], whole)
            span = centre[:, None], _range(be, whole)[None, :], self.size // 2, self.size - 1
            within.append(be.fuse(_inside)(*span))
        return _replaced(be, _both, x, within, self.fill)


def _words(be: Backend, n: int, stream: Stream) -> Array:
    """`n` random words as int64, 0 to 2**32 - 1."""
    return be.xp.astype(backend.random_bits(be, n, *stream), be.dtype("int64"))


def _below(be: Backend, words: Array, high: int) -> Array:
    """Numbers from 0 to `high - 1`: the upper half of a product, each as likely to 2**-32."""
    return be.fuse(_upper_half)(words, high, 32)


def _upper_half(xp: Any, words: Array, high: int, bits: int) -> Array:
    return (words * high) >> bits


def _range(be: Backend, n: int) -> Array:
    return be.xp.arange(n, dtype=be.dtype("int64"))


def _nearest(xp: Any, first: Array, step: Array, before: int, last: int) -> Array:
    return xp.minimum(xp.maximum(first + step - before, 0), last)


def _reflected(xp: Any, first: Array, step: Array, before: int, last: int) -> Array:
    return last - xp.abs(last - xp.abs(first + step - before))


def _outside(xp: Any, first: Array, step: Array, before: int, last: int) -> Array:
    place = first + step - before
    return (place < 0) | (place > last)


def _inside(xp: Any, centre: Array, place: Array, before: int, last: int) -> Array:
    offset = place - centre + before
    return (offset >= 0) & (offset <= last)


def _mirrored(xp: Any, word: Array, column: Array, threshold: int, last: int) -> Array:
    return xp.where(word < threshold, last - column, column)


def _taken(be: Backend, x: Array, rows: Array, columns: Array) -> Array:
    """`out[n, i, j] = x[n, rows[n, i], columns[n, j]]` for x of (N, H, W, C).

    One gather of pixels runs on every backend. 512 images of CIFAR-10 take 1.5 ms on one core; a
    choice between an image and its mirror image would take 6.
    """
    n, height, width, channels = x.shape
    oh, ow = rows.shape[1], columns.shape[1]
    pixels = be.reshape(x, (n * height * width, channels))
    out = be.empty((n, oh, ow, channels), x.dtype)
    images = _range(be, n)[:, None, None]

    def body(part: slice) -> None:
        own = [a if a.shape[0] == 1 else a[part, ...] for a in (rows, columns)]
        index = be.fuse(_pixel)(
            images[part, ...], own[0][:, :, None], own[1][:, None, :], height, width
        )
        found = be.xp.take(pixels, be.reshape(index, (-1,)), axis=0)
        out[part, ...] = be.reshape(found, (-1, oh, ow, channels))

    # What a pixel takes: its index, some times over, and its channels.
    be.blocks(n, oh * ow * (16 + channels * be.itemsize(x.dtype)), body)
    return out


def _pixel(xp: Any, image: Array, row: Array, column: Array, height: int, width: int) -> Array:
    return (image * height + row) * width + column


def _replaced(be: Backend, fn: Any, x: Array, flags: Sequence[Array], fill: Fill) -> Array:
    """`x` with `fill` in the pixels that `fn` chooses by the flags of their row and their column,
    (N, H) and (N, W).
    """
    rows, columns = flags
    n, height, width, channels = x.shape
    # Rows of width * channels values: an inner loop over three channels would be slow.
    spread = be.reshape(
        be.xp.broadcast_to(columns[:, :, None], (n, width, channels)), (n, 1, width * channels)
    )
    values = be.constant(_values(be, x, fill, channels) * width, x.dtype)
    flat = be.reshape(x, (n, height, width * channels))
    chosen = be.fuse(fn)(flat, rows[:, :, None], spread, values)
    return be.reshape(chosen, (n, height, width, channels))


def _both(xp: Any, x: Array, of_row: Array, of_column: Array, fill: Array) -> Array:
    return xp.where(of_row & of_column, fill, x)


def _either(xp: Any, x: Array, of_row: Array, of_column: Array, fill: Array) -> Array:
    return xp.where(of_row | of_column, fill, x)


def _values(be: Backend, x: Array, fill: Fill, channels: int) -> tuple[float, ...]:
    """The fill of each channel."""
    values = tuple(np.ravel(fill).tolist())
    if len(values) not in (1, channels):
        raise ValueError(
            f"expected fill to be one number or {channels}, one a channel; got {len(values)}"
        )
    if be.is_integral(x):
        limits = be.xp.iinfo(x.dtype)
        if not all(v == int(v) and limits.min <= v <= limits.max for v in values):
            raise ValueError(
                f"expected a fill of whole numbers from {limits.min} to {limits.max} for images of "
                f"{x.dtype}, got {fill}"
            )
        values = tuple(int(v) for v in values)
    return values * (channels // len(values))


def _size(size: int | Sequence[int]) -> tuple[int, int]:
    sizes = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sizes) != 2:
        raise ValueError(f"expected a size of one or two numbers, got {size!r}")
    return _count("size", sizes[0], 1), _count("size", sizes[1], 1)


def _count(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"expected {name} to be a whole number from {least}, got {value!r}")
    return value
