"""The CUDA source that CuPy makes of fused functions and kernels, and NVRTC's verdict on it.

CuPy's private names are used throughout, as they are in `require.VERSION`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from .host_memory import array, backend_of_host_memory, made
from .recording import Fused
from .require import REQUIRED, cupy

_kernel, _scalar, _core = cupy._core._kernel, cupy._core._scalar, cupy._core.core
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
HALF = re.compile(r"\b(?:float16|__half|half)\b")
NDARRAY, INDEXER, SCALAR = 1, 2, 3
HEADERS = "".join(f"#include <{header}>\n" for header in _core._cupy_header_list)


class Kernel(NamedTuple):
    """One kernel as CuPy would compile it."""

    name: str
    source: str
    operation: str
    """What it computes, without the helpers that stand before it."""
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    """The dtypes of what it makes anew; those of arrays written into are among `inputs`."""


class UntraceableError(Exception):
    """CuPy's fusion could not follow the function."""


class Tracer:
    """Takes the place of `cupy.fuse`: a call ends where the kernel would be compiled for a device.

    `kernels` holds what the calls came to. Results are arrays whose values mean nothing.
    """

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []

    def fuse(self, *args: Any, **named: Any) -> Any:
        decorate = cupy.fuse(*args, **named)
        return lambda fn: self._traced(decorate(fn))

    def _traced(self, fusion: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            fusion.clear_cache()
            cause = None
            try:
                fusion(*args)
            except Exception as error:
                cause = error
            if fusion.new_fusion is not None:
                raise UntraceableError(
                    f"CuPy {cupy.__version__} can't fuse {fusion.name}{kinds_of(args)} as one "
                    "elementwise kernel and would fall back on its experimental fusion"
                ) from cause
            # Traced, it comes to the launch, which needs a device.
            if not isinstance(cause, cupy.cuda.runtime.CUDARuntimeError):
                raise AssertionError(f"{fusion.name} launched nothing") from cause
            ((kernel, _),) = fusion._memo.values()
            outputs = [p.dtype for p in kernel.out_params]
            arrays = [a for a in args if isinstance(a, cupy.ndarray)]
            shape = np.broadcast_shapes(*(a.shape for a in arrays))
            results = tuple(cupy.ndarray(shape, dtype) for dtype in outputs)
            self.kernels.append(elementwise(kernel, [*args, *results]))
            if kernel.no_return:
                return None
            return results if kernel.return_tuple else results[0]

        return call


def kinds_of(args: Iterable[Any]) -> str:
    names = [f"{a.dtype}[{a.ndim}]" if hasattr(a, "ndim") else type(a).__name__ for a in args]
    return f"({', '.join(names)})"


def trace(fused: Fused) -> Kernel:
    """The kernel of one recorded call, made by the backend's own `fuse` with the real CuPy."""
    tracer = Tracer()
    be = backend_of_host_memory(tracer.fuse)
    be.fuse(fused.fn)(*made(fused.args), out=made(fused.out))
    (kernel,) = tracer.kernels
    return kernel


def elementwise(kernel: Any, args: list[Any]) -> Kernel:
    """What an ElementwiseKernel comes to for arguments of these kinds, its outputs among them."""
    params = [p for p in kernel.params if p.name != "_ind"]
    arrays = [a for a in args if isinstance(a, cupy.ndarray)]
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    wide = [cupy.broadcast_to(a, shape) if isinstance(a, cupy.ndarray) else a for a in args]
    # Contiguous arguments are looped over in one dimension, as CuPy reduces them; where one is not,
    # all keep theirs, which is the most that CuPy leaves.
    flat = all(a.flags.c_contiguous for a in wide if isinstance(a, cupy.ndarray))
    ndim = 1 if flat else len(shape)
    infos = [
        _kernel._ArgInfo(NDARRAY, cupy.ndarray, a.dtype, ndim, a.flags.c_contiguous, True)
        if isinstance(a, cupy.ndarray)
        else _kernel._ArgInfo(SCALAR, _scalar.CScalar, p.dtype or np.dtype(type(a)), 0, True, True)
        for a, p in zip(wide, params, strict=True)
    ]
    infos.append(_kernel._ArgInfo(INDEXER, object, None, ndim, True, True))
    kinds = [a.dtype if isinstance(a, cupy.ndarray) else None for a in args]
    _, outputs, types = kernel._decide_params_type(
        tuple(kinds[: kernel.nin]), tuple(kinds[kernel.nin :])
    )
    source = _kernel._get_elementwise_kernel_code(
        tuple(infos), types, kernel.params, kernel.operation, kernel.name, kernel.preamble
    )
    inputs = tuple(info.dtype for info in infos[: kernel.nin])
    return Kernel(kernel.name, HEADERS + source, kernel.operation, inputs, outputs)


def types_in(operation: str) -> set[str]:
    """The C types of the variables that a fused kernel computes with, not of its constants."""
    declared = re.findall(
        r"(?:^|; )((?:unsigned )?\w+(?: \w+)?) v\d+(?:_\d+)?(?=;)", operation, re.M
    )
    return {name for name in declared if not name.startswith("const")}


def compile_for(source: str, architecture: str) -> int:
    """Compile as CuPy does for that compute capability; returns the bytes of machine code.

    Raises `cupy.cuda.compiler.CompileException`.
    """
    options = _core.assemble_cupy_compiler_options(())
    own = ("-ftz=true", f"-arch=sm_{architecture}", "--device-as-default-execution-space")
    program = cupy.cuda.compiler._NVRTCProgram(source, "kernel.cu", method="cubin")
    binary, _ = program.compile((*options, *own), None)
    return len(binary)


def _why_not() -> str:
    """Why nothing can be compiled here, the headers of CUDA included; empty where it can."""
    try:
        compile_for(f'{HEADERS}#include "cupy/float16.cuh"\n', ARCHITECTURES[0])
    except Exception as error:
        wanted = "pip install nvidia-cuda-nvrtc==13.0.* nvidia-cuda-runtime==13.0.*"
        reason = f"NVRTC or its headers are missing: {wanted} ({str(error)[:200]})"
        if REQUIRED:
            raise RuntimeError(f"{reason} (and DUALCNN_REQUIRE_CUPY=1 asks for them)") from error
        return reason
    return ""


no_compiler = _why_not()


def complaint(source: str, architecture: str) -> str:
    """What the compiler says against the source; nothing where it compiles."""
    try:
        return "" if compile_for(source, architecture) > 0 else "no machine code"
    except cupy.cuda.compiler.CompileException as error:
        return str(error)


def complaints(sources: Iterable[str], architecture: str) -> dict[str, str]:
    """`complaint` for each source on its own."""
    distinct = list(dict.fromkeys(sources))
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda source: complaint(source, architecture), distinct)
        return {source: said for source, said in zip(distinct, found, strict=True) if said}


