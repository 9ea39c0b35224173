"""Every mistake of the five notebooks, shown: what is written, what is right, what differences say.

    python scripts/notebooks/mistakes.py            all of them
    python scripts/notebooks/mistakes.py 000 003    those of two notebooks

What is written is in `as_written.py`. What is right comes from the library, and differences are
(loss(p + h) - loss(p - h)) / 2h of the network itself, which no backward can mislead. The digits
are those that come with dualcnn.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import as_written
import numpy as np
from mistakes_in_training import adam, batches_of_tests
from showing import Shown, cross_entropy, differences, digits, error_of_logits, failure, off

from dualcnn import ops


def notebook_000() -> Iterator[Shown]:
    """One 3x3 kernel, ReLU, 676 values to 10 classes; biases are taken away.

    The notebook's 6,760 weights are 26 times as large, and softmax so sure of itself that most
    gradients vanish.
    """
    rng = np.random.default_rng(42)
    (image, *_), (label, *_) = digits(1)
    kernel, bias = rng.random((3, 3)), rng.standard_normal()
    dense, dense_bias = rng.standard_normal((676, 10)) / 26, rng.standard_normal(10)

    def loss(kernel: Any, bias: Any, dense_bias: Any = dense_bias) -> float:
        maps = np.maximum(as_written.minus_bias(image, kernel, bias), 0)
        return cross_entropy(maps.ravel() @ dense - dense_bias, label)

    before_relu = as_written.minus_bias(image, kernel, bias)
    logits = np.maximum(before_relu, 0).ravel() @ dense - dense_bias
    error = error_of_logits(logits, label)
    gy = (dense @ error).reshape(26, 26) * (before_relu > 0)
    wrong_kernel, wrong_bias = as_written.two_sums(gy, image, kernel, bias)
    now = loss(kernel, bias)
    yield Shown(
        "000  The biases are taken away, and their gradients are those of biases that are added",
        "a = w * x - b,  b -= lr * sum(ga)      and the same with the ten biases of the last layer",
        "a = w * x + b,  b -= lr * sum(ga)      or, with the minus, b += lr * sum(ga)",
        {
            "written": wrong_bias,
            "right": -gy.sum(),
            "differences": differences(lambda b: loss(kernel, b), bias),
            "last layer, written": error[:4],
            "last layer, differences": differences(lambda b: loss(kernel, bias, b), dense_bias)[:4],
            "loss now": now,
            "after the written step": loss(kernel, bias - 0.005 * wrong_bias),
            "after the right step": loss(kernel, bias + 0.005 * gy.sum()),
        },
        "The step of the biases goes uphill.",
    )
    _, vjp = ops.conv2d(image[None, None], kernel[None, None], None)
    right = vjp(gy[None, None])[1][0, 0]
    yield Shown(
        "000  The kernel's gradient is a product of two sums",
        "gw = sum(ga) * sum(windows)",
        "gw = sum(ga * windows): each window by its own gradient",
        {
            "written": wrong_kernel,
            "right": right,
            "differences": differences(lambda w: loss(w, bias), kernel),
        },
        f"Off by {off(wrong_kernel, right):.0f} times the length of the right gradient. A digit "
        "has its ink away from the edge, so the windows have the same sum at all nine places: the "
        "kernel only moves up or down as a whole.",
    )


def notebook_001() -> Iterator[Shown]:
    """Conv3x3(8) without bias, MaxPool2, softmax; image/255 - 0.5."""
    rng = np.random.default_rng(0)
    images, labels = digits(100, shift=0.5)
    filters = rng.standard_normal((8, 3, 3)) / 9
    dense = rng.standard_normal((13 * 13 * 8, 10)) / (13 * 13 * 8)
    image, label = images[0], labels[0]

    def pooled(filters: Any, image: Any) -> tuple[Any, Any, Any]:
        # The same nine products at every pixel, so that equal windows give equal numbers.
        maps = sum(
            filters[:, i, j, None, None] * image[i : i + 26, j : j + 26]
            for i, j in np.ndindex(3, 3)
        )
        pool = as_written.TiedMaxPool()
        return pool, maps, pool.forward(maps.transpose(1, 2, 0))

    def loss(filters: Any) -> float:
        return cross_entropy(pooled(filters, image)[2].ravel() @ dense, label)

    def kernel_gradient(gmaps: Any) -> Any:
        return ops.conv2d(image[None, None], filters[:, None], None)[1](gmaps[None])[1][:, 0]

    pool, maps, y = pooled(filters, image)
    gy = (dense @ error_of_logits(y.ravel() @ dense, label)).reshape(13, 13, 8)
    wrong = kernel_gradient(pool.backprop(gy).transpose(2, 0, 1))
    right = kernel_gradient(
        ops.max_pool2d(maps[None], kernel_size=2)[1](gy.transpose(2, 0, 1)[None])[0][0]
    )
    blocks = [pooled(filters, image)[0].blocks for image in images]
    tied = np.mean([(b == b.max(axis=(1, 3), keepdims=True)).sum(axis=(1, 3)) > 1 for b in blocks])
    yield Shown(
        "001  Every number that ties for the largest gets the whole gradient",
        "gx[window == window.max()] = gy",
        "gx[the first of the largest] = gy",
        {
            "written": wrong[0],
            "right": right[0],
            "differences": differences(loss, filters)[0],
        },
        f"{tied:.0%} of the windows of 100 digits tie: around a digit all is -0.5, and four equal "
        "numbers get four times the gradient. The kernels' gradient is off by "
        f"{off(wrong, right):.1f} times its length.",
    )
    logits = np.stack([pooled(filters, image)[2].ravel() for image in images]) @ dense
    losses = ops.cross_entropy(logits, labels, reduction="none")[0]
    correct = logits.argmax(axis=1) == labels
    yield Shown(
        "001  The printed losses are divided by the wrong number",
        "training: the sum of 99 losses / 1000;  test: the sum of 100 losses / the right answers",
        "the mean: divide by the number of losses",
        {
            "untrained, mean of 99": losses[:99].mean(),
            "printed as training": as_written.printed_training_loss(losses),
            "mean of 100": losses.mean(),
            "printed as test": as_written.printed_test_loss(losses, correct),
            "the notebook's test, printed": 0.393,
            "that times 89 / 100": 0.393 * 89 / 100,
            "the notebook's epochs, printed": [0.217, 0.051, 0.035, 0.024, 0.016],
            "those times 1000 / 99": np.round(
                np.array([0.217, 0.051, 0.035, 0.024, 0.016]) * 1000 / 99, 2
            ),
        },
        "What looks like a loss of 0.217 is one of 2.19.",
    )
    totals = logits[0]
    p = ops.softmax(totals, dim=0)[0]
    one = -np.eye(10)[label] / p
    yield Shown(
        "001  Harmless: softmax's backward returns in the loop, at the first gradient that isn't 0",
        "for i, g in enumerate(gy): if g != 0: ... return",
        "the same, since only the right class has a gradient; otherwise, the sum over i",
        {
            "written": as_written.softmax_gradient(one, totals)[:4],
            "right": (p - np.eye(10)[label])[:4],
            "differences": differences(lambda z: cross_entropy(z, label), totals)[:4],
        },
    )


def notebook_002() -> Iterator[Shown]:
    """Two convolutions with batch norm, images (H, W, C, N); the test by the test batch."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 5, 2, 3)), rng.standard_normal((4, 4, 2, 3))
    ours, weight = x.transpose(3, 2, 0, 1), w.transpose(3, 2, 0, 1)
    y, vjp = ops.conv2d(ours, weight, None, padding=1)
    gy = rng.standard_normal(y.shape)
    _, wrong = as_written.unpadded(gy.transpose(2, 3, 1, 0), w, x)
    right = vjp(gy)[0]

    def loss(x: Any) -> float:
        return float((ops.conv2d(x, weight, None, padding=1)[0] * gy).sum())

    yield Shown(
        "002  The first block's gradient is always zero: the array without padding is returned",
        "gx_padded = pad(gx); gx_padded[window] += ...; return gx[1:-1, 1:-1]",
        "return gx_padded[1:-1, 1:-1]",
        {
            "written": wrong[..., 0, 0],
            "right": right[0, 0, 1:-1, 1:-1],
            "differences": differences(loss, ours)[0, 0, 1:-1, 1:-1],
            "shape written": wrong.shape,
            "shape of x": x.shape,
        },
        "np.pad copies, so gx stays zero, and it is cropped although it has no border. What lies "
        "before the second convolution, 16 kernels and their batch norm, is never trained.",
    )
    yield batches_of_tests()


