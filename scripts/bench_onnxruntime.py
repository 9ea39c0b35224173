"""The onnxruntime side, inference alone: the network as an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bench_steps
import onnxruntime
from bench_sides import Task
from onnx import TensorProto, helper, numpy_helper

from dualcnn import nn


class Ops:
    """Adds a node a call; an array is known by its name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []

    def node(self, kind: str, *inputs: str | None, **attributes: Any) -> str:
        name = f"y{len(self.nodes)}"
        given = [i for i in inputs if i is not None]
        self.nodes.append(helper.make_node(kind, given, [name], **attributes))
        return name

    def conv(self, x: str, step: bench_steps.Conv, weight: str, bias: str | None) -> str:
        return self.node(
            "Conv", x, weight, bias,
            strides=[step.stride] * 2, pads=[step.padding] * 4, group=step.groups,
        )  # fmt: skip

    def norm(
        self, x: str, step: bench_steps.Norm, weight: str, bias: str, mean: str, var: str
    ) -> tuple[str, str, str]:
        y = self.node("BatchNormalization", x, weight, bias, mean, var, epsilon=step.eps)
        return y, mean, var

    def linear(self, x: str, weight: str, bias: str) -> str:
        return self.node("Gemm", x, weight, bias, transB=1)

    def max_pool(self, x: str, size: int) -> str:
        return self.node("MaxPool", x, kernel_shape=[size] * 2, strides=[size] * 2)

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def mean(self, x: str) -> str:
        return self.node("GlobalAveragePool", x)

    def flatten(self, x: str) -> str:
        return self.node("Flatten", x)

    def add(self, a: str, b: str) -> str:
        return self.node("Add", a, b)


def step(task: Task, model: nn.Module) -> Callable[[], float]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    session = onnxruntime.InferenceSession(
        graph(model, task.net.image, len(task.images)), options, ["CPUExecutionProvider"]
    )
    feed = {"x": task.images}
    return lambda: float(session.run(None, feed)[0][0, 0])


def graph(model: nn.Module, image: tuple[int, int, int], batch: int) -> bytes:
    steps = bench_steps.describe(model, image)
    arrays = {f"p{i}": a for i, a in enumerate(bench_steps.parameters(steps, channels_last=False))}
    running = {f"s{i}": a for i, a in enumerate(bench_steps.statistics(steps))}
    ops = Ops()
    y, _ = bench_steps.run(ops, steps, "x", iter(arrays), iter(running))

    def values(name: str, shape: tuple[int, ...] | None) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    weights = [numpy_helper.from_array(a, name) for name, a in {**arrays, **running}.items()]
    whole = helper.make_graph(
        ops.nodes, "net", [values("x", (batch, *image))], [values(y, None)], weights
    )
    made = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = made.SerializeToString()
    return content
