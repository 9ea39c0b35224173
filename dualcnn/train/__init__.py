"""The job: a training loop, what it measures, and the folder it leaves behind."""

from .augment import Shift
from .images import ImageError, read_image
from .loop import Callback, TrainingError, TrainingState, evaluate, fit, train_step
from .metrics import Epoch, History, Metrics
from .progress import Progress
from .run import Network, Run, RunError, RunFolder

__all__ = [
    "Callback",
    "Epoch",
    "History",
    "ImageError",
    "Metrics",
    "Network",
    "Progress",
    "Run",
    "RunError",
    "RunFolder",
    "Shift",
    "TrainingError",
    "TrainingState",
    "evaluate",
    "fit",
    "read_image",
    "train_step",
]
