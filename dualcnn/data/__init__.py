"""Real input: file formats, data sets, bundled and downloaded digits, and the loader of batches."""

from .augment import Augmentation, Cutout, RandomCrop, RandomHorizontalFlip, RandomTranslate
from .cifar import cifar10
from .dataset import ImageDataset
from .download import DownloadError
from .idx import DataFormatError, read_idx
from .loader import DataLoader
from .mnist import mnist, mnist5k

__all__ = [
    "Augmentation",
    "Cutout",
    "DataFormatError",
    "DataLoader",
    "DownloadError",
    "ImageDataset",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomTranslate",
    "cifar10",
    "mnist",
    "mnist5k",
    "read_idx",
]
