"""`scripts/gpu_check.py` without a GPU: its message, and its parts on the stand-in and on NumPy."""

from __future__ import annotations

import ctypes
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in import cupy

import dualcnn
from dualcnn import backend
from dualcnn.backend import Backend, CupyBackend
from dualcnn.backend.detect import Status

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import gpu_check  # noqa: E402
import gpu_launches  # noqa: E402
import gpu_lockstep  # noqa: E402
import gpu_probe  # noqa: E402
import gpu_report  # noqa: E402
import gpu_sides  # noqa: E402
import gpu_timing  # noqa: E402


@pytest.fixture
def device() -> Iterator[CupyBackend]:
    instance = CupyBackend(cupy)
    with dualcnn.use(instance):
        yield instance


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_timing, "SAMPLE_MS", 0.0)
    monkeypatch.setattr(gpu_check, "LARGE", {"e": 2})
    monkeypatch.setattr(gpu_sides, "torch_problem", lambda: "PyTorch finds no GPU")


def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    status = Status("cupy", False, "found no usable NVIDIA driver", "check that nvidia-smi runs")
    monkeypatch.setattr(backend.select, "cupy_status", lambda: status)


def test_without_a_gpu_it_says_so_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    no_gpu(monkeypatch)
    path = tmp_path / "figures.json"
    assert gpu_check.main(["--json", str(path)]) == gpu_check.NO_GPU == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("no usable GPU, nothing was measured: the CUDA backend is not usable: ")
    assert "check that nvidia-smi runs" in err
    assert not path.exists()


@pytest.mark.parametrize(("given", "said"), [("--only=sweep", "sweep"), ("--nets=z", "'z'")])
def test_mistakes(capsys: pytest.CaptureFixture[str], given: str, said: str) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main([given])
    assert f"unknown {said}" in capsys.readouterr().err.replace("'sweep'", "sweep")


