"""Hold an op and its gradients against values from an oracle, in many memory layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dualcnn import backend
from dualcnn.ops import geometry, im2col, winograd_tiles

Values = NDArray[Any]
Op = Callable[..., Any]

DTYPES = ("float64", "float32")
LAYOUTS = ("plain", "strided", "reversed", "permuted", "read_only")
TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "float16": 2.5e-3}
"""Of the largest value: sums of some hundred terms keep that many digits. For float16, whose
numbers are 2**-11 or 4.9e-4 apart from a half to 1, that is the rounding of inputs and of what an
operation keeps in memory: sums themselves are of float32."""


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def place(
    be: backend.Backend, values: Values, dtype: str | None = None, layout: str = "plain"
) -> Any:
    """The values on the backend. Layouts other than "plain" share memory with values not asked for,
    run backwards, or lie channels-last.
    """
    host = np.array(values, dtype, order="C")
    all_axes = range(host.ndim)
    everywhere: Any = (..., *[slice(None) for _ in all_axes])
    every_other: Any = (..., *[slice(None, None, 2) for _ in all_axes])
    backwards: Any = (..., *[slice(None, None, -1) for _ in all_axes])
    if layout == "strided":
        around = np.full([2 * n for n in host.shape], np.nan if host.dtype.kind == "f" else 99)
        around = around.astype(host.dtype)
        around[every_other] = host
        return be.asarray(around)[every_other]
    if layout == "reversed":
        return be.asarray(np.array(host[backwards], order="C"))[backwards]
    if layout == "permuted" and host.ndim > 1:
        order = (0, *range(2, host.ndim), 1) if host.ndim > 2 else (1, 0)
        stored = be.asarray(np.array(host.transpose(order), order="C"))
        return be.xp.permute_dims(stored, tuple(int(i) for i in np.argsort(order)))
    placed = be.asarray(host)[everywhere]
    if layout == "read_only":
        memory = placed if isinstance(placed, np.ndarray) else getattr(placed, "_host", None)
        if memory is not None:
            memory.flags.writeable = False
    return placed


def same(actual: Values, expected: Values, dtype: str, what: str = "") -> None:
    """Equal within rounding, measured against the largest of the expected values."""
    expected = np.asarray(expected)
    finite = np.abs(expected[np.isfinite(expected)])
    scale = max(1.0, float(finite.max(initial=0.0)))
    np.testing.assert_allclose(actual, expected, 0, TOLERANCE[dtype] * scale, err_msg=what)


def assert_array(be: backend.Backend, result: Any, shape: tuple[int, ...], dtype: str) -> None:
    """An array of the backend, not a scalar of the namespace, of that shape and dtype."""
    assert be.owns(result), f"expected an array of {be}, got {type(result)}"
    assert tuple(result.shape) == shape
    assert result.dtype == be.dtype(dtype)


def make_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of any size count as heavy, and Winograd keeps the tiles of one image at a time."""

    def is_heavy(be: backend.Backend, x: Any, w: Any, window: Any, groups: int) -> bool:
        return groups == 1

    monkeypatch.setattr(im2col, "_is_heavy", is_heavy)
    # What was decided before for these shapes was decided by other limits.
    monkeypatch.setattr(geometry.Window, "plans", property(lambda window: {}))
    monkeypatch.setattr(winograd_tiles, "HEAVY_WEIGHT", 0)
    monkeypatch.setattr(winograd_tiles, "MOST_TILES", 1)


def half_too(be: backend.Backend, algorithm: str | None) -> bool:
    """Whether there is float16: the array API standard has none, and Winograd takes none."""
    winograd = algorithm is not None and algorithm.startswith("winograd")
    return be.name != "array_api_strict" and not winograd


def check_op(
    be: backend.Backend,
    op: Op,
    inputs: Sequence[Values | None],
    expected: Values,
    gy: Values,
    gradients: Sequence[Values | None],
    layouts: Sequence[str] = LAYOUTS,
    dtypes: Sequence[str] = DTYPES,
    **params: Any,
) -> None:
    """Run the op and its vjp: values, gradients, shapes, dtypes; nothing given may change."""
    with_half = dtypes is DTYPES and half_too(be, params.get("algorithm"))
    for dtype in (*dtypes, "float16") if with_half else dtypes:
        for layout in layouts if dtype != "float16" else layouts[:1]:
            label = f"{dtype}, {layout}"
            placed = [None if x is None else place(be, x, dtype, layout) for x in inputs]
            y, vjp, *_ = op(*placed, **params)
            assert_array(be, y, expected.shape, dtype)
            y_host = np.array(be.to_numpy(y))
            same(y_host, expected, dtype, f"y ({label})")
            placed_gy = place(be, gy, dtype, layout)
            returned = vjp(placed_gy)
            assert isinstance(returned, tuple)
            assert len(returned) == len(gradients)
            for place_, (gradient, wanted) in enumerate(zip(returned, gradients, strict=True)):
                if wanted is None:
                    assert gradient is None, f"gradient {place_} ({label})"
                    continue
                assert_array(be, gradient, wanted.shape, dtype)
                same(be.to_numpy(gradient), wanted, dtype, f"gradient {place_} ({label})")
            np.testing.assert_array_equal(be.to_numpy(y), y_host, "the output changed afterwards")
            for given, before in zip([*placed, placed_gy], [*inputs, gy], strict=True):
                if before is not None:
                    kept = np.asarray(before, dtype)
                    np.testing.assert_array_equal(be.to_numpy(given), kept, "an input changed")


def check_needs(
    be: backend.Backend, op: Op, inputs: Sequence[Values], gy: Values, **params: Any
) -> None:
    """For every choice of `needs`: the gradients not asked for are None, the others unchanged."""
    placed = [place(be, x) for x in inputs]
    reference = op(*placed, **params)[1](place(be, gy))
    for choice in np.ndindex(*[2] * len(inputs)):
        needs = tuple(bool(n) for n in choice)
        gradients = op(*placed, needs=needs, **params)[1](place(be, gy))
        for needed, gradient, full in zip(needs, gradients, reference, strict=True):
            if needed:
                same(be.to_numpy(gradient), be.to_numpy(full), "float64", f"needs={needs}")
            else:
                assert gradient is None, f"needs={needs}"
