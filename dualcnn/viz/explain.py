"""Where in an image a network saw what it says: Grad-CAM and saliency, as arrays.

The model is only read: its mode, gradients, parameters and running statistics stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import backend
from ..autograd import Tensor, enable_grad, no_grad
from ..nn import Module
from ..nn.parameter import UninitializedParameter
from .confusion import class_numbers

__all__ = ["Explained", "explain_by_input", "explain_by_layer"]
__all__ += ["grad_cam_map", "layer_output", "saliency_map"]

Map = npt.NDArray[Any]


class Explained(NamedTuple):
    """A map `(N, h, w)`, the classes that it explains, `(N,)`, and their scores, `(N,)`."""

    maps: Map
    targets: npt.NDArray[np.int64]
    scores: Map


def layer_output(model: Module, layer: Module | str, x: Any) -> Any:
    """What a layer of `model` returns when the model, in evaluation mode, gets x.

    layer: the layer, or its name as `model.named_modules()` has it. x: `(N, C, H, W)`, floating.
    Returns an array of the model's backend.
    """
    found = _find(model, layer)
    seen: list[Any] = []

    def keep(module: Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.append(output)

    with _only_read(model), no_grad():
        handle = found.register_forward_hook(keep)
        try:
            model(_input(model, x))
        finally:
            handle.remove()
    return _only(seen, layer).data


def grad_cam_map(model: Module, layer: Module | str, x: Any, target: Any = None) -> Map:
    """How much each place of a layer's maps speaks for a class: `(N, h, w)`, not below 0.

    `L = relu(sum_k a_k A_k)`, with the layer's maps A_k and a_k, the mean over places of the
    gradient of the class's score with respect to A_k. The size h x w is that of the layer's maps.

    layer: a layer with maps `(N, K, h, w)` that is called once a forward, usually the last
        convolution or the ReLU after it; or its name as `model.named_modules()` has it.
    x: `(N, C, H, W)`, floating, prepared as for training.
    target: the class to explain, a number for all images or one for each; by default what the
        model predicts.
    The score is the model's output for the class, which should be before softmax.

    Selvaraju et al., "Grad-CAM: Visual explanations from deep networks via gradient-based
    localization", ICCV 2017.
    """
    return explain_by_layer(model, layer, x, target).maps


def saliency_map(model: Module, x: Any, target: Any = None) -> Map:
    """How much the score of a class changes with each pixel: `(N, H, W)`.

    The absolute value of the gradient of the score with respect to x, of all channels the largest.
    x, target and the score as in `grad_cam_map`.

    Simonyan, Vedaldi and Zisserman, "Deep inside convolutional networks: visualising image
    classification models and saliency maps", ICLR workshop 2014.
    """
    return explain_by_input(model, x, target).maps


def explain_by_layer(model: Module, layer: Module | str, x: Any, target: Any) -> Explained:
    """`grad_cam_map` with the classes and their scores."""
    found = _find(model, layer)
    seen: list[Any] = []

    def cut(module: Module, inputs: tuple[Any, ...], output: Any) -> Any:
        # A leaf in the place of the output ends the backward pass there, and keeps the gradient.
        maps = isinstance(output, Tensor) and output.ndim == 4
        seen.append(Tensor(output.data, requires_grad=True) if maps else output)
        return seen[-1]

    with _only_read(model):
        handle = found.register_forward_hook(cut)
        try:
            output = model(_input(model, x))
        finally:
            handle.remove()
        leaf = _only(seen, layer)
        if not isinstance(leaf, Tensor) or leaf.ndim != 4:
            shape = getattr(leaf, "shape", type(leaf).__name__)
            raise ValueError(
                f"expected a layer with maps (N, K, h, w), got the output {shape}; choose a "
                "convolution, or what follows it before the maps are flattened"
            )
        targets, scores = _backward(output, target)
    if leaf.grad is None:
        raise ValueError(
            f"the model's output does not depend on that of layer {_label(layer)}, so there is "
            "nothing to explain; choose a layer on the way to the output"
        )
    maps, gradient = backend.to_numpy(leaf.data), backend.to_numpy(leaf.grad)
    weights = gradient.mean(axis=(2, 3), keepdims=True)
    return Explained(np.maximum((weights * maps).sum(axis=1), 0), targets, scores)


def explain_by_input(model: Module, x: Any, target: Any) -> Explained:
    """`saliency_map` with the classes and their scores."""
    with _only_read(model):
        image = _input(model, x).requires_grad_()
        targets, scores = _backward(model(image), target)
    if image.grad is None:
        raise ValueError("the model's output does not depend on x, so there is nothing to explain")
    return Explained(np.abs(backend.to_numpy(image.grad)).max(axis=1), targets, scores)


@contextmanager
def _only_read(model: Module) -> Iterator[None]:
    """Evaluation mode, and no gradients of parameters; all as it was afterwards."""
    parameters = [(p, p.requires_grad) for p in model.parameters()]
    if any(isinstance(p, UninitializedParameter) for p, _ in parameters):
        raise RuntimeError(
            "the model has layers whose shapes are not known before the first input; run one batch "
            "through it first: model(x)"
        )
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for parameter, _ in parameters:
            parameter.requires_grad = False
        with enable_grad():
            yield
    finally:
        for parameter, wanted in parameters:
            parameter.requires_grad = wanted
        for module, training in modes:
            module.training = training


def _input(model: Module, x: Any) -> Tensor:
    """A new leaf with the values of x on the model's backend, in the type of its parameters."""
    first = next(model.parameters(), None)
    be = backend.current() if first is None else first.backend
    values = backend.asarray(x, backend=be)
    if values.ndim != 4 or not values.shape[0]:
        hint = "; one image needs its batch axis: x[None]" if values.ndim == 3 else ""
        raise ValueError(
            f"expected x of shape (N, C, H, W), N at least 1, got {tuple(values.shape)}{hint}"
        )
    if not be.is_floating(values):
        raise TypeError(
            f"expected floating-point x, prepared as for training, got {values.dtype}; the batches "
            "of a DataLoader are, and images of bytes are divided by 255 there"
        )
    return Tensor(values if first is None else be.asarray(values, first.dtype))


