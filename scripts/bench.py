"""Time training steps of small CNNs in dualcnn and, interleaved in the same run, in PyTorch.

    python scripts/bench.py --against torch --nets a1 --threads 2

Both sides get the same layers, batch, loss and optimizer. A sample is a few steps in a row; the
sides take turns, so a change of the machine's load meets them all. Samples during which other
processes took more than a share of a core are left out, and that load is printed. Medians.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController, threadpool_limits

import dualcnn
from dualcnn import nn, optim

FOREIGN_LOAD = 0.15
"""Cores that other processes may take during a sample that counts."""


def lenet(layers: Any) -> list[Any]:
    return [
        layers.Conv2d(1, 6, 5, padding=2), layers.ReLU(), layers.MaxPool2d(2),
        layers.Conv2d(6, 16, 5), layers.ReLU(), layers.MaxPool2d(2),
        layers.Flatten(), layers.Linear(400, 120), layers.ReLU(),
        layers.Linear(120, 84), layers.ReLU(), layers.Linear(84, 10),
    ]  # fmt: skip


def conv_conv_pool(layers: Any) -> list[Any]:
    return [
        layers.Conv2d(1, 32, 3), layers.ReLU(), layers.Conv2d(32, 64, 3), layers.ReLU(),
        layers.MaxPool2d(2), layers.Flatten(),
        layers.Linear(9216, 128), layers.ReLU(), layers.Linear(128, 10),
    ]  # fmt: skip


def vgg(layers: Any) -> list[Any]:
    out: list[Any] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 0):
        if width:
            out += [
                layers.Conv2d(channels, width, 3, padding=1, bias=False),
                layers.BatchNorm2d(width), layers.ReLU(),
            ]  # fmt: skip
            channels = width
        else:
            out.append(layers.MaxPool2d(2))
    return [*out, layers.Flatten(), layers.Linear(4096, 10)]


def one_conv(layers: Any) -> list[Any]:
    return [
        layers.Conv2d(1, 8, 3), layers.ReLU(), layers.MaxPool2d(2), layers.Flatten(),
        layers.Linear(8 * 169, 10),
    ]  # fmt: skip


@dataclass(frozen=True)
class Net:
    """A network of the comparison."""

    what: str
    layers: Callable[[Any], list[Any]]
    batch: int
    image: tuple[int, int, int]
    optimizer: Callable[[Any, Any], Any]


NETS = {
    "a0": Net("LeNet-5", lenet, 64, (1, 28, 28), lambda o, p: o.Adam(p, 1e-3)),
    "a1": Net(
        "conv32-conv64-pool-fc128-fc10", conv_conv_pool, 128, (1, 28, 28),
        lambda o, p: o.Adam(p, 1e-3),
    ),
    "b": Net("VGG-like", vgg, 64, (3, 32, 32), lambda o, p: o.SGD(p, 0.01, momentum=0.9)),
    "e": Net("conv8-pool-dense", one_conv, 1, (1, 28, 28), lambda o, p: o.SGD(p, 0.01)),
}  # fmt: skip


@dataclass
class Side:
    """One contender: its step, and the milliseconds of its samples."""

    name: str
    step: Callable[[], float]
    times: list[float] = field(default_factory=list)
    loaded: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.times or self.loaded)


def dualcnn_step(net: Net, images: Any, labels: Any, train: bool) -> Callable[[], float]:
    dualcnn.manual_seed(0)
    model = nn.Sequential(*net.layers(nn))
    optimizer = net.optimizer(optim, model.parameters())
    x, loss_of = dualcnn.asarray(images), nn.CrossEntropyLoss()

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(model(x), labels)
        loss.backward()
        optimizer.step()
        return float(loss)

    def infer() -> float:
        with dualcnn.no_grad():
            return float(model(x).data[0, 0])

    return step if train else infer


def torch_step(
    net: Net, images: Any, labels: Any, train: bool, channels_last: bool
) -> Callable[[], float]:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(*net.layers(torch.nn))
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = net.optimizer(torch.optim, model.parameters())
    loss_of = torch.nn.CrossEntropyLoss()

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def infer() -> float:
        with torch.inference_mode():
            return float(model(x)[0, 0])

    return step if train else infer


def busy_seconds() -> tuple[float, float]:
    """Processor seconds that the whole machine and this process have used (Linux)."""
    own = sum(os.times()[:4])
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return own, own
    ticks = [int(f) for f in fields]
    used = sum(ticks[i] for i in (0, 1, 2, 5, 6, 7) if i < len(ticks))
    return used / os.sysconf("SC_CLK_TCK"), own


def sample(step: Callable[[], float], steps: int) -> tuple[float, float]:
    """Milliseconds a step, and the cores that other processes took meanwhile."""
    # The other side's threads may still spin, and its data fills the cache: one step untimed.
    step()
    machine, own = busy_seconds()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    seconds = time.perf_counter() - start
    machine_after, own_after = busy_seconds()
    foreign = ((machine_after - machine) - (own_after - own)) / seconds
    return seconds / steps * 1e3, foreign


def compare(sides: list[Side], repeats: int, patience: float) -> float:
    """Sample the sides in turn until each has `repeats` quiet samples; the median foreign load."""
    steps = {}
    for side in sides:
        side.step()
        side.step()
        steps[side.name] = max(1, round(150 / max(sample(side.step, 1)[0], 0.01)))
    loads = []
    deadline = time.perf_counter() + patience
    gc.disable()
    while min(len(s.times) for s in sides) < repeats and time.perf_counter() < deadline:
        for side in sides:
            milliseconds, foreign = sample(side.step, steps[side.name])
            loads.append(foreign)
            (side.times if foreign <= FOREIGN_LOAD else side.loaded).append(milliseconds)
    gc.enable()
    return statistics.median(loads)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    blas = [
        f"{c['internal_api']} {c['version']}"
        for c in ThreadpoolController().info()
        if c["user_api"] == "blas"
    ]
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": blas[0] if blas else "unknown",
        "dualcnn": dualcnn.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--against", choices=["torch", "nothing"], default="nothing")
    parser.add_argument("--nets", default="a1", help=f"of {', '.join(NETS)}; comma between")
    parser.add_argument("--batch", type=int, help="another batch size than the net's own")
    parser.add_argument("--threads", type=int, default=dualcnn.backend.pool.size)
    parser.add_argument("--inference", action="store_true", help="forward alone")
    parser.add_argument("--repeats", type=int, default=9, help="quiet samples of each side")
    parser.add_argument("--patience", type=float, default=120, help="seconds a net at most")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(argv)
    unknown = [n for n in options.nets.split(",") if n not in NETS]
    if unknown:
        parser.error(f"unknown net {unknown[0]!r}; expected some of {', '.join(NETS)}")
    return options


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    about = machine()
    if options.against == "torch":
        try:
            import torch
        except ImportError:
            sys.exit("--against torch needs PyTorch: pip install torch")
        torch.set_num_threads(options.threads)
        about["torch"] = torch.__version__
    dualcnn.backend.pool.resize(options.threads)
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    what = "inference" if options.inference else "training step"
    results = []
    with threadpool_limits(options.threads, user_api="blas"):
        for name in options.nets.split(","):
            net = NETS[name]
            batch = options.batch or net.batch
            rng = np.random.default_rng(0)
            images = rng.standard_normal((batch, *net.image), dtype=np.float32)
            labels = rng.integers(0, 10, batch)
            train = not options.inference
            sides = [Side("dualcnn", dualcnn_step(net, images, labels, train))]
            if options.against == "torch":
                for layout, last in (("torch", False), ("torch channels-last", True)):
                    sides.append(Side(layout, torch_step(net, images, labels, train, last)))
            load = compare(sides, options.repeats, options.patience)
            row = {
                "net": name, "batch": batch, "threads": options.threads, "what": what,
                "ms": {s.name: round(s.median, 3) for s in sides},
                "quiet_samples": {s.name: len(s.times) for s in sides},
                "foreign_load": round(load, 3),
            }  # fmt: skip
            if len(sides) > 1:
                row["ratio"] = round(sides[0].median / min(s.median for s in sides[1:]), 3)
            results.append(row)
            times = ", ".join(f"{s.name} {s.median:.2f} ms" for s in sides)
            ratio = f", ratio {row['ratio']:.2f}" if "ratio" in row else ""
            quiet = min(row["quiet_samples"].values())
            print(
                f"{name} ({net.what}, batch {batch}), {what}, {options.threads} thread(s): {times}"
                f"{ratio}; foreign load {load:.2f} cores, {quiet} quiet samples a side"
            )
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
