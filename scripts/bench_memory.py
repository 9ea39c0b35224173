"""How much a process grows while a network trains; each side in an interpreter of its own.

    python scripts/bench_memory.py torch a1 128 train 2
    python scripts/bench_memory.py "dualcnn captured" a1 128 train 2 processes

prints the megabytes between the moment before the first step and the peak of some steps (Linux).
Processes that share the work count, as they are at the end of a step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_sides
from bench_nets import NETS

import dualcnn

STEPS = 5


def grown(
    sides: Sequence[str],
    net: str,
    batch: int,
    train: bool,
    threads: int,
    captured: str | None = None,
) -> dict[str, Any]:
    """Megabytes by side, for `bench_sides.build`'s names of sides."""
    found = {}
    for side in sides:
        what = [side, net, str(batch), "train" if train else "infer", str(threads)]
        what += [captured] if captured else []
        process = subprocess.run(
            [sys.executable, __file__, *what], capture_output=True, text=True, check=False
        )
        if process.returncode:
            sys.exit(f"{side} failed:\n{process.stderr}")
        found[side] = json.loads(process.stdout)
    return found


def status(key: str) -> float:
    """A size of this process in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise LookupError(f"the kernel says no {key}")


def shared() -> float:
    """Of this process and its children, each page counted once, in megabytes."""
    total = 0.0
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) / 1024
    return total


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("side", help='"torch", "dualcnn", "dualcnn captured"')
    parser.add_argument("net", choices=sorted(NETS))
    parser.add_argument("batch", type=int)
    parser.add_argument("what", choices=("train", "infer"))
    parser.add_argument("threads", type=int)
    parser.add_argument("captured", nargs="?", choices=("threads", "processes"))
    args = parser.parse_args(argv)
    task = bench_sides.Task.of(NETS[args.net], args.batch, args.what == "train", args.threads)
    dualcnn.backend.pool.resize(task.threads)
    step = bench_sides.build(task, [args.side], args.captured)[args.side]
    # The peak so far, that of imports, is forgotten.
    Path("/proc/self/clear_refs").write_text("5")
    before, all_before, all_after = status("VmRSS"), shared(), 0.0
    for _ in range(STEPS):
        step()
        all_after = max(all_after, shared())
    print(json.dumps(round(max(status("VmHWM") - before, all_after - all_before), 1)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
