"""What of PyTorch's modules and optimizers lies outside the library, each with its reason.

A sample listed here must be refused with a clear error, never answered; an entry that no sample
fits any more makes a test fail, so the lists stay honest.
"""

from __future__ import annotations

from pytorch.scope import Outside

__all__ = ["MODULES", "OPTIMIZERS"]

MODULES = [
    Outside(
        ("BatchNorm1d", "BatchNorm2d"),
        "a batch of no images has no mean to train on",
        lambda case: case.training and 0 in case.shape,
    ),
]

_ALL = ("Adadelta", "Adam", "AdamW", "SGD")

OPTIMIZERS = [
    Outside(
        _ALL,
        "foreach: a switch between PyTorch's implementations; here one expression over a flat "
        "buffer does what it is for",
        lambda case: "foreach" in case.kwargs,
    ),
    Outside(
        ("Adam", "AdamW", "SGD"),
        "fused: a switch between PyTorch's implementations; a step is fused here always",
        lambda case: "fused" in case.kwargs,
    ),
    Outside(
        ("Adadelta", "Adam", "AdamW"),
        "capturable: for PyTorch's CUDA graphs",
        lambda case: "capturable" in case.kwargs,
    ),
    Outside(
        _ALL,
        "differentiable: gradients through a step are of second order, and the tape is of first",
        lambda case: "differentiable" in case.kwargs,
    ),
]
