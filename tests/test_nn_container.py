"""Sequential: indexing, slicing, names."""

from __future__ import annotations

import numpy as np
import pytest

from dualcnn import nn, to_numpy


def layers() -> list[nn.Module]:
    return [nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.Tanh()]


def test_a_slice_gives_the_output_of_its_last_layer(be):
    model = nn.Sequential(*layers())
    x = be.asarray(np.array([[1.0, -2.0]]), "float32")
    third = model[2](model[1](model[0](x)))
    np.testing.assert_array_equal(to_numpy(model[:3](x)), to_numpy(third))
    np.testing.assert_array_equal(to_numpy(model[3:](third)), to_numpy(model(x)))
    assert model[:3][0] is model[0]
    assert isinstance(model[:3], nn.Sequential)


def test_indexing_length_iteration():
    parts = layers()
    model = nn.Sequential(*parts)
    assert len(model) == 4
    assert list(model) == parts
    assert model[-1] is parts[-1]
    assert list(model[::2]) == parts[::2]
    assert list(model[-2:].state_dict()) == ["2.weight", "2.bias"]
    assert list(model[1:1]) == []
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"place {index} of a Sequential of 4"):
            model[index]


def test_replacing_and_appending():
    model = nn.Sequential(*layers())
    model[-1] = nn.Identity()
    assert isinstance(model[3], nn.Identity)
    assert len(model) == 4
    assert model.append(nn.Linear(4, 1)) is model
    assert len(model) == 5
    assert list(model.state_dict())[-2:] == ["4.weight", "4.bias"]
    with pytest.raises(TypeError, match=r"expected an nn\.Module as '5', got function"):
        model.append(lambda x: x)


@pytest.mark.parametrize("kind", [nn.Sequential, nn.ModuleList])
def test_appending_to_a_slice_replaces_nothing(kind):
    container = nn.Sequential(*layers()) if kind is nn.Sequential else nn.ModuleList(layers())
    part = container[2:]
    kept = list(part)
    part.append(nn.Identity())
    assert list(part)[:-1] == kept
    assert isinstance(part[-1], nn.Identity)
    assert len(container) == 4


def test_a_slice_of_a_module_list_counts_anew():
    part = nn.ModuleList(layers())[2:]
    assert [name for name, _ in part.named_children()] == ["0", "1"]


def test_named_layers():
    first, second = nn.Linear(2, 3), nn.ReLU()
    model = nn.Sequential({"fc": first, "act": second})
    assert [n for n, _ in model.named_children()] == ["fc", "act"]
    assert list(model.state_dict()) == ["fc.weight", "fc.bias"]
    assert model.fc is first
    assert model[1] is second
    assert [n for n, _ in model[1:].named_children()] == ["act"]
    with pytest.raises(ValueError, match="already has an attribute 'append'"):
        nn.Sequential({"append": first})


def test_one_layer_twice_is_two_steps():
    double = nn.Linear(1, 1, bias=False)
    double.weight.data = np.full((1, 1), 2, "float32")
    model = nn.Sequential(double, double, double)
    assert len(model) == 3
    assert model(np.ones((1, 1), "float32")).item() == 8


def test_nothing_at_all_is_the_identity():
    x = np.ones(3)
    assert nn.Sequential()(x) is x


def test_repr():
    assert repr(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh()))) == (
        "Sequential(\n  (0): ReLU()\n  (1): Sequential(\n    (0): Tanh()\n  )\n)"
    )


def test_a_module_list_registers_and_is_sliced():
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    layers.append(nn.ReLU())
    assert len(layers) == 4
    assert [name for name, _ in layers.named_parameters()][:2] == ["0.weight", "0.bias"]
    assert isinstance(layers[1:3], nn.ModuleList)
    assert layers[1:3][0] is layers[1]
    assert isinstance(layers[-1], nn.ReLU)
    with pytest.raises(IndexError, match="place 4 of a ModuleList of 4"):
        layers[4]
    with pytest.raises(NotImplementedError, match="ModuleList does not define forward"):
        layers(1)
