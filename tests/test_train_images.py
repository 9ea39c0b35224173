"""Image files become network inputs; what was done is said, what can't be done is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dualcnn.train import ImageError, read_image

SIZE = (28, 28)


def stroke(ground: int = 0, ink: int = 255, height: int = 28, width: int = 28) -> Any:
    """A vertical bar, 4 wide, in the middle."""
    image = np.full((height, width), ground, np.uint8)
    image[height // 4 : -(height // 4), width // 2 - 2 : width // 2 + 2] = ink
    return image


def write(path: Path, array: Any, **options: Any) -> Path:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow isn't installed")
    image_module.fromarray(array).save(path, **options)
    return path


def test_a_digit_as_it_is(tmp_path):
    pixels, steps = read_image(write(tmp_path / "a.png", stroke(0, 204)), SIZE)
    assert pixels.shape == (1, 1, 28, 28)
    assert pixels.dtype == np.float32
    assert np.allclose(pixels[0, 0], stroke(0, 204) / 255)
    assert steps == ["scaled from 0..255 to 0..1"]


def test_dark_on_bright_is_inverted(tmp_path):
    pixels, steps = read_image(write(tmp_path / "a.png", stroke(255, 0)), SIZE)
    assert np.allclose(pixels[0, 0], stroke(0, 255) / 255)
    assert steps[-1] == "inverted, because its background is bright"


def test_large_pictures_are_resized(tmp_path):
    pixels, steps = read_image(
        write(tmp_path / "a.png", np.kron(stroke(), np.ones((10, 10), "u1"))), SIZE
    )
    assert "resized from 280x280 to 28x28" in steps
    assert np.abs(pixels[0, 0] - stroke() / 255).mean() < 0.02
    assert np.array_equal(pixels[0, 0] > 0.5, stroke() > 0)
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_an_oblong_input_takes_height_before_width(tmp_path):
    picture = write(tmp_path / "a.png", stroke(height=56, width=28))
    pixels, steps = read_image(picture, (28, 14))
    assert pixels.shape == (1, 1, 28, 14)
    assert steps[-1] == "resized from 28x56 to 14x28"


def test_narrow_pictures_are_padded_before(tmp_path):
    narrow = stroke(250, 0, 56, 28)
    pixels, steps = read_image(write(tmp_path / "a.png", narrow), SIZE)
    assert "padded from 28x56 to 56x56" in steps
    assert "resized from 56x56 to 28x28" in steps
    # The padding takes the ground's own brightness, so no edge appears.
    assert np.allclose(pixels[0, 0, :, :6], 5 / 255, atol=1e-3)
    # 4 of 56 columns of ink are 2 of 28.
    assert pixels[0, 0, 14].sum() == pytest.approx(2, abs=0.7)


def test_colour_becomes_grey(tmp_path):
    colour = np.zeros((28, 28, 3), np.uint8)
    colour[10:18, 10:18] = (0, 255, 0)
    pixels, steps = read_image(write(tmp_path / "a.png", colour), SIZE)
    assert steps[0] == "made grey from colour"
    # ITU-R 601-2: green weighs 0.587.
    assert pixels[0, 0, 12, 12] == pytest.approx(0.587, abs=0.005)


def test_transparency_is_laid_on_white(tmp_path):
    picture = np.zeros((28, 28, 4), np.uint8)
    picture[8:20, 12:16, 3] = 255
    pixels, steps = read_image(write(tmp_path / "a.png", picture), SIZE)
    assert "laid on white where it is transparent" in steps
    assert pixels[0, 0, 10, 13] == 1
    assert pixels[0, 0, 0, 0] == 0


def test_jpeg(tmp_path):
    pixels, _ = read_image(write(tmp_path / "a.jpg", stroke(), quality=95), SIZE)
    assert np.abs(pixels[0, 0] - stroke() / 255).mean() < 0.02


def test_sixteen_bits(tmp_path):
    deep = stroke().astype(np.uint16) * 128
    pixels, steps = read_image(write(tmp_path / "a.png", deep), SIZE)
    assert np.allclose(pixels[0, 0], deep / 65535, atol=1e-6)
    assert steps == ["scaled from 0..65535 to 0..1"]


def test_black_and_white(tmp_path):
    pixels, _ = read_image(write(tmp_path / "a.png", stroke() > 0), SIZE)
    assert np.array_equal(pixels[0, 0], stroke() / 255)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28)])
def test_arrays(tmp_path, dtype, shape):
    np.save(tmp_path / "a.npy", stroke().astype(dtype).reshape(shape))
    pixels, steps = read_image(tmp_path / "a.npy", SIZE)
    assert np.array_equal(pixels[0, 0], stroke() / 255)
    assert steps == ["scaled from 0..255 to 0..1"]


def test_arrays_from_0_to_1_are_taken_as_they_are(tmp_path):
    np.save(tmp_path / "a.npy", stroke() / 255)
    pixels, steps = read_image(tmp_path / "a.npy", SIZE)
    assert np.allclose(pixels[0, 0], stroke() / 255)
    assert steps == []
    np.save(tmp_path / "b.npy", stroke() > 0)
    assert np.allclose(read_image(tmp_path / "b.npy", SIZE)[0], pixels)


def saved(path: Path, array: Any) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            stroke()[:20],
            r"expected an array of shape \(28, 28\) or \(1, 28, 28\), found \(20, 28\)",
        ),
        (np.zeros((28, 28, 3)), r"found \(28, 28, 3\)"),
        (np.full((28, 28), np.nan), "NaN"),
        (np.full((28, 28), -1), "from 0 to 255, found -1 to -1"),
        (np.full((28, 28), 256.0), "found 256 to 256"),
        (np.full((28, 28), "a"), "expected numbers"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, message):
    with pytest.raises(ImageError, match=message) as raised:
        read_image(saved(tmp_path / "bad.npy", array), SIZE)
    assert "bad.npy" in str(raised.value)


def test_pickles_are_not_read(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match="read safely"):
        read_image(tmp_path / "a.npy", SIZE)


@pytest.mark.parametrize("name", ["a.npy", "a.png"])
@pytest.mark.parametrize("content", [b"", b"no image"])
def test_files_that_are_no_images(tmp_path, name, content):
    if name == "a.png":
        pytest.importorskip("PIL.Image", reason="Pillow isn't installed")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=rf"{name}.*(not an image|not an array)"):
        read_image(tmp_path / name, SIZE)


def test_missing_files(tmp_path):
    with pytest.raises(ImageError, match=r"no image file .*gone\.png"):
        read_image(tmp_path / "gone.png", SIZE)


def test_without_pillow(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImageError, match=r"takes Pillow.*: pip install Pillow; \.npy"):
        read_image(tmp_path / "a.png", SIZE)
