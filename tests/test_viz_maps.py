"""Filters and feature maps as tiles of one picture: what is shown, on which scale, numbered how."""

from __future__ import annotations

import numpy as np
import pytest

import dualcnn
from dualcnn import nn, viz
from dualcnn.viz.mosaic import every, grid_columns, mosaic

pytest.importorskip("matplotlib", reason="matplotlib isn't installed")


def shown(figure):
    """The picture of the first axes, and its scale (lowest, highest)."""
    (image,) = figure.axes[0].images
    return np.ma.filled(image.get_array(), np.nan), image.get_clim()


def scale(figure):
    """What the scale of colours measures; flat pictures have it below."""
    return figure.axes[1].get_ylabel() or figure.axes[1].get_xlabel()


def tile(figure, i):
    """The tile with number i above it, at one pixel a value."""
    axes = figure.axes[0]
    (mark,) = (text for text in axes.texts if text.get_text() == str(i))
    picture, _ = shown(figure)
    x, top = mark.xy
    present = ~np.isnan(picture)
    top, x = round(top + 0.5), int(x)
    bottom, left, right = top, x, x
    while bottom < len(picture) and present[bottom, x]:
        bottom += 1
    while left > 0 and present[top, left - 1]:
        left -= 1
    while right + 1 < picture.shape[1] and present[top, right + 1]:
        right += 1
    return picture[top:bottom, left : right + 1]


def reduced(picture, shape):
    """The picture with each block of equal pixels as one, in that shape."""
    down, right = (big // small for big, small in zip(picture.shape, shape, strict=True))
    small = picture[::down, ::right]
    assert small.shape == shape
    np.testing.assert_array_equal(small.repeat(down, 0).repeat(right, 1), picture)
    return small


def test_a_mosaic():
    tiles = np.arange(1.0, 13.0).reshape(3, 2, 2)
    nan = np.nan
    want = [
        [1, 2, nan, 5, 6],
        [3, 4, nan, 7, 8],
        [nan, nan, nan, nan, nan],
        [nan, nan, nan, nan, nan],
        [9, 10, nan, nan, nan],
        [11, 12, nan, nan, nan],
    ]
    np.testing.assert_array_equal(mosaic(tiles, 2, (2, 1)), want)


def test_a_mosaic_in_colours():
    tiles = np.zeros((2, 1, 1, 3))
    np.testing.assert_array_equal(mosaic(tiles, 2, (1, 1)), [[[0] * 3, [1] * 3, [0] * 3]])


@pytest.mark.parametrize(
    ("count", "columns"),
    [(1, 1), (2, 2), (6, 3), (7, 3), (8, 4), (10, 5), (16, 4), (32, 8), (64, 8), (13, 4), (31, 6)],
)
def test_columns_of_a_grid(count, columns):
    assert grid_columns(count) == columns


@pytest.mark.parametrize(
    ("count", "step"), [(16, 1), (17, 2), (32, 2), (33, 5), (64, 5), (100, 10), (300, 20)]
)
def test_steps_between_labels(count, step):
    assert every(count) == step


@pytest.mark.parametrize("shape", [(8, 1, 3, 3), (8, 3, 3), (1, 1, 5, 5), (13, 1, 2, 4)])
def test_each_filter_stands_below_its_number(be, shape):
    weight = np.random.default_rng(0).standard_normal(shape)
    figure = viz.filters(be.asarray(weight))
    for i, kernel in enumerate(weight.reshape(shape[0], *shape[-2:])):
        np.testing.assert_array_equal(reduced(tile(figure, i), kernel.shape), kernel)
    assert len(figure.axes[0].texts) == shape[0]


def test_weights_have_an_even_scale_white_at_0():
    figure = viz.filters([[[0.5, -2.0]], [[0.0, 1.0]]])
    _, limits = shown(figure)
    assert limits == (-2.0, 2.0)
    image = figure.axes[0].images[0]
    red, blue, white = (image.cmap(image.norm(v)) for v in (2.0, -2.0, 0.0))
    assert red[0] > 2 * red[2]
    assert blue[2] > 2 * blue[0]
    assert min(white[:3]) > 0.95
    assert scale(figure) == "weight"


def test_a_module_s_weight():
    conv = nn.Conv2d(1, 6, 5)
    np.testing.assert_array_equal(
        reduced(tile(viz.filters(conv.weight), 5), (5, 5)), conv.weight.numpy()[5, 0]
    )


def test_three_channels_are_colours():
    weight = np.zeros((2, 3, 1, 1))
    weight[0, 0], weight[1, 2] = 4.0, -2.0
    picture, _ = shown(viz.filters(weight))
    np.testing.assert_allclose(picture[-1, 0], [1, 0.5, 0.5])
    np.testing.assert_allclose(picture[-1, -1], [0.5, 0.5, 0.25])
    assert len(viz.filters(weight).axes) == 1, "colours have no scale"


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (5, 7, 1, 1), (40, 33, 3, 3), (2, 3, 3, 3)])
def test_channels_stand_in_a_row(shape):
    weight = np.random.default_rng(0).standard_normal(shape)
    figure = viz.filters(weight, rgb=False)
    picture, _ = shown(figure)
    axes = figure.axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("filter", "channel of the input")
    rows, columns = (
        dict(zip([t.get_text() for t in axis.get_ticklabels()], axis.get_ticklocs(), strict=True))
        for axis in (axes.yaxis, axes.xaxis)
    )
    assert "0" in rows
    assert 1 < len(columns) <= 16
    for row, y in rows.items():
        for column, x in columns.items():
            kernel = weight[int(row), int(column)]
            assert picture[int(y + 0.5), int(x + 0.5)] in kernel
    seen = set(picture[~np.isnan(picture)].tolist())
    assert seen == set(weight.ravel().tolist())


