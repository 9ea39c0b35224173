"""Module: registration, walks, modes, hooks, and errors that say where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import make_backend
from nn_nets import KEYS, Block, Net, Tied, host, image

from dualcnn import Tensor, backend, nn, to_numpy
from dualcnn import functional as F

# Registration and walks.


def test_names_in_the_order_of_registration():
    """Own parameters, own buffers, then submodules: PyTorch's order."""
    net = Net()
    assert list(net.state_dict()) == KEYS
    assert [n for n, _ in net.named_parameters()] == [
        k for k in KEYS if not k.split(".")[-1].startswith(("running", "num_", "offset"))
    ]
    assert [n for n, _ in net.named_buffers()] == [
        "block.offset",
        "block.scratch",
        "block.bn.running_mean",
        "block.bn.running_var",
        "block.bn.num_batches_tracked",
    ]
    assert [n for n, _ in net.named_modules()] == ["", "block", "block.bn", "block.conv", "fc"]
    assert [n for n, _ in net.named_modules("net")][:2] == ["net", "net.block"]
    assert [n for n, _ in net.named_children()] == ["block", "fc"]
    assert list(net.children()) == [net.block, net.fc]
    assert next(net.modules()) is net
    assert [n for n, _ in net.named_parameters("m")][-1] == "m.fc.bias"
    assert list(net.parameters(recurse=False)) == []
    assert list(net.block.parameters(recurse=False)) == [net.block.scale]
    assert all(a is b for a, (_, b) in zip(net.parameters(), net.named_parameters(), strict=True))
    assert not any(buffer.requires_grad for buffer in net.buffers())


def test_attributes_of_other_kinds_are_not_registered():
    module = nn.Module()
    module.plain = Tensor([1.0])
    module.layers = [nn.Linear(2, 2)]
    module.number = 3
    assert list(module.parameters()) == []
    assert module.state_dict() == {}


def test_assigning_again_keeps_the_place_and_deleting_forgets():
    net = Net()
    net.block.scale = nn.Parameter(np.zeros(2, "float32"))
    assert list(net.state_dict()) == KEYS
    net.block = nn.Linear(2, 2)
    assert list(net.state_dict()) == ["block.weight", "block.bias", "fc.weight", "fc.bias"]
    net.fc.bias = None
    assert list(net.state_dict()) == ["block.weight", "block.bias", "fc.weight"]
    del net.block
    assert list(net.state_dict()) == ["fc.weight"]
    with pytest.raises(AttributeError):
        net.block  # noqa: B018


def test_tied_parameters_count_once_and_are_saved_under_every_name(be):
    net = Tied()
    assert [n for n, _ in net.named_parameters()] == ["a.weight", "a.bias"]
    every = [n for n, _ in net.named_parameters(remove_duplicate=False)]
    assert every == list(net.state_dict()) == ["a.weight", "a.bias", "b.weight"]
    x = be.asarray(np.eye(3), "float32")
    net(x).sum().backward()
    # y = (x Wᵀ + b) Wᵀ; summed, dL/dW gets a part from each use.
    w, b = to_numpy(net.a.weight.data), to_numpy(net.a.bias.data)
    ones = np.ones((3, 3))
    want = (ones @ w).T @ np.eye(3) + ones.T @ (np.eye(3) @ w.T + b)
    np.testing.assert_allclose(to_numpy(net.a.weight.grad), want, rtol=1e-5)


def test_a_shared_module_is_walked_once_and_saved_under_every_name():
    shared = nn.Linear(2, 2)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    assert [n for n, _ in net.named_modules()] == ["", "0", "1"]
    assert [n for n, _ in net.named_modules(remove_duplicate=False)] == ["", "0", "1", "2"]
    assert len(list(net.parameters())) == 2
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_assigning_before_init():
    class Early(nn.Module):
        def __init__(self) -> None:
            self.fc = nn.Linear(2, 2)

    class EarlyBuffer(nn.Module):
        def __init__(self) -> None:
            self.register_buffer("x", np.zeros(2))

    for kind in (Early, EarlyBuffer):
        with pytest.raises(AttributeError, match=r"must call super\(\).__init__\(\) before"):
            kind()


def test_a_parameter_is_not_replaced_by_accident():
    layer = nn.Linear(2, 2)
    for value in (np.zeros((2, 2)), Tensor(np.zeros((2, 2)))):
        with pytest.raises(TypeError, match=r"weight is a Parameter.*\.weight\.data = array"):
            layer.weight = value
    assert isinstance(layer.weight, nn.Parameter)


def test_assigned_buffers_stay_tensors():
    block = Block()
    block.offset = np.ones(2, "float32")
    assert isinstance(block.offset, Tensor)
    assert host(block)["offset"].tolist() == [1, 1]
    block.offset = None
    assert "offset" not in block.state_dict()


def test_names_that_cannot_be():
    module = nn.Linear(2, 2)
    for name in ("a.b", "", 3):
        with pytest.raises(ValueError, match="name without a dot"):
            module.register_buffer(name, np.zeros(2))
    with pytest.raises(ValueError, match="already has an attribute 'in_features'"):
        module.register_parameter("in_features", nn.Parameter([1.0]))
    with pytest.raises(TypeError, match=r"expected an nn\.Parameter or None, got ndarray"):
        module.register_parameter("new", np.zeros(2))
    with pytest.raises(TypeError, match=r"expected an nn.Module as 'new', got function"):
        module.add_module("new", F.relu)
    module.register_parameter("nothing", None)
    assert list(module.state_dict()) == ["weight", "bias"]


