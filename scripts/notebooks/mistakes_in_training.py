"""Mistakes that only a whole training shows: batch statistics in the test, and Adam's step."""

from __future__ import annotations

from typing import Any

import as_written
import numpy as np
from showing import Shown, digits, error_of_logits

import dualcnn
from dualcnn import Tensor, data, nn, no_grad, ops, optim
from dualcnn import functional as F


def batches_of_tests() -> Shown:
    """A network with batch norm, trained, and tested in batches of several sizes."""
    dualcnn.manual_seed(0)
    train, test = data.mnist5k()
    images, labels = (a[:1000] for a in (train.images, train.labels))
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 20, bias=False),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        nn.Linear(20, 10),
    ).to("cpu", dtype="float64")
    step = optim.SGD(net.parameters(), lr=0.5)
    for _ in range(50):
        loss = F.cross_entropy(net(Tensor(images / 255)), labels)
        step.zero_grad()
        loss.backward()
        step.step()
    net.eval()
    first, norm, last = net[1], net[2], net[4]
    x = (test.images / 255).reshape(-1, 784)

    def as_test(x: Any) -> Any:
        """The notebook's test: the statistics of whatever batch comes."""
        hidden = x @ first.weight.numpy().T
        hidden = as_written.batch_statistics(hidden, norm.weight.numpy(), norm.bias.numpy())
        return np.maximum(hidden, 0) @ last.weight.numpy().T + last.bias.numpy()

    def accuracy(answers: Any) -> float:
        return float((answers.argmax(axis=1) == test.labels).mean())

    def in_batches(size: int) -> float:
        return accuracy(np.concatenate([as_test(x[i : i + size]) for i in range(0, 1000, size)]))

    with no_grad():
        right = accuracy(net(Tensor(test.images / 255)).numpy())
    alone = np.concatenate([as_test(x[i : i + 1]) for i in range(1000)])
    return Shown(
        "002  The test uses the statistics of the test batch",
        "y = gamma * (x - mean(x)) / sqrt(var(x) + eps) + beta, in testing too",
        "y = gamma * (x - running_mean) / sqrt(running_var + eps) + beta",
        {
            "written, 1,000 at a time": in_batches(1000),
            "written, 10 at a time": in_batches(10),
            "written, 2 at a time": in_batches(2),
            "written, one at a time": in_batches(1),
            "right, any number": right,
            "different answers, one at a time": len(np.unique(alone.argmax(axis=1))),
        },
        "Test accuracy of 1,000 digits after 50 steps. A digit alone is its own mean: x - mean is "
        "0, and every digit gets the same answer.",
    )


def adam() -> Shown:
    """Kernels moved by the notebook's Adam, the rest by plain steps, over 500 digits."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((10, 1, 3, 3)) / 9
    dense = rng.standard_normal((1690, 10)) / 1690
    optimizer = as_written.ClimbingAdam(lr=0.005, eps=1e-4, batch=100)
    along = np.zeros((5, *w.shape))
    moved = np.zeros_like(along)
    for number, (image, label) in enumerate(zip(*digits(500, shift=0.5), strict=True)):
        maps, back_conv = ops.conv2d(image[None, None], w, None)
        pooled, back_pool, *_ = ops.max_pool2d(np.maximum(maps, 0), kernel_size=2)
        error = error_of_logits(pooled.ravel() @ dense, label)
        gmaps = back_pool((dense @ error).reshape(pooled.shape))[0] * (maps > 0)
        gw = back_conv(gmaps)[1]
        dense = as_written.fully_connected_update(dense, np.outer(pooled.ravel(), error))
        new = optimizer.update(w, gw)
        along[number // 100] -= gw / 100
        moved[number // 100] += new - w
        w = new
    adams = moved - along
    ones = as_written.ClimbingAdam(batch=100)
    for _ in range(100):
        ones.update(np.zeros(1), np.ones(1))
    small = np.full(1, 0.001)
    return Shown(
        "003  Adam's step climbs, is made of single samples, and leaves the last layer out",
        "for each of 100 samples: g -= lr * m / (sqrt(v) + eps);  w -= g / 100",
        "for each batch, by its mean gradient: w -= lr * m / (sqrt(v) + eps)",
        {
            "g = 0.001, written step": as_written.ClimbingAdam().update(np.zeros(1), small),
            "g = 0.001, right step": -0.005 * small / (small + 1e-4),
            "Adam's part against the gradient, by batch": [
                bool((a * g).sum() < 0) for a, g in zip(adams, along, strict=True)
            ],
            "its length in lengths of the plain steps": np.linalg.norm(adams.reshape(5, -1), axis=1)
            / np.linalg.norm(along.reshape(5, -1), axis=1),
            "m / (1 - 0.9**t) after a batch of ones": ones.m / (1 - 0.9),
        },
        "What trains the kernels is the gradient left over, a plain step of rate 1/100; Adam's "
        "part works against it. t counts batches while m moves at every sample, so the correction "
        "that should give 1 gives 10. The fully connected layer takes a plain step a sample.",
    )