def notebook_003() -> Iterator[Shown]:
    """An MLP, and a ConvNet of 10 kernels, ReLU, max-pool 2 and a fully connected layer."""
    outputs, labels = np.zeros((48, 10)), np.zeros(12, int)
    yield Shown(
        "003  The MLP doesn't run as written",
        "a method indented by spaces in a class indented by tabs; train(labels of the test part)",
        "one kind of indentation; train(one row of 10 for each image that went in)",
        {
            "the class": failure(lambda: compile(as_written.MIXED_INDENTATION, "mlp", "exec")),
            "its training": failure(lambda: as_written.squared_error_gradient(outputs, labels)),
            "with one-hot rows": failure(
                lambda: as_written.squared_error_gradient(outputs, np.eye(10)[[0] * 48])
            ),
        },
        "Its accuracy takes argmax of labels that are numbers, which is 0: it would count zeros.",
    )
    rng = np.random.default_rng(0)
    (image, *_), (label, *_) = digits(1, shift=0.5)
    w = rng.standard_normal((10, 1, 3, 3)) / 9
    dense = rng.standard_normal((1690, 10)) / 1690
    x = image[None, None]

    def network(x: Any, w: Any) -> tuple[Any, ...]:
        maps, back_conv = ops.conv2d(x, w, None)
        active = np.maximum(maps, 0)
        pooled, back_pool, *_ = ops.max_pool2d(active, kernel_size=2)
        return pooled.ravel() @ dense, maps, back_conv, back_pool

    def loss(x: Any, w: Any) -> float:
        return cross_entropy(network(x, w)[0], label)

    logits, maps, back_conv, back_pool = network(x, w)
    gpooled = (dense @ error_of_logits(logits, label)).reshape(1, 10, 13, 13)
    gactive = back_pool(gpooled)[0]
    _, right_w, _ = back_conv(gactive * (maps > 0))
    _, wrong_w = as_written.clipped_and_overwritten(gactive[0], x[0], w)
    came, masked, kept = gactive != 0, (gactive != 0) & (maps > 0), gactive > 0
    yield Shown(
        "003  ReLU's mask is replaced by clipping the gradient",
        "gmaps[gmaps < 0] = 0",
        "gmaps[maps <= 0] = 0",
        {
            "written": wrong_w[0, 0],
            "right": right_w[0, 0],
            "differences": differences(lambda v: loss(x, v), w)[0, 0],
        },
        f"Of {came.sum()} gradients, {masked.sum()} pass the mask; clipping lets "
        f"{(kept & masked).sum()} of those through, and {(kept & ~masked).sum()} others. "
        f"The kernels' gradient is off by {off(wrong_w, right_w):.1f} times its length.",
    )
    masked_x, _ = as_written.clipped_and_overwritten(np.abs(gactive[0]), x[0], w)
    plain_x = back_conv(np.abs(gactive))[0]
    yield Shown(
        "003  Each filter's gradient of x takes the place of the one before",
        "for f in filters: gx[c] = full(gy[f], w[f, c])",
        "for f in filters: gx[c] += full(gy[f], w[f, c])",
        {
            "written": masked_x[0, 12:15, 12:15],
            "right": plain_x[0, 0, 12:15, 12:15],
            "differences": differences(
                lambda v: float((ops.conv2d(v, w, None)[0] * np.abs(gactive)).sum()), x
            )[0, 0, 12:15, 12:15],
        },
        f"Only the last of 10 is left: off by {off(masked_x, plain_x[0]):.2f} times its length "
        "(here with gradients that clipping leaves alone). The notebook has one convolution, and "
        "nothing before it to be misled.",
    )
    yield adam()


