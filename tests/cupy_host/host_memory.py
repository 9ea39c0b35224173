"""CuPy's own arrays over the host's memory: all there is to see of them but their values."""

from __future__ import annotations

import math
import types
from typing import Any

import numpy as np

from dualcnn.backend import CupyBackend

from .recording import HostSpec, Spec
from .require import cupy, standard


def allocate(size: int) -> Any:
    """Memory that no kernel may touch."""
    block = np.zeros(max(size, 1), "u1")
    memory = cupy.cuda.UnownedMemory(block.ctypes.data, size, block, 0)
    return cupy.cuda.MemoryPointer(memory, 0)


def host_arrays() -> Any:
    """A `with` block in which new CuPy arrays lie in the host's memory."""
    return cupy.cuda.using_allocator(allocate)


def make(spec: Spec) -> Any:
    """An array of that shape, dtype and those strides."""
    reach = [(n - 1) * s for n, s in zip(spec.shape, spec.strides, strict=True) if n]
    below = -sum(r for r in reach if r < 0)
    above = sum(r for r in reach if r > 0) + spec.dtype.itemsize
    pointer = allocate(below + above) + below
    return cupy.ndarray(spec.shape, spec.dtype, pointer, spec.strides)


def array(*shape: int, dtype: str = "float32") -> Any:
    """A contiguous array of the host's memory."""
    kind = np.dtype(dtype)
    steps = [kind.itemsize * int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    return make(Spec(shape, tuple(steps), kind))


def made(value: Any) -> Any:
    """The value with arrays in the place of specs."""
    if isinstance(value, Spec):
        return make(value)
    if isinstance(value, HostSpec):
        return np.zeros(value.shape, value.dtype)
    if isinstance(value, (tuple, list)):
        return type(value)([made(item) for item in value])
    if isinstance(value, type) and value.__module__.startswith("stand_in"):
        return cupy.ndarray
    return value


def spec(x: Any) -> Spec:
    return Spec(tuple(x.shape), tuple(x.strides), x.dtype)


class NoDevice:
    """`cupy.cuda.Device` that asks no driver."""

    def __init__(self, index: int = 0) -> None:
        self.id = index

    def __enter__(self) -> NoDevice:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def use(self) -> NoDevice:
        return self


class HostCupy:
    """The module `cupy`, except that a device needs no driver and fused functions are traced."""

    def __init__(self, fuse: Any = None) -> None:
        self.cuda = types.SimpleNamespace(
            Device=NoDevice,
            runtime=types.SimpleNamespace(getDevice=lambda: 0),
            get_current_stream=lambda: types.SimpleNamespace(ptr=0),
        )
        if fuse is not None:
            self.fuse = fuse

    def __getattr__(self, name: str) -> Any:
        return getattr(cupy, name)


def backend_of_host_memory(fuse: Any = None) -> CupyBackend:
    return CupyBackend(HostCupy(fuse), standard)


def overlaps(view: Any, whole: Any) -> bool:
    """Whether the first byte of the view lies in the memory of the other."""
    start = whole.data.ptr
    return bool(start <= view.data.ptr < start + math.prod(whole.shape) * whole.itemsize)
