"""Networks by name: their sizes, as published or counted by hand, and what they accept."""

from __future__ import annotations

import numpy as np
import pytest

import dualcnn
from dualcnn import backend, models
from dualcnn import functional as F
from dualcnn.backend import Backend


def count(model: dualcnn.nn.Module) -> int:
    return sum(int(np.prod(p.shape)) for p in model.parameters())


# By hand: LeNet has 6*25+6 + 16*150+16 + 400*120+120 + 120*84+84 + 84*10+10,
# the cnn 32*9+32 + 64*288+64 + 9216*128+128 + 128*10+10, the mlp 784*256+256 + 256*10+10.
# ResNet-9, by pairs of channels, has 9 times 3*64 + 64*128 + 2*128*128 + 128*256 + 256*512 +
# 2*512*512, twice 64 + 3*128 + 256 + 3*512, and 512*10.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("lenet", 61_706), ("cnn", 1_199_882), ("mlp", 203_530), ("resnet9", 6_573_120)],
)
def test_sizes(name, parameters):
    model = models.build(name, **({"in_channels": 3} if name == "resnet9" else {}))
    assert count(model) == parameters
    assert name in models.names()


@pytest.mark.parametrize("name", models.names())
def test_logits_of_other_images(be: Backend, name):
    model = models.build(name, in_channels=2, image_size=(13, 15), num_classes=3)
    x = be.asarray(np.linspace(0, 1, 2 * 2 * 13 * 15).reshape(2, 2, 13, 15), dtype="float32")
    y = model(x)
    assert y.shape == (2, 3)
    assert backend.of(y=y.data) is be
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_names_of_weights():
    names = [f"{layer}.{part}" for layer in ("conv1", "conv2", "fc1", "fc2", "fc3")
             for part in ("weight", "bias")]  # fmt: skip
    assert list(models.build("lenet").state_dict()) == names
    assert [n for n in names if "fc3" not in n] == list(models.build("cnn").state_dict())


def test_same_seed_same_network(be: Backend):
    def weights() -> list[float]:
        dualcnn.manual_seed(7)
        return backend.to_numpy(models.build("mlp").state_dict()["fc1.weight"]).ravel().tolist()

    assert weights() == weights()


def test_dropout_only_in_training():
    model = models.build("cnn")
    x = np.ones((1, 1, 28, 28), "float32")
    assert not np.array_equal(model(x).numpy(), model(x).numpy())
    model.eval()
    assert np.array_equal(model(x).numpy(), model(x).numpy())


def test_unknown_name():
    with pytest.raises(
        ValueError, match="unknown model 'resnet'; expected one of cnn, lenet, mlp, re"
    ):
        models.build("resnet")


@pytest.mark.parametrize(("name", "least"), [("lenet", 12), ("cnn", 6), ("resnet9", 8)])
def test_smallest_image(name, least):
    # In evaluation: one value a channel is too little for the statistics of a batch.
    model = models.build(name, image_size=least).eval()
    assert model(np.ones((1, 1, least, least), "f4")).shape == (1, 10)
    with pytest.raises(ValueError, match=f"at least {least}x{least}, got {least}x{least - 1}"):
        models.build(name, image_size=(least, least - 1))


@pytest.mark.parametrize(
    "wrong", [{"image_size": 0}, {"image_size": (28, 28, 1)}, {"num_classes": 0}]
)
def test_sizes_must_be_positive(wrong):
    with pytest.raises(ValueError, match="positive"):
        models.build("mlp", **wrong)


def test_resnet9_is_what_it_says(be: Backend):
    """Its blocks added up by hand, in the state of evaluation."""
    dualcnn.manual_seed(3)
    model = models.ResNet9(width=4, stride=2).eval()
    assert model.prep.conv.stride == (2, 2)
    x = dualcnn.Tensor(be.asarray(np.random.default_rng(0).random((2, 3, 32, 32)), "float32"))

    def block(layers, x):
        conv, bn = layers.conv, layers.bn
        y = F.conv2d(x, conv.weight, stride=conv.stride, padding=1)
        y = F.relu(F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias))
        return F.max_pool2d(y, 2) if hasattr(layers, "pool") else y

    y = block(model.layer1, block(model.prep, x))
    y = y + block(model.res1[1], block(model.res1[0], y))
    y = block(model.layer3, block(model.layer2, y))
    assert y.shape == (2, 32, 2, 2)
    y = y + block(model.res3[1], block(model.res3[0], y))
    largest = backend.to_numpy(y.data).reshape(2, 32, 4).max(axis=2)
    expected = 0.125 * largest @ backend.to_numpy(model.fc.weight.data).T
    np.testing.assert_allclose(backend.to_numpy(model(x).data), expected, 1e-4, 1e-6)


def test_resnet9_refuses_small_images():
    with pytest.raises(ValueError, match="at least 15x15, got 14x15"):
        models.ResNet9(image_size=(14, 15), stride=2)
