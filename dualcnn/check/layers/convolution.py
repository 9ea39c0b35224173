"""conv2d: cases, and what is known to go wrong in the forward."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import ops
from ..subject import Case, Mistake, Right, Subject, Values, whole
from .common import of_gradients, of_order, of_parameters, of_y
from .convolution_gradients import GRADIENTS
from .windows import not_times_stride, pair, skipped_gradients, skipped_y

__all__ = ["CONV2D"]


def _case(
    about: str,
    x: tuple[int, ...],
    w: tuple[int, ...],
    extra: bool = False,
    over: int = 1,
    gy: Values | None = None,
    **options: Any,
) -> Case:
    inputs = (whole(x, 1) / over, whole(w, 2) / over, (np.abs(whole(w[:1], 3)) + 1) / over)
    return Case(about, inputs, options, gy=gy, extra=about if extra else "")


CASES = (
    _case("one window", (1, 1, 2, 2), (1, 1, 2, 2)),
    _case("two images", (2, 1, 2, 2), (1, 1, 2, 2)),
    _case("two output channels", (1, 1, 2, 2), (2, 1, 2, 2)),
    _case("a kernel of one pixel", (1, 2, 1, 1), (2, 2, 1, 1)),
    _case("two output channels, four pixels", (1, 1, 2, 2), (2, 1, 1, 1)),
    _case("fractions", (1, 1, 2, 2), (1, 1, 2, 2), over=4, gy=np.full((1, 1, 1, 1), 1.75)),
    _case("padding", (1, 1, 2, 2), (1, 1, 2, 2), padding=1),
    _case("four windows that overlap", (1, 1, 3, 3), (1, 1, 2, 2)),
    _case("two input channels", (1, 2, 2, 2), (1, 2, 2, 2)),
    _case("padding and an odd kernel", (1, 1, 3, 3), (1, 1, 3, 3), padding=1),
    _case("stride 2", (1, 1, 4, 4), (1, 1, 2, 2), stride=2),
    _case("a row and a column left over", (1, 1, 4, 4), (1, 1, 3, 3), stride=2),
    _case("windows that overlap, stride 2", (1, 1, 5, 5), (1, 1, 3, 3), stride=2),
    _case("two channels in, two out", (2, 2, 3, 3), (2, 2, 2, 2)),
    _case("all at once", (2, 3, 6, 6), (4, 3, 3, 3), over=4, stride=2, padding=1),
    _case("a wide image", (1, 1, 2, 3), (1, 1, 2, 2), extra=True),
    _case("a tall kernel", (1, 1, 3, 3), (1, 1, 3, 2), extra=True),
    _case("stride (2, 1)", (1, 1, 4, 4), (1, 1, 2, 2), extra=True, stride=(2, 1)),
    _case("padding (1, 0)", (1, 1, 3, 3), (1, 1, 2, 2), extra=True, padding=(1, 0)),
    _case("dilation 2", (1, 1, 4, 4), (1, 1, 2, 2), extra=True, dilation=2),
    _case("two groups", (1, 4, 3, 3), (2, 2, 2, 2), extra=True, groups=2),
)


def _times(b: Values | None, factor: Any) -> Values | None:
    return None if b is None else b * factor


def _only(w: Values, channel: int) -> Values:
    """The weights with 0 for all input channels but one."""
    kept = np.zeros_like(w)
    kept[:, channel] = w[:, channel]
    return kept


def _exchanged(w: Values) -> Values:
    return np.swapaxes(w, 0, 1) if w.shape[0] == w.shape[1] else w


def _padded(x: Values, padding: Any) -> Values:
    """The border pixels repeated."""
    top, left = pair(padding)
    return np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)), mode="edge")


def _sides(padding: Any, before: int, after: int) -> tuple[int, ...]:
    top, left = pair(padding)
    return (before * top, before * left, after * top, after * left)


def _not_transposed(right: Right, *inputs: Any, **options: Any) -> Values:
    y = right(*inputs, **options)
    return np.moveaxis(y, 1, 3).reshape(y.shape)


BOTH_SIDES = "Padding goes on both sides: np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))."

FORWARD = (
    Mistake(
        "y",
        "kernel flipped",
        "ours with the kernel flipped",
        "That is convolution as mathematics writes it. CNNs slide the kernel as it lies: "
        "y[i, j] is the sum of x[i + a, j + b] * w[a, b].",
        lambda right, x, w, b, **o: right(x, w[..., ::-1, ::-1], b, **o),
    ),
    Mistake(
        "y",
        "kernel transposed",
        "ours with the rows and columns of the kernel exchanged",
        "Check the order of the two kernel loops, or of a reshape: w is (O, C, KH, KW).",
        lambda right, x, w, b, **o: right(x, np.swapaxes(w, 2, 3), b, **o),
    ),
    Mistake(
        "y",
        "channels of w exchanged",
        "ours with the input and output channels of w exchanged",
        "w is (O, C, KH, KW): outputs first.",
        lambda right, x, w, b, **o: right(x, _exchanged(w), b, **o),
    ),
    Mistake(
        "y",
        "bias missing",
        "ours without the bias",
        "Add b[o] to every pixel of output channel o.",
        lambda right, x, w, b, **o: right(x, w, None, **o),
    ),
    Mistake(
        "y",
        "bias subtracted",
        "ours with the bias subtracted",
        "The bias is added: y = w * x + b.",
        lambda right, x, w, b, **o: right(x, w, _times(b, -1), **o),
    ),
    Mistake(
        "y",
        "bias added once a channel",
        "ours with the bias added once for each input channel",
        "Add b after the loop over the input channels, not in it.",
        lambda right, x, w, b, **o: right(x, w, _times(b, w.shape[1]), **o),
    ),
    Mistake(
        "y",
        "bias added once a weight",
        "ours with the bias added once for each weight of the kernel",
        "np.sum(window * w + b) adds b as often as a window has numbers: np.sum(window * w) + b.",
        lambda right, x, w, b, **o: right(x, w, _times(b, w[0].size), **o),
    ),
    Mistake(
        "y",
        "one bias for all",
        "ours with the first bias for every output channel",
        "Each output channel has its own: b[o], or b reshaped to (1, O, 1, 1).",
        lambda right, x, w, b, **o: right(x, w, None if b is None else 0 * b + b[0], **o),
    ),
    Mistake(
        "y",
        "last channel only",
        "that of the last input channel alone",
        "In the loop over the input channels, = writes over what += would add to.",
        lambda right, x, w, b, **o: right(x, _only(w, -1), b, **o),
    ),
    Mistake(
        "y",
        "first channel only",
        "that of the first input channel alone",
        "The products are summed over the input channels too: an index 0 leaves the others out.",
        lambda right, x, w, b, **o: right(x, _only(w, 0), b, **o),
    ),
    Mistake(
        "y",
        "reshaped without transpose",
        "ours with the channels mixed up: (N, OH, OW, O) reshaped to (N, O, OH, OW)",
        "Columns times w.T have a row a pixel and a column a channel: "
        ".reshape(N, OH, OW, O).transpose(0, 3, 1, 2). A reshape alone doesn't move the channels.",
        _not_transposed,
    ),
    Mistake(
        "y",
        "stride ignored",
        "ours with stride 1",
        "Window (i, j) starts at x[i * stride, j * stride].",
        lambda right, x, w, b, **o: right(x, w, b, **{**o, "stride": 1}),
    ),
    Mistake(
        "y",
        "stride exchanged",
        "ours with the strides of height and width exchanged",
        "The first number of a pair is for the height.",
        lambda right, x, w, b, **o: right(
            x, w, b, **{**o, "stride": pair(o.get("stride", 1))[::-1]}
        ),
    ),
    Mistake(
        "y",
        "padding ignored",
        "ours without padding",
        "The windows are cut from x, not from its padded copy.",
        lambda right, x, w, b, **o: right(x, w, b, **{**o, "padding": 0}),
    ),
    Mistake(
        "y",
        "padding before only",
        "ours with all the padding above and to the left",
        BOTH_SIDES,
        lambda right, x, w, b, **o: right(
            x, w, b, **{**o, "padding": _sides(o.get("padding", 0), 2, 0)}
        ),
    ),
    Mistake(
        "y",
        "padding after only",
        "ours with all the padding below and to the right",
        BOTH_SIDES,
        lambda right, x, w, b, **o: right(
            x, w, b, **{**o, "padding": _sides(o.get("padding", 0), 0, 2)}
        ),
    ),
    Mistake(
        "y",
        "padding on one side",
        "ours with padding above and to the left, and none on the other side",
        BOTH_SIDES,
        lambda right, x, w, b, **o: right(
            x, w, b, **{**o, "padding": _sides(o.get("padding", 0), 1, 0)}
        ),
    ),
    Mistake(
        "y",
        "padding repeats the edge",
        "ours with the border pixels repeated for padding",
        'Pad with zeros: np.pad(..., mode="constant").',
        lambda right, x, w, b, **o: right(
            _padded(x, o.get("padding", 0)), w, b, **{**o, "padding": 0}
        ),
    ),
    Mistake(
        "y",
        "ReLU included",
        "ours after ReLU",
        "Check the convolution alone, and ReLU as relu. Backwards the gradient meets ReLU's "
        "mask first, gy * (y > 0), and then the convolution.",
        lambda right, *x, **o: np.maximum(right(*x, **o), 0),
    ),
)

CONV2D = Subject(
    name="conv2d",
    inputs=("x", "w", "b"),
    gradients=("x", "w", "b"),
    options={"stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    op=ops.conv2d,
    cases=CASES,
    mistakes=(
        *FORWARD,
        *GRADIENTS,
        *of_y(),
        *of_gradients(("gx", "gw", "gb")),
        *of_parameters(("gw", "gb")),
        *of_order(ops.conv2d, ("x", "w", "b")),
        *not_times_stride(ops.conv2d, ("gx", "gw")),
        *skipped_y(),
        *skipped_gradients(("gx", "gw", "gb")),
    ),
    optional=("b",),
    also={"b": ("bias",), "stride": ("strides", "s"), "padding": ("pad", "p")},
    rare=("dilation", "groups"),
)