def together(kernels: Iterable[Kernel]) -> str:
    """One source of many kernels, each in a namespace and under a name of its own.

    Headers take most of a small kernel's time: 300 kernels in one compile in a fifth of it.
    """
    parts = [HEADERS, '#include "cupy/float16.cuh"\n']
    for i, kernel in enumerate(kernels):
        body = kernel.source.removeprefix(HEADERS)
        body = body.replace(f"void {kernel.name}(", f"void {kernel.name}_{i}(")
        parts.append(f"namespace part_{i} {{\n{body}\n}}\n")
    return "".join(parts)


def compile_kernel_object(kernel: Any, architecture: str) -> None:
    """Compile a kernel in CUDA C: for float32 and float64 where its types are letters, for float16
    where its name says half.
    """
    if hasattr(kernel, "code"):
        compile_for(kernel.code, architecture)
        return
    for dtype in ("float16",) if kernel.name.endswith("_half") else ("float32", "float64"):
        args = [
            array(2, 3, dtype=str(p.dtype or dtype)) for p in kernel.in_params + kernel.out_params
        ]
        if isinstance(kernel, cupy.ElementwiseKernel):
            compile_for(elementwise(kernel, args).source, architecture)
        else:
            compile_for(reduction(kernel, args), architecture)


def reduction(kernel: Any, args: list[Any]) -> str:
    """The source of a ReductionKernel over all of contiguous arguments."""
    dtypes = [a.dtype for a in args]
    types = kernel_types(kernel, dtypes)
    infos = [_kernel._ArgInfo(NDARRAY, cupy.ndarray, dtype, 1, True, True) for dtype in dtypes]
    infos += [_kernel._ArgInfo(INDEXER, object, None, 1, True, True) for _ in range(2)]
    infos.append(_kernel._ArgInfo(SCALAR, _scalar.CScalar, np.dtype("int32"), 0, True, True))
    source = cupy._core._reduction._ReductionKernel_get_cached_function_code(
        kernel.nin,
        kernel.nout,
        kernel._params,
        tuple(infos),
        types,
        kernel.name,
        256,
        kernel.reduce_type,
        kernel.identity,
        kernel.map_expr,
        kernel.reduce_expr,
        kernel.post_map_expr,
        kernel.preamble,
        kernel.options,
    )
    return f"{HEADERS}typedef ptrdiff_t IndexT;\n{source}"


def kernel_types(kernel: Any, dtypes: list[Any]) -> Any:
    """What the letters of a kernel's types stand for."""
    inputs, outputs = tuple(dtypes[: kernel.nin]), tuple(dtypes[kernel.nin :])
    decide = _kernel._decide_params_type
    return decide(kernel.in_params, kernel.out_params, inputs, outputs)[2]
