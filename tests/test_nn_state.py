"""State of modules: saving, loading, moving to other backends, copying."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from nn_nets import Net, Tied, assert_same, host, image

import dualcnn
from dualcnn import backend, nn, optim, to_numpy
from dualcnn import functional as F


def test_state_is_contiguous_copies_in_public_shape(be):
    net = Net()
    state = net.state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        "block.scale": (2,),
        "block.offset": (2,),
        "block.bn.weight": (2,),
        "block.bn.bias": (2,),
        "block.bn.running_mean": (2,),
        "block.bn.running_var": (2,),
        "block.bn.num_batches_tracked": (),
        "block.conv.weight": (2, 1, 3, 3),
        "fc.weight": (3, 8),
        "fc.bias": (3,),
    }
    assert all(be.owns(v) for v in state.values())
    if hasattr(state["fc.weight"], "flags"):
        assert all(v.flags.c_contiguous for v in state.values())
    before = host(net)
    for value in state.values():
        value[...] = 7
    assert_same(host(net), before)


def test_weights_of_convolutions_lie_channels_last():
    weight = nn.Conv2d(3, 4, (5, 2)).weight
    assert weight.shape == (4, 3, 5, 2)
    assert weight.data.transpose(0, 2, 3, 1).flags.c_contiguous
    given = np.arange(24.0).reshape(1, 2, 3, 4)
    parameter = nn.Parameter(given)
    np.testing.assert_array_equal(parameter.data, given)
    assert parameter.data.transpose(0, 2, 3, 1).flags.c_contiguous


def test_loading_from_any_backend(be):
    with backend.use("cpu"):
        dualcnn.manual_seed(1)
        source = Net()
    dualcnn.manual_seed(2)
    net = Net().to(be)
    wanted = host(source)
    assert net.load_state_dict(source.state_dict()) == ([], [])
    assert_same(host(net), wanted)
    for state in (
        net.state_dict(),
        dict(source.named_parameters()) | dict(source.named_buffers()),
        {k: v.tolist() for k, v in wanted.items()},
        {k: v.astype("float64") for k, v in wanted.items()},
    ):
        state.pop("block.scratch", None)
        for param in net.parameters():
            param.data = be.zeros(param.shape, param.dtype)
        net.load_state_dict(state)
        assert_same(host(net), wanted)
        assert {p.backend for p in net.parameters()} == {be}
        assert net.fc.weight.dtype == be.dtype("float32")


def test_what_is_loaded_is_copied():
    net, state = nn.Linear(2, 2), {"weight": np.ones((2, 2), "f"), "bias": np.ones(2, "f")}
    net.load_state_dict(state)
    state["weight"][:] = 5
    assert host(net)["weight"].tolist() == [[1, 1], [1, 1]]


def test_loading_goes_into_the_flat_buffers(be):
    net, other = Net().to(be), Net().to(be)
    optimizer = optim.SGD(net.parameters(), lr=1.0)
    slots = [p.data_slot for p in net.parameters()]
    assert all(slot is not None for slot in slots)
    net.load_state_dict(other.state_dict())
    assert all(
        p.data is s and p.data_slot is s for p, s in zip(net.parameters(), slots, strict=True)
    )
    assert_same(host(net), host(other))
    net(image(be)).sum().backward()
    before, gradient = host(net)["fc.bias"], to_numpy(net.fc.bias.grad).copy()
    optimizer.step()
    np.testing.assert_allclose(host(net)["fc.bias"], before - gradient, rtol=1e-6)
    if be.name == "numpy":
        assert net.block.conv.weight.data.transpose(0, 2, 3, 1).flags.c_contiguous


def test_all_that_does_not_fit_is_one_error_and_nothing_is_loaded(be):
    net = Net().to(be)
    before = host(net)
    state = {k: v + 1 for k, v in before.items()}
    del state["fc.bias"], state["block.scale"]
    state["head.weight"] = state["extra"] = np.zeros(3)
    state["fc.weight"] = np.zeros((8, 3))
    state["block.bn.bias"] = np.zeros(3)
    with pytest.raises(nn.StateDictError) as caught:
        net.load_state_dict(state)
    assert str(caught.value).splitlines() == [
        "the state does not fit Net; nothing was loaded",
        "  missing: block.scale, fc.bias",
        "  unexpected: extra, head.weight",
        "  wrong shape: block.bn.bias (expected (2,), got (3,)), "
        "fc.weight (expected (3, 8), got (8, 3))",
    ]
    assert isinstance(caught.value, ValueError)
    assert_same(host(net), before)
    with pytest.raises(nn.StateDictError, match="wrong shape") as caught:
        net.load_state_dict(state, strict=False)
    assert "missing" not in str(caught.value)
    assert_same(host(net), before)


def test_loading_not_strictly():
    net = nn.Linear(2, 2)
    result = net.load_state_dict({"weight": np.ones((2, 2)), "scale": np.ones(1)}, strict=False)
    assert result.missing_keys == ["bias"]
    assert result.unexpected_keys == ["scale"]
    assert host(net)["weight"].tolist() == [[1, 1], [1, 1]]


# Moves.


def test_to_moves_parameters_buffers_and_gradients(be):
    with backend.use("cpu"):
        net = Net()
        net(image(backend.get("cpu"))).sum().backward()
    before, gradient = host(net), to_numpy(net.block.conv.weight.grad).copy()
    parameters = list(net.parameters())
    assert net.to(be) is net
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert {t.backend for t in [*net.parameters(), *net.buffers()]} == {be}
    assert_same(host(net), before)
    np.testing.assert_array_equal(to_numpy(net.block.conv.weight.grad), gradient)
    assert be.owns(net.block.conv.weight.grad)
    weight = net.block.conv.weight.data
    assert net.to(be).block.conv.weight.data is weight
    if hasattr(weight, "strides"):
        assert weight.transpose(0, 2, 3, 1).flags.c_contiguous
    net(image(be))


def test_training_goes_on_after_a_move(be):
    """The optimizer notices, and carries its moments over."""
    cpu = backend.get("cpu")

    def train(path: list[backend.Backend]) -> dict[str, Any]:
        with backend.use(cpu):
            dualcnn.manual_seed(5)
            net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
        optimizer = optim.SGD(net.parameters(), lr=0.125, momentum=0.5)
        for target in path:
            net.to(target)
            optimizer.zero_grad()
            F.mse_loss(net(image(target)) * 0.01, np.zeros((2, 3), "float32")).backward()
            optimizer.step()
        return host(net)

    stayed, moved = train([cpu] * 4), train([cpu, be, be, cpu])
    for name, value in stayed.items():
        np.testing.assert_allclose(moved[name], value, rtol=1e-4, atol=1e-6)


def test_to_another_dtype(be):
    net = Net().to(be)
    optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(image(be)).sum().backward()
    optimizer.step()
    before, gradient = host(net), to_numpy(net.fc.weight.grad).copy()
    net.to(dtype="float64")
    assert all(p.data_slot is p.grad_slot is None for p in net.parameters())
    assert net.fc.weight.grad.dtype == be.dtype("float64")
    np.testing.assert_array_equal(to_numpy(net.fc.weight.grad), gradient)
    assert {str(p.dtype) for p in net.parameters()} == {str(be.dtype("float64"))}
    assert net.block.bn.running_mean.dtype == be.dtype("float64")
    assert net.block.bn.num_batches_tracked.dtype == be.dtype("int64")
    assert_same(host(net), before)
    optimizer.zero_grad()
    net(be.asarray(np.ones((2, 1, 4, 4)))).sum().backward()
    optimizer.step()
    assert net.fc.weight.grad.dtype == be.dtype("float64")
    with pytest.raises(ValueError, match='expected "float16", "float32" or "float64" as dtype'):
        net.to(dtype="int8")


# Copies.


def copies() -> dict[str, Any]:
    return {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("how", copies())
def test_copies_are_independent(how):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), Tied())
    net[3].a = nn.Linear(3, 3)
    net[3].b.weight = net[3].a.weight
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    x = np.ones((2, 2, 3, 3), "float32")
    net(x).sum().backward()
    net.eval()
    twin = copies()[how](net)
    before = host(net)
    assert_same(host(twin), before)
    assert twin[3].a.weight is twin[3].b.weight
    assert not any(m.training for m in twin.modules())
    for a, b in zip(
        [*net.parameters(), *net.buffers()], [*twin.parameters(), *twin.buffers()], strict=True
    ):
        assert not np.shares_memory(a.data, b.data)
        assert b.data.base is None or b.data.base.size == b.data.size
        assert b.data_slot is b.grad_slot is b.grad is None
        assert a.requires_grad == b.requires_grad
    assert twin[0].weight.data.strides == net[0].weight.data.strides
    optimizer.step()
    assert_same(host(twin), before)
    other = optim.SGD(twin.parameters(), lr=0.1)
    changed = host(net)
    twin(x).sum().backward()
    other.step()
    assert_same(host(net), changed)


def test_deepcopy_on_every_backend(be):
    net = Net().to(be)
    twin = copy.deepcopy(net)
    assert_same(host(twin), host(net))
    assert {t.backend for t in [*twin.parameters(), *twin.buffers()]} == {be}
    before = host(net)
    twin(image(be))
    for p in twin.parameters():
        be.assign(p.data, 0)
    assert_same(host(net), before)


def test_a_path_is_no_state():
    with pytest.raises(TypeError, match=r"got str; read a file first: model\.load_state"):
        nn.Linear(2, 1).load_state_dict("weights.safetensors")
