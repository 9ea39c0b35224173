"""Layers in a row that run as one: the same results, states, hooks and errors as one by one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from op_check import rng, same

import dualcnn
from dualcnn import Tensor, functional, nn, to_numpy
from dualcnn.backend import Backend

SHAPE = (4, 3, 9, 10)
FUSED = ("conv2d_relu", "conv2d_relu_max_pool2d", "batch_norm_relu")


ROWS: dict[str, Callable[[], list[nn.Module]]] = {
    "conv, relu": lambda: [nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()],
    "conv, relu, pool": lambda: [nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2)],
    "pool by axis": lambda: [nn.Conv2d(3, 4, 2, bias=False), nn.ReLU(), nn.MaxPool2d((2, 3))],
    "strided": lambda: [nn.Conv2d(3, 4, 3, stride=2, dilation=(1, 2)), nn.ReLU(), nn.MaxPool2d(2)],
    "groups": lambda: [nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.MaxPool2d(2)],
    "overlapping pool": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2)],
    "padded pool": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2, padding=1)],
    "dilated pool": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2, 2, dilation=2)],
    "pool with a rest": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, ceil_mode=True)],
    "large pool": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(4)],
    "pool of one place": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(1)],
    "norm": lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)],
    "norm without weights": lambda: [nn.BatchNorm2d(3, affine=False, momentum=None), nn.ReLU()],
    "norm without statistics": lambda: [nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()],
    "norm of vectors": lambda: [nn.Flatten(), nn.Linear(270, 6), nn.BatchNorm1d(6), nn.ReLU()],
    "leaky": lambda: [nn.Conv2d(3, 4, 3), nn.LeakyReLU(), nn.MaxPool2d(2)],
    "two": lambda: [
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)),
    ],
}
"""Layers for images of `SHAPE`, some of which run as one."""


def rows(name: str) -> list[nn.Module]:
    dualcnn.manual_seed(7)
    return ROWS[name]()


def one_by_one(x: Any, *layers: nn.Module) -> Any:
    for layer in layers:
        x = layer(x)
    return x


def sequential(x: Any, *layers: nn.Module) -> Any:
    return nn.Sequential(*layers)(x)


def trained(run: Callable[..., Any], layers: list[nn.Module], x: Any) -> list[Any]:
    """Outputs in training and evaluation, gradients, and the state afterwards."""
    container = nn.Sequential(*layers)
    found = []
    for mode in (True, True, False):
        container.train(mode)
        images = Tensor(x, requires_grad=True)
        y = run(images, *layers)
        weights = np.cos(np.arange(np.prod(y.shape))).reshape(y.shape)
        container.zero_grad()
        (y * Tensor(y.backend.asarray(weights.astype("float32")))).sum().backward()
        found += [y, images.grad, *(p.grad for p in container.parameters())]
    found += container.state_dict().values()
    return [np.array(to_numpy(v)) for v in found]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the fused functions that were called."""
    seen: list[str] = []

    def watch(name: str, fn: Callable[..., Any]) -> None:
        monkeypatch.setattr(
            functional, name, lambda *args, **more: seen.append(name) or fn(*args, **more)
        )

    for name in FUSED:
        watch(name, getattr(functional, name))
    return seen


@pytest.mark.parametrize("run", [nn.chain, sequential])
@pytest.mark.parametrize("name", ROWS)
def test_rows_compute_what_their_layers_do(be: Backend, name: str, run: Any) -> None:
    x = be.asarray(rng(51).normal(size=SHAPE).astype("float32"))
    expected = trained(one_by_one, rows(name), x)
    for actual, wanted in zip(trained(run, rows(name), x), expected, strict=True):
        same(actual, wanted, "float32")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv, relu", ["conv2d_relu"]),
        ("conv, relu, pool", ["conv2d_relu_max_pool2d"]),
        ("pool by axis", ["conv2d_relu_max_pool2d"]),
        ("overlapping pool", ["conv2d_relu"]),
        ("padded pool", ["conv2d_relu"]),
        ("dilated pool", ["conv2d_relu"]),
        ("pool with a rest", ["conv2d_relu"]),
        ("large pool", ["conv2d_relu"]),
        ("norm", ["batch_norm_relu"]),
        ("norm of vectors", ["batch_norm_relu"]),
        ("leaky", []),
        ("two", ["conv2d_relu", "conv2d_relu_max_pool2d", "batch_norm_relu"]),
    ],
)
def test_which_layers_run_as_one(fused: list[str], name: str, expected: list[str]) -> None:
    nn.chain(np.ones(SHAPE, "float32"), *rows(name))
    assert fused == expected


