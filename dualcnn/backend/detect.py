"""Which backends this machine can use, and for each that it can't, why and what to do."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

__all__ = ["BackendUnavailableError", "Status", "cupy_module", "cupy_status"]

INSTALL = (
    "install the build for the CUDA version that nvidia-smi shows: pip install cupy-cuda13x or "
    "pip install cupy-cuda12x (with conda: conda install -c conda-forge cupy)"
)

BUILDS = (12, 13)
"""CUDA's versions that CuPy has a build for, `cupy-cuda12x` and `cupy-cuda13x`."""

OLD_DRIVER, NO_DEVICE = 35, 100
"""CUDA's numbers of the errors that say: no driver or one older than the library; no device."""


class BackendUnavailableError(RuntimeError):
    """A backend was asked for that this machine can't use; `problem` is why, and how to mend it."""

    def __init__(self, problem: str) -> None:
        super().__init__(f'{problem}. To run on the CPU: dualcnn.use("cpu")')
        self.problem = problem


@dataclass(frozen=True)
class Status:
    """Whether a backend is usable, why or why not, and what would make it so."""

    name: str
    usable: bool
    reason: str
    hint: str = ""
    devices: int = 0

    def __str__(self) -> str:
        state = "usable" if self.usable else "not usable"
        return f"{self.name}: {state}: {self.reason}" + (f"; {self.hint}" if self.hint else "")


def cupy_module() -> Any:
    """CuPy, imported on the first call and never before."""
    import cupy

    return cupy


@cache
def cupy_status() -> Status:
    """Look for CuPy, then for a device, then try one kernel and one product on it."""
    try:
        cp = cupy_module()
    except ImportError as error:
        if getattr(error, "name", None) == "cupy":
            return Status("cupy", False, "CuPy is not installed", INSTALL)
        several = _packages()
        hint = _keep_one(several) if len(several) > 1 else INSTALL
        return Status("cupy", False, f"CuPy is installed but can't be imported: {error}", hint)
    return probe(cp)


def probe(cp: Any) -> Status:
    """The second and third step of detection, with the array module given."""
    _warn_of_two_packages()
    try:
        devices = int(cp.cuda.runtime.getDeviceCount())
    except Exception as error:
        if getattr(error, "status", None) == NO_DEVICE:
            return _no_device(cp)
        return Status("cupy", False, *_driver(cp, error))
    if devices == 0:
        return _no_device(cp)
    try:
        x = cp.ones((2, 2), dtype="float32")
        total = float(cp.sum(cp.matmul(x + x, x)))
    except Exception as error:
        return _not_working(cp, devices, str(error))
    if total != 16.0:
        return _not_working(cp, devices, f"a 2x2 product summed to {total}, expected 16")
    return Status("cupy", True, f"CuPy {cp.__version__}, {_device_names(cp, devices)}", "", devices)


def _no_device(cp: Any) -> Status:
    return Status(
        "cupy",
        False,
        f"CuPy {cp.__version__} found a driver but no device",
        "check nvidia-smi and the environment variable CUDA_VISIBLE_DEVICES "
        f"({os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})",
    )


def _driver(cp: Any, error: Exception) -> tuple[str, str]:
    """What is wrong with the driver, and what to do."""
    name = f"CuPy {cp.__version__}"
    try:
        has, needs = cp.cuda.runtime.driverGetVersion(), cp.cuda.runtime.runtimeGetVersion()
    except Exception:
        has = needs = 0
    if getattr(error, "status", None) == OLD_DRIVER and has:
        return (
            f"{name} is built for CUDA {_version(needs)}, the NVIDIA driver supports up to "
            f"{_version(has)} ({error})",
            _for_driver(has),
        )
    return (
        f"{name} found no usable NVIDIA driver ({error})",
        "check that nvidia-smi runs and that the driver supports CuPy's CUDA version",
    )


def _for_driver(cuda: int) -> str:
    """What to do where CuPy wants more than the driver's CUDA version."""
    fitting = [build for build in BUILDS if build <= cuda // 1000]
    if not fitting:
        return f"update the driver: CuPy wants CUDA {BUILDS[0]} or newer"
    found = _packages()
    remove = f"pip uninstall {' '.join(found)}, then " if found else ""
    return (
        f"update the driver, or install the build for CUDA {fitting[-1]}: {remove}"
        f"pip install cupy-cuda{fitting[-1]}x"
    )


def _version(number: int) -> str:
    """CUDA's 13000 as 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _not_working(cp: Any, devices: int, what: str) -> Status:
    return Status(
        "cupy",
        False,
        f"CuPy {cp.__version__} sees {devices} device(s), but a first kernel and product failed: "
        f"{what.strip().splitlines()[0] if what.strip() else 'no message'}",
        f'CUDA libraries may be missing: pip install "{_wheel(cp)}[ctk]" brings them',
        devices,
    )


def _wheel(cp: Any) -> str:
    """The name on the package index of the CuPy that is installed."""
    return f"cupy-cuda{cp.cuda.runtime.runtimeGetVersion() // 1000}x"


def _device_names(cp: Any, devices: int) -> str:
    names = [cp.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in range(devices)]
    return ", ".join(f"cuda:{i} {name}" for i, name in enumerate(names))


def _packages() -> list[str]:
    """The installed distributions that bring the module `cupy`."""
    import importlib.metadata

    return sorted(
        {
            name
            for distribution in importlib.metadata.distributions()
            if (name := (distribution.metadata["Name"] or "").lower()).startswith("cupy")
            and (name == "cupy" or name.startswith(("cupy-cuda", "cupy-rocm")))
        }
    )


def _keep_one(found: list[str]) -> str:
    return (
        f"several CuPy packages are installed ({', '.join(found)}) and overwrite each other; "
        f"keep one: pip uninstall {' '.join(found)}, then {INSTALL}"
    )


def _warn_of_two_packages() -> None:
    found = _packages()
    if len(found) > 1:
        warnings.warn(_keep_one(found), stacklevel=2)


def numpy_status(threads: int) -> Status:
    """NumPy always works; say with how many threads."""
    return Status("numpy", True, f"NumPy {np.__version__}, {threads} thread(s)")
