"""Which numbers of a convolution or a pooling belong to which: what the page lights up.

Words: `p3m1` is output place 3 of map 1, `r3` the row of columns of place 3, `w3` a pixel in the
window of place 3, `x12` pixel 12 of the padded images, `t4` tap 4 of a kernel, `c4` tap 4 in the
columns, `o1` kernel 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from ..ops.geometry import Window

__all__ = ["ConvolutionLinks", "PoolingLinks", "covering"]

Index = tuple[int, ...]
Words = tuple[str, str]


def covering(window: Window, pixel: Sequence[int]) -> list[Index]:
    """The output places whose windows hold a pixel of the padded image."""
    along = []
    for at, kernel, stride, dilation, out in zip(
        pixel, window.kernel, window.stride, window.dilation, window.out, strict=True
    ):
        starts = (at - t * dilation for t in range(kernel))
        places = (s // stride for s in starts if s >= 0 and s % stride == 0)
        along.append(sorted(p for p in places if p < out))
    return list(product(*along))


def _flat(index: Sequence[int], sizes: Sequence[int]) -> int:
    found = 0
    for i, size in zip(index, sizes, strict=True):
        found = found * size + i
    return found


@dataclass(frozen=True)
class ConvolutionLinks:
    """Links of the steps of a convolution of images with that many channels, two spatial axes."""

    window: Window
    channels: int

    def output(self, index: Index) -> Words:
        """Of maps `(N, O, OH, OW)`."""
        n, o, *out = index
        return self.product((self._place(n, out), o))

    def product(self, index: Index) -> Words:
        """Of a row for each output place, `(N * OH * OW, O)`."""
        p, o = index
        return f"p{p}m{o}", f"p{p}m{o} w{p} r{p} o{o}"

    def padded(self, index: Index) -> Words:
        """Of padded images."""
        n, c, *pixel = index
        inside = [f"w{self._place(n, out)}" for out in covering(self.window, pixel)]
        x = self._pixel(n, c, pixel)
        return " ".join((x, *inside)), x

    def image(self, index: Index) -> Words:
        """Of images without their padding."""
        n, c, *pixel = index
        moved = (i + before for i, (before, _) in zip(pixel, self.window.padding, strict=True))
        return self.padded((n, c, *moved))

    def windows(self, index: Index) -> Words:
        """Of windows `(N, OH, OW, C, KH, KW)`."""
        n, i, j, c, *tap = index
        return self._copy(n, (i, j), c, tap)

    def columns(self, index: Index) -> Words:
        """Of windows as rows, `(N * OH * OW, C * KH * KW)`."""
        row, t = index
        _, ow = self.window.out
        _, kw = self.window.kernel
        n, p = divmod(row, ow * self.window.out[0])
        c, tap = divmod(t, kw * self.window.kernel[0])
        return self._copy(n, divmod(p, ow), c, divmod(tap, kw))

    def weight(self, index: Index) -> Words:
        """Of kernels `(O, C, KH, KW)`."""
        o, c, *tap = index
        return self.weight_matrix((o, self._tap(c, tap)))

    def weight_matrix(self, index: Index) -> Words:
        """Of kernels as rows, `(O, C * KH * KW)`."""
        o, t = index
        return f"t{t} o{o}", f"t{t} c{t}"

    def bias(self, index: Index) -> Words:
        """Of a number for each map."""
        return f"o{index[0]}", f"o{index[0]}"

    def _copy(self, n: int, out: Sequence[int], c: int, tap: Sequence[int]) -> Words:
        """Of a pixel as it is met by a tap at an output place."""
        window = self.window
        pixel = [
            i * stride + t * dilation
            for i, stride, t, dilation in zip(out, window.stride, tap, window.dilation, strict=True)
        ]
        x, t = self._pixel(n, c, pixel), self._tap(c, tap)
        return f"r{self._place(n, out)} {x} c{t}", f"{x} t{t}"

    def _place(self, n: int, out: Sequence[int]) -> int:
        return _flat((n, *out), (1, *self.window.out))

    def _tap(self, c: int, tap: Sequence[int]) -> int:
        return _flat((c, *tap), (1, *self.window.kernel))

    def _pixel(self, n: int, c: int, pixel: Sequence[int]) -> str:
        return f"x{_flat((n, c, *pixel), (1, self.channels, *self.window.padded))}"


@dataclass(frozen=True)
class PoolingLinks:
    """Links of the steps of a pooling of images with that many channels."""

    window: Window
    channels: int

    def output(self, index: Index) -> Words:
        """Of maps `(N, C, OH, OW)`."""
        p = self._place(index)
        return f"p{p}", f"p{p} w{p}"

    def image(self, index: Index) -> Words:
        """Of images without their padding."""
        n, c, *pixel = index
        moved = [i + before for i, (before, _) in zip(pixel, self.window.padding, strict=True)]
        places = [self._place((n, c, *out)) for out in covering(self.window, moved)]
        return " ".join(f"w{p}" for p in places), " ".join(f"p{p}" for p in places)

    def _place(self, index: Index) -> int:
        return _flat(index, (1, self.channels, *self.window.out))
