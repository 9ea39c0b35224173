"""The TensorFlow side: a `tf.function` of `tf.nn` operations on channels-last images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bench_steps
import tensorflow as tf
from bench_nets import Optimizer
from bench_sides import Task

from dualcnn import nn


class Ops:
    def __init__(self, train: bool) -> None:
        self.train = train

    def conv(self, x: Any, step: bench_steps.Conv, weight: Any, bias: Any) -> Any:
        around = [step.padding] * 2
        padding = [[0, 0], around, around, [0, 0]] if step.padding else "VALID"
        if step.groups == 1:
            y = tf.nn.conv2d(x, weight, step.stride, padding)
        else:
            # Groups of one channel; the kernel of grouped convolution has no gradient on the CPU.
            kh, kw, _, channels = weight.shape
            taps = tf.reshape(weight, (kh, kw, channels, 1))
            y = tf.nn.depthwise_conv2d(x, taps, [1, step.stride, step.stride, 1], padding)
        return y if bias is None else tf.nn.bias_add(y, bias)

    def norm(
        self, x: Any, step: bench_steps.Norm, weight: Any, bias: Any, mean: Any, var: Any
    ) -> tuple[Any, Any, Any]:
        running = {} if self.train else {"mean": mean, "variance": var}
        y, mean, var = tf.compat.v1.nn.fused_batch_norm(
            x, weight, bias, epsilon=step.eps, is_training=self.train, **running
        )
        return y, mean, var

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        return tf.nn.bias_add(tf.matmul(x, weight), bias)

    def max_pool(self, x: Any, size: int) -> Any:
        return tf.nn.max_pool2d(x, size, size, "VALID")

    def relu(self, x: Any) -> Any:
        return tf.nn.relu(x)

    def mean(self, x: Any) -> Any:
        return tf.reduce_mean(x, [1, 2])

    def flatten(self, x: Any) -> Any:
        return tf.reshape(x, (x.shape[0], -1))

    def add(self, a: Any, b: Any) -> Any:
        return a + b


def step(task: Task, model: nn.Module) -> Callable[[], float]:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(task.threads)
        tf.config.threading.set_inter_op_parallelism_threads(task.threads)
    except RuntimeError:
        # Started already, with the threads of an earlier network, which are as many.
        pass
    # It counts the functions of all networks as one that is traced too often.
    tf.get_logger().setLevel("ERROR")
    steps = bench_steps.describe(model, task.net.image)
    trained = [tf.Variable(p) for p in bench_steps.parameters(steps, channels_last=True)]
    running = [tf.Variable(s, trainable=False) for s in bench_steps.statistics(steps)]
    ops = Ops(task.train)
    x = tf.constant(task.images.transpose(0, 2, 3, 1))
    labels = tf.constant(task.labels)
    update = updater(task.net.optimizer, trained)

    @tf.function(autograph=False)
    def train_step() -> Any:
        with tf.GradientTape() as tape:
            logits, new = bench_steps.run(ops, steps, x, iter(trained), iter(running))
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
            )
        update(tape.gradient(loss, trained))
        for old, value in zip(running, new, strict=True):
            old.assign_add(bench_steps.MOMENTUM * (value - old))
        return loss

    @tf.function(autograph=False)
    def logits_of(images: Any) -> Any:
        return bench_steps.run(ops, steps, images, iter(trained), iter(running))[0]

    if task.train:
        return lambda: float(train_step())
    # Images that are an argument can't be folded into a constant result.
    return lambda: float(logits_of(x)[0, 0])


def updater(optimizer: Optimizer, trained: list[Any]) -> Callable[[list[Any]], None]:
    """TensorFlow's own fused updates: Keras's optimizers are many small operations instead."""

    def like() -> list[Any]:
        return [tf.Variable(tf.zeros_like(p), trainable=False) for p in trained]

    if optimizer.name == "Adam":
        return adam(optimizer.lr, trained, like(), like())
    momentum = optimizer.options.get("momentum", 0.0)
    sums = like() if momentum else []

    def sgd(gradients: list[Any]) -> None:
        for i, (p, g) in enumerate(zip(trained, gradients, strict=True)):
            if momentum:
                tf.raw_ops.ResourceApplyMomentum(
                    var=p.handle, accum=sums[i].handle, lr=optimizer.lr, grad=g, momentum=momentum
                )
            else:
                tf.raw_ops.ResourceApplyGradientDescent(var=p.handle, alpha=optimizer.lr, delta=g)

    return sgd


def adam(
    lr: float, trained: list[Any], means: list[Any], squares: list[Any]
) -> Callable[[list[Any]], None]:
    power1, power2 = tf.Variable(1.0, trainable=False), tf.Variable(1.0, trainable=False)

    def update(gradients: list[Any]) -> None:
        beta1, beta2 = 0.9, 0.999
        power1.assign(power1 * beta1)
        power2.assign(power2 * beta2)
        for p, m, v, g in zip(trained, means, squares, gradients, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=p.handle, m=m.handle, v=v.handle, beta1_power=power1, beta2_power=power2,
                lr=lr, beta1=beta1, beta2=beta2, epsilon=1e-8, grad=g,
            )  # fmt: skip

    return update
