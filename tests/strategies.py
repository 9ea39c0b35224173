"""What the property tests draw, and how often: values, sizes, geometries, memory layouts.

Examples are the same on every run. `DUALCNN_EXAMPLES=50 pytest tests/test_properties_*.py` tries 50
times as many, new ones each time. Where hypothesis isn't installed, a test module that imports this
one is skipped.

Values are mostly small whole numbers: sums of their products are exact in float64 in whatever order
they are added, so equal means equal.
"""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import numpy as np
import pytest

from dualcnn.backend import Backend

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis isn't installed")
st = pytest.importorskip("hypothesis.strategies", reason="hypothesis isn't installed")
given, example, assume = hypothesis.given, hypothesis.example, hypothesis.assume
check = hypothesis.HealthCheck

TIMES = int(os.environ.get("DUALCNN_EXAMPLES", "1"))


def examples(count: int) -> Any:
    """`@examples(20)` above `@given(...)`: that many examples, times `DUALCNN_EXAMPLES`.

    The fixtures of these tests hold nothing that an example changes, so examples may share them.
    """
    return hypothesis.settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        print_blob=True,
        # Without the phase that explains a failure line by line, which can take a minute.
        phases=[phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain],
        suppress_health_check=[check.function_scoped_fixture, check.too_slow],
    )


seeds = st.integers(0, 2**32 - 1)


def whole(seed: int, shape: tuple[int, ...], least: int = -4, most: int = 4) -> Any:
    """Small whole numbers as float64."""
    return np.random.default_rng(seed).integers(least, most + 1, shape).astype("float64")


def fractions(seed: int, shape: tuple[int, ...]) -> Any:
    """Normally distributed float64."""
    return np.random.default_rng(seed).normal(size=shape)


def host(be: Backend, x: Any) -> Any:
    """The values, as they are now."""
    return np.array(be.to_numpy(x))


def shapes(least: int = 0, most: int = 4, size: int = 5) -> Any:
    """Shapes of `least` to `most` axes, each of 1 to `size`."""
    return st.lists(st.integers(1, size), min_size=least, max_size=most).map(tuple)


def pairs(least: int, most: int) -> Any:
    return st.tuples(st.integers(least, most), st.integers(least, most))


# Geometry.


class Geometry(NamedTuple):
    """A window that fits: each field has one entry a spatial axis, `pads` is (before, after)."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @property
    def padding(self) -> tuple[int, ...]:
        """(top, left, bottom, right), as the library takes it."""
        return tuple(a for a, _ in self.pads) + tuple(b for _, b in self.pads)

    @property
    def params(self) -> dict[str, Any]:
        return {"stride": self.stride, "dilation": self.dilation, "padding": self.padding}


@st.composite
def geometries(
    draw: Any, axes: int = 2, dilation: int = 3, padding: int = 3, stride: int = 3, spare: int = 5
) -> Geometry:
    """Windows over `axes` axes, with at most that dilation, padding and stride."""
    fields: list[tuple[Any, ...]] = []
    for _ in range(axes):
        kernel = draw(st.integers(1, 4))
        far = draw(st.integers(1, dilation))
        pads = draw(pairs(0, padding))
        room = draw(st.integers(0, spare))
        size = max(1, far * (kernel - 1) + 1 - sum(pads) + room)
        fields.append((size, kernel, draw(st.integers(1, stride)), far, pads))
    size, kernel, steps, far, pads = zip(*fields, strict=True)
    return Geometry(size, kernel, steps, far, pads)


class Pooling(NamedTuple):
    """The spatial sizes of an input, and the parameters of a pooling that fits."""

    size: tuple[int, int]
    params: dict[str, Any]


@st.composite
def poolings(
    draw: Any, dilation: int = 1, padded: bool = True, kernel: int = 4, spare: int = 6
) -> Pooling:
    field: list[tuple[int, ...]] = []
    for _ in range(2):
        k, far = draw(st.integers(1, kernel)), draw(st.integers(1, dilation))
        extent = far * (k - 1) + 1
        # Less than half of the kernel: with dilation, a window could see nothing but padding else.
        pad = draw(st.integers(0, k // 2)) if padded and far == 1 else 0
        size = max(1, extent - 2 * pad + draw(st.integers(0, spare)))
        field.append((size, k, draw(st.integers(1, 4)), far, pad))
    size, kernels, stride, far, pad = zip(*field, strict=True)
    params = {"kernel_size": kernels, "stride": stride, "padding": pad}
    if dilation > 1:
        params["dilation"] = far
    return Pooling(size, {**params, "ceil_mode": draw(st.booleans())})


# Memory.


class Layout(NamedTuple):
    """How values lie in memory: the axes from slowest to fastest, the step along each, and which
    axes repeat one value (stride 0).
    """

    order: tuple[int, ...]
    steps: tuple[int, ...]
    repeated: tuple[bool, ...]
    read_only: bool


@st.composite
def layouts(draw: Any, ndim: int, repeated: bool = True) -> Layout:
    axes = list(range(ndim))
    channels_last = [0, *axes[2:], 1] if ndim > 2 else axes
    order = draw(
        st.one_of(st.just(axes), st.just(axes[::-1]), st.just(channels_last), st.permutations(axes))
    )
    steps = draw(
        st.one_of(
            st.just([1] * ndim),
            st.lists(st.sampled_from([1, 2, -1, -2]), min_size=ndim, max_size=ndim),
        )
    )
    seldom = st.lists(st.integers(0, 3).map(lambda n: n == 3), min_size=ndim, max_size=ndim)
    still = draw(seldom) if repeated else [False] * ndim
    return Layout(tuple(order), tuple(steps), tuple(still), draw(st.booleans()))


def repeat(values: Any, layout: Layout) -> Any:
    """The values that an array of that layout can hold: alike along repeated axes."""
    first = tuple(slice(0, 1) if still else slice(None) for still in layout.repeated)
    return np.array(np.broadcast_to(values[first], values.shape))


def lay(be: Backend, values: Any, layout: Layout) -> Any:
    """The values on the backend in that layout, among memory that holds NaN or 99."""
    host_ = np.asarray(values)
    first = tuple(slice(0, 1) if still else slice(None) for still in layout.repeated)
    kept = host_[first]
    around = np.full(
        [n * abs(s) for n, s in zip(kept.shape, layout.steps, strict=True)],
        math.nan if host_.dtype.kind == "f" else 99,
    ).astype(host_.dtype)
    where = (..., *(slice(None, None, s) for s in layout.steps))
    around[where] = kept
    stored = be.asarray(np.array(around.transpose(layout.order), order="C"))
    if layout.read_only:
        memory = stored if isinstance(stored, np.ndarray) else getattr(stored, "_host", None)
        if memory is not None:
            memory.flags.writeable = False
    back = tuple(int(i) for i in np.argsort(layout.order))
    placed = be.xp.permute_dims(stored, back)[where]
    return be.xp.broadcast_to(placed, host_.shape) if any(layout.repeated) else placed
