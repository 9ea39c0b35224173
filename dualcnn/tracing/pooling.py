"""Maximum and average pooling, step by step."""

from __future__ import annotations

from typing import Any

from ..backend import to_numpy
from ..ops import geometry
from .building import Builder, Sections
from .links import PoolingLinks
from .record import Call
from .result import Marks

__all__ = ["average_pooling", "max_pooling"]


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
            builder.step("input", x, marks=marks, link=lift(links.image)),
            builder.step(
                "output", call.output, note="the maximum of each window", link=lift(links.output)
            ),
            builder.step(
                "places",
                places,
                note="where in input each maximum lies: row * width + column",
                link=lift(links.output),
            ),
        ],
        f"Of each window of {kh}x{kw} numbers only the largest passes; of equals the first.",
    )
    backward = builder.section(
        [
            builder.step("gy", call.gy, link=lift(links.output)),
            builder.gradient(
                "gx", 0, note="gy at places, 0 elsewhere", marks=marks, link=lift(links.image)
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
            builder.step("input", call.inputs[0], link=lift(links.image)),
            builder.step(
                "output", call.output, note="the mean of each window", link=lift(links.output)
            ),
        ],
        f"Each window of {kh}x{kw} numbers becomes its mean.",
    )
    backward = builder.section(
        [
            builder.step("gy", call.gy, link=lift(links.output)),
            builder.gradient(
                "gx", 0, note="gy shared out over each window", link=lift(links.image)
            ),
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
