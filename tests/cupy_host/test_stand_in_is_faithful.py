"""What the library asks of the stand-in, CuPy itself takes; what one refuses, so does the other."""

from __future__ import annotations

import ast
import inspect
import operator
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import stand_in

from .host_memory import array, host_arrays, made, spec
from .recording import Call, Recorder, Spec
from .require import cupy, standard

NAMESPACES = {"cp": cupy, "xp": standard}
DEVICE = ("cupy_backends.", "cupy.cuda.")
"""Where errors come from that say: the arguments are right, and there is no device."""
CUBLAS = "cublas"
"""The module whose import needs cuBLAS itself, which no machine without a GPU has."""
ASKS = {"asarray"}
"""These ask which device is current, though they launch nothing for an array that is one."""


@pytest.fixture(autouse=True)
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Some error messages show the array, which would need its values.
    monkeypatch.setattr(cupy.ndarray, "__repr__", object.__repr__)
    with host_arrays():
        yield


def run(call: Callable[[], Any]) -> Any:
    """The result of a call that launches nothing, and None for one that comes to the device."""
    try:
        return call()
    except Exception as error:
        library = isinstance(error, ImportError) and "libcublas" in str(error)
        if library or type(error).__module__.startswith(DEVICE):
            return None
        raise


def again(call: Call) -> Any:
    """The call once more, on CuPy's own arrays."""
    args, named = made(call.args), {name: made(value) for name, value in call.named}
    if call.owner == "ndarray":
        return run(lambda: getattr(cupy.ndarray, call.name)(*args, **named))
    fn = operator.attrgetter(call.name)(NAMESPACES[call.owner])
    return run(lambda: fn(*args, **named))


