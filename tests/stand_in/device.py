"""The little of `cupy.cuda` that a program without kernels of its own touches."""

from __future__ import annotations

import types
from typing import Any, Self

from stand_in.streams import Event, Stream, alloc_pinned_memory


class Device:
    """The only device there is."""

    def __init__(self, device: int = 0) -> None:
        if device != 0:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.id = device
        self.compute_capability = "90"
        self.mem_info = (1 << 33, 1 << 34)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def __int__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def use(self) -> Self:
        return self

    def synchronize(self) -> None:
        return None


class MemoryPool:
    """Keeps no blocks, so it holds no bytes."""

    def used_bytes(self) -> int:
        return 0

    def free_bytes(self) -> int:
        return 0

    def total_bytes(self) -> int:
        return 0

    def free_all_blocks(self) -> None:
        return None


class OutOfMemoryError(MemoryError):
    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        super().__init__(
            f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes)."
        )


class CUDARuntimeError(RuntimeError):
    status = 0


pool = MemoryPool()
pinned_pool = MemoryPool()

_runtime = types.SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDevice=lambda: 0,
    getDeviceCount=lambda: 1,
    getDeviceProperties=lambda device: {"name": b"stand-in", "totalGlobalMem": 1 << 34},
    deviceSynchronize=lambda: None,
    driverGetVersion=lambda: 13000,
    runtimeGetVersion=lambda: 13000,
    is_hip=False,
)

cuda: Any = types.SimpleNamespace(
    Device=Device,
    Event=Event,
    Stream=Stream,
    MemoryPool=MemoryPool,
    OutOfMemoryError=OutOfMemoryError,
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=_runtime,
    alloc_pinned_memory=alloc_pinned_memory,
    get_current_stream=lambda: Stream.null,
    get_elapsed_time=lambda start, end: 0.0,
    is_available=lambda: True,
)
