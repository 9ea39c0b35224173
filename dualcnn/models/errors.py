"""What can't be built."""

from __future__ import annotations

__all__ = ["ModelError", "check_size"]


class ModelError(ValueError):
    """A network that is unknown, or that the images don't fit."""


def check_size(network: str, image_size: tuple[int, int], least: int) -> None:
    """Raise ModelError for an image with a side under `least`, which pooling would use up."""
    if min(image_size) < least:
        height, width = image_size
        raise ModelError(
            f"{network} needs images of at least {least}x{least}, got {height}x{width}"
        )
