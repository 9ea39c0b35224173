"""GradScaler: the scale's course, and what a skipped update leaves as it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import optim_check
import pytest
import stand_in

import dualcnn
from dualcnn import Tensor, nn, optim
from dualcnn import functional as F
from dualcnn.backend import Backend, CupyBackend

KINDS: dict[str, Any] = {
    "SGD": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "dampened": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, lr=0.1),
    "Adam, no memory": lambda p: optim.Adam(p, lr=0.1, betas=(0, 0)),
    "amsgrad": lambda p: optim.Adam(p, lr=0.1, amsgrad=True, weight_decay=0.1),
    "AdamW": lambda p: optim.AdamW(p, lr=0.1),
    "Adadelta": lambda p: optim.Adadelta(p, maximize=True),
}


def give(scaler: optim.GradScaler, params: list[Any], seed: int, bad: float | None) -> None:
    """Gradients as of a scaled loss; `bad` in the place of one number."""
    be = params[0].backend
    scale = float(scaler.scale(Tensor(be.asarray(np.ones(()), "float32"))))
    values = [v * scale for v in optim_check.values(seed)]
    if bad is not None:
        values[1].reshape(-1)[0] = bad
    put(params, values)


def put(params: list[Any], values: list[Any]) -> None:
    for param, value in zip(params, values, strict=True):
        param.grad = param.backend.asarray(value, param.dtype)


def state_of(be: Backend, params: list[Any], optimizer: optim.Optimizer) -> list[Any]:
    """Parameters and moments, as numbers on the host."""
    found = [np.array(be.to_numpy(p.data)) for p in params]
    for entry in copy.deepcopy(optimizer.state_dict()["state"]).values():
        found += [np.array(be.to_numpy(v)) if hasattr(v, "shape") else v for v in entry.values()]
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_skipped_step_never_was(be: Backend, kind: str, bad: float, dtype: str) -> None:
    """Steps 1, 3 and 4 overflow: the rest is what the optimizer alone does in two steps."""
    params, plain = (optim_check.make(be, optim_check.values(1), dtype) for _ in range(2))
    scaled, alone = KINDS[kind](params), KINDS[kind](plain)
    scaler = optim.GradScaler(init_scale=8.0)
    before = [np.array(be.to_numpy(p.data)) for p in params]
    for step, overflow in enumerate([bad, None, bad, bad, None]):
        give(scaler, params, step, overflow)
        scaler.step(scaled)
        scaler.update()
        if overflow is None:
            put(plain, optim_check.values(step))
            alone.step()
        elif step == 0:
            for value, param in zip(before, params, strict=True):
                np.testing.assert_array_equal(be.to_numpy(param.data), value)
            assert scaled.state_dict()["state"] == {}
    assert scaler.get_scale() == 1.0
    found, expected = state_of(be, params, scaled), state_of(be, plain, alone)
    assert len(found) == len(expected)
    for value, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, wanted, 1e-5, 1e-6)
    # What was counted by the device goes on without a scaler.
    put(params, optim_check.values(9))
    scaled.step()
    put(plain, optim_check.values(9))
    alone.step()
    for value, wanted in zip(state_of(be, params, scaled), state_of(be, plain, alone), strict=True):
        np.testing.assert_allclose(value, wanted, 1e-5, 1e-6)


@pytest.mark.parametrize("kind", ["momentum", "dampened", "Adam", "amsgrad"])
def test_counts_of_parameters_that_join_later(be: Backend, kind: str) -> None:
    """Each has its own count, whichever updates were skipped before it came."""
    params, plain = (optim_check.make(be, optim_check.values(1), "float32") for _ in range(2))
    scaled, alone = KINDS[kind](params), KINDS[kind](plain)
    scaler = optim.GradScaler(init_scale=2.0)
    for step, (overflow, late) in enumerate([(None, True), (math.inf, True), (None, False)] * 2):
        give(scaler, params, step, overflow)
        put(plain, optim_check.values(step))
        if late:
            params[0].grad = plain[0].grad = None
        scaler.step(scaled)
        scaler.update()
        if overflow is None:
            alone.step()
    for value, wanted in zip(state_of(be, params, scaled), state_of(be, plain, alone), strict=True):
        np.testing.assert_allclose(value, wanted, 1e-5, 1e-6)


def test_the_course_of_the_scale(be: Backend) -> None:
    """Two good steps in a row double it, an overflow halves it and starts the count anew."""
    params = optim_check.make(be, optim_check.values(1), "float32")
    optimizer = optim.SGD(params, lr=0.1)
    scaler = optim.GradScaler(init_scale=4.0, growth_interval=2)
    seen = []
    for overflow in (None, None, None, math.inf, None, None, math.nan, math.inf, None):
        give(scaler, params, 1, overflow)
        scaler.step(optimizer)
        scaler.update()
        seen.append((scaler.get_scale(), scaler.state_dict()["_growth_tracker"]))
    assert seen == [(4, 1), (8, 0), (8, 1), (4, 0), (4, 1), (8, 0), (4, 0), (2, 0), (2, 1)]


def test_the_scale_stays_finite(be: Backend) -> None:
    params = optim_check.make(be, optim_check.values(1), "float32")
    optimizer = optim.SGD(params, lr=0.1)
    scaler = optim.GradScaler(init_scale=2.0**127, growth_interval=1)
    scaler.scale(Tensor(be.asarray(np.ones(()), "float32")))
    put(params, optim_check.values(1))
    scaler.step(optimizer)
    with np.errstate(over="ignore"):
        scaler.update()
    assert scaler.get_scale() == 2.0**127


def test_gradients_are_clipped_as_they_are(be: Backend) -> None:
    params, plain = (optim_check.make(be, optim_check.values(1), "float32") for _ in range(2))
    scaled, alone = optim.SGD(params, lr=0.1), optim.SGD(plain, lr=0.1)
    scaler = optim.GradScaler(init_scale=1024.0)
    give(scaler, params, 2, None)
    scaler.unscale_(scaled)
    norm = optim.clip_grad_norm_(params, 0.5)
    scaler.step(scaled)
    scaler.update()
    put(plain, optim_check.values(2))
    expected = optim.clip_grad_norm_(plain, 0.5)
    alone.step()
    np.testing.assert_allclose(be.to_numpy(norm), be.to_numpy(expected), 1e-6)
    for a, b in zip(params, plain, strict=True):
        np.testing.assert_allclose(be.to_numpy(a.data), be.to_numpy(b.data), 1e-6)


def test_one_overflow_halves_for_both_optimizers_but_skips_one(be: Backend) -> None:
    sets = [optim_check.make(be, optim_check.values(s), "float32") for s in (1, 2)]
    optimizers = [optim.SGD(params, lr=0.1) for params in sets]
    before = [np.array(be.to_numpy(params[0].data)) for params in sets]
    scaler = optim.GradScaler(init_scale=2.0)
    for params, overflow in zip(sets, (math.inf, None), strict=True):
        give(scaler, params, 3, overflow)
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 1.0
    same = [bool((be.to_numpy(p[0].data) == b).all()) for p, b in zip(sets, before, strict=True)]
    assert same == [True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_a_flag_decides_about_a_step(be: Backend, kind: str) -> None:
    params, plain = (optim_check.make(be, optim_check.values(1), "float32") for _ in range(2))
    flagged, alone = KINDS[kind](params), KINDS[kind](plain)
    for seed, go in ((1, False), (2, True), (3, False), (4, True)):
        put(params, optim_check.values(seed))
        flagged.step_where(be.full((), go, be.dtype("bool")))
        if go:
            put(plain, optim_check.values(seed))
            alone.step()
    for value, wanted in zip(
        state_of(be, params, flagged), state_of(be, plain, alone), strict=True
    ):
        np.testing.assert_allclose(value, wanted, 1e-5, 1e-6)


def test_an_overflow_of_the_scaled_loss_is_no_warning(be: Backend) -> None:
    """Pytest makes errors of warnings here; of a gradient without a scaler NumPy does warn."""
    if be.name == "array_api_strict":
        pytest.skip("it has NumPy's warnings, and no backend of its own to keep them quiet")
    x = Tensor(be.asarray(np.ones(3), "float32"), requires_grad=True)
    optimizer, scaler = optim.SGD([x], lr=1.0), optim.GradScaler()
    scaler.scale((x * 3.0).mean()).backward(be.asarray(np.array(1e38, "float32")))
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 32768.0
    np.testing.assert_array_equal(be.to_numpy(x.data), 1)


class Descent(optim.Optimizer):
    """Somebody's own, which knows of no flag."""

    def _update(self, group: dict[str, Any], run: Any) -> None:
        run.data[...] = run.data - run.grad * group["lr"]


