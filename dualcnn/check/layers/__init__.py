"""The layers that can be checked, each with its cases and its known mistakes."""

from __future__ import annotations

from ..subject import Subject
from .activation import LEAKY_RELU, RELU, SIGMOID, TANH
from .avg_pooling import AVG_POOL2D
from .convolution import CONV2D
from .linear import LINEAR
from .loss import CROSS_ENTROPY
from .max_pooling import MAX_POOL2D
from .normalization import BATCH_NORM

__all__ = ["SUBJECTS"]

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        CONV2D,
        MAX_POOL2D,
        AVG_POOL2D,
        LINEAR,
        BATCH_NORM,
        CROSS_ENTROPY,
        RELU,
        LEAKY_RELU,
        SIGMOID,
        TANH,
    )
}
