"""CuPy's own fusion traces every fused function of the library, and computes in the right types."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import stand_in

from dualcnn.ops import pooling

from . import sources, workload
from .host_memory import array, backend_of_host_memory, host_arrays
from .kernels import HALF, Kernel, Tracer, UntraceableError, types_in
from .recording import Fused, Recorder, Spec
from .require import cupy

C_TYPES = {
    "bool": "bool",
    "uint8": "unsigned char",
    "float16": "float16",
    "float32": "float",
    "float64": "double",
    "int64": "long long",
    "uint64": "unsigned long long",
}


def targets_of(fused: Fused) -> tuple[Spec, ...]:
    """The arrays that a call writes into."""
    if fused.out is None or isinstance(fused.out, Spec):
        return () if fused.out is None else (fused.out,)
    return tuple(fused.out)


# The run reaches everything.


def test_every_call_of_fuse_was_reached(recorded: Recorder) -> None:
    sites = sources.fuse_sites()
    missed = [
        f"{path}:{first}"
        for (path, first), last in sites.items()
        if not any((path, line) in recorded.sites for line in range(first, last + 1))
    ]
    assert len(sites) > 40
    assert not missed, "the run in workload.py never comes to these"


def test_every_fused_function_was_reached(recorded: Recorder) -> None:
    functions = sources.fusible_functions()
    reached = {f"{f.fn.__module__}.{f.fn.__qualname__}" for f in recorded.fused.values()}
    assert reached <= functions.keys(), "fuse takes module-level functions that begin with xp"
    for _ in functions:
        reached |= {inner for name in reached for inner in functions[name] & functions.keys()}
    assert len(reached) > 50
    assert functions.keys() == reached, "the run in workload.py never comes to some"


@pytest.mark.parametrize("dtype", workload.DTYPES)
def test_every_floating_dtype_was_reached(kernels: dict[str, Kernel], dtype: str) -> None:
    assert sum(np.dtype(dtype) in kernel.inputs for kernel in kernels.values()) > 50


# What CuPy makes of it.


def test_results_have_the_dtype_that_the_stand_in_gives(
    recorded: Recorder, kernels: dict[str, Kernel]
) -> None:
    fresh = 0
    for key, fused in recorded.fused.items():
        outputs = kernels[key].outputs
        if outputs:
            results = (fused.result,) if isinstance(fused.result, Spec) else fused.result
            assert outputs == tuple(r.dtype for r in results), key
            fresh += 1
    assert fresh > 100


def test_kernels_compute_in_the_types_of_their_arrays(kernels: dict[str, Kernel]) -> None:
    """No scalar in half precision, no detour through double."""
    for key, kernel in kernels.items():
        own = {C_TYPES[dtype.name] for dtype in kernel.inputs}
        assert types_in(kernel.operation) <= own | {"bool"}, key
        if np.dtype("float16") not in kernel.inputs:
            assert not HALF.search(kernel.operation), key


def test_scalars_come_in_the_type_of_the_arrays(
    recorded: Recorder, kernels: dict[str, Kernel]
) -> None:
    """So their type adds none to those of the arrays, which the test above goes by."""
    scalars = 0
    for key, fused in recorded.fused.items():
        arrays = {a.dtype for a in fused.args if isinstance(a, Spec)}
        arrays |= {a.dtype for a in targets_of(fused)}
        assert set(kernels[key].inputs) == arrays, key
        scalars += any(not isinstance(a, Spec) for a in fused.args)
    assert scalars > 30


def test_a_function_of_one_floating_type_gives_that_type(kernels: dict[str, Kernel]) -> None:
    for key, kernel in kernels.items():
        floating = {dtype for dtype in kernel.inputs if dtype.kind == "f"}
        assert len(floating) < 2, f"{key} mixes {floating}"
        assert {dtype for dtype in kernel.outputs if dtype.kind == "f"} <= floating, key


def read_too_late(kernel: Kernel) -> set[str]:
    """Arrays that are read after the first one was written, which may be the same memory."""
    read_only = set(re.findall(r"const CArray<[^>]*> _raw_(v\d+)", kernel.source))
    written = set(re.findall(r"[(,] ?CArray<[^>]*> _raw_(v\d+)", kernel.source))
    late: set[str] = set()
    begun = False
    for target, value in re.findall(
        r"^(\w+) = static_cast< [\w ]+ >\((\w+)\);", kernel.operation, re.M
    ):
        if begun and value in read_only:
            late.add(value)
        begun = begun or target in written
    return late


def test_all_is_read_before_anything_is_written(
    recorded: Recorder, kernels: dict[str, Kernel]
) -> None:
    """Optimizers write into the arrays that they read; within a place, reading comes first."""
    assert not {key: late for key, kernel in kernels.items() if (late := read_too_late(kernel))}


def test_reading_too_late_is_seen() -> None:
    def swapped(x: Any, y: Any, a: Any, b: Any) -> None:
        x[...] = a * b
        y[...] = a + b

    arrays = [array(3) for _ in range(4)]
    assert read_too_late(traced(swapped, *arrays)) == {"v2", "v3"}
    assert read_too_late(traced(lambda a, b: (a * b, a + b), *arrays[:2])) == set()


# The inspection can fail.


def _weighted(a: Any, b: Any, beta: Any) -> Any:
    return a * beta + b * (1.0 - beta)


def traced(fn: Any, *args: Any) -> Kernel:
    tracer = Tracer()
    with host_arrays():
        tracer.fuse(kernel_name="traced")(fn)(*args)
    return tracer.kernels[-1]


def test_scalars_among_themselves_are_computed_in_half_precision() -> None:
    kernel = traced(_weighted, array(3), array(3), 0.9)
    assert HALF.search(kernel.operation)
    assert types_in(kernel.operation) == {"float", "float16"}
    assert kernel.outputs == (np.float32,)


def test_the_stand_in_refuses_what_would_be_in_half_precision() -> None:
    x = stand_in.cupy.asarray(np.ones(3, "float32"))
    with pytest.raises(TypeError, match="typed scalar"):
        stand_in.cupy.fuse(_weighted)(x, x, 0.9)
    with pytest.raises(TypeError):
        stand_in.cupy.fuse(_weighted)(x, x, np.float32(0.9))


def test_a_double_in_a_kernel_of_floats_is_seen() -> None:
    kernel = traced(lambda a, b: a * b, array(3), array(3, dtype="float64"))
    assert types_in(kernel.operation) == {"double"}
    assert kernel.outputs == (np.float64,)


def test_what_cupy_cannot_fuse_is_seen() -> None:
    with pytest.raises(UntraceableError, match="can't fuse"):
        traced(lambda a: a * a.shape[0], array(3))
    assert traced(lambda a: a * a, array(3)).outputs == (np.float32,)


def test_functions_are_found_with_those_that_they_call() -> None:
    functions = sources.fusible_functions()
    called = functions["dualcnn.backend.philox._stream_bits"]
    assert "dualcnn.backend.philox.philox_4x32" in called & functions.keys()
    assert "dualcnn.backend.numpy._identity" not in functions


# As many arrays as a kernel takes.


def test_large_windows_are_not_one_kernel() -> None:
    """A maximum over 16x16 places has 514 arrays in its gradient; CUDA takes some 400."""
    tracer = Tracer()
    be = backend_of_host_memory(tracer.fuse)
    with host_arrays():
        g, y = array(1, 1, 1, 2), array(1, 1, 1, 2)
        small, large = ([array(1, 1, 1, 2) for _ in range(n * n)] for n in (7, 16))
        be.fuse(pooling._first_maximum)(g, y, *small, out=tuple(small))
        assert len(tracer.kernels) == 1
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            be.fuse(pooling._first_maximum)(g, y, *large, out=tuple(large))
    assert len(tracer.kernels) == 1
