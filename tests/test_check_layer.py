"""`check.layer` on layers written by hand: right ones pass, each mistake gets its name."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from students import convolution, dense, pooling

from dualcnn import check
from dualcnn.check.layers import SUBJECTS


def spoiled(function: Callable[..., Any], line: str, by: str) -> Callable[..., Any]:
    """The function with one line written differently."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(line) == 1, f"{line!r} is {source.count(line)} times in\n{source}"
    names = dict(function.__globals__)
    exec(compile(source.replace(line, by), "<spoiled>", "exec"), names)
    changed: Callable[..., Any] = names[function.__name__]
    return changed


def flat(report: check.Report) -> str:
    """The text without its line breaks."""
    return " ".join(str(report).split())


def relu(x: Any) -> Any:
    return np.maximum(x, 0)


def relu_backward(gy: Any, x: Any) -> Any:
    return gy * (x > 0)


LAYERS = {
    "conv2d": (convolution.forward, convolution.backward),
    "max_pool2d": (pooling.max_forward, pooling.max_backward),
    "avg_pool2d": (pooling.avg_forward, pooling.avg_backward),
    "linear": (dense.linear, dense.linear_backward),
    "batch_norm": (dense.batch_norm, dense.batch_norm_backward),
    "cross_entropy": (dense.cross_entropy, dense.cross_entropy_backward),
    "relu": (relu, relu_backward),
    "leaky_relu": (
        lambda x, negative_slope=0.01: np.where(x > 0, x, negative_slope * x),
        lambda gy, x, negative_slope=0.01: np.where(x > 0, gy, negative_slope * gy),
    ),
    "sigmoid": (
        lambda x: 1 / (1 + np.exp(-x)),
        lambda gy, x: gy * np.exp(-x) / (1 + np.exp(-x)) ** 2,
    ),
    "tanh": (np.tanh, lambda gy, x: gy / np.cosh(x) ** 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_right_layer_passes(name: str) -> None:
    report = check.layer(*LAYERS[name], name)
    assert report.ok, report
    assert report.score == 1
    assert report.mistakes == ()
    assert all(finding.verdict == "right" for finding in report.findings)


WINDOW = "x_pad[n, :, row : row + kh, column : column + kw]\n"
MIDDLE = "gx_pad[:, :, p : p + x.shape[2], p : p + x.shape[3]]"
TIED = "[...] += gy[index] * (x[window] == x[window].max())"

# The layer, whether its backward is spoiled, a piece of its source, what stands there instead, and
# what the check makes of it.
SPOILED = [
    ("conv2d", 0, "* w[f]", "* w[f, :, ::-1, ::-1]", "y: kernel flipped"),
    ("conv2d", 0, "* w[f]", "* w[f].swapaxes(1, 2)", "y: kernel transposed"),
    ("conv2d", 0, "+ b[f]", "- b[f]", "y: bias subtracted"),
    ("conv2d", 0, " + b[f]", "", "y: bias missing"),
    ("conv2d", 0, "+ b[f]", "+ b[0]", "y: one bias for all"),
    (
        "conv2d",
        0,
        "window * w[f], axis=(1, 2, 3)) + b[f]",
        "window * w[f] + b[f], axis=(1, 2, 3))",
        "y: bias added once a weight",
    ),
    ("conv2d", 0, "(p, p), (p, p)", "(2 * p, 0), (2 * p, 0)", "y: padding before only"),
    ("conv2d", 0, "(p, p), (p, p)", "(0, 2 * p), (0, 2 * p)", "y: padding after only"),
    ("conv2d", 0, "(p, p)))", '(p, p)), mode="edge")', "y: padding repeats the edge"),
    (
        "conv2d",
        0,
        "window * w[f], axis=(1, 2, 3)",
        "window[:, 0] * w[f, 0], axis=(1, 2)",
        "y: first channel only",
    ),
    ("conv2d", 1, WINDOW, f"{WINDOW[:-1]}[:, ::-1, ::-1]\n", "gw: kernel flipped"),
    ("conv2d", 1, "gw[f] += g *", "gw[f] = g *", "gw: last window only, last sample only"),
    ("conv2d", 1, "], gw, gb", "], gw / len(x), gb", "gw: mean over the batch"),
    ("conv2d", 1, "+= g * w[f]", "+= g * w[f, :, ::-1, ::-1]", "gx: kernel not flipped"),
    ("conv2d", 1, "gb[f] += g", "gb[f] = g", "gb: last pixel only, last sample only"),
    ("conv2d", 1, "gb[f] += g", "gb[f] -= g", "gb: negated"),
    ("conv2d", 1, "gb[f] += g", "gb[f] += 2 * g", "gb: doubled"),
    ("conv2d", 1, "gb[f] += g", "pass", "gb: zero"),
    ("conv2d", 1, "gb[f] += g", "gb[:] += g", "gb: sum over all channels"),
    ("conv2d", 1, MIDDLE, "gx_pad", "gx: border kept"),
    (
        "conv2d",
        1,
        MIDDLE,
        "gx_pad[:, :, : x.shape[2], : x.shape[3]]",
        "gx: cropped from the first row",
    ),
    (
        "conv2d",
        1,
        MIDDLE,
        "np.zeros_like(x) if p else gx_pad",
        "gx: zero where there is padding",
    ),
    ("max_pool2d", 0, ".max()", ".min()", "y: minimum"),
    ("max_pool2d", 0, "x[window].max()", "abs(x[window]).max()", "y: largest magnitude"),
    ("max_pool2d", 1, "+= gy[index]", "= gy[index]", "gx: shared maximum overwritten"),
    ("max_pool2d", 1, "[where] +=", "[...] +=", "gx: to every pixel"),
    ("max_pool2d", 1, "[where] += gy[index]", TIED, "gx: whole gradient to every tied maximum"),
    ("avg_pool2d", 0, ".mean()", ".sum()", "y: sum"),
    ("avg_pool2d", 0, ".mean()", ".sum() / kernel_size", "y: divided by the kernel size"),
    ("avg_pool2d", 1, " / kernel_size**2", "", "gx: not divided"),
    ("avg_pool2d", 1, "+=", "=", "gx: windows overwritten"),
    ("linear", 0, "+ b[o]", "- b[o]", "y: bias subtracted"),
    ("linear", 1, "gb[o] += gy[n, o]", "gb[o] += gy[n, o] / len(x)", "gb: mean over the batch"),
    ("linear", 1, "gx[n] += gy", "gx[n] = gy", "gx: last output only"),
    ("linear", 1, "return gx, gw, gb", "return gx, gw.T, gb", "gw: transposed"),
    ("batch_norm", 0, "** 2) / len(column)", "** 2) / (len(column) - 1)", "y: unbiased variance"),
    ("batch_norm", 0, "math.sqrt(var + eps)", "(math.sqrt(var) + eps)", "y: eps outside the root"),
    ("batch_norm", 0, "math.sqrt(var + eps)", "math.sqrt(var)", "y: eps missing"),
    ("batch_norm", 1, " + g_mean / n", "", "gx: mean held fixed"),
    (
        "batch_norm",
        1,
        " + g_var * 2 * (x - mean) / n + g_mean / n",
        "",
        "gx: mean and variance held fixed",
    ),
    ("batch_norm", 1, "(gy * hat)", "(gy * x)", "gweight: x for xhat"),
    ("cross_entropy", 0, "total / len(x)", "total", "y: sum over the batch"),
    ("cross_entropy", 0, "total / len(x)", "total / x.size", "y: divided by batch and classes"),
    ("cross_entropy", 1, "gx / len(x)", "gx", "gx: not divided by the batch"),
    ("cross_entropy", 1, "gx[n, label] -= 1", "pass", "gx: 1 not subtracted"),
    ("cross_entropy", 1, "row - row.max()", "row", "gx: overflow"),
    ("relu", 1, "gy * (x > 0)", "np.maximum(gy, 0)", "gx: gradient clipped instead of masked"),
    ("relu", 1, "gy * (x > 0)", "(x > 0) * 1.0", "gx: mask without gy"),
    ("relu", 1, "(x > 0)", "(x < 0)", "gx: mask the wrong way round"),
]


@pytest.mark.parametrize(("name", "which", "line", "by", "expected"), SPOILED)
def test_a_mistake_gets_its_name(name: str, which: int, line: str, by: str, expected: str) -> None:
    functions = list(LAYERS[name])
    functions[which] = spoiled(functions[which], line, by)
    report = check.layer(*functions, name)
    assert not report.ok
    assert report.score < 1
    output, names = expected.split(": ")
    found = [f for f in report.findings if not f.ok]
    assert [f.output for f in found] == [output], report
    assert set(found[0].mistakes) == set(names.split(", ")), report
    assert found[0].example is not None


# What notebooks have got wrong, as their authors wrote it.


def test_a_product_of_two_sums() -> None:
    report = check.layer(no_bias_forward, convolution.two_sums, "conv2d")
    assert "gw: product of two sums" in report.mistakes, report


def no_bias_forward(x: Any, w: Any) -> Any:
    return convolution.forward(x, w, np.zeros(len(w)))


def test_a_bias_with_the_other_sign() -> None:
    report = check.layer(convolution.subtracted_bias, None, "conv2d")
    assert report.mistakes == ("y: bias subtracted",)


def test_the_unpadded_array_returned() -> None:
    def forward(x: Any, w: Any, stride: int = 1, padding: int = 1) -> Any:
        return convolution.forward(x, w, np.zeros(len(w)), stride, padding)

    report = check.layer(forward, convolution.unpadded_returned, "conv2d")
    assert report.mistakes == ("gx: unpadded array returned",), report


def test_clipped_and_overwritten_are_two_mistakes() -> None:
    report = check.layer(no_bias_forward, convolution.clipped_and_overwritten, "conv2d")
    assert set(report.mistakes) == {
        "gw: gy clipped",
        "gx: gy clipped",
        "gx: last output channel only",
    }, report
    assert "two mistakes at once" in flat(report)


def test_every_tied_maximum_with_the_whole_gradient() -> None:
    def forward(x: Any, kernel_size: int) -> Any:
        return pooling.max_forward(x, kernel_size)

    report = check.layer(forward, pooling.tied_maxima, "max_pool2d")
    assert report.mistakes == ("gx: whole gradient to every tied maximum",), report
    example = report.findings[1].example
    assert example is not None
    assert example.inputs["x"].tolist() == [[[[1, 3], [3, 2]]]]


# The catalogue.


def with_mistake(name: str, mistake: Any) -> check.Report:
    """The library's own layer with that one mistake, as somebody's."""
    subject = SUBJECTS[name]

    def at(output: str, *inputs: Any, **options: Any) -> Any:
        right = subject.right(output)
        if output == mistake.output:
            return mistake.wrong(right, *inputs, **options)
        return right(*inputs, **options)

    def forward(*inputs: Any, **options: Any) -> Any:
        return at("y", *inputs, **options)

    def backward(*inputs: Any, **options: Any) -> Any:
        return tuple(at(output, *inputs, **options) for output in subject.outputs[1:])

    return check.layer(forward, backward, name)


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_mistake_is_told_from_all_others(name: str) -> None:
    mistakes = SUBJECTS[name].mistakes
    assert len({(m.output, m.name) for m in mistakes}) == len(mistakes)
    for mistake in mistakes:
        report = with_mistake(name, mistake)
        (found,) = [f for f in report.findings if f.verdict != "right"]
        assert (found.output, found.mistakes) == (mistake.output, (mistake.name,))
        assert found.verdict == ("remark" if mistake.remark else "mistake")
        assert mistake.told in found.text
        assert found.example is not None
        numbers = sum(np.size(x) for x in found.example.inputs.values())
        assert numbers <= 40, f"{mistake.name}: {found.example}"


def test_at_least_twenty_mistakes_of_each_large_layer() -> None:
    assert len(SUBJECTS["conv2d"].mistakes) >= 40
    assert sum(len(s.mistakes) for s in SUBJECTS.values()) >= 200


# What else a check finds.


def test_two_mistakes_in_one_result() -> None:
    line = "window * w[f], axis=(1, 2, 3)) + b[f]"
    by = "window * w[f, :, ::-1, ::-1], axis=(1, 2, 3))"
    forward = spoiled(convolution.forward, line, by)
    report = check.layer(forward, convolution.backward, "conv2d")
    assert set(report.findings[0].mistakes) == {"kernel flipped", "bias missing"}


def test_the_gradient_of_a_wrong_forward_is_not_blamed() -> None:
    def forward(x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
        return convolution.forward(x, w[..., ::-1, ::-1], b, stride, padding)

    def backward(gy: Any, x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
        gx, gw, gb = convolution.backward(gy, x, w[..., ::-1, ::-1], b, stride, padding)
        return gx, gw[..., ::-1, ::-1], gb

    report = check.layer(forward, backward, "conv2d")
    verdicts = {f.output: f.verdict for f in report.findings}
    assert verdicts == {"y": "mistake", "gx": "follows", "gw": "follows", "gb": "right"}
    assert report.mistakes == ("y: kernel flipped",)
    assert "Mend that first" in flat(report)


def test_another_choice_at_a_tie_is_a_remark() -> None:
    report = check.layer(relu, lambda gy, x: gy * (x >= 0), "relu")
    assert report.ok
    assert report.score == 1
    assert [f.verdict for f in report.findings] == ["right", "remark"]
    assert "That is right too" in flat(report)


def test_an_unknown_mistake_is_described() -> None:
    def backward(gy: Any, x: Any) -> Any:
        gx = gy * (x > 0)
        gx.flat[0] += 5
        return gx

    report = check.layer(relu, backward, "relu")
    finding = report.findings[1]
    assert finding.mistakes == ()
    assert "No known mistake explains it" in finding.text

    report = check.layer(relu, lambda gy, x: gy * (x > 0) * 0.75, "relu")
    assert "is ours times 0.75" in report.findings[1].text

    def wrong_corner(x: Any, kernel_size: int) -> Any:
        y = pooling.max_forward(x, kernel_size)
        y[0, -1, 0, 0] += 1
        return y

    report = check.layer(wrong_corner, None, "max_pool2d")
    assert "differs in 1 of 1 numbers" in report.findings[0].text


def test_a_layer_may_have_fewer_options() -> None:
    def forward(x: Any, w: Any) -> Any:
        assert x.shape[0] == 1 or x.shape[0] == 2
        return convolution.forward(x, w, np.zeros(len(w)))

    report = check.layer(forward, None, "conv2d")
    assert report.ok
    assert report.findings[0].cases < check.layer(*LAYERS["conv2d"], "conv2d").findings[0].cases
    assert "your forward takes no b" in flat(report)


def test_what_a_layer_refuses_beyond_the_common_is_a_note() -> None:
    def square_only(x: Any, w: Any, b: Any) -> Any:
        if x.shape[2] != x.shape[3]:
            raise ValueError("square images only")
        return convolution.forward(x, w, b)

    report = check.layer(square_only, None, "conv2d")
    assert report.ok
    assert "yours does not: a wide image (raised ValueError: square images only)" in flat(report)


def test_an_exception_is_a_finding() -> None:
    def forward(x: Any, w: Any, b: Any) -> Any:
        return convolution.forward(x, w, b)[5]

    report = check.layer(forward, convolution.backward, "conv2d")
    assert [f.verdict for f in report.findings] == ["error"] * 4
    assert report.score == 0
    assert "Your forward raised IndexError" in flat(report)
    assert report.findings[0].example is not None


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (lambda gx, gw, gb: gw, "returned an array of shape"),
        (lambda gx, gw, gb: (gx, gw), "returned 2 results; expected (gx, gw, gb)"),
        (lambda gx, gw, gb: None, "returned None; expected (gx, gw, gb)"),
        (lambda gx, gw, gb: (gx, gw, "b"), "is a str; expected an array of numbers"),
    ],
)
def test_an_answer_of_another_kind_is_a_finding(result: Any, told: str) -> None:
    def backward(gy: Any, x: Any, w: Any, b: Any) -> Any:
        return result(*convolution.backward(gy, x, w, b))

    report = check.layer(convolution.forward, backward, "conv2d")
    assert not report.ok
    assert told in flat(report)


def test_a_changed_input_is_noted() -> None:
    def forward(x: Any) -> Any:
        x[x < 0] = 0
        return x

    report = check.layer(forward, lambda gy, x: gy * (x > 0), "relu")
    assert report.ok
    assert "x changed during the call" in flat(report)


def test_a_wrong_shape_shows_both() -> None:
    report = check.layer(lambda x: np.maximum(x, 0)[:1], relu_backward, "relu")
    assert "has the shape (1,); expected (2,)" in flat(report)


def test_single_precision_is_right() -> None:
    def forward(x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
        single = [v.astype("float32") for v in (x, w, b)]
        return convolution.forward(*single, stride, padding).astype("float32")

    assert check.layer(forward, convolution.backward, "conv2d").ok


def test_the_report_as_text() -> None:
    backward = spoiled(convolution.backward, WINDOW, f"{WINDOW[:-1]}[:, ::-1, ::-1]\n")
    text = str(check.layer(convolution.forward, backward, "conv2d"))
    assert text.startswith("conv2d: 1 of 4 results are wrong.\n\nRight: y (")
    assert "gw: Your gradient of w is ours with the kernel flipped. " in text
    assert "Smallest example: one window" in text
    assert repr(check.layer(relu, relu_backward, "relu")) == (
        "relu: all right.\n\nRight: y (6 cases), gx (6 cases)."
    )


def test_unknown_layers_and_signatures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a layer of conv2d, .*, got 'conv3d'"):
        check.layer(relu, relu_backward, "conv3d")
    with pytest.raises(TypeError, match=r"expected a forward that takes \(x, w, b, stride=, "):
        check.layer(relu, relu_backward, "conv2d")


def test_a_class_that_remembers_its_input() -> None:
    """Backward is called after forward, with the same inputs."""

    class Relu:
        def forward(self, x: Any) -> Any:
            self.mask = x > 0
            return x * self.mask

        def backward(self, gy: Any) -> Any:
            return gy * self.mask

    layer = Relu()
    report = check.layer(layer.forward, lambda gy, x: layer.backward(gy), "relu")
    assert report.ok
