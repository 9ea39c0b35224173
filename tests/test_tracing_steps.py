"""The steps of a traced pass recombine: each is what loops make of the steps before it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tracing_examples import deep, host, images

import dualcnn
from dualcnn import functional as F
from dualcnn import nn

__all__ = ["deep"]

CONVOLUTIONS = {
    "plain": {},
    "padded": {"padding": 1},
    "strided": {"stride": (2, 1), "padding": (1, 0, 2, 1)},
    "dilated": {"dilation": (1, 2), "padding": (0, 2)},
    "same": {"padding": "same"},
}


@pytest.fixture(params=CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def convolved(request, be):
    dualcnn.manual_seed(3)
    model = nn.Sequential({"conv": nn.Conv2d(2, 3, (3, 2), **request.param)}).to(dtype="float64")
    x = images(be, 2, 2, 6, 7)
    target = images(be, *model(x).shape, seed=1)
    t = dualcnn.trace(model, x, target, loss=F.mse_loss)
    return t, model[0], host(x), {step.name: host(step.array) for step in t}


def windows_of(conv, padded, out):
    """Row, image, output place and pixels of each window, by loops."""
    (sh, sw), (dh, dw) = conv.stride, conv.dilation
    n, c, _, _ = padded.shape
    places = itertools.product(range(n), range(out[0]), range(out[1]))
    for row, (image, i, j) in enumerate(places):
        taps = itertools.product(range(c), range(3), range(2))
        pixels = [(image, k, i * sh + u * dh, j * sw + v * dw) for k, u, v in taps]
        yield row, image, i, j, pixels


def test_columns_times_weights_plus_bias_is_the_map(convolved):
    t, conv, x, steps = convolved
    padded = steps.get("conv.padded", x)
    out = t["conv.output"].shape[2:]
    weight, bias = host(conv.weight), host(conv.bias)
    assert padded.sum() == pytest.approx(x.sum())
    for row, image, i, j, pixels in windows_of(conv, padded, out):
        for place, pixel in enumerate(pixels):
            assert steps["conv.columns"][row, place] == padded[pixel]
            _, c, u, v = np.unravel_index(place, (1, 2, 3, 2))
            assert steps["conv.windows"][image, i, j, c, u, v] == padded[pixel]
        for o in range(3):
            products = [
                padded[pixel] * weight[o, c, u, v]
                for pixel, (c, u, v) in zip(
                    pixels, itertools.product(range(2), range(3), range(2)), strict=True
                )
            ]
            total = sum(products)
            assert steps["conv.product"][row, o] == pytest.approx(total, rel=1e-12, abs=1e-12)
            assert steps["conv.output"][image, o, i, j] == pytest.approx(
                total + bias[o], rel=1e-12, abs=1e-12
            )


def test_column_gradients_fold_to_those_of_the_image(convolved):
    t, conv, x, steps = convolved
    out = t["conv.output"].shape[2:]
    padded = steps.get("conv.padded", x)
    gy, weight = steps["conv.gy"], host(conv.weight)
    gx, gw, gb = np.zeros_like(padded), np.zeros((3, 12)), np.zeros(3)
    for row, image, i, j, pixels in windows_of(conv, padded, out):
        for o in range(3):
            g = gy[image, o, i, j]
            assert steps["conv.gy_matrix"][row, o] == g
            gb[o] += g
            for place, pixel in enumerate(pixels):
                gw[o, place] += g * padded[pixel]
        for place, pixel in enumerate(pixels):
            column = sum(gy[image, o, i, j] * weight[o].flat[place] for o in range(3))
            assert steps["conv.gcolumns"][row, place] == pytest.approx(column, abs=1e-13)
            gx[pixel] += column
    np.testing.assert_allclose(steps["conv.gb"], gb, atol=1e-12)
    np.testing.assert_allclose(steps["conv.gw_matrix"], gw, atol=1e-12)
    np.testing.assert_allclose(steps["conv.gw"].reshape(3, 12), gw, atol=1e-12)
    inner = gx
    if "conv.padded" in steps:
        np.testing.assert_allclose(steps["conv.gpadded"], gx, atol=1e-12)
        (top, left), (_, _, h, w) = corner(steps["conv.padded"], x), x.shape
        inner = gx[:, :, top : top + h, left : left + w]
    np.testing.assert_allclose(steps["conv.gx"], inner, atol=1e-12)


def corner(padded, x):
    """Where the image begins in the padded one."""
    _, _, rows, columns = np.nonzero(padded == x[0, 0, 0, 0])
    return rows[0], columns[0]


def test_pooling_marks_the_first_maximum(be):
    x = be.asarray(np.array([[[[1, 1, 0, 0], [1, 0, 0, 2]]]]), "float32")
    target = be.asarray(np.zeros((1, 1, 1, 2)), "float32")
    t = dualcnn.trace(nn.Sequential(nn.MaxPool2d(2)), x, target, loss=F.mse_loss)
    assert host(t["pool.places"]).tolist() == [[[[0, 7]]]]
    marks = t.step("pool.input").marks
    assert marks.meaning == "the maximum of a window"
    assert marks.where.tolist() == [[[[True, False, False, False], [False, False, False, True]]]]
    # d mean(squares) / d maximum = 2 * maximum / 2.
    assert host(t["pool.gx"]).tolist() == [[[[1, 0, 0, 0], [0, 0, 0, 2]]]]


def test_linear_and_cross_entropy_by_loops(be):
    model = nn.Sequential(nn.Linear(3, 4)).to(dtype="float64")
    x, labels = images(be, 2, 3), [3, 1]
    t = dualcnn.trace(model, x, be.asarray(np.array(labels)))
    values = {step.name: host(step.array) for step in t}
    weight, bias, xs = host(model[0].weight), host(model[0].bias), host(x)
    losses, g = [], np.zeros((2, 4))
    for n in range(2):
        logits = [sum(xs[n, k] * weight[o, k] for k in range(3)) + bias[o] for o in range(4)]
        total = sum(np.exp(z) for z in logits)
        p = [np.exp(z) / total for z in logits]
        losses.append(-np.log(p[labels[n]]))
        g[n] = [(p[o] - (o == labels[n])) / 2 for o in range(4)]
        assert values["linear.output"][n] == pytest.approx(logits)
        assert values["loss.probabilities"][n] == pytest.approx(p)
        assert values["loss.exp"][n].max() == 1
        assert values["loss.exp"][n] / values["loss.total"][n] == pytest.approx(p)
    assert values["loss.losses"] == pytest.approx(losses)
    assert values["loss.loss"] == pytest.approx(sum(losses) / 2)
    assert values["loss.one_hot"].tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]
    assert values["loss.gx"] == pytest.approx(g)
    gw = [[sum(g[n, o] * xs[n, k] for n in range(2)) for k in range(3)] for o in range(4)]
    assert values["linear.gw"] == pytest.approx(np.array(gw))


def test_batch_norm_shows_the_statistics_of_the_batch(be):
    model = nn.Sequential({"norm": nn.BatchNorm2d(2)}).to(dtype="float64")
    model[0].weight.data = be.asarray(np.array([2.0, 0.5]))
    model[0].bias.data = be.asarray(np.array([0.0, 1.0]))
    x = images(be, 3, 2, 2, 2)
    t = dualcnn.trace(model, x, images(be, 3, 2, 2, 2, seed=1), loss=F.mse_loss)
    xs = host(x)
    mean, variance = xs.mean((0, 2, 3)), xs.var((0, 2, 3))
    np.testing.assert_allclose(host(t["norm.mean"]), mean)
    np.testing.assert_allclose(host(t["norm.variance"]), variance)
    normal = (xs - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None]
    np.testing.assert_allclose(host(t["norm.normalized"]), normal)
    gy = host(t["norm.gy"])
    back = (
        gy
        - gy.mean((0, 2, 3), keepdims=True)
        - normal * (gy * normal).mean((0, 2, 3), keepdims=True)
    )
    factor = (np.array([2.0, 0.5]) / np.sqrt(variance + 1e-5))[:, None, None]
    np.testing.assert_allclose(host(t["norm.gx"]), back * factor, atol=1e-14)
    t = dualcnn.trace(model.eval(), x, images(be, 3, 2, 2, 2, seed=1), loss=F.mse_loss)
    assert host(t["norm.mean"]).tolist() == [0, 0]
    assert host(t["norm.variance"]).tolist() == [1, 1]


def test_elementwise_gradients_are_gy_times_the_factor(be, deep):
    t = dualcnn.trace(deep, images(be, 2, 1, 9, 9, dtype="float32"), be.asarray(np.array([2, 0])))
    for name, factor in (
        ("leaky", "mask"), ("sigmoid", "slope"), ("tanh", "slope"), ("dropout", "factor")
    ):  # fmt: skip
        product = host(t[f"{name}.gy"]) * host(t[f"{name}.{factor}"])
        np.testing.assert_allclose(host(t[f"{name}.gx"]), product, rtol=1e-5)
    x = host(t["leaky.input"])
    np.testing.assert_array_equal(host(t["leaky.mask"]), np.where(x > 0, 1, 0.2).astype("float32"))
    kept = host(t["dropout.factor"])
    np.testing.assert_array_equal(host(t["dropout.output"]), host(t["dropout.input"]) * kept)
    assert set(kept.flat) == {np.float32(0), np.float32(1 / 0.6)}
