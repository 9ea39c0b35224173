"""Weights files: what is read back, and that no damage goes unnoticed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dualcnn import backend
from dualcnn.autograd import Tensor
from dualcnn.backend import Backend
from dualcnn.data import files
from dualcnn.interop import WeightsError, load, read, save


def some_state() -> dict[str, Any]:
    return {
        "conv.weight": np.arange(24, dtype="float32").reshape(2, 3, 2, 2) / 7,
        "conv.bias": np.array([1.5, -2.0], dtype="float64"),
        "steps": np.array(3, dtype="int64"),
        "mask": np.array([True, False, True]),
        "half": np.array([[0.5], [np.inf]], dtype="float16"),
        "empty": np.zeros((0, 4), dtype="float32"),
    }


def check_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert type(found[name]) is np.ndarray
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tolist() == array.tolist(), name


def test_arrays_come_back_as_they_were(tmp_path):
    path = tmp_path / "weights.safetensors"
    save(some_state(), path, {"model": "cnn"})
    arrays, metadata = read(path)
    check_equal(arrays, some_state())
    check_equal(load(path), some_state())
    assert metadata == {"model": "cnn"}
    assert os.listdir(tmp_path) == [path.name]
    arrays["conv.weight"][0] = 0  # the reader's own


def test_memory_order_does_not_matter(tmp_path):
    nhwc = np.arange(24, dtype="float32").reshape(2, 2, 2, 3)
    views = {
        "channels_last": nhwc.transpose(0, 3, 1, 2),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "backwards": np.arange(5)[::-1],
        "big_endian": np.array([1, 2, 3], dtype=">i4"),
    }
    expected = {name: view.tolist() for name, view in views.items()}
    save(views, tmp_path / "w")
    assert {name: array.tolist() for name, array in load(tmp_path / "w").items()} == expected


def test_arrays_and_tensors_of_any_backend(be: Backend, tmp_path):
    values = np.arange(6, dtype="float32").reshape(2, 3)
    x = be.asarray(values)
    save({"array": x, "tensor": Tensor(x, requires_grad=True)}, tmp_path / "w")
    check_equal(load(tmp_path / "w"), {"array": values, "tensor": values})


def test_other_programs_read_the_file(tmp_path):
    from safetensors import safe_open

    save(some_state(), tmp_path / "w", {"model": "cnn"})
    with safe_open(tmp_path / "w", framework="np") as file:
        check_equal({name: file.get_tensor(name) for name in file.keys()}, some_state())  # noqa: SIM118
        assert file.metadata()["model"] == "cnn"


def plain_file(header: dict[str, Any], payload: bytes) -> bytes:
    """A safetensors file written by hand after the description of the format."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload


def test_files_without_a_hash_load(tmp_path):
    payload = np.array([1.0, 2.5], "<f4").tobytes() + np.array([0x3FC0, 0xC000], "<u2").tobytes()
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "a": {"dtype": "BF16", "shape": [2], "data_offsets": [8, 12]},
    }
    (tmp_path / "w").write_bytes(plain_file(header, payload))
    arrays, metadata = read(tmp_path / "w")
    assert metadata == {"format": "pt"}
    # bfloat16 is the upper half of a float32: 0x3FC0 is 1.5 and 0xC000 is -2.
    check_equal(
        arrays,
        {"a": np.array([1.5, -2.0], "float32"), "b": np.array([[1.0], [2.5]], "float32")},
    )


def test_types_that_numpy_lacks_are_named(tmp_path):
    header = {"w": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}
    (tmp_path / "w").write_bytes(plain_file(header, b"\0"))
    with pytest.raises(WeightsError, match="w has the type F8_E4M3"):
        load(tmp_path / "w")


def small_file(path: Path) -> bytes:
    save({"w": np.arange(4, dtype="float32"), "b": np.ones((1, 2))}, path, {"model": "m"})
    return path.read_bytes()


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "w"
    content = small_file(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=r"cut short|SHA-256"):
            load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(WeightsError):
        load(path)


