"""Augmentation: every image by itself, every choice as likely, the same bits on every backend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import stand_in

import dualcnn
from dualcnn import backend, random
from dualcnn.backend import Backend
from dualcnn.data import (
    Augmentation,
    Cutout,
    DataLoader,
    RandomCrop,
    RandomHorizontalFlip,
    RandomTranslate,
)
from dualcnn.random import Stream

STREAM = Stream(3, 4)


def images(n: int, channels: int = 2, height: int = 4, width: int = 5) -> Any:
    """No two pixels of an image are alike, and none is 0."""
    one = np.arange(1, channels * height * width + 1, dtype="uint8")
    return np.stack([np.roll(one, i) for i in range(n)]).reshape(n, channels, height, width)


def run(be: Backend, augment: Any, x: Any, stream: Stream = STREAM) -> Any:
    """The result on the host; what was given must be as before."""
    given = be.asarray(x)
    result = augment(given, stream)
    assert be.owns(result)
    assert result.dtype == given.dtype
    assert np.array_equal(backend.to_numpy(given), x)
    return backend.to_numpy(result)


def crops(image: Any, size: tuple[int, int], padding: int, mode: str, fill: Any) -> Iterator[Any]:
    """Every part that can be cut out, by NumPy's own padding, channel by channel."""
    fills = np.broadcast_to(np.asarray(fill), image.shape[0])
    options = [{"constant_values": f} if mode == "constant" else {} for f in fills]
    padded = np.stack(
        [np.pad(c, padding, mode=mode, **o) for c, o in zip(image, options, strict=True)]
    )
    heights, widths = (n - s + 1 for n, s in zip(padded.shape[1:], size, strict=True))
    for i, j in itertools.product(range(heights), range(widths)):
        yield padded[:, i : i + size[0], j : j + size[1]]


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
@pytest.mark.parametrize(
    ("size", "padding"), [((4, 5), 2), ((3, 3), 0), ((3, 5), 1), ((6, 6), 2), ((1, 1), 3)]
)
def test_crops_are_all_that_can_be_cut_out(
    be: Backend, mode: str, size: tuple[int, int], padding: int
) -> None:
    fill = (7, 250)
    x = images(60)
    result = run(be, RandomCrop(size, padding, fill=fill, padding_mode=mode), x)
    assert result.shape == (60, 2, *size)
    first, chosen = len({c.tobytes() for c in crops(x[0], size, padding, mode, fill)}), set()
    for image, one in zip(x, result, strict=True):
        places = [i for i, c in enumerate(crops(image, size, padding, mode, fill))
                  if np.array_equal(c, one)]  # fmt: skip
        assert places
        chosen.add(places[0])
    assert len(chosen) > min(20, first) // 4


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_translate_keeps_the_size(be: Backend, mode: str) -> None:
    x = images(40)
    result = run(be, RandomTranslate(1, fill=9, padding_mode=mode), x)
    for image, one in zip(x, result, strict=True):
        assert any(np.array_equal(c, one) for c in crops(image, (4, 5), 1, mode, 9))
    assert len({one.tobytes() for one in result}) > 30


