"""The digits: bundled, found on disk, and downloaded from mirrors that misbehave."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dualcnn.data import DataFormatError, DownloadError, ImageDataset, mnist, mnist5k
from dualcnn.data.download import RemoteFile, cache_dir, download

# The package's attribute `mnist` is the function.
mnist_module: Any = importlib.import_module("dualcnn.data.mnist")

PUBLISHED_TRAIN = [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
PUBLISHED_TEST = [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
# MD5 sums of the unpacked files as they were published.
OFFICIAL_MD5 = {
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}


# The bundled digits.


def test_mnist5k_is_the_first_digits_of_mnist() -> None:
    train, test = mnist5k()
    assert (len(train), len(test)) == (5000, 1000)
    for part, labels in ((train, PUBLISHED_TRAIN), (test, PUBLISHED_TEST)):
        assert part.images.shape == (len(part), 1, 28, 28)
        assert part.images.dtype == np.uint8
        assert part.labels.dtype == np.int64
        assert part.labels[:10].tolist() == labels
        assert set(part.labels.tolist()) == set(range(10))
        assert part.classes == tuple("0123456789")
        # Ink on an empty border: the digits were fitted into the middle 20 x 20.
        assert part.images.max() == 255
        assert part.images[:, 0, 0, :].max() == 0


def test_the_bundle_is_small_licensed_and_without_time_stamps() -> None:
    folder = files("dualcnn.data") / "digits"
    archives = [item.read_bytes() for item in folder.iterdir() if item.name.endswith(".gz")]
    assert len(archives) == 4
    assert sum(map(len, archives)) < 1_200_000
    assert all(data[4:8] == bytes(4) for data in archives)
    licence = (folder / "LICENSE.md").read_text(encoding="utf-8")
    for words in ("CC BY-SA 3.0", "LeCun", "Cortes", "Burges"):
        assert words in licence


def whole_mnist() -> tuple[ImageDataset, ImageDataset]:
    try:
        return mnist(download=False)
    except FileNotFoundError as error:
        pytest.skip(f"needs the whole MNIST: {error}")


def test_the_whole_mnist_has_its_published_statistics() -> None:
    train, test = whole_mnist()
    assert np.bincount(train.labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert np.bincount(test.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert train.images.shape == (60000, 1, 28, 28)
    assert round(float(train.images.mean()) / 255, 4) == 0.1307
    assert round(float(train.images.std()) / 255, 4) == 0.3081
    bundled_train, bundled_test = mnist5k()
    for whole, part in ((train, bundled_train), (test, bundled_test)):
        assert np.array_equal(whole.images[: len(part)], part.images)
        assert np.array_equal(whole.labels[: len(part)], part.labels)


def test_the_hashes_are_of_the_published_files() -> None:
    folder = os.environ.get("DUALCNN_DATA")
    if not folder:
        pytest.skip("DUALCNN_DATA names no folder with the whole MNIST")
    for file in (file for part in mnist_module.FILES.values() for file in part):
        archive = Path(folder) / "mnist" / file.name
        if not archive.is_file():
            pytest.skip(f"{archive} is not there")
        content = gzip.decompress(archive.read_bytes())
        assert hashlib.md5(content).hexdigest() == OFFICIAL_MD5[file.name]
        assert hashlib.sha256(content).hexdigest() == file.sha256
        assert len(content) == file.size


# A stand-in for MNIST of a few images, on disk and on mirrors.


def tiny(name: str) -> bytes:
    """The unpacked stand-in of that file: 3 training and 2 test images."""
    count = 3 if name.startswith("train") else 2
    if "labels" in name:
        return struct.pack(">BBBBI", 0, 0, 8, 1, count) + bytes(range(count))
    pixels = bytes(i % 251 for i in range(count * 784))
    return struct.pack(">BBBBIII", 0, 0, 8, 3, count, 28, 28) + pixels


NAMES = tuple(OFFICIAL_MD5)
LABELS = NAMES[1]


def remote(name: str) -> RemoteFile:
    return RemoteFile(name, len(tiny(name)), hashlib.sha256(tiny(name)).hexdigest())


@pytest.fixture
def tiny_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """MNIST is `tiny`, no data is set, no mirror is known; returns the (empty) cache folder."""
    known = tuple(map(remote, NAMES))
    monkeypatch.setattr(mnist_module, "FILES", {"train": known[:2], "test": known[2:]})
    monkeypatch.setattr(mnist_module, "MIRRORS", ())
    monkeypatch.delenv("DUALCNN_DATA", raising=False)
    monkeypatch.setenv("DUALCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


def fill(folder: Path, packed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        if packed:
            (folder / name).write_bytes(gzip.compress(tiny(name)))
        else:
            (folder / name.removesuffix(".gz")).write_bytes(tiny(name))


def assert_tiny(result: tuple[ImageDataset, ImageDataset]) -> None:
    assert [len(part) for part in result] == [3, 2]
    assert result[0].labels.tolist() == [0, 1, 2]
    assert result[0].images[0, 0, 0, :3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["mnist", "MNIST/raw", "."])
@pytest.mark.parametrize("how", ["root", "DUALCNN_DATA", "DUALCNN_CACHE"])
def test_files_are_found_where_they_may_lie(
    tiny_mnist: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    place: str,
    packed: bool,
) -> None:
    fill(tmp_path / "here" / place, packed)
    if how != "root":
        monkeypatch.setenv(how, str(tmp_path / "here"))
    root = tmp_path / "here" if how == "root" else None
    assert_tiny(mnist(root, download=False))
    found = mnist_module.find_mnist(root)
    assert {name: path.parent for name, path in found.items()} == dict.fromkeys(
        NAMES, tmp_path / "here" / place
    )


def test_finding_reads_nothing_and_names_what_is_missing(tiny_mnist: Path, tmp_path: Path) -> None:
    assert mnist_module.find_mnist() == dict.fromkeys(NAMES)
    (tmp_path / LABELS).write_bytes(b"not MNIST")
    assert mnist_module.find_mnist(tmp_path) == {**dict.fromkeys(NAMES), LABELS: tmp_path / LABELS}


def test_a_bad_file_of_ones_own_is_named_and_not_replaced(
    tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tiny_mnist / "mnist")
    fill(tmp_path / "mine" / "mnist")
    bad = tmp_path / "mine" / "mnist" / LABELS
    changed = gzip.compress(tiny(LABELS)[:-1] + b"\x09")
    bad.write_bytes(changed)
    with pytest.raises(DataFormatError, match=r"mine.*SHA-256 \w{64}, found other content"):
        mnist(tmp_path / "mine")
    monkeypatch.setenv("DUALCNN_DATA", str(tmp_path / "mine"))
    with pytest.raises(DataFormatError, match=str(bad)):
        mnist()
    bad.write_bytes(gzip.compress(tiny(LABELS) + bytes(2**24)))
    with pytest.raises(DataFormatError, match=r"expected the 11 bytes .* found more than 11"):
        mnist()
    bad.write_bytes(b"")
    with pytest.raises(DataFormatError, match=r"expected the 11 bytes .* found 0"):
        mnist()
    assert bad.read_bytes() == b""


def test_without_download_a_missing_file_says_where_and_what_to_do(
    tiny_mnist: Path, tmp_path: Path
) -> None:
    fill(tmp_path / "mine")
    (tmp_path / "mine" / LABELS).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{LABELS} .*mine.*cache.*DUALCNN_DATA.*mnist5k"):
        mnist(tmp_path / "mine", download=False)


def test_the_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DUALCNN_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("DUALCNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "dualcnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "dualcnn"


# Downloads. The first part of a path on the server says how it misbehaves.


class Mirrors(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        kind, name = self.path.strip("/").split("/")
        self.asked.append(kind)
        archive = gzip.compress(tiny(name))
        if kind == "missing":
            self.send_error(404)
            return
        if kind == "silent":
            return
        body = {
            "html": b"<!DOCTYPE html><html>log in to the network</html>",
            "other": gzip.compress(tiny(name)[:-1] + b"\x09"),
            "cut": archive[: len(archive) // 2],
            "bomb": gzip.compress(tiny(name) + bytes(2**24)),
            "huge": bytes(2**20),
        }.get(kind, archive)
        self.send_response(200)
        if kind != "huge":
            self.send_header("Content-Length", str(len(body) + (100 if kind == "partial" else 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tiny_mnist: Path) -> Iterator[str]:
    Mirrors.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirrors) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


BAD_MIRRORS = {
    "missing": "404",
    "silent": "closed connection",
    "html": "a web page",
    "other": "other content",
    "cut": "a whole gzip file|transfer",
    "partial": "cut short",
    "bomb": "more than 11",
    "huge": "expected at most",
}


@pytest.mark.parametrize(("kind", "answer"), BAD_MIRRORS.items())
def test_a_bad_mirror_is_passed_over(server: str, tmp_path: Path, kind: str, answer: str) -> None:
    folder = tmp_path / "new"
    with pytest.raises(DownloadError, match=f"{server}/{kind}/{LABELS}: .*({answer})"):
        download(remote(LABELS), folder, [f"{server}/{kind}"])
    assert not folder.exists()
    content = download(remote(LABELS), folder, [f"{server}/{kind}", f"{server}/good"])
    assert content == tiny(LABELS)
    assert [path.name for path in folder.iterdir()] == [LABELS]
    assert gzip.decompress((folder / LABELS).read_bytes()) == tiny(LABELS)


def test_when_all_mirrors_fail_the_error_lists_them_and_says_what_to_do(
    server: str, tmp_path: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/mnist"
        mirrors = [f"{server}/html", nobody, f"{server}/missing/"]
        with pytest.raises(DownloadError) as caught:
            download(remote(LABELS), tmp_path, mirrors)
    first, *answers, advice = str(caught.value).splitlines()
    assert LABELS in first
    assert [line.split(": ")[0].strip() for line in answers] == [
        f"{mirror.rstrip('/')}/{LABELS}" for mirror in mirrors
    ]
    assert "refused" in answers[1]
    assert "DUALCNN_DATA" in advice
    assert "--data-dir" in advice
    assert "mnist5k" in advice
    assert list(tmp_path.glob("*.gz")) == []


def test_mnist_downloads_once_into_the_cache(
    server: str, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist_module, "MIRRORS", (f"{server}/html", f"{server}/good"))
    assert_tiny(mnist())
    assert sorted(path.name for path in (tiny_mnist / "mnist").iterdir()) == sorted(NAMES)
    assert len(Mirrors.asked) == 8
    assert_tiny(mnist())
    assert_tiny(mnist(download=False))
    assert len(Mirrors.asked) == 8


def test_mnist_downloads_into_root_when_it_is_given(
    server: str, tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist_module, "MIRRORS", (f"{server}/good",))
    assert_tiny(mnist(tmp_path / "root"))
    assert sorted(p.name for p in (tmp_path / "root" / "mnist").iterdir()) == sorted(NAMES)
    assert not tiny_mnist.exists()


def test_a_damaged_file_in_the_cache_is_fetched_again(
    server: str, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist_module, "MIRRORS", (f"{server}/good",))
    fill(tiny_mnist / "mnist")
    damaged = tiny_mnist / "mnist" / LABELS
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.raises(DataFormatError, match=str(damaged)):
        mnist(download=False)
    assert_tiny(mnist())
    assert Mirrors.asked == ["good"]
    assert gzip.decompress(damaged.read_bytes()) == tiny(LABELS)


@pytest.mark.parametrize("in_the_way", ["mnist", f"mnist/{LABELS}/folder"])
def test_a_cache_that_cannot_be_written_says_what_to_set(
    server: str, tmp_path: Path, in_the_way: str
) -> None:
    obstacle = tmp_path / in_the_way
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.write_bytes(b"")
    with pytest.raises(DownloadError, match=rf"could not write .*{LABELS}.*set DUALCNN_CACHE"):
        download(remote(LABELS), tmp_path / "mnist", [f"{server}/good"])
    assert list(tmp_path.rglob("*.part")) == []


def test_processes_may_download_the_same_file_at_once(server: str, tmp_path: Path) -> None:
    images = NAMES[0]
    code = (
        "import sys; from pathlib import Path; from dualcnn.data.download import *\n"
        "name, size, sha, folder, mirror = sys.argv[1:]\n"
        "for _ in range(20): download(RemoteFile(name, int(size), sha), Path(folder), [mirror])\n"
    )
    args = (*map(str, remote(images)), str(tmp_path / "new"), f"{server}/good")
    running = [
        subprocess.Popen([sys.executable, "-c", code, *args], cwd=Path(__file__).parents[1])
        for _ in range(3)
    ]
    assert [process.wait(timeout=300) for process in running] == [0, 0, 0]
    assert [path.name for path in (tmp_path / "new").iterdir()] == [images]
    assert gzip.decompress((tmp_path / "new" / images).read_bytes()) == tiny(images)
