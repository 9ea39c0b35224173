"""Calls of every differentiable op, with random sizes and parameters, for the property tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from strategies import fractions, geometries, pairs, poolings, seeds, shapes, st, whole

from dualcnn import ops


class Call(NamedTuple):
    """One call: `inputs` are float64 or whole-number host arrays, or None."""

    op: Callable[..., Any]
    inputs: tuple[Any, ...]
    params: dict[str, Any]
    linear: tuple[int, ...] = ()
    """The inputs in each of which the op is linear while the others stay as they are."""
    exact: bool = False
    """Whether the results are exact for whole numbers, so that no order of adding matters."""

    def run(self, inputs: Any) -> tuple[Any, Any]:
        y, vjp, *_ = self.op(*inputs, **self.params)
        return y, vjp


@st.composite
def _convolutions(draw: Any) -> Call:
    at = draw(geometries(spare=3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    n, c, o = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    x = whole(draw(seeds), (n, c * groups, *at.size))
    w = whole(draw(seeds), (o * groups, c, *at.kernel))
    b = whole(draw(seeds), (o * groups,)) if draw(st.booleans()) else None
    linear = (0, 1) if b is None else ()
    return Call(ops.conv2d, (x, w, b), {**at.params, "groups": groups}, linear, True)


@st.composite
def _max_poolings(draw: Any) -> Call:
    size, params = draw(poolings(dilation=draw(st.sampled_from([1, 3]))))
    shape = draw(pairs(1, 3))
    return Call(ops.max_pool2d, (whole(draw(seeds), (*shape, *size)),), params, exact=True)


@st.composite
def _avg_poolings(draw: Any) -> Call:
    size, params = draw(poolings())
    x = whole(draw(seeds), (*draw(pairs(1, 3)), *size))
    params = {**params, "count_include_pad": draw(st.booleans())}
    return Call(ops.avg_pool2d, (x,), params, (0,))


@st.composite
def _adaptive_poolings(draw: Any) -> Call:
    x = whole(draw(seeds), (*draw(pairs(1, 3)), *draw(pairs(1, 6))))
    return Call(ops.adaptive_avg_pool2d, (x,), {"output_size": draw(pairs(1, 7))}, (0,))


@st.composite
def _batch_norms(draw: Any) -> Call:
    channels = draw(st.integers(1, 4))
    shape = (draw(st.integers(2, 4)), channels, *draw(shapes(0, 3, 4)))
    seed, training = draw(seeds), draw(st.booleans())
    x, w, b = fractions(seed, shape), fractions(seed + 1, (channels,)), fractions(seed + 2, shape)
    affine = (w, b.reshape(-1)[:channels]) if draw(st.booleans()) else (None, None)
    running = (None, None) if training else (w - 1, 0.5 + w * w)
    return Call(ops.batch_norm, (x, *affine, *running), {"training": training})


@st.composite
def _linears(draw: Any) -> Call:
    inputs, outputs = draw(pairs(1, 5))
    lead = draw(shapes(0, 3, 4))
    b = whole(draw(seeds), (outputs,)) if draw(st.booleans()) else None
    x, w = whole(draw(seeds), (*lead, inputs)), whole(draw(seeds), (outputs, inputs))
    return Call(ops.linear, (x, w, b), {}, (0, 1) if b is None else (), True)


@st.composite
def _matmuls(draw: Any) -> Call:
    m, n = draw(pairs(1, 4))
    k, lead = draw(st.integers(1, 4)), draw(shapes(0, 2, 3))
    a, b = whole(draw(seeds), (*lead, m, k)), whole(draw(seeds), (*lead[1:], k, n))
    return Call(ops.matmul, (a, b), {}, (0, 1), True)


@st.composite
def _elementwise(draw: Any, op: Any, exact: bool = False, **params: Any) -> Call:
    x = whole(draw(seeds), draw(shapes()))
    return Call(op, (x if exact else np.asarray(x / 3),), params, exact=exact)


@st.composite
def _along(draw: Any, op: Any) -> Call:
    x = fractions(draw(seeds), draw(shapes(1)))
    return Call(op, (x,), {"dim": draw(st.integers(-x.ndim, x.ndim - 1))})


@st.composite
def _dropouts(draw: Any) -> Call:
    x = whole(draw(seeds), draw(shapes()))
    stream = (draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 2**40)))
    return Call(
        ops.dropout,
        (x,),
        {"p": draw(st.sampled_from([0, 0.5, 0.75])), "stream": stream},
        (0,),
        True,
    )


@st.composite
def _classifications(draw: Any, op: Any) -> Call:
    classes = draw(st.integers(1, 5))
    n, spatial = draw(st.integers(1, 4)), draw(shapes(0, 2, 3))
    x = fractions(draw(seeds), (n, classes, *spatial))
    labels = np.random.default_rng(draw(seeds)).integers(0, classes, (n, *spatial))
    params: dict[str, Any] = {"reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    if op is ops.cross_entropy:
        params["label_smoothing"] = draw(st.sampled_from([0.0, 0.1]))
    return Call(op, (x, labels), params, (0,) if op is ops.nll_loss else ())


@st.composite
def _squared_errors(draw: Any) -> Call:
    shape, reduction = draw(shapes()), draw(st.sampled_from(["mean", "sum", "none"]))
    inputs = whole(draw(seeds), shape), whole(draw(seeds), shape)
    return Call(ops.mse_loss, inputs, {"reduction": reduction}, exact=reduction != "mean")


@st.composite
def _arithmetic(draw: Any, op: Any) -> Call:
    full = draw(shapes())
    short = tuple(draw(st.sampled_from([1, n])) for n in full)[draw(st.integers(0, len(full))) :]
    a, b = whole(draw(seeds), full), whole(draw(seeds), short)
    if op is ops.div:
        return Call(op, (a, np.asarray(2.0**b)), {}, (0,), True)
    if op is ops.pow:
        return Call(op, (np.asarray(2.0**a), b), {})
    swap = draw(st.booleans())
    return Call(op, (b, a) if swap else (a, b), {}, (0, 1) if op is ops.mul else (), True)


@st.composite
def _reductions(draw: Any, op: Any) -> Call:
    x = whole(draw(seeds), draw(shapes()))
    some = st.lists(st.integers(0, max(0, x.ndim - 1)), min_size=1, unique=True).map(tuple)
    dim = draw(st.one_of(st.none(), some)) if x.ndim else None
    return Call(op, (x,), {"dim": dim, "keepdim": draw(st.booleans())}, (0,), op is ops.sum)


@st.composite
def _rearranged(draw: Any, op: Any) -> Call:
    x = whole(draw(seeds), draw(shapes(1)))
    axes = range(x.ndim)
    axis = st.integers(-x.ndim, x.ndim - 1)
    if op is ops.permute:
        params: dict[str, Any] = {"dims": tuple(draw(st.permutations(axes)))}
    elif op is ops.transpose:
        params = {"dim0": draw(axis), "dim1": draw(axis)}
    elif op is ops.flatten:
        start, end = sorted(draw(st.tuples(*[st.sampled_from(axes)] * 2)))
        params = {"start_dim": start, "end_dim": draw(st.sampled_from([end, end - x.ndim]))}
    elif op is ops.reshape:
        params = {"shape": draw(st.sampled_from([(-1,), x.shape[::-1], (*x.shape, 1), (1, -1)]))}
    elif op is ops.getitem:
        steps = [st.none(), st.sampled_from([1, 2])]
        part = [
            st.one_of(
                st.integers(-n, n - 1),
                st.builds(slice, st.integers(-n, n), st.integers(-n, n), st.one_of(*steps)),
            )
            for n in x.shape[: draw(st.integers(0, x.ndim))]
        ]
        params = {"index": (*draw(st.tuples(*part)), *draw(st.sampled_from([(), (...,), (None,)])))}
    else:
        params = {}
    return Call(op, (x,), params, (0,), True)


@st.composite
def _concatenations(draw: Any) -> Call:
    shape, count = draw(shapes(1)), draw(st.integers(1, 3))
    dim = draw(st.integers(0, len(shape) - 1))
    sizes = [(*shape[:dim], draw(st.integers(1, 3)), *shape[dim + 1 :]) for _ in range(count)]
    xs = tuple(whole(draw(seeds), size) for size in sizes)
    return Call(ops.concat, xs, {"dim": dim - draw(st.sampled_from([0, len(shape)]))}, exact=True)


CALLS: dict[str, Any] = {
    "conv2d": _convolutions(),
    "max_pool2d": _max_poolings(),
    "avg_pool2d": _avg_poolings(),
    "adaptive_avg_pool2d": _adaptive_poolings(),
    "batch_norm": _batch_norms(),
    "dropout": _dropouts(),
    "linear": _linears(),
    "matmul": _matmuls(),
    "relu": _elementwise(ops.relu, exact=True),
    "leaky_relu": _elementwise(ops.leaky_relu, exact=True, negative_slope=0.25),
    "sigmoid": _elementwise(ops.sigmoid),
    "tanh": _elementwise(ops.tanh),
    "softmax": _along(ops.softmax),
    "log_softmax": _along(ops.log_softmax),
    "cross_entropy": _classifications(ops.cross_entropy),
    "nll_loss": _classifications(ops.nll_loss),
    "mse_loss": _squared_errors(),
    **{op.__name__: _arithmetic(op) for op in (ops.add, ops.sub, ops.mul, ops.div, ops.pow)},
    **{op.__name__: _reductions(op) for op in (ops.sum, ops.mean)},
    **{
        op.__name__: _rearranged(op)
        for op in (ops.reshape, ops.flatten, ops.transpose, ops.permute, ops.getitem, ops.clone)
    },
    "concat": _concatenations(),
    "astype": _elementwise(ops.astype, exact=True, dtype="float32"),
}
"""For each differentiable op, calls of it with random sizes and parameters."""

LINEAR = [
    "conv2d", "avg_pool2d", "adaptive_avg_pool2d", "dropout", "linear", "matmul", "nll_loss",
    "mul", "div", "sum", "mean", "reshape", "flatten", "transpose", "permute", "getitem", "clone",
]  # fmt: skip
