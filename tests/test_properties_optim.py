"""Optimizers over flat buffers do to each parameter what its formula does to it alone.

For any shapes, any order, any groups, and whichever parameters have a gradient in a step; with
values, gradients and states assigned, saved, copied and loaded in between.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from strategies import examples, fractions, given, host, seeds, shapes, st

from dualcnn import Tensor, optim
from dualcnn.backend import Backend

State = dict[str, Any]


def sgd(x: Any, g: Any, state: State, **o: Any) -> Any:
    g = g + o["weight_decay"] * x
    if not o["momentum"]:
        return x - o["lr"] * g
    known = state.get("b")
    state["b"] = b = g if known is None else o["momentum"] * known + (1 - o["dampening"]) * g
    return x - o["lr"] * (g + o["momentum"] * b if o["nesterov"] else b)


def adam(x: Any, g: Any, state: State, **o: Any) -> Any:
    g = g + o["weight_decay"] * x
    beta1, beta2 = o["betas"]
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g * g
    return x - o["lr"] * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + o["eps"])


def adamw(x: Any, g: Any, state: State, **o: Any) -> Any:
    x = x - o["lr"] * o["weight_decay"] * x
    return adam(x, g, state, **{**o, "weight_decay": 0})


def adadelta(x: Any, g: Any, state: State, **o: Any) -> Any:
    g = g + o["weight_decay"] * x
    v = state["v"] = o["rho"] * state.get("v", 0) + (1 - o["rho"]) * g * g
    d = np.sqrt(state.get("u", 0) + o["eps"]) / np.sqrt(v + o["eps"]) * g
    state["u"] = o["rho"] * state.get("u", 0) + (1 - o["rho"]) * d * d
    return x - o["lr"] * d


KINDS = {
    "SGD": (optim.SGD, sgd),
    "Adam": (optim.Adam, adam),
    "AdamW": (optim.AdamW, adamw),
    "Adadelta": (optim.Adadelta, adadelta),
}


@st.composite
def options(draw: Any, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "lr": draw(st.sampled_from([0.0, 0.01, 0.5])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
    }
    if kind == "SGD":
        found["momentum"] = draw(st.sampled_from([0.0, 0.9]))
        found["nesterov"] = bool(found["momentum"]) and draw(st.booleans())
        found["dampening"] = 0.0 if found["nesterov"] else draw(st.sampled_from([0.0, 0.5]))
    elif kind == "Adadelta":
        found |= {"rho": draw(st.sampled_from([0.5, 0.9])), "eps": 1e-3}
    else:
        found |= {"betas": draw(st.sampled_from([(0.9, 0.99), (0.0, 0.5)])), "eps": 1e-3}
    return found


lists_of_shapes = st.lists(shapes(0, 4, 3), min_size=1, max_size=6)
events = st.sampled_from(["nothing"] * 4 + ["load", "copy", "data", "grad"])


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, 1e-11, 1e-11)


@pytest.mark.parametrize("kind", KINDS)
@examples(20)
@given(sizes=lists_of_shapes, seed=seeds, data=st.data())
def test_steps_follow_the_formula(
    be: Backend, kind: str, sizes: list[Any], seed: int, data: Any
) -> None:
    make, formula = KINDS[kind]
    values = [fractions(seed + i, shape) for i, shape in enumerate(sizes)]
    states: list[State] = [{} for _ in sizes]
    params = [Tensor(be.asarray(v), requires_grad=True) for v in values]
    # Each parameter is in one of two groups with options of its own; neither need have any.
    own = [data.draw(options(kind)) for _ in range(2)]
    group_of = data.draw(st.lists(st.integers(0, 1), min_size=len(sizes), max_size=len(sizes)))
    groups = [
        {"params": [p for p, g in zip(params, group_of, strict=True) if g == n], **own[n]}
        for n in (0, 1)
    ]
    optimizer = make([g for g in groups if g["params"]])

    for step in range(data.draw(st.integers(1, 4))):
        event = data.draw(events)
        if event == "load":
            state = optimizer.state_dict()
            optimizer = make([{**g} for g in groups if g["params"]])
            optimizer.load_state_dict(state)
        elif event == "copy":
            optimizer = copy.deepcopy(optimizer)
            copied = {n: list(g["params"]) for n, g in enumerate(optimizer.param_groups)}
            order = sorted(set(group_of))
            params = [copied[order.index(g)].pop(0) for g in group_of]
            groups = [
                {**g, "params": [p for p, n in zip(params, group_of, strict=True) if n == number]}
                for number, g in enumerate(groups)
            ]
        elif event == "data":
            values[0] = fractions(seed + 50 + step, sizes[0])
            params[0].data = be.asarray(values[0])
        optimizer.zero_grad()
        for i, param in enumerate(params):
            if not data.draw(st.integers(0, 3)):
                continue
            g = fractions(seed + 100 * step + 7 * i, sizes[i])
            if event == "grad":
                param.grad = be.asarray(g)
            else:
                (param * Tensor(be.asarray(g))).sum().backward()
            values[i] = formula(values[i], g, states[i], **own[group_of[i]])
        optimizer.step()
        for param, value in zip(params, values, strict=True):
            assert param.shape == np.shape(value)
            close(host(be, param.data), value)


@examples(20)
@given(
    sizes=lists_of_shapes,
    seed=seeds,
    max_norm=st.sampled_from([0.0, 0.1, 1.0, 100.0, math.inf]),
    order=st.sampled_from([1.0, 2.0, 3.0, math.inf]),
    data=st.data(),
)
def test_clipping(
    be: Backend, sizes: list[Any], seed: int, max_norm: float, order: float, data: Any
) -> None:
    """The norm of all gradients together, of those in flat buffers and of those that are not."""
    params = [Tensor(be.zeros(shape, be.dtype("float64")), requires_grad=True) for shape in sizes]
    if data.draw(st.booleans()):
        optim.SGD(params[: data.draw(st.integers(1, len(params)))])
    kept = []
    for i, param in enumerate(params):
        g = fractions(seed + i, sizes[i]) if data.draw(st.integers(0, 3)) else None
        kept.append(g)
        if g is not None:
            (param * Tensor(be.asarray(g))).sum().backward()
    chosen = data.draw(st.lists(st.sampled_from(range(len(params))), unique=True))
    norm = optim.clip_grad_norm_([params[i] for i in chosen], max_norm, order)
    present = [np.ravel(kept[i]) for i in chosen if kept[i] is not None]
    wanted = np.linalg.norm(np.concatenate(present), order) if present else 0.0
    close(host(be, norm), wanted)
    factor = min(1.0, max_norm / (wanted + 1e-6))
    for i, (param, g) in enumerate(zip(params, kept, strict=True)):
        if g is None:
            assert param.grad is None
        else:
            close(host(be, param.grad), g * (factor if i in chosen else 1.0))


@examples(10)
@given(sizes=lists_of_shapes, seed=seeds, order=st.randoms(use_true_random=False))
def test_the_order_of_parameters_means_nothing(
    be: Backend, sizes: list[Any], seed: int, order: Any
) -> None:
    places = list(range(len(sizes)))
    order.shuffle(places)
    ends = []
    for chosen in (range(len(sizes)), places):
        params = [
            Tensor(be.asarray(fractions(seed + i, shape)), requires_grad=True)
            for i, shape in enumerate(sizes)
        ]
        optimizer = optim.Adam([params[i] for i in chosen], lr=0.1)
        for step in range(2):
            optimizer.zero_grad()
            for i, param in enumerate(params):
                g = be.asarray(fractions(seed + 10 * step + i, sizes[i]))
                (param * Tensor(g)).sum().backward()
            optimizer.step()
        ends.append([host(be, p.data) for p in params])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)
