"""autocast: which operation runs in which dtype, its casts on the tape, and copies made once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from op_calls import CALLS

import dualcnn
from dualcnn import Tensor, amp, nn, ops, optim
from dualcnn import functional as F
from dualcnn.backend import Backend


@pytest.fixture
def half(be: Backend) -> Backend:
    if be.name == "array_api_strict":
        pytest.skip("the array API standard has no float16")
    return be


def tensor(be: Backend, *shape: int, dtype: str = "float32", grad: bool = False) -> Tensor:
    values = np.random.default_rng(1).uniform(0.5, 2, shape)
    return Tensor(be.asarray(values.astype(dtype)), requires_grad=grad)


def labels(be: Backend, n: int) -> Any:
    return be.asarray(np.arange(n) % 3)


RUNS_IN: dict[str, tuple[str, Callable[[Backend, Tensor, Tensor], Tensor]]] = {
    "conv2d": ("float16", lambda be, x, w: F.conv2d(x, w)),
    "conv2d_relu": ("float16", lambda be, x, w: F.conv2d_relu(x, w)),
    "conv2d_relu_max_pool2d": (
        "float16",
        lambda be, x, w: F.conv2d_relu_max_pool2d(x, w, None, kernel_size=2),
    ),
    "linear": ("float16", lambda be, x, w: F.linear(x.flatten(1), w.flatten(1))),
    "matmul": ("float16", lambda be, x, w: x @ x),
    "softmax": ("float32", lambda be, x, w: F.softmax(x, 1)),
    "log_softmax": ("float32", lambda be, x, w: F.log_softmax(x, 1)),
    "cross_entropy": ("float32", lambda be, x, w: F.cross_entropy(x[:, :, 0, 0], labels(be, 2))),
    "nll_loss": ("float32", lambda be, x, w: F.nll_loss(x[:, :, 0, 0], labels(be, 2))),
    "mse_loss": ("float32", lambda be, x, w: F.mse_loss(x, x)),
    "sum": ("float32", lambda be, x, w: x.sum()),
    "pow": ("float32", lambda be, x, w: x**2),
}
"""Operations with a dtype of their own; the rest runs in that of the input."""


@pytest.mark.parametrize("given", ["float16", "float32"])
@pytest.mark.parametrize("name", RUNS_IN)
def test_the_dtype_an_operation_runs_in(half: Backend, name: str, given: str) -> None:
    expected, run = RUNS_IN[name]
    x, w = tensor(half, 2, 3, 4, 4, dtype=given), tensor(half, 4, 3, 4, 4)
    if name == "conv2d_relu_max_pool2d":
        w = w[:, :, :3, :3]
    with dualcnn.autocast("float16"):
        assert run(half, x, w).dtype == half.dtype(expected)


def test_every_other_operation_runs_as_its_input_comes(half: Backend) -> None:
    ruled = {rule.__name__ for rule in (*amp.NARROW, *amp.WIDE)}
    assert ruled == set(RUNS_IN)
    for name, call in CALLS.items():
        if name.partition(",")[0] in ruled:
            continue
        for dtype in ("float16", "float32"):
            with dualcnn.autocast():
                result = dualcnn.apply(call.op, *call.inputs(half, dtype), **call.params)
            y = result[0] if isinstance(result, tuple) else result
            assert y.dtype == half.dtype(dtype), name


@pytest.mark.parametrize("name", RUNS_IN)
def test_float64_is_left_alone(half: Backend, name: str) -> None:
    _, run = RUNS_IN[name]
    x, w = (tensor(half, *s, dtype="float64") for s in ((2, 3, 4, 4), (4, 3, 4, 4)))
    if name == "conv2d_relu_max_pool2d":
        w = w[:, :, :3, :3]
    with dualcnn.autocast():
        assert run(half, x, w).dtype == half.dtype("float64")


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: a + b,
        lambda a, b: b - a,
        lambda a, b: a * b,
        lambda a, b: b / a,
        lambda a, b: dualcnn.cat([a, b]),
    ],
    ids=["add", "sub", "mul", "div", "cat"],
)
def test_two_dtypes_meet_in_the_wider(half: Backend, join: Any) -> None:
    a, b = tensor(half, 2, 3, dtype="float16", grad=True), tensor(half, 2, 3, grad=True)
    with dualcnn.autocast():
        y = join(a, b)
        assert y.dtype == half.dtype("float32")
        assert join(a, a).dtype == half.dtype("float16")
        assert (a * 2.0).dtype == half.dtype("float16")
    y.backward(half.asarray(np.ones(y.shape), "float32"))
    for leaf in (a, b):
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2),
        nn.ReLU(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def test_parameters_and_their_gradients_stay_float32(half: Backend) -> None:
    dualcnn.manual_seed(3)
    model, x = network(), tensor(half, 4, 1, 8, 8)
    with dualcnn.autocast():
        y = model(x)
        loss = F.cross_entropy(y, labels(half, 4))
    assert y.dtype == half.dtype("float16")
    assert loss.dtype == half.dtype("float32")
    loss.backward()
    exact = F.cross_entropy(model(x), labels(half, 4))
    assert float(loss) == pytest.approx(float(exact), rel=5e-3)
    narrow = [half.to_numpy(p.grad) for p in model.parameters()]
    model.zero_grad()
    exact.backward()
    for found, param in zip(narrow, model.parameters(), strict=True):
        assert param.dtype == half.dtype("float32")
        assert found.dtype == np.float32
        expected = half.to_numpy(param.grad)
        np.testing.assert_allclose(found, expected, 0, 2e-2 * max(np.abs(expected).max(), 0.05))
    assert model[1].running_mean.dtype == half.dtype("float32")


# Copies.


@pytest.fixture
def casts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what was cast, in order."""
    seen: list[tuple[int, ...]] = []
    original = ops.astype

    def counted(x: Any, *, dtype: Any, needs: Any = (True,)) -> Any:
        seen.append(tuple(x.shape))
        return original(x, dtype=dtype, needs=needs)

    monkeypatch.setattr(ops, "astype", counted)
    return seen


