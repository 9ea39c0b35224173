"""Choosing a backend, finding that of arrays, detection, and moving values between backends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import dualcnn
from dualcnn import backend
from dualcnn.backend import (
    BackendUnavailableError,
    MixedBackendsError,
    detect,
)

strict = pytest.importorskip("array_api_strict")


@pytest.fixture
def other():
    return backend.Backend(strict)


@pytest.fixture(autouse=True)
def default():
    """Leaves the default of the process as it was."""
    before = backend.current()
    yield before
    dualcnn.use(before)


def test_use_as_call_sets_the_default(other):
    dualcnn.use(other)
    assert backend.current() is other
    dualcnn.use("numpy")
    assert backend.current().name == "numpy"


def test_use_as_block_leaves_the_default_as_it_was(other, default):
    with dualcnn.use(other) as chosen:
        assert chosen.backend is other
        assert backend.current() is other
        with dualcnn.use("cpu"):
            assert backend.current().name == "numpy"
        assert backend.current() is other
    assert backend.current() is default


def test_a_block_holds_in_its_thread_alone_and_a_call_in_all(other, default):
    seen = {}
    entered, checked = threading.Event(), threading.Event()

    def inside():
        with dualcnn.use(other):
            entered.set()
            checked.wait(10)
            seen["inside"] = backend.current()

    thread = threading.Thread(target=inside)
    thread.start()
    assert entered.wait(10)
    seen["outside"] = backend.current()
    checked.set()
    thread.join()
    assert seen == {"inside": other, "outside": default}
    dualcnn.use(other)
    thread = threading.Thread(target=lambda: seen.update(later=backend.current()))
    thread.start()
    thread.join()
    assert seen["later"] is other


def test_unknown_names_say_what_is_known():
    with pytest.raises(ValueError, match='unknown backend \'tpu\'; expected "auto", "cpu" or'):
        dualcnn.use("tpu")
    with pytest.raises(TypeError, match="expected the name of a backend"):
        dualcnn.use(3)


def python(script, **environment):
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_environment_sets_the_default():
    script = "import dualcnn; print(dualcnn.backend.current().name)"
    assert python(script, DUALCNN_BACKEND="cpu").stdout.strip() == "numpy"
    wrong = python(script, DUALCNN_BACKEND="abacus")
    assert "unknown backend 'abacus'" in wrong.stderr
    assert "the environment variable DUALCNN_BACKEND asks for 'abacus'" in wrong.stderr


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ([[1.0, 2.0]], 'x = dualcnn.asarray(x, "float32")'),
        ([1, 2], "x = dualcnn.asarray(x)"),
        ([[1.0], [1.0, 2.0]], "x = dualcnn.asarray(x)"),
    ],
)
def test_a_list_is_told_how_to_become_an_array(given, fix):
    with pytest.raises(dualcnn.backend.MixedBackendsError) as caught:
        dualcnn.backend.of(x=given)
    assert str(caught.value) == f"x is a list; expected an array. Fix: {fix}"


def test_a_layer_given_a_list_speaks_of_no_device():
    layer = dualcnn.nn.Linear(2, 1)
    with pytest.raises(dualcnn.backend.MixedBackendsError) as caught:
        layer([[1.0, 2.0]])
    assert caught.value.__notes__ == ["in Linear(in_features=2, out_features=1, bias=True)"]


def test_auto_chooses_the_cpu_without_a_gpu_and_says_why(monkeypatch, caplog):
    status = detect.Status("cupy", False, "CuPy is not installed", "install it")
    monkeypatch.setattr("dualcnn.backend.select.cupy_status", lambda: status)
    with caplog.at_level("INFO", logger="dualcnn"):
        assert backend.get("auto").name == "numpy"
    assert "cpu, because CuPy is not installed" in caplog.text
    with pytest.raises(BackendUnavailableError, match=r"CuPy is not installed. To fix it: install"):
        backend.get("cuda")


def test_a_device_that_is_not_there(monkeypatch):
    status = detect.Status("cupy", True, "CuPy", "", devices=2)
    monkeypatch.setattr("dualcnn.backend.select.cupy_status", lambda: status)
    with pytest.raises(BackendUnavailableError, match=r"cuda:2 does not exist: found 2 device"):
        backend.get("cuda:2")


def test_available_names_both_backends():
    found = dualcnn.available()
    assert found["numpy"].usable
    assert found["cupy"].usable or found["cupy"].hint


class CudaError(RuntimeError):
    """As CuPy raises it, with CUDA's number."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def fake_cupy(count, product=None, driver=0):
    """What detection touches of CuPy."""

    def devices():
        if isinstance(count, Exception):
            raise count
        return count

    def matmul(a, b):
        if isinstance(product, Exception):
            raise product
        return a @ b if product is None else product

    runtime = SimpleNamespace(
        getDeviceCount=devices,
        getDeviceProperties=lambda i: {"name": b"Test GPU"},
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: 13000,
    )
    return SimpleNamespace(
        __version__="14", cuda=SimpleNamespace(runtime=runtime), ones=np.ones, sum=np.sum,
        matmul=matmul,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cp", "usable", "reason", "hint"),
    [
        (fake_cupy(RuntimeError("status 35")), False, "no usable NVIDIA driver", "nvidia-smi"),
        (fake_cupy(CudaError(35, "old")), False, "no usable NVIDIA driver", "nvidia-smi"),
        (
            fake_cupy(CudaError(35, "old"), driver=12040),
            False,
            "is built for CUDA 13.0, the NVIDIA driver supports up to 12.4 (old)",
            "update the driver, or install the build for CUDA 12: .*pip install cupy-cuda12x$",
        ),
        (
            fake_cupy(CudaError(35, "old"), driver=11080),
            False,
            "supports up to 11.8 (old)",
            "^update the driver: CuPy wants CUDA 12 or newer$",
        ),
        (fake_cupy(0), False, "a driver but no device", "CUDA_VISIBLE_DEVICES"),
        (
            fake_cupy(CudaError(100, "cudaErrorNoDevice")),
            False,
            "a driver but no device",
            "CUDA_VISIBLE_DEVICES",
        ),
        (fake_cupy(1, OSError("libnvrtc.so")), False, "libnvrtc.so", r"\"cupy-cuda13x\[ctk\]\""),
        (fake_cupy(1, np.zeros((2, 2))), False, "summed to 0.0, expected 16", r"\[ctk\]"),
        (fake_cupy(2), True, "cuda:1 Test GPU", ""),
    ],
)
def test_detection_tells_its_three_steps_apart(cp, usable, reason, hint):
    import re

    status = detect.probe(cp)
    assert status.usable is usable
    assert reason in status.reason
    assert re.search(hint, status.hint)


