"""Kernels that a training step starts, counted on the stand-in.

    python tests/stand_in/launches.py

The nets are those of scripts/bench.py. A product is one launch, though cuBLAS may take two.
"""

from __future__ import annotations

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

import gpu_sides  # noqa: E402
import proof  # noqa: E402
from bench_nets import NETS  # noqa: E402

import dualcnn  # noqa: E402
from dualcnn.backend import CupyBackend  # noqa: E402
from stand_in import counters, cupy  # noqa: E402


def launches(name: str) -> int:
    """Of one step of that net, once it is warm."""
    be, net = CupyBackend(cupy), NETS[name]
    with dualcnn.use(be):
        step = gpu_sides.dualcnn_side(net, net.batch, be)
        step()
        before = counters.launches
        step()
        return counters.launches - before


if __name__ == "__main__":
    rows = [(name, net.what, net.batch, launches(name)) for name, net in NETS.items()]
    print(proof.table(("net", "what", "batch", "launches"), rows))
