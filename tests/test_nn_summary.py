"""The table of `Module.summary`: counted by hand, and nothing is touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dualcnn
from dualcnn import functional as F
from dualcnn import nn, random, to_numpy


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def test_rows_and_totals(be):
    net = model()
    net[1].requires_grad_(False)
    summary = net.summary((2, 1, 8, 8))
    rows = [(r.name, r.kind, r.output_shape, r.parameters) for r in summary.layers]
    assert rows == [
        ("0", "Conv2d", (2, 4, 8, 8), 40),
        ("1", "BatchNorm2d", (2, 4, 8, 8), 8),
        ("2", "ReLU", (2, 4, 8, 8), 0),
        ("3", "MaxPool2d", (2, 4, 4, 4), 0),
        ("4", "Dropout", (2, 4, 4, 4), 0),
        ("5", "Flatten", (2, 64), 0),
        ("6", "Linear", (2, 10), 650),
    ]
    assert summary.parameters == 698
    assert summary.trainable == 690
    assert [r.activation_bytes for r in summary.layers] == [2048] * 3 + [512] * 3 + [80]
    assert summary.activation_bytes == 3 * 2048 + 3 * 512 + 80
    # Nine multiply-adds an output pixel; 64 an output.
    assert [r.flops for r in summary.layers] == [2 * 9 * 512, 0, 0, 0, 0, 0, 2 * 64 * 20]
    assert summary.flops == 9216 + 2560


def test_the_table_reads_well():
    lines = str(nn.Sequential(nn.Linear(1000, 2000), nn.ReLU()).summary((1, 1000))).splitlines()
    assert lines == [
        "Layer  Kind        Output shape  Parameters    Memory  FLOPs",
        "------------------------------------------------------------",
        "0      Linear      (1, 2000)      2,002,000   7.8 KiB  4.0 M",
        "1      ReLU        (1, 2000)              0   7.8 KiB      -",
        "------------------------------------------------------------",
        "Total  Sequential                 2,002,000  15.6 KiB  4.0 M",
    ]
    frozen = nn.Linear(2, 2).requires_grad_(False)
    assert str(frozen.summary((1, 2))).endswith("0 of the parameters are trained")


def test_nothing_is_touched(be):
    net = model()
    net[4].eval()
    seen: list[Any] = []
    hook = net[0].register_forward_hook(lambda *_: seen.append(dualcnn.is_grad_enabled()))
    before = {k: np.array(to_numpy(v)) for k, v in net.state_dict().items()}
    dualcnn.manual_seed(3)
    random.next_stream()
    state = random.get_state()

    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Any) -> Any:
            return F.dropout(self.net(x))

    Drops().summary((2, 1, 8, 8))
    assert random.get_state() == state
    assert seen == [False]
    hook.remove()
    assert [m.training for m in net] == [True] * 4 + [False] + [True] * 2
    assert all(not m._hooks for m in net.modules())
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(to_numpy(value), before[name])


def test_everything_is_put_back_after_an_error():
    net = model()
    with pytest.raises(ValueError, match="with 1 channels") as caught:
        net.summary((2, 3, 8, 8))
    assert "in layer 0: Conv2d" in caught.value.__notes__[-1]
    assert all(m.training and not m._hooks for m in net.modules())
    for wrong in ((), (2, 1, 8, 8)):
        with pytest.raises(TypeError, match="expected the shape of each input"):
            net.summary(*wrong)


def test_shared_layers_and_tied_parameters_count_once():
    fc = nn.Linear(3, 3)
    tied = nn.Linear(3, 3, bias=False)
    tied.weight = fc.weight
    summary = nn.Sequential(fc, fc, tied).summary((1, 3))
    assert [(r.parameters, r.shared) for r in summary.layers] == [(12, False), (0, True), (0, True)]
    assert summary.parameters == 12
    assert str(summary).count("shared") == 2
    assert summary.flops == 3 * 18


def test_lazy_layers_stay_lazy(be):
    net = nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten(), nn.LazyLinear(4))
    state = random.get_state()
    summary = net.summary((1, 3, 5, 5))
    assert summary.parameters == 2 * 27 + 2 + 4 * 18 + 4
    assert isinstance(net[0], nn.LazyConv2d)
    assert random.get_state() == state
    net(be.asarray(np.ones((1, 1, 5, 5)), "float32"))
    assert net[0].in_channels == 1


def test_several_inputs_several_outputs_and_own_parameters(be):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(be.asarray(np.ones(3, "float32")))
            self.inner = nn.Identity()

        def forward(self, a: Any, b: Any) -> Any:
            return self.inner(a * self.scale), [b, a]

    summary = Two().summary((2, 3), (4,))
    assert [(r.name, r.kind, r.output_shape, r.parameters) for r in summary.layers] == [
        ("inner", "Identity", (2, 3), 0),
        ("", "Two", (2, 3), 3),
    ]
    assert summary.layers[1].activation_bytes == 4 * (6 + 4 + 6)
    assert str(summary)


def test_the_models_own_dtype(be):
    assert nn.Linear(2, 2).to(dtype="float64").summary((1, 2)).activation_bytes == 16
