"""What `gpu_check.py` found, as a few lines a section."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_report import Table, written

GOALS = {"a0": 1.0, "a1": 1.0, "b": 1.3, "c": 1.5}
"""First marks for step time over PyTorch's better layout, at the nets' own batch in float32."""

MIB = 1 << 20
SIDES = "dualcnn", "captured", "torch", "torch channels-last"


def default_path(folder: Path, found: dict[str, Any]) -> Path:
    """`gpu-<device>-<date>.json`."""
    device = found.get("detect", {}).get("device", "device")
    name = re.sub(r"[^a-z0-9]+", "-", f"{device}".lower()).strip("-")
    return folder / f"gpu-{name}-{found['machine']['date']}.json"


def ratio(ms: dict[str, float]) -> float | None:
    """Our time over the better of PyTorch's layouts."""
    others = [value for name, value in ms.items() if name.startswith("torch")]
    return round(ms["dualcnn"] / min(others), 3) if others else None


def show(name: str, found: dict[str, Any]) -> None:
    """Print a section."""
    verdict = "ok" if found.get("passed", True) else "FAILED"
    print(f"\n{name}: {verdict}, {found['took']} s", flush=True)
    for key in ("raised", "left out", "said"):
        if found.get(key):
            print(f"  {key}: {found[key]}")
    _SHOWN.get(name, lambda found: None)(found)


def _detect(found: dict[str, Any]) -> None:
    for text in found.get("backends", {}).values():
        print(f"  {text}")
    print(f"  torch: {found.get('torch')}")


def _suite(found: dict[str, Any]) -> None:
    print("  " + ", ".join(f"{n} {word}" for word, n in found.get("counts", {}).items()))
    for line in found.get("failures", [])[:20]:
        print(f"  {line}")


def _lockstep(found: dict[str, Any]) -> None:
    exact, single = found.get("float64", {}), found.get("float32", {})
    if "furthest" in exact:
        print(
            f"  float64: {exact['steps']} steps, furthest from NumPy {exact['furthest']:.1e}, "
            f"allowed {exact['allowed']:.0e}"
        )
    if "times" in single:
        print(
            f"  float32: gradients {single['error']:.1e} from float64, PyTorch's on "
            f"{single['torch on']} {single['torch error']:.1e}: {single['times']:.2f} times, "
            f"allowed {single['allowed']:.0f}"
        )
    elif "left out" in single:
        print(f"  float32: left out, {single['left out']}")


def _cost(found: dict[str, Any]) -> None:
    if not found.get("rows"):
        return
    heads = ("net", "batch", "waits", "copies", "launches", "torch's", "MiB", "torch's")
    table = Table(heads, {"net": 3})
    for row in found["rows"]:
        calls, theirs = row["driver calls"], row.get("torch driver calls")
        table.row(
            [
                row["net"], row["batch"], row["waits"], row["copies"],
                calls["launches"] if isinstance(calls, dict) else None,
                theirs["launches"] if isinstance(theirs, dict) else None,
                round(row["memory"]["pool"] / MIB) if "pool" in row["memory"] else None,
                round(row["torch memory"] / MIB) if "torch memory" in row else None,
            ]
        )  # fmt: skip
    for row in found["rows"]:
        for line in row["where"]:
            print(f"  {row['net']}: {line}")
        if isinstance(row["driver calls"], str):
            print(f"  {row['net']}: driver calls not counted: {row['driver calls']}")


def _bench(found: dict[str, Any]) -> None:
    if not found.get("rows"):
        return
    heads = "net", "batch", "precision", *SIDES, "ratio", "goal"
    table = Table(heads, {"net": 3, "precision": 9})
    own: set[tuple[str, str]] = set()
    for row in found["rows"]:
        key = (row["net"], row["precision"])
        if "ms" not in row:
            print(
                f"  {row['net']}, {row['batch']}, {row['precision']}: left out, {row['left out']}"
            )
            continue
        first = key not in own and row["precision"] == "float32"
        own.add(key)
        ms = row["ms"]
        times = [ms.get(side) for side in SIDES]
        goal = GOALS.get(row["net"]) if first else None
        table.row([row["net"], row["batch"], row["precision"], *times, ratio(ms), goal])


def _probe(found: dict[str, Any]) -> None:
    costs = ", ".join(f"{name} {us}" for name, us in found.get("launch us", {}).items())
    print(f"  host microseconds to queue: {costs}")
    for row in found.get("rows", []):
        if "failed" in row:
            print(f"  {row['question']}: failed: {row['failed']}")
            continue
        times = ", ".join(f"{way} {written(float(ms))}" for way, ms in row["ms"].items())
        mark = "" if row["used"] == row["fastest"] else f"  <-- {row['fastest']} is faster"
        print(f"  {row['question']}: {times} ms; in use: {row['used']}{mark}")


_SHOWN: dict[str, Callable[[dict[str, Any]], None]] = {
    "detect": _detect,
    "suite": _suite,
    "lockstep": _lockstep,
    "cost": _cost,
    "bench": _bench,
    "probe": _probe,
}
