"""Batch normalisation against plain loops and exact slopes; dropout against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from op_check import LAYOUTS, check_needs, check_op, place, rng, same

from dualcnn import backend, ops
from dualcnn.backend import Backend

SHAPES = [(6, 3), (2, 1), (2, 3, 4), (3, 2, 4, 5), (1, 2, 3, 3), (2, 8, 2, 1)]


def operands(shape: tuple[int, ...], *seed: int) -> tuple[Any, Any, Any, Any]:
    draw = rng(31, *shape, *seed)
    channels = shape[1]
    x = 2 * draw.normal(size=shape) + 5 * draw.normal(size=(channels, *[1] * (len(shape) - 2)))
    return x, draw.normal(size=channels), draw.normal(size=channels), draw.normal(size=shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_batch_norm_in_training(be: Backend, shape: tuple[int, ...], affine: bool) -> None:
    x, w, b, gy = operands(shape)
    if affine:
        gradients = oracles.complex_vjp(oracles.batch_norm, [x, w, b], gy)
        y = oracles.batch_norm(x, w, b)
        check_op(be, ops.batch_norm, [x, w, b], y, gy, gradients, training=True)
    else:
        (gx,) = oracles.complex_vjp(lambda v: oracles.batch_norm(v, None, None), [x], gy)
        y = oracles.batch_norm(x, None, None)
        none = [x, None, None]
        check_op(be, ops.batch_norm, none, y, gy, [gx, None, None], training=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_outside_training(be: Backend, shape: tuple[int, ...]) -> None:
    x, w, b, gy = operands(shape)
    draw = rng(32, *shape)
    mean, variance = draw.normal(size=shape[1]), draw.uniform(0.5, 2, shape[1])

    def forward(x: Any, w: Any, b: Any) -> Any:
        return oracles.normalise(x, w, b, mean, variance, 1e-5)

    gradients = oracles.complex_vjp(forward, [x, w, b], gy)
    given = [x, w, b, mean, variance]
    check_op(be, ops.batch_norm, given, forward(x, w, b), gy, gradients, training=False)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("shape", [(6, 3), (3, 2, 4, 5)], ids=str)
def test_batch_norm_in_the_smallest_parts(be: Backend, shape: tuple[int, ...]) -> None:
    x, w, b, gy = operands(shape)
    gradients = oracles.complex_vjp(oracles.batch_norm, [x, w, b], gy)
    y = oracles.batch_norm(x, w, b)
    layouts = ("plain", "permuted")
    check_op(be, ops.batch_norm, [x, w, b], y, gy, gradients, layouts, training=True)


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.5])
def test_batch_norm_adds_eps_to_the_variance(be: Backend, eps: float) -> None:
    x, w, b, gy = operands((3, 2, 2, 2))

    def forward(x: Any, w: Any, b: Any) -> Any:
        return oracles.batch_norm(x, w, b, eps)

    gradients = oracles.complex_vjp(forward, [x, w, b], gy)
    given = [x, w, b]
    check_op(be, ops.batch_norm, given, forward(x, w, b), gy, gradients, training=True, eps=eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_returns_the_mean_and_the_unbiased_variance(
    be: Backend, shape: tuple[int, ...], dtype: str
) -> None:
    x, w, b, _ = operands(shape)
    mean, variance, count = oracles.channel_statistics(x)
    placed = [place(be, v, dtype, "permuted") for v in (x, w, b)]
    running = [place(be, v, dtype) for v in (np.zeros(shape[1]), np.ones(shape[1]))]
    _, _, statistics = ops.batch_norm(*placed, *running, training=True)
    assert statistics is not None
    expected = (mean, variance * count / (count - 1))
    for actual, wanted in zip(statistics, expected, strict=True):
        assert actual.dtype == be.dtype(dtype)
        same(be.to_numpy(actual), wanted, dtype)
    np.testing.assert_array_equal(be.to_numpy(running[0]), np.zeros(shape[1]))
    np.testing.assert_array_equal(be.to_numpy(running[1]), np.ones(shape[1]))


def test_batch_norm_outside_training_returns_no_statistics(be: Backend) -> None:
    x, w, b, _ = operands((3, 2))
    placed = [place(be, v) for v in (x, w, b, np.zeros(2), np.ones(2))]
    assert ops.batch_norm(*placed, training=False)[2] is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_norm_of_a_constant_channel(be: Backend, dtype: str) -> None:
    x = np.stack([np.full((4, 3, 3), 7.25), rng(33).normal(size=(4, 3, 3))], axis=1)
    w, b = np.array([2.0, 3.0]), np.array([0.5, -0.5])
    y, vjp, _ = ops.batch_norm(*(place(be, v, dtype) for v in (x, w, b)), training=True)
    host = be.to_numpy(y)
    np.testing.assert_array_equal(host[:, 0], np.full((4, 3, 3), 0.5))
    same(host, oracles.batch_norm(x, w, b), dtype)
    gy = rng(34).normal(size=x.shape)
    gradients = oracles.complex_vjp(oracles.batch_norm, [x, w, b], gy)
    for gradient, expected in zip(vjp(place(be, gy, dtype)), gradients, strict=True):
        assert np.isfinite(be.to_numpy(gradient)).all()
        scale = np.abs(expected).max()
        tolerance = 1e-4 if dtype == "float32" else 1e-10
        np.testing.assert_allclose(be.to_numpy(gradient) / scale, expected / scale, 0, tolerance)


def test_batch_norm_far_from_zero_keeps_its_digits(be: Backend) -> None:
    """Squares less the squared mean would lose them all in float32."""
    x = 3000 + rng(35).normal(size=(8, 2, 4, 4))
    y, _, _ = ops.batch_norm(place(be, x, "float32"), None, None, training=True)
    np.testing.assert_allclose(be.to_numpy(y), oracles.batch_norm(x, None, None), 0, 2e-3)


def test_batch_norm_of_half_precision_squares_what_is_centred() -> None:
    """4000 squares add up to 105,000, and without the mean to 56,000: float16 holds 65,504."""
    x = (3.5 + 3.75 * rng(37).normal(size=(4000, 3))).astype("float16")
    y, vjp, statistics = ops.batch_norm(x, None, None, training=True)
    wide = x.astype("float64")
    np.testing.assert_allclose(statistics[1], wide.var(axis=0, ddof=1), 5e-3)
    np.testing.assert_allclose(y, oracles.batch_norm(wide, None, None), 0, 2e-2)
    assert np.isfinite(vjp(np.ones_like(y))[0]).all()


def test_batch_norm_computes_only_the_gradients_asked_for(be: Backend) -> None:
    x, w, b, gy = operands((3, 2, 2, 3))
    check_needs(be, ops.batch_norm, [x, w, b], gy, training=True)


def test_batch_norm_of_a_batch_that_is_split_into_parts(be: Backend) -> None:
    draw = rng(36)
    x, gy = draw.normal(size=(2, 32, 24, 20, 20))
    w, b = draw.normal(size=(2, 24))
    column = (1, -1, 1, 1)
    mean, deviation = x.mean((0, 2, 3), keepdims=True), x.std((0, 2, 3), keepdims=True)
    hat = (x - mean) / np.sqrt(deviation**2 + 1e-5)
    y = hat * w.reshape(column) + b.reshape(column)
    gb, gw = gy.sum((0, 2, 3)), (gy * hat).sum((0, 2, 3))
    count = x.size / 24
    centred = gy - gb.reshape(column) / count - hat * gw.reshape(column) / count
    gx = centred * w.reshape(column) / np.sqrt(deviation**2 + 1e-5)
    layouts = ("plain", "permuted")
    check_op(be, ops.batch_norm, [x, w, b], y, gy, [gx, gw, gb], layouts, training=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_batch_norm_and_relu_as_one(be: Backend, shape: tuple[int, ...], training: bool) -> None:
    x, w, b, gy = operands(shape)
    draw = rng(37, *shape)
    mean, variance = draw.normal(size=shape[1]), draw.uniform(0.5, 2, shape[1])

    def forward(x: Any, w: Any, b: Any) -> Any:
        if training:
            return oracles.batch_norm(x, w, b)
        return oracles.normalise(x, w, b, mean, variance, 1e-5)

    normal = forward(x, w, b)
    gradients = oracles.complex_vjp(forward, [x, w, b], np.where(normal > 0, gy, 0.0))
    inputs = [x, w, b] if training else [x, w, b, mean, variance]
    options: dict[str, Any] = {"training": training, "relu": True}
    y = oracles.relu(normal)
    check_op(be, ops.batch_norm, inputs, y, gy, gradients, dtypes=("float64",), **options)


@pytest.mark.parametrize("layout", ["plain", "permuted"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_relu_after_batch_norm_changes_no_bit(be: Backend, dtype: str, layout: str) -> None:
    """In parts of a size as they come, with NaN and infinity in a channel."""
    draw = rng(38)
    x, gy = draw.normal(size=(2, 16, 24, 20, 20))
    x[3, 5, 2, 2], x[4, 6, 1, 1] = np.nan, 0.0
    w, b = draw.normal(size=(2, 24))
    placed = [place(be, v, dtype, layout) for v in (x, w, b)]
    g = place(be, gy, dtype, layout)
    y, vjp, statistics = ops.batch_norm(*placed, training=True, relu=True)
    normal, back, expected = ops.batch_norm(*placed, training=True)
    rectified, back_relu = ops.relu(normal)
    found = [y, *vjp(g), *(statistics or ())]
    wanted = [rectified, *back(back_relu(g)[0]), *(expected or ())]
    for actual, single in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(be.to_numpy(actual), be.to_numpy(single))
    assert np.isnan(be.to_numpy(y)[:, 5]).all()


def test_batch_norm_and_relu_compute_only_the_gradients_asked_for(be: Backend) -> None:
    x, w, b, gy = operands((3, 2, 2, 3))
    check_needs(be, ops.batch_norm, [x, w, b], gy, training=True, relu=True)


FAR = [(8, 64, 20, 20), (64, 3, 96, 97), (20000, 8), (100000, 2)]


@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("shape", FAR, ids=str)
def test_large_batches_keep_their_digits(shape: tuple[int, ...], mean: float) -> None:
    """The mean of many float32, known to a few last digits of what was given."""
    x = (mean + rng(39).normal(size=shape)).astype("float32")
    axes = (0, *range(2, len(shape)))
    exact = x.astype("float64")
    expected = exact - exact.mean(axes, keepdims=True)
    variance = exact.var(axes, keepdims=True)
    y, _, statistics = ops.batch_norm(x, None, None, training=True)
    assert statistics is not None
    digits = 1e-7 * max(1.0, mean)
    np.testing.assert_allclose(y, expected / np.sqrt(variance + 1e-5), 0, 10 * digits)
    np.testing.assert_allclose(statistics[0], exact.mean(axes), 0, 5 * digits)
    count = x.size / shape[1]
    np.testing.assert_allclose(statistics[1], variance.ravel() * count / (count - 1), 1e-4)


@pytest.mark.parametrize("mean", [0.0, 3000.0])
@pytest.mark.parametrize("size", [1, 3])
def test_parts_of_different_means_are_joined(
    be: Backend, mean: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trend over the batch: most of the variance is between its parts."""
    draw = rng(40)
    trend = np.linspace(-50, 50, 12).reshape(12, 1, 1, 1)
    x = (mean + trend + draw.normal(size=(12, 3, 4, 4))).astype("float32")

    def parts(n: int, bytes_each: int) -> list[slice]:
        return [slice(i, min(n, i + size)) for i in range(0, n, size)]

    for name in ("parts", "_shared_parts"):
        if hasattr(be, name):
            monkeypatch.setattr(be, name, parts)
    placed = place(be, x)
    y, _, statistics = ops.batch_norm(placed, None, None, training=True)
    expected = oracles.batch_norm(x.astype("float64"), None, None)
    np.testing.assert_allclose(be.to_numpy(y), expected, 0, 1e-4)
    assert statistics is not None
    variance = x.astype("float64").var((0, 2, 3)) * 192 / 191
    np.testing.assert_allclose(be.to_numpy(statistics[1]), variance, 1e-5)


