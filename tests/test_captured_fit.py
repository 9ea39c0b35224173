"""`train.fit(captured=True)`: the training that it is without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dualcnn
from dualcnn import CaptureError, nn, optim, to_numpy, train
from dualcnn.backend import Backend

X = np.random.default_rng(5).standard_normal((10, 1, 3, 3)).astype("float32")
Y = np.arange(10) % 3


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_fit_captured_is_fit(be: Backend, precision: Any):
    if precision == "mixed" and be.name not in ("numpy", "cupy"):
        pytest.skip("the array API standard has no float16")
    histories = []
    for captured in (False, True):
        dualcnn.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        options = {"epochs": 3, "batch_size": 4, "optimizer": optimizer, "validation": (X, Y)}
        history = train.fit(model, (X, Y), precision=precision, captured=captured, **options)
        measured = [(e.loss, e.accuracy, e.val_loss, e.val_accuracy) for e in history]
        weights = [to_numpy(value).tolist() for value in model.state_dict().values()]
        histories.append((measured, weights))
    assert histories[0] == histories[1]


def test_fit_says_which_call_of_dropout_cant_be_captured():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(9, 3))
    with pytest.raises(CaptureError, match="random_bits"):
        train.fit(model, (X, Y), batch_size=3, captured=True)
