"""The shape laws are PyTorch's: the same output shape, or both refuse, for any geometry.

Where the two differ on purpose stands in `DIFFERENT`, with the reason; each is shown to be so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from strategies import example, examples, given, pairs, shapes, st

from dualcnn import functional as F
from dualcnn.backend import Backend

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what PyTorch warns of at import is its own affair
    torch = pytest.importorskip("torch", reason="PyTorch isn't installed: pip install torch")

REFUSED = "refused"
Shapes = tuple[tuple[int, ...], ...]


def outcome(call: Any, errors: tuple[type[BaseException], ...]) -> tuple[int, ...] | str:
    """The shape of what is returned, or that it was refused."""
    try:
        return tuple(call().shape)
    except errors:
        return REFUSED


def ours(be: Backend, name: str, given_: Shapes, params: dict[str, Any]) -> Any:
    arrays = [be.zeros(shape, be.dtype("float32")) for shape in given_]
    return outcome(lambda: getattr(F, name)(*arrays, **params), (ValueError, TypeError))


def theirs(name: str, given_: Shapes, params: dict[str, Any]) -> Any:
    arrays = [torch.zeros(shape) for shape in given_]
    function = getattr(torch.nn.functional, name)
    with warnings.catch_warnings():
        # An even kernel with padding="same" makes PyTorch warn of a copy.
        warnings.simplefilter("ignore")
        return outcome(lambda: function(*arrays, **params), (RuntimeError, ValueError, TypeError))


class Difference(NamedTuple):
    """Where the library and PyTorch differ on purpose."""

    reason: str
    applies: Callable[[str, Shapes, dict[str, Any]], bool]
    refuses: str
    """Which of the two refuses."""
    example: tuple[str, Shapes, dict[str, Any]]


def least(value: Any) -> int:
    return min(v for v in value if v is not None) if isinstance(value, tuple) else value


def wider_than_half(p: dict[str, Any]) -> bool:
    """Whether some padding is over half of the kernel size along its axis."""
    kernel, padding = (np.broadcast_to(p[name], 2) for name in ("kernel_size", "padding"))
    return bool((2 * padding > kernel).any())


DIFFERENT = [
    Difference(
        "PyTorch looks at no dilation of an empty batch; a mistake is one for any batch",
        lambda name, given_, p: name == "conv2d" and 0 in given_[0] and least(p["dilation"]) < 1,
        "ours",
        ("conv2d", ((0, 1, 3, 3), (1, 1, 1, 1)), {"dilation": 0}),
    ),
    Difference(
        "Maps of no channels are pooled to maps of no channels, as they are convolved by PyTorch",
        lambda name, given_, p: name.endswith("_pool2d") and given_[0][-3] == 0,
        "theirs",
        ("avg_pool2d", ((1, 0, 3, 3),), {"kernel_size": 3}),
    ),
    Difference(
        "Padding may be half of what a dilated kernel covers; PyTorch counts it without its gaps",
        lambda name, given_, p: name == "max_pool2d" and wider_than_half(p),
        "theirs",
        ("max_pool2d", ((1, 1, 7, 7),), {"kernel_size": 3, "padding": 2, "dilation": 2}),
    ),
    Difference(
        "An adaptive pooling to no parts is a mistake; PyTorch returns an empty array",
        lambda name, given_, p: name.startswith("adaptive") and least(p["output_size"]) == 0,
        "ours",
        ("adaptive_avg_pool2d", ((1, 1, 3, 3),), {"output_size": 0}),
    ),
    Difference(
        "A mean of no pixels is a mistake; PyTorch refuses it too, but as a single part it is NaN",
        lambda name, given_, p: name.startswith("adaptive") and 0 in given_[0][-2:],
        "ours",
        ("adaptive_avg_pool2d", ((1, 1, 0, 3),), {"output_size": 1}),
    ),
    Difference(
        "One number in a tuple stands for both axes; here alone PyTorch wants two",
        lambda name, given_, p: name.startswith("adaptive") and np.shape(p["output_size"]) == (1,),
        "theirs",
        ("adaptive_avg_pool2d", ((1, 1, 3, 3),), {"output_size": (2,)}),
    ),
]


def agree(be: Backend, name: str, given_: Shapes, params: dict[str, Any]) -> None:
    mine, other = ours(be, name, given_, params), theirs(name, given_, params)
    if mine != other:
        refuses = {mine: "ours", other: "theirs"}.get(REFUSED)
        assert any(d.refuses == refuses and d.applies(name, given_, params) for d in DIFFERENT), (
            f"{name} of {given_} with {params}: {mine}, and PyTorch's {other}"
        )


@pytest.mark.parametrize("difference", DIFFERENT, ids=lambda d: d.reason.partition(";")[0])
def test_each_difference_is_one(be: Backend, difference: Difference) -> None:
    name, given_, params = difference.example
    assert difference.applies(name, given_, params)
    refusing = {"ours": ours(be, name, given_, params), "theirs": theirs(name, given_, params)}
    assert refusing.pop(difference.refuses) == REFUSED
    assert REFUSED not in refusing.values()


def numbers(least: int, most: int) -> Any:
    """One number for both axes, or one an axis; seldom one below `least`."""
    often = st.integers(least, most)
    one = st.integers(0, 19).flatmap(lambda n: st.just(least - 1) if n == 0 else often)
    return st.one_of(one, st.tuples(one, one), st.tuples(one), st.tuples(one, one, one))


mostly = st.integers(0, 4).map(bool)


@st.composite
def batches(draw: Any, channels: int, size: int) -> tuple[int, ...]:
    """`(N, C, H, W)`, seldom with N = 0 or without pixels, or `(C, H, W)`."""
    lead = draw(st.sampled_from([(1,), (2,), (1,), (0,), ()]))
    return (*lead, channels, *draw(pairs(0 if channels and not draw(mostly) else 1, size)))


@st.composite
def convolutions(draw: Any) -> tuple[Shapes, dict[str, Any]]:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 0, -1]))
    times, per_group, outputs = max(1, groups), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    outputs *= times if draw(mostly) else 1
    x = draw(batches(per_group * times + (not draw(mostly)), 7))
    arrays = (x, (outputs, per_group, *draw(pairs(1, 4))), (outputs + (not draw(mostly)),))
    params = {
        "stride": draw(numbers(1, 3)),
        "padding": draw(st.one_of(numbers(0, 3), st.sampled_from(["same", "valid", "full"]))),
        "dilation": draw(numbers(1, 3)),
        "groups": groups,
    }
    return arrays if draw(st.booleans()) else arrays[:2], params


NO_PIXELS = (1, 2, 0, 6)
HANGING = {"kernel_size": 2, "stride": None, "padding": 0, "ceil_mode": True}
"""With an input of one pixel: the only window hangs over the end."""


@examples(70)
@given(case=convolutions())
@example(case=((NO_PIXELS, (2, 2, 2, 2)), {"padding": 1, "dilation": 1}))
def test_convolution(be: Backend, case: Any) -> None:
    agree(be, "conv2d", *case)


@st.composite
def pooled(draw: Any) -> tuple[Shapes, dict[str, Any]]:
    x = draw(batches(draw(st.sampled_from([1, 2, 2, 0])), 9))
    params = {
        "kernel_size": draw(numbers(1, 4)),
        "stride": draw(st.one_of(st.none(), numbers(1, 4))),
        "padding": draw(numbers(0, 2)),
        "ceil_mode": draw(st.booleans()),
    }
    return (x,), params


@examples(70)
@given(case=pooled(), dilation=numbers(1, 3))
@example(case=(((1, 1, 1, 1),), HANGING), dilation=1)
@example(case=((NO_PIXELS,), {"kernel_size": 2, "padding": 1}), dilation=1)
def test_max_pooling(be: Backend, case: Any, dilation: Any) -> None:
    agree(be, "max_pool2d", case[0], {**case[1], "dilation": dilation})


@examples(70)
@given(case=pooled(), include=st.booleans())
@example(case=(((1, 1, 1, 1),), HANGING), include=True)
@example(case=((NO_PIXELS,), {"kernel_size": 2, "padding": 1}), include=False)
def test_average_pooling(be: Backend, case: Any, include: bool) -> None:
    agree(be, "avg_pool2d", case[0], {**case[1], "count_include_pad": include})


@examples(40)
@given(
    shape=st.integers(0, 3).flatmap(lambda channels: batches(channels, 7)),
    size=st.one_of(numbers(1, 8), st.tuples(st.none(), st.integers(1, 4))),
)
@example(shape=NO_PIXELS, size=2)
def test_adaptive_pooling(be: Backend, shape: Any, size: Any) -> None:
    agree(be, "adaptive_avg_pool2d", (shape,), {"output_size": size})


@examples(40)
@given(lead=shapes(0, 3), inputs=st.integers(1, 4), outputs=st.integers(1, 4), fits=st.data())
def test_linear(be: Backend, lead: Any, inputs: int, outputs: int, fits: Any) -> None:
    x = (*lead, inputs + (not fits.draw(mostly)))
    b = (outputs + (not fits.draw(mostly)),)
    agree(be, "linear", (x, (outputs, inputs), b), {})
