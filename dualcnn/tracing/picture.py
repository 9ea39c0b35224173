"""Arrays too large for tables as small pictures: PNG, inside the page."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np

__all__ = ["picture"]

POSITIVE, NEGATIVE = (37, 99, 235), (217, 83, 15)
"""The colours of the page's tables; how large a number is, is how little the ground shows through.
"""


def picture(values: Any, largest: float) -> str:
    """The address of a picture with a pixel for each number of a matrix; `largest` is full colour.

    PNG, https://www.w3.org/TR/png-3: 8 bits each of red, green, blue and opacity.
    """
    height, width = values.shape
    share = np.abs(values) / largest if largest else np.zeros(values.shape)
    pixels = np.empty((height, width, 4), np.uint8)
    pixels[..., :3] = np.where((values < 0)[..., None], NEGATIVE, POSITIVE)
    pixels[..., 3] = np.round(255 * np.nan_to_num(share).clip(0, 1))
    # Each line begins with the number of its filter: 0, none.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check
