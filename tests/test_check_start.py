"""`check.parameters` and `check.evaluation`: initial weights, and answers in evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dualcnn import Tensor, check, nn, no_grad

RNG = np.random.default_rng(0)
W = RNG.standard_normal((6, 4, 3, 3))


@pytest.mark.parametrize("b", [None, np.zeros(6), np.zeros((1, 6)), RNG.standard_normal(6)])
def test_right_parameters_pass(b: Any) -> None:
    report = check.parameters(W, b)
    assert report.ok, report
    assert report.mistakes == ()
    assert check.parameters(W.transpose(2, 3, 1, 0), b, outputs=-1).ok


def test_one_unit_is_equal_to_no_other() -> None:
    assert check.parameters(np.ones((1, 9)), np.zeros(())).ok


def test_the_librarys_own_layers_pass() -> None:
    for layer in (nn.Conv2d(3, 8, 3), nn.Linear(5, 4)):
        assert check.parameters(layer.weight.numpy(), layer.bias.numpy()).ok


@pytest.mark.parametrize(
    ("w", "b", "expected"),
    [
        (np.stack([W[0]] * 6), None, "w: all kernels are equal"),
        (np.zeros((6, 4)), None, "w: all kernels are equal"),
        (np.stack([W[0], W[1], W[0]]), None, "w: some kernels are equal"),
        (W * np.inf, None, "w: not finite"),
        (W, np.zeros(()), "b: one bias for all units"),
        (W, np.zeros(1), "b: one bias for all units"),
        (W, np.zeros(4), "b: not a number for each unit"),
        (W, np.full(6, np.nan), "b: not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply:RuntimeWarning")
def test_a_mistake_gets_its_name(w: Any, b: Any, expected: str) -> None:
    report = check.parameters(w, b)
    assert report.mistakes == (expected,), report
    assert not report.ok


def flat(report: check.Report) -> str:
    """The text without its line breaks."""
    return " ".join(str(report).split())


def softmax(z: Any, axis: int) -> Any:
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


V = RNG.standard_normal((4, 3))
X = RNG.standard_normal((12, 4))


def test_a_right_network_passes() -> None:
    assert check.evaluation(lambda x: softmax(x @ V, 1), X).ok
    assert check.evaluation(lambda x: x @ V, X).ok
    assert check.evaluation(lambda x: x.T @ V, X.T, axis=1).ok
    assert check.evaluation(lambda x: (x @ V).argmax(axis=1), X).ok


def test_the_librarys_batch_norm_passes_in_evaluation_alone() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).to(dtype="float64")

    def predict(x: Any) -> Any:
        with no_grad():
            return net(Tensor(x)).numpy()

    predict(X)
    report = check.evaluation(predict, X)
    assert not report.ok
    assert "It answers 12 samples at once, but one alone raises ValueError: batch_norm in" in flat(
        report
    )
    net.eval()
    report = check.evaluation(predict, X)
    assert report.ok, report


def test_the_answer_must_not_depend_on_the_batch() -> None:
    def normed(x: Any) -> Any:
        return softmax((x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5) @ V, 1)

    report = check.evaluation(normed, X)
    assert report.mistakes == ("y: statistics of the test batch",)
    assert (report.findings[0].wrong, report.findings[0].cases) == (8, 8)
    example = report.findings[0].example
    assert example is not None
    assert np.array_equal(example.expected, normed(X[:1])[0])

    report = check.evaluation(lambda x: softmax(x @ V, 0), X)
    assert report.mistakes == ("y: softmax over the batch",)


def test_dropout_left_on() -> None:
    rng = np.random.default_rng(1)
    report = check.evaluation(lambda x: (x * (rng.random(x.shape) < 0.5)) @ V, X)
    assert report.mistakes == ("y: changes from call to call",)


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"at least two samples along axis 0, got the shape \(1, 4"
    ):
        check.evaluation(lambda x: x, X[:1])
    with pytest.raises(ValueError, match=r"a row for each of 12, got \(4, 12\)"):
        check.evaluation(lambda x: x.T, X)
