"""The array of the stand-in, and what it counts."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from stand_in.device import Device
from stand_in.streams import copy


@dataclasses.dataclass
class Counters:
    """What a program did to its device since `reset`."""

    synchronisations: int = 0
    """Times the host waited: `.get()`, `float()`, `bool()`, boolean masks, `nonzero`, …"""
    host_copies: int = 0
    """Arrays copied between host and device, either way."""
    launches: int = 0
    """Kernels started; a fused expression is one."""

    def reset(self) -> None:
        self.synchronisations = self.host_copies = self.launches = 0


counters = Counters()

functions: dict[str, Callable[..., Any]] = {}
"""The module's functions by name, filled by `stand_in.functions`."""


class ndarray:
    """An array on the pretended device, which never turns into a NumPy array unasked."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]
    _host: np.ndarray[Any, Any]

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: Any = None,
        strides: Any = None,
        order: str = "C",
    ) -> None:
        if memptr is not None or strides is not None:
            raise NotImplementedError("the stand-in makes no arrays over given memory")
        self._host = np.empty(shape, dtype, order=order)  # type: ignore[call-overload]

    # What needs the values on the host.

    def get(self, stream: Any = None, order: str = "C", out: Any = None) -> Any:
        counters.synchronisations += 1
        counters.host_copies += 1
        if out is None:
            return self._host.copy("C" if order == "C" else "K")
        out[...] = self._host
        return out

    def item(self) -> Any:
        counters.synchronisations += 1
        return self._host.item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        counters.synchronisations += 1
        return bool(self._host)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __repr__(self) -> str:
        return f"stand_in.{self._host!r}"

    # Conversion that CuPy refuses.

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("no implicit conversion to a NumPy array: use .get()")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        function = functions.get(ufunc.__name__)
        if method != "__call__" or function is None:
            return NotImplemented
        if "out" in kwargs:
            (kwargs["out"],) = kwargs["out"]
        return function(*inputs, **kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **kwargs: Any) -> Any:
        raise BufferError("the stand-in's memory is on no device that another library could read")

    # Shape and memory.

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "strides", "dtype", "ndim", "size", "itemsize", "nbytes", "flags"):
            return getattr(self._host, name)
        raise AttributeError(f"CuPy's ndarray has no attribute {name!r}, or the stand-in lacks it")

    @property
    def device(self) -> Any:
        return Device(0)

    @property
    def base(self) -> ndarray | None:
        return None if self._host.base is None else lift(self._host.base)

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self._host.ctypes.data, mem=None, device=self.device)

    @property
    def T(self) -> Any:
        return lift(self._host.T)

    @property
    def mT(self) -> Any:
        return lift(self._host.mT)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self._host)))

    def astype(
        self, dtype: Any, order: Any = "K", casting: Any = "unsafe", *, copy: bool = True
    ) -> Any:
        with np.errstate(all="ignore"):
            result = self._host.astype(dtype, order=order, casting=casting, copy=copy)
        counters.launches += result is not self._host
        return self if result is self._host else lift(result, type(self))

    def view(self, dtype: Any = None) -> Any:
        return lift(self._host.view(self.dtype if dtype is None else dtype))

    def fill(self, value: Any) -> None:
        self[...] = value

    def set(self, array: Any, stream: Any = None) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"set() copies from a numpy.ndarray, got {type(array)}")
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError("set() needs an array of the same shape and dtype")
        counters.host_copies += 1
        copy(self._host, array, stream)

    # Indexing.

    def _index(self, key: Any) -> tuple[Any, bool]:
        """The key in NumPy's terms, and whether it selects by arrays. Integers wrap, as in CuPy."""
        keys = list(key) if isinstance(key, tuple) else [key]
        if any(isinstance(k, (np.ndarray, list)) for k in keys):
            raise TypeError("an index must be on the device too: CuPy would copy it there silently")
        advanced = any(isinstance(k, ndarray) for k in keys)
        used = sum(k.ndim if _is_mask(k) else 1 for k in keys if k is not None and k is not ...)
        axis = 0
        for place, k in enumerate(keys):
            if k is ...:
                axis += self.ndim - used
            elif _is_mask(k):
                counters.synchronisations += 1
                keys[place] = lower(k)
                axis += k.ndim
            elif isinstance(k, ndarray):
                keys[place] = lower(k) % self.shape[axis]
                axis += 1
            elif k is not None:
                axis += 1
        if not advanced and not any(k is ... for k in keys):
            keys.append(...)
        return tuple(keys), advanced

    def __getitem__(self, key: Any) -> Any:
        index, advanced = self._index(key)
        counters.launches += advanced
        return lift(self._host[index], c_order=advanced)

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, (np.ndarray, list, tuple)) and np.ndim(value) > 0:
            raise ValueError("a NumPy array can't be assigned to a part of a CuPy array")
        index, advanced = self._index(key)
        if advanced:
            places = np.arange(self.size).reshape(self.shape)[index]
            if np.unique(places).size != places.size:
                raise RuntimeError("duplicate indices in an assignment: undefined in CuPy")
        counters.launches += 1
        with np.errstate(all="ignore"):
            self._host[index] = value if isinstance(value, np.ndarray) else lower(value)


def _is_mask(key: Any) -> bool:
    return isinstance(key, ndarray) and key.dtype == np.bool_


def lift(result: Any, kind: type[ndarray] = ndarray, c_order: bool = False) -> Any:
    """NumPy's results as arrays of the device, sequences element by element."""
    if isinstance(result, (tuple, list)):
        return type(result)([lift(item, kind, c_order) for item in result])
    if not isinstance(result, (np.ndarray, np.generic)):
        return result
    array = ndarray.__new__(kind)
    array._host = np.asarray(result, order="C") if c_order else np.asarray(result)
    return array


def lower(value: Any) -> Any:
    """The NumPy value under an argument, refusing what CuPy refuses."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (tuple, list)):
        return type(value)([lower(item) for item in value])
    return getattr(value, "under_trace", value)
