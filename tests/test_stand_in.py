"""The stand-in refuses what CuPy refuses and counts what a device would make slow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from stand_in import counters, cupy, ndarray

from dualcnn.backend import CupyBackend

HOST = np.arange(12.0).reshape(3, 4)


@pytest.fixture
def x() -> Iterator[ndarray]:
    array = cupy.asarray(HOST)
    counters.reset()
    yield array
    np.testing.assert_array_equal(array._host, HOST)


REFUSED: dict[str, Callable[[Any], Any]] = {
    "a NumPy operand": lambda x: x + HOST,
    "a NumPy operand on the left": lambda x: HOST * x,
    "a NumPy operand in place": lambda x: x.__iadd__(HOST),
    "a NumPy operand of a function": lambda x: cupy.maximum(x, HOST),
    "a NumPy argument alone": lambda x: cupy.sum(HOST),
    "NumPy among joined arrays": lambda x: cupy.concat([x, HOST]),
    "a NumPy array as out=": lambda x: cupy.exp(x, out=HOST.copy()),
    "a NumPy index": lambda x: x[np.array([0, 1])],
    "a list as an operand": lambda x: x * [1, 2, 3, 4],
    "np.asarray": lambda x: np.asarray(x),
    "np.array": lambda x: np.array(x),
    "a function of NumPy's": lambda x: np.concatenate([x, x]),
    "a product with NumPy": lambda x: HOST.T @ x,
    "where= of a ufunc": lambda x: cupy.add(x, 1, where=x > 0),
    "where= of a sum": lambda x: cupy.sum(x, where=x > 0),
    "initial= of a maximum": lambda x: x.max(initial=0),
    "where= of a mean": lambda x: x.mean(where=x > 0),
    "mode= of take": lambda x: cupy.take(x, cupy.asarray([0]), axis=0, mode="clip"),
    "out= of einsum": lambda x: cupy.einsum("ab->b", x, out=cupy.zeros(4)),
    "an array as a size": lambda x: range(cupy.asarray(3)),
    "hash": hash,
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_raises_type_errors_where_cupy_does(x: Any, name: str) -> None:
    with pytest.raises(TypeError):
        REFUSED[name](x)


@pytest.mark.parametrize("value", [HOST, HOST[0], [1.0, 2.0, 3.0, 4.0]], ids=str)
def test_numpy_arrays_cannot_be_assigned(x: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="can't be assigned"):
        x[...] = value


def test_it_is_no_numpy_array_and_no_buffer(x: Any) -> None:
    assert not isinstance(x, np.ndarray)
    assert not hasattr(x, "__array_interface__")
    assert not hasattr(x, "__array_namespace__")
    with pytest.raises(TypeError):
        memoryview(x)
    with pytest.raises(BufferError):
        np.from_dlpack(x)


WAITS: dict[str, Callable[[Any], Any]] = {
    "get": lambda x: x.get(),
    "asnumpy": lambda x: cupy.asnumpy(x),
    "float": lambda x: float(x[0, 0]),
    "int": lambda x: int(x[0, 0]),
    "bool": lambda x: bool(x[0, 0] == 0),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "item": lambda x: x.max().item(),
    "tolist": lambda x: x.tolist(),
    "a mask": lambda x: x[x > 5],
    "nonzero": lambda x: cupy.nonzero(x),
    "unique": lambda x: cupy.unique_values(x),
}


@pytest.mark.parametrize("name", WAITS)
def test_reading_a_value_counts_as_a_synchronisation(x: Any, name: str) -> None:
    WAITS[name](x)
    assert counters.synchronisations == 1


def test_assigning_through_a_mask_counts_as_a_synchronisation() -> None:
    x = cupy.asarray(HOST)
    counters.reset()
    x[x > 5] = 0
    assert counters.synchronisations == 1
    np.testing.assert_array_equal(x.get(), np.where(HOST > 5, 0, HOST))


def test_work_on_the_device_counts_as_none(x: Any) -> None:
    y = cupy.where(x > 1, x * 2, -x) @ x.T
    y = y[:2].reshape(-1)[cupy.asarray([0, 1])]
    y[...] = 1.5
    assert (counters.synchronisations, counters.host_copies) == (0, 1)


def test_uploads_and_downloads_are_counted(x: Any) -> None:
    cupy.asarray(HOST)
    cupy.asarray([1, 2])
    assert counters.host_copies == 2
    assert cupy.asarray(x) is x
    assert counters.host_copies == 2
    x.get()
    assert counters.host_copies == 3


def test_an_upload_is_a_copy() -> None:
    host = HOST.copy()
    x = cupy.asarray(host)
    host[...] = 0
    np.testing.assert_array_equal(x.get(), HOST)


def test_results_are_arrays_even_of_no_dimension(x: Any) -> None:
    for result in (x.sum(), x[1, 2], cupy.max(x), x[0, 0] + 1, cupy.sqrt(x[1, 1]), x[0] @ x[0]):
        assert type(result) is ndarray
        assert result.shape == ()


def test_elementwise_results_lie_in_c_order_unless_told(x: Any) -> None:
    for result in (x.T + 1, -x.T, cupy.exp(x.T), cupy.where(x.T > 0, x.T, 0), x.T > 1, x.T * x.T):
        assert result.flags.c_contiguous
    out = cupy.empty((3, 4)).T
    assert cupy.add(x.T, 1, out=out) is out
    assert not out.flags.c_contiguous
    np.testing.assert_array_equal(out.get(), HOST.T + 1)
    assert not cupy.empty_like(x.T).flags.c_contiguous


VIEWS: dict[str, Callable[[Any], Any]] = {
    "slice": lambda x: x[1:, ::2],
    "row": lambda x: x[1],
    "element": lambda x: x[1, 2],
    "reversed": lambda x: x[::-1],
    "new axis": lambda x: x[:, None],
    "T": lambda x: x.T,
    "permute_dims": lambda x: cupy.permute_dims(x, (1, 0)),
    "reshape": lambda x: x.reshape(4, 3),
    "broadcast_to": lambda x: cupy.broadcast_to(x, (2, 3, 4)),
    "flip": lambda x: cupy.flip(x),
    "as_strided": lambda x: cupy.lib.stride_tricks.as_strided(x, (2, 2), (32, 8)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_share_memory_and_launch_nothing(x: Any, name: str) -> None:
    view = VIEWS[name](x)
    assert np.shares_memory(view._host, x._host)
    assert counters.launches == 0


def test_memory_and_what_is_in_order_launch_nothing(x: Any) -> None:
    cupy.empty((2, 3))
    cupy.empty_like(x)
    assert cupy.ascontiguousarray(x).get().tolist() == HOST.tolist()
    assert x.astype(x.dtype, copy=False) is x
    assert counters.launches == 0
    cupy.ascontiguousarray(x.T)
    assert counters.launches == 1
    y = x.astype(x.dtype)
    y += x
    assert counters.launches == 3
    cupy.matmul(x, x.T, out=cupy.empty((3, 3)))
    assert counters.launches == 4
    cupy.zeros(3)
    assert counters.launches == 5


def test_indices_out_of_range_wrap(x: Any) -> None:
    index = cupy.asarray([0, 3, -1, 7])
    np.testing.assert_array_equal(x[index].get(), HOST[[0, 0, 2, 1]])
    np.testing.assert_array_equal(x[:, index].get(), HOST[:, [0, 3, 3, 3]])
    np.testing.assert_array_equal(x[..., index].get(), HOST[:, [0, 3, 3, 3]])
    np.testing.assert_array_equal(cupy.take(x, index, axis=0).get(), HOST[[0, 0, 2, 1]])


def test_assigning_twice_to_one_place_is_an_error() -> None:
    x = cupy.zeros(4)
    with pytest.raises(RuntimeError, match="duplicate indices"):
        x[cupy.asarray([1, 1])] += 1
    x[cupy.asarray([1, 2])] = 5
    np.testing.assert_array_equal(x.get(), [0, 5, 5, 0])


def test_types_follow_numpy_2() -> None:
    x = cupy.asarray(np.ones(2, np.float32))
    assert (x * 2.5).dtype == np.float32
    assert (x * np.float64(2.5)).dtype == np.float64
    assert (np.float32(2) * x).dtype == np.float32
    assert (x * cupy.asarray(2.5)).dtype == np.float64
    assert cupy.zeros(2).dtype == np.float64


def test_numbers_on_the_left(x: Any) -> None:
    for result, expected in ((1 - x, 1 - HOST), (2 / (x + 1), 2 / (HOST + 1)), (2**x, 2**HOST)):
        np.testing.assert_array_equal(result.get(), expected)


def test_arithmetic_gives_no_warnings() -> None:
    x = cupy.asarray(np.array([-1.0, 0.0, 1e4]))
    y = cupy.log(x) / x + cupy.exp(x)
    np.testing.assert_array_equal(y.get(), [np.nan, -np.inf, np.inf])


def test_it_can_be_copied_deeply(x: Any) -> None:
    twin = copy.deepcopy(x)
    twin[...] = 0
    assert type(twin) is ndarray


def _axpy(a: Any, b: Any, scale: Any) -> Any:
    return cupy.maximum(a * scale + b, 0)


def test_fuse_computes_what_the_function_does_in_one_launch(x: Any) -> None:
    y = cupy.fuse(_axpy)(x, x, np.float64(-2))
    assert counters.launches == 1
    np.testing.assert_array_equal(y.get(), np.maximum(-HOST, 0))
    assert type(y) is ndarray


def test_fuse_writes_into_arguments() -> None:
    @cupy.fuse(kernel_name="into")  # type: ignore[untyped-decorator]
    def into(out: Any, a: Any) -> None:
        out[...] = a * 2

    out = cupy.zeros((4, 3)).T
    into(out, cupy.asarray(HOST))
    np.testing.assert_array_equal(out.get(), HOST * 2)


def test_fuse_without_arrays_calls_the_function() -> None:
    assert cupy.fuse(divmod)(7, 2) == (3, 1)


CLOSED_OVER = cupy.ones((3, 4))
UNFUSED: dict[str, Callable[[Any, Any], Any]] = {
    "shape": lambda a, s: a * a.shape[0],
    "a slice": lambda a, s: a[0],
    "a sum": lambda a, s: a.sum(),
    "a product": lambda a, s: a @ a,
    "reshape": lambda a, s: a.reshape(-1),
    "cupy.astype": lambda a, s: cupy.astype(a, cupy.float64),
    "a branch": lambda a, s: a if a > 0 else -a,
    "get": lambda a, s: a.get(),
    "a closed-over array": lambda a, s: a + CLOSED_OVER,
    "a closed-over NumPy array": lambda a, s: a + HOST,
    "scalar with number": lambda a, s: a * (1.0 - s),
    "scalar with scalar": lambda a, s: a * (s * s),
    "minus a scalar": lambda a, s: a + -s,
    "a function of a scalar": lambda a, s: a * cupy.exp(s),
    "a branch on a scalar": lambda a, s: a if s > 0 else -a,
    "a number as the result": lambda a, s: 1.0,
}


@pytest.mark.parametrize("name", UNFUSED)
def test_fuse_refuses_what_cannot_be_traced(x: Any, name: str) -> None:
    with pytest.raises((TypeError, AttributeError)):
        cupy.fuse(kernel_name="f")(UNFUSED[name])(x, np.float64(0.1))


def test_fuse_wants_typed_scalars_and_no_keywords(x: Any) -> None:
    with pytest.raises(TypeError, match="typed scalar"):
        cupy.fuse(_axpy)(x, x, 2.0)
    with pytest.raises(TypeError, match="keyword"):
        cupy.fuse(_axpy)(x, x, scale=np.float64(2))
    with pytest.raises(TypeError, match="Unsupported type"):
        cupy.fuse(_axpy)(x, HOST, np.float64(2))
    with pytest.raises(TypeError, match="kernel"):
        cupy.fuse(lambda a: a)


@pytest.mark.parametrize("name", ["tanh", "pow", "exp"])
def test_fuse_names_no_kernel_after_a_function_of_cuda(name: str) -> None:
    with pytest.raises(RuntimeError, match="won't compile"):
        cupy.fuse(kernel_name=name)(_axpy)
    assert callable(cupy.fuse(kernel_name=f"own_{name}")(_axpy))


def _total(*arrays: Any) -> Any:
    return sum(arrays[1:], arrays[0])


def test_fuse_takes_no_more_arrays_than_a_kernel() -> None:
    """80 bytes each for arrays of four dimensions, 32764 in all."""
    arrays = [cupy.ones((1, 1, 1, 2)) for _ in range(410)]
    np.testing.assert_array_equal(cupy.fuse(_total)(*arrays[:409]).get(), [[[[409, 409]]]])
    with pytest.raises(RuntimeError, match="parameter space"):
        cupy.fuse(_total)(*arrays)


def test_the_backend_runs_on_it() -> None:
    be = CupyBackend(cupy)
    x = be.asarray(HOST, "float32")
    assert be.owns(x)
    assert not be.owns(HOST)
    assert not be.host
    assert be.device == "cuda:0"
    np.testing.assert_array_equal(be.to_numpy(x), HOST)