def test_another_optimizer_is_skipped_by_reading_the_flag(be: Backend) -> None:
    params = optim_check.make(be, optim_check.values(1), "float32")
    optimizer, scaler = Descent(params, {"lr": 0.5}), optim.GradScaler(init_scale=2.0)
    for seed, overflow in ((1, math.nan), (2, None)):
        before = [np.array(be.to_numpy(p.data)) for p in params]
        give(scaler, params, seed, overflow)
        stand_in.counters.reset()
        scaler.step(optimizer)
        waits = stand_in.counters.synchronisations
        assert waits == (1 if isinstance(be, CupyBackend) else 0)
        scaler.update()
        for old, param, value in zip(before, params, optim_check.values(seed), strict=True):
            wanted = old if overflow is not None else old - 0.5 * value
            np.testing.assert_allclose(be.to_numpy(param.data), wanted, 1e-5, 1e-6)


def test_a_saved_state_goes_on(be: Backend) -> None:
    params = optim_check.make(be, optim_check.values(1), "float32")
    optimizer = optim.SGD(params, lr=0.1)
    first = optim.GradScaler(init_scale=4.0, growth_interval=3)
    for _ in range(2):
        give(first, params, 1, None)
        first.step(optimizer)
        first.update()
    second = optim.GradScaler()
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == {
        "scale": 4.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 3,
        "_growth_tracker": 2,
    }
    give(second, params, 1, None)
    second.step(optimizer)
    second.update()
    assert second.get_scale() == 8.0
    with pytest.raises(ValueError, match=r"expected \['_growth_tracker', .* got \['scale'\]"):
        second.load_state_dict({"scale": 1.0})


