"""NVRTC compiles every kernel of the library for every architecture, with no device there."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import proof
import pytest
from stand_in.tracing import CUDA_NAMES, PARAMETER_BYTES

from . import sources
from .conftest import TABLE
from .host_memory import array, host_arrays
from .kernels import (
    ARCHITECTURES,
    HEADERS,
    Kernel,
    Tracer,
    compile_for,
    compile_kernel_object,
    complaint,
    complaints,
    no_compiler,
    together,
)
from .recording import Recorder
from .require import cupy

pytestmark = pytest.mark.skipif(bool(no_compiler), reason=no_compiler)
OLDEST, *LATER = ARCHITECTURES


@pytest.fixture(scope="module")
def verdicts(kernels: dict[str, Kernel]) -> dict[str, dict[str, str]]:
    """For each architecture what the compiler says against which kernels, by source.

    The oldest one, which allows the least, takes each kernel as CuPy would compile it; the others
    take all in one, and each alone only where that does not compile.
    """
    distinct = {kernel.source: kernel for kernel in kernels.values()}
    found = {OLDEST: complaints(distinct, OLDEST)}
    whole = together(distinct.values())
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda architecture: complaint(whole, architecture), LATER))
    for architecture, failed in zip(LATER, said, strict=True):
        found[architecture] = complaints(distinct, architecture) if failed else {}
        assert bool(failed) == bool(found[architecture]), failed
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_fused_expression_compiles(
    kernels: dict[str, Kernel], verdicts: dict[str, dict[str, str]], architecture: str
) -> None:
    said = verdicts[architecture]
    failed = {key: said[k.source][:2000] for key, k in kernels.items() if k.source in said}
    assert not failed
    assert len({kernel.source for kernel in kernels.values()}) > 200


def test_the_table_of_kernels(
    recorded: Recorder,
    kernels: dict[str, Kernel],
    verdicts: dict[str, dict[str, str]],
    request: pytest.FixtureRequest,
) -> None:
    rows: dict[str, Any] = defaultdict(lambda: (set(), {}))
    for key, fused in recorded.fused.items():
        name = f"{fused.fn.__module__.removeprefix('dualcnn.')}.{fused.fn.__name__}"
        dtypes, found = rows[name]
        dtypes |= {str(dtype) for dtype in kernels[key].inputs}
        found[kernels[key].source] = [a for a in verdicts if kernels[key].source in verdicts[a]]
    table = []
    for name, (dtypes, found) in sorted(rows.items()):
        bad = sorted({f"sm_{a}" for places in found.values() for a in places})
        result = f"not for {', '.join(bad)}" if bad else "compiles"
        table.append((name, ", ".join(sorted(dtypes)), len(found), result))
    numbers = ", ".join(f"sm_{a}" for a in ARCHITECTURES)
    version = ".".join(str(part) for part in cupy.cuda.nvrtc.getVersion())
    text = proof.table(("expression", "dtypes", "kernels", "result"), table)
    request.config.stash[TABLE] = (
        f"CuPy {cupy.__version__}, NVRTC {version}, for each of {numbers}. A kernel is one "
        f"combination of dtypes, memory order and dimensions.\n\n{text}"
    )
    assert len(table) > 50


# Kernels in CUDA C.


def test_every_kernel_in_cuda_c_compiles() -> None:
    """New ones are found by themselves."""
    sites = list(sources.library_kernels())
    assert sites
    for site in sites:
        kernel = getattr(cupy, site.maker)(*site.arguments, **site.named)
        for architecture in ARCHITECTURES:
            with host_arrays():
                compile_kernel_object(kernel, architecture)


SAMPLE = """
import cupy as cp
BODY = "y = x * s"
scaled = cp.ElementwiseKernel("T x, T s", "T y", BODY, "scaled")
total = cp.ReductionKernel("T x", "T y", "x", "a + b", "y = a", "0", name="total")
copied = cp.RawKernel(SOURCE, "copied")
module = cp.RawModule(code=SOURCE)
"""
RAW = 'extern "C" __global__ void copied(const float* x, float* y) { y[0] = x[0]; }'


@pytest.mark.parametrize("wrong", [None, "ElementwiseKernel", "ReductionKernel", "RawKernel"])
def test_kernels_in_cuda_c_are_found_and_compiled(wrong: str | None) -> None:
    names = {"SOURCE": RAW, "BODY": "y = x * s"}
    found = list(sources.kernel_sites(SAMPLE, "sample.py", names))
    assert [site.maker for site in found] == list(sources.KERNEL_MAKERS)
    for site in found:
        arguments = list(site.arguments)
        if site.maker == wrong:
            place = {"ElementwiseKernel": 2, "ReductionKernel": 2, "RawKernel": 0}[wrong]
            arguments[place] = arguments[place].replace("x", "unknown")
        kernel = getattr(cupy, site.maker)(*arguments, **site.named)
        with host_arrays():
            if site.maker == wrong:
                with pytest.raises(cupy.cuda.compiler.CompileException, match="unknown"):
                    compile_kernel_object(kernel, "75")
            else:
                compile_kernel_object(kernel, "75")


def test_a_kernel_known_only_at_run_time_is_refused() -> None:
    text = 'def make(cp, body):\n    return cp.ElementwiseKernel("T x", "T y", body, "f")'
    with pytest.raises(ValueError, match=r"sample.py:2: expected a ElementwiseKernel made of"):
        list(sources.kernel_sites(text, "sample.py", {}))


# The compiler's verdict can be a bad one.


def test_a_bad_kernel_is_refused() -> None:
    with pytest.raises(cupy.cuda.compiler.CompileException, match="unknown"):
        compile_for('extern "C" __global__ void f(float* x) { x[0] = unknown; }', "90")
    assert compile_for(RAW, "90") > 0


def fused(name: str) -> Kernel:
    tracer = Tracer()
    with host_arrays():
        tracer.fuse(kernel_name=name)(lambda x: x * 2)(array(2, 3))
    return tracer.kernels[0]


@pytest.mark.parametrize("name", CUDA_NAMES.split())
def test_a_kernel_named_after_a_function_of_cuda_does_not_compile(name: str) -> None:
    """So the stand-in refuses these names."""
    assert f'function "{name}"' in complaint(fused(name).source, OLDEST)


def test_a_kernel_takes_so_many_bytes_of_arrays() -> None:
    """So the stand-in refuses more: 80 bytes each for arrays of four dimensions."""

    def taking(n: int) -> str:
        arrays = ", ".join(f"CArray<float, 4, 0, 1> a{i}" for i in range(n))
        return f'{HEADERS}extern "C" __global__ void f({arrays}) {{}}'

    fits = PARAMETER_BYTES // 80
    for architecture in (OLDEST, ARCHITECTURES[-1]):
        assert complaint(taking(fits), architecture) == ""
        assert "parameter space overflowed" in complaint(taking(fits + 1), architecture)


def test_all_in_one_finds_the_same_mistakes() -> None:
    good, bad = fused("good"), fused("bad")
    spoiled = bad._replace(source=bad.source.replace("CUPY_FOR", "CUPY_FOUR"))
    assert complaint(together([good, bad]), "90") == ""
    assert "CUPY_FOUR" in complaint(together([good, spoiled]), "90")
    assert np.dtype("float32") in good.outputs