def test_all_of_it_on_the_stand_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Everything but the suite and the probe, from the command to the file of figures."""
    instance = CupyBackend(cupy)
    monkeypatch.setattr(backend.select, "_cupy", {0: instance})
    status = Status("cupy", True, "CuPy, a stand-in", devices=1)
    monkeypatch.setattr(backend.select, "cupy_status", lambda: status)
    monkeypatch.setattr(gpu_lockstep, "beside_torch", lambda be: {"left out": "for the test"})
    path = tmp_path / "new" / "figures.json"
    given = ["--only", "detect,lockstep,cost,bench", "--nets", "e"]
    assert gpu_check.main([*given, "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"all right; figures: {path}" in out
    found = json.loads(path.read_text())
    assert found["passed"] is True
    assert found["detect"]["device"] == "stand-in"
    assert found["lockstep"]["float64"]["steps"] == 100
    assert found["lockstep"]["float64"]["furthest"] < 1e-12
    (row,) = found["cost"]["rows"]
    assert (row["waits"], row["copies"]) == (0, 0)
    timed = [r for r in found["bench"]["rows"] if "ms" in r]
    assert [(r["net"], r["batch"], r["precision"]) for r in timed[:2]] == [
        ("e", 1, "float32"),
        ("e", 2, "float32"),
    ]
    assert all(r["ms"]["dualcnn"] > 0 for r in timed)
    assert "float64: 100 steps, furthest from NumPy" in out
    assert {r["precision"] for r in timed} == {"float32", "tf32", "mixed"}


def test_a_section_that_fails_is_told_and_the_others_run(
    device: Backend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(check: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu_check.SECTIONS, "cost", broken)
    found = gpu_check.run(gpu_check.Check(device, 1.0, ["e"]), ["cost", "detect"])
    assert found["passed"] is False
    assert found["cost"]["raised"] == "RuntimeError: no such kernel"
    assert found["detect"]["passed"] is True
    out = capsys.readouterr().out
    assert "cost: FAILED" in out
    assert "no such kernel" in out


class Waiting(CupyBackend):
    def matmul(self, *args: Any, **named: Any) -> Any:
        self.synchronize()
        return super().matmul(*args, **named)


def test_a_step_that_waits_fails_and_the_line_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    check = gpu_check.Check(Waiting(cupy), 1.0, ["e"])
    found = gpu_check.cost(check)
    assert found["passed"] is False
    assert found["rows"][0]["waits"] > 0
    gpu_report.show("cost", {**found, "took": 1.0})
    assert "e: wait at " in capsys.readouterr().out


def test_the_suite_runs_in_a_process_of_its_own(
    device: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = gpu_check.Check(device, 1.0, [])
    good = gpu_check.suite(check, "numpy", ("test_random.py",))
    assert good["passed"] is True
    assert good["counts"]["passed"] > 5
    no_gpu(monkeypatch)
    if not dualcnn.available()["cupy"].usable:
        bad = gpu_check.suite(check, "cupy", ("test_random.py",))
        assert bad["passed"] is False
        assert bad["failures"]
        assert "DUALCNN_REQUIRE_GPU=1 asks for one" in bad["said"]


# The parts.


def test_lockstep_passes_and_can_fail(device: CupyBackend) -> None:
    found = gpu_lockstep.follow(device, 12)
    assert found["furthest"] < 1e-12
    assert found["loss"][1] < found["loss"][0]

    class Wrong(CupyBackend):
        def contract(self, *args: Any, **named: Any) -> Any:
            return super().contract(*args, **named) * (1 + 1e-6)

    assert gpu_lockstep.follow(Wrong(cupy), 12)["passed"] is False


def test_float32_beside_torch(device: CupyBackend) -> None:
    pytest.importorskip("torch", reason="PyTorch isn't installed")
    found = gpu_lockstep.beside_torch(device, 3, 16, "cpu")
    assert found["passed"] is True
    assert 1e-8 < found["error"] < 1e-5
    assert 1e-8 < found["torch error"] < 1e-5

    class Wrong(CupyBackend):
        def contract(self, *args: Any, **named: Any) -> Any:
            return super().contract(*args, **named) * (1 + 1e-4)

    assert gpu_lockstep.beside_torch(Wrong(cupy), 3, 16, "cpu")["passed"] is False


@pytest.mark.parametrize("place", range(len(gpu_probe.QUESTIONS)))
def test_every_way_of_the_probe_runs(device: CupyBackend, place: int) -> None:
    question = gpu_probe.QUESTIONS[place](device, 1 / 256)
    assert question.used in question.ways
    assert len(question.ways) > 1
    for way in question.ways.values():
        way()


def test_the_ways_that_give_a_result_give_the_same(device: CupyBackend) -> None:
    for make in (gpu_probe.channel_products, gpu_probe.folding, gpu_probe.channel_sums):
        results = [
            device.to_numpy(way()).reshape(-1)
            for name, way in make(device, 1 / 128).ways.items()
            if not name.startswith("stages")
        ]
        for other in results[1:]:
            np.testing.assert_allclose(other, results[0], 1e-3, 1e-3)


def test_the_probe_says_which_is_faster(
    device: CupyBackend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(be: Any, share: float) -> Any:
        raise ValueError("no")

    question = gpu_probe.Question("which", {"a": lambda: None, "b": lambda: None}, "a")
    monkeypatch.setattr(gpu_probe, "QUESTIONS", (lambda be, share: question, fails))
    monkeypatch.setattr(gpu_probe, "medians", lambda ways, *args, **named: {"a": 2.0, "b": 1.0})
    rows = gpu_probe.ask(device)
    assert rows[0] == {"question": "which", "ms": {"a": 2.0, "b": 1.0}, "used": "a", "fastest": "b"}
    assert rows[1]["failed"] == "ValueError('no')"
    gpu_report.show("probe", {"rows": rows, "launch us": {"empty": 1.5}, "took": 0.1})
    out = capsys.readouterr().out
    assert "which: a 2.00, b 1.00 ms; in use: a  <-- b is faster" in out
    assert "empty 1.5" in out


def test_ratios_are_to_the_better_layout() -> None:
    ms = {"dualcnn": 3.0, "torch": 4.0, "torch channels-last": 2.0}
    assert gpu_report.ratio(ms) == 1.5
    assert gpu_report.ratio({"dualcnn": 3.0}) is None


def test_the_table_of_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    ms = {"dualcnn": 3.0, "captured": 2.75, "torch": 4.0, "torch channels-last": 2.5}
    rows = [
        {"net": "b", "batch": 64, "precision": "float32", "ms": ms},
        {"net": "b", "batch": 512, "precision": "float32", "left out": "out of memory"},
    ]
    gpu_report.show("bench", {"rows": rows, "took": 2.0})
    out = capsys.readouterr().out
    assert out.splitlines()[1] == "bench: ok, 2.0 s"
    assert "b, 512, float32: left out, out of memory" in out
    cells = ["b", "64", "float32", "3.00", "2.75", "4.00", "2.50", "1.20", "1.30"]
    assert cells in [line.split() for line in out.splitlines()]


def test_the_file_is_named_after_the_device() -> None:
    found = {"detect": {"device": "NVIDIA H100 80GB HBM3"}, "machine": {"date": "2026-01-02"}}
    path = gpu_report.default_path(Path("benchmarks"), found)
    assert path.as_posix() == "benchmarks/gpu-nvidia-h100-80gb-hbm3-2026-01-02.json"


def test_driver_calls_by_kind() -> None:
    calls = Counter({"cuLaunchKernel": 3, "cuLaunchKernelEx": 2, "cuMemcpyDtoHAsync_v2": 1,
                     "cuStreamSynchronize": 1, "cuMemAlloc_v2": 7})  # fmt: skip
    assert gpu_launches.tally(calls) == {
        "launches": 5, "copies to host": 1, "copies to device": 0, "waits": 1,
    }  # fmt: skip


def test_driver_calls_are_counted_through_cupti(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a library with CUPTI's functions, which reports two launches and a copy."""

    class Library:
        def cuptiSubscribe(self, subscriber: Any, callback: Any, user: Any) -> int:
            self.callback = callback
            return 0

        def cuptiEnableDomain(self, enable: int, subscriber: Any, domain: int) -> int:
            assert (enable, domain) == (1, 1)
            return 0

        def cuptiUnsubscribe(self, subscriber: Any) -> int:
            return 0

        def call(self, name: bytes) -> None:
            for site in (0, 1):
                data = gpu_launches._CallbackData(site, name)
                self.callback(None, 1, 307, ctypes.pointer(data))

    library = Library()
    monkeypatch.setattr(gpu_launches, "_library", lambda: library)

    def step() -> None:
        if hasattr(library, "callback"):
            for name in (b"cuLaunchKernel", b"cuLaunchKernel", b"cuMemcpyHtoDAsync_v2"):
                library.call(name)

    found = gpu_launches.per_step(step, lambda: None)
    assert found == {"launches": 2, "copies to host": 0, "copies to device": 1, "waits": 0}