def test_detection_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    status = detect.cupy_status.__wrapped__()
    assert not status.usable
    assert "not installed" in status.reason or "can't be imported" in status.reason
    assert "pip install cupy-cuda13x or pip install cupy-cuda12x" in status.hint


def test_a_cupy_that_cannot_be_imported(monkeypatch):
    def broken():
        raise ImportError("libcudart.so.12: cannot open shared object file", name="cupy._core")

    monkeypatch.setattr(detect, "cupy_module", broken)
    monkeypatch.setattr("importlib.metadata.distributions", list)
    status = detect.cupy_status.__wrapped__()
    assert status.reason.startswith("CuPy is installed but can't be imported: libcudart.so.12")
    assert status.hint == detect.INSTALL
    packages = [SimpleNamespace(metadata={"Name": n}) for n in ("cupy", "cupy-cuda13x")]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: packages)
    hint = detect.cupy_status.__wrapped__().hint
    assert "several CuPy packages are installed (cupy, cupy-cuda13x)" in hint
    assert "pip uninstall cupy cupy-cuda13x, then install" in hint


def test_an_old_driver_and_the_build_to_remove(monkeypatch):
    packages = [SimpleNamespace(metadata={"Name": "cupy-cuda13x"})]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: packages)
    hint = detect.probe(fake_cupy(CudaError(35, "old"), driver=12040)).hint
    assert hint.endswith(": pip uninstall cupy-cuda13x, then pip install cupy-cuda12x")


