"""From the name of a network to the network."""

from __future__ import annotations

from collections.abc import Callable

from ..nn import Module
from .convnet import ConvNet
from .errors import ModelError
from .lenet import LeNet
from .mlp import MLP
from .resnet9 import ResNet9

__all__ = ["build", "names"]

_BUILDERS: dict[str, Callable[[int, tuple[int, int], int], Module]] = {
    "cnn": ConvNet,
    "lenet": LeNet,
    "mlp": MLP,
    "resnet9": ResNet9,
}


def names() -> tuple[str, ...]:
    """The names that `build` knows."""
    return tuple(_BUILDERS)


def build(
    name: str,
    *,
    in_channels: int = 1,
    image_size: int | tuple[int, int] = 28,
    num_classes: int = 10,
) -> Module:
    """A new network of that name for images `(N, in_channels, H, W)`, returning logits.

    image_size: (H, W), or one number for both.
    Raises ModelError for an unknown name and for images that are too small for the network.

    >>> model = models.build("lenet")
    """
    if name not in _BUILDERS:
        known = ", ".join(names())
        raise ModelError(f"unknown model {name!r}; expected one of {known}")
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(*size, in_channels, num_classes) < 1:
        raise ModelError(
            "expected image_size of one or two positive numbers, and positive in_channels and "
            f"num_classes; got {image_size}, {in_channels} and {num_classes}"
        )
    return _BUILDERS[name](in_channels, size, num_classes)
