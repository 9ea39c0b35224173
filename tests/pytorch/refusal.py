"""That a call is refused: by a clear error of the library, not by an accident within it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytorch.operators import is_refusal

__all__ = ["expect_refusal"]


def expect_refusal(call: Callable[[], Any]) -> None:
    """Raise `AssertionError` where the call has an answer, or an error that explains nothing."""
    try:
        result = call()
    except Exception as error:
        if not is_refusal(error):
            raise AssertionError(f"not a clear error of the library: {error!r}") from error
    else:
        raise AssertionError(f"expected a refusal, got an answer: {result!r}")
