"""Networks by name."""

from .convnet import ConvNet
from .errors import ModelError
from .lenet import LeNet
from .mlp import MLP
from .registry import build, names
from .resnet9 import ResNet9

__all__ = ["MLP", "ConvNet", "LeNet", "ModelError", "ResNet9", "build", "names"]
