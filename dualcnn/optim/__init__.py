"""Optimizers over flat parameter buffers, gradient clipping, loss scaling and learning-rate
schedules.
"""

from . import lr_scheduler
from .adadelta import Adadelta
from .adam import Adam, AdamW
from .clip import clip_grad_norm_
from .grad_scaler import GradScaler
from .optimizer import Optimizer
from .sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adam",
    "AdamW",
    "GradScaler",
    "Optimizer",
    "clip_grad_norm_",
    "lr_scheduler",
]
