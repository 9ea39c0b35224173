"""What `check.layer` makes of results: no right one accused, no wrong one let through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from students import convolution, dense, pooling, stateful
from students.spoiled import LAYERS, relu, relu_backward

from dualcnn import check
from dualcnn.check.layers import SUBJECTS


def flat(report: check.Report) -> str:
    """The text without its line breaks."""
    return " ".join(str(report).split())


def normalised(x: Any, eps: float, axes: Any = 0, **how: Any) -> Any:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True, **how) + eps)


def by_channel(c: Any) -> Any:
    return c.reshape(1, -1, 1, 1)


# Right, though not in every way.


@pytest.mark.parametrize("eps", [1e-5, 1e-8, 0.0])
def test_batch_norm_of_tables_or_of_images_alone(eps: float) -> None:
    def tables(x: Any, gamma: Any, beta: Any) -> Any:
        return gamma * normalised(x, eps) + beta

    report = check.layer(tables, None, "batch_norm")
    assert report.ok, report
    assert "not tried: (N, C, H, W) input" in flat(report)

    def images(x: Any, gamma: Any, beta: Any) -> Any:
        return by_channel(gamma) * normalised(x, eps, (0, 2, 3)) + by_channel(beta)

    report = check.layer(images, None, "batch_norm")
    assert report.ok, report
    assert "not supported by your layer: (N, C) input." in flat(report)


def test_a_loss_that_ignores_gy_is_a_remark() -> None:
    report = check.layer(
        dense.cross_entropy, lambda gy, x, t: dense.cross_entropy_backward(x, t), "cross_entropy"
    )
    assert report.ok
    assert report.findings[1].verdict == "remark"


def test_a_logarithm_kept_from_zero_is_a_remark() -> None:
    def forward(x: Any, t: Any) -> Any:
        e = np.exp(x - x.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        return -np.log(p[np.arange(len(t)), t] + 1e-7).mean()

    report = check.layer(forward, None, "cross_entropy")
    assert report.ok, report
    assert report.findings[0].verdict == "remark"


# Wrong, and seen to be.


def test_integers_lose_fractions() -> None:
    report = check.layer(lambda x: relu(x).astype(int), None, "relu")
    assert report.mistakes == ("y: fractions lost",)
    assert report.findings[0].example is not None
    assert report.findings[0].example.about == "fractions"

    def backward(gy: Any, x: Any, w: Any, b: Any) -> Any:
        gx, gw, gb = dense.linear_backward(gy, x, w, b)
        return gx, gw.astype(int), gb

    assert check.layer(dense.linear, backward, "linear").mistakes == ("gw: fractions lost",)


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        ("sigmoid", lambda x: np.exp(x) / (1 + np.exp(x))),
        ("tanh", lambda x: (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x))),
    ],
)
def test_an_overflow_is_a_mistake(name: str, forward: Any) -> None:
    assert check.layer(forward, None, name).mistakes == ("y: overflow",)


def test_eps_of_ones_own() -> None:
    def forward(x: Any, weight: Any, bias: Any, eps: float) -> Any:
        return by_channel(weight) * normalised(x, 1e-5, (0, 2, 3)) + by_channel(bias)

    report = check.layer(forward, None, "batch_norm")
    assert report.mistakes == ("y: eps ignored",)
    example = report.findings[0].example
    assert example is not None
    assert example.inputs["x"].size <= 4


def test_samples_that_a_loop_leaves_out() -> None:
    def forward(x: Any, w: Any, b: Any) -> Any:
        y = np.zeros((len(x), len(w)))
        for n in range(1, len(x)):
            y[n] = w @ x[n] + b
        return y

    def backward(gy: Any, x: Any, w: Any, b: Any) -> Any:
        gw, gb = np.zeros_like(w), np.zeros_like(b)
        for n in range(len(x) - 1):
            gw += np.outer(gy[n], x[n])
            gb += gy[n]
        return gy @ w, gw, gb

    report = check.layer(forward, backward, "linear")
    assert report.mistakes == (
        "y: first sample skipped",
        "gw: last sample skipped",
        "gb: last sample skipped",
    )
    # One sample would show zeros and nothing else.
    assert report.findings[0].example is not None
    assert len(report.findings[0].example.inputs["x"]) == 2


def test_windows_that_are_not_reached() -> None:
    def short(x: Any, w: Any, b: Any) -> Any:
        return convolution.forward(x, w, b)[:, :, :-1, :-1]

    assert check.layer(short, None, "conv2d").mistakes == ("y: one row and column short",)

    def unfinished(x: Any, kernel_size: int, stride: Any = None) -> Any:
        y = pooling.max_forward(x, kernel_size, stride)
        y[:, :, -1], y[..., -1] = 0, 0
        return y

    report = check.layer(unfinished, None, "max_pool2d")
    assert report.mistakes == ("y: last row and column skipped",)

    def backward(gy: Any, x: Any, kernel_size: int, stride: Any = None) -> Any:
        return pooling.max_backward(gy[:, :, :-1], x, kernel_size, stride)

    report = check.layer(pooling.max_forward, backward, "max_pool2d")
    assert report.mistakes == ("gx: last row skipped",)


def test_windows_that_start_too_early() -> None:
    def backward(gy: Any, x: Any, w: Any, b: Any, stride: int = 1) -> Any:
        gw = np.zeros_like(w)
        kh, kw = w.shape[2:]
        for i, j in np.ndindex(*gy.shape[2:]):
            gw += np.tensordot(gy[:, :, i, j], x[:, :, i : i + kh, j : j + kw], ((0,), (0,)))
        gx, _, gb = convolution.backward(gy, x, w, b, stride)
        return gx, gw, gb

    report = check.layer(convolution.forward, backward, "conv2d")
    assert report.mistakes == ("gw: start not times the stride",)


def test_the_steps_of_im2col() -> None:
    layer = stateful.Conv(transpose=False)
    report = check.layer(layer.forward, None, "conv2d")
    assert report.mistakes == ("y: reshaped without transpose",)
    layer = stateful.Conv(add=False)
    report = check.layer(layer.forward, layer.backward, "conv2d")
    assert report.mistakes == ("gx: windows overwritten, by kernel offset",)


def test_one_taken_from_whole_columns() -> None:
    def backward(x: Any, t: Any) -> Any:
        e = np.exp(x - x.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        p[:, t] -= 1
        return p / len(x)

    report = check.layer(dense.cross_entropy, backward, "cross_entropy")
    assert report.mistakes == ("gx: 1 subtracted from whole columns",)


def test_gradients_that_add_up_over_calls() -> None:
    layer = stateful.Linear(sums=True)
    report = check.layer(layer.forward, layer.backward, "linear")
    assert report.mistakes == ("gw: added up over calls",), report


def test_results_that_are_random() -> None:
    generator = np.random.default_rng(3)

    def forward(x: Any) -> Any:
        return relu(x) * generator.uniform(size=x.shape)

    assert check.layer(forward, None, "relu").mistakes == ("y: changes from call to call",)


def test_two_mistakes_of_batch_norm() -> None:
    def forward(x: Any, weight: Any, bias: Any, eps: float) -> Any:
        axes = (0, 2, 3)
        hat = (x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True, ddof=1) + eps)
        return by_channel(weight) * hat + by_channel(bias)

    report = check.layer(forward, None, "batch_norm")
    assert set(report.mistakes) == {"y: unbiased variance", "y: eps outside the root"}, report


def test_undivided_windows_one_over_the_other() -> None:
    def backward(gy: Any, x: Any, kernel_size: int, stride: int) -> Any:
        gx = np.zeros_like(x)
        for index, window in pooling.places(x, gy, kernel_size, stride):
            gx[window] = gy[index]
        return gx

    report = check.layer(pooling.avg_forward, backward, "avg_pool2d")
    assert set(report.mistakes) == {"gx: not divided", "gx: windows overwritten"}, report


# Nothing claimed that a case speaks against.


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def first_pixel_missing(x: Any, w: Any, b: Any) -> Any:
    y = convolution.forward(x, w, b)
    y[:, :, 0, 0] = 0
    return y


@pytest.mark.parametrize(
    ("forward", "backward", "name"),
    [
        (
            lambda x, t: -(t * np.log(softmax(x))).sum() / len(x),
            lambda x, t: (softmax(x) - t) / len(x),
            "cross_entropy",
        ),
        (first_pixel_missing, None, "conv2d"),
    ],
)
def test_plain_mistakes_are_not_seen_in_a_part_of_the_cases(
    forward: Any, backward: Any, name: str
) -> None:
    report = check.layer(forward, backward, name)
    assert not report.ok
    assert report.mistakes == ()
    assert "zero everywhere" not in flat(report)


def test_a_mistake_that_explains_the_small_cases_alone() -> None:
    def backward(gy: Any, x: Any, w: Any, b: Any) -> Any:
        gx, gw, _ = convolution.backward(gy, x, w, b)
        return gx, gw, np.full_like(b, gy.mean())

    report = check.layer(convolution.forward, backward, "conv2d")
    assert report.mistakes == ()
    assert "the mean of gy, not its sum" not in flat(report)


def test_what_a_mistake_leaves_unexplained_is_shown() -> None:
    def backward(gy: Any, x: Any, w: Any, b: Any) -> Any:
        gx, gw, gb = dense.linear_backward(gy, x, w, b)
        return gx, gw / len(x) if x.shape != (2, 2) or len(w) > 1 else gw * 7, gb

    report = check.layer(dense.linear, backward, "linear")
    (finding,) = [f for f in report.findings if not f.ok]
    assert report.mistakes == ()
    assert "No known mistake explains all of it. In 2 of 3 wrong cases" in finding.text
    assert "looks like ours divided by the number of samples" in finding.text
    assert finding.beyond is not None
    assert finding.beyond.about == "two samples"
    assert "Not explained by that: two samples" in str(report)


# The grade.


def test_the_score_is_the_share_of_right_results() -> None:
    def forward(x: Any, w: Any, b: Any) -> Any:
        return convolution.forward(x, w[..., ::-1, ::-1], b)

    def backward(gy: Any, x: Any, w: Any, b: Any) -> Any:
        gx, gw, gb = convolution.backward(gy, x, w[..., ::-1, ::-1], b)
        return gx, gw[..., ::-1, ::-1], gb

    report = check.layer(forward, backward, "conv2d")
    assert report.score == 0.75
    assert str(report).startswith("conv2d: 1 of 4 results wrong, 2 follow from it.")
    report = check.layer(relu, lambda gy, x: -relu_backward(gy, x), "relu")
    assert report.score == 0.5
    assert str(report).startswith("relu: 1 of 2 results wrong.")


@pytest.mark.parametrize("name", ["linear", "conv2d", "batch_norm"])
def test_gradients_in_another_order(name: str) -> None:
    forward, backward = LAYERS[name]

    def exchanged(*inputs: Any, **options: Any) -> Any:
        gx, gw, gb = backward(*inputs, **options)
        return gw, gx, gb

    report = check.layer(forward, exchanged, name)
    first, second, _ = (f"g{x}" for x in SUBJECTS[name].gradients)
    told = (f"{first}: that of {second[1:]}", f"{second}: that of {first[1:]}")
    assert report.mistakes == told, report
