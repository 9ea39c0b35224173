"""One call of every differentiable op, for tests of what all ops have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from op_check import place, rng

from dualcnn import ops
from dualcnn.backend import Backend


class Call(NamedTuple):
    """An op, the shapes of its differentiable inputs and its parameters."""

    op: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    params: dict[str, Any]
    names: tuple[str, ...] = ("x",)
    labels: tuple[int, ...] | None = None
    """The shape of a target of whole numbers from 0 to 3, given after the inputs."""
    running: int | None = None
    """The length of running statistics, given after the inputs."""

    def inputs(self, be: Backend, dtype: str = "float32", layout: str = "plain") -> list[Any]:
        draw = rng(81)
        values = [place(be, draw.uniform(0.5, 2, s), dtype, layout) for s in self.shapes]
        if self.labels is not None:
            values.append(place(be, draw.integers(0, 4, self.labels)))
        if self.running is not None:
            values += [place(be, draw.uniform(0.5, 2, self.running), dtype) for _ in range(2)]
        return values

    def run(self, be: Backend, dtype: str = "float32", layout: str = "plain") -> list[Any]:
        """The output and the gradients of one call."""
        y, vjp, *_ = self.op(*self.inputs(be, dtype, layout), **self.params)
        gy = place(be, np.ones(tuple(y.shape)), dtype, layout)
        return [y, *(g for g in vjp(gy) if g is not None)]


CONV = ("x", "weight", "bias")
AFFINE = (2, 4, 3, 3), (4,), (4,)
MAPS = ((2, 4, 6, 6),)
PAIR = ((2, 4, 3, 3), (2, 4, 3, 3))

CALLS = {
    "conv2d": Call(ops.conv2d, ((2, 4, 6, 6), (6, 4, 3, 3), (6,)), {"padding": 1}, CONV),
    "conv2d, stride": Call(ops.conv2d, ((2, 4, 6, 6), (6, 4, 3, 3), (6,)), {"stride": 2}, CONV),
    "conv2d, 1x1": Call(ops.conv2d, ((2, 4, 6, 6), (6, 4, 1, 1), (6,)), {}, CONV),
    "conv2d, groups": Call(ops.conv2d, ((2, 4, 6, 6), (6, 2, 3, 3), (6,)), {"groups": 2}, CONV),
    "conv2d, depthwise": Call(ops.conv2d, ((2, 4, 6, 6), (4, 1, 3, 3), (4,)), {"groups": 4}, CONV),
    "conv2d, heavy weights": Call(
        ops.conv2d, ((1, 128, 4, 4), (260, 128, 3, 3), (260,)), {"padding": 1}, CONV
    ),
    "conv2d, one image": Call(ops.conv2d, ((4, 6, 6), (6, 4, 3, 3), (6,)), {}, CONV),
    "conv2d_relu": Call(ops.conv2d_relu, ((2, 4, 6, 6), (6, 4, 3, 3), (6,)), {"padding": 1}, CONV),
    "conv2d_relu, one image": Call(ops.conv2d_relu, ((4, 6, 6), (6, 4, 3, 3), (6,)), {}, CONV),
    "conv2d_relu_max_pool2d": Call(
        ops.conv2d_relu_max_pool2d,
        ((2, 4, 6, 6), (6, 4, 3, 3), (6,)),
        {"padding": 1, "kernel_size": 2},
        CONV,
    ),
    "conv2d_relu_max_pool2d, rest": Call(
        ops.conv2d_relu_max_pool2d,
        ((2, 4, 7, 6), (6, 4, 2, 2), (6,)),
        {"stride": (1, 2), "kernel_size": (4, 2)},
        CONV,
    ),
    "conv2d_relu_max_pool2d, one image": Call(
        ops.conv2d_relu_max_pool2d, ((4, 6, 6), (6, 4, 3, 3), (6,)), {"kernel_size": 2}, CONV
    ),
    "max_pool2d": Call(ops.max_pool2d, MAPS, {"kernel_size": 2}),
    "max_pool2d, overlap": Call(
        ops.max_pool2d, MAPS, {"kernel_size": 3, "stride": 2, "padding": 1}
    ),
    "max_pool2d, one image": Call(ops.max_pool2d, ((4, 6, 6),), {"kernel_size": 2}),
    "max_pool2d, indices": Call(ops.max_pool2d, MAPS, {"kernel_size": 2, "return_indices": True}),
    "avg_pool2d": Call(ops.avg_pool2d, MAPS, {"kernel_size": 2}),
    "avg_pool2d, overlap": Call(
        ops.avg_pool2d, MAPS, {"kernel_size": 3, "stride": 2, "padding": 1}
    ),
    "avg_pool2d, divisor": Call(ops.avg_pool2d, MAPS, {"kernel_size": 2, "divisor_override": 3}),
    "avg_pool2d, one image": Call(ops.avg_pool2d, ((4, 6, 6),), {"kernel_size": 2}),
    "adaptive_avg_pool2d": Call(ops.adaptive_avg_pool2d, MAPS, {"output_size": 2}),
    "adaptive_avg_pool2d, one image": Call(
        ops.adaptive_avg_pool2d, ((4, 6, 6),), {"output_size": 2}
    ),
    "batch_norm": Call(ops.batch_norm, AFFINE, {"training": True}, CONV),
    "batch_norm, eval": Call(ops.batch_norm, AFFINE, {"training": False}, CONV, running=4),
    "batch_norm, relu": Call(ops.batch_norm, AFFINE, {"training": True, "relu": True}, CONV),
    "batch_norm, eval, relu": Call(
        ops.batch_norm, AFFINE, {"training": False, "relu": True}, CONV, running=4
    ),
    "dropout": Call(ops.dropout, MAPS, {"p": 0.5, "stream": (1, 2)}),
    "relu": Call(ops.relu, MAPS, {}),
    "leaky_relu": Call(ops.leaky_relu, MAPS, {}),
    "sigmoid": Call(ops.sigmoid, MAPS, {}),
    "tanh": Call(ops.tanh, MAPS, {}),
    "softmax": Call(ops.softmax, ((3, 4),), {"dim": 1}),
    "log_softmax": Call(ops.log_softmax, ((3, 4),), {"dim": 1}),
    "conv2d_relu, no bias": Call(
        ops.conv2d_relu, ((2, 4, 6, 6), (6, 4, 3, 3)), {"padding": 1}, ("x", "weight")
    ),
    "linear, one row": Call(ops.linear, ((1, 4), (5, 4), (5,)), {}, CONV),
    "linear": Call(ops.linear, ((3, 4), (5, 4), (5,)), {}, CONV),
    "matmul": Call(ops.matmul, ((3, 4), (4, 5)), {}, ("a", "b")),
    "matmul, vector": Call(ops.matmul, ((3, 4), (4,)), {}, ("a", "b")),
    "cross_entropy": Call(ops.cross_entropy, ((3, 4),), {}, labels=(3,)),
    "cross_entropy, smooth": Call(
        ops.cross_entropy, ((3, 4, 2),), {"label_smoothing": 0.1}, labels=(3, 2)
    ),
    "cross_entropy, probabilities": Call(
        ops.cross_entropy, ((3, 4, 2), (3, 4, 2)), {"label_smoothing": 0.1}, ("x", "target")
    ),
    "nll_loss": Call(ops.nll_loss, ((3, 4),), {}, labels=(3,)),
    "mse_loss": Call(ops.mse_loss, ((3, 4), (3, 4)), {}, ("x", "target")),
    "add": Call(ops.add, PAIR, {}, ("a", "b")),
    "sub": Call(ops.sub, PAIR, {}, ("a", "b")),
    "mul": Call(ops.mul, PAIR, {}, ("a", "b")),
    "div": Call(ops.div, PAIR, {}, ("a", "b")),
    "neg": Call(ops.neg, MAPS, {}),
    "pow": Call(ops.pow, PAIR, {}, ("a", "b")),
    "sum": Call(ops.sum, MAPS, {"dim": (0, 2, 3)}),
    "mean": Call(ops.mean, MAPS, {}),
    "reshape": Call(ops.reshape, MAPS, {"shape": (2, -1)}),
    "flatten": Call(ops.flatten, MAPS, {"start_dim": 1}),
    "transpose": Call(ops.transpose, MAPS, {"dim0": 0, "dim1": 1}),
    "permute": Call(ops.permute, MAPS, {"dims": (0, 2, 3, 1)}),
    "concat": Call(ops.concat, PAIR, {"dim": 1}, ("xs[0]", "xs[1]")),
    "clone": Call(ops.clone, MAPS, {}),
    "getitem": Call(ops.getitem, MAPS, {"index": (slice(0, 1), ...)}),
}
