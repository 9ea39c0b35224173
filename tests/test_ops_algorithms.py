"""Which algorithm a convolution runs by, how it is forced, and what each one's rounding is."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import oracles
import pytest
from op_check import make_heavy, place, rng
from threadpoolctl import threadpool_limits

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
    ("name", "bound"),
    [("im2col", 2e-6), ("chwn", 2e-6), ("winograd2", 4e-6), ("winograd4", 4e-5)],
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
    names = [name for name in NAMES if name != "depthwise"]
    by_name = {name: bits(x, w, gy, algorithm=name) for name in names}
    assert len({tuple(b) for b in by_name.values()}) == len(names)
    assert bits(x, w, gy) == by_name["winograd4"], "the table's choice for 288 tiles"
    one = rng(75).normal(size=(32, 1, 3, 3)).astype("float32")
    by_name = {n: bits(x, one, gy, algorithm=n, groups=32) for n in ("im2col", "depthwise")}
    assert by_name["im2col"] != by_name["depthwise"] == bits(x, one, gy, groups=32)


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


TABLE = [
    ((128, 32, 28, 28), 32, {}, "winograd4"),
    ((128, 16, 28, 28), 32, {}, "im2col"),
    ((128, 32, 28, 28), 16, {}, "im2col"),
    # 7 x 7 tiles an image, and 64 are wanted.
    ((2, 32, 28, 28), 32, {}, "winograd4"),
    ((1, 32, 28, 28), 32, {}, "im2col"),
    ((4, 64, 16, 16), 64, {"padding": 1}, "winograd4"),
    ((3, 64, 16, 16), 64, {"padding": 1}, "im2col"),
    # 2 x 2 tiles; with heavy weights 32 will do, if the maps are no smaller.
    ((8, 128, 8, 8), 256, {"padding": 1}, "winograd4"),
    ((8, 128, 8, 8), 255, {"padding": 1}, "im2col"),
    ((7, 128, 8, 8), 256, {"padding": 1}, "im2col"),
    ((8, 128, 7, 7), 256, {"padding": 1}, "im2col"),
    ((16, 128, 7, 7), 256, {"padding": 1}, "winograd4"),
    ((128, 32, 28, 28), 32, {"stride": 2}, "im2col"),
    ((128, 32, 28, 28), 32, {"dilation": 2}, "im2col"),
    ((128, 32, 28, 28), 32, {"padding": 3}, "im2col"),
    ((128, 32, 28, 28), 32, {"groups": 2}, "im2col"),
    ((1, 4, 8, 8), 4, {"groups": 4}, "depthwise"),
    ((1, 4, 8, 8), 4, {"groups": 4, "stride": 2, "dilation": 2}, "depthwise"),
    ((128, 4, 8, 8), 8, {"groups": 4}, "im2col"),
    ((64, 8, 28, 28), 16, {}, "chwn"),
    ((64, 9, 28, 28), 16, {}, "im2col"),
    ((64, 8, 28, 28), 17, {}, "im2col"),
    ((4, 8, 28, 28), 16, {}, "chwn"),
    ((3, 8, 28, 28), 16, {}, "im2col"),
    ((64, 8, 28, 28), 16, {"stride": (2, 1)}, "im2col"),
    ((64, 8, 28, 28), 16, {"dilation": (1, 2)}, "im2col"),
]


def choice(
    be: Backend, shape: tuple[int, ...], outputs: int, params: dict[str, Any], dtype: str
) -> str:
    """The name of the algorithm that the library chooses."""
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **params}
    weight = (outputs, shape[1] // given["groups"], 3, 3)
    x = be.zeros((shape[0], *shape[2:], shape[1]), be.dtype(dtype))
    w = be.zeros((outputs, 3, 3, weight[1]), be.dtype(dtype))
    window = geometry.convolution(2, shape, weight, None, *given.values())
    found = algorithms.chosen(be, None, x, w, window, given["groups"])
    return next(name for name, one in algorithms._ALGORITHMS.items() if one is found)


@pytest.mark.parametrize(("shape", "outputs", "params", "expected"), TABLE)
def test_the_table(
    be: Backend, shape: tuple[int, ...], outputs: int, params: dict[str, Any], expected: str
) -> None:
    measured = be.name == "numpy"
    assert choice(be, shape, outputs, params, "float32") == (expected if measured else "im2col")
    direct = "im2col" if expected == "winograd4" or not measured else expected
    assert choice(be, shape, outputs, params, "float64") == direct
    with dualcnn.algorithms(exact=True):
        assert choice(be, shape, outputs, params, "float32") == direct


THREADED = {
    **{name: ((8, 32, 24, 24), (32, 32, 3, 3), 1) for name in NAMES if name != "depthwise"},
    "chwn": ((40, 6, 24, 24), (16, 6, 3, 3), 1),
    "depthwise": ((24, 32, 24, 24), (32, 1, 3, 3), 32),
}


@pytest.mark.parametrize("heavy", [False, True], ids=["light", "heavy"])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_threads_gives_the_same_bits(
    name: str, heavy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shape, kernel, groups), draw = THREADED[name], rng(76)
    x, w, gy = (
        draw.normal(size=s).astype("float32")
        for s in (shape, kernel, (shape[0], kernel[0], *shape[2:]))
    )
    b = draw.normal(size=kernel[0]).astype("float32")
    if heavy:
        make_heavy(monkeypatch)
    be = backend.get("numpy")
    params: dict[str, Any] = {"padding": 1, "algorithm": name, "groups": groups}

    def run() -> list[bytes]:
        results = []
        pooling: dict[str, Any] = {"kernel_size": 2}
        for op, options in (
            (ops.conv2d, {}),
            (ops.conv2d_relu, {}),
            (ops.conv2d_relu_max_pool2d, pooling),
        ):
            y, vjp = op(x, w, b, **params, **options)
            g = np.ascontiguousarray(gy[:, :, : y.shape[2], : y.shape[3]])
            results += [v.tobytes() for v in (y, *vjp(g))]
        return results

    found = []
    for size in (1, 2, 3):
        monkeypatch.setattr(be, "pool", WorkerPool(size))
        with threadpool_limits(1 if size == 1 else None, user_api="blas"):
            found.append(run())
    assert found[0] == found[1] == found[2]


def test_what_cannot_be_is_refused() -> None:
    x, w, _ = arrays()
    with pytest.raises(ops.GeometryError, match=r"winograd4 is for 3x3 kernels .*stride \(2, 2\)"):
        ops.conv2d(x, w, stride=2, algorithm="winograd4")
    with pytest.raises(ops.GeometryError, match=r"depthwise is for one kernel a channel.* got 32 "):
        ops.conv2d(x, w, algorithm="depthwise")
    with pytest.raises(ops.GeometryError, match=r"chwn is for two .*stride 1.* dilation \(2, 1"):
        ops.conv2d(x, w, dilation=(2, 1), algorithm="chwn")
    known = "expected an algorithm of im2col, depthwise, chwn, winograd2, winograd4, got 'fft'"
    with pytest.raises(ValueError, match=known):
        ops.conv2d(x, w, algorithm="fft")
    with (
        pytest.raises(ValueError, match="expected an algorithm of"),
        dualcnn.algorithms("fft"),
    ):
        pass
    for name in ("winograd2", "winograd4"):
        with (
            pytest.raises(ValueError, match=f"exact=True leaves no place for {name}, got both"),
            dualcnn.algorithms(name, exact=True),
        ):
            pass


@pytest.mark.parametrize("name", ["im2col", "chwn"])
def test_exact_and_a_direct_algorithm_go_together(name: str) -> None:
    x, w, gy = arrays()
    with dualcnn.algorithms(name, exact=True):
        assert bits(x, w, gy) == bits(x, w, gy, algorithm=name)
