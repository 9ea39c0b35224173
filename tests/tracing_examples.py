"""What the tests of tracing trace: small nets, the example of its page, one too wide to show."""

from __future__ import annotations

import contextlib
import io
import pathlib
import re

import numpy as np
import pytest

import dualcnn
from dualcnn import nn


def host(x):
    return np.array(dualcnn.to_numpy(x))


def images(be, *shape, seed=0, dtype="float64"):
    return be.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def small_net(dtype="float64"):
    dualcnn.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 4)
    ).to(dtype=dtype)


LAYERS = {
    "conv": lambda: nn.Conv2d(1, 4, 3, stride=2, padding=(0, 1, 1, 0)),
    "norm": lambda: nn.BatchNorm2d(4),
    "leaky": lambda: nn.LeakyReLU(0.2),
    "grouped": lambda: nn.Conv2d(4, 4, 2, groups=2, bias=False),
    "sigmoid": nn.Sigmoid,
    "overlapping": lambda: nn.MaxPool2d(2, stride=1),
    "average": lambda: nn.AvgPool2d(2, stride=1, padding=1),
    "dropout": lambda: nn.Dropout(0.4),
    "adaptive": lambda: nn.AdaptiveAvgPool2d(2),
    "dilated": lambda: nn.Conv2d(4, 3, 2, dilation=1, padding="same"),
    "flat": nn.Flatten,
    "tanh": nn.Tanh,
    "fc": lambda: nn.Linear(12, 3, bias=False),
}


@pytest.fixture
def deep(be):
    dualcnn.manual_seed(2)
    return nn.Sequential({name: make() for name, make in LAYERS.items()})


DOC = (pathlib.Path(__file__).parent.parent / "docs" / "trace.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """What the example of docs/trace.md prints, its trace, and the page that it saves."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)
    names, printed = {}, io.StringIO()
    folder = tmp_path_factory.mktemp("example")
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue(), names["t"], (folder / "trace.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wide():
    dualcnn.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3072, 40),
    )
    rng = np.random.default_rng(1)
    return dualcnn.trace(model, rng.random((2, 2, 32, 32), "float32"), [1, 30])
