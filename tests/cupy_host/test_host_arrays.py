"""The CuPy backend over CuPy's own arrays in the host's memory: views, names and refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import array_api_compat
import numpy as np
import pytest

from dualcnn import Tensor, backend, ops
from dualcnn.backend import CupyBackend, MixedBackendsError
from dualcnn.backend.detect import Status
from dualcnn.ops.geometry import channels_first, channels_last

from .host_memory import array, backend_of_host_memory, host_arrays, overlaps
from .kernels import Tracer
from .require import cupy, standard


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[CupyBackend]:
    """The backend that `of` finds for CuPy's arrays, though there is no device."""
    made = backend_of_host_memory()
    monkeypatch.setattr(backend.select, "_cupy", {0: made})
    monkeypatch.setattr(
        backend.select, "cupy_status", lambda: Status("cupy", True, "for the test", devices=1)
    )
    with host_arrays():
        yield made


# Which backend, which namespace.


def test_cupy_arrays_are_of_the_cupy_backend(host: CupyBackend) -> None:
    x = array(2, 3)
    assert backend.of(x=x) is host
    assert host.owns(x)
    assert not host.owns(np.zeros(2))
    assert not host.host
    assert (host.name, host.device) == ("cupy", "cuda:0")
    assert Tensor(x).backend is host


def test_the_namespace_is_the_standards(host: CupyBackend) -> None:
    x = array(2, 3)
    assert array_api_compat.array_namespace(x) is host.xp is standard
    assert not hasattr(x, "__array_namespace__")
    with pytest.raises(TypeError, match="Multiple namespaces"):
        array_api_compat.array_namespace(x, np.zeros(2))


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "int64", "uint64", "bool"])
def test_types_are_numpys(host: CupyBackend, name: str) -> None:
    x = host.empty((2, 3), host.dtype(name))
    assert x.dtype == np.dtype(name) == getattr(host.cp, name)
    assert host.is_floating(x) == name.startswith("float")
    assert host.itemsize(x.dtype) == x.itemsize == np.dtype(name).itemsize


MIXED: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: ops.add(x, y),
    "matmul": lambda x, y: ops.matmul(x, y),
    "linear": lambda x, y: ops.linear(x, y),
    "concat": lambda x, y: ops.concat(x, y, dim=0),
    "Tensor": lambda x, y: Tensor(x) + Tensor(y),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_arrays_are_refused_with_the_way_out(host: CupyBackend, name: str) -> None:
    x, y = array(3, 3), np.zeros((3, 3), "float32")
    with pytest.raises(MixedBackendsError, match=r"must be on one device\. Fix: ") as error:
        MIXED[name](x, y)
    text = str(error.value)
    assert "cuda:0 (cupy)" in text
    assert "cpu (numpy)" in text
    assert "backend='cuda:0')" in text
    with pytest.raises(MixedBackendsError, match=r"backend='cpu'\)"):
        MIXED[name](y, x)


def test_labels_alone_may_be_on_the_host(host: CupyBackend) -> None:
    with pytest.raises(MixedBackendsError, match="target"):
        ops.mse_loss(np.zeros((2, 3), "float32"), array(2, 3))


