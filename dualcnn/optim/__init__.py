"""Optimizers over flat parameter buffers, gradient clipping and learning-rate schedules."""

from . import lr_scheduler
from .adadelta import Adadelta
from .adam import Adam, AdamW
from .clip import clip_grad_norm_
from .optimizer import Optimizer
from .sgd import SGD

__all__ = ["SGD", "Adadelta", "Adam", "AdamW", "Optimizer", "clip_grad_norm_", "lr_scheduler"]
