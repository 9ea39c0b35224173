"""Which backend arrays belong to, and on which backend new ones are born."""

from __future__ import annotations

import logging
import os
from contextvars import ContextVar, Token
from numbers import Number
from types import TracebackType
from typing import Any, Self

import array_api_compat
import numpy as np

from .base import Array, Backend
from .cupy import CupyBackend
from .detect import BackendUnavailableError, Status, cupy_status, numpy_status
from .numpy import NumpyBackend

__all__ = [
    "MixedBackendsError",
    "asarray",
    "available",
    "current",
    "get",
    "is_array",
    "is_scalar",
    "of",
    "to_numpy",
    "use",
]

_log = logging.getLogger("dualcnn")
_numpy = NumpyBackend()
_cupy: dict[int, CupyBackend] = {}
_others: dict[Any, Backend] = {}
_by_type: dict[type, Backend] = {np.ndarray: _numpy}
_default: Backend | None = None
_context: ContextVar[Backend | None] = ContextVar("dualcnn_backend", default=None)

NAMES = '"auto", "cpu" or "numpy", "cuda" or "cupy", "cuda:N"'


class MixedBackendsError(TypeError):
    """Arrays of different backends, or things that are no arrays, met in one operation."""


def get(name: str | Backend) -> Backend:
    """The backend of that name: "auto", "cpu" or "numpy", "cuda" or "cupy", "cuda:1"."""
    if isinstance(name, Backend):
        return name
    if not isinstance(name, str):
        raise TypeError(f"expected the name of a backend ({NAMES}), got {type(name).__name__}")
    key = name.strip().lower()
    if key in ("cpu", "numpy"):
        return _numpy
    if key == "auto":
        status = cupy_status()
        _log.info("backend auto: %s, because %s", "cuda" if status.usable else "cpu", status.reason)
        return _cuda(0) if status.usable else _numpy
    if key in ("cuda", "cupy"):
        return _cuda(0)
    kind, _, index = key.partition(":")
    if kind in ("cuda", "cupy") and index.isdigit():
        return _cuda(int(index))
    raise ValueError(f"unknown backend {name!r}; expected {NAMES}")


def _cuda(index: int) -> Backend:
    status = cupy_status()
    if not status.usable:
        raise BackendUnavailableError(
            f"the CUDA backend is not usable: {status.reason}. To fix it: {status.hint}"
        )
    if index >= status.devices:
        raise BackendUnavailableError(
            f"cuda:{index} does not exist: found {status.devices} device(s), "
            f"cuda:0 to cuda:{status.devices - 1}"
        )
    if index not in _cupy:
        import array_api_compat.cupy
        import cupy.cublas

        _cupy[index] = CupyBackend(cupy, array_api_compat.cupy, index)
    return _cupy[index]


def available() -> dict[str, Status]:
    """For each backend whether this machine can use it, and why. Imports CuPy to find out."""
    return {"numpy": numpy_status(_numpy.pool.size), "cupy": cupy_status()}


def known() -> list[Backend]:
    """The backends in use so far."""
    chosen = (_context.get(), _default)
    found = [_numpy, *_cupy.values(), *_others.values(), *(b for b in chosen if b is not None)]
    return list(dict.fromkeys(found))


def current() -> Backend:
    """The backend on which new arrays are born: `use`'s, or `DUALCNN_BACKEND`'s, or NumPy."""
    global _default
    chosen = _context.get() or _default
    if chosen is None:
        name = os.environ.get("DUALCNN_BACKEND") or "cpu"
        try:
            chosen = _default = get(name)
        except (ValueError, BackendUnavailableError) as error:
            error.add_note(f"the environment variable DUALCNN_BACKEND asks for {name!r}")
            raise
        _activate(chosen)
    return chosen


class use:
    """Choose where new arrays are born; operations follow the arrays they are given.

    `use("cuda")` as a call sets the default of the process. `with use("cuda"):` holds within the
    block, for this thread or task alone, and leaves the default as it was; only while the block is
    being entered do other threads see the new default. Names: "auto" (the GPU if it is usable; the
    reason is logged), "cpu" or "numpy", "cuda" or "cupy", "cuda:1".
    Raises `BackendUnavailableError` with the way to mend it.

    `tf32=True` allows a GPU to round the operands of float32 products to 11 bits, which Ampere and
    later multiply several times faster; False forbids it; None leaves it as it is: forbidden at the
    start of a program, unless CUPY_TF32=1 is in its environment. Grouped convolutions and
    Winograd's products, which are batches of products, do without it. It holds for the process,
    with a block until the block ends. Elsewhere float32 is exact either way: there is nothing to
    allow.
    """

    def __init__(self, name: str | Backend, *, tf32: bool | None = None) -> None:
        global _default
        self.backend = get(name)
        self._device_before = _activate(self.backend)
        self._tf32_before: bool | None = None
        if tf32 is not None and isinstance(self.backend, CupyBackend):
            self._tf32_before, self.backend.tf32 = self.backend.tf32, tf32
        self._previous = _default
        self._token: Token[Backend | None] | None = None
        _default = self.backend

    def __enter__(self) -> Self:
        global _default
        if _default is self.backend:
            _default = self._previous
        self._token = _context.set(self.backend)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        assert self._token is not None
        _context.reset(self._token)
        if isinstance(self.backend, CupyBackend):
            if self._tf32_before is not None:
                self.backend.tf32 = self._tf32_before
            if self._device_before is not None:
                self.backend.deactivate(self._device_before)
        if _context.get() or _default:
            _activate(current())

    def __repr__(self) -> str:
        return f"use({self.backend!r})"


