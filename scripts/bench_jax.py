"""The JAX side: one jitted function a step, on channels-last images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bench_steps
import jax
from bench_nets import Optimizer
from bench_sides import Task
from jax import lax
from jax import numpy as jnp

from dualcnn import nn


class Ops:
    def __init__(self, train: bool) -> None:
        self.train = train

    def conv(self, x: Any, step: bench_steps.Conv, weight: Any, bias: Any) -> Any:
        y = lax.conv_general_dilated(
            x,
            weight,
            (step.stride, step.stride),
            [(step.padding, step.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=step.groups,
        )
        return y if bias is None else y + bias

    def norm(
        self, x: Any, step: bench_steps.Norm, weight: Any, bias: Any, mean: Any, var: Any
    ) -> tuple[Any, Any, Any]:
        unbiased = var
        if self.train:
            axes, count = (0, 1, 2), x.size // x.shape[-1]
            mean, var = x.mean(axes), x.var(axes)
            unbiased = var * (count / (count - 1))
        y = (x - mean) * (weight * lax.rsqrt(var + step.eps)) + bias
        return y, mean, unbiased

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        return x @ weight + bias

    def max_pool(self, x: Any, size: int) -> Any:
        window = (1, size, size, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")

    def relu(self, x: Any) -> Any:
        return jax.nn.relu(x)

    def mean(self, x: Any) -> Any:
        return x.mean((1, 2))

    def flatten(self, x: Any) -> Any:
        return x.reshape(x.shape[0], -1)

    def add(self, a: Any, b: Any) -> Any:
        return a + b


def step(task: Task, model: nn.Module) -> Callable[[], float]:
    steps = bench_steps.describe(model, task.net.image)
    trained = [jnp.asarray(p) for p in bench_steps.parameters(steps, channels_last=True)]
    running = [jnp.asarray(s) for s in bench_steps.statistics(steps)]
    x = jnp.asarray(task.images.transpose(0, 2, 3, 1))
    labels = jnp.asarray(task.labels.astype("int32"))
    ops = Ops(task.train)
    slots, update = updater(task.net.optimizer, trained)

    def loss_of(trained: list[Any], running: list[Any], x: Any, labels: Any) -> Any:
        logits, new = bench_steps.run(ops, steps, x, iter(trained), iter(running))
        of_label = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -of_label.mean(), new

    def train_step(trained: Any, running: Any, slots: Any, x: Any, labels: Any) -> Any:
        (loss, new), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            trained, running, x, labels
        )
        running = [r + bench_steps.MOMENTUM * (n - r) for r, n in zip(running, new, strict=True)]
        trained, slots = update(trained, slots, gradients)
        return loss, (trained, running, slots)

    @jax.jit
    def logits_of(trained: Any, running: Any, x: Any) -> Any:
        return bench_steps.run(ops, steps, x, iter(trained), iter(running))[0]

    compiled = jax.jit(train_step, donate_argnums=(0, 1, 2))
    state = (trained, running, slots)

    def train() -> float:
        nonlocal state
        loss, state = compiled(*state, x, labels)
        jax.block_until_ready(state)
        return float(loss)

    return train if task.train else lambda: float(logits_of(trained, running, x)[0, 0])


def updater(optimizer: Optimizer, trained: list[Any]) -> tuple[Any, Callable[..., Any]]:
    """The optimizer's first state, and its step."""
    lr = optimizer.lr

    def zeros() -> list[Any]:
        return [jnp.zeros_like(p) for p in trained]

    def adam(trained: list[Any], slots: Any, gradients: list[Any]) -> Any:
        count, means, squares = slots
        count = count + 1
        means = [0.9 * m + 0.1 * g for m, g in zip(means, gradients, strict=True)]
        squares = [0.999 * v + 0.001 * g * g for v, g in zip(squares, gradients, strict=True)]
        by, root = lr / (1 - 0.9**count), jnp.sqrt(1 - 0.999**count)
        moved = [
            p - by * m / (jnp.sqrt(v) / root + 1e-8)
            for p, m, v in zip(trained, means, squares, strict=True)
        ]
        return moved, (count, means, squares)

    def sgd(trained: list[Any], slots: Any, gradients: list[Any]) -> Any:
        momentum = optimizer.options.get("momentum", 0.0)
        if momentum:
            gradients = slots = [momentum * s + g for s, g in zip(slots, gradients, strict=True)]
        return [p - lr * g for p, g in zip(trained, gradients, strict=True)], slots

    if optimizer.name == "Adam":
        return (jnp.zeros(()), zeros(), zeros()), adam
    return zeros() if optimizer.options.get("momentum") else [], sgd
