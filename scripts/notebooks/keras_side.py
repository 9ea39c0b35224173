"""The control in Keras 3, on whichever of its backends is installed.

Keras keeps images as (N, H, W, C), convolution weights as (KH, KW, C, O) and linear ones as (I, O)
with I counted in the order (H, W, C). Its batch normalisation calls momentum the share that it
keeps, has another epsilon unless told, and takes in the variance without Bessel's correction. Its
Adam adds epsilon before the bias correction, Kingma and Ba's after it.
"""

from __future__ import annotations

import math
import os
from typing import Any

# TensorFlow otherwise begins with a page about its build.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops
from recipe import Recipe
from scalar_bias import ScalarBias

from dualcnn import Tensor, backend, nn

IMAGE = (28, 28, 1)


class Keras:
    """A recipe's network and optimizer in Keras."""

    def __init__(self, recipe: Recipe) -> None:
        self.name = recipe.name
        # The policy is that of layers, floatx that of losses and metrics.
        keras.config.set_floatx(recipe.dtype)
        keras.config.set_dtype_policy(recipe.dtype)
        self.model = keras.Sequential([keras.Input(IMAGE)])
        shape, flattened = IMAGE, IMAGE
        biases = []
        for prefix, layer in recipe.layers():
            if isinstance(layer, nn.Flatten):
                flattened = shape
            for new in layers_of(layer):
                self.model.add(new)
            self.model.layers[-1].set_weights(weights_of(prefix, layer, recipe.state, flattened))
            biases += [v for v in self.model.layers[-1].trainable_variables if v.name == "bias"]
            shape = tuple(self.model.output_shape[1:])
        metrics = ["sparse_categorical_accuracy"]
        self.model.compile(optimizer_of(recipe, biases), loss_of(recipe), metrics=metrics)

    def take(self, x: Tensor, y: Tensor) -> tuple[Any, Any]:
        images = np.ascontiguousarray(backend.to_numpy(x).transpose(0, 2, 3, 1))
        return images, np.asarray(backend.to_numpy(y))

    def step(self, x: Any, y: Any) -> tuple[float, Any]:
        loss, accuracy = self.model.train_on_batch(x, y)
        return float(loss), accuracy

    def hits(self, outcome: Any, y: Any) -> int:
        return round(float(outcome) * len(y))

    def observe(self, x: Any) -> None:
        self.model(x, training=True)

    def logits(self, x: Any) -> Any:
        return ops.convert_to_numpy(self.model(x, training=False))


def _squared_error(labels: Any, output: Any) -> Any:
    """The squared distance of each sample; Keras takes the mean over the batch."""
    target = ops.one_hot(ops.cast(ops.reshape(labels, (-1,)), "int32"), 10, dtype=output.dtype)
    return ops.sum(ops.square(output - target), axis=-1)


def loss_of(recipe: Recipe) -> Any:
    """Made anew for each recipe: Keras's loss objects keep the dtype of their making."""
    if recipe.loss == "squared error":
        return _squared_error
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class PaperAdam(keras.optimizers.Adam):
    """Adam with epsilon where the paper has it: beside the root of the corrected moment."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        kind = variable.dtype
        step = ops.cast(self.iterations + 1, kind)
        i = self._get_variable_index(variable)
        m, v = self._momentums[i], self._velocities[i]
        self.assign_add(m, (gradient - m) * (1 - self.beta_1))
        self.assign_add(v, (ops.square(gradient) - v) * (1 - self.beta_2))
        # 1 - beta**step, which in float32 would lose digits where the power is near 1.
        m_hat = m / -ops.expm1(step * math.log(self.beta_1))
        v_hat = v / -ops.expm1(step * math.log(self.beta_2))
        rate = ops.cast(learning_rate, kind)
        self.assign_sub(variable, rate * m_hat / (ops.sqrt(v_hat) + self.epsilon))


def optimizer_of(recipe: Recipe, biases: list[Any]) -> Any:
    """One optimizer for all groups: these may differ only in that biases are not decayed."""
    options = recipe.groups[0].options
    rate = options["lr"]
    if recipe.optimizer == "Adam":
        beta1, beta2 = options["betas"]
        return PaperAdam(rate, beta1, beta2, options["eps"])
    decay = options["weight_decay"] or None
    # Decayed by itself in Keras, which without momentum is the same as decay in the gradient.
    if recipe.optimizer != "SGD" or (decay and options["momentum"]):
        raise TypeError(f"{recipe.optimizer} with {options} has no counterpart in Keras yet")
    optimizer = keras.optimizers.SGD(rate, float(options["momentum"]), weight_decay=decay)
    if decay:
        optimizer.exclude_from_weight_decay(var_list=biases)
    return optimizer


def layers_of(layer: nn.Module) -> list[Any]:
    """Keras's layers for one of dualcnn's; the last has its weights."""
    match layer:
        case nn.Conv2d():
            conv = keras.layers.Conv2D(
                layer.out_channels, layer.kernel_size, use_bias=layer.bias is not None
            )
            return [keras.layers.ZeroPadding2D(layer.padding), conv]
        case nn.Linear():
            return [keras.layers.Dense(layer.out_features, use_bias=layer.bias is not None)]
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return [keras.layers.BatchNormalization(-1, 1 - layer.momentum, layer.eps)]
        case nn.MaxPool2d():
            return [keras.layers.MaxPooling2D(layer.kernel_size)]
        case nn.LeakyReLU():
            return [keras.layers.LeakyReLU(layer.negative_slope)]
        case nn.ReLU() | nn.Flatten() | nn.Softmax():
            return [getattr(keras.layers, type(layer).__name__)()]
        case nn.Sigmoid():
            return [keras.layers.Activation("sigmoid")]
        case ScalarBias():
            return [_ScalarBias()]
    raise TypeError(f"{type(layer).__name__} has no counterpart in the Keras control yet")


class _ScalarBias(keras.layers.Layer):
    def build(self, shape: Any) -> None:
        self.bias = self.add_weight(shape=(1,), initializer="zeros", name="bias")

    def call(self, x: Any) -> Any:
        return x + self.bias


def weights_of(
    prefix: str, layer: nn.Module, state: dict[str, Any], image: tuple[int, ...]
) -> list[Any]:
    """A layer's weights as Keras orders them; `image` is the (H, W, C) flattened before it."""
    own = {key: state[prefix + key] for key in ("weight", "bias") if prefix + key in state}
    match layer:
        case nn.Conv2d():
            own["weight"] = own["weight"].transpose(2, 3, 1, 0)
        case nn.Linear():
            outputs, inputs = own["weight"].shape
            height, width, channels = image
            if inputs == height * width * channels:
                images = own["weight"].reshape(outputs, channels, height, width)
                own["weight"] = images.transpose(0, 2, 3, 1).reshape(outputs, inputs)
            own["weight"] = own["weight"].T
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            own |= {key: state[prefix + key] for key in ("running_mean", "running_var")}
    return list(own.values())
