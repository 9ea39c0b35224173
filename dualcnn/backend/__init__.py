"""The machine: where arrays live and how the primitives of a layer run there."""

from .base import Array, Backend
from .counting import Counts, count
from .cupy import CupyBackend
from .detect import BackendUnavailableError, Status
from .faults import ran_out, recover, tell_gradient, tell_memory
from .numpy import NumpyBackend
from .philox import random_bits
from .places import tap_slices
from .select import (
    MixedBackendsError,
    asarray,
    available,
    current,
    get,
    is_array,
    is_scalar,
    of,
    to_numpy,
    use,
)
from .timer import Timer
from .workers import pool

__all__ = [
    "Array",
    "Backend",
    "BackendUnavailableError",
    "Counts",
    "CupyBackend",
    "MixedBackendsError",
    "NumpyBackend",
    "Status",
    "Timer",
    "asarray",
    "available",
    "count",
    "current",
    "get",
    "is_array",
    "is_scalar",
    "of",
    "pool",
    "random_bits",
    "ran_out",
    "recover",
    "tap_slices",
    "tell_gradient",
    "tell_memory",
    "to_numpy",
    "use",
]
