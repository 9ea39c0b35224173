"""The traced pass: its gradients are those of `backward`, the model stays, names, errors."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tracing_examples import LAYERS, deep, host, images, small_net

import dualcnn
from dualcnn import functional as F
from dualcnn import nn, optim, random, tracing

__all__ = ["deep"]


def layer_by_layer(model, x):
    for layer in model:
        x = layer(x)
    return x


# The gradients are those of backward.


def test_gradients_are_exactly_those_of_backward(be, deep):
    x = images(be, 2, 1, 9, 9, dtype="float32")
    y = be.asarray(np.array([2, 0]))
    dualcnn.manual_seed(7)
    t = dualcnn.trace(deep, x, y)
    dualcnn.manual_seed(7)
    image = dualcnn.Tensor(x, requires_grad=True)
    loss = F.cross_entropy(layer_by_layer(deep, image), y)
    loss.backward()
    assert t.loss == loss.item()
    named = dict(deep.named_parameters())
    assert set(t.gradients) == set(named)
    for name, param in named.items():
        np.testing.assert_array_equal(host(t.gradients[name]), host(param.grad), name)
        step = name.replace("weight", "gw").replace("bias", "gb")
        np.testing.assert_array_equal(host(t[step]), host(param.grad), name)
    np.testing.assert_array_equal(host(t["conv.gx"]), host(image.grad))


def test_gradients_are_those_of_layers_that_run_as_one(be):
    model = small_net()
    x, y = images(be, 3, 1, 6, 6), be.asarray(np.array([2, 0, 3]))
    t = dualcnn.trace(model, x, y)
    F.cross_entropy(model(x), y).backward()
    for name, param in model.named_parameters():
        np.testing.assert_allclose(host(t.gradients[name]), host(param.grad), rtol=1e-12)


def test_every_gradient_by_differences(be, deep):
    # Evaluation, or dropout and the batch's statistics would be drawn anew for each difference.
    model = deep.to(dtype="float64").eval()
    x, y = images(be, 1, 1, 9, 9), be.asarray(np.array([1]))
    t = dualcnn.trace(model, x, y)
    outputs = [s for s in t.sections if not s.backward and s.name in LAYERS]
    for i, section in enumerate(outputs[:-1]):
        value, gradient = host(section.output.array), host(t[f"{section.name}.gy"])
        direction = np.random.default_rng(i).standard_normal(value.shape)
        ends = []
        for step in (1e-6, -1e-6):
            z = dualcnn.Tensor(be.asarray(value + step * direction, "float64"))
            place = list(LAYERS).index(section.name)
            ends.append(F.cross_entropy(layer_by_layer(list(model)[place + 1 :], z), y).item())
        expected = (ends[0] - ends[1]) / 2e-6
        assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-5, abs=1e-9)


# The model stays as it was.


def test_the_model_is_left_as_it_was(be, deep):
    optimizer = optim.SGD(deep.parameters(), lr=0.1)
    x, y = images(be, 2, 1, 9, 9, dtype="float32"), be.asarray(np.array([2, 0]))
    F.cross_entropy(deep(x), y).backward()
    optimizer.step()
    deep[0].bias.grad = None
    deep[1].eval()
    deep[3].requires_grad_(False)
    state = {name: host(array) for name, array in deep.state_dict().items()}
    before = [
        (p, p.data, p.grad, None if p.grad is None else host(p.grad)) for p in deep.parameters()
    ]
    modes = [m.training for m in deep.modules()]
    draws = random.get_state()
    with dualcnn.no_grad():
        t = dualcnn.trace(deep, x, y)
        assert not dualcnn.is_grad_enabled()
    assert "grouped.gw" not in t
    assert "grouped.gx" in t
    assert random.get_state() == draws
    assert [m.training for m in deep.modules()] == modes
    assert not any(m._hooks for m in deep.modules())
    for param, data, grad, values in before:
        assert param.data is data
        assert param.grad is grad
        assert values is None or (host(grad) == values).all()
    after = deep.state_dict()
    assert all((host(after[name]) == array).all() for name, array in state.items())
    optimizer.step()
    assert (host(t["fc.weight"]) == state["fc.weight"]).all()


def test_the_input_is_left_as_it_was(be):
    x = dualcnn.Tensor(images(be, 1, 1, 6, 6), requires_grad=True)
    values = host(x)
    t = dualcnn.trace(small_net(), x, [1])
    assert x.grad is None
    assert (host(x) == values).all()
    x.data = be.zeros((1, 1, 6, 6), be.dtype("float64"))
    assert (host(t["conv.input"]) == values).all()


def test_a_lazy_layer_stays_lazy(be):
    model = nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten(), nn.LazyLinear(3))
    t = dualcnn.trace(model, images(be, 1, 1, 4, 4, dtype="float32"), [1])
    assert t["conv.weight"].shape == (2, 1, 3, 3)
    assert isinstance(model[0], nn.LazyConv2d)


# Names.


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv(F.relu(x)) + x)


def test_names_are_those_of_the_layers_or_of_what_was_called(be):
    model = nn.Sequential({"first": nn.Conv2d(1, 2, 3), "block": Block(), "pool": nn.MaxPool2d(2)})
    target = be.asarray(np.zeros((1, 2, 1, 1)), "float32")
    t = dualcnn.trace(
        model, images(be, 1, 1, 4, 4, dtype="float32"), target, loss=nn.MSELoss(reduction="sum")
    )
    forward = [s.name for s in t.sections if not s.backward]
    assert forward == ["first", "relu1", "block.conv", "add", "relu2", "pool", "loss"]
    assert [s.name for s in t.sections if s.backward] == forward[::-1]
    assert t.step("add.a").formula == "block.conv.output"
    # The output of the first layer went two ways, so two gradients come back.
    assert t.step("first.gy").formula == "relu1.gx + add.g_b"
    np.testing.assert_allclose(
        host(t["first.gy"]), host(t["relu1.gx"]) + host(t["add.g_b"]), rtol=1e-6
    )
    assert t.step("block.conv.input").formula == "relu1.output"
    assert t.chain().startswith("first (1, 2, 2, 2) -> relu1 (1, 2, 2, 2) -> block.conv")


def test_a_layer_that_only_hands_on_is_given_no_operation(be):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x):
            return self.dropout(F.relu(x))

    t = dualcnn.trace(Net().eval(), images(be, 2, 3), [0, 1])
    assert [s.name for s in t.sections if not s.backward] == ["relu", "loss"]
    t = dualcnn.trace(Net(), images(be, 2, 3), [0, 1])
    assert [s.name for s in t.sections if not s.backward] == ["relu", "dropout", "loss"]
    assert t.sections[1].title == "Dropout(p=0.5), model.dropout"


def test_a_layer_that_is_used_twice_is_numbered(be):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.fc1 = nn.Tanh()

        def forward(self, x):
            return self.fc1(self.fc(self.fc(x)))

    t = dualcnn.trace(Twice().to(dtype="float64"), images(be, 2, 3), [0, 1])
    assert [s.name for s in t.sections if not s.backward] == ["fc2", "fc3", "fc1", "loss"]
    total = host(t["fc2.gw"]) + host(t["fc3.gw"])
    np.testing.assert_allclose(host(t.gradients["fc.weight"]), total)


def test_the_small_networks_of_the_library(be):
    for name in ("cnn", "lenet", "mlp"):
        model = dualcnn.models.build(name, image_size=12).eval()
        t = dualcnn.trace(model, images(be, 1, 1, 12, 12, dtype="float32"), [5])
        assert set(t.gradients) == {key for key, _ in model.named_parameters()}
        assert t.text()
        assert t.html()


def test_one_image_without_a_batch(be):
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.AvgPool2d(2))
    x, target = images(be, 1, 1, 5, 5, dtype="float32"), images(be, 1, 2, 1, 1, dtype="float32")
    batch = dualcnn.trace(model, x, target, loss=F.mse_loss)
    single = dualcnn.trace(model, x[0, ...], target[0, ...], loss=F.mse_loss)
    assert single["conv.output"].shape == (2, 5, 5)
    for name in ("columns", "gw", "gx"):
        np.testing.assert_array_equal(
            host(single[f"conv.{name}"]).ravel(), host(batch[f"conv.{name}"]).ravel()
        )
    assert "data-k" in single.html()
    assert "(2, 5, 5)" in single.text()


def test_an_operation_of_ones_own(be):
    def double(x):
        return x * 2, lambda gy: (gy * 2,)

    class Net(nn.Module):
        def forward(self, x):
            return dualcnn.apply(double, x)

    t = dualcnn.trace(Net(), images(be, 1, 3), [0])
    np.testing.assert_array_equal(host(t["double.gx"]), 2 * host(t["double.gy"]))
    assert "double" in t.text()


def test_labels_that_do_not_count_and_weighted_classes(be):
    logits = images(be, 2, 3)
    net = nn.Sequential(nn.Identity(), nn.Flatten())
    for loss in (
        lambda out, y: F.cross_entropy(out, y, label_smoothing=0.1),
        lambda out, y: F.cross_entropy(out, y, weight=be.asarray(np.ones(3))),
    ):
        t = dualcnn.trace(net, logits, [2, 0], loss=loss)
        assert "loss.probabilities" not in t
        assert t.loss == pytest.approx(loss(dualcnn.Tensor(logits), [2, 0]).item())
    t = dualcnn.trace(net, logits, [2, -100])
    assert "loss.gx" in t
    t = dualcnn.trace(net, logits, [2, 0], loss=nn.CrossEntropyLoss(reduction="sum"))
    assert t.step("loss.gx").formula == "probabilities - one_hot"
    assert host(t["loss.loss"]) == pytest.approx(host(t["loss.losses"]).sum())


# The result.


def test_steps_by_name(be):
    t = dualcnn.trace(small_net(), images(be, 1, 1, 6, 6), [1])
    names = [step.name for step in t.steps]
    assert len(set(names)) == len(names) == len(t)
    assert [step.name for step in t] == names
    step = t.step("conv.columns")
    assert (step.kind, step.shape, step.formula) == ("matrix", (36, 9), "windows.reshape(36, 9)")
    assert step.array is t["conv.columns"]
    assert step.label == "columns"
    assert be.owns(step.array)
    assert isinstance(step.numpy(), np.ndarray)
    assert "conv.columns" in t
    assert "conv.rows" not in t
    with pytest.raises(KeyError, match=r"no step 'conv\.rows'; there are conv\.input, "):
        t["conv.rows"]
    assert re.fullmatch(r"<Trace of Sequential: \d+ steps, loss [\d.]+>", repr(t))
    assert repr(step) == "<Step conv.columns (36, 9): windows.reshape(36, 9)>"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: dualcnn.trace(F.relu, x, 0), TypeError, "expected an nn.Module as model"),
        (
            lambda x: dualcnn.trace(small_net(), np.ones((1, 1, 6, 6), "uint8"), [0]),
            TypeError,
            "expected floating-point numbers as x, got uint8",
        ),
        (
            lambda x: dualcnn.trace(small_net(), x[:0], []),
            ValueError,
            r"at least one image to look at, got the shape \(0, 1, 6, 6\)",
        ),
        (
            lambda x: dualcnn.trace(
                small_net(), x, [0, 1], loss=nn.CrossEntropyLoss(reduction="none")
            ),
            ValueError,
            r"one number, got a Tensor of shape \(2,\); a mean",
        ),
        (
            lambda x: dualcnn.trace(small_net(), x, [0, 1], loss=lambda out, y: 3.0),
            ValueError,
            "one number, got 3.0",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(np.zeros((2, 1, 6, 6)))


def test_an_error_in_the_model_leaves_nothing_behind():
    model = nn.Sequential(nn.Dropout(), nn.Linear(3, 2))
    draws = random.get_state()
    with pytest.raises(ValueError, match="expected an input"):
        dualcnn.trace(model, np.zeros((1, 4), "float32"), [0])
    assert random.get_state() == draws


def test_trace_is_the_function_of_the_package():
    assert dualcnn.trace is tracing.trace
