"""How the numbers of a Tensor leave it, read on the host or shared with another library, and are
replaced.
"""

from __future__ import annotations

import math
from typing import Any

from . import backend
from .backend import Array
from .backend.calls import CaptureError
from .recording import capturing, note_update, recording

__all__ = ["Values"]


class Values:
    """Reading and exports for a class with an array.

    No abstract base class, as `Operators`.
    """

    _data: Array
    shape: Any
    backend: Any
    device: Any
    is_leaf: Any
    requires_grad: Any

    # Values.

    def item(self) -> Any:
        """The only element, as a Python number."""
        _check_readable()
        if math.prod(self.shape) != 1:
            raise ValueError(f"item() needs a single element, got shape {self.shape}")
        return backend.to_numpy(self._data).item()

    def numpy(self) -> Any:
        """The values as a NumPy array, sharing memory on the CPU."""
        _check_readable()
        return backend.to_numpy(self._data)

    def tolist(self) -> Any:
        """The values as nested lists."""
        return self.numpy().tolist()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    # What `tensor += ...` came to.

    def _replaced(self, value: Any) -> Any:
        if recording.get():
            if self.is_leaf and self.requires_grad:
                raise RuntimeError(
                    "a leaf that requires a gradient can't be changed while operations are "
                    "recorded. Fix: with dualcnn.no_grad():"
                )
            # The tape may hold the memory: the name goes over to a new Tensor.
            return value
        be, own = self.backend, self._data
        widens = be.is_floating(value._data) and not be.is_floating(own)
        if value.shape != self.shape or widens:
            raise ValueError(
                f"expected {self.shape} of {own.dtype} of what is to change a Tensor in place, "
                f"got {value.shape} of {value.dtype}. Fix: x = x + y for x += y"
            )
        be.assign(own, value._data)
        note_update(self)
        return self

    # Exports without a copy.

    @property
    def __dualcnn_array__(self) -> Array:
        return self._data

    @property
    def __cuda_array_interface__(self) -> Any:
        return self._data.__cuda_array_interface__

    def __dlpack__(self, **options: Any) -> Any:
        return self._data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._data.__dlpack_device__()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if not self.backend.host:
            raise TypeError(
                f"a Tensor on {self.device} does not become a NumPy array by itself; use .numpy()"
            )
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"a {array.dtype} Tensor as {dtype} needs a copy")
            return array.astype(dtype)
        return array.copy() if copy else array


def _check_readable() -> None:
    if capturing.get():
        raise CaptureError(
            "a value was read within a captured function; what follows from it would stay as it is "
            "now. Fix: read it outside, from what the function returns"
        )