def test_parameters_are_leaves_that_want_gradients(be):
    p = nn.Parameter([1.0, 2.0])
    assert p.requires_grad
    assert p.backend is be
    assert isinstance(p, Tensor)
    assert not nn.Parameter(p.data, requires_grad=False).requires_grad
    with pytest.raises(TypeError, match="only floating-point"):
        nn.Parameter(be.asarray(np.array([1, 2])))


# Modes, gradients, hooks.


def test_train_and_eval_reach_all():
    net = Net()
    assert all(m.training for m in net.modules())
    assert net.eval() is net
    assert not any(m.training for m in net.modules())
    net.block.train()
    assert (net.training, net.block.bn.training, net.fc.training) == (False, True, False)
    net.train()
    assert all(m.training for m in net.modules())


def test_zero_grad_and_freezing(be):
    net = Net()
    net.block.requires_grad_(False)
    net(image(be)).sum().backward()
    assert net.fc.weight.grad is not None
    assert net.block.conv.weight.grad is None
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    net.requires_grad_()
    net(image(be)).sum().backward()
    assert all(p.grad is not None for n, p in net.named_parameters() if n != "block.scale")


def test_apply_goes_depth_first():
    seen = []
    net = Net()
    assert net.apply(seen.append) is net
    assert seen == [net.block.bn, net.block.conv, net.block, net.fc, net]


def test_forward_hooks():
    net, seen = nn.Sequential(nn.Identity(), nn.ReLU()), []
    handles = [
        net[0].register_forward_hook(lambda m, inputs, y: seen.append((m, inputs, y))),
        net[1].register_forward_hook(lambda m, inputs, y: y + 1),
        net[1].register_forward_hook(lambda m, inputs, y: y * 10),
    ]
    x = np.array([-1.0, 2.0])
    assert net(x).tolist() == [10, 30]
    assert seen == [(net[0], (x,), x)]
    handles[1].remove()
    handles[1].remove()
    net[1].register_forward_hook(lambda m, inputs, y: y - 1)
    assert net(x).tolist() == [-1, 19]


def test_a_hook_taken_off_twice_takes_no_other_off():
    layer = nn.Identity()
    early = layer.register_forward_hook(lambda m, inputs, y: y + 1)
    early.remove()
    layer.register_forward_hook(lambda m, inputs, y: y * 10)
    early.remove()
    assert layer(np.ones(1)).tolist() == [10]


def test_forward_must_be_defined():
    class Empty(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match="Empty does not define forward"):
        Empty()(1)


# Words.


def test_repr_is_a_tree():
    assert repr(Net()) == (
        "Net(\n"
        "  (block): Block(\n"
        "    (bn): BatchNorm2d(2, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)\n"
        "    (conv): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), bias=False)\n"
        "  )\n"
        "  (fc): Linear(in_features=8, out_features=3, bias=True)\n"
        ")"
    )
    assert repr(nn.ReLU()) == "ReLU()"


def test_errors_name_the_layer_and_what_it_was_given(be):
    with pytest.raises(ValueError, match="with 1 channels") as caught:
        Net()(image(be, (2, 3, 4, 4)))
    assert caught.value.__notes__ == [
        "in layer block.conv: Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), bias=False) given "
        "(2, 3, 4, 4)"
    ]


def test_errors_of_a_layer_alone_and_of_one_that_is_no_attribute():
    with pytest.raises(ValueError, match="last axis") as caught:
        nn.Linear(3, 2)(np.zeros((1, 4), "float32"))
    assert caught.value.__notes__ == [
        "in Linear(in_features=3, out_features=2, bias=True) given (1, 4)"
    ]

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(3, 2)]

        def forward(self, x: Any) -> Any:
            return self.layers[0](x)

    with pytest.raises(ValueError, match="last axis") as caught:
        nn.Sequential(Listed())(np.zeros((1, 4), "float32"))
    assert caught.value.__notes__ == [
        "in layer 0: Linear(in_features=3, out_features=2, bias=True) given (1, 4)"
    ]


def test_an_image_with_channels_last():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match="with 3 channels") as caught:
        model(np.zeros((2, 8, 8, 3), "float32"))
    assert any("looks like (N, H, W, C)" in note for note in caught.value.__notes__)
    with pytest.raises(ValueError, match="with 3 channels") as caught:
        model(np.zeros((8, 8, 3), "float32"))
    assert any("looks like (H, W, C)" in note for note in caught.value.__notes__)


def test_gray_images_without_an_axis_of_channels():
    with pytest.raises(ValueError, match="with 1 channel") as caught:
        nn.Conv2d(1, 4, 3)(np.zeros((5, 8, 8), "float32"))
    assert any("dualcnn.reshape(x, (-1, 1, 8, 8))" in note for note in caught.value.__notes__)


def test_inputs_on_another_backend_than_the_weights():
    device = make_backend("cupy-stand-in")
    with backend.use("cpu"):
        model = nn.Sequential(nn.Linear(2, 2))
    with backend.use(device), pytest.raises(backend.MixedBackendsError, match=r"cuda:0") as caught:
        model(device.asarray(np.zeros((1, 2), "float32")))
    assert any("model.to(device)" in note for note in caught.value.__notes__)
