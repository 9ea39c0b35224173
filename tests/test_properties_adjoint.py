"""A vjp is the adjoint of what it belongs to: ⟨A x, c⟩ = ⟨x, A* c⟩, for every linear op."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from strategies import examples, fractions, geometries, given, host, seeds, st, whole
from strategies_ops import CALLS, LINEAR

from dualcnn import ops
from dualcnn.backend import Backend


@st.composite
def windows(draw: Any) -> tuple[Any, Any, Any]:
    """A channels-last input, the values of its windows, and their geometry."""
    at = draw(geometries(axes=draw(st.integers(1, 3)), padding=0, spare=4))
    n, c = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    x = whole(draw(seeds), (n, *at.size, c))
    out = [
        len(range(0, size - far * (k - 1), step))
        for size, k, step, far in zip(at.size, at.kernel, at.stride, at.dilation, strict=True)
    ]
    return x, whole(draw(seeds), (n, *out, *at.kernel, c)), at


@examples(30)
@given(case=windows())
def test_fold_is_the_adjoint_of_windows(be: Backend, case: tuple[Any, Any, Any]) -> None:
    x, c, at = case
    view = host(be, be.windows(be.asarray(x), at.kernel, at.stride, at.dilation))
    folded = host(be, be.fold(be.asarray(c), at.size, at.stride, at.dilation))
    assert view.shape == c.shape
    assert folded.shape == x.shape
    assert np.sum(view * c) == np.sum(x * folded)
    # Every value that a window shows is counted: a fold of ones says how often.
    shown = host(be, be.fold(be.asarray(np.ones(c.shape)), at.size, at.stride, at.dilation))
    assert shown.sum() == c.size
    assert np.sum(view) == np.sum(x * shown)


@examples(20)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=seeds, data=st.data())
def test_cropping_is_the_adjoint_of_padding(be: Backend, shape: Any, seed: int, data: Any) -> None:
    widths = tuple(data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) for _ in shape)
    x, value = whole(seed, tuple(shape)), data.draw(st.sampled_from([0.0, 2.0, -math.inf]))
    padded = host(be, be.pad(be.asarray(x), widths, value))
    np.testing.assert_array_equal(padded, np.pad(x, widths, constant_values=value))
    c = whole(seed + 1, padded.shape)
    inner = tuple(slice(a, a + n) for n, (a, _) in zip(shape, widths, strict=True))
    zeros = host(be, be.pad(be.asarray(x), widths))
    assert np.sum(zeros * c) == np.sum(x * c[inner])


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("name", LINEAR)
@examples(12)
@given(data=st.data())
def test_a_vjp_is_the_adjoint(be: Backend, name: str, data: Any) -> None:
    call = data.draw(CALLS[name])
    placed = [None if x is None else be.asarray(x) for x in call.inputs]
    y, vjp = call.run(placed)
    y = host(be, y)
    c = whole(data.draw(seeds), y.shape)
    gradients = vjp(be.asarray(c))
    for i in call.linear:
        x, g = call.inputs[i], host(be, gradients[i])
        assert g.shape == x.shape
        if call.exact:
            assert np.sum(y * c) == np.sum(x * g), f"input {i}"
        else:
            scale = 1 + np.sum(np.abs(y * c)) + np.sum(np.abs(x * g))
            assert abs(np.sum(y * c) - np.sum(x * g)) <= 1e-13 * scale, f"input {i}"


@examples(15)
@given(call=CALLS["concat"], seed=seeds)
def test_the_vjp_of_concat_is_the_adjoint(be: Backend, call: Any, seed: int) -> None:
    y, vjp = call.run([be.asarray(x) for x in call.inputs])
    c = whole(seed, tuple(y.shape))
    parts = [np.sum(x * host(be, g)) for x, g in zip(call.inputs, vjp(be.asarray(c)), strict=True)]
    assert np.sum(host(be, y) * c) == sum(parts)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("name", ["conv2d", "linear"])
@examples(10)
@given(data=st.data())
def test_the_bias_is_added_once_to_each_output(be: Backend, name: str, data: Any) -> None:
    call = data.draw(CALLS[name])
    x, w, _ = call.inputs
    b = whole(data.draw(seeds), w.shape[:1])
    with_bias, vjp = call.run([be.asarray(a) for a in (x, w, b)])
    without, _ = call.run([be.asarray(x), be.asarray(w), None])
    added = host(be, with_bias) - host(be, without)
    axis = 1 if name == "conv2d" else -1
    np.testing.assert_array_equal(
        np.moveaxis(added, axis, -1), np.broadcast_to(b, np.moveaxis(added, axis, -1).shape)
    )
    c = whole(data.draw(seeds), added.shape)
    assert np.sum(added * c) == np.sum(b * host(be, vjp(be.asarray(c))[2]))


@pytest.mark.usefixtures("parts")
@examples(20)
@given(call=CALLS["max_pool2d"], seed=seeds)
def test_max_pooling_hands_on_every_gradient_once(be: Backend, call: Any, seed: int) -> None:
    (x,) = call.inputs
    y, vjp = call.run([be.asarray(x)])
    c = whole(seed, tuple(y.shape), 1, 9)
    gx = host(be, vjp(be.asarray(c))[0])
    np.testing.assert_array_equal(gx.sum(axis=(2, 3)), c.sum(axis=(2, 3)))
    # While no two values of x are equal, max pooling is linear around x.
    distinct = np.random.default_rng(seed).permutation(x.size).reshape(x.shape).astype("float64")
    y, vjp = call.run([be.asarray(distinct)])
    gx = host(be, vjp(be.asarray(c))[0])
    step = fractions(seed, x.shape) / 8
    step = np.clip(step, -0.4, 0.4)
    moved, _ = call.run([be.asarray(distinct + step)])
    change = np.sum((host(be, moved) - host(be, y)) * c)
    assert change == pytest.approx(np.sum(step * gx), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", CALLS)
@examples(5)
@given(data=st.data())
def test_a_vjp_is_linear(be: Backend, name: str, data: Any) -> None:
    call = data.draw(CALLS[name])
    y, vjp = call.run([None if x is None else be.asarray(x) for x in call.inputs])
    a, b = (whole(data.draw(seeds), tuple(y.shape)) for _ in range(2))
    factor = data.draw(st.sampled_from([-2.0, 0.0, 0.5]))

    def gradients(gy: Any) -> list[Any]:
        found = vjp(be.asarray(np.asarray(gy, str(y.dtype).rpartition(".")[2])))
        return [None if g is None else host(be, g) for g in found]

    for ga, gb, both in zip(gradients(a), gradients(b), gradients(a * factor + b), strict=True):
        if both is not None:
            scale = 1 + np.abs(ga).max(initial=0) + np.abs(gb).max(initial=0)
            np.testing.assert_allclose(both, ga * factor + gb, 0, 1e-12 * scale)


@examples(15)
@given(call=CALLS["avg_pool2d"], seed=seeds)
def test_average_pooling_without_counted_padding_keeps_the_sum_of_gradients(
    be: Backend, call: Any, seed: int
) -> None:
    params = {**call.params, "count_include_pad": False}
    y, vjp = ops.avg_pool2d(be.asarray(call.inputs[0]), **params)
    c = whole(seed, tuple(y.shape))
    gx = host(be, vjp(be.asarray(c))[0])
    np.testing.assert_allclose(gx.sum(axis=(2, 3)), c.sum(axis=(2, 3)), 1e-12, 1e-11)
