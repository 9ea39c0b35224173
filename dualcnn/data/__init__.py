"""Real input: IDX files, data sets, bundled and downloaded digits, and the loader of batches."""

from .dataset import ImageDataset
from .download import DownloadError
from .idx import DataFormatError, read_idx
from .loader import DataLoader
from .mnist import mnist, mnist5k

__all__ = [
    "DataFormatError",
    "DataLoader",
    "DownloadError",
    "ImageDataset",
    "mnist",
    "mnist5k",
    "read_idx",
]
