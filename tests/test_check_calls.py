"""How `check.layer` calls what it is given, and what it says of a call that fails."""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np
import pytest
from students import convolution, dense, pooling, stateful
from students.spoiled import LAYERS, relu, relu_backward

from dualcnn import check


def flat(report: check.Report) -> str:
    """The text without its line breaks."""
    return " ".join(str(report).split())


def cases(report: check.Report) -> list[int]:
    return [finding.cases for finding in report.findings]


# Signatures.


def fixed_window(x: Any) -> Any:
    return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, -1, 2).max(axis=(3, 5))


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (fixed_window, r"got fixed_window\(x.*; it has no kernel_size=\. Fix: rename"),
        (lambda x, edge, step: x, r"got f\(x, edge, step\); it has no kernel_size="),
    ],
)
def test_a_pool_without_a_kernel_size_is_refused(forward: Any, told: str) -> None:
    expected = r"a forward that takes \(x, kernel_size=, stride=, padding=\), "
    with pytest.raises(TypeError, match=expected + told):
        check.layer(forward, None, "max_pool2d")
    with pytest.raises(TypeError, match=r"a backward that takes \(gy, x, .*layer\.backward"):
        check.layer(pooling.max_forward, lambda gy, x: gy, "max_pool2d")


def test_a_pool_is_given_its_stride() -> None:
    def forward(x: Any, kernel_size: int, stride: int, padding: int) -> Any:
        assert stride is not None
        widths = ((0, 0), (0, 0), (padding, padding), (padding, padding))
        x = np.pad(x, widths, constant_values=-np.inf)
        return pooling.max_forward(x, kernel_size, stride)

    assert check.layer(forward, None, "max_pool2d").ok


def test_other_names_of_options() -> None:
    def forward(x: Any, w: Any, s: int = 1) -> Any:
        return convolution.forward(x, w, np.zeros(len(w)), s)

    def backward(gy: Any, x: Any, w: Any, s: int = 1) -> Any:
        return convolution.backward(gy, x, w, np.zeros(len(w)), s)[:2]

    report = check.layer(forward, backward, "conv2d")
    assert report.ok
    assert "Note: your forward takes no b: tried without." in flat(report)
    assert "Note: not tried: padding (your forward has no such parameter)." in flat(report)

    report = check.layer(lambda x, k, s: pooling.max_forward(x, k, s), None, "max_pool2d")
    assert report.ok, report
    unpadded = check.layer(
        lambda x, w, b, stride=1, pad=0: convolution.forward(x, w, b, stride), None, "conv2d"
    )
    assert unpadded.mistakes == ("y: padding ignored",)


def test_an_option_of_another_name_is_pointed_at() -> None:
    def forward(x: Any, w: Any, b: Any, step: int = 1) -> Any:
        return convolution.forward(x, w, b, step)

    report = check.layer(forward, None, "conv2d")
    assert report.ok
    assert "not tried: stride, padding" in flat(report)
    assert "It has step=: if that is one, rename it." in flat(report)


def test_wrappers_take_what_the_wrapped_takes() -> None:
    def plain(x: Any, w: Any, b: Any) -> Any:
        return convolution.forward(x, w, b)

    whole = check.layer(
        lambda *a, **k: convolution.forward(*a, **k),
        lambda *a, **k: convolution.backward(*a, **k),
        "conv2d",
    )
    assert whole.ok, whole
    assert cases(whole) == cases(check.layer(*LAYERS["conv2d"], "conv2d"))
    bare = check.layer(lambda *a, **k: plain(*a, **k), None, "conv2d")
    assert bare.ok, bare
    assert cases(bare) == cases(check.layer(plain, None, "conv2d"))
    pool = check.layer(lambda *s, **k: pooling.max_forward(*s, **k), None, "max_pool2d")
    assert pool.ok, pool
    loss = check.layer(
        dense.cross_entropy, lambda *a: dense.cross_entropy_backward(*a), "cross_entropy"
    )
    assert loss.ok, loss
    mixed = check.layer(plain, lambda *a, **k: convolution.backward(*a, **k), "conv2d")
    assert mixed.ok, mixed
    assert check.layer(functools.partial(convolution.forward, stride=1), None, "conv2d").ok


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (stateful.Relu(), "relu"),
        (stateful.Linear(), "linear"),
        (stateful.SoftmaxLoss(), "cross_entropy"),
        (stateful.Conv(), "conv2d"),
    ],
)
def test_methods_that_take_gy_alone(layer: Any, name: str) -> None:
    report = check.layer(layer.forward, layer.backward, name)
    assert report.ok, report
    assert cases(report) == cases(check.layer(*LAYERS[name], name))[:1] * len(report.findings)


def test_a_method_is_tried_with_every_option() -> None:
    layer = stateful.Conv(crop=False)
    report = check.layer(layer.forward, layer.backward, "conv2d")
    assert report.mistakes == ("gx: border kept",)
    report = check.layer(layer.forward, lambda gy, x, w, b, **o: layer.backward(gy), "conv2d")
    assert report.mistakes == ("gx: border kept",)