def test_a_subclass_may_do_something_else(fused: list[str]) -> None:
    class Doubled(nn.ReLU):
        def forward(self, input: Any) -> Any:
            return super().forward(input) * 2

    x = rng(52).normal(size=SHAPE).astype("float32")
    conv = nn.Conv2d(3, 4, 3)
    expected = to_numpy(nn.ReLU()(conv(x))) * 2
    np.testing.assert_array_equal(to_numpy(nn.chain(x, conv, Doubled())), expected)
    assert fused == []


def test_names_and_states_are_those_of_the_layers() -> None:
    model = nn.Sequential(*rows("norm"))
    before = list(model.state_dict())
    model(np.ones(SHAPE, "float32"))
    assert list(model.state_dict()) == before
    assert [name for name, _ in model.named_parameters()] == [
        *("0.weight", "0.bias", "1.weight", "1.bias")
    ]
    assert [name for name, _ in model.named_children()] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_hook_sees_its_layer_whenever_it_is_registered(fused: list[str], place: int) -> None:
    layers = rows("conv, relu, pool")
    model = nn.Sequential(*layers)
    x = rng(53).normal(size=SHAPE).astype("float32")
    expected = [to_numpy(one_by_one(x, *layers[: n + 1])) for n in range(3)]
    model(x)
    seen: list[Any] = []
    handle = layers[place].register_forward_hook(lambda *given: seen.append(given))
    y = model(x)
    ((layer, _, output),) = seen
    assert layer is layers[place]
    np.testing.assert_array_equal(to_numpy(output), expected[place])
    np.testing.assert_array_equal(to_numpy(y), expected[2])
    handle.remove()
    model(x)
    assert len(seen) == 1
    assert fused == ["conv2d_relu_max_pool2d"] * 2


def test_a_hook_replaces_the_output_of_its_layer() -> None:
    model = nn.Sequential(*rows("conv, relu, pool"))
    model[1].register_forward_hook(lambda layer, inputs, output: output * 0 + 3)
    assert set(to_numpy(model(np.ones(SHAPE, "float32"))).ravel()) == {3}


@pytest.mark.parametrize(
    ("name", "shape", "where"),
    [
        ("conv, relu, pool", (4, 2, 9, 10), "in layer 0: Conv2d"),
        ("conv, relu, pool", (4, 3, 3, 3), "in layer 2: MaxPool2d"),
        ("conv, relu", (4, 3, 9), "in layer 0: Conv2d"),
        ("norm", (4, 2, 9, 10), "in layer 0: Conv2d"),
        ("norm without weights", (4, 2, 9, 10), "in layer 0: BatchNorm2d"),
        ("norm without weights", (1, 3, 1, 1), "in layer 0: BatchNorm2d"),
    ],
)
def test_an_error_names_the_layer_at_fault(name: str, shape: tuple[int, ...], where: str) -> None:
    x = np.ones(shape, "float32")
    with pytest.raises(ValueError, match=r"expected|needs|covers") as alone:
        one_by_one(x, *rows(name))
    with pytest.raises(ValueError, match=r"expected|needs|covers") as error:
        nn.Sequential(*rows(name))(x)
    assert type(error.value) is type(alone.value)
    assert str(error.value) == str(alone.value)
    (note,) = error.value.__notes__
    assert note.startswith(where)


def test_a_batch_that_fails_is_not_counted() -> None:
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.ReLU())
    with pytest.raises(ValueError, match="more than 1 value"):
        model(np.ones((1, 3, 1, 1), "float32"))
    assert norm.num_batches_tracked is not None
    assert norm.num_batches_tracked.item() == 0
    model(np.ones((2, 3, 1, 1), "float32"))
    assert norm.num_batches_tracked.item() == 1


