"""CIFAR-10 from its binary files: where they are found, what they hold, what is refused."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dualcnn.data import DataFormatError, ImageDataset, cifar, cifar10

NAMES = (*cifar.TRAIN, *cifar.TEST)
REAL = os.environ.get("DUALCNN_DATA")


@pytest.fixture(autouse=True)
def no_data_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DUALCNN_DATA", raising=False)
    monkeypatch.setenv("DUALCNN_CACHE", str(tmp_path / "cache"))


def record(label: int, first: int) -> bytes:
    """Pixels that count up, so that each knows its channel, row and column."""
    return bytes([label]) + ((np.arange(3072) + first) % 251).astype("uint8").tobytes()


def contents() -> dict[str, bytes]:
    """Six files of two images each."""
    return {name: record(i, 10 * i) + record(9 - i, 10 * i + 5) for i, name in enumerate(NAMES)}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def pack(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in others:
            archive.addfile(member)
    return path


def check(train: ImageDataset, test: ImageDataset) -> None:
    assert train.images.shape == (10, 3, 32, 32)
    assert test.images.shape == (2, 3, 32, 32)
    assert train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert test.labels.tolist() == [5, 4]
    assert train.classes[3] == "cat"
    assert len(train.classes) == 10
    # The second image of the third file, its green channel, row 2, column 7.
    assert train.images[5, 1, 2, 7] == (25 + 1024 + 2 * 32 + 7) % 251


@pytest.mark.parametrize(
    "place", ["", "cifar-10-batches-bin", "cifar10", "cifar10/cifar-10-batches-bin"]
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("named", ["root", "DUALCNN_DATA", "DUALCNN_CACHE"])
def test_files_and_archives_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, packed: bool, named: str
) -> None:
    folder = tmp_path / "data" / place
    if packed:
        pack(folder / "cifar-10-binary.tar.gz", contents())
    else:
        write(folder, contents())
    if named == "root":
        check(*cifar10(tmp_path / "data"))
    else:
        monkeypatch.setenv(named, str(tmp_path / "data"))
        check(*cifar10())


def test_the_archive_itself_may_be_named(tmp_path: Path) -> None:
    check(*cifar10(pack(tmp_path / "any name.tgz", contents())))


def test_root_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dict.fromkeys(NAMES, record(7, 0))
    monkeypatch.setenv("DUALCNN_DATA", str(write(tmp_path / "other", other)))
    assert cifar10()[1].labels.tolist() == [7]
    check(*cifar10(write(tmp_path / "own", contents())))


def test_without_files_it_says_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not in .*mine.*cache.*: download https://www.cs"):
        cifar10(tmp_path / "mine")
    (tmp_path / "mine" / "cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="batches-py is the version for Python, and the bi"):
        cifar10(tmp_path / "mine")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    files = contents()
    del files["data_batch_4.bin"]
    with pytest.raises(FileNotFoundError, match=r"a part of CIFAR-10: data_batch_4.bin missing"):
        cifar10(write(tmp_path / "folder", files))
    with pytest.raises(DataFormatError, match=r"expected data_batch_4.bin in the archive"):
        cifar10(pack(tmp_path / "archive.tar.gz", files))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"whole records of 3073 bytes .*found 0 bytes"),
        (record(1, 0)[:-1], r"found 3072 bytes, which is 0 records and 3072 bytes"),
        (record(1, 0) * 2 + b"\0", r"found 6147 bytes, which is 2 records and 1 bytes"),
        (record(1, 0) + record(10, 0), r"labels from 0 to 9, found 10 in record 1 \(1 out"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, packed: bool, content: bytes, message: str) -> None:
    files = contents() | {"data_batch_2.bin": content}
    place = pack(tmp_path / "a.tar.gz", files) if packed else write(tmp_path / "folder", files)
    with pytest.raises(DataFormatError, match=rf"data_batch_2.bin: expected .*{message}"):
        cifar10(place)


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (member("../data_batch_1.bin"), "'../data_batch_1.bin', which lies outside"),
        (member("a/../../b"), "which lies outside"),
        (member("/etc/passwd"), "'/etc/passwd', which lies outside"),
        (member("test_batch.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "which is a link"),
        (member("test_batch.bin", type=tarfile.LNKTYPE, linkname="x"), "which is a link"),
    ],
)
def test_archives_that_reach_out_are_refused(
    tmp_path: Path, other: tarfile.TarInfo, message: str
) -> None:
    with pytest.raises(
        DataFormatError, match=f"expected plain files in folders, found .*{message}"
    ):
        cifar10(pack(tmp_path / "a.tar.gz", contents(), other))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    header = member("data_batch_1.bin", size=1 << 40).tobuf()
    (tmp_path / "a.tar").write_bytes(header + bytes(1024))
    with pytest.raises(
        DataFormatError, match=r"at most 268435456 bytes, found .* of 1099511627776"
    ):
        cifar10(tmp_path / "a.tar")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_broken_archive_is_refused(tmp_path: Path, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 3072, "uint8").tobytes()
    path = pack(tmp_path / "a.tar.gz", dict.fromkeys(NAMES, b"\1" + noise))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataFormatError, match=r"a.tar.gz: expected a whole tar archive"):
        cifar10(path)


def test_the_real_files() -> None:
    if REAL is None:
        pytest.skip("DUALCNN_DATA names no folder with the binary files of CIFAR-10")
    try:
        train, test = cifar10(REAL)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