def test_a_weight_is_cast_once_a_step(half: Backend, casts: list[tuple[int, ...]]) -> None:
    w = tensor(half, 3, 3, grad=True)
    x = tensor(half, 2, 3, dtype="float16")
    with dualcnn.autocast():
        y = F.linear(F.linear(x, w), w)
        loss = y.mean()
        assert casts == [(3, 3)]
    loss.backward()
    assert w.grad is not None
    assert w.grad.dtype == half.dtype("float32")
    with dualcnn.autocast():
        F.linear(x, w)
    assert casts == [(3, 3)] * 2


def test_a_block_around_several_steps_sees_the_new_weights(
    half: Backend, casts: list[tuple[int, ...]]
) -> None:
    w = tensor(half, 3, 3, grad=True)
    x = tensor(half, 2, 3, dtype="float16")
    optimizer = optim.SGD([w], lr=1.0)
    with dualcnn.autocast():
        for step in range(3):
            optimizer.zero_grad()
            y = F.linear(x, w)
            expected = half.to_numpy(x.data) @ half.to_numpy(w.data).T
            np.testing.assert_allclose(half.to_numpy(y.data), expected, 0, 2e-2)
            y.mean().backward()
            optimizer.step()
            assert casts == [(3, 3)] * (step + 1)


def test_two_losses_of_one_block_go_back_one_after_the_other(
    half: Backend, casts: list[tuple[int, ...]]
) -> None:
    """The copy that both share keeps nothing that the first backward would have to free."""
    w = tensor(half, 3, 3, grad=True)
    x = tensor(half, 2, 3, dtype="float16")
    with dualcnn.autocast():
        first, second = F.linear(x, w).mean(), F.linear(x, w).mean()
    assert casts == [(3, 3)]
    first.backward()
    once = half.to_numpy(w.grad).copy()
    second.backward()
    np.testing.assert_array_equal(half.to_numpy(w.grad), 2 * once)