def same_place(one: Spec, other: Spec) -> bool:
    """Equal but for the strides of axes of one place, which reach nothing."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    steps = zip(one.shape, one.strides, other.strides, strict=True)
    return 0 in one.shape or all(a == b for n, a, b in steps if n > 1)


def test_all_that_is_looked_up_exists(recorded: Recorder) -> None:
    places = {**NAMESPACES, "ndarray": array(2, 3)}
    foreign = {"__array_namespace__", "__dualcnn_array__"}  # Asked of everything, to tell it apart.
    assert len(recorded.names) > 40
    for owner, name in recorded.names:
        if name not in foreign and not name.startswith(CUBLAS):
            operator.attrgetter(name)(places[owner])
        elif owner == "ndarray":
            assert not hasattr(places[owner], name)


def test_cupy_takes_every_call(recorded: Recorder) -> None:
    """A wrong name, keyword, count or type of arguments would be an error of another kind."""
    assert len(recorded.calls) > 1000
    refused = {}
    for key, call in recorded.calls.items():
        if call.name.startswith(CUBLAS):
            continue
        try:
            again(call)
        except Exception as error:
            refused[key[:200]] = repr(error)[:200]
    assert not refused


def test_what_the_stand_in_launches_not_cupy_launches_not(recorded: Recorder) -> None:
    """And makes the same views: of the same shape, strides and dtype."""
    views = [call for call in recorded.calls.values() if not call.launched]
    seen = set()
    for call in views:
        if isinstance(call.result, Spec) and call.name not in ASKS:
            result = again(call)
            assert result is not None, f"CuPy needs the device for {call}"
            assert same_place(spec(result), call.result), f"{call}, but CuPy's is {spec(result)}"
            seen.add(call.name)
    assert {"__getitem__", "reshape", "permute_dims", "lib.stride_tricks.as_strided"} <= seen


def test_what_cupy_launches_not_has_the_same_form(recorded: Recorder) -> None:
    """New arrays too: `empty` and the like reach no device."""
    compared = 0
    for call in recorded.calls.values():
        if call.name.startswith(CUBLAS):
            continue
        result = again(call)
        if isinstance(result, cupy.ndarray) and isinstance(call.result, Spec):
            assert same_place(spec(result), call.result), f"{call}, but CuPy's is {spec(result)}"
            compared += 1
    assert compared > 100


def test_a_wrong_call_would_be_seen() -> None:
    x = Spec((2, 3), (12, 4), np.dtype("float32"))
    good = Call("xp", "sum", (x,), (("axis", 0),), x, True)
    assert again(good) is None
    for bad in (
        good._replace(named=(("where", True),)),
        good._replace(named=(("axes", 0),)),
        good._replace(args=(x, x, x, x, x, x, x)),
        good._replace(name="summe"),
        good._replace(name="take", named=(("mode", "clip"),)),
        good._replace(owner="ndarray", name="reshape", args=(x, (7, 7)), named=()),
    ):
        with pytest.raises((TypeError, ValueError, AttributeError)):
            again(bad)


# What one refuses, so does the other.

NUMPY = np.zeros((2, 3), "float32")

REFUSED: dict[str, Callable[[Any, Any], Any]] = {
    "np.asarray": lambda cp, x: np.asarray(x),
    "np.array": lambda cp, x: np.array(x),
    "a list as an operand": lambda cp, x: x * [1, 2, 3],
    "a product with NumPy": lambda cp, x: NUMPY.T @ x,
    "where= of a ufunc": lambda cp, x: cp.add(x, 1, where=x),
    "where= of a sum": lambda cp, x: cp.sum(x, where=x),
    "initial= of a maximum": lambda cp, x: x.max(initial=0),
    "where= of a mean": lambda cp, x: x.mean(where=x),
    "mode= of take": lambda cp, x: cp.take(x, x, axis=0, mode="clip"),
    "hash": lambda cp, x: hash(x),
    "a buffer": lambda cp, x: memoryview(x),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_both_refuse(name: str) -> None:
    for cp, x in ((cupy, array(2, 3)), (stand_in.cupy, stand_in.cupy.empty((2, 3), "float32"))):
        with pytest.raises(TypeError):
            REFUSED[name](cp, x)


@pytest.mark.parametrize("value", [NUMPY, NUMPY[0]], ids=["whole", "broadcast"])
def test_neither_takes_numpy_into_a_part(value: Any) -> None:
    for x in (array(2, 3), stand_in.cupy.empty((2, 3), "float32")):
        with pytest.raises(ValueError, match=r"NumPy|non-scalar numpy"):
            x[:, :] = value


def test_a_numpy_array_is_no_argument_of_a_kernel() -> None:
    """Operands and `out=` pass through here once the device is known."""
    assert cupy._core._scalar.CScalar(np.float32(2)) is not None
    with pytest.raises(TypeError, match="Unsupported type"):
        cupy._core._scalar.CScalar(NUMPY)
    x = stand_in.cupy.empty((2, 3), "float32")
    for call in (lambda: x + NUMPY, lambda: NUMPY * x, lambda: stand_in.cupy.maximum(x, NUMPY)):
        with pytest.raises(TypeError, match="Unsupported type"):
            call()


ABSENT = ["__array_namespace__", "__array_interface__", "__buffer__"]


@pytest.mark.parametrize("name", ABSENT)
def test_both_lack(name: str) -> None:
    assert not hasattr(array(2), name)
    assert not hasattr(stand_in.cupy.empty(2), name)


def test_every_name_of_the_stand_in_is_one_of_cupy() -> None:
    """In CuPy itself or in its face in the standard, which the stand-in is too."""
    own = {name for name in vars(stand_in.cupy) if not name.startswith("__")}
    assert len(own) > 150
    missing = {n for n in own if not any(hasattr(space, n) for space in NAMESPACES.values())}
    assert missing <= {CUBLAS}


def test_the_product_that_adds_takes_what_the_stand_ins_takes() -> None:
    """`cupy.cublas` can't be imported without cuBLAS, but read: the names and their order."""
    path = pathlib.Path(cupy.__file__).parent / "cublas.py"
    functions = {
        n.name: n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)
    }
    names = [argument.arg for argument in functions["gemm"].args.args]
    assert names == list(inspect.signature(stand_in.cupy.cublas.gemm).parameters)
    defaults = [ast.literal_eval(default) for default in functions["gemm"].args.defaults]
    assert defaults == [None, 1.0, 0.0]


def test_every_method_of_the_stand_in_is_one_of_cupy() -> None:
    own = {name for name, member in vars(stand_in.ndarray).items() if callable(member)}
    own -= {"_index", "__getattr__", "__array_namespace__"}
    assert not {name for name in own if not hasattr(cupy.ndarray, name)}


TYPES = ["float32", "float64", "int64", "uint64", "bool"]


@pytest.mark.parametrize("a", TYPES)
@pytest.mark.parametrize("b", [*TYPES, 2, 2.5, np.float32(2), np.float64(2)], ids=str)
def test_results_have_the_same_dtype(a: str, b: Any) -> None:
    """What `result_type` says; CuPy promotes as NumPy 2 does."""
    for cp in (cupy, stand_in.cupy):
        x = cp.empty((), a)
        other = cp.empty((), b) if isinstance(b, str) else b
        weak = np.empty((), b) if isinstance(b, str) else b
        assert cp.result_type(x, other) == np.result_type(np.empty((), a), weak)


def test_tf32_has_the_numbers_that_the_backend_uses() -> None:
    """Private names: they may move with a new version of CuPy."""
    from dualcnn.backend import cupy as ours

    linalg = cupy._core._routines_linalg
    assert linalg.COMPUTE_TYPE_DEFAULT == ours.DEFAULT_PRODUCTS
    assert linalg.COMPUTE_TYPE_TF32 == ours.TF32
    assert cupy._core.get_compute_type(np.dtype("float32")) == ours.DEFAULT_PRODUCTS
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        cupy._core.set_compute_type(np.dtype("float32"), ours.TF32)  # It asks for the device.
