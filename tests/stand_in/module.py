"""The functions of the stand-in, made from NumPy's by a table of names a kind."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided as numpy_as_strided

from stand_in.array import counters, functions, lift, lower, ndarray
from stand_in.device import cuda, pinned_pool, pool
from stand_in.kernels import ElementwiseKernel, ReductionKernel, gemm
from stand_in.tracing import Scalar, Traced, fuse

UFUNCS = """
    abs absolute acos acosh add arccos arcsin arctan arctan2 asin asinh atan atan2 atanh
    bitwise_and bitwise_count bitwise_invert bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor ceil copysign cos cosh divide divmod equal exp exp2 expm1 fabs
    floor floor_divide fmax fmin fmod greater greater_equal hypot invert isfinite isinf isnan
    ldexp left_shift less less_equal log log10 log1p log2 logaddexp logical_and logical_not
    logical_or logical_xor maximum minimum mod modf multiply negative nextafter not_equal positive
    pow power reciprocal remainder right_shift rint sign signbit sin sinh sqrt square
    subtract tan tanh true_divide trunc
"""

ELEMENTWISE = "clip nan_to_num round where"
"""Not ufuncs in NumPy, but one kernel in CuPy."""

REDUCTIONS = """
    all amax amin any argmax argmin count_nonzero cumprod cumsum cumulative_sum max mean min prod
    std sum var
"""

VIEWS = """
    broadcast_arrays broadcast_to expand_dims flip matrix_transpose moveaxis permute_dims ravel
    reshape rollaxis split squeeze swapaxes transpose unstack
"""
"""Their results are views wherever NumPy's are; no kernel."""

NEW_ARRAYS = """
    allclose argsort array_equal ascontiguousarray astype concat concatenate copy copyto diagonal
    diff dot einsum empty_like full_like kron matmul ones_like outer pad repeat roll searchsorted
    sort stack take take_along_axis tensordot tile tril triu vdot vecdot zeros_like
"""

CREATION = "arange empty eye full identity linspace meshgrid ones zeros"

WAITING = "argwhere extract flatnonzero nonzero unique unique_counts unique_inverse unique_values"
"""The shape of their result depends on values, so the host waits for it."""

MISSING = {
    "clip": {"where"},
    "copyto": {"where"},
    "einsum": {"out"},
    "take": {"mode"},
    **{name: {"where", "order", "subok", "signature"} for name in UFUNCS.split()},
    **{name: {"where", "initial"} for name in REDUCTIONS.split()},
}
"""Keywords that NumPy has and CuPy lacks."""

DTYPES = """
    bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64
    complex128 intp dtype
"""

CONSTANTS = "e inf nan newaxis pi finfo iinfo isdtype generic number floating integer"

UNSET = {"empty", "empty_like"}
"""Functions whose arrays nobody writes to: memory is taken, and nothing launched."""

KEEPS_ORDER = {"astype", "copy", "empty_like", "full_like", "ones_like", "zeros_like"}

OPERATORS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "matmul": "matmul",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "left_shift",
    "rshift": "right_shift",
}
COMPARISONS = {
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "ne": "not_equal",
}
UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}

METHODS = """
    all any argmax argmin argsort clip copy cumsum diagonal dot max mean min nonzero prod ravel
    repeat reshape round squeeze std sum swapaxes take transpose var
"""


def _arguments(args: Any) -> list[Any]:
    """The arguments, and what sequences among them hold."""
    found = []
    for value in args:
        found += _arguments(value) if isinstance(value, (tuple, list)) else [value]
    return found


