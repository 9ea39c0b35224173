"""Activations, pooling, flattening and linear layers, step by step."""

from __future__ import annotations

from typing import Any

from ..backend import Array, to_numpy
from ..ops import geometry
from .building import Builder, dot, flat_link, fullest, place
from .links import PoolingLinks
from .record import Call
from .result import Marks, Section, Step

__all__ = ["activation", "average_pooling", "dropout", "flattening", "linear", "max_pooling"]

Sections = tuple[Section, Section]


def activation(call: Call, name: str) -> Sections:
    """The sections of an activation that works on each number alone."""
    told, formula, factor, by_factor = _ACTIVATIONS[call.op.__name__]
    slope = call.params.get("negative_slope")
    if slope is not None:
        formula, by_factor = (f"{text} with slope {slope:g}" for text in (formula, by_factor))
    return _elementwise(call, name, (told, formula, factor, by_factor))


def dropout(call: Call, name: str) -> Sections:
    """The sections of dropout in training."""
    share = call.params["p"]
    told = f"Each number is dropped with probability {share:g}; the others grow so that the mean stays."
    formula = "input * factor"
    by_factor = f"0 where dropped, 1 / (1 - {share:g}) elsewhere"
    return _elementwise(call, name, (told, formula, "factor", by_factor))


def _elementwise(call: Call, name: str, texts: tuple[str, str, str, str]) -> Sections:
    told, formula, factor, by_factor = texts
    builder, be = Builder(call, name), call.backend
    (x, *_) = call.inputs
    link = flat_link(x.shape)
    # The operation's own derivative: what becomes of a gradient of ones.
    _, vjp, *_ = call.again()
    ones = be.full(tuple(x.shape), 1.0, x.dtype)
    derivative = builder.step(factor, vjp(ones)[0], by_factor, link=link)
    forward = builder.section(
        [
            builder.step("input", x, "", link=link),
            derivative,
            builder.step("output", call.output, formula, link=link),
        ],
        told,
    )
    backward = builder.section(
        [
            builder.step("gy", call.gy, "", link=link),
            builder.gradient("gx", 0, f"gy * {factor}", link=link),
        ],
        f"The gradient passes each number alone: times {factor}, from the forward pass.",
        backward=True,
        recalled=(derivative,),
    )
    return forward, backward


_ACTIVATIONS = {
    "relu": (
        "What is positive passes, what is not becomes 0.",
        "max(input, 0)",
        "mask",
        "1 where input > 0, else 0",
    ),
    "leaky_relu": (
        "What is positive passes, what is not is made small.",
        "input where input > 0, else slope * input,",
        "mask",
        "1 where input > 0, else slope,",
    ),
    "sigmoid": (
        "Each number is pressed into the range from 0 to 1.",
        "1 / (1 + exp(-input))",
        "slope",
        "output * (1 - output)",
    ),
    "tanh": (
        "Each number is pressed into the range from -1 to 1.",
        "tanh(input)",
        "slope",
        "1 - output ** 2",
    ),
}


def max_pooling(call: Call, name: str) -> Sections:
    """The sections of `ops.max_pool2d`."""
    builder, be = Builder(call, name), call.backend
    (x, *_) = call.inputs
    links, lift = _pooling_links(call)
    _, vjp, places = call.again(return_indices=True)
    wins = vjp(be.full(tuple(call.output.shape), 1.0, x.dtype))[0]
    marks = Marks("the maximum of a window", to_numpy(wins) > 0)
    kh, kw = links.window.kernel
    forward = builder.section(
        [
            builder.step("input", x, "", marks=marks, link=lift(links.image)),
            builder.step(
                "output", call.output, "the maximum of each window", link=lift(links.output)
            ),
            builder.step(
                "places",
                places,
                "where in input each maximum lies: row * width + column",
                link=lift(links.output),
            ),
        ],
        f"Of each window of {kh}x{kw} numbers only the largest passes; of equals the first.",
    )
    backward = builder.section(
        [
            builder.step("gy", call.gy, "", link=lift(links.output)),
            builder.gradient(
                "gx", 0, "gy at places, 0 elsewhere", marks=marks, link=lift(links.image)
            ),
        ],
        "Only the maximum of a window had a part in the result, so it gets the whole gradient and "
        "the other numbers get 0.",
        backward=True,
    )
    return forward, backward


def average_pooling(call: Call, name: str) -> Sections:
    """The sections of `ops.avg_pool2d`."""
    builder = Builder(call, name)
    links, lift = _pooling_links(call)
    kh, kw = links.window.kernel
    forward = builder.section(
        [
            builder.step("input", call.inputs[0], "", link=lift(links.image)),
            builder.step("output", call.output, "the mean of each window", link=lift(links.output)),
        ],
        f"Each window of {kh}x{kw} numbers becomes its mean.",
    )
    backward = builder.section(
        [
            builder.step("gy", call.gy, "", link=lift(links.output)),
            builder.gradient("gx", 0, "gy shared out over each window", link=lift(links.image)),
        ],
        "Every number of a window had the same share in the mean, so each gets that share of the "
        "gradient; where windows overlap, the shares add up.",
        backward=True,
    )
    return forward, backward


