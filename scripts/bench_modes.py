"""What the benchmark can measure, within a process of a fixed number of threads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import bench_apart
import bench_layers
import bench_memory
import bench_ops
import bench_sides
from bench_machine import machine
from bench_nets import NETS
from bench_report import Table, ratios
from bench_timing import Side, compare, figures, whole
from threadpoolctl import threadpool_limits

import dualcnn

MODES = ("layers", "ops", "memory", "check")
"""Besides the step of whole nets."""

TITLES = {
    "nets": "{what}, {threads}: milliseconds, and dualcnn's over those of others",
    "memory": "{what}, {threads}: megabytes of growth, and dualcnn's over those of others",
    "check": "{what}, {threads}: loss of each step, or the first logit",
    "layers": "layers, {threads}: milliseconds, PyTorch's in the better memory layout of each",
    "ops": "operations, {threads}: milliseconds, PyTorch's in the better memory layout of each",
}

CHECKED_STEPS = 3
FIRST_TOLERANCE = 1e-3
"""What losses of the same weights may differ by: float32 in another order, and Winograd's."""

LATER_TOLERANCE = 2e-2
"""And after a few steps, in which two right implementations drift apart."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Print a table; the machine and the rows as they go into JSON."""
    (options.threads,) = options.threads
    dualcnn.backend.pool.resize(options.threads)
    packages = [p for name in options.against for p in bench_sides.LIBRARIES[name]]
    about = machine(packages)
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    threads = f"{options.threads} thread" + "s" * (options.threads > 1)
    options.what = "inference" if options.inference else "training step"
    run = {"layers": layers, "ops": ops, "memory": memory, "check": check, "nets": nets}
    print(f"\n{TITLES[options.mode].format(what=options.what, threads=threads)}")
    with threadpool_limits(options.threads, user_api="blas"):
        rows = list(run[options.mode](options))
    return {"machine": about, "results": rows}


def chosen(options: argparse.Namespace) -> Iterator[tuple[str, bench_sides.Task]]:
    """Each net with each batch size."""
    for name in options.nets:
        net = NETS[name]
        for batch in options.scan or [options.batch or net.batch]:
            yield name, bench_sides.Task.of(net, batch, not options.inference, options.threads)


def row_of(name: str, task: bench_sides.Task, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "net": name,
        "batch": len(task.images),
        "threads": options.threads,
        "what": options.what,
    }


NET_WIDTH = {"net": 33}


