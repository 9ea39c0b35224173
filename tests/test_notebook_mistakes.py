"""The mistakes of five notebooks: shown in numbers, and named by `dualcnn.check`.

Each faulty piece is in `scripts/notebooks/as_written.py`. The right one is tried as well, in the
same style, and must not be accused.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from students import pooling

from dualcnn import check

FOLDER = Path(__file__).parents[1] / "scripts" / "notebooks"
PAGE = Path(__file__).parents[1] / "docs" / "mistakes.md"
Style = check.Style


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("as_written")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("mistakes")


def shown(script: Any, notebook: str) -> dict[str, Any]:
    return {s.title: s.numbers for s in script.NOTEBOOKS[notebook]()}


def told(script: Any, notebook: str, title: str) -> dict[str, Any]:
    (numbers,) = [n for t, n in shown(script, notebook).items() if title in t]
    return numbers


# In numbers.


@pytest.mark.parametrize(
    ("notebook", "title"),
    [
        ("000", "taken away"),
        ("000", "product of two sums"),
        ("001", "ties for the largest"),
        ("002", "first block's gradient"),
        ("003", "clipping the gradient"),
        ("003", "takes the place"),
    ],
)
def test_a_gradient_as_written_is_none_of_the_loss(script: Any, notebook: str, title: str) -> None:
    numbers = told(script, notebook, title)
    right, differences = (np.asarray(numbers[k]) for k in ("right", "differences"))
    size = np.abs(differences).max()
    assert np.allclose(right, differences, rtol=0, atol=1e-6 * size)
    assert np.abs(numbers["written"] - differences).max() > 0.3 * size


def test_000_the_biases_go_uphill(script: Any) -> None:
    numbers = told(script, "000", "taken away")
    assert numbers["written"] == pytest.approx(-numbers["differences"], rel=1e-6)
    assert np.allclose(
        numbers["last layer, written"], -numbers["last layer, differences"], rtol=1e-5, atol=1e-9
    )
    assert numbers["after the right step"] < numbers["loss now"] < numbers["after the written step"]


def test_000_the_kernel_moves_as_a_whole(script: Any) -> None:
    numbers = told(script, "000", "product of two sums")
    assert np.ptp(numbers["written"]) < 1e-9 * np.abs(numbers["written"]).max()
    assert np.linalg.norm(numbers["written"]) > 100 * np.linalg.norm(numbers["right"])


def test_001_the_printed_losses(script: Any, written: Any) -> None:
    numbers = told(script, "001", "printed losses")
    assert f"{numbers['that times 89 / 100']:.3f}" == "0.350"
    assert numbers["those times 1000 / 99"].tolist() == [2.19, 0.52, 0.35, 0.24, 0.16]
    losses = np.linspace(0.1, 3.0, 100)
    correct = np.arange(100) < 89
    assert written.printed_test_loss(losses, correct) * 89 / 100 == pytest.approx(losses.mean())
    mean = losses[:99].mean()
    assert written.printed_training_loss(losses) * 1000 / 99 == pytest.approx(mean)


def test_001_most_windows_around_a_digit_tie(script: Any) -> None:
    (text,) = [str(s) for s in script.notebook_001() if "ties" in s.title]
    assert "62% of the windows of 100 digits tie" in text


def test_001_the_early_return_is_harmless_for_one_gradient_alone(written: Any) -> None:
    totals = np.array([0.5, -1.0, 2.0, 0.0])
    p = np.exp(totals) / np.exp(totals).sum()
    jacobian = np.diag(p) - np.outer(p, p)
    one = np.array([0.0, 0.0, -1 / p[2], 0.0])
    assert np.allclose(written.softmax_gradient(one, totals), jacobian @ one)
    assert np.allclose(written.softmax_gradient(one, totals), p - np.eye(4)[2])
    two = np.array([1.0, 0.0, -1.0, 0.0])
    assert not np.allclose(written.softmax_gradient(two, totals), jacobian @ two)


def test_002_nothing_reaches_the_first_block(written: Any) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((14, 14, 2, 3)), rng.standard_normal((4, 4, 2, 5))
    gw, gx = written.unpadded(rng.standard_normal((13, 13, 5, 3)), w, x)
    assert gx.shape == (12, 12, 2, 3)
    assert not gx.any()
    assert gw.any()


def test_002_answers_depend_on_the_test_batch(script: Any) -> None:
    numbers = told(script, "002", "test batch")
    written = [numbers[f"written, {n} at a time"] for n in ("1,000", "10", "2", "one")]
    assert written == sorted(written, reverse=True)
    assert numbers["right, any number"] > 0.8
    assert numbers["different answers, one at a time"] == 1
    assert numbers["written, one at a time"] < 0.15


def test_003_the_mlp_does_not_run(script: Any) -> None:
    numbers = told(script, "003", "doesn't run")
    assert numbers["the class"].startswith("IndentationError")
    assert numbers["its training"].startswith("ValueError: operands could not be broadcast")
    assert numbers["with one-hot rows"] == "runs"


def test_003_adams_part_works_against_the_gradient(script: Any, written: Any) -> None:
    numbers = told(script, "003", "Adam's step")
    assert numbers["g = 0.001, written step"] > 0 > numbers["g = 0.001, right step"]
    assert numbers["Adam's part against the gradient, by batch"] == [True] * 5
    assert (numbers["its length in lengths of the plain steps"] < 0.5).all()
    assert numbers["m / (1 - 0.9**t) after a batch of ones"] == pytest.approx(10, rel=1e-4)
    # Of gradients larger than lr the sum goes down: it is not all of the update that climbs.
    assert written.ClimbingAdam(lr=0.005).update(np.zeros(1), np.ones(1)) < 0


def test_004_a_scalar_bias_learns_nothing_before_softmax(script: Any) -> None:
    numbers = told(script, "004", "one number")
    assert abs(numbers["gradient, written"]) < 1e-15
    assert abs(numbers["differences"]) < 1e-9
    assert np.allclose(numbers["gradient, right"], numbers["differences of those"], atol=1e-9)
    assert np.abs(numbers["gradient, right"]).min() > 1e-3


def test_004_equal_kernels(script: Any) -> None:
    assert [*told(script, "004", "64 kernels").values()] == [1, 1, 64]


def test_the_script_prints_what_the_page_shows(
    script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(["004"])
    printed = capsys.readouterr().out
    assert printed.startswith("004  The bias is one number for all units\n  written  b = Variable")
    page = PAGE.read_text(encoding="utf-8")
    for notebook in script.NOTEBOOKS:
        for title in shown(script, notebook):
            assert f"### {title.split('  ')[1]}\n" in page
    with pytest.raises(SystemExit):
        script.main(["005"])
    assert "expected notebooks of 000, 001, 002, 003, 004, got 005" in capsys.readouterr().err


def test_the_page_has_the_figures_of_the_script(script: Any) -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    bias = told(script, "000", "taken away")
    assert (
        f"written as {bias['written']:.3f}, and differences say {bias['differences']:.3f}" in page
    )
    now, wrong, right = (
        f"{bias[name]:.3f}"
        for name in ("loss now", "after the written step", "after the right step")
    )
    assert f"from {now} to {wrong}; the other way it would have been {right}" in page
    for notebook in script.NOTEBOOKS:
        for found in script.NOTEBOOKS[notebook]():
            for off in re.findall(r"[Oo]ff by ([\d.]+) times", found.remark):
                assert re.search(rf"[Oo]ff by {off} times", page), found.title
    accuracy = told(script, "002", "test batch")
    for size in ("1,000", "10", "2", "1"):
        written = accuracy[
            f"written, {size.replace('1', 'one') if size == '1' else size} at a time"
        ]
        assert f"| {size} | {written:.1%} |".replace("%", " %") in page
    assert f"running statistics | {accuracy['right, any number']:.1%}".replace("%", " %") in page
    adam = told(script, "003", "Adam's step")["its length in lengths of the plain steps"]
    assert f"with {', '.join(f'{part:.0%}'.replace('%', ' %') for part in adam)} of" in page


# Named by the check, each in its own style, beside one that is right.


def conv_of_one(x: Any, w: Any) -> Any:
    """One image (C, H, W)."""
    return np.einsum("chwij,ocij->ohw", sliding_window_view(x, w.shape[2:], axis=(1, 2)), w)


def right_of_one(gy: Any, x: Any, w: Any) -> Any:
    gx, gw = np.zeros_like(x), np.zeros_like(w)
    kh, kw = w.shape[2:]
    for i, j in np.ndindex(*gy.shape[1:]):
        window = np.s_[:, i : i + kh, j : j + kw]
        gw += gy[:, i, j][:, None, None, None] * x[window]
        gx[window] += np.einsum("o,ocij->cij", gy[:, i, j], w)
    return gx, gw


ONE_KERNEL = Style(x="HW", w="HW", gives=("gw", "gb"))


def test_000_is_named(written: Any) -> None:
    report = check.layer(written.minus_bias, written.two_sums, "conv2d", ONE_KERNEL)
    assert report.mistakes == ("y: bias subtracted", "gw: product of two sums"), report
    assert "gb is right for our forward, and for yours" in " ".join(str(report).split())

    def plus(x: Any, w: Any, b: Any) -> Any:
        return written.minus_bias(x, w, -b)

    def backward(gy: Any, x: Any, w: Any, b: Any) -> Any:
        return np.einsum("hw,hwij->ij", gy, sliding_window_view(x, w.shape)), gy.sum()

    report = check.layer(plus, backward, "conv2d", ONE_KERNEL)
    assert report.ok, report
    report = check.layer(plus, written.two_sums, "conv2d", ONE_KERNEL)
    assert report.mistakes == ("gw: product of two sums",)


BY_TWO = Style(x="HWC", fixed={"kernel_size": 2, "stride": 2})


def test_001_is_named(written: Any) -> None:
    layer = written.TiedMaxPool()
    report = check.layer(layer.forward, layer.backprop, "max_pool2d", BY_TWO)
    assert report.mistakes == ("gx: whole gradient to every tied maximum",), report

    class First(type(layer)):  # type: ignore[misc]
        def backprop(self, gy: Any) -> Any:
            x = self.maps.transpose(2, 0, 1)[None]
            return pooling.max_backward(gy.transpose(2, 0, 1)[None], x, 2)[0].transpose(1, 2, 0)

    first = First()
    report = check.layer(first.forward, first.backprop, "max_pool2d", BY_TWO)
    assert report.ok, report


SAMPLES_LAST = Style(x="HWCN", w="HWIO", takes=("gy", "w", "x"), gives=("gw", "gx"))


def test_002_is_named(written: Any) -> None:
    def forward(x: Any, w: Any, padding: int = 1, stride: int = 1) -> Any:
        x = np.pad(x, ((padding, padding), (padding, padding), (0, 0), (0, 0)))
        windows = sliding_window_view(x, w.shape[:2], axis=(0, 1))[::stride, ::stride]
        return np.einsum("hwcnij,ijco->hwon", windows, w)

    report = check.layer(forward, written.unpadded, "conv2d", SAMPLES_LAST)
    assert report.mistakes == ("gx: unpadded array returned",), report

    def padded_returned(gy: Any, w: Any, x: Any, padding: int = 1, stride: int = 1) -> Any:
        border = ((padding, padding), (padding, padding), (0, 0), (0, 0))
        x_padded, gx_padded, gw = np.pad(x, border), np.pad(0 * x, border), np.zeros_like(w)
        for i, j in np.ndindex(*gy.shape[:2]):
            row, column = i * stride, j * stride
            window = np.s_[row : row + w.shape[0], column : column + w.shape[1]]
            gx_padded[window] += np.einsum("on,ijco->ijcn", gy[i, j], w)
            gw += np.einsum("on,ijcn->ijco", gy[i, j], x_padded[window])
        p = padding
        return gw, gx_padded[p : p + x.shape[0], p : p + x.shape[1]]

    report = check.layer(forward, padded_returned, "conv2d", SAMPLES_LAST)
    assert report.ok, report

    x = np.random.default_rng(0).random((16, 5))
    report = check.evaluation(lambda x: written.batch_statistics(x, 1.0, 0.0), x)
    assert report.mistakes == ("y: statistics of the test batch",)
    mean, var = x.mean(axis=0), x.var(axis=0)
    assert check.evaluation(lambda x: (x - mean) / np.sqrt(var + 1e-5), x).ok


def test_003_is_named(written: Any) -> None:
    style = Style(x="CHW")
    report = check.layer(conv_of_one, written.clipped_and_overwritten, "conv2d", style)
    assert set(report.mistakes) == {
        "gx: gy clipped",
        "gx: last output channel only",
        "gw: gy clipped",
    }, report
    report = check.layer(conv_of_one, right_of_one, "conv2d", style)
    assert report.ok, report
    report = check.layer(lambda x: np.maximum(x, 0), lambda gy, x: np.maximum(gy, 0), "relu")
    assert report.mistakes == ("gx: gradient clipped instead of masked",)


def test_003_adam_is_named(written: Any) -> None:
    def of_one() -> Any:
        return written.ClimbingAdam(lr=0.005, eps=1e-4).update

    report = check.optimizer(of_one, "adam", lr=0.005, eps=1e-4)
    assert report.mistakes == ("y: taken from the gradient",), report

    def of_batches() -> Any:
        return written.ClimbingAdam(lr=0.005, eps=1e-4, batch=4).update

    report = check.optimizer(of_batches, "adam", lr=0.005, eps=1e-4, samples=4)
    assert set(report.mistakes) == {
        "y: taken from the gradient",
        "y: moments move at every sample",
    }, report

    report = check.optimizer(
        lambda: written.fully_connected_update, "adam", lr=0.005, eps=1e-4, samples=4
    )
    assert not report.ok
    report = check.optimizer(lambda: written.fully_connected_update, "adam", lr=0.005, eps=1e-4)
    assert report.mistakes == ("y: plain gradient descent",)
    assert check.optimizer(lambda: written.fully_connected_update, "sgd", lr=0.005).ok


def test_004_is_named(written: Any) -> None:
    rng = np.random.default_rng(0)
    layer = written.ScalarBias(6, 4, rng)
    report = check.parameters(layer.w, layer.b, outputs=-1)
    assert report.mistakes == ("b: one bias for all units",)
    assert check.parameters(layer.w, np.zeros(4), outputs=-1).ok
    # Its forward is right, whatever bias is put in.
    style = Style(w="IO", holds={"w": "w", "b": "b"})
    assert check.layer(layer.forward, None, "linear", style).ok
    report = check.parameters(written.unique_kernels())
    assert report.mistakes == ("w: all kernels are equal",)
    assert check.parameters(rng.standard_normal((64, 32, 3, 3))).ok
