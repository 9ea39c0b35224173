"""What every operation returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ..backend import Array

__all__ = ["Vjp"]

Vjp: TypeAlias = Callable[[Array], tuple[Array | None, ...]]
"""From the gradient of the output to the gradients of the inputs, None where not needed."""