def nets(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The step of each net."""
    names = bench_sides.names(options.against, options.captured)
    over = [f"/{library}" for library in options.against]
    if options.captured:
        over += [f"captured/{library}" for library in options.against]
    table = Table(["net", "batch", *names, *over, "load", "quiet"], NET_WIDTH)
    for name, task in chosen(options):
        with present(names, name, task, options) as sides:
            load = compare(sides, options.repeats, options.patience)
        row = {**row_of(name, task, options), **figures(sides, load)}
        row["ratios"] = ratios(row["ms"], options.against)
        if "torch" in row["ratios"]:
            row["ratio"] = row["ratios"]["torch"]
        captured = {}
        if options.captured:
            captured = ratios(row["ms"], options.against, bench_sides.CAPTURED)
            row["captured ratios"] = captured
        table.row([
            f"{name} {task.net.what}", row["batch"], *row["ms"].values(),
            *row["ratios"].values(), *captured.values(), load, min(row["quiet_samples"].values()),
        ])  # fmt: skip
        for side, cores in row["cores"].items():
            if cores > options.threads + 0.25:
                print(f"  {side} kept {cores:.1f} cores busy")
        if not all(row["quiet_samples"].values()):
            print("  other processes were busy all the time: of the sides without a quiet sample")
            print("  these are the others, and the ratios mean little")
        yield row


@contextmanager
def present(
    names: Sequence[str], net: str, task: bench_sides.Task, options: argparse.Namespace
) -> Iterator[Sequence[Side]]:
    """The sides, which have made a step and agree."""
    if options.apart:
        size = len(task.images), task.train, task.threads
        with bench_apart.apart(names, net, *size, options.captured) as sides:
            agree({side.name: side.first for side in sides}, FIRST_TOLERANCE)
            yield sides
    else:
        steps = bench_sides.build(task, names, options.captured)
        agree({side: step() for side, step in steps.items()}, FIRST_TOLERANCE)
        yield [Side(side, whole(step)) for side, step in steps.items()]


def agree(results: Mapping[str, float], tolerance: float) -> None:
    """Leave with an error unless all sides computed the same."""
    ours = results["dualcnn"]
    for side, theirs in results.items():
        if not abs(theirs - ours) <= tolerance * max(1.0, abs(ours)):
            sys.exit(f"{side} computed {theirs:.6g} where dualcnn computed {ours:.6g}")


def check(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Losses of the first steps, or in inference the first logit."""
    names = bench_sides.names(options.against, options.captured)
    table = Table(["net", "step", *names], NET_WIDTH)
    for name, task in chosen(options):
        steps = bench_sides.build(task, names, options.captured)
        for i in range(CHECKED_STEPS if task.train else 1):
            results = {side: step() for side, step in steps.items()}
            table.row([f"{name} {task.net.what}", i, *(f"{v:.5f}" for v in results.values())])
            agree(results, LATER_TOLERANCE if i else FIRST_TOLERANCE)
            yield {**row_of(name, task, options), "step": i, "results": results}


def memory(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What a process grows by from before the first step to the peak of some steps."""
    names = bench_sides.names(options.against, options.captured)
    over = [f"/{library}" for library in options.against]
    if options.captured:
        over += [f"captured/{library}" for library in options.against]
    table = Table(["net", "batch", *names, *over], NET_WIDTH)
    for name, task in chosen(options):
        batch = len(task.images)
        args = names, name, batch, task.train, task.threads, options.captured
        megabytes = bench_memory.grown(*args)
        row = {**row_of(name, task, options), "mb": megabytes}
        row["ratios"] = ratios(megabytes, options.against)
        captured = {}
        if options.captured:
            captured = ratios(megabytes, options.against, bench_sides.CAPTURED)
            row["captured ratios"] = captured
        table.row([
            f"{name} {task.net.what}", batch, *megabytes.values(),
            *row["ratios"].values(), *captured.values(),
        ])  # fmt: skip
        yield row


def layers(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Forward and backward of each layer."""
    for name, task in chosen(options):
        print(f"\n{name} {task.net.what}, batch {len(task.images)}")
        rows = bench_layers.rows(
            task.net, len(task.images), options.threads, options.layers == "groups",
            options.repeats, options.patience,
        )  # fmt: skip
        part = 42 if options.layers == "groups" else 20
        for row in directions(rows, {"part": part, "input": 13}):
            yield {**row_of(name, task, options), **row}


def ops(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Forward and backward of single operations."""
    rows = bench_ops.rows(options.threads, options.repeats, options.patience)
    for row in directions(rows, {"part": 23, "input": 13, "algorithm": 9}):
        yield {"threads": options.threads, **row}


def directions(
    rows: Iterable[dict[str, Any]], texts: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """Print forward and backward of parts, a line a side of dualcnn, and their sums."""
    kinds = ("forward", "backward")
    numbers = ["forward", "torch", "ratio", "backward", "torch", "ratio", "ms behind", "quiet"]
    table = Table([*texts, *numbers], texts)
    sums = [0.0] * 4
    for row in rows:
        # The layout that is faster at both together, even where a whole net would use the other.
        theirs = min((s for s in row["ms"] if s.startswith("torch")), key=row["ms"].__getitem__)
        quiet = min(row["quiet_samples"].values())
        for side in (s for s in row["ms"] if s.startswith("dualcnn")):
            times = [row[f"{kind}_ms"][by] for kind in kinds for by in (side, theirs)]
            named = {**row, "algorithm": side.removeprefix("dualcnn").strip() or "chosen"}
            table.row([*(named[text] for text in texts), *against(times), quiet])
            if side == "dualcnn":
                sums = [total + ms for total, ms in zip(sums, times, strict=True)]
        yield row
    table.row(["total", *[""] * (len(texts) - 1), *against(sums), ""])


def against(times: Sequence[float]) -> list[float]:
    """Forward of both with its ratio, backward with its, and how far dualcnn is behind."""
    forward, torch_forward, backward, torch_backward = times
    behind = forward + backward - torch_forward - torch_backward
    return [
        *(forward, torch_forward, forward / torch_forward),
        *(backward, torch_backward, backward / torch_backward),
        behind,
    ]
