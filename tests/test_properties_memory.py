"""How values lie in memory changes no result, and nothing that was given is changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from strategies import examples, given, host, lay, layouts, repeat, st, whole
from strategies_ops import CALLS, Call

from dualcnn import Tensor, nn
from dualcnn import functional as F
from dualcnn.backend import Backend


def c_order(be: Backend, values: Any) -> Any:
    return be.asarray(np.array(values, order="C"))


def equal(be: Backend, actual: Any, expected: Any, exact: bool, what: str) -> None:
    if actual is None or expected is None:
        assert actual is expected
    elif exact:
        np.testing.assert_array_equal(host(be, actual), host(be, expected), what)
    else:
        scale = 1 + np.abs(host(be, expected)).max(initial=0)
        np.testing.assert_allclose(
            host(be, actual), host(be, expected), 0, 1e-12 * scale, err_msg=what
        )


@pytest.mark.parametrize("name", CALLS)
@examples(10)
@given(data=st.data())
def test_results_and_gradients_do_not_depend_on_the_memory_order(
    be: Backend, name: str, data: Any
) -> None:
    """In any order of the axes, with gaps, backwards, read-only, with repeated values (stride 0).

    Bit for bit where each result is one operation or an exact sum, else within rounding: sums are
    added up in the order of memory.
    """
    call: Call = data.draw(CALLS[name])
    at = [None if x is None else data.draw(layouts(x.ndim)) for x in call.inputs]
    values = [
        None if x is None else repeat(x, layout) for x, layout in zip(call.inputs, at, strict=True)
    ]
    plain = [None if x is None else c_order(be, x) for x in values]
    placed = [
        None if x is None else lay(be, x, layout) for x, layout in zip(values, at, strict=True)
    ]
    expected, vjp = call.run(plain)
    y, laid_vjp = call.run(placed)
    equal(be, y, expected, call.exact, "y")
    dtype = host(be, expected).dtype
    gy = whole(data.draw(st.integers(0, 999)), tuple(expected.shape)).astype(dtype)
    gy_at = data.draw(layouts(gy.ndim))
    gy = repeat(gy, gy_at)
    laid_gy = lay(be, gy, gy_at)
    kept_y = host(be, y)
    for i, (g, laid) in enumerate(zip(vjp(c_order(be, gy)), laid_vjp(laid_gy), strict=True)):
        equal(be, laid, g, call.exact, f"gradient {i}")
        if laid is not None:
            assert tuple(laid.shape) == values[i].shape
    for given_, before in zip([*placed, laid_gy], [*values, gy], strict=True):
        if before is not None:
            np.testing.assert_array_equal(host(be, given_), before, "an input changed")
    np.testing.assert_array_equal(host(be, y), kept_y, "the output changed afterwards")


@examples(10)
@given(shape=st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(4, 7)] * 2), data=st.data())
def test_a_network_takes_any_memory_order(be: Backend, shape: Any, data: Any) -> None:
    """Its output, and every gradient, for images and weights in one order and in another."""
    images = whole(data.draw(st.integers(0, 999)), shape)
    image_at = data.draw(layouts(4, repeated=False))
    weights = [
        whole(i, size) / 4
        for i, size in enumerate([(4, shape[1], 3, 3), (4,), (4,), (4,), (3, 4 * 2 * 2), (3,)])
    ]
    weights_at = [data.draw(layouts(w.ndim, repeated=False)) for w in weights]
    labels = be.asarray(np.arange(shape[0]) % 3)

    def run(place: Any) -> list[Any]:
        x = Tensor(place(images, image_at), requires_grad=True)
        ws = [
            Tensor(place(w, at), requires_grad=True)
            for w, at in zip(weights, weights_at, strict=True)
        ]
        h = F.conv2d(x, ws[0], ws[1], padding=1)
        h = F.relu(F.batch_norm(h, None, None, ws[2], ws[3], training=True))
        h = F.adaptive_avg_pool2d(F.max_pool2d(h, 2), 2)
        loss = F.cross_entropy(F.linear(h.flatten(1), ws[4], ws[5]), labels)
        loss.backward()
        return [loss.data, x.grad, *(w.grad for w in ws)]

    expected = run(lambda values, _: c_order(be, values))
    for i, (a, b) in enumerate(
        zip(run(lambda values, at: lay(be, values, at)), expected, strict=True)
    ):
        equal(be, a, b, False, f"result {i}")


@examples(10)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    data=st.data(),
)
def test_parameters_and_states_take_any_memory_order(be: Backend, shape: Any, data: Any) -> None:
    values = whole(data.draw(st.integers(0, 999)), shape)

    class Holder(nn.Module):
        def __init__(self, array: Any) -> None:
            super().__init__()
            self.weight = nn.Parameter(array)
            self.register_buffer("count", Tensor(array))

    first = Holder(lay(be, values, data.draw(layouts(len(shape), repeated=False))))
    np.testing.assert_array_equal(host(be, first.weight.data), values)
    at = data.draw(layouts(len(shape), repeated=False))
    first.weight.data = lay(be, values * 2, at)
    state = first.state_dict()
    np.testing.assert_array_equal(host(be, state["weight"]), values * 2)
    other = Holder(c_order(be, np.zeros(shape)))
    other.load_state_dict({name: lay(be, host(be, a), at) for name, a in state.items()})
    np.testing.assert_array_equal(host(be, other.weight.data), values * 2)
    np.testing.assert_array_equal(host(be, other.count.data), values)