def _function(name: str, fn: Callable[..., Any], kind: str) -> Callable[..., Any]:
    elementwise = kind in ("ufunc", "elementwise")
    missing = MISSING.get(name, set())
    launches = kind != "view" and name not in UNSET

    def call(*args: Any, **kwargs: Any) -> Any:
        for keyword in missing & kwargs.keys():
            raise TypeError(f"{name}() got an unexpected keyword argument {keyword!r}")
        kwargs.pop("device", None)
        given = _arguments([*args, *kwargs.values()])
        traced = any(isinstance(value, Traced) for value in given)
        if traced and not elementwise:
            raise TypeError(f"{name} can't be fused: it isn't elementwise")
        if traced and any(type(value) is ndarray for value in given):
            raise TypeError(f"{name} inside a fused function met an array that isn't its argument")
        if not traced and any(isinstance(value, Scalar) for value in given):
            raise TypeError(f"{name} of scalars alone would be computed in half precision")
        if kind == "ufunc" and any(isinstance(value, (tuple, list)) for value in args):
            raise TypeError(f"Unsupported type in {name}: a sequence")
        counters.synchronisations += kind == "waiting"
        with np.errstate(all="ignore"):
            lowered = {keyword: lower(value) for keyword, value in kwargs.items()}
            result = fn(*(lower(value) for value in args), **lowered)
        if kwargs.get("out") is not None:
            counters.launches += 1
            return kwargs["out"]
        # What is in order already is handed back as it is, and so is an output told by its place.
        given = args if kind != "view" else ()
        same = [i for i, a in enumerate(given) if isinstance(a, ndarray) and a._host is result]
        counters.launches += launches and same[:1] != [0]
        if same:
            return args[same[0]]
        fresh = kind != "view" and name not in KEEPS_ORDER
        return lift(result, Traced if traced else ndarray, c_order=fresh)

    call.__name__ = call.__qualname__ = name
    if isinstance(fn, np.ufunc):
        call.nin = fn.nin  # type: ignore[attr-defined]
    return call


def _operator(name: str, reflected: bool = False, in_place: bool = False) -> Callable[..., Any]:
    function = functions[name]

    def call(self: ndarray, *other: Any) -> Any:
        known = (ndarray, Scalar, np.ndarray, np.generic, bool, int, float, complex)
        if not all(isinstance(value, known) for value in other):
            return NotImplemented
        if in_place:
            return function(self, *other, out=self)
        return function(*other, self) if reflected else function(self, *other)

    return call


def _copyto(dst: Any, src: Any, casting: str = "same_kind") -> None:
    np.copyto(dst, src, casting=casting)  # type: ignore[arg-type]


def _take(a: Any, indices: Any, axis: int | None = None, out: Any = None) -> Any:
    return np.take(a, indices, axis=axis, out=out, mode="wrap")


def _take_along_axis(a: Any, indices: Any, axis: int = -1) -> Any:
    return np.take_along_axis(a, indices % a.shape[axis], axis=axis)


def _where(condition: Any, x: Any, y: Any) -> Any:
    return np.where(condition, x, y)


def asarray(
    a: Any, dtype: Any = None, order: Any = None, *, device: Any = None, copy: bool | None = None
) -> Any:
    """Uploads unless `a` is on the device; in C order, or in Fortran order where `a` has that."""
    if isinstance(a, ndarray):
        result = np.array(a._host, dtype, copy=copy, order=order or "K")
        if result is a._host:
            return a
        counters.launches += 1
        return lift(result)
    counters.host_copies += 1
    if isinstance(a, (list, tuple)) and any(isinstance(v, ndarray) for v in _arguments(a)):
        a = lower(list(a))
    host = np.asarray(a, dtype)
    fortran = order in (None, "K", "A") and host.flags.f_contiguous and not host.flags.c_contiguous
    return lift(np.array(host, order="F" if fortran else "C"))


def array(a: Any, dtype: Any = None, copy: bool = True, order: Any = "K", ndmin: int = 0) -> Any:
    return asarray(a, dtype, order, copy=copy)


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None) -> Any:
    return a.get(order=order, out=out) if isinstance(a, ndarray) else np.asarray(a)


def as_strided(x: ndarray, shape: Any = None, strides: Any = None) -> Any:
    if type(x) is not ndarray:
        raise TypeError(f"as_strided takes a CuPy array, got {type(x)}")
    return lift(numpy_as_strided(x._host, shape, strides))


