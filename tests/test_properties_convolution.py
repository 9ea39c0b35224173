"""What every convolution obeys, on whole numbers, so that equal means equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from strategies import Geometry, examples, geometries, given, host, pairs, seeds, st, whole
from strategies_ops import CALLS

from dualcnn import ops
from dualcnn.backend import Backend

same = np.testing.assert_array_equal


def conv(be: Backend, x: Any, w: Any, b: Any = None, **params: Any) -> Any:
    placed = [None if a is None else be.asarray(a) for a in (x, w, b)]
    return host(be, ops.conv2d(*placed, **params)[0])


class Case:
    """A convolution call, with what the properties change taken apart."""

    def __init__(self, call: Any) -> None:
        self.x, self.w, self.b = call.inputs
        self.params = dict(call.params)
        self.groups = self.params.pop("groups")

    def __repr__(self) -> str:
        return f"Case(x {self.x.shape}, w {self.w.shape}, groups {self.groups}, {self.params})"

    def at(self, be: Backend, x: Any = None, w: Any = None, b: Any = None, **params: Any) -> Any:
        given_ = {"groups": self.groups, **self.params, **params}
        return conv(be, self.x if x is None else x, self.w if w is None else w, b, **given_)


cases = CALLS["conv2d"].map(Case)


@examples(25)
@given(case=cases, seed=seeds, factor=st.integers(-3, 3))
def test_it_is_linear_in_the_input_and_in_the_weight(
    be: Backend, case: Case, seed: int, factor: int
) -> None:
    x, w = whole(seed, case.x.shape), whole(seed, case.w.shape)
    same(case.at(be, case.x * factor + x), case.at(be) * factor + case.at(be, x))
    same(case.at(be, w=case.w * factor + w), case.at(be) * factor + case.at(be, w=w))


@examples(20)
@given(case=cases, seed=seeds)
def test_the_bias_is_added_to_every_pixel(be: Backend, case: Case, seed: int) -> None:
    b = whole(seed, case.w.shape[:1])
    same(case.at(be, b=b), case.at(be) + b[:, None, None])


@examples(20)
@given(case=cases, seed=seeds)
def test_images_of_a_batch_do_not_meet(be: Backend, case: Case, seed: int) -> None:
    more = whole(seed, (2, *case.x.shape[1:]))
    both = np.concatenate([case.x, more])
    same(case.at(be, both), np.concatenate([case.at(be), case.at(be, more)]))
    same(case.at(be, both[::-1].copy()), case.at(be, both)[::-1])


@examples(25)
@given(
    at=geometries(padding=0, spare=3),
    channels=pairs(1, 3),
    shift=pairs(0, 3),
    seed=seeds,
)
def test_shifting_the_input_shifts_the_output(
    be: Backend, at: Geometry, channels: Any, shift: Any, seed: int
) -> None:
    """By the same number of pixels, or of strides."""
    moved = [s * d for s, d in zip(at.stride, shift, strict=True)]
    size = [n + m for n, m in zip(at.size, moved, strict=True)]
    x = whole(seed, (2, channels[0], *size))
    w = whole(seed + 1, (channels[1], channels[0], *at.kernel))
    params = {"stride": at.stride, "dilation": at.dilation}
    here = conv(be, x[:, :, moved[0] :, moved[1] :].copy(), w, **params)
    same(here, conv(be, x, w, **params)[:, :, shift[0] :, shift[1] :])


@examples(25)
@given(at=geometries(), channels=st.integers(1, 3), seed=seeds, data=st.data())
def test_a_kernel_of_a_single_one_copies_the_input(
    be: Backend, at: Geometry, channels: int, seed: int, data: Any
) -> None:
    """Each output is one input channel, seen through one tap of the kernel."""
    x = whole(seed, (2, channels, *at.size))
    source, u, v = (data.draw(st.integers(0, n - 1)) for n in (channels, *at.kernel))
    w = np.zeros((2, channels, *at.kernel))
    w[1, source, u, v] = 1
    padded = np.pad(x[:, source], ((0, 0), *at.pads))
    (sy, sx), (dy, dx), (kh, kw) = at.stride, at.dilation, at.kernel
    last = [n - d * (k - 1) for n, d, k in zip(padded.shape[1:], (dy, dx), (kh, kw), strict=True)]
    seen = padded[:, u * dy : u * dy + last[0] : sy, v * dx : v * dx + last[1] : sx]
    y = conv(be, x, w, **at.params)
    same(y[:, 1], seen)
    assert not y[:, 0].any()


@examples(20)
@given(case=cases)
def test_groups_are_separate_convolutions_side_by_side(be: Backend, case: Case) -> None:
    parts = zip(
        np.split(case.x, case.groups, axis=1), np.split(case.w, case.groups, axis=0), strict=True
    )
    apart = [conv(be, x, w, **case.params) for x, w in parts]
    same(case.at(be), np.concatenate(apart, axis=1))


@examples(20)
@given(case=cases)
def test_dilation_is_a_kernel_with_zeros_between(be: Backend, case: Case) -> None:
    (kh, kw), (dy, dx) = case.w.shape[2:], case.params["dilation"]
    stuffed = np.zeros((*case.w.shape[:2], dy * (kh - 1) + 1, dx * (kw - 1) + 1))
    stuffed[:, :, ::dy, ::dx] = case.w
    same(case.at(be), case.at(be, w=stuffed, dilation=1))


@examples(20)
@given(case=cases)
def test_padding_is_a_border_of_zeros(be: Backend, case: Case) -> None:
    top, left, bottom, right = case.params["padding"]
    bordered = np.pad(case.x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    same(case.at(be), case.at(be, bordered, padding=0))


@examples(20)
@given(case=cases)
def test_a_stride_leaves_pixels_out(be: Backend, case: Case) -> None:
    sy, sx = case.params["stride"]
    same(case.at(be), case.at(be, stride=1)[:, :, ::sy, ::sx])


@examples(15)
@given(n=pairs(1, 4), channels=pairs(1, 4), size=pairs(1, 5), seed=seeds)
def test_a_kernel_of_one_pixel_is_a_product_of_matrices(
    be: Backend, n: Any, channels: Any, size: Any, seed: int
) -> None:
    x, w = whole(seed, (n[0], channels[0], *size)), whole(seed + 1, (*channels[::-1], 1, 1))
    same(conv(be, x, w), np.einsum("nchw,oc->nohw", x, w[:, :, 0, 0]))


@examples(15)
@given(at=geometries(padding=0), channels=pairs(1, 3), seed=seeds)
def test_same_keeps_the_size_and_valid_takes_no_padding(
    be: Backend, at: Geometry, channels: Any, seed: int
) -> None:
    """With an odd number of rows to add, the extra one goes to the end, as in PyTorch."""
    x = whole(seed, (1, channels[0], *at.size))
    w = whole(seed + 1, (*channels[::-1], *at.kernel))
    total = [d * (k - 1) for d, k in zip(at.dilation, at.kernel, strict=True)]
    pads = [(t // 2, t - t // 2) for t in total]
    kept = conv(be, x, w, padding="same", dilation=at.dilation)
    assert kept.shape[2:] == at.size
    same(kept, conv(be, np.pad(x, ((0, 0), (0, 0), *pads)), w, dilation=at.dilation))
    params = {"stride": at.stride, "dilation": at.dilation}
    same(conv(be, x, w, padding="valid", **params), conv(be, x, w, **params))


@examples(20)
@given(case=cases)
def test_height_and_width_are_treated_alike(be: Backend, case: Case) -> None:
    turned = {name: case.params[name][::-1] for name in ("stride", "dilation")}
    top, left, bottom, right = case.params["padding"]
    y = case.at(
        be,
        np.swapaxes(case.x, 2, 3).copy(),
        np.swapaxes(case.w, 2, 3).copy(),
        **turned,
        padding=(left, top, right, bottom),
    )
    same(y, np.swapaxes(case.at(be), 2, 3))


@examples(20)
@given(case=cases)
def test_a_mirrored_kernel_sees_the_mirrored_image(be: Backend, case: Case) -> None:
    top, left, bottom, right = case.params["padding"]
    mirrored = {"stride": 1, "padding": (bottom, right, top, left)}
    y = case.at(be, case.x[:, :, ::-1, ::-1].copy(), case.w[:, :, ::-1, ::-1].copy(), **mirrored)
    same(y, case.at(be, stride=1)[:, :, ::-1, ::-1])


@examples(15)
@given(case=cases, seed=seeds)
def test_the_order_of_channels_means_nothing(be: Backend, case: Case, seed: int) -> None:
    draw = np.random.default_rng(seed)
    inside, outputs = draw.permutation(case.w.shape[1]), draw.permutation(case.w.shape[0])
    by_group = case.x.reshape(case.x.shape[0], case.groups, -1, *case.x.shape[2:])
    x = by_group[:, :, inside].reshape(case.x.shape)
    same(case.at(be, x, case.w[:, inside]), case.at(be))
    if case.groups == 1:
        same(case.at(be, w=case.w[outputs]), case.at(be)[:, outputs])


@examples(20)
@given(case=cases, seed=seeds)
def test_the_gradients_are_convolutions_too(be: Backend, case: Case, seed: int) -> None:
    """The weight's is that of the images with the incoming gradients, channels for batch, stride
    for dilation; the input's is that of the spread gradients with the mirrored kernel.
    """
    if case.groups > 1:
        case.x, case.w = (np.split(a, case.groups, i)[0] for i, a in ((1, case.x), (0, case.w)))
    (kh, kw), (sy, sx), (dy, dx) = (
        case.w.shape[2:],
        case.params["stride"],
        case.params["dilation"],
    )
    y, vjp = ops.conv2d(be.asarray(case.x), be.asarray(case.w), **case.params)
    gy = whole(seed, tuple(y.shape))
    gx, gw, _ = (g if g is None else host(be, g) for g in vjp(be.asarray(gy)))

    by_channel = conv(
        be,
        np.swapaxes(case.x, 0, 1).copy(),
        np.swapaxes(gy, 0, 1).copy(),
        padding=case.params["padding"],
        stride=(dy, dx),
        dilation=(sy, sx),
    )
    same(gw, np.swapaxes(by_channel, 0, 1)[:, :, :kh, :kw])

    top, left, bottom, right = case.params["padding"]
    height, width = case.x.shape[2] + top + bottom, case.x.shape[3] + left + right
    around = np.zeros((*gy.shape[:2], height + dy * (kh - 1), width + dx * (kw - 1)))
    (oh, ow), below, beside = gy.shape[2:], dy * (kh - 1), dx * (kw - 1)
    around[
        :, :, below : below + sy * (oh - 1) + 1 : sy, beside : beside + sx * (ow - 1) + 1 : sx
    ] = gy
    mirrored = np.swapaxes(case.w[:, :, ::-1, ::-1], 0, 1).copy()
    spread = conv(be, around, mirrored, dilation=(dy, dx))
    same(gx, spread[:, :, top : height - bottom, left : width - right])


@pytest.mark.parametrize("ratio", [1, 2])
@examples(10)
@given(at=geometries(), channels=st.integers(1, 3), seed=seeds)
def test_a_depthwise_convolution_keeps_channels_apart(
    be: Backend, ratio: int, at: Geometry, channels: int, seed: int
) -> None:
    x, w = whole(seed, (2, channels, *at.size)), whole(seed, (ratio * channels, 1, *at.kernel))
    y = conv(be, x, w, groups=channels, **at.params)
    zeroed = x.copy()
    zeroed[:, 0] = 0
    other = conv(be, zeroed, w, groups=channels, **at.params)
    assert not other[:, :ratio].any()
    same(other[:, ratio:], y[:, ratio:])
