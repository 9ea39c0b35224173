"""Images with labels, held on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from .idx import DataFormatError, Source, read_idx, source_name

__all__ = ["ImageDataset"]

Index = slice | Sequence[int] | npt.NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """Images with one label each; checked when made, and read-only from then on.

    images: (N, C, H, W) uint8. labels: (N,) integers, 0 <= label < len(classes), kept as int64.
    classes: the name of each class. name: what messages call the data set.
    The arrays are seen through read-only views of those given, which are not copied.

    `len(ds)` is N; `ds[10:20]`, `ds[[3, 1]]` and `ds[mask]` are data sets, `ds[0]` is a pair
    (image, label).
    Raises DataFormatError where images and labels don't fit the above.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    name: str = "data set"

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if isinstance(self.classes, (int, str)):
            raise DataFormatError(
                f"{self.name}: expected the name of each class, got {self.classes!r}. Fix: "
                "classes=tuple(range(10)) numbers ten"
            )
        classes = tuple(map(str, self.classes))
        self._check(images, labels, len(classes))
        object.__setattr__(self, "images", _read_only(images))
        object.__setattr__(self, "labels", _read_only(labels.astype(np.int64, copy=False)))
        object.__setattr__(self, "classes", classes)

    def _check(self, images: npt.NDArray[Any], labels: npt.NDArray[Any], classes: int) -> None:
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataFormatError(
                f"{self.name}: expected images of shape (N, C, H, W) and dtype uint8 (0 to 255), "
                f"found {images.shape} {images.dtype}"
            )
        if images.shape[1] > 4 and images.shape[3] <= 4:
            raise DataFormatError(
                f"{self.name}: expected images of shape (N, C, H, W), found {images.shape}, "
                "which looks like (N, H, W, C): pass images.transpose(0, 3, 1, 2)"
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataFormatError(
                f"{self.name}: expected labels of shape (N,) and an integer dtype, "
                f"found {labels.shape} {labels.dtype}"
            )
        if len(images) != len(labels):
            raise DataFormatError(
                f"{self.name}: expected one label an image, "
                f"found {len(images)} images and {len(labels)} labels"
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= classes))
        if wrong.size:
            raise DataFormatError(
                f"{self.name}: expected labels from 0 to {classes - 1} ({classes} classes), "
                f"found {labels[wrong[0]]} at index {wrong[0]} ({wrong.size} out of range)"
            )

    @classmethod
    def from_idx(
        cls,
        images: Source,
        labels: Source,
        classes: Sequence[str],
        name: str = "data set",
        *,
        images_name: str | None = None,
        labels_name: str | None = None,
    ) -> ImageDataset:
        """Read a data set from two IDX files: images (N, H, W) of uint8 and labels (N,).

        images, labels: the paths of the files, or their bytes.
        images_name, labels_name: what error messages call the files (their paths by default).
        Raises DataFormatError, naming the file or files, where they don't hold that.
        """
        images_name, labels_name = (
            source_name(images, images_name),
            source_name(labels, labels_name),
        )
        pixels = read_idx(images, name=images_name)
        if pixels.ndim != 3:
            raise DataFormatError(
                f"{images_name}: expected images in 3 dimensions (N, H, W), found {pixels.shape}"
            )
        values = read_idx(labels, name=labels_name)
        try:
            return cls(pixels[:, None], values, tuple(classes), name)
        except DataFormatError as error:
            raise DataFormatError(f"{images_name} with {labels_name}: {error}") from None

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]: ...
    @overload
    def __getitem__(self, index: Index) -> ImageDataset: ...
    def __getitem__(self, index: int | Index) -> ImageDataset | tuple[npt.NDArray[np.uint8], int]:
        if isinstance(index, int | np.integer):
            return self.images[index], int(self.labels[index])
        return ImageDataset(self.images[index], self.labels[index], self.classes, self.name)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return (
            f"ImageDataset({self.name}: {len(self)} images of {shape}, {len(self.classes)} classes)"
        )


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
