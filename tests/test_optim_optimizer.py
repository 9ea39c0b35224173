"""Parameter groups, saved state, and what an optimizer refuses."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from optim_check import SHAPES, adam, assert_close, expected, give, host, make, sgd, values

from dualcnn import Tensor, backend, optim
from dualcnn.backend import Backend


def cpu(shapes: list[tuple[int, ...]] = SHAPES, seed: int = 1) -> list[Tensor]:
    return make(backend.get("cpu"), values(seed, shapes))


def train(optimizer: optim.Optimizer, params: list[Tensor], steps: list[list[Any]]) -> None:
    for gradients in steps:
        optimizer.zero_grad()
        give(params, gradients)
        optimizer.step()


def test_groups_have_their_own_options(be: Backend) -> None:
    start, steps = values(1), [values(10 + t) for t in range(3)]
    params = make(be, start)
    optimizer = optim.SGD(
        [{"params": params[:2]}, {"params": params[2], "lr": 0.5}, {"params": iter(params[3:5])}],
        lr=0.1,
        momentum=0.9,
    )
    train(optimizer, params, steps[:1])
    optimizer.add_param_group({"params": params[5:], "momentum": 0})
    optimizer.param_groups[0]["lr"] = 0.2
    train(optimizer, params, steps[1:])

    want = expected(sgd, start, steps, lr=0.1, momentum=0.9)
    want[2] = expected(sgd, start, steps, lr=0.5, momentum=0.9)[2]
    want[5] = expected(sgd, start, steps[1:], lr=0.1)[5]
    # The rate of the first group changes after the first step, its momentum buffer stays.
    for i in (0, 1):
        g = [step[i] for step in steps]
        buffers = [g[0], 0.9 * g[0] + g[1], 0.81 * g[0] + 0.9 * g[1] + g[2]]
        want[i] = start[i] - 0.1 * buffers[0] - 0.2 * buffers[1] - 0.2 * buffers[2]
    assert_close(host(params), want)


def test_step_calls_its_closure() -> None:
    (param,) = params = make(backend.get("cpu"), [np.array([1.0, 2.0])])
    optimizer = optim.SGD(params, lr=0.25)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (param * param).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 5.0
    np.testing.assert_array_equal(param.data, [0.5, 1.0])
    assert optimizer.step() is None


def test_repr_shows_the_groups() -> None:
    text = repr(optim.SGD(cpu(), lr=0.5))
    assert text.splitlines()[0] == "SGD"
    assert "6 parameters, lr=0.5, momentum=0" in text


OPTIMIZERS: dict[str, Any] = {
    "sgd": (optim.SGD, {"lr": 0.1}),
    "momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "adam": (optim.Adam, {"lr": 0.01}),
    "amsgrad": (optim.Adam, {"lr": 0.01, "betas": (0.5, 0.5), "amsgrad": True}),
    "adamw": (optim.AdamW, {"lr": 0.01}),
    "adadelta": (optim.Adadelta, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_saved_state_continues_bit_for_bit(be: Backend, name: str) -> None:
    cls, options = OPTIMIZERS[name]
    steps = [values(10 + t) for t in range(5)]
    steps[0][3] = steps[1][3] = steps[1][0] = None
    params = make(be, values(1), "float32")
    optimizer = cls(params, **options)
    train(optimizer, params, steps[:2])
    saved, kept = optimizer.state_dict(), host(params)
    other = make(be, kept, "float32")
    # A used optimizer forgets what it knew.
    resumed = cls(other, **{**options, "lr": 9.0})
    train(resumed, other, [values(77)])
    for param, value in zip(other, kept, strict=True):
        param.data = value
    resumed.load_state_dict(saved)
    train(optimizer, params, steps[2:])
    train(resumed, other, steps[2:])
    for a, b in zip(host(params), host(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_go_to_pytorch_and_back(name: str) -> None:
    torch = pytest.importorskip("torch")
    cls, options = OPTIMIZERS[name]
    params = cpu()
    theirs = [torch.tensor(x, requires_grad=True) for x in values(1)]
    optimizer, reference = (
        cls(params, **options),
        getattr(torch.optim, cls.__name__)(theirs, **options),
    )

    def step(seed: int) -> None:
        train(optimizer, params, [values(seed)])
        for x, g in zip(theirs, values(seed), strict=True):
            x.grad = torch.tensor(g)
        reference.step()
        assert_close(host(params), [x.detach().numpy() for x in theirs])

    step(10)
    fresh = cls(params, **options)
    fresh.load_state_dict(reference.state_dict())
    optimizer = fresh
    step(11)
    ours, known = optimizer.state_dict(), reference.state_dict()
    assert list(ours["state"]) == [i for i in known["state"] if name != "sgd"]
    for i, entry in ours["state"].items():
        for key, value in entry.items():
            assert_close([value], [np.asarray(known["state"][i][key])])


def test_state_is_in_the_public_layout(be: Backend) -> None:
    params = make(be, values(1), "float32")
    optimizer = optim.Adam(params, lr=0.01)
    assert optimizer.state_dict()["state"] == {}
    gradients = values(2)
    gradients[1] = None
    train(optimizer, params, [gradients])
    saved = optimizer.state_dict()
    assert list(saved["state"]) == [0, 2, 3, 4, 5]
    assert saved["param_groups"][0]["params"] == [0, 1, 2, 3, 4, 5]
    assert saved["param_groups"][0]["lr"] == 0.01
    json.dumps(saved["param_groups"])
    for i, entry in saved["state"].items():
        assert entry["step"] == 1
        for name in ("exp_avg", "exp_avg_sq"):
            assert backend.of(x=entry[name]) is be
            assert entry[name].shape == SHAPES[i]
            assert be.to_numpy(entry[name]).flags.c_contiguous
        want = 0.1 * gradients[i]
        np.testing.assert_allclose(be.to_numpy(entry["exp_avg"]), want, rtol=1e-6)
    # What was saved is a copy.
    before = np.array(be.to_numpy(saved["state"][2]["exp_avg"]))
    train(optimizer, params, [values(3)])
    np.testing.assert_array_equal(be.to_numpy(saved["state"][2]["exp_avg"]), before)


def test_a_state_goes_to_another_backend(be: Backend) -> None:
    steps = [values(10 + t) for t in range(4)]
    params = cpu()
    optimizer = optim.Adam(params, lr=0.01)
    train(optimizer, params, steps[:2])
    there = make(be, host(params))
    resumed = optim.Adam(there)
    resumed.load_state_dict(optimizer.state_dict())
    train(resumed, there, steps[2:])
    assert_close(host(there), expected(adam, values(1), steps, lr=0.01))


def bad_states() -> dict[str, tuple[Any, str]]:
    params = cpu()
    optimizer = optim.Adam(params)
    train(optimizer, params, [values(2)])

    def changed(change: Any) -> Any:
        state = optimizer.state_dict()
        change(state)
        return state

    return {
        "no state": ({"params": 3}, r'expected "state" and "param_groups".*\[\'params\'\]'),
        "groups": (
            changed(lambda s: s["param_groups"].append(s["param_groups"][0])),
            "saved state has 2 parameter groups, this optimizer has 1",
        ),
        "parameters": (
            changed(lambda s: s["param_groups"][0]["params"].pop()),
            "group 0 of the saved state has 5 parameters, that of this optimizer has 6",
        ),
        "options": (
            changed(lambda s: s["param_groups"][0].pop("betas")),
            "lacks betas: was it saved by an optimizer other than Adam",
        ),
        "amsgrad": (
            changed(lambda s: s["param_groups"][0].update(amsgrad=True)),
            r"holds \['exp_avg', 'exp_avg_sq', 'step'\]; Adam expects .*'max_exp_avg_sq'",
        ),
        "range": (changed(lambda s: s["param_groups"][0].update(lr=-1)), "lr >= 0"),
        "another's": (
            changed(lambda s: s["state"].update({1: {"momentum_buffer": np.ones(7)}})),
            r"parameter 1 holds \['momentum_buffer'\]; Adam expects",
        ),
        "unknown": (changed(lambda s: s["state"].update({9: {"step": 1}})), "parameter 9, which"),
        "shape": (
            changed(lambda s: s["state"][0].update(exp_avg=np.ones((5, 3)))),
            r"exp_avg of parameter 0 has shape \(5, 3\) in the saved state, .* has \(3, 5\)",
        ),
    }


@pytest.mark.parametrize("name", bad_states())
def test_a_state_that_does_not_fit_changes_nothing(name: str) -> None:
    state, message = bad_states()[name]
    params = cpu()
    optimizer = optim.Adam(params, lr=0.5)
    train(optimizer, params, [values(3)])
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for i, entry in before["state"].items():
        for key, value in entry.items():
            np.testing.assert_array_equal(after["state"][i][key], value)


def test_what_is_no_parameter_is_refused() -> None:
    a, b = cpu([(3,), (4,)])
    with pytest.raises(ValueError, match="empty list of parameters"):
        optim.SGD([])
    with pytest.raises(TypeError, match="iterable of Tensors or of dicts as params, got Tensor"):
        optim.SGD(a)
    with pytest.raises(TypeError, match="updates Tensors, got ndarray"):
        optim.SGD([np.ones(3)])
    with pytest.raises(TypeError, match="updates Tensors, got tuple"):
        optim.SGD([("weight", a)])
    with pytest.raises(ValueError, match=r"shape \(3,\) that an operation returned"):
        optim.SGD([a * 2])
    with pytest.raises(ValueError, match="in more than one parameter group"):
        optim.SGD([{"params": [a]}, {"params": [b, a]}])
    with pytest.raises(TypeError, match='dict with "params" as a parameter group, got list'):
        optim.SGD([a]).add_param_group([b])  # type: ignore[arg-type]
    lazy = Tensor([1.0], requires_grad=True)
    lazy._data = None
    with pytest.raises(ValueError, match=r"lazy parameter .* run one batch"):
        optim.SGD([a, lazy])
    optimizer = optim.SGD([a])
    with pytest.raises(ValueError, match="in more than one parameter group"):
        optimizer.add_param_group({"params": a})
    assert len(optimizer.param_groups) == 1


def test_a_refused_group_leaves_the_parameters_alone() -> None:
    (param,) = cpu([(3,)])
    for betas in (0.9, (0.9,), (0.9, 0.99, 0.999), ("a", "b")):
        with pytest.raises(ValueError, match="expected two numbers as betas, got"):
            optim.Adam([param], betas=betas)  # type: ignore[arg-type]
    for rate in ("0.1", None):
        with pytest.raises(TypeError, match="expected a number as lr, got"):
            optim.SGD([param], lr=rate)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lr >= 0"):
        optim.SGD([{"params": [param], "lr": -1}])
    assert param.data_slot is None
