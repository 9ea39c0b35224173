"""float16: sums, statistics and expressions are of float32, rounded once.

That each operation is right in float16 too, within `op_check.TOLERANCE`, is checked beside the
other dtypes where its oracle is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from op_calls import CALLS
from op_check import place, rng

import dualcnn
from dualcnn import nn, ops
from dualcnn.backend import Backend

EPS = 2.0**-11
"""The largest relative error of a rounding to float16."""


@pytest.fixture
def half(be: Backend) -> Backend:
    if be.name == "array_api_strict":
        pytest.skip("the array API standard has no float16")
    return be


def ones(be: Backend, *shape: int) -> Any:
    return place(be, np.ones(shape), "float16")


@pytest.mark.parametrize("layout", ["plain", "permuted"])
@pytest.mark.parametrize("name", CALLS)
def test_results_and_gradients_are_float16(half: Backend, name: str, layout: str) -> None:
    for result in CALLS[name].run(half, "float16", layout):
        assert half.owns(result)
        assert result.dtype == half.dtype("float16")


def test_there_is_none_in_the_standard() -> None:
    strict = Backend(pytest.importorskip("array_api_strict"))
    with pytest.raises(TypeError, match="array_api_strict has no float16"):
        strict.dtype("float16")


# Added up in float16, ones come to 2048, where 2048 + 1 is rounded back; the sum of 4096 is exact.

MANY = 4096
SUMS: dict[str, Callable[[Backend], Any]] = {
    "sum": lambda be: ops.sum(ones(be, MANY))[0],
    "sum of rows": lambda be: ops.sum(ones(be, MANY, 3), dim=0)[0],
    "matmul": lambda be: ops.matmul(ones(be, 2, MANY), ones(be, MANY, 2))[0],
    "matmul, its gradient": lambda be: ops.matmul(ones(be, MANY, 2), ones(be, 2, 3))[1](
        ones(be, MANY, 3)
    )[1],
    "linear": lambda be: ops.linear(ones(be, 2, MANY), ones(be, 3, MANY))[0],
    "linear, bias": lambda be: ops.linear(ones(be, MANY, 2), ones(be, 3, 2), ones(be, 3))[1](
        ones(be, MANY, 3)
    )[2],
    "conv2d": lambda be: ops.conv2d(ones(be, 1, MANY, 1, 1), ones(be, 2, MANY, 1, 1))[0],
    "conv2d, weight": lambda be: ops.conv2d(ones(be, 16, 2, 16, 16), ones(be, 3, 2, 1, 1))[1](
        ones(be, 16, 3, 16, 16)
    )[1],
    "conv2d, bias": lambda be: ops.conv2d(
        ones(be, 16, 2, 16, 16), ones(be, 3, 2, 1, 1), ones(be, 3)
    )[1](ones(be, 16, 3, 16, 16))[2],
    "depthwise, weight": lambda be: ops.conv2d(
        ones(be, 16, 2, 16, 16), ones(be, 2, 1, 1, 1), groups=2
    )[1](ones(be, 16, 2, 16, 16))[1],
    "batch_norm, bias": lambda be: ops.batch_norm(
        place(be, rng(1).normal(size=(16, 2, 16, 16)), "float16"),
        ones(be, 2), ones(be, 2), training=True,
    )[1](ones(be, 16, 2, 16, 16))[2],
    "broadcast, its gradient": lambda be: ops.add(ones(be, MANY, 2), ones(be, 2))[1](
        ones(be, MANY, 2)
    )[1],
    "mse_loss": lambda be: ops.mse_loss(
        ones(be, MANY), place(be, np.zeros(MANY), "float16"), reduction="sum"
    )[0],
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
def test_sums_are_kept_in_float32(half: Backend, name: str) -> None:
    found = SUMS[name](half)
    assert found.dtype == half.dtype("float16")
    np.testing.assert_array_equal(half.to_numpy(found), np.full(found.shape, MANY))


@pytest.mark.usefixtures("small_parts")
def test_in_the_smallest_parts_too(half: Backend) -> None:
    for name in ("conv2d, weight", "conv2d, bias", "batch_norm, bias", "depthwise, weight"):
        found = half.to_numpy(SUMS[name](half))
        # A GPU rounds the share of each part, here an image of 256.
        np.testing.assert_array_equal(found, np.full(found.shape, MANY))


def test_windows_are_folded_in_float32(half: Backend) -> None:
    """Pixel 4 of 9 lies in five windows: 2048 + 1 + 1 + 1 + 1 would stay 2048."""
    cols = np.ones((1, 5, 5, 1))
    cols[:, :, 0] = 2048
    folded = half.fold(place(half, cols, "float16"), (9,), (1,), (1,))
    assert folded.dtype == half.dtype("float16")
    assert half.to_numpy(folded)[0, 4, 0] == 2052


def test_means_of_large_values_are_finite(half: Backend) -> None:
    x = place(half, np.full((100, 1000), 30000.0), "float16")
    assert float(half.to_numpy(ops.mean(x)[0])) == pytest.approx(30000, rel=EPS)
    y, _ = ops.avg_pool2d(half.xp.reshape(x, (1, 10, 100, 100)), kernel_size=50)
    np.testing.assert_allclose(half.to_numpy(y), 30000, EPS)
    loss, _ = ops.mse_loss(x[:, :2], place(half, np.full((100, 2), 29900.0), "float16"))
    assert float(half.to_numpy(loss)) == pytest.approx((30000 - 29904) ** 2, rel=EPS)


def test_a_loss_counts_more_labels_than_float16_can(half: Backend) -> None:
    logits = place(half, np.zeros((5001, 4)), "float16")
    labels = place(half, np.arange(5001) % 4)
    loss, vjp = ops.cross_entropy(logits, labels)
    assert float(half.to_numpy(loss)) == pytest.approx(np.log(4), rel=EPS)
    (gx, _) = vjp(place(half, np.full((), 4096.0), "float16"))
    np.testing.assert_allclose(
        half.to_numpy(gx)[0], 4096 / 5001 * np.array([-0.75, 0.25, 0.25, 0.25]), 2 * EPS
    )


def test_statistics_keep_their_digits(half: Backend) -> None:
    """A mean of 100 deviations: squares of float16 have no digit left of the variance."""
    values = (rng(2).normal(size=(32, 3, 16, 16)) + 100).astype("float16").astype("float64")
    x = place(half, values, "float16")
    w, b = (place(half, np.array(v), "float32") for v in ([1.0, 2, 3], [0.0, 1, 2]))
    y, vjp, statistics = ops.batch_norm(x, w, b, training=True)
    assert statistics is not None
    mean, var = values.mean((0, 2, 3)), values.var((0, 2, 3), ddof=1)
    for found, expected in zip(statistics, (mean, var), strict=True):
        assert found.dtype == half.dtype("float32")
        np.testing.assert_allclose(half.to_numpy(found), expected, 1e-5)
    normal = (values - values.mean((0, 2, 3), keepdims=True)) / values.std((0, 2, 3), keepdims=True)
    wide = [np.array(v)[None, :, None, None] for v in ([1.0, 2, 3], [0.0, 1, 2])]
    assert y.dtype == half.dtype("float16")
    np.testing.assert_allclose(half.to_numpy(y), normal * wide[0] + wide[1], 0, 16 * EPS)
    gx, gw, gb = vjp(y)
    assert gx is not None
    assert gx.dtype == half.dtype("float16")
    assert [g.dtype for g in (gw, gb) if g is not None] == [half.dtype("float32")] * 2
    gy = np.asarray(half.to_numpy(y), "float64")
    np.testing.assert_allclose(half.to_numpy(gw), (gy * normal).sum((0, 2, 3)), 1e-3)
    np.testing.assert_allclose(half.to_numpy(gb), gy.sum((0, 2, 3)), 1e-3, 1e-2)


def test_running_statistics_may_be_wider_or_as_narrow(half: Backend) -> None:
    x = place(half, rng(3).normal(size=(4, 3)), "float16")
    running = [np.array([0.5, -1, 2]), np.array([1.0, 4, 0.25])]
    expected = (np.asarray(half.to_numpy(x), "float64") - running[0]) / np.sqrt(running[1] + 1e-5)
    for dtype in ("float16", "float32"):
        given = [place(half, v, dtype) for v in running]
        y, *_ = ops.batch_norm(x, None, None, *given, training=False)
        np.testing.assert_allclose(half.to_numpy(y), expected, 0, 8 * EPS)


def test_a_whole_network_of_float16_answers_as_one_of_float32(half: Backend) -> None:
    """Batch norms folded into the convolutions before them too, as evaluation does."""
    dualcnn.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    x = half.asarray(rng(6).normal(size=(8, 3, 8, 8)), "float32")
    model(x)
    with dualcnn.no_grad():
        expected = model.eval()(x).numpy()
        narrow = model.to(dtype="float16")(half.asarray(x, "float16"))
    assert {p.dtype for p in model.parameters()} == {half.dtype("float16")} == {narrow.dtype}
    np.testing.assert_allclose(narrow.numpy(), expected, 0, 16 * EPS * np.abs(expected).max())


def _far(xp: Any, x: Any, y: Any) -> Any:
    return (x * 1000 + y) - x * 1000


def test_an_expression_is_rounded_once(half: Backend) -> None:
    """Small arrays and large ones, with and without a place for the result, mixed with float32."""
    for n in (3, 1 << 18):
        x, y = (place(half, np.full(n, v), "float16") for v in (60.0, 0.125))
        expected = half.fuse(_far)(x, y)
        assert expected.dtype == half.dtype("float16")
        out = half.empty((n,), half.dtype("float16"))
        mixed = half.fuse(_far)(x, place(half, np.full(n, 0.125), "float32"))
        assert mixed.dtype == half.dtype("float32")
        for found in (expected, half.fuse(_far)(x, y, out=out), mixed):
            np.testing.assert_array_equal(half.to_numpy(found), np.full(n, 0.125))
        # In place, and several results.
        np.testing.assert_array_equal(half.to_numpy(half.fuse(_far)(x, y, out=y)), 0.125)
