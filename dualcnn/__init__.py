"""dualcnn: write a CNN once, train it on NumPy or on CuPy."""

from __future__ import annotations

from . import autograd, backend, data, functional, ops, random
from .autograd import Tensor, apply, is_grad_enabled, no_grad
from .backend import asarray, available, to_numpy, use
from .functional import cat, flatten, log_softmax, matmul, relu, reshape, sigmoid, softmax, tanh
from .random import manual_seed

__version__ = "0.1.0"

__all__ = [
    "Tensor",
    "__version__",
    "apply",
    "asarray",
    "autograd",
    "available",
    "backend",
    "cat",
    "data",
    "flatten",
    "functional",
    "is_grad_enabled",
    "log_softmax",
    "manual_seed",
    "matmul",
    "no_grad",
    "ops",
    "random",
    "relu",
    "reshape",
    "sigmoid",
    "softmax",
    "tanh",
    "to_numpy",
    "use",
]
