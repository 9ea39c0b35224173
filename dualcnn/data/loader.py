"""Batches from arrays that live where the training runs, or that come there batch by batch."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import backend as backends
from .. import random
from ..autograd import Tensor
from ..backend import Array, Backend
from ..ops.geometry import channels_first, channels_last
from ..random import Stream
from .dataset import ImageDataset

__all__ = ["DataLoader"]

Augment = Callable[[Array, Stream], Array]
Rows = Iterator[Sequence[Array]]


class DataLoader:
    """Batches (x, y) of Tensors, sliced from a data set that is moved to the backend once.

    dataset: an ImageDataset, or a pair of arrays (x, y) of any backend, both of shape (N, ...).
    batch_size: samples in a batch; the last may be shorter, or is left out with drop_last.
    shuffle: a new order each epoch, drawn from (seed, epoch): the same on every backend.
    backend: where the data goes, by name or as a Backend; the current one by default.
    mean, std: one number, or one a channel (axis 1): x becomes (x - mean) / std, after the scaling
        of uint8.
    dtype: of the inputs. uint8 ones stay so in memory and are scaled to [0, 1] batch by batch;
        floating ones are converted once, and so are floating targets. Integer targets are int64.
    transform: called with the array of each batch's inputs; returns what takes its place.
    augment: one or more of `data.RandomCrop` and its like, or functions of (x, stream); called
        with each batch as it lies in memory, uint8 where the data is, before it is scaled. The
        streams depend on (seed, epoch, step) and the place in the list alone.
    resident: False leaves the data on the host, for more of it than the device holds: a batch is
        sent while the one before is worked on. x and y hold the same bits either way.
    epoch: the number of the next pass; it counts up as passes begin, and `set_epoch` sets it.

    `len(loader)` is the number of batches. Raises ValueError or TypeError, with what to change, for
    data that is empty or doesn't fit together.

    Example: for x, y in DataLoader(train, batch_size=128, shuffle=True): ...
    """

    def __init__(
        self,
        dataset: ImageDataset | Sequence[Any],
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        backend: str | Backend | None = None,
        transform: Callable[[Array], Array] | None = None,
        dtype: str = "float32",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        augment: Augment | Sequence[Augment] = (),
        resident: bool = True,
    ) -> None:
        self.dataset = dataset
        self.batch_size = _batch_size(batch_size)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = operator.index(seed)
        self.epoch = 0
        self._first = 0
        self.transform = transform
        self.augment = (augment,) if callable(augment) else tuple(augment)
        self.backend = be = backends.current() if backend is None else backends.get(backend)
        self.resident = resident
        self._dtype = be.dtype(dtype)
        home = be if resident else backends.get("numpy")
        x, y = (backends.asarray(part, backend=home) for part in _pair(dataset))
        self._samples = _length(x, y)
        if drop_last and self._samples < self.batch_size:
            raise ValueError(
                f"drop_last=True leaves no batch: {self._samples} samples, batch_size "
                f"{self.batch_size}; use a smaller batch_size or drop_last=False"
            )
        _check_inputs(home, x)
        self._channels = x.shape[1] if x.ndim > 1 else 1
        bytes_of_pixels = x.dtype == home.dtype("uint8")
        self._full = 255.0 if bytes_of_pixels else 1.0
        self._target = self._dtype if home.is_floating(y) else be.dtype("int64")
        if resident:
            # Channels last underneath, like all feature maps, so a batch is whole rows of memory.
            x = be.contiguous(_rows(be, x if bytes_of_pixels else be.asarray(x, self._dtype)))
            y = be.asarray(y, self._target)
        self._x, self._y = x, y
        self._affine = self._normalisation(mean, std)
        self._spread: dict[int, tuple[Array, Array]] = {}
        if self._affine is not None:
            self._affine_of(math.prod(x.shape[1:]))

    def __len__(self) -> int:
        whole, rest = divmod(self._samples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Make `epoch` the number of the next pass, which fixes its order, and `step` its first
        batch: from there on it is as if the batches before had been taken.
        """
        if not 0 <= step <= len(self):
            raise ValueError(f"expected a step from 0 to {len(self)}, the batches, got {step}")
        self.epoch, self._first = operator.index(epoch), operator.index(step)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, first = self.epoch, self._first
        self.epoch, self._first = epoch + 1, 0
        return self._batches(epoch, first)

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        order: Any = None
        if self.shuffle:
            order = random.permutation(self._samples, self.seed, epoch)
        starts = range(0, len(self) * self.batch_size, self.batch_size)[first:]
        parts = [slice(n, min(n + self.batch_size, self._samples)) for n in starts]
        rows = (self._here if self.resident else self._sent)(order, parts)
        for step, (x, y) in enumerate(rows, first):
            yield Tensor(self._prepared(x, epoch, step)), Tensor(y)

    def _here(self, order: Any, parts: list[slice]) -> Rows:
        """Rows of the data, which lies on the backend: views, or copies in that order."""
        take = self.backend.xp.take
        if order is not None:
            order = self.backend.asarray(order)
        for part in parts:
            if order is None:
                yield self._x[part, ...], self._y[part, ...]
            else:
                index = order[part]
                yield take(self._x, index, axis=0), take(self._y, index, axis=0)

    def _sent(self, order: Any, parts: list[slice]) -> Rows:
        """Rows of the data, which lies on the host, in memory that the next but one batch takes."""
        be = self.backend
        wanted = parts if order is None else [order[part] for part in parts]
        for x, y in be.upload((self._x, self._y), self.batch_size, wanted):
            yield be.contiguous(_rows(be, x)), be.xp.astype(y, self._target, copy=True)

    def _prepared(self, rows: Array, epoch: int, step: int) -> Array:
        be, n = self.backend, rows.shape[0]
        if self.augment:
            # An augmentation of the user's own may write into what it gets: that must be a copy.
            if not (self.shuffle and self.resident):
                rows = be.copy(rows)
            x = channels_first(be, rows) if rows.ndim > 2 else rows
            for layer, augment in enumerate(self.augment):
                x = augment(x, random.batch_stream(self.seed, epoch, step, layer))
                self._check_result("augment", x, n)
            rows = be.contiguous(_rows(be, x))
            self._check_channels(rows)
        # Always a copy: `rows` may be a view of the data, and the lines below and transform write.
        x = be.xp.astype(rows, self._dtype, copy=True)
        if self._affine is not None:
            scale, shift = self._affine_of(math.prod(x.shape[1:]))
            flat = be.reshape(x, (n, scale.shape[0]))
            flat *= scale
            flat += shift
            x = be.reshape(flat, tuple(x.shape))
        elif self._full != 1.0:
            x /= self._full
        x = channels_first(be, x) if x.ndim > 2 else x
        if self.transform is None:
            return x
        result = self.transform(x)
        self._check_result("transform", result, n)
        return result

    def _check_result(self, name: str, result: Any, n: int) -> None:
        if not self.backend.owns(result) or result.shape[:1] != (n,):
            raise ValueError(
                f"expected {name} to return {n} samples in an array of {self.backend.name}, as it "
                f"was given; it returned a {type(result).__name__} of shape "
                f"{getattr(result, 'shape', None)}"
            )

    def _check_channels(self, rows: Array) -> None:
        channels = rows.shape[-1] if rows.ndim > 1 else 1
        if self._affine is not None and channels != self._channels:
            raise ValueError(
                f"expected augment to keep the {self._channels} channels that mean and std are of, "
                f"it returned {channels}; change the number of channels before the loader, or "
                "normalise in transform"
            )

    def _normalisation(
        self, mean: float | Sequence[float] | None, std: float | Sequence[float] | None
    ) -> tuple[list[float], list[float]] | None:
        """(scale, shift) a channel with x * scale + shift == (x / full - mean) / std."""
        if mean is None and std is None:
            return None
        means = _per_channel("mean", 0.0 if mean is None else mean, self._channels)
        stds = _per_channel("std", 1.0 if std is None else std, self._channels)
        if not all(s > 0 for s in stds):
            raise ValueError(f"expected every std above 0, got {std}")
        scale = [1.0 / (self._full * s) for s in stds]
        shift = [-m / s for m, s in zip(means, stds, strict=True)]
        return scale, shift

    def _affine_of(self, length: int) -> tuple[Array, Array]:
        """Scale and shift of a whole sample of that many values: one number a channel makes inner
        loops of 3, and 512 images of CIFAR-10 took 5.0 ms where these take 0.5.
        """
        assert self._affine is not None
        if length not in self._spread:
            scale, shift = (
                self.backend.asarray(values * (length // self._channels), self._dtype)
                for values in self._affine
            )
            self._spread[length] = scale, shift
        return self._spread[length]


def _rows(be: Backend, x: Array) -> Array:
    return channels_last(be, x) if x.ndim > 2 else x


def _check_inputs(be: Backend, x: Array) -> None:
    if x.dtype != be.dtype("uint8") and not be.is_floating(x):
        raise TypeError(
            f"expected inputs of dtype uint8, which are scaled to [0, 1], or floating, which are "
            f"taken as they are; got {x.dtype}: convert them to one of the two"
        )


def _pair(dataset: Any) -> tuple[Any, Any]:
    if isinstance(dataset, ImageDataset):
        return dataset.images, dataset.labels
    if isinstance(dataset, tuple | list) and len(dataset) == 2:
        return dataset[0], dataset[1]
    raise TypeError(
        f"expected an ImageDataset or a pair of arrays (x, y), got a {type(dataset).__name__}"
    )


def _length(x: Array, y: Array) -> int:
    if not x.shape or not y.shape or x.shape[0] != y.shape[0]:
        raise ValueError(
            "expected x of shape (N, ...) and y of shape (N, ...) with one target a sample, got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.shape[0] == 0:
        raise ValueError("expected at least one sample, got an empty data set")
    return int(x.shape[0])


def _batch_size(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"expected batch_size to be an integer of at least 1, got {value!r}")
    return value


def _per_channel(name: str, value: float | Sequence[float], channels: int) -> list[float]:
    values = [float(v) for v in np.ravel(value)]
    if len(values) not in (1, channels):
        raise ValueError(
            f"expected {name} to be one number or {channels}, one a channel; got {len(values)}"
        )
    return values * (channels // len(values))