def test_a_backward_may_leave_out_the_last_inputs() -> None:
    report = check.layer(
        lambda x, w, b: x @ w.T + b, lambda gy, x, w: (gy @ w, gy.T @ x, gy.sum(axis=0)), "linear"
    )
    assert report.ok, report

    def of_the_loss(x: Any, t: Any, scale: float = 1.0) -> Any:
        return scale * dense.cross_entropy_backward(x, t)

    report = check.layer(dense.cross_entropy, of_the_loss, "cross_entropy")
    assert report.ok, report
    assert "takes no gy: tried with 1 alone" in flat(report)


def test_the_gy_of_a_loss_is_known_by_its_name() -> None:
    layer = stateful.SoftmaxLoss()
    report = check.layer(layer.forward, lambda dout, x: layer.backward(dout), "cross_entropy")
    assert report.ok, report
    assert "no gy" not in flat(report)


def test_what_a_backward_lacks_is_noted_and_the_forward_tried() -> None:
    layer = stateful.Conv(crop=False)
    report = check.layer(layer.forward, lambda gy, x, w, b: layer.backward(gy), "conv2d")
    y, gx = report.findings[:2]
    assert y.cases > gx.cases
    assert "not tried: stride, padding (your backward has no such parameters)" in flat(report)

    def edges(x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
        p = padding
        x = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)), mode="edge")
        return convolution.forward(x, w, b, stride)

    report = check.layer(edges, lambda gy, x, w, b: convolution.backward(gy, x, w, b), "conv2d")
    assert report.mistakes == ("y: padding repeats the edge",)


def test_gy_comes_first() -> None:
    report = check.layer(relu, lambda x, gy: gy * (x > 0), "relu")
    assert report.mistakes == ("gx: gy and x exchanged",)
    assert "yours has it as number 2" in flat(report)
    report = check.layer(LAYERS["linear"][0], lambda x, w, b, gy: (x, w, b), "linear")
    assert "yours has it as number 4" in flat(report)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a function for forward, got NoneType"):
        check.layer(None, None, "relu")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a function for backward, got list"):
        check.layer(relu, [], "relu")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected a backward that takes \(gy, x\), got f\(\)"):
        check.layer(relu, lambda: 0, "relu")


# Calls that fail.


def test_padding_that_raises_is_no_extra() -> None:
    def forward(x: Any, kernel_size: int, stride: Any = None, padding: int = 0) -> Any:
        if padding:
            raise IndexError("index 5 is out of bounds")
        return pooling.max_forward(x, kernel_size, stride)

    report = check.layer(forward, None, "max_pool2d")
    assert report.findings[0].verdict == "error"
    assert "forward(x, kernel_size=2, stride=2, padding=1)" in flat(report)


def test_an_exception_is_told_once_with_its_line() -> None:
    def backward(gy: Any, x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
        return np.zeros((2, 3)).reshape(7)

    line = backward.__code__.co_firstlineno + 1
    report = check.layer(convolution.forward, backward, "conv2d")
    text = str(report)
    assert text.count("raised ValueError") == 1
    assert "gx, gw, gb: Your backward raised ValueError: cannot reshape" in flat(report)
    assert f"(line {line} of test_check_calls.py)" in flat(report)
    assert "It was called as backward(gy, x, w, b, stride=1, padding=0)." in flat(report)
    # The extra cases failed like all others.
    assert "Note" not in text


def test_a_program_that_ends_itself_does_not_end_the_check() -> None:
    report = check.layer(lambda x: sys.exit(3), None, "relu")
    assert "Your forward raised SystemExit: 3" in flat(report)


def test_floating_point_errors_are_not_raised() -> None:
    with np.errstate(all="raise"):
        assert check.layer(*LAYERS["sigmoid"], "sigmoid").ok


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (lambda y: None, "Your forward returned None (a missing return?); expected y."),
        (lambda y: y.astype(str), "is an array of shape (1, 1) and dtype <U32; expected an array"),
        (lambda y: y.astype(complex), "is an array of shape (1, 1) and dtype complex128; expected"),
        (lambda y: [[1], [2, 3]], "is a list; expected an array of real numbers."),
        (lambda y: (y, 1), "returned 2 results; expected y."),
    ],
)
def test_what_is_no_array_of_numbers(result: Any, told: str) -> None:
    report = check.layer(lambda x, w, b: result(dense.linear(x, w, b)), None, "linear")
    assert report.findings[0].verdict == "error"
    assert told in flat(report), report


def test_a_gradient_that_is_none() -> None:
    report = check.layer(
        dense.linear,
        lambda gy, x, w, b: (dense.linear_backward(gy, x, w, b)[0], None, None),
        "linear",
    )
    assert [f.verdict for f in report.findings] == ["right", "right", "error", "error"]
    assert "Your gradient of w is None (a missing return?)" in flat(report)


@pytest.mark.parametrize("wrapped", [lambda gx: [gx], lambda gx: (gx,), lambda gx: (gx, None)])
def test_one_gradient_in_a_list(wrapped: Any) -> None:
    assert check.layer(relu, lambda gy, x: wrapped(relu_backward(gy, x)), "relu").ok
    assert check.layer(lambda x: relu(x).tolist(), None, "relu").ok


def test_a_gradient_that_nobody_asked_for() -> None:
    def backward(gy: Any, x: Any, w: Any) -> Any:
        return (*convolution.backward(gy, x, w, np.zeros(len(w)))[:2], None)

    report = check.layer(
        lambda x, w: convolution.forward(x, w, np.zeros(len(w))), backward, "conv2d"
    )
    assert report.ok, report
