"""Weights as safetensors files, which hold named arrays and text and run no code when read.

The format: https://github.com/huggingface/safetensors. It notices a file cut short but not a
flipped bit, so `save` adds a SHA-256 of all that the file says, and `load` checks it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backend import is_array, to_numpy
from ..data.files import write_file

__all__ = ["WeightsError", "load", "read", "save"]

Arrays = dict[str, npt.NDArray[Any]]

HASH = "dualcnn_sha256"
"""The entry of the metadata that holds the hash."""

# The format's names of types. NumPy has no bfloat16: it becomes float32, which holds it exactly.
_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "BF16": "<u2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}
_STORABLE = {np.dtype(code) for code in _DTYPES.values()}


class WeightsError(ValueError):
    """A file that is not a whole safetensors file, or values that such a file can't hold."""


def save(
    state: Mapping[str, Any],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named arrays, such as `model.state_dict()`, to a safetensors file.

    state: arrays of any backend, or Tensors; written in C order whatever their memory order.
    metadata: text to keep with them; the entry "dualcnn_sha256" is `save`'s own.
    The file appears in one step: a write that fails leaves an older file as it was.
    Raises WeightsError for a type the format lacks, and OSError where `path` can't be written.

    >>> dualcnn.save(model.state_dict(), "model.safetensors")
    """
    from safetensors.numpy import save as serialize

    if not isinstance(state, Mapping):
        raise WeightsError(
            f"expected a dict of named arrays, such as model.state_dict(), got a "
            f"{type(state).__name__}"
        )
    if nested := [name for name, value in state.items() if isinstance(value, (Mapping, list))]:
        raise WeightsError(
            f"expected an array under each name, got a {type(state[nested[0]]).__name__} under "
            f"{nested[0]!r}; a safetensors file holds no nested state, so save each array under a "
            "name of its own"
        )
    if "__metadata__" in state:
        raise WeightsError('expected another name than "__metadata__", which is the format\'s own')
    notes = dict(metadata or {})
    if HASH in notes or not all(isinstance(v, str) for item in notes.items() for v in item):
        raise WeightsError(f'expected metadata of text by name, without "{HASH}", got {notes}')
    # The serializer writes the memory of an array as it lies: C order is for us to see to.
    arrays = {name: _plain(name, value) for name, value in state.items()}
    notes[HASH] = _digest(arrays, notes)
    write_file(path, serialize(arrays, notes))


def load(path: str | os.PathLike[str]) -> Arrays:
    """The arrays of a safetensors file by name, as NumPy arrays; `load_state_dict` takes them.

    They come in the order of the file, which is not the order they were saved in: safetensors
    writes wide types first, and those of one type by name. Files without a hash, such as
    PyTorch's, load as well; bfloat16 becomes float32.
    Raises WeightsError for a file that is cut short or changed or of another format.
    """
    return read(path)[0]


def read(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, str]]:
    """The arrays of a safetensors file, and its metadata without the hash; see `load`."""
    from safetensors import SafetensorError, deserialize

    content = Path(path).read_bytes()
    try:
        entries = deserialize(content)
    except SafetensorError as error:
        raise WeightsError(
            f"{path}: expected a whole safetensors file; it is cut short, changed or of another "
            f"format ({error})"
        ) from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    notes: dict[str, str] = header.pop("__metadata__", None) or {}
    # The entries come in the order of a hash table, another at each run.
    found = dict(entries)
    order = sorted(header, key=lambda name: header[name]["data_offsets"])
    arrays = {name: _array(path, name, found[name]) for name in order}
    expected = notes.pop(HASH, None)
    if expected is not None and expected != _digest(arrays, notes):
        raise WeightsError(
            f"{path}: the content does not have the SHA-256 that was stored with it, so the file "
            "was changed or damaged after it was written; use another copy"
        )
    return arrays, notes


def _plain(name: str, value: Any) -> npt.NDArray[Any]:
    if not (is_array(value) or hasattr(value, "__dlpack__") or hasattr(value, "__array__")):
        raise WeightsError(f"{name}: expected an array or a Tensor, got a {type(value).__name__}")
    array = np.array(to_numpy(value), order="C", copy=True)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.dtype not in _STORABLE:
        raise WeightsError(f"{name}: a safetensors file can't hold {array.dtype} values")
    return array


def _array(path: Any, name: str, entry: dict[str, Any]) -> npt.NDArray[Any]:
    kind = entry["dtype"]
    if kind not in _DTYPES:
        raise WeightsError(f"{path}: {name} has the type {kind}, which NumPy lacks")
    array = np.frombuffer(entry["data"], _DTYPES[kind]).reshape(entry["shape"])
    if kind == "BF16":
        return (array.astype("<u4") << 16).view("<f4")
    return array.copy()


def _digest(arrays: Mapping[str, npt.NDArray[Any]], notes: Mapping[str, str]) -> str:
    """The SHA-256 of names, types, shapes, values and metadata, in an order of its own.

    The serializer's order is not part of the format's promise.
    """
    import hashlib

    digest = hashlib.sha256(json.dumps(sorted(notes.items())).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