def test_lazy_layers_run_as_one_from_their_second_input(fused: list[str]) -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU())
    x = rng(54).normal(size=SHAPE).astype("float32")
    model.eval()
    first = to_numpy(model(x))
    del fused[:]
    np.testing.assert_allclose(to_numpy(model(x)), first, 1e-6, 1e-6)
    assert fused == ["conv2d_relu", "batch_norm_relu"]


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_runs_its_own_layers(name: str) -> None:
    model = nn.Sequential(*rows("conv, relu, pool"))
    x = rng(55).normal(size=SHAPE).astype("float32")
    expected = to_numpy(model(x)).copy()
    other = COPIES[name](model)
    for param in model.parameters():
        param.data = param.data * 0
    np.testing.assert_array_equal(to_numpy(other(x)), expected)
    assert not to_numpy(model(x)).any()
    for param in other.parameters():
        param.data = param.data * 0
    assert not to_numpy(other(x)).any()


def test_layers_replaced_and_appended_after_a_forward() -> None:
    model = nn.Sequential(*rows("conv, relu, pool"))
    x = rng(56).normal(size=SHAPE).astype("float32")
    model(x)
    model[1] = nn.Tanh()
    assert to_numpy(model(x)).min() < 0
    model[1] = nn.ReLU()
    model[0] = nn.Conv2d(3, 2, 3)
    assert model(x).shape == (4, 2, 3, 4)
    model.append(nn.Conv2d(2, 6, 2)).append(nn.ReLU())
    y = model(x)
    np.testing.assert_array_equal(to_numpy(y), to_numpy(one_by_one(x, *model)))
    assert y.shape == (4, 6, 2, 3)


CHANGES: list[tuple[int, str, Any]] = [
    (2, "stride", 1),
    (2, "padding", 1),
    (2, "dilation", 2),
    (2, "ceil_mode", True),
    (2, "kernel_size", 3),
    (2, "return_indices", True),
    (0, "padding", 2),
    (0, "stride", 2),
    (0, "bias", None),
]


@pytest.mark.parametrize(("place", "attribute", "value"), CHANGES)
def test_attributes_changed_after_a_forward(place: int, attribute: str, value: Any) -> None:
    """As PyTorch's layers, these read their options at each call."""
    model = nn.Sequential(*rows("conv, relu, pool"))
    x = rng(57).normal(size=SHAPE).astype("float32")
    model(x)
    setattr(model[place], attribute, value)
    actual, expected = model(x), one_by_one(x, *model)
    if attribute == "return_indices":
        assert isinstance(actual, tuple)
        actual, expected = actual[1], expected[1]
    # Before a pooling fewer places are multiplied, and BLAS may add up the last of them otherwise.
    np.testing.assert_allclose(to_numpy(actual), to_numpy(expected), rtol=0, atol=1e-6)


def test_a_slice_of_a_row_is_its_layers() -> None:
    model = nn.Sequential(*rows("conv, relu, pool"))
    x = rng(58).normal(size=SHAPE).astype("float32")
    whole = to_numpy(model(x))
    assert model[:2](x).shape == (4, 5, 7, 8)
    # Under a pooling outputs lie in another order, and BLAS may add up their products in another.
    np.testing.assert_allclose(to_numpy(model[2:](model[:2](x))), whole, rtol=1e-6, atol=5e-7)


def test_no_grad_and_frozen_layers() -> None:
    model = nn.Sequential(*rows("conv, relu, pool"))
    x = rng(59).normal(size=SHAPE).astype("float32")
    with dualcnn.no_grad():
        assert not model(x).requires_grad
    model[0].weight.requires_grad_(False)
    model(x).sum().backward()
    assert model[0].weight.grad is None
    assert model[0].bias.grad is not None
    images = Tensor(x, requires_grad=True)
    model[0].bias.requires_grad_(False)
    model(images).sum().backward()
    assert images.grad is not None
