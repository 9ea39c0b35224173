"""Networks by name."""

from .convnet import ConvNet
from .errors import ModelError
from .lenet import LeNet
from .mlp import MLP
from .registry import build, names

__all__ = ["MLP", "ConvNet", "LeNet", "ModelError", "build", "names"]
