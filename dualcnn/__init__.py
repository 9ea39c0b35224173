"""dualcnn: write a CNN once, train it on NumPy or on CuPy.

Everything public is reachable from here: `nn`, `optim`, `functional` and `data` to build and feed a
network, `train` to fit one, `ops` for the mathematics on plain arrays, `check` to grade your own
layers, `trace` to see every number of a small one, `viz` for pictures, `use` to choose a backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import amp, autograd, backend, functional, nn, ops, optim, random
from .amp import autocast, is_autocast_enabled
from .autograd import Tensor, apply, enable_grad, is_grad_enabled, no_grad
from .backend import asarray, available, to_numpy, use
from .captured import CaptureError, capture
from .functional import cat, flatten, log_softmax, matmul, relu, reshape, sigmoid, softmax, tanh
from .ops.algorithms import algorithms
from .random import manual_seed

if TYPE_CHECKING:
    from . import check, data, interop, models, train, viz
    from .interop.safetensors import load, save
    from .tracing import trace

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "Tensor",
    "__version__",
    "algorithms",
    "amp",
    "apply",
    "asarray",
    "autocast",
    "autograd",
    "available",
    "backend",
    "capture",
    "cat",
    "check",
    "data",
    "enable_grad",
    "flatten",
    "functional",
    "interop",
    "is_autocast_enabled",
    "is_grad_enabled",
    "load",
    "log_softmax",
    "manual_seed",
    "matmul",
    "models",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "random",
    "relu",
    "reshape",
    "save",
    "sigmoid",
    "softmax",
    "tanh",
    "to_numpy",
    "trace",
    "train",
    "use",
    "viz",
]

# Loaded when first asked for, so that `import dualcnn` stays within 0.1 s of `import numpy`.
_LAZY = ("check", "data", "interop", "models", "train", "viz")
_LAZY_FUNCTIONS = {
    "load": ".interop.safetensors",
    "save": ".interop.safetensors",
    "trace": ".tracing",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY:
        return importlib.import_module(f".{name}", __name__)
    if name in _LAZY_FUNCTIONS:
        return getattr(importlib.import_module(_LAZY_FUNCTIONS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
