"""Grad-CAM and saliency beside the same by PyTorch's autograd, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dualcnn import models, nn, viz
from pytorch.needs import torch

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


def deep() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64, 10),
    )


def deep_torch() -> Any:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 16, 3, stride=2, groups=2),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(64, 10),
    )


class LeNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = torch.nn.Conv2d(6, 16, 5)
        self.fc1 = torch.nn.Linear(400, 120)
        self.fc2 = torch.nn.Linear(120, 84)
        self.fc3 = torch.nn.Linear(84, 10)

    def forward(self, x: Any) -> Any:
        f = torch.nn.functional
        x = f.max_pool2d(f.relu(self.conv1(x)), 2)
        x = f.max_pool2d(f.relu(self.conv2(x)), 2)
        x = f.relu(self.fc1(x.flatten(1)))
        return self.fc3(f.relu(self.fc2(x)))


CASES = {
    "sequential": (deep, deep_torch, (4, 3, 17, 14), ["0", "1", "2", "3", "4", "5"]),
    "lenet": (lambda: models.build("lenet"), LeNet, (4, 1, 28, 28), ["conv1", "conv2"]),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Any:
    """Both models with the same random state, in training mode; images; names of layers."""
    make, make_torch, shape, layers = CASES[request.param]
    torch.manual_seed(0)
    theirs = make_torch().to(torch.float64)
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.3)
    ours = make().to(dtype="float64")
    ours.load_state_dict({name: t.numpy() for name, t in theirs.state_dict().items()})
    x = np.random.default_rng(0).standard_normal(shape)
    return ours.train(), theirs, x, layers


@pytest.mark.parametrize("target", [None, 3, [9, 0, 4, 4]])
def test_grad_cam(case: Any, target: Any) -> None:
    ours, theirs, x, layers = case
    theirs.eval()
    for layer in layers:
        kept: list[Any] = []
        module = dict(theirs.named_modules())[layer]
        handle = module.register_forward_hook(lambda m, i, o, kept=kept: kept.append(o))
        scores = theirs(torch.tensor(x))
        handle.remove()
        (gradient,) = torch.autograd.grad(chosen(scores, target), kept[0])
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        want = torch.relu((weights * kept[0]).sum(dim=1)).detach().numpy()
        assert want.max() > 0
        np.testing.assert_allclose(viz.grad_cam_map(ours, layer, x, target), want, **TOLERANCE)
        got = viz.layer_output(ours, layer, x)
        np.testing.assert_allclose(got, kept[0].detach().numpy(), **TOLERANCE)


@pytest.mark.parametrize("target", [None, 3, [9, 0, 4, 4]])
def test_saliency(case: Any, target: Any) -> None:
    ours, theirs, x, _ = case
    theirs.eval()
    image = torch.tensor(x, requires_grad=True)
    (gradient,) = torch.autograd.grad(chosen(theirs(image), target), image)
    want = gradient.abs().amax(dim=1).numpy()
    np.testing.assert_allclose(viz.saliency_map(ours, x, target), want, **TOLERANCE)


def chosen(scores: Any, target: Any) -> Any:
    """The sum of the scores of the targets, each image's own."""
    if target is None:
        return scores.amax(dim=1).sum()
    index = torch.tensor([target] * len(scores) if isinstance(target, int) else target)
    return scores.gather(1, index[:, None]).sum()
