"""Data sets and the loader: what a batch holds, in which order, and what it costs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import stand_in

from dualcnn import backend
from dualcnn.backend import Backend
from dualcnn.data import DataFormatError, DataLoader, ImageDataset

CLASSES = tuple("abcdefg")


def images(n: int = 7, channels: int = 3, height: int = 4, width: int = 5) -> Any:
    count = n * channels * height * width
    return (np.arange(count) * 37 % 256).astype(np.uint8).reshape(n, channels, height, width)


def dataset(n: int = 7, **sizes: int) -> ImageDataset:
    """Image i has label i, so that an order can be read off the labels."""
    return ImageDataset(images(n, **sizes), np.arange(n), tuple(map(str, range(n))), "toy")


def host(x: Any) -> Any:
    return backend.to_numpy(x)


def order_of(loader: DataLoader) -> list[int]:
    return [int(label) for _, y in loader for label in host(y)]


# The data set.


def test_a_dataset_slices_and_indexes() -> None:
    ds = dataset()
    assert len(ds) == 7
    assert ds.labels.dtype == np.int64
    assert ds.classes == tuple("0123456")
    assert repr(ds) == "ImageDataset(toy: 7 images of 3x4x5, 7 classes)"
    assert ds[2:5].labels.tolist() == [2, 3, 4]
    assert ds[[5, 0]].labels.tolist() == [5, 0]
    assert np.array_equal(ds[np.array([5, 0])].images, images()[[5, 0]])
    assert ds[ds.labels > 4].labels.tolist() == [5, 6]
    assert ds[-1:].name == "toy"
    image, label = ds[3]
    assert np.array_equal(image, images()[3])
    assert label == 3
    assert type(label) is int
    assert [label for _, label in ds] == list(range(7))


def test_a_dataset_cannot_be_changed() -> None:
    ds = dataset()
    for array in (ds.images, ds.labels, ds[1:].images, ds[2][0]):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        ds.images = ds.images[1:]  # type: ignore[misc]


def test_a_dataset_does_not_lock_the_arrays_it_was_given() -> None:
    own = images()
    ds = ImageDataset(own, np.arange(7), CLASSES)
    own[0] = 1
    assert own.flags.writeable
    assert not ds.images.flags.writeable


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (images().astype("float64"), np.arange(7), r"dtype uint8 .*found \(7, 3, 4, 5\) float64"),
        (images().astype("int64"), np.arange(7), "dtype uint8 .*int64"),
        (images()[:, 0], np.arange(7), r"shape \(N, C, H, W\).*found \(7, 4, 5\)"),
        (images(channels=28, width=3), np.arange(7), r"transpose\(0, 3, 1, 2\)"),
        (images(), np.arange(6), "found 7 images and 6 labels"),
        (images(), np.arange(7.0), r"integer dtype, found \(7,\) float64"),
        (images(), np.eye(7, dtype=int), r"shape \(N,\).*found \(7, 7\)"),
        (images(), np.array([0, 1, 2, 7, 3, 9, 1]), r"0 to 6 .*found 7 at index 3 \(2 out"),
        (images(), np.array([0, 1, 2, 3, -1, 0, 1]), "found -1 at index 4"),
        (images(), np.full(7, 2**64 - 1, np.uint64), "found 18446744073709551615 at index 0"),
    ],
)
def test_a_bad_dataset_says_what_was_expected_and_found(
    pixels: Any, labels: Any, message: str
) -> None:
    with pytest.raises(DataFormatError, match=rf"^toy: expected .*{message}"):
        ImageDataset(pixels, labels, CLASSES, "toy")


@pytest.mark.parametrize("classes", [10, "cats"])
def test_classes_are_named_one_by_one(classes: Any) -> None:
    with pytest.raises(DataFormatError, match="the name of each class, got"):
        ImageDataset(images(), np.arange(7), classes, "toy")


def test_from_idx_reads_a_pair_of_files(tmp_path: Any) -> None:
    (tmp_path / "images").write_bytes(
        bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 10, 20, 30, 40])
    )
    (tmp_path / "labels").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 0]))
    ds = ImageDataset.from_idx(tmp_path / "images", tmp_path / "labels", ("no", "yes"), "pair")
    assert ds.images.tolist() == [[[[10, 20]]], [[[30, 40]]]]
    assert ds.labels.tolist() == [1, 0]
    (tmp_path / "labels").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 2]))
    with pytest.raises(DataFormatError, match=r"images with .*labels: .*found 2 at index 1"):
        ImageDataset.from_idx(tmp_path / "images", tmp_path / "labels", ("no", "yes"))
    (tmp_path / "labels").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 0, 0]))
    with pytest.raises(DataFormatError, match=r"images with .*labels: .*2 images and 3 labels"):
        ImageDataset.from_idx(tmp_path / "images", tmp_path / "labels", ("no", "yes"))
    with pytest.raises(DataFormatError, match=r"labels: expected images in 3 dimensions"):
        ImageDataset.from_idx(tmp_path / "labels", tmp_path / "labels", ("no", "yes"))


# What the loader's batches hold.


def test_batches_hold_the_images_in_order_scaled_to_one(be: Backend) -> None:
    ds = dataset()
    loader = DataLoader(ds, batch_size=3)
    assert len(loader) == 3
    assert loader.dataset is ds
    assert loader.backend is be
    batches = list(loader)
    assert [tuple(x.shape) for x, _ in batches] == [(3, 3, 4, 5), (3, 3, 4, 5), (1, 3, 4, 5)]
    assert [host(y).tolist() for _, y in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    for x, y in batches:
        assert be.owns(x.data)
        assert be.owns(y.data)
        assert host(x).dtype == np.float32
        assert host(y).dtype == np.int64
    together = np.concatenate([host(x) for x, _ in batches])
    assert np.array_equal(together, (images() / 255).astype("float32"))


def test_drop_last_leaves_out_the_short_batch(be: Backend) -> None:
    loader = DataLoader(dataset(), batch_size=3, drop_last=True)
    assert len(loader) == 2
    assert order_of(loader) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("n", [1, 6])
def test_whole_batches_need_no_dropping(be: Backend, n: int) -> None:
    for drop_last in (False, True):
        loader = DataLoader(dataset(n), batch_size=n, drop_last=drop_last)
        assert len(loader) == 1
        assert order_of(loader) == list(range(n))


def test_normalisation_is_per_channel(be: Backend) -> None:
    mean, std = [0.1, 0.5, 0.9], [0.2, 1.0, 3.0]
    for source in (dataset(), (images().astype("float64") / 255, np.arange(7))):
        ((x, _),) = DataLoader(source, 7, mean=np.array(mean), std=std)
        for c in range(3):
            expected = (images()[:, c].astype("float64") / 255 - mean[c]) / std[c]
            np.testing.assert_allclose(host(x)[:, c], expected, rtol=1e-6, atol=1e-6)


def test_one_mean_or_std_serves_all_channels(be: Backend) -> None:
    pixels = images() / 255
    ((x, _),) = DataLoader(dataset(), 7, mean=0.5)
    np.testing.assert_allclose(host(x), pixels - 0.5, rtol=1e-6, atol=1e-6)
    ((x, _),) = DataLoader(dataset(), 7, std=np.array([0.25]))
    np.testing.assert_allclose(host(x), pixels * 4, rtol=1e-6)


def test_arrays_of_any_backend_are_taken(be: Backend) -> None:
    pixels = images() / 255
    strict = backend.Backend(pytest.importorskip("array_api_strict"))
    sources: list[tuple[Any, Any]] = [
        (pixels, np.arange(7)),
        (pixels.tolist(), list(range(7))),
        (be.asarray(pixels), be.asarray(np.arange(7))),
        (strict.asarray(pixels), np.arange(7, dtype=np.uint8)),
    ]
    for source in sources:
        ((x, y),) = DataLoader(source, 7)
        assert be.owns(x.data)
        assert host(x).dtype == np.float32
        assert np.array_equal(host(x), pixels.astype("float32"))
        assert host(y).dtype == np.int64
        assert host(y).tolist() == list(range(7))


def test_tables_and_real_targets_pass(be: Backend) -> None:
    table, targets = np.arange(12.0).reshape(6, 2), np.linspace(0, 1, 6)
    ((x, y),) = DataLoader((table, targets), 6, dtype="float64", mean=[1.0, 2.0])
    assert host(x).dtype == host(y).dtype == np.float64
    assert np.array_equal(host(x), table - [1.0, 2.0])
    assert np.array_equal(host(y), targets)


def test_the_backend_may_be_named(be: Backend) -> None:
    loader = DataLoader(dataset(), backend="cpu")
    assert loader.backend.name == "numpy"
    assert all(isinstance(x.data, np.ndarray) for x, _ in loader)


# Their order.


def test_a_shuffle_shows_every_sample_once_with_its_own_label(be: Backend) -> None:
    loader = DataLoader(dataset(50), batch_size=8, shuffle=True, seed=3)
    seen = []
    for x, y in loader:
        labels = host(y)
        assert np.array_equal(host(x), (images(50)[labels] / 255).astype("float32"))
        seen += labels.tolist()
    assert sorted(seen) == list(range(50))
    assert seen != list(range(50))


def test_the_order_depends_on_seed_and_epoch_alone(be: Backend) -> None:
    loader = DataLoader(dataset(50), batch_size=8, shuffle=True, seed=3)
    first, second = order_of(loader), order_of(loader)
    assert first != second
    assert loader.epoch == 2
    loader.set_epoch(0)
    assert order_of(loader) == first
    assert order_of(DataLoader(dataset(50), batch_size=20, shuffle=True, seed=3)) == first
    assert order_of(DataLoader(dataset(50), batch_size=8, shuffle=True, seed=4)) != first
    assert order_of(DataLoader(dataset(50), shuffle=True, seed=3, backend="cpu")) == first


def test_passes_begun_at_once_keep_their_own_epochs(be: Backend) -> None:
    loader = DataLoader(dataset(50), batch_size=50, shuffle=True)
    early, late = iter(loader), iter(loader)
    assert loader.epoch == 2
    second, first = host(next(late)[1]).tolist(), host(next(early)[1]).tolist()
    loader.set_epoch(0)
    assert [order_of(loader), order_of(loader)] == [first, second]


# Transform, memory and cost.


def test_transform_takes_the_place_of_the_inputs(be: Backend) -> None:
    shapes = []

    def halve(x: Any) -> Any:
        shapes.append(tuple(x.shape))
        return x[:, :, :2, :] * 0.5

    batches = list(DataLoader(dataset(), 4, transform=halve))
    assert shapes == [(4, 3, 4, 5), (3, 3, 4, 5)]
    expected = (images()[:4, :, :2] / 255).astype("float32") * np.float32(0.5)
    assert np.array_equal(host(batches[0][0]), expected)


def test_a_transform_that_loses_samples_is_an_error(be: Backend) -> None:
    for bad in (lambda x: x[1:, ...], lambda x: None):
        with pytest.raises(ValueError, match=r"expected transform to return 4 samples.*returned a"):
            next(iter(DataLoader(dataset(), 4, transform=bad)))


def test_mean_and_std_are_of_the_channels_there_are(be: Backend) -> None:
    def doubled(x: Any, stream: Any) -> Any:
        return be.xp.concat([x, x], axis=1)

    assert next(iter(DataLoader(dataset(), 4, augment=doubled)))[0].shape == (4, 6, 4, 5)
    loader = DataLoader(dataset(), 4, augment=doubled, mean=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"keep the 3 channels that mean and std are of, it .* 6;"):
        next(iter(loader))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_writing_into_a_batch_leaves_the_data_alone(be: Backend, shuffle: bool, dtype: str) -> None:
    def spoil(x: Any) -> Any:
        x[...] = -1.0
        return x

    source = images().astype(dtype)
    loader = DataLoader((source, np.arange(7)), 7, shuffle=shuffle, transform=spoil)
    ((spoilt, _),) = loader
    assert np.all(host(spoilt) == -1.0)
    loader.transform = None
    ((x, y),) = loader
    expected = images()[host(y)] / (255 if dtype == "uint8" else 1)
    assert np.array_equal(host(x), expected.astype("float32"))
    assert np.array_equal(source, images())


def test_a_batch_is_channels_last_in_memory() -> None:
    for shuffle in (False, True):
        ((x, _),) = DataLoader(dataset(), 7, shuffle=shuffle, backend="cpu")
        assert x.shape == (7, 3, 4, 5)
        assert x.data.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_pass_copies_nothing_from_the_host_but_its_order(shuffle: bool) -> None:
    device = backend.CupyBackend(stand_in.cupy)
    stand_in.counters.reset()
    loader = DataLoader(dataset(50), 8, shuffle=shuffle, mean=0.5, std=0.5, backend=device)
    # Images, labels, scale and shift.
    assert stand_in.counters.host_copies == 4
    for _ in range(3):
        stand_in.counters.reset()
        assert sum(1 for _ in loader) == 7
        assert stand_in.counters.host_copies == (1 if shuffle else 0)
        assert stand_in.counters.synchronisations == 0


# Data that stays on the host.

SOURCES = {
    "bytes": (images(50), np.arange(50) % 7),
    "doubles": (images(50) / 255, np.arange(50) / 7),
    "one channel": (images(50, channels=1), np.arange(50, dtype="int32")),
    "a table": (np.linspace(0, 1, 100).reshape(50, 2), np.arange(50)),
    "every other": (images(100)[::2], np.arange(100)[::2]),
}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_data_on_the_host_gives_the_same_bits(be: Backend, name: str, shuffle: bool) -> None:
    x, y = SOURCES[name]
    both = [
        DataLoader((x, y), 8, shuffle, seed=2, mean=0.3, std=0.7, resident=resident)
        for resident in (True, False)
    ]
    for _ in range(2):
        seen = 0
        for (a, b), (c, d) in zip(*both, strict=True):
            for one, other in ((a, c), (b, d)):
                assert be.owns(other.data)
                assert other.dtype == one.dtype
                assert np.array_equal(host(one), host(other))
            seen += len(host(b))
        assert seen == 50


def test_batches_from_the_host_are_the_users_to_keep(be: Backend) -> None:
    loader = DataLoader(dataset(50), 4, shuffle=True, resident=False)
    kept = list(loader)
    loader.set_epoch(0)
    for (x, y), (again, labels) in zip(kept, loader, strict=True):
        assert np.array_equal(host(x), host(again))
        assert np.array_equal(host(y), host(labels))


def test_data_on_the_host_is_read_where_it_is(be: Backend, tmp_path: Any) -> None:
    images(50).tofile(tmp_path / "pixels")
    mapped = np.memmap(tmp_path / "pixels", "uint8", "r", shape=(50, 3, 4, 5))
    loader = DataLoader((mapped, np.arange(50)), 8, shuffle=True, resident=False)
    assert np.shares_memory(loader._x, mapped)
    for x, y in loader:
        assert np.array_equal(host(x), (images(50)[host(y)] / 255).astype("float32"))


def test_a_pass_from_the_host_sends_each_batch_once_and_waits_for_none() -> None:
    device = backend.CupyBackend(stand_in.cupy)
    stand_in.counters.reset()
    loader = DataLoader(dataset(50), 8, shuffle=True, backend=device, resident=False)
    assert stand_in.counters.host_copies == 0
    for _ in range(2):
        stand_in.counters.reset()
        assert sum(1 for _ in loader) == 7
        # Images and labels.
        assert stand_in.counters.host_copies == 14
        assert stand_in.counters.synchronisations == 0


# Errors of the loader.


@pytest.mark.parametrize("size", [0, -3, 2.0, True, "8"])
def test_a_bad_batch_size_is_an_error(size: Any) -> None:
    with pytest.raises(ValueError, match="expected batch_size to be an integer of at least 1, got"):
        DataLoader(dataset(), size)


@pytest.mark.parametrize(
    ("data", "kwargs", "kind", "message"),
    [
        ((images(), np.arange(6)), {}, ValueError, r"one target a sample, .* 5\) and \(6,\)"),
        ((np.float32(1), np.arange(6)), {}, ValueError, r"got \(\) and \(6,\)"),
        (dataset()[:0], {}, ValueError, "at least one sample, got an empty data set"),
        (images(), {}, TypeError, r"an ImageDataset or a pair of arrays \(x, y\), got a ndarray"),
        ((images(), 1, 2), {}, TypeError, "a pair of arrays"),
        ((images().astype("int64"), np.arange(7)), {}, TypeError, "dtype uint8, .*got .*int64"),
        (dataset(), {"batch_size": 8, "drop_last": True}, ValueError, "no batch: 7 samples"),
        (dataset(), {"mean": [0.1, 0.2]}, ValueError, "mean to be one number or 3, one a channel"),
        (dataset(), {"std": [1.0, 0.0, 1.0]}, ValueError, "every std above 0"),
        (dataset(), {"backend": "tpu"}, ValueError, "unknown backend 'tpu'"),
    ],
)  # fmt: skip
def test_bad_arguments_say_what_to_give(
    be: Backend, data: Any, kwargs: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        DataLoader(data, **kwargs)
