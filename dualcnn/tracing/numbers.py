"""How numbers are written: all of a step alike, with as many digits as can be told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Digits", "digits_of"]


@dataclass(frozen=True)
class Digits:
    """Places after the point, once all numbers were divided by `10 ** exponent`."""

    places: int
    exponent: int = 0

    def write(self, value: float) -> str:
        """A number: `0` is exactly zero, `0.000` is not."""
        if not math.isfinite(value):
            return str(value)
        if value == 0:
            return "0"
        return f"{value / 10**self.exponent:.{self.places}f}"

    @property
    def scale(self) -> str:
        """What all numbers are to be multiplied by, in words, if anything."""
        return f"times 10^{self.exponent}" if self.exponent else ""


def digits_of(values: Any) -> Digits:
    """Digits for an array: few if they say it all, else three or four of the largest number."""
    numbers = np.abs(np.asarray(values, dtype=np.float64))
    numbers = numbers[np.isfinite(numbers)]
    largest = float(numbers.max()) if numbers.size else 0.0
    if largest == 0 or (largest < 1e6 and (numbers == np.round(numbers)).all()):
        return Digits(0)
    size = math.floor(math.log10(largest))
    if not -4 < size < 6:
        most, exponent = 3, size
    else:
        most, exponent = (max(0, 3 - size) if size >= 0 else 2 - size), 0
    for places in range(most):
        # float32 holds 0.1 to eight digits: what is left over then is no digit more.
        left_over = np.abs(numbers - np.round(numbers, places - exponent))
        if (left_over <= 1e-6 * largest).all():
            return Digits(places, exponent)
    return Digits(most, exponent)
