"""Grad-CAM and saliency as arrays, against loops and differences; the model stays as it was."""

from __future__ import annotations

import numpy as np
import pytest

import dualcnn
from dualcnn import nn, viz


def small_net(be):
    """Conv 2->3 (3x3), ReLU, linear to 4 classes, in float64 where that can be."""
    rng = np.random.default_rng(0)
    values = {
        "0.weight": rng.standard_normal((3, 2, 3, 3)),
        "0.bias": rng.standard_normal(3),
        "3.weight": rng.standard_normal((4, 3 * 4 * 3)),
        "3.bias": rng.standard_normal(4),
    }
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4))
    model.to(dtype="float64").load_state_dict({k: be.asarray(v) for k, v in values.items()})
    return model, values, rng.standard_normal((5, 2, 6, 5))


def naive_maps(values, image):
    """ReLU of the convolution of one image, by loops."""
    maps = np.zeros((3, 4, 3))
    for o in range(3):
        for i in range(4):
            for j in range(3):
                total = values["0.bias"][o]
                for c in range(2):
                    for u in range(3):
                        for v in range(3):
                            total += values["0.weight"][o, c, u, v] * image[c, i + u, j + v]
                maps[o, i, j] = max(total, 0.0)
    return maps


def naive_scores(values, image):
    return values["3.weight"] @ naive_maps(values, image).ravel() + values["3.bias"]


def naive_grad_cam(values, image, target):
    # The score is linear in the maps, so its gradient is the row of the weight.
    gradient = values["3.weight"][target].reshape(3, 4, 3)
    maps = naive_maps(values, image)
    result = np.zeros((4, 3))
    for i in range(4):
        for j in range(3):
            total = 0.0
            for k in range(3):
                total += gradient[k].sum() / 12 * maps[k, i, j]
            result[i, j] = max(total, 0.0)
    return result


def naive_saliency(values, image, target):
    """The largest |difference quotient| of all channels, pixel by pixel."""
    result = np.zeros(image.shape[1:])
    for place in np.ndindex(image.shape):
        up, down = image.copy(), image.copy()
        up[place] += 1e-6
        down[place] -= 1e-6
        slope = naive_scores(values, up)[target] - naive_scores(values, down)[target]
        result[place[1:]] = max(result[place[1:]], abs(slope / 2e-6))
    return result


def test_grad_cam_is_that_of_loops(be):
    model, values, x = small_net(be)
    got = viz.grad_cam_map(model, "1", be.asarray(x), target=[0, 1, 2, 3, 1])
    want = [naive_grad_cam(values, *pair) for pair in zip(x, [0, 1, 2, 3, 1], strict=True)]
    assert np.max(want) > 0.1
    assert got.shape == (5, 4, 3)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_saliency_is_that_of_differences(be):
    model, values, x = small_net(be)
    got = viz.saliency_map(model, be.asarray(x), target=[0, 1, 2, 3, 1])
    want = [naive_saliency(values, *pair) for pair in zip(x, [0, 1, 2, 3, 1], strict=True)]
    assert got.shape == (5, 6, 5)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "find", [viz.saliency_map, lambda m, x, t: viz.grad_cam_map(m, m[1], x, t)]
)
def test_targets(be, find):
    """By default the prediction; one number stands for all; a Tensor will do."""
    model, values, x = small_net(be)
    predicted = [int(np.argmax(naive_scores(values, image))) for image in x]
    assert len(set(predicted)) > 1
    by_default = find(model, x, None)
    np.testing.assert_array_equal(by_default, find(model, x, predicted))
    np.testing.assert_array_equal(find(model, x, 2), find(model, x, [2] * 5))
    np.testing.assert_array_equal(
        find(model, x, 2), find(model, dualcnn.Tensor(be.asarray(x)), be.asarray([2] * 5))
    )
    assert not np.array_equal(by_default, find(model, x, 2))


def test_layer_output_is_that_of_loops(be):
    model, values, x = small_net(be)
    want = [naive_maps(values, image) for image in x]
    got = viz.layer_output(model, "1", x)
    assert be.owns(got)
    np.testing.assert_allclose(dualcnn.to_numpy(got), want, rtol=1e-12, atol=1e-12)


