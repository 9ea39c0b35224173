"""What to do when memory runs out: say what was asked for, and let go of what is held."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

__all__ = ["recover", "ran_out", "tell_gradient", "tell_memory"]

GIB = 1 << 30

NO_MEMORY = "cudaErrorMemoryAllocation", "CUBLAS_STATUS_ALLOC_FAILED"
"""What errors of CUDA and of cuBLAS say that are no MemoryError: of pinned memory, of a handle."""


def ran_out(error: BaseException) -> bool:
    """Whether memory was wanting, on the host or a device."""
    return isinstance(error, MemoryError) or any(name in str(error) for name in NO_MEMORY)


def tell_memory(error: BaseException, *arrays: Any) -> None:
    """Note on an error for want of memory how much the device holds and, from the arrays at hand,
    the batch.

    The bytes asked for are in the error's own text, NumPy's and CuPy's alike.
    """
    from .select import current, is_array, of

    if not ran_out(error) or "_dualcnn_memory" in error.__dict__:
        return
    error.__dict__["_dualcnn_memory"] = True
    given = [a for a in (getattr(a, "__dualcnn_array__", a) for a in arrays) if hasattr(a, "shape")]
    be = of(array=given[0]) if given and is_array(given[0]) else current()
    held = ", ".join(f"{name} {n / GIB:.2f} GiB" for name, n in be.memory().items())
    batch = f" with a batch of {given[0].shape[0]}" if given and given[0].shape else ""
    error.add_note(
        f"{be.device} ran out of memory{batch}{f'; it holds {held}' if held else ''}. "
        "A smaller batch needs less"
    )


def tell_gradient(error: BaseException, vjp: Any, y: Any, inputs: Sequence[int]) -> None:
    """Note on an error of a `vjp` the operation, and keep the identities of that one's inputs for
    those who know the layers.
    """
    tell_memory(error, y)
    # A partial call has no name of its own.
    name = getattr(getattr(vjp, "func", vjp), "__qualname__", "an operation")
    op = name.partition(".")[0]
    error.add_note(f"in the gradients of {op}, output {tuple(y.shape)}")
    error.__dict__["_dualcnn_inputs"] = tuple(inputs)


def recover(error: BaseException) -> None:
    """Let go of what a failed computation still holds, and of memory that nothing uses.

    The traceback of an error keeps every local variable on its way, and so the whole graph of a
    step. This clears those of functions that have ended, then gives unused memory of all backends
    back to the system. Parameters, and what the caller holds, stay.

    >>> try:
    ...     train.train_step(model, x, y, optimizer)
    ... except MemoryError as error:
    ...     dualcnn.backend.recover(error)
    ...     batch_size //= 2
    """
    from .select import known

    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    for backend in known():
        backend.release()