def _pooling_links(call: Call) -> tuple[PoolingLinks, Any]:
    """The links of a pooling, and what makes them those of a single image."""
    shape = tuple(call.inputs[0].shape)
    single = len(shape) == 3
    options = (call.params.get(k, v) for k, v in _POOLING.items())
    window = geometry.pooling(
        2,
        (1, *shape) if single else shape,
        *map(geometry.hashable, options),
        call.params.get("ceil_mode", False),
    )
    lift = (lambda link: lambda index: link((0, *index))) if single else lambda link: link
    return PoolingLinks(window, shape[-3]), lift


_POOLING: dict[str, Any] = {"kernel_size": None, "stride": None, "padding": 0, "dilation": 1}


def flattening(call: Call, name: str) -> Sections:
    """The sections of `ops.flatten` and `ops.reshape`: the same numbers in another shape."""
    builder = Builder(call, name)
    x = call.inputs[0]
    before, after = flat_link(x.shape), flat_link(call.output.shape)
    shape = tuple(call.output.shape)
    forward = builder.section(
        [
            builder.step("input", x, "", link=before),
            builder.step("output", call.output, f"input.reshape{shape}", link=after),
        ],
        "The same numbers in another shape, in row order: the last axis runs fastest.",
    )
    backward = builder.section(
        [
            builder.step("gy", call.gy, "", link=after),
            builder.gradient("gx", 0, f"gy.reshape{tuple(x.shape)}", link=before),
        ],
        "The gradient goes back into the shape that the numbers came in.",
        backward=True,
    )
    return forward, backward


def linear(call: Call, name: str) -> Sections | None:
    """The sections of `ops.linear`; None where the input has more axes than two."""
    x, weight, bias = (*call.inputs, None)[:3]
    if x.ndim != 2:
        return None
    builder, be = Builder(call, name), call.backend
    images = tuple(f"image {n}" for n in range(x.shape[0]))
    outs = tuple(f"out {o}" for o in range(weight.shape[0]))

    def feature(label: str, array: Array, formula: str) -> Step:
        axes = ("image", "feature")
        return builder.step(label, array, formula, axes=axes, rows=images, link=_features)

    def result(label: str, array: Array, formula: str) -> Step:
        axes = ("image", "output")
        return builder.step(
            label, array, formula, axes=axes, rows=images, columns=outs, link=_results
        )

    weights: dict[str, Any] = {"axes": ("output", "feature"), "rows": outs, "link": _weights}
    biases: dict[str, Any] = {"axes": ("output",), "columns": outs, "link": _biases}
    weighting = builder.step("weight", weight, "", **weights)
    x_step = feature("input", x, "")
    product = result("product", be.matmul(x, weight.T), "input @ weight.T")
    plus = "" if bias is None else " + bias"
    forward = builder.section(
        [
            x_step,
            weighting,
            product,
            None if bias is None else builder.step("bias", bias, "", **biases),
            result("output", call.output, f"product{plus}"),
        ],
        "Each output is a sum of all features, each times its own weight.",
        worked=_worked(x_step, weighting, bias, product),
    )
    backward = builder.section(
        [
            result("gy", call.gy, ""),
            builder.gradient("gb", 2, "gy.sum(0)", **biases),
            builder.gradient("gw", 1, "gy.T @ input", **weights),
            builder.gradient(
                "gx", 0, "gy @ weight", axes=("image", "feature"), rows=images, link=_features
            ),
        ],
        "A weight's gradient is the feature that it met times the gradient of its output, summed "
        "over the images. A feature went into every output, so it gets the sum of their gradients, "
        "each times the weight in between.",
        backward=True,
        recalled=(x_step, weighting),
    )
    return forward, backward


def _features(index: tuple[int, ...]) -> tuple[str, str]:
    n, k = index
    return f"i{n} f{k}", f"f{k}"


def _results(index: tuple[int, ...]) -> tuple[str, str]:
    n, o = index
    return f"p{n}m{o}", f"p{n}m{o} i{n} o{o}"


def _weights(index: tuple[int, ...]) -> tuple[str, str]:
    o, k = index
    return f"o{o} f{k}", f"f{k}"


def _biases(index: tuple[int, ...]) -> tuple[str, str]:
    return f"o{index[0]}", f"o{index[0]}"


def _worked(x: Step, weight: Step, bias: Array | None, product: Step) -> str:
    """One number of the output, as a sum."""
    n, o = fullest(x, weight)
    b = None if bias is None else float(to_numpy(bias)[o])
    left, right = x.numpy()[n].tolist(), weight.numpy()[o].tolist()
    total = float(product.numpy()[n, o]) + (b or 0.0)
    return f"output{place(n, o)} = {dot(left, right, b, total)}"