def test_a_scale_can_be_set(be: Backend) -> None:
    params = optim_check.make(be, optim_check.values(1), "float32")
    optimizer, scaler = optim.SGD(params, lr=0.1), optim.GradScaler()
    give(scaler, params, 1, None)
    scaler.step(optimizer)
    scaler.update(32.0)
    assert scaler.state_dict()["_growth_tracker"] == 0
    assert scaler.get_scale() == 32.0


def test_several_losses(be: Backend) -> None:
    scaler = optim.GradScaler(init_scale=4.0)
    one = Tensor(be.asarray(np.ones(()), "float32"))
    first, second = scaler.scale([one, one * 2.0])
    assert (float(first), float(second)) == (4.0, 8.0)
    with pytest.raises(TypeError, match="expected a Tensor as loss, got float"):
        scaler.scale(1.0)


def test_a_narrow_loss_is_scaled_in_float32() -> None:
    scaler = optim.GradScaler()
    scaled = scaler.scale(Tensor(np.array(3.0, "float16")))
    assert (scaled.dtype, float(scaled)) == (np.float32, 3 * 65536.0)


def test_switched_off_it_is_not_there(be: Backend) -> None:
    params, plain = (optim_check.make(be, optim_check.values(1), "float32") for _ in range(2))
    scaled, alone = optim.Adam(params), optim.Adam(plain)
    scaler = optim.GradScaler(enabled=False)
    loss = Tensor(be.asarray(np.ones(()), "float32"))
    assert scaler.scale(loss) is loss
    for group in (params, plain):
        put(group, optim_check.values(2))
    scaler.unscale_(scaled)
    scaler.step(scaled)
    scaler.update()
    alone.step()
    for a, b in zip(params, plain, strict=True):
        np.testing.assert_array_equal(be.to_numpy(a.data), be.to_numpy(b.data))
    assert (scaler.get_scale(), scaler.state_dict(), scaler.is_enabled()) == (1.0, {}, False)
    scaler.load_state_dict({})


def test_the_order_of_calls_is_checked(be: Backend) -> None:
    params = optim_check.make(be, optim_check.values(1), "float32")
    optimizer, scaler = optim.SGD(params, lr=0.1), optim.GradScaler()
    with pytest.raises(RuntimeError, match=r"no loss was scaled yet; use scaler\.scale\(loss\)"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"update\(\) comes after step\(\)"):
        scaler.update()
    give(scaler, params, 1, None)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="divided by the scale already"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"call scaler\.update\(\) once"):
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 65536.0, "without gradients nothing was learned about it"


def test_narrow_parameters_are_refused() -> None:
    param = Tensor(np.ones(3, "float16"), requires_grad=True)
    param.grad = np.ones(3, "float16")
    scaler = optim.GradScaler()
    scaler.scale(Tensor(np.ones((), "float32")))
    with pytest.raises(ValueError, match=r'Fix: model\.to\(dtype="float32"\)'):
        scaler.step(optim.SGD([param], lr=0.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth_factor": 1.0}, "growth_factor above 1"),
        ({"backoff_factor": 1.0}, "backoff_factor between 0 and 1"),
        ({"init_scale": 0.0}, "init_scale above 0"),
        ({"growth_interval": 0}, "growth_interval of at least 1"),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optim.GradScaler(**options)  # type: ignore[arg-type]


def test_a_model_moves_with_its_counts() -> None:
    """From the stand-in, where the device counts, to NumPy: every moment and count goes along."""
    device = CupyBackend(stand_in.cupy)
    with dualcnn.use(device):
        model = nn.Linear(3, 2)
        optimizer, scaler = optim.Adam(model.parameters()), optim.GradScaler()
        for step in range(3):
            if step == 2:
                model.to("cpu")
            be = next(model.parameters()).backend
            x, y = be.asarray(np.ones((2, 3), "float32")), be.asarray(np.array([0, 1]))
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        assert be.name == "numpy"
        assert {entry["step"] for entry in optimizer.state_dict()["state"].values()} == {3}
        assert scaler.state_dict()["_growth_tracker"] == 3