def test_rows_of_a_linear_layer_as_images():
    weight = np.random.default_rng(0).standard_normal((10, 12))
    figure = viz.filters(weight, image_shape=(3, 4))
    np.testing.assert_array_equal(reduced(tile(figure, 9), (3, 4)), weight[9].reshape(3, 4))
    coloured, _ = shown(viz.filters(weight, image_shape=(3, 2, 2)))
    assert coloured.ndim == 3


def test_only_the_first_are_drawn_and_the_title_says_so():
    weight = np.random.default_rng(0).standard_normal((70, 1, 2, 2))
    figure = viz.filters(weight)
    assert len(figure.axes[0].texts) == 64
    assert figure.get_suptitle() == "the first 64 of 70 filters of 2x2"
    assert len(viz.filters(weight, limit=100).axes[0].texts) == 70
    wide = viz.filters(weight.reshape(2, 35, 2, 2), limit=8)
    assert wide.get_suptitle() == "2 filters of 2x2, the first 8 of 35 channels"
    picture, _ = shown(wide)
    assert set(picture[~np.isnan(picture)].tolist()) == set(
        weight.reshape(2, 35, 2, 2)[:, :8].ravel().tolist()
    )
    assert viz.filters(weight, title="mine").get_suptitle() == "mine"


def test_maps_above_0_have_a_scale_from_0_others_an_even_one():
    maps = np.random.default_rng(0).random((6, 4, 5))
    figure = viz.feature_maps(maps)
    for i in range(6):
        np.testing.assert_array_equal(reduced(tile(figure, i), (4, 5)), maps[i])
    assert shown(figure)[1] == (0.0, maps.max())
    assert scale(figure) == "value"
    assert shown(viz.feature_maps(-maps))[1] == (-maps.max(), maps.max())


def test_maps_each_on_a_scale_of_its_own():
    maps = np.array([[[1.0, 0.5]], [[0.02, 0.01]], [[0.0, 0.0]]])
    figure = viz.feature_maps(maps, scale="each")
    for i, want in enumerate([[[1.0, 0.5]], [[1.0, 0.5]], [[0.0, 0.0]]]):
        np.testing.assert_allclose(reduced(tile(figure, i), (1, 2)), want)
    assert shown(figure)[1] == (0.0, 1.0)
    assert scale(figure) == "value / largest of its map"


def test_maps_of_one_image_of_a_batch(be):
    maps = np.random.default_rng(0).random((1, 4, 3, 3))
    figure = viz.feature_maps(dualcnn.Tensor(be.asarray(maps)))
    np.testing.assert_array_equal(reduced(tile(figure, 3), (3, 3)), maps[0, 3])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_leaves_the_scale_alone(value):
    weight = np.array([[[1.0, -3.0]], [[value, 2.0]]])
    assert shown(viz.filters(weight))[1] == (-3.0, 3.0)
    assert shown(viz.feature_maps(np.full((2, 3, 3), value)))[1] == (0.0, 1.0)
    viz.filters(np.full((2, 3, 3, 3), value)).draw_without_rendering()


def test_zeros_have_a_scale():
    assert shown(viz.filters(np.zeros((2, 3, 3))))[1] == (-1.0, 1.0)


ZEROS = np.zeros


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: viz.filters(ZEROS((10, 784))),
            ValueError,
            r"expected a weight of shape \(O, C, KH, KW\).* got \(10, 784\); .*image_shape",
        ),
        (lambda: viz.filters(ZEROS(3)), ValueError, r"got \(3,\); a Conv2d has it as \.weight"),
        (
            lambda: viz.filters(ZEROS((10, 784)), image_shape=(28, 27)),
            ValueError,
            r"image_shape \(H, W\) or \(C, H, W\) of 784 values.* got \(28, 27\)",
        ),
        (lambda: viz.filters(ZEROS((2, 1, 3, 3)), rgb=True), ValueError, r"3 channels.*got 1"),
        (lambda: viz.filters(ZEROS((2, 3, 3)), limit=0), ValueError, r"limit of at least 1"),
        (lambda: viz.filters(ZEROS((2, 3, 3)), columns=0), ValueError, r"columns and limit of at"),
        (lambda: viz.filters(nn.Conv2d(1, 2, 3)), TypeError, r"weight: expected an array.*Conv2d"),
        (lambda: viz.filters(None), TypeError, r"weight: expected an array, a Tensor.*NoneType"),
        (lambda: viz.filters([["a"]]), TypeError, r"weight: expected numbers, got values of type"),
        (
            lambda: viz.feature_maps(ZEROS((2, 4, 3, 3))),
            ValueError,
            r"expected maps of shape \(C, H, W\), got \(2, 4, 3, 3\).*2 images, choose one: maps",
        ),
        (lambda: viz.feature_maps(ZEROS((4, 3))), ValueError, r"got \(4, 3\); a layer's maps are"),
        (lambda: viz.feature_maps(ZEROS((4, 3, 3)), scale="own"), ValueError, r'"shared" or "each'),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
