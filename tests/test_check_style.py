"""`check.layer` of layers that are laid out or called in their own way, right and wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from students import convolution, dense, pooling
from students.spoiled import LAYERS, relu

from dualcnn import check

Style = check.Style


def flat(report: check.Report) -> str:
    """The text without its line breaks."""
    return " ".join(str(report).split())


# Layouts, each by a layer that knows no other.


def last_forward(x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
    """Images (N, H, W, C), weights (KH, KW, C, O)."""
    p = padding
    x = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    windows = sliding_window_view(x, w.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwcij,ijco->nhwo", windows, w) + b


def last_backward(gy: Any, x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
    p, s = padding, stride
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    gx, gw = np.zeros_like(padded), np.zeros_like(w)
    rows, columns = gy.shape[1:3]
    for i, j in np.ndindex(*w.shape[:2]):
        there = np.s_[:, i : i + s * rows : s, j : j + s * columns : s]
        gx[there] += gy @ w[i, j].T
        gw[i, j] = np.einsum("nhwc,nhwo->co", padded[there], gy)
    inner = gx[:, p : p + x.shape[1], p : p + x.shape[2]]
    return inner, gw, gy.sum(axis=(0, 1, 2))


LAST = Style(x="NHWC", w="HWIO")


def test_channels_last() -> None:
    report = check.layer(last_forward, last_backward, "conv2d", LAST)
    assert report.ok, report
    ours = check.layer(*LAYERS["conv2d"], "conv2d")
    assert [f.cases for f in report.findings] == [f.cases for f in ours.findings]
    assert "shown in the library's layout" in flat(report)

    def flipped(gy: Any, x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
        gx, gw, gb = last_backward(gy, x, w, b, stride, padding)
        return gx, gw[::-1, ::-1], gb

    assert check.layer(last_forward, flipped, "conv2d", LAST).mistakes == ("gw: kernel flipped",)


def test_samples_last() -> None:
    def forward(x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
        y = last_forward(x.transpose(3, 0, 1, 2), w, b, stride, padding)
        return y.transpose(1, 2, 3, 0)

    def backward(gy: Any, x: Any, w: Any, stride: int = 1, padding: int = 0) -> Any:
        first = (a.transpose(3, 0, 1, 2) for a in (gy, x))
        gx, gw, gb = last_backward(*first, w, None, stride, padding)
        return gw, gb, gx.transpose(1, 2, 3, 0)

    style = Style(x="HWCN", w="HWIO", takes=("gy", "x", "w"), gives=("gw", "gb", "gx"))
    assert check.layer(forward, backward, "conv2d", style).ok
    as_if = Style(x="HWCN", w="HWIO", takes=("gy", "x", "w"), gives=("gx", "gb", "gw"))
    assert not check.layer(forward, backward, "conv2d", as_if).ok


def test_one_image_at_a_time_and_one_channel() -> None:
    def forward(x: Any, w: Any, b: Any) -> Any:
        assert x.ndim == 3
        return convolution.forward(x[None], w, b)[0]

    def backward(gy: Any, x: Any, w: Any, b: Any) -> Any:
        gx, gw, gb = convolution.backward(gy[None], x[None], w, b)
        return gx[0], gw, gb

    report = check.layer(forward, backward, "conv2d", Style(x="CHW"))
    assert report.ok, report

    def plain(x: Any, w: Any) -> Any:
        assert x.ndim == w.ndim == 2
        return np.einsum("hwij,ij->hw", sliding_window_view(x, w.shape), w)

    def plain_backward(gy: Any, x: Any, w: Any) -> Any:
        return np.einsum("hw,hwij->ij", gy, sliding_window_view(x, w.shape))

    style = Style(x="HW", w="HW", gives=("gw",))
    report = check.layer(plain, plain_backward, "conv2d", style)
    assert report.ok, report
    assert [f.output for f in report.findings] == ["y", "gw"]
    assert "7 of 21 cases don't fit that style" in flat(report)


def test_linear_weights_the_other_way() -> None:
    report = check.layer(
        lambda x, w, b: x @ w + b,
        lambda gy, x, w: (gy @ w.T, x.T @ gy, gy.sum(axis=0)),
        "linear",
        Style(w="IO"),
    )
    assert report.ok, report


# Calls.


def cached_norm(x: Any, gamma: Any, beta: Any, eps: float = 1e-5) -> Any:
    """Feature maps (H, W, C, N); what the backward needs is returned besides."""
    axes = (0, 1, 3)
    centred = x - x.mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + eps)
    wide = gamma.reshape(1, 1, -1, 1)
    return wide * centred * inverse + beta.reshape(1, 1, -1, 1), (centred * inverse, wide, inverse)


def cached_norm_backward(dout: Any, cache: Any) -> Any:
    hat, wide, inverse = cache

    def mean(a: Any) -> Any:
        return a.mean(axis=(0, 1, 3), keepdims=True)

    gx = wide * inverse * (dout - mean(dout) - hat * mean(dout * hat))
    sums = [(a).sum(axis=(0, 1, 3), keepdims=True) for a in (dout * hat, dout)]
    return gx, *sums


def test_a_cache() -> None:
    style = Style(x="HWCN", takes=("gy", "cache"))
    report = check.layer(cached_norm, cached_norm_backward, "batch_norm", style)
    assert report.ok, report
    assert "not supported by your layer: (N, C) input" in flat(report)

    def held(dout: Any, cache: Any) -> Any:
        _, dgamma, dbeta = cached_norm_backward(dout, cache)
        return dout * cache[1] * cache[2], dgamma, dbeta

    report = check.layer(cached_norm, held, "batch_norm", style)
    assert report.mistakes == ("gx: mean and variance held fixed",)


def test_a_cache_that_nobody_announced_is_pointed_at() -> None:
    report = check.layer(lambda x: (relu(x), x > 0), None, "relu")
    assert 'If the second is for the backward: check.Style(takes=("gy", "cache")).' in flat(report)
    style = Style(takes=("gy", "cache"))
    assert check.layer(lambda x: (relu(x), x > 0), lambda gy, m: gy * m, "relu", style).ok
    report = check.layer(relu, lambda gy, m: gy * m, "relu", style)
    assert "expected a forward that returns (y, cache)" in flat(report)


class Affine:
    """Keeps its parameters, and leaves their gradients behind."""

    def __init__(self) -> None:
        self.W = np.zeros((3, 2))
        self.b = np.zeros(2)
        self.half = 1.0

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.W + self.b

    def backward(self, dout: Any) -> Any:
        self.dW = self.x.T @ dout * self.half
        self.db = dout.sum(axis=0)
        return dout @ self.W.T


KEPT = Style(w="IO", holds={"w": "W", "b": "b"}, leaves={"gw": "dW", "gb": "db"})


def test_parameters_that_a_layer_keeps() -> None:
    layer = Affine()
    report = check.layer(layer.forward, layer.backward, "linear", KEPT)
    assert report.ok, report
    assert [f.output for f in report.findings] == ["y", "gx", "gw", "gb"]
    layer.half = 0.5
    report = check.layer(layer.forward, layer.backward, "linear", KEPT)
    assert report.mistakes == ("gw: halved",)


class Stepping:
    """A convolution of one image that takes the step itself and returns nothing."""

    def __init__(self, way: float = -1.0) -> None:
        self.filters = np.ones((8, 3, 3))
        self.way = way

    def forward(self, image: Any) -> Any:
        self.windows = sliding_window_view(image, self.filters.shape[1:])
        return np.einsum("hwij,fij->hwf", self.windows, self.filters)

    def backprop(self, gy: Any, rate: float) -> None:
        self.filters += self.way * rate * np.einsum("hwf,hwij->fij", gy, self.windows)


STEPPING = Style(x="HW", y="HWC", w="OHW", holds={"w": "filters"}, takes=("gy", "lr"), gives=())


def test_a_backward_that_takes_the_step() -> None:
    layer = Stepping()
    report = check.layer(layer.forward, layer.backprop, "conv2d", STEPPING)
    assert report.ok, report
    assert [f.output for f in report.findings] == ["y", "gw"]
    uphill = Stepping(way=1.0)
    report = check.layer(uphill.forward, uphill.backprop, "conv2d", STEPPING)
    assert report.mistakes == ("gw: negated",)


class Eight:
    """Eight kernels of 3x3 on images without channels, whatever comes."""

    filters = np.zeros((8, 3, 3))

    def forward(self, image: Any) -> Any:
        self.image = image
        y = np.zeros((image.shape[0] - 2, image.shape[1] - 2, 8))
        for i, j in np.ndindex(*y.shape[:2]):
            y[i, j] = (image[i : i + 3, j : j + 3] * self.filters).sum(axis=(1, 2))
        return y

    def backprop(self, gy: Any, rate: float) -> None:
        for i, j in np.ndindex(*gy.shape[:2]):
            window = self.image[i : i + 3, j : j + 3]
            self.filters = self.filters - rate * gy[i, j][:, None, None] * window


def test_sizes_built_in() -> None:
    layer = Eight()
    eight = dataclasses.replace(STEPPING, sizes={"O": 8, "H": 3, "W": 3})
    report = check.layer(layer.forward, layer.backprop, "conv2d", eight)
    assert report.ok, report
    assert not check.layer(layer.forward, layer.backprop, "conv2d", STEPPING).ok

    class Last(Eight):
        def backprop(self, gy: Any, rate: float) -> None:
            start = self.filters
            super().backprop(gy * (np.arange(gy.size).reshape(gy.shape) >= gy.size - 8), rate)
            assert self.filters is not start

    last = Last()
    report = check.layer(last.forward, last.backprop, "conv2d", eight)
    assert report.mistakes == ("gw: last window only",), report

    thousand = Style(w="IO", sizes={"I": 50, "O": 7})
    report = check.layer(
        lambda x, w, b: x.reshape(-1, 50) @ w.reshape(50, 7) + b.reshape(7),
        None,
        "linear",
        thousand,
    )
    assert report.ok, report
    with pytest.raises(ValueError, match="expected sizes of O, I, H, W, got K"):
        check.layer(*LAYERS["conv2d"], "conv2d", Style(sizes={"K": 3}))
    with pytest.raises(ValueError, match="sizes are those of w: relu has none"):
        check.layer(*LAYERS["relu"], "relu", Style(sizes={"O": 3}))


def test_one_that_takes_images_for_square_is_told() -> None:
    def forward(x: Any, w: Any, b: Any) -> Any:
        y = convolution.forward(x, w, b)
        return y[..., : y.shape[2]]

    assert check.layer(forward, None, "conv2d").mistakes == ("y: square images assumed",)


class Pool:
    """Windows of 2, one image (H, W, C) at a time."""

    def forward(self, maps: Any) -> Any:
        self.x = maps.transpose(2, 0, 1)[None]
        return pooling.max_forward(self.x, 2)[0].transpose(1, 2, 0)

    def backprop(self, gy: Any) -> Any:
        gx = pooling.max_backward(gy.transpose(2, 0, 1)[None], self.x, 2)
        return gx[0].transpose(1, 2, 0)


def test_options_built_in() -> None:
    layer = Pool()
    style = Style(x="HWC", fixed={"kernel_size": 2, "stride": 2})
    report = check.layer(layer.forward, layer.backprop, "max_pool2d", style)
    assert report.ok, report
    with pytest.raises(ValueError, match=r"no case of max_pool2d fits"):
        check.layer(layer.forward, None, "max_pool2d", Style(x="HWC", fixed={"kernel_size": 7}))


def test_a_remembering_method_in_a_style_is_tried_with_options() -> None:
    class Conv:
        def forward(self, x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
            self.given = (x, w, b, stride, padding)
            return last_forward(x, w, b, stride, padding)

        def backward(self, gy: Any) -> Any:
            return last_backward(gy, *self.given)

    layer = Conv()
    report = check.layer(layer.forward, layer.backward, "conv2d", LAST)
    assert report.ok, report
    assert report.findings[0].cases == report.findings[1].cases


def test_a_gradient_that_is_none_stays_none() -> None:
    report = check.layer(dense.linear, lambda gy, x, w, b: (None, None, None), "linear", Style())
    assert [f.verdict for f in report.findings] == ["right", "error", "error", "error"]
    report = check.layer(dense.linear, lambda gy, x, w, b: (gy, w), "linear", Style())
    assert "expected a backward that returns (gx, gw, gb), got 2" in flat(report)


@pytest.mark.parametrize(
    ("style", "told"),
    [
        (lambda: Style(x="NHWD"), r"expected x to name axes of NCHW once, got 'NHWD'"),
        (lambda: Style(w="OOHW"), r"expected w to name axes of OIHW once, got 'OOHW'"),
        (
            lambda: Style(takes=("dout",)),
            r"expected takes to be of gy, cache, lr, x, w, b, got dout",
        ),
        (lambda: Style(gives=("gx", "gamma")), r"expected gives to be of gx, gw, gb, got gamma"),
        (
            lambda: Style(fixed={"step": 1}),
            r"expected fixed to be of stride, padding, .*, got step",
        ),
    ],
)
def test_a_style_that_cannot_be(style: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check.layer(*LAYERS["conv2d"], "conv2d", style())


def test_styles_and_what_has_no_attributes() -> None:
    with pytest.raises(TypeError, match=r"expected its methods \(layer.forward, .*got 'linear'"):
        check.layer(*LAYERS["linear"], "linear", KEPT)
    with pytest.raises(ValueError, match="cross_entropy is a mean over the batch"):
        check.layer(*LAYERS["cross_entropy"], "cross_entropy", Style(x="C"))