@pytest.mark.parametrize("bit", [0, 3, 6])
def test_no_flipped_bit_changes_what_is_loaded(tmp_path, bit):
    path = tmp_path / "w"
    content = small_file(path)
    values, metadata = read(path)
    harmless = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            found, notes = read(path)
        except WeightsError:
            continue
        # Only the name of the hash itself may go unnoticed: it then is one more note.
        harmless += 1
        check_equal(found, values)
        assert metadata.items() <= notes.items()
    assert harmless <= len("dualcnn_sha256") + 4
    header = 8 + int.from_bytes(content[:8], "little")
    for place in range(header, len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match="SHA-256"):
            load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x80\x04\x95pickle", b"\xff" * 64])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(WeightsError, match="expected a whole safetensors file"):
        load(tmp_path / "w")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        load(tmp_path / "nowhere.safetensors")


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(WeightsError, match=r"w: .*complex128"):
        save({"w": np.array([1j])}, tmp_path / "w")
    with pytest.raises(WeightsError, match=r"w: .*object"):
        save({"w": np.array([None])}, tmp_path / "w")
    with pytest.raises(WeightsError, match=r"w: expected an array or a Tensor, got a str"):
        save({"w": "text"}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"model\.state_dict"):
        save([1, 2], tmp_path / "w")  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match='another name than "__metadata__"'):
        save({"__metadata__": np.ones(2)}, tmp_path / "w")
    with pytest.raises(WeightsError, match="metadata of text"):
        save({}, tmp_path / "w", {"epoch": 3})  # type: ignore[dict-item]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "w"
    content = small_file(path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(OSError, match=r"could not write it, No space left.*w'"):
        save({"w": np.zeros(4)}, path)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["w"]


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="could not write it"):
        save({"w": np.zeros(4)}, tmp_path / "nowhere" / "w")


KILLED = """
import os, sys
import numpy as np
from dualcnn.data import files
from dualcnn.interop import save

real = getattr(files.os, sys.argv[2])
def die(*arguments):
    if sys.argv[3] == "after":
        real(*arguments)
    os._exit(9)
setattr(files.os, sys.argv[2], die)
save({"w": np.full(4, 2.0)}, sys.argv[1])
"""


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_write_leaves_a_whole_file(tmp_path, step, moment):
    path = tmp_path / "w"
    save({"w": np.full(4, 1.0)}, path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), step, moment])
    assert done.returncode == 9
    written = (step, moment) == ("replace", "after")
    assert load(path)["w"].tolist() == [2.0 if written else 1.0] * 4


def test_names_may_hold_any_text(tmp_path):
    path = tmp_path / "gewichte-\u00e4\u4e2d.safetensors"
    save({"\u00e4 \u4e2d": np.ones(1)}, path, {"\u00fc": "\n"})
    arrays, metadata = read(path)
    assert list(arrays) == ["\u00e4 \u4e2d"]
    assert metadata == {"\u00fc": "\n"}


def test_numbers_are_arrays_without_axes(tmp_path):
    save({"x": backend.asarray(2.0)}, tmp_path / "w")
    assert load(tmp_path / "w")["x"].shape == ()


def test_nested_state_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(WeightsError, match=r"got a dict under 'state'"):
        save({"state": {0: {"step": 1}}}, tmp_path / "optimizer.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_arrays_come_in_the_order_of_the_file(tmp_path):
    """By offset, whatever the order in the header; a hash table would tell 20 names at random."""
    names = [f"layer{i * 7 % 20}" for i in range(20)]
    offsets = {name: [4 * i, 4 * i + 4] for i, name in enumerate(names)}
    header = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": offsets[name]}
        for name in reversed(names)
    }
    payload = np.arange(20, dtype="<f4").tobytes()
    (tmp_path / "w").write_bytes(plain_file(header, payload))
    found = load(tmp_path / "w")
    assert list(found) == names
    assert [float(array[0]) for array in found.values()] == list(range(20))


def test_the_order_of_saved_arrays(tmp_path):
    state = {"z": np.ones(2, "f4"), "half": np.ones(1, "f2"), "m": np.ones(3, "f8")}
    state |= {f"layer{i * 7 % 10}": np.full(2, i, "f4") for i in range(10)}
    save(state, tmp_path / "w")
    layers = [f"layer{i}" for i in range(10)]
    assert list(load(tmp_path / "w")) == ["m", *layers, "z", "half"]
