"""A PyTorch training script, with other imports, other data loading and nothing else changed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dualcnn

SCRIPT = Path(__file__).parent / "examples" / "mnist_main.py"
SOURCE = SCRIPT.read_text(encoding="utf-8")

TORCH_IMPORTS = """
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from torch.optim.lr_scheduler import StepLR
"""

TORCH_DATA = """
def load_data(count, batch_size, test_batch_size):
    import dualcnn
    from torch.utils.data import DataLoader, TensorDataset

    def loader(part, size, shuffle):
        images = (torch.tensor(part.images[:count]) / 255 - 0.1307) / 0.3081
        pairs = TensorDataset(images, torch.tensor(part.labels[:count]))
        return DataLoader(pairs, batch_size=size, shuffle=shuffle)

    training, test = dualcnn.data.mnist5k()
    return loader(training, batch_size, True), loader(test, test_batch_size, False)
"""


def run(source: str, *arguments: str) -> dict[str, Any]:
    names = {"__name__": "example"}
    exec(compile(source, str(SCRIPT), "exec"), names)
    names["main"](["--log-interval", "4", *arguments])
    return names


def check_output(printed: str, count: int, epochs: int) -> float:
    """Every line as the script prints it; returns the share of right answers at the end."""
    losses = re.findall(r"^epoch (\d+) \[(\d+)/(\d+) \(\d+%\)\] loss ([\d.]+)$", printed, re.M)
    tests = re.findall(r"^test: loss ([\d.]+), (\d+)/(\d+) right \(\d+%\)$", printed, re.M)
    assert len(losses) + len(tests) == len(printed.splitlines())
    assert [int(epoch) for epoch, *_ in losses] == sorted(
        [*range(1, epochs + 1)] * (len(losses) // epochs)
    )
    assert {int(whole) for _, _, whole, _ in losses} == {count}
    assert len(tests) == epochs
    # Guessing costs ln 10 = 2.30 and a tenth is right.
    assert float(losses[0][3]) == pytest.approx(2.3, abs=0.5)
    return int(tests[-1][1]) / int(tests[-1][2])


def test_the_script_trains(capsys, tmp_path):
    saved = tmp_path / "mnist_cnn.safetensors"
    names = run(SOURCE, "--epochs", "2", "--count", "512", "--save-model", str(saved))
    assert check_output(capsys.readouterr().out, 512, 2) > 0.4
    weights = dualcnn.load(saved)
    assert {name: w.shape for name, w in weights.items()} == {
        "conv1.weight": (32, 1, 3, 3),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 3, 3),
        "conv2.bias": (64,),
        "fc1.weight": (128, 9216),
        "fc1.bias": (128,),
        "fc2.weight": (10, 128),
        "fc2.bias": (10,),
    }
    model = names["Net"]()
    model.load_state_dict(weights)
    assert np.array_equal(dualcnn.to_numpy(model.state_dict()["fc2.bias"]), weights["fc2.bias"])


def test_the_same_script_is_a_pytorch_script(capsys):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch isn't installed: nox -s oracle")
    source = SOURCE
    for part, replacement in (("imports", TORCH_IMPORTS), ("data", TORCH_DATA)):
        source, changes = re.subn(
            rf"^# Begin of the {part}\.\n.*?^# End of the {part}\.\n",
            lambda _, text=replacement: text,
            source,
            flags=re.S | re.M,
        )
        assert changes == 1
    assert "dualcnn" not in source.replace(TORCH_DATA, "")
    run(source, "--epochs", "1", "--count", "256")
    assert check_output(capsys.readouterr().out, 256, 1) > 0.15
