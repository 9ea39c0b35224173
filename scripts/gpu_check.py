"""Check dualcnn on this machine's GPU and measure it beside PyTorch, in one go of some minutes.

    python scripts/gpu_check.py
    python scripts/gpu_check.py --only suite,lockstep
    python scripts/gpu_check.py --only probe --json probe.json

Sections: detect, suite (the tests of the operations on CuPy), lockstep (trainings beside NumPy),
cost (waits, launches and memory of a step), bench (steps beside PyTorch's), probe (which way of
doing things the primitives should take). Figures go to a JSON file under benchmarks/, a summary to
the screen. Exit status: 0 all right; 1 something is wrong; 3 there is no usable GPU.
Needs CuPy; PyTorch, pytest and CUPTI are used where they are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_launches
import gpu_lockstep
import gpu_probe
import gpu_report
import gpu_sides
from bench_machine import machine
from bench_nets import NETS
from gpu_timing import Clock, medians

import dualcnn
from dualcnn.backend import Backend, count

ROOT = Path(__file__).parent.parent
USAGE = 2
NO_GPU = 3
TESTS = (
    "test_ops_*.py", "test_op_check.py", "test_functional.py", "test_optim_*.py", "test_random.py",
    "test_autograd*.py", "test_nn_*.py", "test_layout.py", "test_train_loop.py",
    "test_data_loader.py", "test_data_augment.py", "test_backend_upload.py", "test_captured*.py",
)  # fmt: skip
LARGE = {"a1": 1024, "b": 512, "c": 256}
"""Batches that fill a GPU, beside the nets' own."""

Section = Callable[["Check"], dict[str, Any]]


class Check:
    """What sections need: the backend, the options, and how much time is left."""

    def __init__(self, be: Backend, minutes: float, nets: list[str]) -> None:
        self.be = be
        self.nets = nets
        self._end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()


def detect(check: Check) -> dict[str, Any]:
    """Backends, versions, device."""
    be = check.be
    found: dict[str, Any] = {
        "backends": {name: str(status) for name, status in dualcnn.available().items()},
        "memory": be.memory(),
        "torch": gpu_sides.torch_problem() or "there",
    }
    cp = getattr(be, "cp", None)
    if be.name == "cupy" and cp is not None:
        properties = cp.cuda.runtime.getDeviceProperties(getattr(be, "index", 0))
        found["device"] = properties["name"].decode()
        found["device memory"] = int(properties["totalGlobalMem"])
        found["compute capability"] = cp.cuda.Device(getattr(be, "index", 0)).compute_capability
        found["driver"] = cp.cuda.runtime.driverGetVersion()
        found["runtime"] = cp.cuda.runtime.runtimeGetVersion()
        found["cupy"] = cp.__version__
    return {**found, "passed": True}


def suite(check: Check, backend: str = "cupy", tests: tuple[str, ...] = TESTS) -> dict[str, Any]:
    """The tests of the operations, in a process of its own; a skipped GPU is a failure."""
    if importlib.util.find_spec("pytest") is None:
        return {"left out": "pytest is not installed: pip install -e . --group test"}
    files = sorted({str(path) for name in tests for path in (ROOT / "tests").glob(name)})
    command = [sys.executable, "-m", "pytest", "-q", "--backend", backend, "-p", "no:cacheprovider"]
    start = time.monotonic()
    try:
        done = subprocess.run(
            [*command, *files],
            cwd=ROOT,
            env={**os.environ, "DUALCNN_REQUIRE_GPU": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=max(60.0, check.left),
        )
    except subprocess.TimeoutExpired:
        return {"passed": False, "said": "out of time"}
    counts = {
        word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)
    }
    failures = re.findall(r"^(?:FAILED|ERROR) .*$", done.stdout, re.MULTILINE)
    return {
        "passed": done.returncode == 0 and counts.get("passed", 0) > 0,
        "counts": counts,
        "seconds": round(time.monotonic() - start, 1),
        "failures": failures[:50],
        "said": "" if done.returncode == 0 else (done.stdout + done.stderr)[-3000:],
    }


def lockstep(check: Check, steps: int = 100) -> dict[str, Any]:
    """A training in float64 beside NumPy's; gradients in float32 beside PyTorch's."""
    found: dict[str, Any] = {"float64": gpu_lockstep.follow(check.be, steps)}
    if importlib.util.find_spec("torch") is None:
        found["float32"] = {"left out": "PyTorch is not installed"}
    else:
        found["float32"] = gpu_lockstep.beside_torch(check.be)
    return {**found, "passed": all(part.get("passed", True) for part in found.values())}


def cost(check: Check) -> dict[str, Any]:
    """Waits and copies, launches, and memory of one training step."""
    rows = []
    for name in check.nets:
        net = NETS[name]
        with dualcnn.use(check.be):
            step = gpu_sides.dualcnn_side(net, net.batch, check.be)
            step()
            check.be.release()
            with count() as counts:
                for _ in range(3):
                    step()
            check.be.synchronize()
            row: dict[str, Any] = {
                "net": name,
                "batch": net.batch,
                "waits": counts.synchronizations,
                "copies": counts.host_copies,
                "where": [f"{what} at {line}" for what, line in counts.where],
                "memory": check.be.memory(),
            }
            try:
                row["driver calls"] = gpu_launches.per_step(step, check.be.synchronize)
            except gpu_launches.UnavailableError as error:
                row["driver calls"] = str(error)
        if not gpu_sides.torch_problem():
            row |= _torch_cost(name)
        rows.append(row)
    return {"rows": rows, "passed": not any(row["waits"] or row["copies"] for row in rows)}


