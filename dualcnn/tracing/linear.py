"""Flattening and the linear layer, step by step."""

from __future__ import annotations

from typing import Any

from ..backend import Array, to_numpy
from .building import Builder, Sections, dot, flat_link, fullest, place
from .record import Call
from .result import Step, Total

__all__ = ["flattening", "linear"]


def flattening(call: Call, name: str) -> Sections:
    """The sections of `ops.flatten` and `ops.reshape`: the same numbers in another shape."""
    builder = Builder(call, name)
    x = call.inputs[0]
    before, after = flat_link(x.shape), flat_link(call.output.shape)
    shape = tuple(call.output.shape)
    forward = builder.section(
        [
            builder.step("input", x, link=before),
            builder.step("output", call.output, f"input.reshape{shape}", link=after),
        ],
        "The same numbers in another shape, in row order: the last axis runs fastest.",
    )
    backward = builder.section(
        [
            builder.step("gy", call.gy, link=after),
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

    def feature(label: str, array: Array, formula: str = "") -> Step:
        axes = ("image", "feature")
        return builder.step(label, array, formula, axes=axes, rows=images, link=_features)

    def result(label: str, array: Array, formula: str = "") -> Step:
        axes = ("image", "output")
        return builder.step(
            label, array, formula, axes=axes, rows=images, columns=outs, link=_results
        )

    weights: dict[str, Any] = {"axes": ("output", "feature"), "rows": outs, "link": _weights}
    biases: dict[str, Any] = {"axes": ("output",), "columns": outs, "link": _biases}
    weighting = builder.step("weight", weight, **weights)
    x_step = feature("input", x)
    product = result("product", be.matmul(x, weight.T), "input @ weight.T")
    plus = "" if bias is None else " + bias"
    forward = builder.section(
        [
            x_step,
            weighting,
            product,
            None if bias is None else builder.step("bias", bias, **biases),
            result("output", call.output, f"product{plus}"),
        ],
        "Each output is a sum of all features, each times its own weight.",
        worked=_worked(x_step, weighting, bias, product),
        total=Total(("product", "output"), ("input", "weight"), "bias"),
    )
    backward = builder.section(
        [
            result("gy", call.gy),
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