def test_what_is_not_recorded_is_not_kept(half: Backend, casts: list[tuple[int, ...]]) -> None:
    """A copy made under no_grad would pass no gradient on."""
    w = tensor(half, 3, 3, grad=True)
    x = tensor(half, 2, 3, dtype="float16")
    with dualcnn.autocast():
        with dualcnn.no_grad():
            F.linear(x, w)
        loss = F.linear(x, w).mean()
        with dualcnn.no_grad():
            w.data = w.data * 2.0
            doubled = F.linear(x, w)
    assert casts == [(3, 3)] * 3
    assert float(doubled.mean()) == pytest.approx(2 * float(loss), rel=1e-2)
    loss.backward()
    assert w.grad is not None


def test_gradients_are_those_of_the_cast_values(half: Backend) -> None:
    """By hand: y = x16 @ w16.T, so gw = gy.T @ x16 and gx = gy @ w16, in float32 at the leaves."""
    x, w = tensor(half, 2, 3, grad=True), tensor(half, 4, 3, grad=True)
    with dualcnn.autocast():
        y = F.linear(x, w)
    gy = np.random.default_rng(4).normal(size=(2, 4)).astype("float16")
    y.backward(half.asarray(gy))
    x16, w16 = (half.to_numpy(t.data).astype("float16").astype("float64") for t in (x, w))
    np.testing.assert_allclose(half.to_numpy(y.data), x16 @ w16.T, 0, 8e-3)
    for leaf, expected in ((x, gy.astype("float64") @ w16), (w, gy.T.astype("float64") @ x16)):
        assert leaf.grad is not None
        assert leaf.grad.dtype == half.dtype("float32")
        np.testing.assert_allclose(half.to_numpy(leaf.grad), expected, 0, 4e-3)


# Blocks.


def test_blocks_nest_and_end() -> None:
    seen = [dualcnn.is_autocast_enabled()]
    with dualcnn.autocast():
        seen.append(dualcnn.is_autocast_enabled())
        with dualcnn.autocast(enabled=False):
            seen.append(dualcnn.is_autocast_enabled())
        seen.append(dualcnn.is_autocast_enabled())
        with pytest.raises(KeyError), dualcnn.autocast():
            raise KeyError
    seen.append(dualcnn.is_autocast_enabled())
    assert seen == [False, True, False, True, False]


def test_a_function_can_be_decorated_and_called_again() -> None:
    @dualcnn.autocast("float16")
    def product(x: Tensor) -> Tensor:
        return x @ x

    x = Tensor(np.ones((2, 2), "float32"))
    assert [str(product(x).dtype) for _ in range(2)] == ["float16"] * 2
    assert (x @ x).dtype == np.float32


def test_a_block_belongs_to_its_thread() -> None:
    found: list[bool] = []
    with dualcnn.autocast():
        thread = threading.Thread(target=lambda: found.append(dualcnn.is_autocast_enabled()))
        thread.start()
        thread.join()
    assert found == [False]


@pytest.mark.parametrize("dtype", ["bfloat16", "cuda", "float64"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    reason = "NumPy has none" if dtype == "bfloat16" else ""
    with (
        pytest.raises(ValueError, match=f'expected "float16".*got {dtype!r}.*{reason}'),
        dualcnn.autocast(dtype),
    ):
        pass


def test_plain_operations_run_as_they_are_given() -> None:
    with dualcnn.autocast():
        y, _ = ops.matmul(np.ones((2, 2), "float32"), np.ones((2, 2), "float32"))
    assert y.dtype == np.float32


def test_a_lazy_layer_gets_parameters_of_float32(half: Backend) -> None:
    first, lazy = nn.Linear(3, 4), nn.LazyLinear(2)
    with dualcnn.autocast():
        y = lazy(first(tensor(half, 2, 3)))
    assert y.dtype == half.dtype("float16")
    assert [p.dtype for p in lazy.parameters()] == [half.dtype("float32")] * 2


def test_a_namespace_without_float16_says_so() -> None:
    strict = Backend(pytest.importorskip("array_api_strict"))
    with dualcnn.backend.use(strict):
        x = tensor(strict, 2, 2)
        with dualcnn.autocast(), pytest.raises(TypeError, match="array_api_strict has no float16"):
            F.matmul(x, x)