def test_without_cupti_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_launches, "_candidates", list)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: (_ for _ in ()).throw(OSError(path)))
    with pytest.raises(gpu_launches.UnavailableError, match="libcupti was not found"):
        gpu_launches.per_step(lambda: None, lambda: None)


def test_medians_take_turns(device: Backend) -> None:
    order: list[str] = []
    sides = {name: (lambda name=name: order.append(name)) for name in "ab"}
    found = gpu_timing.medians(sides, gpu_timing.Clock(device), repeats=3)
    assert set(found) == {"a", "b"}
    assert all(ms >= 0 for ms in found.values())
    assert order[-2:] == ["a", "b"]
    assert gpu_timing.Clock(device).issue_us(lambda: None, 5) >= 0


@pytest.mark.parametrize(
    ("said", "passed", "kind"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", True, "out of memory: CUDA"),
        ("no kernel image is available", False, "RuntimeError: no kernel"),
    ],
)
def test_rows_that_are_measured_stay_when_another_fails(
    device: Backend, monkeypatch: pytest.MonkeyPatch, said: str, passed: bool, kind: str
) -> None:
    """PyTorch's want of memory is a RuntimeError."""

    def compared(be: Backend, name: str, batch: int, *others: Any) -> dict[str, float]:
        if batch == 2:
            raise RuntimeError(said)
        return {"dualcnn": 1.0}

    monkeypatch.setattr(gpu_check, "_compared", compared)
    found = gpu_check.run(gpu_check.Check(device, 1.0, ["e"]), ["bench"])["bench"]
    assert found["passed"] is passed
    assert [row["ms"] for row in found["rows"] if row["batch"] == 1] == [{"dualcnn": 1.0}] * 3
    assert all(row["left out"].startswith(kind) for row in found["rows"] if row["batch"] == 2)


def test_a_device_that_is_none_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--device", "gpu"]) == 2
    assert "--device: " in capsys.readouterr().err


def test_float32_is_strict_in_what_is_compared(device: CupyBackend) -> None:
    device.tf32 = True
    try:
        with gpu_sides.using(device, "float32"):
            assert not device.tf32
        with gpu_sides.using(device, "tf32"):
            assert device.tf32
    finally:
        device.tf32 = False