STREAM = (1234, 5)
DROPPED = [(40, 50), (2, 3, 20, 30), (2000,)]


def kept_by(be: Backend, shape: tuple[int, ...], p: float, stream: tuple[int, int]) -> Any:
    y, _ = ops.dropout(place(be, np.ones(shape), "float32"), p=p, stream=stream)
    return be.to_numpy(y) != 0


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("shape", DROPPED, ids=str)
def test_dropout_drops_that_share_and_scales_the_rest(
    be: Backend, shape: tuple[int, ...], p: float
) -> None:
    draw = rng(41)
    x, gy = draw.uniform(1, 2, shape), draw.uniform(1, 2, shape)
    kept = kept_by(be, shape, p, STREAM)
    count = kept.size
    assert abs(kept.sum() - (1 - p) * count) < 5 * np.sqrt(count * p * (1 - p))
    y, gx = np.where(kept, x / (1 - p), 0), np.where(kept, gy / (1 - p), 0)
    check_op(be, ops.dropout, [x], y, gy, [gx], LAYOUTS, p=p, stream=STREAM)


@pytest.mark.parametrize("shape", DROPPED, ids=str)
def test_dropout_drops_the_same_places_on_every_backend(
    be: Backend, shape: tuple[int, ...]
) -> None:
    host = backend.get("numpy")
    expected = kept_by(host, shape, 0.5, STREAM)
    np.testing.assert_array_equal(kept_by(be, shape, 0.5, STREAM), expected)


def test_dropout_streams_differ(be: Backend) -> None:
    one = kept_by(be, (2000,), 0.5, STREAM)
    for stream in ((1234, 6), (1235, 5), (1234 + (1 << 40), 5)):
        agreement = (one == kept_by(be, (2000,), 0.5, stream)).mean()
        assert 0.4 < agreement < 0.6


def test_dropout_of_nothing_and_of_everything(be: Backend) -> None:
    x = rng(42).normal(size=(3, 4))
    check_op(be, ops.dropout, [x], x, x, [x], p=0.0, stream=STREAM)
    check_op(be, ops.dropout, [x], 0 * x, x, [0 * x], p=1.0, stream=STREAM)
