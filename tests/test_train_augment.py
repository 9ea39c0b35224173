"""Shifted images: every move once, nothing but zeros from outside."""

from __future__ import annotations

import numpy as np
import pytest

from dualcnn import backend, data
from dualcnn.backend import Backend
from dualcnn.train import Shift


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """One image moved pixel by pixel."""
    out = np.zeros_like(image)
    _, height, width = image.shape
    for i in range(height):
        for j in range(width):
            if 0 <= i - down < height and 0 <= j - right < width:
                out[:, i, j] = image[:, i - down, j - right]
    return out


@pytest.mark.parametrize("pixels", [1, 2])
def test_every_move_once(be: Backend, pixels):
    image = np.arange(1, 41, dtype="float32").reshape(2, 4, 5)
    count = (2 * pixels + 1) ** 2
    result = backend.to_numpy(Shift(pixels)(be.asarray(np.stack([image] * count))))
    steps = range(-pixels, pixels + 1)
    expected = {moved(image, down, right).tobytes() for down in steps for right in steps}
    assert len(expected) == count
    assert {one.tobytes() for one in result} == expected


@pytest.mark.parametrize("n", [1, 4, 23])
def test_each_image_moves_by_itself(be: Backend, n):
    images = np.random.default_rng(0).random((n, 1, 5, 5)).astype("float32")
    given = images.copy()
    x = be.asarray(images)
    result = backend.to_numpy(Shift(1)(x))
    assert result.dtype == np.float32
    for image, one in zip(images, result, strict=True):
        assert any(np.array_equal(moved(image, i, j), one) for i in (-1, 0, 1) for j in (-1, 0, 1))
    assert np.array_equal(backend.to_numpy(x), given)


def test_in_a_loader(be: Backend):
    images = np.zeros((90, 1, 5, 5), "uint8")
    images[:, :, 2, 2] = 255
    loader = data.DataLoader((images, np.arange(90)), 90, shuffle=True, transform=Shift(1))
    places = []
    for _ in range(2):
        ((x, y),) = loader
        order = np.argsort(y.numpy())
        places.append(x.numpy().reshape(90, 25).argmax(1)[order].tolist())
    for found in places:
        assert sorted(found) == sorted([6, 7, 8, 11, 12, 13, 16, 17, 18] * 10)
    assert places[0] != places[1]


def test_no_shift():
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        Shift(0)
