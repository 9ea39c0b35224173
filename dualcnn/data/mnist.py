"""MNIST: handwritten digits, 28 x 28 grey pixels, in the original order.

LeCun, Cortes and Burges, "The MNIST database of handwritten digits",
http://yann.lecun.com/exdb/mnist, CC BY-SA 3.0; described in LeCun, Bottou, Bengio and Haffner,
"Gradient-based learning applied to document recognition", Proceedings of the IEEE 86, 1998.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .dataset import ImageDataset
from .download import RemoteFile, cache_dir, download, read_verified
from .idx import DataFormatError

__all__ = ["find_mnist", "mnist", "mnist5k"]

CLASSES = tuple("0123456789")

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
    "https://raw.githubusercontent.com/fgnt/mnist/master",
)

# Of each part, the images and the labels.
FILES = {
    "train": (
        RemoteFile(
            "train-images-idx3-ubyte.gz",
            47040016,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        RemoteFile(
            "train-labels-idx1-ubyte.gz",
            60008,
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
    ),
    "test": (
        RemoteFile(
            "t10k-images-idx3-ubyte.gz",
            7840016,
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        RemoteFile(
            "t10k-labels-idx1-ubyte.gz",
            10008,
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
}

# Under a data folder: ours, torchvision's, or the files themselves.
_SUBFOLDERS = ("mnist", "MNIST/raw", "")


def mnist5k() -> tuple[ImageDataset, ImageDataset]:
    """The first 5,000 training and the first 1,000 test images of MNIST, which come with dualcnn.

    Returns (train, test); images (N, 1, 28, 28) uint8, 0 background to 255 ink; classes "0" to "9".
    """
    from importlib.resources import files

    folder = files("dualcnn.data") / "digits"
    return _datasets("mnist5k", lambda file: (folder / file.name).read_bytes())


def mnist(
    root: str | os.PathLike[str] | None = None, download: bool = True
) -> tuple[ImageDataset, ImageDataset]:
    """The whole of MNIST, 60,000 training and 10,000 test images, as (train, test); see mnist5k.

    Each of the four IDX files, plain or under gzip, is looked for in `root`, in the folder that
    the environment variable DUALCNN_DATA names, and in the cache (DUALCNN_CACHE, else dualcnn in
    the user's cache folder): there in mnist/, in MNIST/raw/ (torchvision's place), and directly.
    What is in none of them is downloaded, if `download`, into `root` if given, else into the cache.
    Every file is checked by the SHA-256 of its unpacked content.

    Raises DataFormatError for a file in `root` or DUALCNN_DATA that is not MNIST's (one in the
    cache is downloaded again), FileNotFoundError when `download` is False and a file is missing,
    and DownloadError, which says what each mirror answered and what to do without a network.
    """
    own = _own_folders(root)
    return _datasets("mnist", lambda file: _content(file, own, root, download))


def find_mnist(root: str | os.PathLike[str] | None = None) -> dict[str, Path | None]:
    """Where each file of MNIST lies, by its name; None for one that `mnist` would download.

    Looks where `mnist(root)` looks, and reads none of them.
    """
    folders = [*_own_folders(root), cache_dir()]
    return {
        file.name: next((path for folder in folders if (path := _find(folder, file.name))), None)
        for part in FILES.values()
        for file in part
    }


def _own_folders(root: str | os.PathLike[str] | None) -> list[Path]:
    return [Path(folder) for folder in (root, os.environ.get("DUALCNN_DATA")) if folder]


def _datasets(
    name: str, content: Callable[[RemoteFile], bytes]
) -> tuple[ImageDataset, ImageDataset]:
    train, test = (
        ImageDataset.from_idx(
            content(images),
            content(labels),
            CLASSES,
            f"{name} {part}",
            images_name=images.name,
            labels_name=labels.name,
        )
        for part, (images, labels) in FILES.items()
    )
    return train, test


def _content(
    file: RemoteFile, own: list[Path], root: str | os.PathLike[str] | None, fetch: bool
) -> bytes:
    for folder in own:
        if path := _find(folder, file.name):
            return read_verified(path, file)
    cache = cache_dir()
    if path := _find(cache, file.name):
        try:
            return read_verified(path, file)
        except DataFormatError:
            if not fetch:
                raise
    if fetch:
        return download(file, (Path(root) if root else cache) / "mnist", MIRRORS)
    raise FileNotFoundError(
        f"{file.name} is not in {', '.join(map(str, [*own, cache]))}; allow download=True, or "
        "set DUALCNN_DATA to a folder that has it in mnist/, or use data.mnist5k(), which needs no "
        "files"
    )


def _find(folder: Path, name: str) -> Path | None:
    for subfolder in _SUBFOLDERS:
        for path in (folder / subfolder / name, folder / subfolder / name.removesuffix(".gz")):
            if path.is_file():
                return path
    return None