def notebook_004() -> Iterator[Shown]:
    """Dense layers with a scalar bias; 64 kernels for a stack of 32 maps."""
    rng = np.random.default_rng(0)
    layer = as_written.ScalarBias(20, 10, rng)
    x, labels = rng.standard_normal((8, 20)), rng.integers(0, 10, 8)

    def loss(b: Any) -> float:
        return float(ops.cross_entropy(x @ layer.w + b, labels)[0])

    _, vjp = ops.cross_entropy(layer.forward(x), labels)
    gy = vjp(np.array(1.0))[0]
    yield Shown(
        "004  The bias is one number for all units",
        "b = Variable(0.0): y = x @ w + b",
        "b = zeros(units)",
        {
            "gradient, written": gy.sum(),
            "differences": differences(loss, layer.b),
            "gradient, right": gy.sum(axis=0)[:5],
            "differences of those": differences(loss, np.zeros(10))[:5],
        },
        "Under softmax and cross entropy its gradient is 0 whatever happens: softmax is the same "
        "for logits that move together. The ten numbers each have one: here are five.",
    )
    rows = ["11100", "01110", "00111", "00110", "01100"]
    stack = np.array([[[float(pixel) for pixel in row] for row in rows]] * 32)[None]
    kernels = as_written.unique_kernels()
    maps = ops.conv2d(stack, kernels, None)[0][0]
    drawn = ops.conv2d(stack, rng.standard_normal(kernels.shape), None)[0][0]
    yield Shown(
        "004  64 kernels called unique are one kernel 64 times",
        "for _ in range(64): convolve(stack, kernel)",
        "64 kernels drawn one by one: weights (64, 32, 3, 3)",
        {
            "different kernels, written": len(np.unique(kernels.reshape(64, -1), axis=0)),
            "different maps, written": len(np.unique(maps.reshape(64, -1), axis=0)),
            "different maps, right": len(np.unique(drawn.reshape(64, -1), axis=0)),
        },
    )


NOTEBOOKS = {
    "000": notebook_000,
    "001": notebook_001,
    "002": notebook_002,
    "003": notebook_003,
    "004": notebook_004,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help=", ".join(NOTEBOOKS))
    args = parser.parse_args(arguments)
    unknown = [name for name in args.notebooks if name not in NOTEBOOKS]
    if unknown:
        parser.error(f"expected notebooks of {', '.join(NOTEBOOKS)}, got {', '.join(unknown)}")
    for name in args.notebooks or NOTEBOOKS:
        for shown in NOTEBOOKS[name]():
            print(shown, end="\n\n")


if __name__ == "__main__":
    main()
