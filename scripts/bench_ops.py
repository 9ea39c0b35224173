"""Forward and backward of single operations, each algorithm of a convolution, beside PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from bench_layers import directions
from bench_sides import CHANNELS_LAST
from bench_timing import Side, compare, figures

from dualcnn import ops
from dualcnn.ops.algorithms import NAMES


@dataclass(frozen=True)
class Case:
    """An operation of `dualcnn.ops`, the same in `torch.nn.functional`, and its inputs' shapes."""

    what: str
    op: str
    shapes: Sequence[tuple[int, ...]]
    options: dict[str, Any] = field(default_factory=dict)
    torch_op: str = ""
    torch_options: dict[str, Any] | None = None

    @property
    def in_torch(self) -> tuple[str, dict[str, Any]]:
        return self.torch_op or self.op, self.torch_options or self.options


def conv(
    batch: int, size: int, channels: int, outputs: int, kernel: int, padding: int = 0,
    stride: int = 1, groups: int = 1,
) -> Case:  # fmt: skip
    kind = "depthwise" if groups > 1 else "pointwise" if kernel == 1 else "conv2d"
    what = f"{kind} {kernel}x{kernel} {channels}-{outputs}" + (f" s{stride}" * (stride > 1))
    return Case(
        what,
        "conv2d",
        [(batch, channels, size, size), (outputs, channels // groups, kernel, kernel), (outputs,)],
        {"stride": stride, "padding": padding, "groups": groups},
    )


def map_of(batch: int, size: int, channels: int) -> tuple[int, int, int, int]:
    return batch, channels, size, size


MAPS = [map_of(64, 32, 64), map_of(64, 16, 128), map_of(64, 8, 256)]

CASES = [
    conv(64, 28, 1, 6, 5, 2),
    conv(128, 28, 1, 32, 3),
    conv(128, 26, 32, 64, 3),
    conv(64, 32, 3, 64, 3, 1),
    conv(64, 32, 64, 64, 3, 1),
    conv(64, 16, 128, 128, 3, 1),
    conv(64, 8, 256, 256, 3, 1),
    conv(32, 4, 512, 512, 3, 1),
    conv(32, 32, 64, 128, 3, 1, stride=2),
    conv(64, 32, 32, 32, 3, 1, groups=32),
    conv(64, 32, 64, 64, 3, 1, stride=2, groups=64),
    conv(64, 16, 128, 128, 3, 1, groups=128),
    conv(64, 32, 32, 64, 1),
    conv(64, 16, 128, 128, 1),
    *(Case("max_pool2d 2", "max_pool2d", [m], {"kernel_size": 2}) for m in MAPS),
    Case("avg_pool2d 2", "avg_pool2d", [MAPS[0]], {"kernel_size": 2}),
    Case("adaptive_avg_pool2d 1", "adaptive_avg_pool2d", [MAPS[2]], {"output_size": 1}),
    *(
        Case(
            "batch_norm", "batch_norm", [m, (m[1],), (m[1],)], {"training": True},
            "batch_norm", {"training": True, "running_mean": None, "running_var": None},
        )
        for m in MAPS
    ),
    *(Case("relu", "relu", [m]) for m in MAPS),
    Case("linear 9216-128", "linear", [(128, 9216), (128, 9216), (128,)]),
    Case("linear 4096-10", "linear", [(64, 4096), (10, 4096), (10,)]),
]  # fmt: skip


def rows(
    threads: int, repeats: int, patience: float, cases: Sequence[Case] = CASES
) -> Iterator[dict[str, Any]]:
    """A row of figures an operation and algorithm; `patience` seconds for all of them."""
    import torch

    torch.set_num_threads(threads)
    for case in cases:
        inputs = [random(shape, i) for i, shape in enumerate(case.shapes)]
        gy = random(call(case, inputs, None)[0].shape, 9)
        sides = []
        for algorithm in [None, *NAMES] if case.op == "conv2d" else [None]:
            try:
                call(case, inputs, algorithm)
            except ops.GeometryError:
                continue
            name = f"dualcnn {algorithm}" if algorithm else "dualcnn"
            sides.append(Side(name, dualcnn_lap(case, inputs, gy, algorithm)))
        for layout, last in (("torch", False), (CHANNELS_LAST, True)):
            sides.append(Side(layout, torch_lap(case, inputs, gy, last)))
        load = compare(sides, repeats, patience / len(cases))
        yield {
            "part": case.what,
            "input": "x".join(map(str, case.shapes[0])),
            **directions(sides),
            **figures(sides, load),
        }


def random(shape: Sequence[int], seed: int) -> Any:
    """Feature maps and kernels lie channels-last, as they do within a network."""
    made = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if made.ndim == 4:
        made = made.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    return made


def call(case: Case, inputs: Sequence[Any], algorithm: str | None) -> Any:
    options = {**case.options, **({"algorithm": algorithm} if algorithm else {})}
    return getattr(ops, case.op)(*inputs, **options)


def dualcnn_lap(
    case: Case, inputs: Sequence[Any], gy: Any, algorithm: str | None
) -> Callable[[], Sequence[float]]:
    def lap() -> Sequence[float]:
        start = perf_counter()
        _, vjp, *_ = call(case, inputs, algorithm)
        forward = perf_counter()
        vjp(gy)
        return forward - start, perf_counter() - forward

    return lap


def torch_lap(
    case: Case, inputs: Sequence[Any], gradient: Any, channels_last: bool
) -> Callable[[], Sequence[float]]:
    import torch

    def tensor(a: Any) -> Any:
        made = torch.tensor(np.ascontiguousarray(a))
        four = channels_last and made.ndim == 4
        return made.contiguous(memory_format=torch.channels_last) if four else made

    name, options = case.in_torch
    op = getattr(torch.nn.functional, name)
    keys = ("input", "weight", "bias")[: len(inputs)]
    given = {k: tensor(a).requires_grad_() for k, a in zip(keys, inputs, strict=True)}
    gy = tensor(gradient)

    def lap() -> Sequence[float]:
        start = perf_counter()
        y = op(**given, **options)
        forward = perf_counter()
        torch.autograd.grad(y, list(given.values()), gy)
        return forward - start, perf_counter() - forward

    return lap