def full_net():
    """With everything that could change: batch norm, dropout, frozen weights, a layer in eval."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 3 * 3, 5),
    )
    model[0].requires_grad_(False)
    model.train()
    model[1].eval()
    return model


CALLS = {
    "grad_cam_map": lambda model, x: viz.grad_cam_map(model, model[2], x, 1),
    "saliency_map": lambda model, x: viz.saliency_map(model, x, 1),
    "layer_output": lambda model, x: viz.layer_output(model, "2", x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_model_stays_as_it_was(be, call):
    model = full_net()
    x = dualcnn.Tensor(
        be.asarray(np.random.default_rng(1).standard_normal((3, 1, 8, 8)), "float32"), True
    )
    model(x).sum().backward()

    def state():
        arrays = {**model.state_dict(), "x": x.data, "gradient of x": x.grad}
        arrays |= {f"gradient of {k}": p.grad for k, p in model.named_parameters()}
        return (
            {k: None if a is None else dualcnn.to_numpy(a).copy() for k, a in arrays.items()},
            {k: m.training for k, m in model.named_modules()},
            {k: p.requires_grad for k, p in model.named_parameters()},
            {k: len(m._hooks) for k, m in model.named_modules()},
            dualcnn.random.get_state(),
            dualcnn.is_grad_enabled(),
        )

    arrays, *others = state()
    first = dualcnn.to_numpy(call(model, x))
    arrays_after, *others_after = state()
    assert others_after == others
    assert arrays_after.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(arrays_after[name], array, err_msg=name)
    # Without dropout and batch statistics each call, and each image, stands for itself.
    np.testing.assert_array_equal(first, dualcnn.to_numpy(call(model, x)))
    alone = dualcnn.to_numpy(call(model, dualcnn.to_numpy(x)[:1]))
    np.testing.assert_allclose(alone, first[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_model_stays_as_it_was_after_an_error(call):
    model = full_net()
    with pytest.raises(ValueError, match="in layer 6"):
        call(model, np.zeros((2, 1, 9, 12), "float32"))
    assert [m.training for m in model] == [True, False, True, True, True, True, True]
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, True, True]
    assert not any(module._hooks for module in model)


def test_within_no_grad():
    model = full_net()
    x = np.random.default_rng(1).standard_normal((2, 1, 8, 8)).astype("float32")
    want = viz.grad_cam_map(model, "2", x), viz.saliency_map(model, x)
    with dualcnn.no_grad():
        got = viz.grad_cam_map(model, "2", x), viz.saliency_map(model, x)
        assert not dualcnn.is_grad_enabled()
    np.testing.assert_array_equal(want[0], got[0])
    np.testing.assert_array_equal(want[1], got[1])


def test_images_come_to_the_backend_and_the_type_of_the_model(be):
    model, _, x = small_net(be)
    want = viz.saliency_map(model, x)
    model.to(dtype="float32")
    got = viz.saliency_map(model, x.tolist())
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


X = np.zeros((2, 1, 8, 8), "float32")


class Wanderer(nn.Module):
    """Its layer `side` has no part in the output, `twice` is called twice, `never` never."""

    def __init__(self):
        super().__init__()
        self.side, self.twice, self.never = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 1), nn.ReLU()
        self.fc = nn.Linear(64, 3)

    def forward(self, x):
        self.side(x)
        return self.fc(self.twice(self.twice(x)).flatten(1))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("convolution", r"no layer 'convolution'; it has side, twice, never, fc"),
        (nn.ReLU(), r"expected a layer of the model or its name, got ReLU"),
        (3, r"got int"),
        ("side", r"does not depend on that of layer 'side'"),
        ("twice", r"'twice' to be called once in a forward pass, it was called 2 times"),
        ("never", r"called 0 times; choose one that forward calls"),
        ("fc", r"expected a layer with maps \(N, K, h, w\), got the output \(2, 3\)"),
    ],
)
def test_layers_without_maps(layer, message):
    with pytest.raises(ValueError, match=message):
        viz.grad_cam_map(Wanderer(), layer, X)


@pytest.mark.parametrize(
    ("x", "target", "error", "message"),
    [
        (
            X[0],
            None,
            ValueError,
            r"expected x of shape \(N, C, H, W\), .*got \(1, 8, 8\).*x\[None\]",
        ),
        (X[:0], None, ValueError, r"N at least 1, got \(0, 1, 8, 8\)"),
        (X.astype("uint8"), None, TypeError, r"floating-point x, .* got uint8; the batches of a D"),
        (X, 3, ValueError, r"expected target from 0 to 2, got 3"),
        (X, [0], ValueError, r"a target for each of the 2 images, or one number for all, got 1"),
        (X, [0.5, 1.0], ValueError, r"expected target as integers of shape \(N,\), got float64"),
    ],
)
def test_wrong_images_and_targets(x, target, error, message):
    with pytest.raises(error, match=message):
        viz.saliency_map(Wanderer(), x, target)


def test_models_that_cannot_be_explained():
    with pytest.raises(ValueError, match=r"a model that returns scores of classes \(N, K\), got "):
        viz.saliency_map(nn.Conv2d(1, 3, 3), X)
    with pytest.raises(RuntimeError, match="run one batch through it first"):
        viz.saliency_map(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), X)
    with pytest.raises(ValueError, match="does not depend on x"):
        viz.saliency_map(Constant(), X)


class Constant(nn.Module):
    def forward(self, x):
        return dualcnn.Tensor(np.ones((len(x), 2), "float32"))