def _activate(backend: Backend) -> int | None:
    """Make a CUDA device the current one of this thread; return the one that was."""
    return backend.activate() if isinstance(backend, CupyBackend) else None


def of(**arrays: Any) -> Backend:
    """The backend of the named arrays; None and Python numbers belong to any.

    Raises `MixedBackendsError` when they differ: it names the arguments, their devices and the fix.
    """
    found: Backend | None = None
    first = ""
    for name, x in arrays.items():
        backend = _by_type.get(type(x))
        if backend is None:
            if x is None or isinstance(x, (int, float)):
                continue
            backend = _find(name, x)
        if found is None:
            found, first = backend, name
        elif backend is not found:
            raise MixedBackendsError(
                f"{first} is on {_place(found)} but {name} is on {_place(backend)}; all arrays of "
                f"an operation must be on one device. Fix: {name} = "
                f"dualcnn.asarray({name}, backend={_label(found, first)})"
            )
    if found is None:
        raise MixedBackendsError(f"expected at least one array among {', '.join(arrays)}")
    return found


def is_array(x: Any) -> bool:
    """Whether `x` is known for an array by its type alone; False says nothing."""
    return type(x) in _by_type


def is_scalar(x: Any) -> bool:
    """Whether `x` is a number of NumPy's own types, such as `numpy.float64(1)`."""
    return isinstance(x, np.generic)


def _find(name: str, x: Any) -> Backend:
    """The backend of an array whose type is not known yet."""
    module = type(x).__module__
    if module.partition(".")[0] == "cupy":
        return _cuda(int(x.device.id))
    for backend in (_context.get(), _default):
        if backend is not None and backend.owns(x):
            return backend
    if isinstance(x, np.ndarray):
        return _numpy
    if isinstance(x, np.generic) or not array_api_compat.is_array_api_obj(x):
        raise MixedBackendsError(
            f"{name} is a {type(x).__name__}; expected an array. Fix: {name} = {_array_of(name, x)}"
        )
    xp = array_api_compat.array_namespace(x)
    if xp not in _others:
        _others[xp] = Backend(xp)
    return _others[xp]


def _array_of(name: str, x: Any) -> str:
    """How to make an array of a list: NumPy alone would make one of float64."""
    try:
        is_floating = np.asarray(x).dtype.kind == "f"
    except ValueError:
        # Rows of different lengths.
        is_floating = False
    return f'dualcnn.asarray({name}, "float32")' if is_floating else f"dualcnn.asarray({name})"


def _place(backend: Backend) -> str:
    return f"{backend.device} ({backend.name})"


def _label(backend: Backend, argument: str) -> str:
    """How to ask for that backend; one without a name of its own is that of the argument."""
    if backend is _numpy or isinstance(backend, CupyBackend):
        return repr("cpu" if backend is _numpy else backend.device)
    return f"dualcnn.backend.of({argument}={argument})"


def asarray(obj: Any, dtype: Any = None, backend: str | Backend | None = None) -> Array:
    """`obj` as an array of `backend`, by default of the current one.

    Takes arrays of any backend, Tensors, numbers, lists, and objects with `__dlpack__`; shares
    memory where it can. `dtype` may be a name such as "float32".
    """
    target = current() if backend is None else get(backend)
    obj = getattr(obj, "__dualcnn_array__", obj)
    if not target.owns(obj) and not isinstance(obj, np.ndarray) and _is_known(obj):
        obj = to_numpy(obj)
    return target.asarray(obj, dtype)


def to_numpy(obj: Any) -> Any:
    """The values of a Tensor, an array of any backend, a number or a list as a NumPy array."""
    obj = getattr(obj, "__dualcnn_array__", obj)
    if obj is None:
        raise TypeError("expected a Tensor or an array, got None (a gradient not computed yet?)")
    if isinstance(obj, np.ndarray):
        return obj
    if isinstance(obj, (Number, np.generic, list, tuple)):
        return np.asarray(obj)
    return of(obj=obj).to_numpy(obj) if _is_known(obj) else np.from_dlpack(obj)


def _is_known(obj: Any) -> bool:
    """Whether `obj` is an array of some backend rather than a list or a foreign buffer."""
    if array_api_compat.is_array_api_obj(obj):
        return True
    return any(b is not None and b.owns(obj) for b in (_context.get(), _default))