def _find(model: Module, layer: Module | str) -> Module:
    named = dict(model.named_modules(remove_duplicate=False))
    if isinstance(layer, str):
        if layer not in named:
            known = ", ".join(name for name in named if name)
            raise ValueError(f"the model has no layer {layer!r}; it has {known}")
        return named[layer]
    if not any(module is layer for module in named.values()):
        raise ValueError(
            f"expected a layer of the model or its name, got {_label(layer)}, which the model does "
            "not hold"
        )
    return layer


def _only(seen: list[Any], layer: Module | str) -> Any:
    if len(seen) == 1:
        return seen[0]
    raise ValueError(
        f"expected layer {_label(layer)} to be called once in a forward pass, it was called "
        f"{len(seen)} times; "
        + ("give each place a layer of its own" if seen else "choose one that forward calls")
    )


def _label(layer: Any) -> str:
    return repr(layer) if isinstance(layer, str) else type(layer).__name__


def _backward(output: Any, target: Any) -> tuple[npt.NDArray[np.int64], Map]:
    """The gradient of the sum of the targets' scores; the targets and their scores."""
    shape = getattr(output, "shape", None)
    if not isinstance(output, Tensor) or len(output.shape) != 2:
        raise ValueError(
            f"expected a model that returns scores of classes (N, K), got {shape or output}"
        )
    logits = backend.to_numpy(output.data)
    n, classes = logits.shape
    if target is None:
        targets = logits.argmax(axis=1)
    elif isinstance(target, int | np.integer):
        targets = class_numbers(classes, target=np.full(n, int(target)))
    else:
        targets = class_numbers(classes, target=target)
        if len(targets) != n:
            raise ValueError(
                f"expected a target for each of the {n} images, or one number for all, got "
                f"{len(targets)}"
            )
    chosen = np.zeros_like(logits)
    chosen[np.arange(n), targets] = 1
    if output.requires_grad:
        output.backward(backend.asarray(chosen, backend=output.backend))
    return targets, logits[np.arange(n), targets]