def test_flip(be: Backend) -> None:
    x = images(64)
    result = run(be, RandomHorizontalFlip(), x)
    flipped = [np.array_equal(one, image[:, :, ::-1]) for image, one in zip(x, result, strict=True)]
    kept = [np.array_equal(one, image) for image, one in zip(x, result, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 16 < sum(flipped) < 48
    assert np.array_equal(run(be, RandomHorizontalFlip(0), x), x)
    assert np.array_equal(run(be, RandomHorizontalFlip(1), x), x[:, :, :, ::-1])


@pytest.mark.parametrize("size", [1, 2, 3, 12])
def test_cutout_fills_one_square(be: Backend, size: int) -> None:
    x = images(50)
    result = run(be, Cutout(size, fill=np.array([0.0, 200.0])), x)
    for image, one in zip(x, result, strict=True):
        squares = []
        for cy, cx in itertools.product(range(4), range(5)):
            rows, columns = np.arange(4), np.arange(5)
            cut = image.copy()
            top, left = cy - size // 2, cx - size // 2
            within = np.outer(
                (rows >= top) & (rows < top + size), (columns >= left) & (columns < left + size)
            )
            cut[0][within], cut[1][within] = 0, 200
            squares.append(cut)
        assert any(np.array_equal(one, cut) for cut in squares)
    assert len({one.tobytes() for one in result}) > (1 if size < 9 else 0)


AUGMENTATIONS = {
    "crop": RandomCrop((5, 4), 2, fill=3),
    "reflecting crop": RandomCrop(5, 3, padding_mode="reflect"),
    "crop at the edge": RandomCrop(4, 1, padding_mode="edge"),
    "translate": RandomTranslate(2),
    "flip": RandomHorizontalFlip(),
    "cutout": Cutout(3),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_same_bits_on_every_backend(be: Backend, name: str, small_parts: None) -> None:
    """Of both dtypes, in both layouts, in one part and in many, and of nothing else than these."""
    augment = AUGMENTATIONS[name]
    x = images(37, channels=3, height=6, width=7)
    here = run(be, augment, x)
    assert np.array_equal(here, run(backend.get("numpy"), augment, x))
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert np.array_equal(here, run(be, augment, last))
    assert np.array_equal(here, run(be, augment, x.astype("float32")))
    assert not np.array_equal(here, run(be, augment, x, Stream(3, 5)))
    assert not np.array_equal(here, run(be, augment, x, Stream(4, 4)))


def test_a_published_draw(be: Backend) -> None:
    """Which images are flipped follows from Philox's words alone."""
    words = backend.to_numpy(backend.random_bits(be, 8, 11, 12))
    x = images(8)
    result = run(be, RandomHorizontalFlip(0.25), x, Stream(11, 12))
    for word, image, one in zip(words, x, result, strict=True):
        assert np.array_equal(one, image[:, :, ::-1] if word < 2**30 else image)


@pytest.mark.parametrize("n", [9, 5])
def test_moves_are_as_likely(n: int) -> None:
    """Chi-squared of the places that one bright pixel goes to, 4 standard deviations at most."""
    x = np.zeros((3000, 1, n, n), "uint8")
    x[:, :, n // 2, n // 2] = 1
    result = run(backend.get("numpy"), RandomTranslate(2), x)
    counts = np.bincount(result.reshape(3000, -1).argmax(1), minlength=n * n)
    counts = counts[counts > 0]
    assert counts.size == 25
    expected = 3000 / 25
    assert ((counts - expected) ** 2 / expected).sum() < 24 + 4 * math.sqrt(48)


def test_without_a_stream_the_seed_decides(be: Backend) -> None:
    x = be.asarray(images(30))

    def two() -> list[Any]:
        dualcnn.manual_seed(5)
        return [backend.to_numpy(RandomTranslate(2)(x)) for _ in range(2)]

    (a, b), (c, d) = two(), two()
    assert np.array_equal(a, c)
    assert np.array_equal(b, d)
    assert not np.array_equal(a, b)


def test_nothing_waits_for_the_device() -> None:
    with backend.use(backend.CupyBackend(stand_in.cupy)):
        x = backend.asarray(images(30))
        for augment in AUGMENTATIONS.values():
            augment(x, Stream(0, 0))
            stand_in.counters.reset()
            augment(x, Stream(0, 1))
            assert stand_in.counters.synchronisations == stand_in.counters.host_copies == 0
            assert 0 < stand_in.counters.launches <= 26


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(0), "size to be a whole number from 1, got 0"),
        (lambda: RandomCrop((1, 2, 3)), r"one or two numbers, got \(1, 2, 3\)"),
        (lambda: RandomCrop(4, -1), "padding to be a whole number from 0, got -1"),
        (lambda: RandomCrop(4, padding_mode="wrap"), 'expected padding_mode .*got \'wrap\''),
        (lambda: RandomTranslate(0), "pixels to be a whole number from 1, got 0"),
        (lambda: RandomHorizontalFlip(1.5), "probability from 0 to 1, got 1.5"),
        (lambda: Cutout(0), "size to be a whole number from 1, got 0"),
        (lambda: Cutout(True), "got True"),
    ],
)  # fmt: skip
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (RandomCrop(9, 2), r"RandomCrop: can't cut 9 pixels out of 4 with 2 around them"),
        (RandomTranslate(4, padding_mode="reflect"), "at most 3 pixels around 4, padding is 4"),
        (Cutout(2, fill=0.5), r"whole numbers from 0 to 255 for images of .*uint8, got 0.5"),
        (Cutout(2, fill=300), "got 300"),
        (RandomTranslate(1, fill=(1, 2, 3)), "fill to be one number or 2, one a channel; got 3"),
    ],
)
def test_images_that_do_not_fit(be: Backend, augment: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augment(be.asarray(images(3)), Stream(0, 0))
    with pytest.raises(ValueError, match=r"expected images \(N, C, H, W\), got shape \(2, 4, 5\)"):
        augment(be.asarray(images(1)[0]), Stream(0, 0))


# In a loader.


def pixels_of(loader: DataLoader) -> list[Any]:
    return [backend.to_numpy(x) for x, _ in loader]


ALL = [RandomCrop((4, 5), 1), RandomHorizontalFlip(), Cutout(2, fill=9)]


@pytest.mark.parametrize("resident", [True, False])
def test_a_pass_waits_for_nothing(resident: bool) -> None:
    with backend.use(backend.CupyBackend(stand_in.cupy)):
        loader = DataLoader(
            (images(50), np.arange(50)), 10, True, augment=ALL, mean=0.5, resident=resident
        )
        list(loader)
        stand_in.counters.reset()
        assert len(list(loader)) == 5
        assert stand_in.counters.synchronisations == 0
        # The order of the epoch, or images and labels of each batch.
        assert stand_in.counters.host_copies == (1 if resident else 10)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("resident", [True, False])
def test_the_loader_gives_each_batch_its_streams(
    be: Backend, shuffle: bool, resident: bool
) -> None:
    x = images(21)
    loader = DataLoader((x, np.arange(21)), 8, shuffle, augment=ALL, seed=6, resident=resident)
    loader.set_epoch(2)
    for step, (batch, y) in enumerate(loader):
        expected = be.asarray(x[backend.to_numpy(y)])
        for layer, augment in enumerate(ALL):
            expected = augment(expected, random.batch_stream(6, 2, step, layer))
        found = np.rint(backend.to_numpy(batch) * 255).astype("uint8")
        assert np.array_equal(found, backend.to_numpy(expected))


def test_a_pass_goes_on_from_any_batch(be: Backend) -> None:
    def loader() -> DataLoader:
        return DataLoader((images(50), np.arange(50)), 8, True, augment=ALL, seed=1, mean=0.5)

    whole = loader()
    whole.set_epoch(3)
    expected = [*pixels_of(whole), *pixels_of(whole)]
    resumed = loader()
    resumed.set_epoch(3, step=4)
    found = [*pixels_of(resumed), *pixels_of(resumed)]
    assert len(found) == len(expected) - 4
    assert all(np.array_equal(a, b) for a, b in zip(found, expected[4:], strict=True))
    assert resumed.epoch == 5


@pytest.mark.parametrize("step", [-1, 8])
def test_a_pass_has_no_such_batch(step: int) -> None:
    loader = DataLoader((images(50), np.arange(50)), 8)
    with pytest.raises(ValueError, match=f"step from 0 to 7, the batches, got {step}"):
        loader.set_epoch(0, step)
    loader.set_epoch(0, 7)
    assert list(loader) == []


def test_functions_and_classes_of_ones_own(be: Backend) -> None:
    class Darker(Augmentation):
        def rows(self, be: Backend, x: Any, stream: Stream) -> Any:
            return x // 2

    def spoil(x: Any, stream: Stream) -> Any:
        x[...] = 10 + stream.draw % 2
        return x

    source = images(6)
    dark = DataLoader((source, np.arange(6)), 6, augment=Darker())
    assert np.allclose(pixels_of(dark)[0] * 255, images(6) // 2)
    for resident, shuffle in itertools.product((True, False), repeat=2):
        loader = DataLoader((source, np.arange(6)), 6, shuffle, augment=spoil, resident=resident)
        assert np.allclose(pixels_of(loader)[0] * 255, 10)
        loader.augment = ()
        assert sorted(pixels_of(loader)[0][:, 0, 0, 0] * 255) == pytest.approx(
            sorted(images(6)[:, 0, 0, 0])
        )
    assert np.array_equal(source, images(6))


def test_an_augmentation_that_loses_samples_is_an_error(be: Backend) -> None:
    for bad in (lambda x, stream: x[1:, ...], lambda x, stream: None):
        with pytest.raises(ValueError, match=r"expected augment to return 4 samples.*returned a"):
            next(iter(DataLoader((images(6), np.arange(6)), 4, augment=bad)))


def test_streams_of_batches_are_their_own() -> None:
    numbers = itertools.product((0, 1, 2**30 - 1), (0, 1, 2**24 - 1), (0, 1, 255))
    draws = [random.batch_stream(9, *n) for n in numbers]
    assert len(set(draws)) == 27
    assert all(stream.seed == 9 and 1 << 62 <= stream.draw < 1 << 63 for stream in draws)
    for wrong, name in (((1 << 30, 0, 0), "epoch"), ((0, 1 << 24, 0), "step"),
                        ((0, 0, 256), "layer"), ((-1, 0, 0), "epoch")):  # fmt: skip
        with pytest.raises(ValueError, match=f"expected {name} from 0 to"):
            random.batch_stream(0, *wrong)
