"""`check.layer` on layers written by hand: what it finds, what it takes, what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from students import convolution, pooling
from students.spoiled import LAYERS, relu, relu_backward, spoiled

from dualcnn import check


def flat(report: check.Report) -> str:
    """The text without its line breaks."""
    return " ".join(str(report).split())


@pytest.mark.parametrize("name", LAYERS)
def test_a_right_layer_passes(name: str) -> None:
    report = check.layer(*LAYERS[name], name)
    assert report.ok, report
    assert report.score == 1
    assert report.mistakes == ()
    assert all(finding.verdict == "right" for finding in report.findings)


# What notebooks have got wrong, as their authors wrote it.


def test_a_product_of_two_sums() -> None:
    report = check.layer(no_bias_forward, convolution.two_sums, "conv2d")
    (found,) = [f for f in report.findings if f.output == "gw"]
    # It takes the first image and channel alone, so the mistake is not all there is.
    assert "looks like the sum of gy times the sum of the windows" in found.text, report
    assert found.beyond is not None
    assert found.beyond.about == "two images"


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


def test_a_right_gradient_of_a_forward_that_subtracts_is_told_to_have_the_other_sign() -> None:
    def forward(x: Any, w: Any, b: Any) -> Any:
        return x @ w.T - b

    report = check.layer(forward, LAYERS["linear"][1], "linear")
    assert report.mistakes == ("y: bias subtracted",)
    assert "gb is right for our forward, and for yours, as long as it is wrong, it has" in flat(
        report
    )
    turned = spoiled(LAYERS["linear"][1], "gb[o] += gy[n, o]", "gb[o] -= gy[n, o]")
    report = check.layer(forward, turned, "linear")
    assert report.findings[3].verdict == "follows"
    assert "the other sign" not in flat(report)
    assert "the other sign" not in flat(check.layer(*LAYERS["linear"], "linear"))


def test_a_layer_with_its_relu() -> None:
    def forward(x: Any, w: Any, b: Any) -> Any:
        return relu(x @ w.T + b)

    def backward(gy: Any, x: Any, w: Any, b: Any) -> Any:
        return LAYERS["linear"][1](gy * (forward(x, w, b) > 0), x, w, b)

    report = check.layer(forward, backward, "linear")
    assert report.mistakes == ("y: ReLU included",)
    assert [f.verdict for f in report.findings] == ["mistake", "follows", "follows", "follows"]


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
    assert "not supported by your layer: a wide image." in flat(report)


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
        (lambda gx, gw, gb: None, "returned None (a missing return?); expected (gx, gw, gb)"),
        (lambda gx, gw, gb: (gx, gw, "b"), "is a str; expected an array of real numbers"),
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
    window = "x_pad[n, :, row : row + kh, column : column + kw]\n"
    backward = spoiled(convolution.backward, window, f"{window[:-1]}[:, ::-1, ::-1]\n")
    text = str(check.layer(convolution.forward, backward, "conv2d"))
    assert text.startswith("conv2d: 1 of 4 results wrong.\n\nRight: y (")
    assert "gw: Your gradient of w is ours with the kernel flipped. " in text
    assert "Smallest example: one window" in text
    assert repr(check.layer(relu, relu_backward, "relu")) == (
        "relu: all right.\n\nRight: y (7 cases), gx (7 cases)."
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
    assert check.layer(layer.forward, layer.backward, "relu").ok
    assert check.layer(layer.forward, lambda gy, x: layer.backward(gy), "relu").ok
