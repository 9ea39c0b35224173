"""What a GPU has one of for a whole process or thread: TF32, and the current device."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import stand_in

from dualcnn import backend
from dualcnn.backend import CupyBackend


@pytest.fixture(autouse=True)
def default() -> Iterator[None]:
    """Leaves the default of the process as it was."""
    before = backend.current()
    yield
    backend.use(before)


# TF32.


def products(device: CupyBackend) -> int:
    """How CuPy has cuBLAS multiply float32: 1 as it is, 7 by TF32."""
    kind: int = device.cp._core.get_compute_type(np.dtype("float32"))
    return kind


def test_tf32_is_allowed_by_choice_and_within_a_block() -> None:
    device = CupyBackend(stand_in.cupy)
    seen = [products(device)]
    with backend.use(device):
        seen.append(products(device))
    with backend.use(device, tf32=True):
        seen.append(products(device))
        with backend.use(device):
            seen.append(products(device))
        with backend.use(device, tf32=False):
            seen.append(products(device))
        with backend.use("cpu"):
            seen.append(products(device))
        seen.append(products(device))
    seen.append(products(device))
    assert seen == [1, 1, 7, 7, 1, 7, 7, 1]


def test_tf32_is_given_back_after_an_error() -> None:
    device = CupyBackend(stand_in.cupy)
    with pytest.raises(ZeroDivisionError), backend.use(device, tf32=True):
        _ = 1 / (1 - products(device) // 7)
    assert not device.tf32


def test_a_call_allows_tf32_until_another_forbids_it() -> None:
    device = CupyBackend(stand_in.cupy)
    backend.use(device, tf32=True)
    assert products(device) == 7
    backend.use(device)
    assert products(device) == 7
    backend.use(device, tf32=False)
    assert products(device) == 1


def test_on_the_host_there_is_nothing_to_allow() -> None:
    with backend.use("cpu", tf32=True) as chosen:
        assert not chosen.backend.tf32
        # 1 + 2**-12 has one bit more than TF32 keeps.
        x = np.array([[1 + 2**-12]], "float32")
        assert chosen.backend.matmul(x, np.ones((1, 1), "float32"))[0, 0] == x


def test_added_products_are_made_by_tf32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """By CuPy's own product: its `gemm` is cuBLAS's for float32 whatever is allowed."""
    called = []
    monkeypatch.setattr(stand_in.cupy.cublas, "gemm", lambda *args, **named: called.append(args))
    device = CupyBackend(stand_in.cupy)
    a, out = device.full((4, 4), 1.0, "float32"), device.full((4, 4), 3.0, "float32")
    with backend.use(device, tf32=True):
        device.matmul(a, a, out=out, accumulate=True)
        assert not called
        assert (device.to_numpy(out) == 7).all()
        device.matmul(
            *[device.full((4, 4), 1.0, "float64")] * 2,
            out=device.full((4, 4), 3.0, "float64"),
            accumulate=True,
        )
    with backend.use(device, tf32=False):
        device.matmul(a, a, out=out, accumulate=True)
    assert [args[2].dtype.name for args in called] == ["float64", "float32"]


class Machine:
    """The stand-in with two devices, of which one is current."""

    def __init__(self) -> None:
        machine = self
        self.current = 0

        class Device:
            def __init__(self, index: int) -> None:
                self.id = index

            def use(self) -> None:
                machine.current = self.id

        cuda = SimpleNamespace(
            Device=Device, runtime=SimpleNamespace(getDevice=lambda: machine.current)
        )
        self.cupy = SimpleNamespace(
            cuda=cuda, ndarray=stand_in.cupy.ndarray, ElementwiseKernel=None, _core=None
        )


def test_the_device_that_was_current_is_so_again_after_a_block() -> None:
    machine = Machine()
    first, second = (CupyBackend(machine.cupy, xp=stand_in.cupy, index=i) for i in range(2))
    with backend.use(second):
        assert machine.current == 1
        with backend.use(first):
            assert machine.current == 0
        assert machine.current == 1
        with backend.use("cpu"):
            assert machine.current == 1
    assert machine.current == 0
    with pytest.raises(ZeroDivisionError), backend.use(second):
        _ = 1 / 0
    assert machine.current == 0
    backend.use(second)
    assert machine.current == 1, "a call holds"
