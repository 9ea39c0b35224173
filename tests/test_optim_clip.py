"""clip_grad_norm_ against the norm of one long float64 vector."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import stand_in
from conftest import make_backend
from optim_check import SHAPES, assert_close, give, make, values

from dualcnn import Tensor, backend, nn, optim, to_numpy
from dualcnn.backend import Backend
from dualcnn.optim.buffer import gradient_arrays

BIG = 1e3


def norm_of(gradients: list[Any], order: float) -> float:
    flat = np.concatenate([np.ravel(g) for g in gradients if g is not None])
    return float(np.linalg.norm(flat, order))


def gradients_of(params: list[Tensor]) -> list[Any]:
    return [None if p.grad is None else np.array(to_numpy(p.grad)) for p in params]


@pytest.mark.parametrize("order", [2.0, 1, 3.0, math.inf])
@pytest.mark.parametrize("home", ["flat", "loose", "half"])
@pytest.mark.parametrize("max_norm", [0.5, BIG])
def test_clipping(be: Backend, order: float, home: str, max_norm: float) -> None:
    params = make(be, values(1))
    gradients: list[Any] = values(2)
    numbers = {"flat": (0, 1, 2, 3, 4, 5), "loose": (), "half": (0, 2, 3, 5)}[home]
    # An optimizer that nobody holds takes its buffers with it.
    held = [optim.SGD([params[i] for i in numbers])] if numbers else []
    give(params, gradients)
    assert len(gradient_arrays(params)) == {"flat": 1, "loose": 6, "half": 3}[home]
    norm = optim.clip_grad_norm_(params, max_norm, order)
    want = norm_of(gradients, order)
    assert backend.of(norm=norm) is be
    assert norm.shape == ()
    np.testing.assert_allclose(to_numpy(norm), want, rtol=1e-12)
    factor = min(1.0, max_norm / (want + 1e-6))
    assert_close(gradients_of(params), [g * factor for g in gradients])
    assert len(held) == (home != "loose")


@pytest.mark.parametrize("chosen", [(0, 1, 2, 3, 4, 5), (2,), (0, 3, 4), (5, 1)])
@pytest.mark.parametrize("missing", [(), (1,), (0, 4), (0, 1, 2, 3, 4, 5)])
def test_old_gradients_and_others_have_no_part(
    be: Backend, chosen: tuple[int, ...], missing: tuple[int, ...]
) -> None:
    params = make(be, values(1))
    optimizer = optim.SGD(params)
    give(params, [BIG * g for g in values(3)])
    optimizer.zero_grad()
    gradients = [None if i in missing else g for i, g in enumerate(values(2))]
    give(params, gradients)
    norm = optim.clip_grad_norm_([params[i] for i in chosen], 0.1)
    part = [gradients[i] for i in chosen if gradients[i] is not None]
    want = norm_of(part, 2) if part else 0.0
    np.testing.assert_allclose(to_numpy(norm), want, rtol=1e-6)
    for i, (got, gradient) in enumerate(zip(gradients_of(params), gradients, strict=True)):
        if gradient is None:
            assert got is None
        else:
            factor = 0.1 / (want + 1e-6) if i in chosen else 1.0
            assert_close([got], [gradient * factor])


def test_gradients_assigned_by_hand_and_repeated_parameters(be: Backend) -> None:
    params = make(be, values(1))
    optimizer = optim.SGD(params, lr=1.0)
    for param, gradient in zip(params, values(2), strict=True):
        param.grad = be.asarray(gradient)
    norm = optim.clip_grad_norm_([*params, *params], 1.0)
    want = norm_of(values(2), 2)
    np.testing.assert_allclose(to_numpy(norm), want, rtol=1e-12)
    optimizer.step()
    steps = [np.asarray(g) / (want + 1e-6) for g in values(2)]
    assert_close(
        [np.array(to_numpy(p.data)) for p in params],
        [x - s for x, s in zip(values(1), steps, strict=True)],
    )


def test_a_parameter_that_another_optimizer_took(be: Backend) -> None:
    params = make(be, values(1))
    first = optim.SGD(params)
    give(params, values(2))
    second = optim.SGD(params[1:3])
    optim.clip_grad_norm_(params, 1.0)
    factor = 1 / (norm_of(values(2), 2) + 1e-6)
    assert_close(gradients_of(params), [g * factor for g in values(2)])
    assert first.param_groups[0]["params"][1] is second.param_groups[0]["params"][0]


def test_parameters_that_moved_to_another_backend_since(be: Backend) -> None:
    params = make(backend.get("cpu"), values(1))
    optimizer = optim.SGD(params, lr=1.0)
    give(params, values(2))
    for param in params[2:] if be is backend.get("cpu") else params:
        # What Module.to does.
        param._data, param.grad = be.asarray(param.data), be.asarray(param.grad)
        param.data_slot = param.grad_slot = None
    optim.clip_grad_norm_(params, 1.0)
    factor = 1 / (norm_of(values(2), 2) + 1e-6)
    assert_close(gradients_of(params), [g * factor for g in values(2)])
    assert {param.backend for param in params} == {be}
    assert {backend.of(grad=param.grad) for param in params} == {be}
    optimizer.step()
    steps = [factor * g for g in values(2)]
    got = [np.array(to_numpy(p.data)) for p in params]
    assert_close(got, [x - s for x, s in zip(values(1), steps, strict=True)])


def test_parameters_of_two_dtypes(be: Backend) -> None:
    params = [*make(be, values(1)[:2]), *make(be, values(1)[2:], "float32")]
    optimizer = optim.SGD(params)
    give(params, values(2))
    norm = optim.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    want = norm_of(values(2), 2)
    assert norm.dtype == be.dtype("float64")
    np.testing.assert_allclose(to_numpy(norm), want, rtol=1e-6)
    assert_close(gradients_of(params), [g / (want + 1e-6) for g in values(2)], rtol=1e-6)
    assert [p.grad.dtype for p in params] == [p.dtype for p in params]


def test_a_single_tensor_and_none_at_all(be: Backend) -> None:
    (param,) = make(be, [np.zeros(2)])
    assert float(to_numpy(optim.clip_grad_norm_(param, 1.0))) == 0.0
    give([param], [np.array([3.0, 4.0])])
    assert float(to_numpy(optim.clip_grad_norm_(param, math.inf))) == 5.0
    assert_close(gradients_of([param]), [np.array([3.0, 4.0])])


@pytest.mark.parametrize("order", [2.0, 1.0, math.inf])
def test_gradients_in_half_precision(be: Backend, order: float) -> None:
    """400 twenties: their squares come to more than float16 holds, and so does their sum by 20."""
    if be.name == "array_api_strict":
        pytest.skip("array_api_strict has no float16")
    param = Tensor(be.asarray(np.ones(400, "float16")), requires_grad=True)
    for value in (20.0, 200.0):
        param.grad = be.asarray(np.full(400, value, "float16"))
        norm = optim.clip_grad_norm_([param], 1.0, order)
        wanted = {2.0: value * 20, 1.0: value * 400, math.inf: value}[order]
        np.testing.assert_allclose(to_numpy(norm), wanted, rtol=1e-3)
        assert param.grad.dtype == be.dtype("float16")
        np.testing.assert_allclose(to_numpy(param.grad), value / wanted, rtol=2e-3)


def test_a_gradient_of_no_elements(be: Backend) -> None:
    empty, param = make(be, [np.ones(0), np.ones(2)], "float64")
    give([empty, param], [np.ones(0), np.array([3.0, 4.0])])
    for order, wanted in ((2.0, 5.0), (math.inf, 4.0)):
        assert float(to_numpy(optim.clip_grad_norm_([empty, param], math.inf, order))) == wanted
        assert float(to_numpy(optim.clip_grad_norm_([empty], 1.0, order))) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite(be: Backend, bad: float) -> None:
    params = make(be, values(1), "float32")
    optimizer = optim.SGD(params)
    gradients = values(2)
    gradients[2][0, 0, 0, 0] = bad
    give(params, gradients)
    with pytest.raises(RuntimeError, match=f"norm of the gradients is {bad}"):
        optim.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert not math.isfinite(float(to_numpy(optim.clip_grad_norm_(params, math.inf))))
    with np.errstate(invalid="ignore"):
        assert not math.isfinite(float(to_numpy(optim.clip_grad_norm_(params, 1.0))))
    # The next step starts clean: nothing of it stays between the parameters.
    optimizer.zero_grad()
    give(params, values(3))
    norm = optim.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    np.testing.assert_allclose(to_numpy(norm), norm_of(values(3), 2), rtol=1e-6)


def test_a_million_gradients_in_single_precision(be: Backend) -> None:
    gradient = np.random.default_rng(0).uniform(size=(1000, 1200)).astype("float32")
    (param,) = params = make(be, [0 * gradient], "float32")
    optimizer = optim.SGD(params, lr=1.0)
    param.grad = be.asarray(gradient)
    norm = optim.clip_grad_norm_(param, 1.0)
    want = norm_of([gradient.astype("float64")], 2)
    np.testing.assert_allclose(to_numpy(norm), want, rtol=1e-5)
    optimizer.step()
    np.testing.assert_allclose(to_numpy(param.data), -gradient / want, rtol=1e-5)


def test_no_synchronisation_and_few_launches() -> None:
    be = make_backend("cupy-stand-in")
    with backend.use(be):
        params = make(be, values(1, SHAPES * 5), "float32")
        optimizer = optim.SGD(params)
        give(params, values(2, SHAPES * 5))
        stand_in.counters.reset()
        optim.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        assert stand_in.counters.synchronisations == 0
        assert stand_in.counters.host_copies == 0
        assert stand_in.counters.launches <= 3  # the product, its root, the scaling


def test_bounds_are_checked() -> None:
    params = make(backend.get("cpu"), values(1))
    with pytest.raises(ValueError, match="max_norm >= 0, got -1"):
        optim.clip_grad_norm_(params, -1)
    with pytest.raises(ValueError, match="norm_type > 0, got 0"):
        optim.clip_grad_norm_(params, 1, 0)
    with pytest.raises(TypeError, match=r"such as model\.parameters\(\), got a ReLU"):
        optim.clip_grad_norm_(nn.Sequential(nn.ReLU()), 1.0)


def test_parameters_on_two_backends() -> None:
    strict = make_backend("strict")
    params = [*make(backend.get("cpu"), [np.ones(2)]), *make(strict, [np.ones(2)])]
    with backend.use(strict):
        for param in params:
            param.grad = param.backend.asarray(np.ones(2))
        with pytest.raises(backend.MixedBackendsError, match="gradient_1"):
            optim.clip_grad_norm_(params, 1.0)