FORBIDDEN: dict[str, Callable[[Any], Any]] = {
    "np.asarray": lambda x: np.asarray(x),
    "np.array": lambda x: np.array(x),
    "a buffer": lambda x: memoryview(x),
    "hash": lambda x: hash(x),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", FORBIDDEN)
def test_cupy_refuses_silent_conversion(name: str) -> None:
    with host_arrays(), pytest.raises(TypeError):
        FORBIDDEN[name](array(3))


def test_a_tensor_on_a_device_is_no_numpy_array(host: CupyBackend) -> None:
    with pytest.raises(TypeError):
        np.asarray(Tensor(array(3)))


# Views: another look at the same memory, and nothing started.


def test_channels_last_and_back(host: CupyBackend) -> None:
    x = array(2, 3, 4, 5)
    rows = channels_last(host, x)
    assert rows.shape == (2, 4, 5, 3)
    assert [s // 4 for s in rows.strides] == [60, 5, 1, 20]
    assert rows.data.ptr == x.data.ptr
    back = channels_first(host, rows)
    assert (back.shape, back.strides) == (x.shape, x.strides)
    stored = channels_first(host, array(2, 4, 5, 3))
    assert stored.shape == (2, 3, 4, 5)
    assert channels_last(host, stored).flags.c_contiguous


def test_windows(host: CupyBackend) -> None:
    x = array(2, 6, 7, 3)
    view = host.windows(x, (3, 2), (2, 1), (1, 3))
    assert view.shape == (2, 2, 4, 3, 2, 3)
    row, pixel = 7 * 3, 3
    expected = [6 * row, 2 * row, pixel, row, 3 * pixel, 1]
    assert [s // 4 for s in view.strides] == expected
    assert view.data.ptr == x.data.ptr
    # The last element that any window reaches is still one of the array's.
    reach = sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
    assert reach < x.nbytes


VIEWS: dict[str, tuple[Callable[[CupyBackend, Any], Any], tuple[int, ...], list[int]]] = {
    "strided_view": (lambda be, x: be.strided_view(x, (2, 2), (48, 8)), (2, 2), [12, 2]),
    "permute_dims": (lambda be, x: be.xp.permute_dims(x, (2, 0, 1)), (4, 2, 3), [1, 12, 4]),
    "reshape": (lambda be, x: be.reshape(x, (6, 4)), (6, 4), [4, 1]),
    "flip": (lambda be, x: be.xp.flip(x, axis=2), (2, 3, 4), [12, 4, -1]),
    "broadcast_to": (
        lambda be, x: be.xp.broadcast_to(x, (5, 2, 3, 4)),
        (5, 2, 3, 4),
        [0, 12, 4, 1],
    ),
    "slice": (lambda be, x: x[:, 1:, ::2], (2, 2, 2), [12, 4, 2]),
    "backwards": (lambda be, x: x[::-1], (2, 3, 4), [-12, 4, 1]),
    "ops.flatten": (lambda be, x: ops.flatten(x, start_dim=1)[0], (2, 12), [12, 1]),
    "ops.permute": (lambda be, x: ops.permute(x, dims=(1, 0, 2))[0], (3, 2, 4), [4, 12, 1]),
    "ops.transpose": (lambda be, x: ops.transpose(x, dim0=0, dim1=2)[0], (4, 3, 2), [1, 4, 12]),
    "ops.getitem": (lambda be, x: ops.getitem(x, index=(0, ...))[0], (3, 4), [4, 1]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(host: CupyBackend, name: str) -> None:
    look, shape, steps = VIEWS[name]
    x = array(2, 3, 4)
    view = look(host, x)
    assert view.shape == shape
    assert [s // 4 for s in view.strides] == steps
    assert overlaps(view, x)


def test_a_reshape_that_must_copy_comes_to_the_device(host: CupyBackend) -> None:
    """So the checks of this file notice a copy."""
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        host.reshape(channels_last(host, array(2, 3, 4, 5)), (2, 60))


def test_a_gradient_of_a_view_is_a_view(host: CupyBackend) -> None:
    x = array(2, 3, 4)
    _, vjp = ops.permute(x, dims=(1, 2, 0))
    gy = array(3, 4, 2)
    (gx,) = vjp(gy)
    assert gx.shape == x.shape
    assert overlaps(gx, gy)


# Memory order.


ORDERS: dict[str, Callable[[], Any]] = {
    "C": lambda: array(2, 3, 4, 5),
    "channels last": lambda: array(2, 4, 5, 3).transpose(0, 3, 1, 2),
    "reversed axes": lambda: array(5, 4, 3, 2).transpose(3, 2, 1, 0),
}


@pytest.mark.parametrize("name", ORDERS)
def test_new_arrays_take_the_order_of_others(host: CupyBackend, name: str) -> None:
    x = ORDERS[name]()
    made = host.empty_like(x)
    assert (made.shape, made.strides, made.dtype) == (x.shape, x.strides, x.dtype)
    assert not overlaps(made, x)
    wider = host.empty_ordered(x, x.shape, np.dtype("float64"))
    assert wider.strides == tuple(2 * s for s in x.strides)
    assert host.in_order_of(x, made) is x
    assert host.is_contiguous(x) == (name == "C")


@pytest.mark.parametrize("name", ORDERS)
def test_fused_results_take_the_order_of_their_arrays(host: CupyBackend, name: str) -> None:
    """A fused kernel of CuPy would make them in C order."""
    tracer = Tracer()
    traced = backend_of_host_memory(tracer.fuse)
    x = ORDERS[name]()
    result = traced.fuse(ops.activation._relu)(x)
    assert (result.shape, result.strides) == (x.shape, x.strides)
    assert len(tracer.kernels) == 1


def test_contiguous_is_the_array_itself(host: CupyBackend) -> None:
    x = array(2, 3)
    assert host.contiguous(x).data.ptr == x.data.ptr


# Work that needs the device ends there, and not before.


STARTS: dict[str, Callable[[CupyBackend, Any], Any]] = {
    "add": lambda be, x: x + x,
    "full": lambda be, x: be.full((2,), 1.0, x.dtype),
    "asarray": lambda be, x: be.asarray(np.zeros(3)),
    "to_numpy": lambda be, x: be.to_numpy(x),
    "float": lambda be, x: float(x[0, 0]),
    "synchronize": lambda be, x: cupy.cuda.get_current_stream().synchronize(),
    "sum": lambda be, x: be.xp.sum(x),
}


@pytest.mark.parametrize("name", STARTS)
def test_work_comes_to_the_device(host: CupyBackend, name: str) -> None:
    host.cp.cuda = cupy.cuda
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        STARTS[name](host, array(2, 3))


def test_counting_leaves_the_class_as_it_was(host: CupyBackend) -> None:
    """CuPy's array class lets its methods be replaced, which counting waits rests on."""
    before = dict(vars(cupy.ndarray))
    x = array(2, 3)
    with backend.count() as counts:
        assert dict(vars(cupy.ndarray)) != before
        for wait in (x.get, lambda: float(x[0, 0]), lambda: bool(x[0, 0]), lambda: x[0, 0].item()):
            # The copy itself needs a device.
            with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
                wait()
        assert x[0:1].shape == (1, 3)
    assert dict(vars(cupy.ndarray)) == before
    assert counts.to_host == counts.synchronizations == 4
    assert counts.bytes == 24 + 3 * 4
