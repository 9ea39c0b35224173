"""The traced pass: its gradients are those of `backward`, its steps recombine, the model stays."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

import dualcnn
from dualcnn import functional as F
from dualcnn import nn, optim, random, tracing


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


# The steps recombine.

CONVOLUTIONS = {
    "plain": {},
    "padded": {"padding": 1},
    "strided": {"stride": (2, 1), "padding": (1, 0, 2, 1)},
    "dilated": {"dilation": (1, 2), "padding": (0, 2)},
    "same": {"padding": "same"},
}


@pytest.fixture(params=CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def convolved(request, be):
    dualcnn.manual_seed(3)
    model = nn.Sequential({"conv": nn.Conv2d(2, 3, (3, 2), **request.param)}).to(dtype="float64")
    x = images(be, 2, 2, 6, 7)
    target = images(be, *model(x).shape, seed=1)
    t = dualcnn.trace(model, x, target, loss=F.mse_loss)
    return t, model[0], host(x), {step.name: host(step.array) for step in t}


def windows_of(conv, padded, out):
    """Row, image, output place and pixels of each window, by loops."""
    (sh, sw), (dh, dw) = conv.stride, conv.dilation
    n, c, _, _ = padded.shape
    places = itertools.product(range(n), range(out[0]), range(out[1]))
    for row, (image, i, j) in enumerate(places):
        taps = itertools.product(range(c), range(3), range(2))
        pixels = [(image, k, i * sh + u * dh, j * sw + v * dw) for k, u, v in taps]
        yield row, image, i, j, pixels


def test_columns_times_weights_plus_bias_is_the_map(convolved):
    t, conv, x, steps = convolved
    padded = steps.get("conv.padded", x)
    out = t["conv.output"].shape[2:]
    weight, bias = host(conv.weight), host(conv.bias)
    assert padded.sum() == pytest.approx(x.sum())
    for row, image, i, j, pixels in windows_of(conv, padded, out):
        for place, pixel in enumerate(pixels):
            assert steps["conv.columns"][row, place] == padded[pixel]
            _, c, u, v = np.unravel_index(place, (1, 2, 3, 2))
            assert steps["conv.windows"][image, i, j, c, u, v] == padded[pixel]
        for o in range(3):
            products = [
                padded[pixel] * weight[o, c, u, v]
                for pixel, (c, u, v) in zip(
                    pixels, itertools.product(range(2), range(3), range(2)), strict=True
                )
            ]
            total = sum(products)
            assert steps["conv.product"][row, o] == pytest.approx(total, rel=1e-12, abs=1e-12)
            assert steps["conv.output"][image, o, i, j] == pytest.approx(
                total + bias[o], rel=1e-12, abs=1e-12
            )


def test_column_gradients_fold_to_those_of_the_image(convolved):
    t, conv, x, steps = convolved
    out = t["conv.output"].shape[2:]
    padded = steps.get("conv.padded", x)
    gy, weight = steps["conv.gy"], host(conv.weight)
    gx, gw, gb = np.zeros_like(padded), np.zeros((3, 12)), np.zeros(3)
    for row, image, i, j, pixels in windows_of(conv, padded, out):
        for o in range(3):
            g = gy[image, o, i, j]
            assert steps["conv.gy_matrix"][row, o] == g
            gb[o] += g
            for place, pixel in enumerate(pixels):
                gw[o, place] += g * padded[pixel]
        for place, pixel in enumerate(pixels):
            column = sum(gy[image, o, i, j] * weight[o].flat[place] for o in range(3))
            assert steps["conv.gcolumns"][row, place] == pytest.approx(column, abs=1e-13)
            gx[pixel] += column
    np.testing.assert_allclose(steps["conv.gb"], gb, atol=1e-12)
    np.testing.assert_allclose(steps["conv.gw_matrix"], gw, atol=1e-12)
    np.testing.assert_allclose(steps["conv.gw"].reshape(3, 12), gw, atol=1e-12)
    inner = gx
    if "conv.padded" in steps:
        np.testing.assert_allclose(steps["conv.gpadded"], gx, atol=1e-12)
        (top, left), (_, _, h, w) = corner(steps["conv.padded"], x), x.shape
        inner = gx[:, :, top : top + h, left : left + w]
    np.testing.assert_allclose(steps["conv.gx"], inner, atol=1e-12)


def corner(padded, x):
    """Where the image begins in the padded one."""
    _, _, rows, columns = np.nonzero(padded == x[0, 0, 0, 0])
    return rows[0], columns[0]


def test_pooling_marks_the_first_maximum(be):
    x = be.asarray(np.array([[[[1, 1, 0, 0], [1, 0, 0, 2]]]]), "float32")
    target = be.asarray(np.zeros((1, 1, 1, 2)), "float32")
    t = dualcnn.trace(nn.Sequential(nn.MaxPool2d(2)), x, target, loss=F.mse_loss)
    assert host(t["pool.places"]).tolist() == [[[[0, 7]]]]
    marks = t.step("pool.input").marks
    assert marks.meaning == "the maximum of a window"
    assert marks.where.tolist() == [[[[True, False, False, False], [False, False, False, True]]]]
    # d mean(squares) / d maximum = 2 * maximum / 2.
    assert host(t["pool.gx"]).tolist() == [[[[1, 0, 0, 0], [0, 0, 0, 2]]]]


def test_linear_and_cross_entropy_by_loops(be):
    model = nn.Sequential(nn.Linear(3, 4)).to(dtype="float64")
    x, labels = images(be, 2, 3), [3, 1]
    t = dualcnn.trace(model, x, be.asarray(np.array(labels)))
    values = {step.name: host(step.array) for step in t}
    weight, bias, xs = host(model[0].weight), host(model[0].bias), host(x)
    losses, g = [], np.zeros((2, 4))
    for n in range(2):
        logits = [sum(xs[n, k] * weight[o, k] for k in range(3)) + bias[o] for o in range(4)]
        total = sum(np.exp(z) for z in logits)
        p = [np.exp(z) / total for z in logits]
        losses.append(-np.log(p[labels[n]]))
        g[n] = [(p[o] - (o == labels[n])) / 2 for o in range(4)]
        assert values["linear.output"][n] == pytest.approx(logits)
        assert values["loss.probabilities"][n] == pytest.approx(p)
        assert values["loss.exp"][n].max() == 1
        assert values["loss.exp"][n] / values["loss.total"][n] == pytest.approx(p)
    assert values["loss.losses"] == pytest.approx(losses)
    assert values["loss.loss"] == pytest.approx(sum(losses) / 2)
    assert values["loss.one_hot"].tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]
    assert values["loss.gx"] == pytest.approx(g)
    gw = [[sum(g[n, o] * xs[n, k] for n in range(2)) for k in range(3)] for o in range(4)]
    assert values["linear.gw"] == pytest.approx(np.array(gw))


def test_batch_norm_shows_the_statistics_of_the_batch(be):
    model = nn.Sequential({"norm": nn.BatchNorm2d(2)}).to(dtype="float64")
    model[0].weight.data = be.asarray(np.array([2.0, 0.5]))
    model[0].bias.data = be.asarray(np.array([0.0, 1.0]))
    x = images(be, 3, 2, 2, 2)
    t = dualcnn.trace(model, x, images(be, 3, 2, 2, 2, seed=1), loss=F.mse_loss)
    xs = host(x)
    mean, variance = xs.mean((0, 2, 3)), xs.var((0, 2, 3))
    np.testing.assert_allclose(host(t["norm.mean"]), mean)
    np.testing.assert_allclose(host(t["norm.variance"]), variance)
    normal = (xs - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None]
    np.testing.assert_allclose(host(t["norm.normalized"]), normal)
    gy = host(t["norm.gy"])
    back = (
        gy
        - gy.mean((0, 2, 3), keepdims=True)
        - normal * (gy * normal).mean((0, 2, 3), keepdims=True)
    )
    factor = (np.array([2.0, 0.5]) / np.sqrt(variance + 1e-5))[:, None, None]
    np.testing.assert_allclose(host(t["norm.gx"]), back * factor, atol=1e-14)
    t = dualcnn.trace(model.eval(), x, images(be, 3, 2, 2, 2, seed=1), loss=F.mse_loss)
    assert host(t["norm.mean"]).tolist() == [0, 0]
    assert host(t["norm.variance"]).tolist() == [1, 1]


def test_elementwise_gradients_are_gy_times_the_factor(be, deep):
    t = dualcnn.trace(deep, images(be, 2, 1, 9, 9, dtype="float32"), be.asarray(np.array([2, 0])))
    for name, factor in (
        ("leaky", "mask"), ("sigmoid", "slope"), ("tanh", "slope"), ("dropout", "factor")
    ):  # fmt: skip
        product = host(t[f"{name}.gy"]) * host(t[f"{name}.{factor}"])
        np.testing.assert_allclose(host(t[f"{name}.gx"]), product, rtol=1e-5)
    x = host(t["leaky.input"])
    np.testing.assert_array_equal(host(t["leaky.mask"]), np.where(x > 0, 1, 0.2).astype("float32"))
    kept = host(t["dropout.factor"])
    np.testing.assert_array_equal(host(t["dropout.output"]), host(t["dropout.input"]) * kept)
    assert set(kept.flat) == {np.float32(0), np.float32(1 / 0.6)}


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