def _torch_cost(name: str) -> dict[str, Any]:
    import torch

    net = NETS[name]
    step = gpu_sides.torch_sides(net, net.batch, "float32")["torch"]
    step()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    found: dict[str, Any] = {"torch memory": torch.cuda.max_memory_reserved()}
    try:
        found["torch driver calls"] = gpu_launches.per_step(step, torch.cuda.synchronize)
    except gpu_launches.UnavailableError as error:
        found["torch driver calls"] = str(error)
    return found


def bench(check: Check) -> dict[str, Any]:
    """Milliseconds a training step, beside PyTorch's in both layouts, by precision."""
    rows: list[dict[str, Any]] = []
    tasks = [(name, NETS[name].batch) for name in check.nets]
    tasks += [(name, LARGE[name]) for name in check.nets if name in LARGE]
    todo = [(*task, precision) for precision in gpu_sides.PRECISIONS for task in tasks]
    for place, (name, batch, precision) in enumerate(todo):
        row: dict[str, Any] = {"net": name, "batch": batch, "precision": precision}
        if check.left < 5:
            rows.append({**row, "left out": "out of time"})
            continue
        patience = min(20.0, check.left / (len(todo) - place))
        try:
            row["ms"] = _compared(check.be, name, batch, precision, patience)
        except Exception as error:
            # PyTorch's want of memory is no MemoryError; rows that are measured stay either way.
            dualcnn.backend.recover(error)
            wanting = dualcnn.backend.ran_out(error) or "out of memory" in str(error)
            kind = "out of memory" if wanting else type(error).__name__
            row["left out"] = f"{kind}: {error}"[:500]
            row["failed"] = not wanting
        rows.append(row)
        _empty_pools(check.be)
    return {"rows": rows, "passed": not any(row.get("failed") for row in rows)}


def _empty_pools(be: Backend) -> None:
    """Give back what one side keeps, or the next has less."""
    be.release()
    if not gpu_sides.torch_problem():
        import torch

        torch.cuda.empty_cache()


def _compared(
    be: Backend, name: str, batch: int, precision: str, patience: float
) -> dict[str, float]:
    with gpu_sides.using(be, precision):
        sides = {
            "dualcnn": gpu_sides.dualcnn_side(NETS[name], batch, be, precision),
            "captured": gpu_sides.dualcnn_side(NETS[name], batch, be, precision, captured=True),
        }
        if not gpu_sides.torch_problem():
            sides |= gpu_sides.torch_sides(NETS[name], batch, precision)
        return medians(sides, Clock(be), patience=patience)


def probe(check: Check) -> dict[str, Any]:
    """Which way of doing things the primitives should take."""
    be: Any = check.be
    return {
        "launch us": gpu_probe.launch_costs(be),
        "rows": gpu_probe.ask(be, patience=max(1.0, min(3.0, check.left / 20))),
        "passed": True,
    }


SECTIONS: dict[str, Section] = {
    "detect": detect,
    "lockstep": lockstep,
    "cost": cost,
    "bench": bench,
    "probe": probe,
    "suite": suite,
}
"""In the order they run; the suite takes the time that is left."""

SHARES = {"bench": 0.5, "probe": 0.75}
"""Of the time that is left when a section begins, what it may take."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help=f"of {', '.join(SECTIONS)}; comma between")
    parser.add_argument("--nets", default="a0,a1,b,c,d", help=f"of {', '.join(NETS)}")
    parser.add_argument("--device", default="cuda", help='"cuda" or "cuda:1"')
    parser.add_argument("--minutes", type=float, default=8.0, help="for all (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="default: benchmarks/gpu-<device>-<date>.json")
    options = parser.parse_args(argv)
    options.only = list(SECTIONS) if options.only is None else options.only.split(",")
    options.nets = options.nets.split(",")
    for given, known in ((options.only, SECTIONS), (options.nets, NETS)):
        for name in given:
            if name not in known:
                parser.error(f"unknown {name!r}; expected some of {', '.join(known)}")
    return options


def run(check: Check, names: list[str]) -> dict[str, Any]:
    """The sections; one that raises is recorded and the next one runs."""
    packages = [p for p in ("torch", "cupy-cuda12x", "cupy-cuda13x") if _installed(p)]
    found: dict[str, Any] = {"machine": machine(packages)}
    end = check._end
    for name in [name for name in SECTIONS if name in names]:
        start = time.monotonic()
        check._end = start + SHARES.get(name, 1.0) * max(0.0, end - start)
        try:
            found[name] = SECTIONS[name](check)
        except Exception as error:
            found[name] = {"passed": False, "raised": f"{type(error).__name__}: {error}"[:3000]}
        found[name]["took"] = round(time.monotonic() - start, 1)
        check._end = end
        gpu_report.show(name, found[name])
    found["passed"] = all(found[name].get("passed", True) for name in names)
    return found


def _installed(package: str) -> bool:
    import importlib.metadata

    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    try:
        be = dualcnn.backend.get(options.device)
    except dualcnn.backend.BackendUnavailableError as error:
        print(f"no usable GPU, nothing was measured: {error.problem}", file=sys.stderr)
        return NO_GPU
    except ValueError as error:
        print(f"--device: {error}", file=sys.stderr)
        return USAGE
    with dualcnn.use(be):
        found = run(Check(be, options.minutes, options.nets), options.only)
    path = options.json or gpu_report.default_path(ROOT / "benchmarks", found)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, default=str) + "\n")
    print(f"\n{'all right' if found['passed'] else 'SOMETHING IS WRONG'}; figures: {path}")
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