def test_two_cupy_packages_deserve_a_warning(monkeypatch):
    packages = [SimpleNamespace(metadata={"Name": n}) for n in ("cupy-cuda12x", "cupy-cuda13x")]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: packages)
    with pytest.warns(UserWarning, match="cupy-cuda12x, cupy-cuda13x"):
        detect.probe(fake_cupy(1))


def test_of_finds_the_backend_and_skips_numbers_and_none(other):
    x = np.ones(2)
    assert backend.of(x=x, bias=None, factor=2.0) is backend.get("numpy")
    y = strict.ones(2)
    assert backend.of(y=y) is backend.of(z=strict.zeros(1))


def test_mixed_arrays_name_the_argument_both_devices_and_the_fix():
    with pytest.raises(
        MixedBackendsError,
        match=r"x is on cpu \(numpy\) but weight is on cpu \(array_api_strict\).*"
        r"Fix: weight = dualcnn.asarray\(weight, backend='cpu'\)",
    ):
        backend.of(x=np.ones(2), weight=strict.ones(2))
    with pytest.raises(MixedBackendsError, match="x is a list; expected an array"):
        backend.of(x=[1, 2])
    with pytest.raises(MixedBackendsError, match="expected at least one array among a, b"):
        backend.of(a=None, b=3)


class Exporter:
    """An object that shows its memory through DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_asarray_takes_lists_numbers_tensors_and_dlpack(be):
    for given in ([1.0, 2.0], np.array([1.0, 2.0]), dualcnn.Tensor(np.array([1.0, 2.0]))):
        found = dualcnn.asarray(given, dtype="float32", backend=be)
        assert be.owns(found)
        assert found.dtype == be.dtype("float32")
        assert dualcnn.to_numpy(found).tolist() == [1.0, 2.0]
    found = dualcnn.asarray(Exporter(np.arange(3.0)), backend=be)
    assert be.owns(found)
    assert dualcnn.to_numpy(found).tolist() == [0.0, 1.0, 2.0]
    assert dualcnn.asarray(2.5, backend=be).shape == ()


def test_asarray_shares_memory_on_the_host():
    x = np.arange(4.0)
    assert dualcnn.asarray(x, backend="cpu") is x
    shared = dualcnn.asarray(Exporter(x), backend="cpu")
    x[0] = 9
    assert shared[0] == 9
    assert dualcnn.to_numpy(dualcnn.Tensor(x)) is x


def test_to_numpy_takes_gradients_and_explains_none():
    x = dualcnn.Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match="got None"):
        dualcnn.to_numpy(x.grad)
    (x * 3).sum().backward()
    assert dualcnn.to_numpy(x.grad).tolist() == [3.0, 3.0]


def test_values_move_between_backends(other):
    there = dualcnn.asarray(np.arange(3.0), backend=other)
    back = dualcnn.asarray(there, backend="cpu")
    assert isinstance(back, np.ndarray)
    assert back.tolist() == [0.0, 1.0, 2.0]


def test_a_timer_counts_the_seconds_of_its_block(be, monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr("dualcnn.backend.timer.time.perf_counter", lambda: next(clock))
    with be.timer() as timer:
        pass
    assert timer.seconds == 2.5


def test_a_copy_of_a_backend_is_the_backend(be):
    import copy
    import pickle

    assert copy.deepcopy(be) is be
    assert pickle.loads(pickle.dumps(backend.get("cpu"))) is backend.get("cpu")
