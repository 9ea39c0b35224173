"""CIFAR-10: photographs of ten kinds of things, 32 x 32 pixels in colour.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html. Its binary version is read; the one for Python is a
pickle, which runs what it likes when it is loaded.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .dataset import ImageDataset
from .download import cache_dir
from .idx import DataFormatError

__all__ = ["cifar10"]

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = ("test_batch.bin",)
ARCHIVE = "cifar-10-binary.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"

IMAGE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
"""Bytes of an image: its label, then its red, green and blue pixels, row by row."""

MAX_MEMBER = 1 << 28
"""Bytes of the largest file that an archive may hold; the official ones have 31 million."""

# Under a data folder: the name inside the official archive, ours, or the files themselves.
_SUBFOLDERS = ("cifar-10-batches-bin", "cifar10", "cifar10/cifar-10-batches-bin", "")
_PICKLED = ("cifar-10-batches-py", "cifar-10-python.tar.gz")

Records = npt.NDArray[np.uint8]


def cifar10(root: str | os.PathLike[str] | None = None) -> tuple[ImageDataset, ImageDataset]:
    """CIFAR-10, 50,000 training and 10,000 test images, as (train, test).

    Returns images (N, 3, 32, 32) uint8, 0 to 255, in the order of the files; classes "airplane"
    to "truck". The six files of the binary version (data_batch_1.bin to data_batch_5.bin,
    test_batch.bin), or their archive cifar-10-binary.tar.gz, are looked for in `root` (which may be
    the archive), in the folder that the environment variable DUALCNN_DATA names, and in the cache
    (DUALCNN_CACHE, else dualcnn in the user's cache folder): there in cifar-10-batches-bin/, in
    cifar10/, and directly. Nothing is downloaded. Files of fewer images than the official ones are
    read too.

    Raises FileNotFoundError, which says where to get the files, and DataFormatError, which names
    the file, where one doesn't hold whole images with labels from 0 to 9.

    >>> train, test = data.cifar10("downloads")
    """
    folders = [Path(f) for f in (root, os.environ.get("DUALCNN_DATA"), cache_dir()) if f]
    records = _records(folders)
    train, test = (
        _dataset([records[name] for name in names], f"cifar10 {part}")
        for part, names in (("train", TRAIN), ("test", TEST))
    )
    return train, test


def _records(folders: Sequence[Path]) -> dict[str, Records]:
    """What each of the six files holds, by its name."""
    for folder in folders:
        if folder.is_file():
            return _from_archive(folder)
        for subfolder in _SUBFOLDERS:
            place = folder / subfolder
            if any((place / name).is_file() for name in (*TRAIN, *TEST)):
                return _from_folder(place)
            if (place / ARCHIVE).is_file():
                return _from_archive(place / ARCHIVE)
    raise FileNotFoundError(
        f"CIFAR-10 is not in {', '.join(map(str, folders))}: {_pickled(folders)}download {URL} "
        "(170 MB) into one of these folders, or set DUALCNN_DATA to a folder that has it, packed "
        "or unpacked"
    )


def _pickled(folders: Iterable[Path]) -> str:
    """A word on the version for Python, where that is what there is."""
    for folder in folders:
        for place in (folder, folder / "cifar10"):
            for name in _PICKLED:
                if (place / name).exists():
                    return f"{place / name} is the version for Python, and the binary one is read; "
    return ""


def _from_folder(folder: Path) -> dict[str, Records]:
    missing = [name for name in (*TRAIN, *TEST) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has only a part of CIFAR-10: {', '.join(missing)} missing; unpack {URL} anew"
        )
    return {
        name: _checked(folder / name, (folder / name).stat().st_size, (folder / name).read_bytes)
        for name in (*TRAIN, *TEST)
    }


def _from_archive(path: Path) -> dict[str, Records]:
    found: dict[str, Records] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                _check_member(path, member)
                name = member.name.rpartition("/")[2]
                content = archive.extractfile(member) if name in (*TRAIN, *TEST) else None
                if content is not None:
                    found[name] = _checked(f"{path}: {name}", member.size, content.read)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataFormatError(f"{path}: expected a whole tar archive, found: {error}") from error
    if missing := [name for name in (*TRAIN, *TEST) if name not in found]:
        raise DataFormatError(f"{path}: expected {', '.join(missing)} in the archive, found none")
    return found


def _check_member(path: Path, member: tarfile.TarInfo) -> None:
    """Nothing is unpacked to the disk, but an archive that tries to reach out is not CIFAR-10."""
    plain = member.isfile() or member.isdir()
    if not plain or member.name.startswith("/") or ".." in member.name.split("/"):
        raise DataFormatError(
            f"{path}: expected plain files in folders, found {member.name!r}, "
            + ("which lies outside" if plain else "which is a link or a device")
        )
    if member.size > MAX_MEMBER:
        raise DataFormatError(
            f"{path}: expected files of at most {MAX_MEMBER} bytes, found {member.name!r} of "
            f"{member.size}"
        )


def _checked(name: object, size: int, read: Callable[[], bytes]) -> Records:
    """The records (N, 3073) of a file of that many bytes, which is read only if they fit."""
    if size == 0 or size % RECORD:
        raise DataFormatError(
            f"{name}: expected whole records of {RECORD} bytes (a label and 3 x 32 x 32 pixels), "
            f"found {size} bytes, which is {size // RECORD} records and {size % RECORD} bytes"
        )
    records = np.frombuffer(read(), np.uint8).reshape(-1, RECORD)
    wrong = np.flatnonzero(records[:, 0] >= len(CLASSES))
    if wrong.size:
        raise DataFormatError(
            f"{name}: expected labels from 0 to {len(CLASSES) - 1}, found {records[wrong[0], 0]} "
            f"in record {wrong[0]} ({wrong.size} out of range)"
        )
    return records


def _dataset(parts: list[Records], name: str) -> ImageDataset:
    images: npt.NDArray[Any] = np.concatenate([part[:, 1:] for part in parts])
    labels = np.concatenate([part[:, 0] for part in parts])
    return ImageDataset(images.reshape(-1, *IMAGE), labels, CLASSES, name)
