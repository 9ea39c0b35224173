"""What is known to go wrong in the backward of a convolution."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..subject import Mistake, Right, Values
from .windows import masked, overwritten, pair

__all__ = ["GRADIENTS"]


def _padded_gradient(
    right: Right, gy: Values, x: Values, w: Values, b: Any, **options: Any
) -> Values:
    """The gradient of the padded image, with its border."""
    top, left = pair(options.get("padding", 0))
    padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
    return right(gy, padded, w, b, **{**options, "padding": 0})


def _cropped(first: int) -> Any:
    """The padded gradient, of which the wrong H rows and W columns are kept."""

    def wrong(right: Right, gy: Values, x: Values, w: Values, b: Any, **o: Any) -> Values:
        padded = _padded_gradient(right, gy, x, w, b, **o)
        top, left = pair(o.get("padding", 0))
        height, width = x.shape[2:]
        row, column = first * top, first * left
        return padded[..., row : row + height, column : column + width]

    return wrong


def _empty_cropped(right: Right, gy: Values, x: Values, w: Values, b: Any, **o: Any) -> Values:
    """Nothing at all is left without padding: `[0:-0]` is empty."""
    top, left = pair(o.get("padding", 0))
    return np.zeros_like(x)[..., top:-top, left:-left]


def _empty_where_padded(right: Right, gy: Values, x: Values, w: Values, b: Any, **o: Any) -> Values:
    gx = right(gy, x, w, b, **o)
    return gx * 0 if any(pair(o.get("padding", 0))) else gx


def _last_output(right: Right, gy: Values, *rest: Any, **o: Any) -> Values:
    return right(masked(gy, slice(None), -1), *rest, **o)


def _last_pixel(right: Right, gy: Values, *rest: Any, **o: Any) -> Values:
    return right(masked(gy, slice(None), slice(None), -1, -1), *rest, **o)


def _kernel(x: Values, w: Values, b: Any, **options: Any) -> tuple[int, ...]:
    return tuple(w.shape[2:])


def _rows_reshaped(right: Right, gy: Values, *rest: Any, **o: Any) -> Values:
    """Gy read as (N, OH, OW, O) although it lies as (N, O, OH, OW)."""
    n, channels, height, width = gy.shape
    return right(np.moveaxis(gy.reshape(n, height, width, channels), 3, 1), *rest, **o)


def _two_sums(right: Right, gy: Values, x: Values, w: Values, b: Any, **o: Any) -> Values:
    """(sum of gy) times (sum of the windows) instead of the sum of the products."""
    total = gy.sum(axis=(2, 3), keepdims=True)
    return right(np.broadcast_to(total, gy.shape), x, w, b, **o)


def _reversed(w: Values) -> Values:
    return w[..., ::-1, ::-1]


GRADIENTS = (
    Mistake(
        "gw",
        "kernel flipped",
        "ours with the kernel flipped",
        "gw[a, b] is the sum of gy[i, j] * x[i + a, j + b]: x and gy as they lie. It is the "
        "gradient of x that turns the kernel round.",
        lambda right, gy, x, w, b, **o: _reversed(right(gy, x, w, b, **o)),
    ),
    Mistake(
        "gw",
        "product of two sums",
        "the sum of gy times the sum of the windows",
        "Each window is multiplied by its own gy[i, j], and then the products are summed. Summing "
        "first loses which gradient belongs to which window.",
        _two_sums,
    ),
    Mistake(
        "gw",
        "kernel transposed",
        "ours with the rows and columns of the kernel exchanged",
        "Check the order of the two kernel loops, or of a reshape: gw is (O, C, KH, KW).",
        lambda right, gy, x, w, b, **o: np.swapaxes(right(gy, x, w, b, **o), 2, 3),
    ),
    Mistake(
        "gw",
        "last window only",
        "that of the last window alone",
        "In the loop over the output pixels, = writes over what += would add to.",
        _last_pixel,
    ),
    Mistake(
        "gw",
        "mean over the windows",
        "ours divided by the number of windows",
        "The same weights meet every window: their gradients are added, not averaged.",
        lambda right, gy, x, w, b, **o: right(gy, x, w, b, **o) / gy[0, 0].size,
    ),
    Mistake(
        "gx",
        "kernel not flipped",
        "ours with the kernel the wrong way round",
        "Pixel x[p, q] met w[a, b] for y[p - a, q - b]: going back, the kernel is turned by 180 "
        "degrees (w[..., ::-1, ::-1]).",
        lambda right, gy, x, w, b, **o: right(gy, x, _reversed(w), b, **o),
    ),
    Mistake(
        "gx",
        "windows overwritten",
        "ours with windows written one over the other",
        "Where windows overlap, a pixel takes part in several outputs: add with +=.",
        overwritten(_kernel),
    ),
    Mistake(
        "gx",
        "windows overwritten, by kernel offset",
        "ours with one number of the kernel's window written over the other",
        "col2im adds: x[..., i : i + s * OH : s, j : j + s * OW : s] += cols[:, :, i, j].",
        overwritten(_kernel, by_offset=True),
    ),
    Mistake(
        "gx",
        "last output channel only",
        "that of the last output channel alone",
        "Every output channel reads the image: in the loop over them, = writes over what += "
        "would add to.",
        _last_output,
    ),
    Mistake(
        "gx",
        "unpadded array returned",
        "zero, and its border is cut off",
        "The unpadded array was cropped and returned; the gradient was written into the padded "
        "one. Crop and return that.",
        _empty_cropped,
    ),
    Mistake(
        "gx",
        "zero where there is padding",
        "zero wherever there is padding",
        "The unpadded array was returned; the gradient was written into the padded copy. Return "
        "the middle of that: gx_padded[:, :, p:-p, p:-p].",
        _empty_where_padded,
    ),
    Mistake(
        "gx",
        "border kept",
        "that of the padded image, border and all",
        "Padding is no part of x: return gx_padded[:, :, p:-p, p:-p].",
        _padded_gradient,
    ),
    Mistake(
        "gx",
        "cropped from the first row",
        "ours, moved down and to the right by the padding",
        "The first H rows of the padded gradient were kept. Skip p of them: [p : p + H].",
        _cropped(0),
    ),
    Mistake(
        "gx",
        "cropped from the last row",
        "ours, moved up and to the left by the padding",
        "The last H rows of the padded gradient were kept. Skip p of them: [p : p + H].",
        _cropped(2),
    ),
    Mistake(
        "gb",
        "mean over the pixels",
        "ours divided by the number of pixels of y",
        "The same bias is added to every pixel: their gradients are added, not averaged.",
        lambda right, gy, x, w, b, **o: right(gy, x, w, b, **o) / gy[0, 0].size,
    ),
    Mistake(
        "gb",
        "mean over batch and pixels",
        "the mean of gy, not its sum",
        "The same bias is added everywhere: gy.sum(axis=(0, 2, 3)).",
        lambda right, gy, x, w, b, **o: right(gy, x, w, b, **o) * gy.shape[1] / gy.size,
    ),
    Mistake(
        "gb",
        "one number for all",
        "one number, the sum over all output channels",
        "Each output channel has its own bias: gy.sum(axis=(0, 2, 3)) leaves the channels apart.",
        lambda right, gy, x, w, b, **o: np.asarray(right(gy, x, w, b, **o).sum()),
    ),
    Mistake(
        "gb",
        "sum over all channels",
        "the sum over all output channels, for each of them",
        "Each output channel has its own bias: gy.sum(axis=(0, 2, 3)) leaves the channels apart.",
        lambda right, gy, x, w, b, **o: 0 * b + right(gy, x, w, b, **o).sum(),
    ),
    Mistake(
        "gb",
        "not summed over the pixels",
        "gy summed over the batch alone",
        "The same bias is added to every pixel: gy.sum(axis=(0, 2, 3)).",
        lambda right, gy, x, w, b, **o: gy.sum(axis=0),
    ),
    Mistake(
        "gb",
        "last pixel only",
        "that of the last pixel alone",
        "In the loop over the output pixels, = writes over what += would add to.",
        _last_pixel,
    ),
    *(
        Mistake(
            output,
            "gy reshaped without transpose",
            "ours with the channels of gy mixed up",
            "gy is (N, O, OH, OW). For rows of O numbers, gy.transpose(0, 2, 3, 1).reshape(-1, O): "
            "a reshape alone doesn't move the channels.",
            _rows_reshaped,
        )
        for output in ("gx", "gw", "gb")
    ),
)
