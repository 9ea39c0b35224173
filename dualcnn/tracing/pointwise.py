"""Activations, dropout and batch normalisation: layers that keep the shape, step by step."""

from __future__ import annotations

import math

from .building import Builder, Sections, flat_link
from .record import Call

__all__ = ["activation", "dropout", "normalization"]


def activation(call: Call, name: str) -> Sections:
    """The sections of an activation that works on each number alone."""
    told, formula, factor, by_factor = _ACTIVATIONS[call.op.__name__]
    slope = call.params.get("negative_slope")
    if slope is not None:
        formula, by_factor = (text.format(slope=slope) for text in (formula, by_factor))
    return _elementwise(call, name, (told, formula, factor, by_factor))


def dropout(call: Call, name: str) -> Sections:
    """The sections of dropout in training."""
    share = call.params["p"]
    told = f"Each number is dropped with probability {share:g}; the others grow to keep the mean."
    formula = "input * factor"
    by_factor = f"where(dropped, 0, 1 / (1 - {share:g}))"
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
            builder.step("input", x, link=link),
            derivative,
            builder.step("output", call.output, formula, link=link),
        ],
        told,
    )
    backward = builder.section(
        [
            builder.step("gy", call.gy, link=link),
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
        "input > 0",
    ),
    "leaky_relu": (
        "What is positive passes, what is not is made small.",
        "where(input > 0, input, {slope:g} * input)",
        "mask",
        "where(input > 0, 1, {slope:g})",
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


def normalization(call: Call, name: str) -> Sections | None:
    """The sections of `ops.batch_norm`, with the statistics that it used; None with its ReLU."""
    if call.params.get("relu"):
        return None
    builder, be = Builder(call, name), call.backend
    x, weight, bias, mean, variance = (*call.inputs, None, None, None, None)[:5]
    axes, link = ("channel",), flat_link(x.shape)
    of_batch = call.params["training"]
    if of_batch:
        _, _, (mean, variance) = call.again()
        count = math.prod(x.shape) // x.shape[1]
        # The operation returns the unbiased variance, which the running one takes in.
        variance = variance * ((count - 1) / count)
        source = ("input.mean()", "of each channel"), ("input.var()", "of each channel")
    else:
        source = ("", "the layer's running_mean"), ("", "the layer's running_var")
    plain = be.zeros((x.shape[1],), x.dtype)
    normal, *_ = call.again(x, plain + 1.0, plain, *call.inputs[3:])
    eps = call.params.get("eps", 1e-5)
    scaled = "".join(
        text for text, of in ((" * weight", weight), (" + bias", bias)) if of is not None
    )
    weight_step = None if weight is None else builder.step("weight", weight, axes=axes)
    normal_step = builder.step(
        "normalized", normal, f"(input - mean) / sqrt(variance + {eps:g})", link=link
    )
    forward = builder.section(
        [
            builder.step("input", x, link=link),
            builder.step("mean", mean, *source[0], axes=axes),
            builder.step("variance", variance, *source[1], axes=axes),
            normal_step,
            weight_step,
            None if bias is None else builder.step("bias", bias, axes=axes),
            builder.step("output", call.output, f"normalized{scaled}", link=link),
        ],
        "Each channel is moved to mean 0 and scaled to variance 1; then its weight scales and its "
        "bias moves it again.",
    )
    backward = builder.section(
        [
            builder.step("gy", call.gy, link=link),
            builder.gradient("gb", 2, "gy.sum()", "of each channel", axes=axes),
            builder.gradient("gw", 1, "(gy * normalized).sum()", "of each channel", axes=axes),
            builder.gradient("gx", 0, _back_through(of_batch, weight is not None), link=link),
        ],
        "Every number of a channel moved its mean and its variance too, so the gradient loses what "
        "would only move these."
        if of_batch
        else "The statistics are fixed, so each number is alone: a product with a constant.",
        backward=True,
        recalled=(normal_step, weight_step),
    )
    return forward, backward


def _back_through(of_batch: bool, weighted: bool) -> str:
    deviation = "sqrt(variance + eps)"
    factor = f"weight / {deviation}" if weighted else f"1 / {deviation}"
    if not of_batch:
        return f"gy * {factor}"
    return f"(gy - gy.mean() - normalized * (gy * normalized).mean()) * {factor}"
