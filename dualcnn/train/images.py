"""One image file as the input of a trained network, with an account of what was done to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ImageError", "read_image"]

Pixels = npt.NDArray[Any]


class ImageError(ValueError):
    """A file that can't be used as an image."""


def read_image(
    path: str | os.PathLike[str], image_size: tuple[int, int]
) -> tuple[Pixels, list[str]]:
    """Read a grey image for a network that learned bright strokes on a dark ground, as MNIST's.

    path: PNG, JPEG or another format that Pillow reads; or .npy with an array (H, W) or (1, H, W),
    of exactly `image_size`, in 0 to 255 or, if floating, in 0 to 1.
    Returns the image, (1, 1, H, W) float32 in 0 to 1, and what was done, in words and in order.
    Raises ImageError, which names the file, for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"there is no image file {path}")
    steps: list[str] = []
    try:
        if path.suffix.lower() == ".npy":
            pixels = _from_npy(path, image_size, steps)
        else:
            pixels = _from_picture(path, image_size, steps)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error.__cause__
    if np.median(_border(pixels)) > 0.5:
        pixels = 1.0 - pixels
        steps.append("inverted, because its background is bright")
    return pixels.astype(np.float32)[None, None], steps


def _border(pixels: Pixels) -> Pixels:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _scaled(pixels: Pixels, steps: list[str]) -> Pixels:
    """Values in 0 to 1 from what the type and the range say."""
    if pixels.dtype == np.bool_:
        steps.append("false and true taken as 0 and 1")
        return pixels.astype(np.float64)
    if pixels.dtype.kind not in "iuf":
        raise ImageError(f"expected numbers, found values of type {pixels.dtype}")
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("expected finite values, found NaN or infinity")
    full = 65535 if pixels.dtype == np.uint16 else 255
    if low < 0 or high > full:
        raise ImageError(f"expected values from 0 to {full}, found {low:g} to {high:g}")
    if pixels.dtype.kind == "f" and high <= 1:
        return pixels.astype(np.float64)
    steps.append(f"scaled from 0..{full} to 0..1")
    return pixels.astype(np.float64) / full


def _from_npy(path: Path, image_size: tuple[int, int], steps: list[str]) -> Pixels:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ImageError(f"not an array that NumPy can read safely ({error})") from error
    height, width = image_size
    if array.shape not in ((height, width), (1, height, width)):
        raise ImageError(
            f"expected an array of shape ({height}, {width}) or (1, {height}, {width}), found "
            f"{array.shape}; PNG and JPEG files are resized, arrays are not"
        )
    return _scaled(array.reshape(image_size), steps)


def _from_picture(path: Path, image_size: tuple[int, int], steps: list[str]) -> Pixels:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImageError(
            "reading PNG and JPEG files takes Pillow, which is not installed: "
            "pip install Pillow; .npy files do without"
        ) from error
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            upright.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"not an image that Pillow can read ({error})") from error
    # 32-bit floats, so that 16-bit grey keeps its depth through the resizing.
    grey = Image.fromarray(_scaled(_grey(upright, steps), steps).astype(np.float32))
    side = max(grey.size)
    if len(set(image_size)) == 1 and len(set(grey.size)) > 1:
        ground = float(np.median(_border(np.asarray(grey))))
        corner = ((side - grey.width) // 2, (side - grey.height) // 2)
        steps.append(f"padded from {grey.width}x{grey.height} to {side}x{side}")
        square = Image.new("F", (side, side), ground)
        square.paste(grey, corner)
        grey = square
    height, width = image_size
    if grey.size != (width, height):
        steps.append(f"resized from {grey.width}x{grey.height} to {width}x{height}")
        grey = grey.resize((width, height), Image.Resampling.LANCZOS)
    # Lanczos overshoots a little at edges.
    return np.clip(np.asarray(grey, dtype=np.float64), 0.0, 1.0)


def _grey(image: Any, steps: list[str]) -> Pixels:
    """The brightness of each pixel, as Pillow weighs colours (ITU-R 601-2)."""
    from PIL import Image

    if image.mode.startswith("I"):
        deep: Pixels = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        return deep
    if image.mode in ("L", "1", "F"):
        return np.array(image.convert("L") if image.mode == "1" else image)
    if "A" in image.mode or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
        steps.append("laid on white where it is transparent")
    steps.append("made grey from colour")
    return np.asarray(image.convert("L"))
