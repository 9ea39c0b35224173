"""A convolution as a teacher draws it: windows, columns, one product; and the same way back.

Every array comes from the operation itself or from the primitives that it is made of (`pad`,
`windows`, `matmul`, `fold`), here one after the other over the whole batch. Columns have the order
of the weights, channel, row, column; the library's own have the channels last.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from ..backend import Array, to_numpy
from ..ops import geometry
from ..ops.geometry import Window, channels_first, channels_last
from .building import Builder, Sections, dot, fullest, place
from .links import ConvolutionLinks
from .record import Call
from .result import Link, Marks, Section, Step, Total

__all__ = ["convolution"]

OPTIONS: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1}
WEIGHT = ("map", "channel", "row", "column")

FORWARD = (
    "What lies under it there, the window, is multiplied number by number with the kernel and "
    "added up. With the windows as the rows of a matrix, that is one matrix product."
)
BACKWARD = (
    "Each weight gets the sum over all windows of the number that it met times the gradient there; "
    "each bias the sum of the gradients of its map. Each number of columns gets a gradient too. A "
    "pixel lies in several windows: the gradients of all its copies add up to its own (fold)."
)


def convolution(call: Call, name: str) -> Sections | None:
    """The sections of `ops.conv2d`; None for one in groups, which is several products."""
    if call.params.get("groups", 1) != 1:
        return None
    conv = _Convolution(Builder(call, name))
    return conv.forward(), conv.backward()


class _Convolution:
    """The steps of one convolution; its matrices are made once for both ways."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.be = builder.be
        self.input, self.weight, self.bias = (*builder.call.inputs, None)[:3]
        self.single = self.input.ndim == 3
        x = self._batch(self.input)
        options = [builder.call.params.get(name, value) for name, value in OPTIONS.items()]
        self.window: Window = geometry.convolution(
            2, tuple(x.shape), tuple(self.weight.shape), None, *map(geometry.hashable, options), 1
        )
        self.images, self.channels = x.shape[:2]
        self.outputs = self.weight.shape[0]
        self.links = ConvolutionLinks(self.window, self.channels)
        self.padded: Array = self.be.pad(x, ((0, 0), (0, 0), *self.window.padding))
        self.rows = _places(self.images, self.window.out)
        self.taps = _taps(self.channels, self.window.kernel)
        self.maps = tuple(f"map {o}" for o in range(self.outputs))
        oh, ow = self.window.out
        # The corner of an image is often empty.
        self.middle = oh // 2 * ow + ow // 2

    @cached_property
    def windows(self) -> Array:
        """`(N, OH, OW, C, KH, KW)`."""
        be, window = self.be, self.window
        last = be.c_copy(channels_last(be, self.padded))
        found = be.windows(last, window.kernel, window.stride, window.dilation)
        return be.c_copy(be.permute(found, (0, 1, 2, 5, 3, 4)))

    @cached_property
    def columns(self) -> Step:
        shape = (len(self.rows), len(self.taps))
        return self.builder.step(
            "columns",
            self.be.reshape(self.windows, shape),
            f"windows.reshape{shape}",
            "each row a window, each column a tap",
            axes=("window", "tap"),
            rows=self.rows,
            columns=self.taps,
            link=self.links.columns,
            around=self.middle,
        )

    @cached_property
    def weight_matrix(self) -> Step:
        shape = (self.outputs, len(self.taps))
        matrix = self.be.reshape(self.be.c_copy(self.weight), shape)
        return self._by_tap("weight_matrix", matrix, f"weight.reshape{shape}", "each row a kernel")

    @cached_property
    def product(self) -> Step:
        product = self.be.matmul(self.columns.array, self.weight_matrix.array.T)
        return self._by_map("product", product, "columns @ weight_matrix.T")

    def forward(self) -> Section:
        step, links = self.builder.step, self.links
        plus = "" if self.bias is None else " + bias"
        steps = [
            step("input", self.input, link=self._lifted(links.image)),
            self._framed("padded", self.padded, "pad(input)", _around(self.window)),
            step("weight", self.weight, axes=WEIGHT, link=links.weight),
            self.weight_matrix,
            step(
                "windows",
                self.windows,
                note="what lies under the kernel, place by place",
                kind="windows",
                axes=("image", "row", "column", "channel", "tap row", "tap column"),
                link=links.windows,
                around=self.middle * self.channels,
            ),
            self.columns,
            self.product,
            None if self.bias is None else self._per_map("bias", self.bias),
            step(
                "output",
                self.builder.call.output,
                f"product{plus}",
                "laid out as maps",
                link=self._lifted(links.output),
            ),
        ]
        kh, kw = self.window.kernel
        kernels = "The kernel" if self.outputs == 1 else f"Each of the {self.outputs} kernels"
        deep = f" of {self.channels} channels" if self.channels > 1 else ""
        places = self.window.out[0] * self.window.out[1]
        told = f"{kernels}, {kh}x{kw}{deep}, is laid on the image at {places} places. {FORWARD}"
        total = Total(("product", "output"), ("columns", "weight_matrix"), "bias")
        return self.builder.section(steps, told, worked=self._worked(), total=total)

    def backward(self) -> Section:
        be, call = self.be, self.builder.call
        gy = self._batch(call.gy)
        rows = be.reshape(be.c_copy(be.permute(gy, (0, 2, 3, 1))), (len(self.rows), self.outputs))
        matrix = self._by_map("gy_matrix", rows, "gy", "laid out as product is")
        steps = [
            self.builder.step("gy", call.gy, link=self._lifted(self.links.output)),
            matrix,
            *self._weight_steps(matrix.array),
            *self._input_steps(matrix.array),
        ]
        return self.builder.section(
            steps,
            BACKWARD,
            backward=True,
            recalled=(self.columns, self.weight_matrix),
            total=Total(("gpadded", "gx"), ("gcolumns",)),
        )

    def _weight_steps(self, gy: Array) -> list[Step | None]:
        gradient, links = self.builder.gradient, self.links
        gb = gradient(
            "gb", 2, "gy_matrix.sum(0)", axes=("map",), columns=self.maps, link=links.bias
        )
        shape = tuple(self.weight.shape)
        gw = gradient("gw", 1, f"gw_matrix.reshape{shape}", axes=WEIGHT, link=links.weight)
        if gw is None:
            return [gb]
        matrix = self.be.matmul(gy.T, self.columns.array)
        return [gb, self._by_tap("gw_matrix", matrix, "gy_matrix.T @ columns"), gw]

    def _input_steps(self, gy: Array) -> list[Step | None]:
        be, window = self.be, self.window
        fold = "fold(gcolumns)", "each pixel gets the sum over its copies in the windows"
        formula = ("gpadded", "without the padding") if window.is_padded else fold
        gx = self.builder.gradient("gx", 0, *formula, link=self._lifted(self.links.image))
        if gx is None:
            return []
        columns = be.matmul(gy, self.weight_matrix.array)
        copies = be.reshape(columns, tuple(self.windows.shape))
        last = be.c_copy(be.permute(copies, (0, 1, 2, 4, 5, 3)))
        folded = be.fold(last, window.padded, window.stride, window.dilation)
        return [
            self.builder.step(
                "gcolumns",
                columns,
                "gy_matrix @ weight_matrix",
                axes=("window", "tap"),
                rows=self.rows,
                columns=self.taps,
                link=self.links.columns,
                around=self.middle,
            ),
            self._framed("gpadded", channels_first(be, folded), *fold),
            gx,
        ]

    # Steps that look alike.

    def _by_tap(self, label: str, array: Array, formula: str, note: str = "") -> Step:
        return self.builder.step(
            label,
            array,
            formula,
            note,
            axes=("map", "tap"),
            rows=self.maps,
            columns=self.taps,
            link=self.links.weight_matrix,
        )

    def _by_map(self, label: str, array: Array, formula: str, note: str = "") -> Step:
        return self.builder.step(
            label,
            array,
            formula,
            note,
            axes=("window", "map"),
            rows=self.rows,
            columns=self.maps,
            link=self.links.product,
            around=self.middle,
        )

    def _per_map(self, label: str, array: Array) -> Step:
        return self.builder.step(
            label, array, axes=("map",), columns=self.maps, link=self.links.bias
        )

    def _framed(self, label: str, array: Array, formula: str, note: str) -> Step | None:
        if not self.window.is_padded:
            return None
        (top, _), (left, _) = self.window.padding
        height, width = self.window.size
        outside = np.ones(tuple(array.shape), bool)
        outside[..., top : top + height, left : left + width] = False
        marks = Marks("padding", outside)
        return self.builder.step(label, array, formula, note, marks=marks, link=self.links.padded)

    def _batch(self, x: Array) -> Array:
        return x[None, ...] if self.single else x

    def _lifted(self, link: Link) -> Link:
        """The link of an array that lacks the axis of images."""
        return (lambda index: link((0, *index))) if self.single else link

    def _worked(self) -> str:
        """One number of the output, as a sum."""
        row, o = fullest(self.columns, self.weight_matrix)
        n, p = divmod(row, self.window.out[0] * self.window.out[1])
        at = place(*(() if self.single else (n,)), o, *divmod(p, self.window.out[1]))
        bias = None if self.bias is None else float(to_numpy(self.bias)[o])
        left, right = self.columns.numpy()[row].tolist(), self.weight_matrix.numpy()[o].tolist()
        total = float(self.product.numpy()[row, o]) + (bias or 0.0)
        return f"output{at} = {dot(left, right, bias, total)}"


def _around(window: Window) -> str:
    (top, bottom), (left, right) = window.padding
    if top == bottom == left == right:
        return f"{top} of zeros around it"
    return f"zeros around it: {top} above, {left} left, {bottom} below, {right} right"


def _places(images: int, out: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the rows of columns: the place in the output, before it the image if several."""
    lead = [f"{n}: " if images > 1 else "" for n in range(images)]
    return tuple(f"{n}{i},{j}" for n in lead for i in range(out[0]) for j in range(out[1]))


def _taps(channels: int, kernel: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the taps: the place in the kernel, before it the channel if several."""
    lead = [f"{c}: " if channels > 1 else "" for c in range(channels)]
    return tuple(f"{c}{u},{v}" for c in lead for u in range(kernel[0]) for v in range(kernel[1]))
