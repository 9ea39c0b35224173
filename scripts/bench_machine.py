"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from threadpoolctl import ThreadpoolController

import dualcnn


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Processor, versions of these packages among others, load and date."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    blas = [
        f"{c['internal_api']} {c['version']}"
        for c in ThreadpoolController().info()
        if c["user_api"] == "blas"
    ]
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return {
        "processor": processor,
        "cores": len(cores) or os.cpu_count(),
        "python": platform.python_version(),
        "numpy": metadata.version("numpy"),
        "blas": blas[0] if blas else "unknown",
        "dualcnn": dualcnn.__version__,
        **{name: _version(name) for name in packages},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": time.strftime("%Y-%m-%d"),
    }


def _version(module: str) -> str:
    """That of whichever distribution holds a module: tensorflow-cpu and others have tensorflow."""
    found = metadata.packages_distributions().get(module, [module])
    return metadata.version(found[0])


def held_to(threads: int) -> dict[str, str]:
    """The environment of a process whose libraries all compute with so many threads.

    Most of them read it once, when they are loaded.
    """
    names = ("OPENBLAS", "OMP", "MKL", "VECLIB_MAXIMUM", "BLIS")
    environment = {f"{name}_NUM_THREADS": str(threads) for name in names}
    # NPROC is how many threads JAX starts; TensorFlow is told by its own functions.
    more = {"DUALCNN_THREADS": str(threads), "NPROC": str(threads)}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    return {**os.environ, **environment, **more, **quiet}
