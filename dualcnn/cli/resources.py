"""What a command works with: threads, a backend and data, as options and environment say."""

from __future__ import annotations

import os

from .. import backend, data
from ..backend import Backend
from ..data import ImageDataset
from .errors import UserError

__all__ = ["DATA", "choose_backend", "load_data", "thread_count"]

DATA = ("mnist5k", "mnist")


def thread_count() -> int:
    """How many threads the NumPy backend takes; UserError where DUALCNN_THREADS is no number."""
    try:
        return backend.pool.size
    except ValueError as error:
        raise UserError(error) from error


def choose_backend(name: str | None) -> Backend:
    """The backend of that name or, without one, the current one, which DUALCNN_BACKEND may name.

    Raises UserError, which names the setting that asks for a backend that is unknown or not usable.
    """
    try:
        return backend.current() if name is None else backend.get(name)
    except (ValueError, backend.BackendUnavailableError) as error:
        if name is None:
            setting = f"DUALCNN_BACKEND={os.environ.get('DUALCNN_BACKEND')}"
        else:
            setting = f"--backend {name}"
        text = str(error)
        if isinstance(error, backend.BackendUnavailableError):
            text = f"{error.problem}. To run on the CPU: --backend cpu"
        raise UserError(f"{setting}: {text}") from error


def load_data(name: str, folder: str | None) -> tuple[ImageDataset, ImageDataset]:
    """The training and the test images of `--data`; what is missing is downloaded."""
    if name == "mnist":
        return data.mnist(folder)
    if folder is not None:
        raise UserError(f"--data-dir is for --data mnist; {name} comes with dualcnn")
    return data.mnist5k()