def _half_as_float(fn: Callable[..., Any]) -> Callable[..., Any]:
    """CuPy adds float16 up in float32, as cuBLAS does, and rounds once."""

    def call(*args: Any, out: Any = None, **named: Any) -> Any:
        if not any(isinstance(a, np.ndarray) and a.dtype == np.float16 for a in args):
            return fn(*args, **named) if out is None else fn(*args, out=out, **named)
        wide = [a.astype(np.float32) if isinstance(a, np.ndarray) else a for a in args]
        kind = named.pop("dtype", None) or np.float16
        result = np.asarray(fn(*wide, **named)).astype(kind)
        if out is None:
            return result
        out[...] = result
        return out

    return call


def result_type(*operands: Any) -> Any:
    return np.result_type(*(lower(operand) for operand in operands))


def can_cast(from_: Any, to: Any, casting: Any = "safe") -> bool:
    return np.can_cast(lower(from_), to, casting)


compute_types = {np.dtype(name): 1 for name in ("float16", "float32", "float64")}
"""How cuBLAS multiplies numbers of a dtype, in CuPy's numbers: 1 as they are, 7 by TF32."""


def _build() -> Any:
    module: Any = types.ModuleType("cupy_stand_in", "CuPy's face over NumPy's memory")
    own: dict[str, Any] = {
        "copyto": _copyto,
        "take": _take,
        "take_along_axis": _take_along_axis,
        "where": _where,
    }
    kinds = {
        "ufunc": UFUNCS,
        "elementwise": ELEMENTWISE,
        "reduction": REDUCTIONS,
        "view": VIEWS,
        "new": NEW_ARRAYS,
        "creation": CREATION,
        "waiting": WAITING,
    }
    for kind, names in kinds.items():
        for name in names.split():
            source = own.get(name) or getattr(np, name, None)
            if name in ("sum", "mean", "matmul", "dot"):
                source = _half_as_float(getattr(np, name))
            if source is not None:
                functions[name] = _function(name, source, kind)
    for name in ("norm", "vector_norm"):
        functions[f"linalg.{name}"] = _function(name, getattr(np.linalg, name), "reduction")
    plain = (asarray, array, asnumpy, result_type, can_cast, fuse)
    vars(module).update({name: fn for name, fn in functions.items() if "." not in name})
    vars(module).update({fn.__name__: fn for fn in plain})
    vars(module).update({name: getattr(np, name) for name in f"{DTYPES} {CONSTANTS}".split()})
    module.__version__ = "14.2.0"
    module.ndarray = ndarray
    module.ElementwiseKernel = ElementwiseKernel
    module.ReductionKernel = ReductionKernel
    module.cublas = types.SimpleNamespace(gemm=gemm)
    module.cuda = cuda
    module.get_default_memory_pool = lambda: pool
    module.get_default_pinned_memory_pool = lambda: pinned_pool
    module._core = types.SimpleNamespace(
        get_compute_type=compute_types.__getitem__, set_compute_type=compute_types.__setitem__
    )
    module.get_array_module = lambda *arrays: module
    module.is_available = lambda: True
    module.lib = types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=as_strided))
    module.linalg = types.SimpleNamespace(
        norm=functions["linalg.norm"], vector_norm=functions["linalg.vector_norm"]
    )
    return module


def _install_operators() -> None:
    for symbol, name in OPERATORS.items():
        setattr(ndarray, f"__{symbol}__", _operator(name))
        setattr(ndarray, f"__r{symbol}__", _operator(name, reflected=True))
        if symbol != "matmul":
            setattr(ndarray, f"__i{symbol}__", _operator(name, in_place=True))
    for symbol, name in {**COMPARISONS, **UNARY}.items():
        setattr(ndarray, f"__{symbol}__", _operator(name))
    for name in METHODS.split():
        setattr(ndarray, name, _method(name))


def _method(name: str) -> Callable[..., Any]:
    function = functions[name]

    def call(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        if name in ("reshape", "transpose") and len(args) > 1:
            args = (args,)
        return function(self, *args, **kwargs)

    return call


cupy = _build()
_install_operators()
