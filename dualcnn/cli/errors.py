"""Mistakes that a user of the command can mend, and how they are told."""

from __future__ import annotations

import sys

from .. import backend, data, interop, models, train

__all__ = ["USER_ERRORS", "UserError", "describe", "tell"]


class UserError(Exception):
    """Something that the user asked for and can mend; its text is all that is shown."""


USER_ERRORS = (
    UserError,
    OSError,
    backend.BackendUnavailableError,
    data.DataFormatError,
    interop.WeightsError,
    models.ModelError,
    train.ImageError,
    train.RunError,
    train.TrainingError,
)


def tell(message: str) -> int:
    """Put a mistake on standard error; returns the exit status of such an end."""
    print(f"dualcnn: error: {message}", file=sys.stderr)
    return 2


def describe(error: Exception) -> str:
    """The text of an error; where the system gave one for a file, without its number."""
    if isinstance(error, OSError) and None not in (error.filename, error.strerror):
        return f"{error.filename}: {error.strerror}"
    return str(error)
