"""Which algorithm a convolution runs by, how it is forced, and what each one's rounding is."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import oracles
import pytest
from op_check import place, rng

import dualcnn
from dualcnn import backend, functional, ops
from dualcnn.backend import Backend
from dualcnn.backend.workers import WorkerPool
from dualcnn.ops import algorithms, geometry
from dualcnn.ops.algorithms import NAMES

PADS = ((1, 1), (1, 1))


def arrays(dtype: str = "float32", channels: int = 32) -> tuple[Any, Any, Any]:
    draw = rng(71)
    x = draw.normal(size=(8, channels, 24, 24)).astype(dtype)
    w = draw.normal(size=(32, channels, 3, 3)).astype(dtype)
    return x, w, draw.normal(size=(8, 32, 24, 24)).astype(dtype)


def bits(x: Any, w: Any, gy: Any, **params: Any) -> list[bytes]:
    y, vjp = ops.conv2d(x, w, padding=1, **params)
    return [v.tobytes() for v in (y, *vjp(gy)[:2])]


@pytest.mark.parametrize(
    ("name", "bound"), [("im2col", 2e-6), ("winograd2", 4e-6), ("winograd4", 4e-5)]
)
def test_rounding_in_single_precision(name: str, bound: float) -> None:
    """Of the largest value, against float64, with 64 channels of normal numbers."""
    draw = rng(72)
    x, w = draw.normal(size=(2, 64, 16, 16)), draw.normal(size=(64, 64, 3, 3))
    gy = draw.normal(size=(2, 64, 16, 16))
    expected = oracles.conv2d_by_taps(gy, x, w, (1, 1), PADS, (1, 1), 1)
    y, vjp = ops.conv2d(x.astype("float32"), w.astype("float32"), padding=1, algorithm=name)
    for actual, exact in zip((y, *vjp(gy.astype("float32"))[:2]), expected, strict=True):
        assert np.abs(actual - exact).max() < bound * np.abs(exact).max()


def test_algorithms_differ_in_bits_and_the_argument_forces_one() -> None:
    x, w, gy = arrays()
    by_name = {name: bits(x, w, gy, algorithm=name) for name in NAMES}
    assert len({tuple(b) for b in by_name.values()}) == len(NAMES)
    assert bits(x, w, gy) == by_name["winograd4"], "the table's choice for 288 tiles"


def test_blocks_force_one_and_nest() -> None:
    x, w, gy = arrays()
    exact, default = bits(x, w, gy, algorithm="im2col"), bits(x, w, gy)
    with dualcnn.algorithms(exact=True):
        assert bits(x, w, gy) == exact
        with dualcnn.algorithms("winograd4"):
            assert bits(x, w, gy) == default
            assert bits(x, w, gy, algorithm="im2col") == exact
        assert bits(x, w, gy) == exact
        seen: list[Any] = []
        other = threading.Thread(target=lambda: seen.append(bits(x, w, gy)))
        other.start()
        other.join()
        assert seen == [default], "a block belongs to its thread"
    assert bits(x, w, gy) == default


def test_an_exception_ends_a_block_too() -> None:
    x, w, gy = arrays()
    with pytest.raises(KeyError), dualcnn.algorithms(exact=True):
        raise KeyError
    assert bits(x, w, gy) == bits(x, w, gy, algorithm="winograd4")


def test_backward_runs_by_the_algorithm_of_its_forward() -> None:
    x, w, gy = arrays()
    with dualcnn.algorithms(exact=True):
        _, vjp = ops.conv2d(x, w, padding=1)
    assert [g.tobytes() for g in vjp(gy)[:2]] == bits(x, w, gy, algorithm="im2col")[1:]


def test_a_block_leaves_other_convolutions_to_im2col(be: Backend) -> None:
    x = place(be, rng(73).normal(size=(2, 4, 6, 6)))
    w = place(be, rng(74).normal(size=(4, 4, 5, 5)))
    plain = be.to_numpy(ops.conv2d(x, w)[0])
    with dualcnn.algorithms("winograd4"):
        np.testing.assert_array_equal(be.to_numpy(ops.conv2d(x, w)[0]), plain)


def test_tensors_take_the_block_too() -> None:
    x, w, gy = arrays()
    with dualcnn.algorithms(exact=True):
        y = functional.conv2d(x, w, padding=1)
    assert y.numpy().tobytes() == bits(x, w, gy, algorithm="im2col")[0]


@pytest.mark.parametrize(
    ("shape", "params", "expected"),
    [
        ((128, 32, 28, 28), {}, "Winograd"),
        ((128, 16, 28, 28), {}, "im2col"),
        ((2, 32, 28, 28), {}, "Winograd"),
        ((1, 32, 28, 28), {}, "im2col"),
        ((128, 32, 28, 28), {"stride": 2}, "im2col"),
        ((128, 32, 28, 28), {"dilation": 2}, "im2col"),
        ((128, 32, 28, 28), {"padding": 3}, "im2col"),
    ],
)
def test_the_table(shape: tuple[int, ...], params: dict[str, Any], expected: str) -> None:
    be = backend.get("numpy")
    x = np.zeros((shape[0], *shape[2:], shape[1]), "float32")
    w = np.zeros((32, 3, 3, shape[1]), "float32")
    wanted = {"stride": 1, "padding": 0, "dilation": 1, **params}
    window = geometry.convolution(2, shape, (32, shape[1], 3, 3), None, *wanted.values(), groups=1)

    def chosen(x: Any, be: Backend = be) -> str:
        algorithm = algorithms.chosen(be, None, x, w, window, 1)
        return "Winograd" if isinstance(algorithm, algorithms.Winograd) else "im2col"

    assert chosen(x) == expected
    assert chosen(x.astype("float64")) == "im2col"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(size: int) -> None:
    x, w, gy = arrays()
    be = backend.get("numpy")
    kept = be.pool
    results = []
    for pool in (kept, WorkerPool(size)):
        be.pool = pool
        try:
            results.append(bits(x, w, gy, algorithm="winograd4"))
        finally:
            be.pool = kept
    assert results[0] == results[1]


def test_what_cannot_be_is_refused() -> None:
    x, w, _ = arrays()
    with pytest.raises(ops.GeometryError, match=r"winograd4 is for 3x3 kernels .*stride \(2, 2\)"):
        ops.conv2d(x, w, stride=2, algorithm="winograd4")
    with pytest.raises(ValueError, match="expected an algorithm of im2col, winograd2, winograd4"):
        ops.conv2d(x, w, algorithm="fft")
    with (
        pytest.raises(ValueError, match="expected an algorithm of"),
        dualcnn.algorithms("fft"),
    ):
        pass
    with (
        pytest.raises(ValueError, match='exact=True means conv2d="im2col"'),
        dualcnn.algorithms("winograd4", exact=True),
    ):
        pass
