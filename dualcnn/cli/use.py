"""`dualcnn evaluate` and `dualcnn predict`: what a run is good for."""

from __future__ import annotations

import argparse

from .. import functional as F
from ..backend import Backend
from ..data import ImageDataset
from ..train import ImageError, Run, read_image
from ..train import evaluate as measure
from .errors import UserError, describe, tell
from .resources import DATA, load_data

__all__ = ["evaluate", "predict", "test_images"]


def evaluate(options: argparse.Namespace, be: Backend) -> int:
    """Measure a run on test images."""
    run = Run.open(options.run, options.weights)
    test = test_images(run, options)
    print(f"{run.network.name}, weights of epoch {run.epoch} ({run.weights}), on {be.device}")
    print(f"{test.name}: {measure(run.model, test)}")
    return 0


def test_images(run: Run, options: argparse.Namespace) -> ImageDataset:
    """The test images of `--data`, or of the run's own data, if they fit its network."""
    name = options.data or run.options.get("data", "mnist5k")
    if name not in DATA:
        raise UserError(
            f"{run.path}: unknown data {name!r}; choose with --data {' or '.join(DATA)}"
        )
    folder = options.data_dir or (None if options.data else run.options.get("data_dir"))
    _, test = load_data(name, folder)
    network = run.network
    if test.images.shape[1:] != network.input_shape or test.classes != network.classes:
        raise UserError(
            f"{run.path} was trained on images {network.input_shape} of {len(network.classes)} "
            f"classes; {test.name} has {test.images.shape[1:]} of {len(test.classes)}"
        )
    return test


def predict(options: argparse.Namespace, be: Backend) -> int:
    """Say what each image shows; one that can't be read is told and the others go on."""
    run = Run.open(options.run, options.weights)
    if run.network.in_channels != 1:
        raise UserError(f"{run.path} takes images of {run.network.in_channels} channels, not grey")
    run.model.eval()
    status = 0
    for path in options.images:
        try:
            pixels, steps = read_image(path, run.network.image_size)
        except (ImageError, OSError) as error:
            status = tell(describe(error))
            continue
        logits = run.model(be.asarray(pixels))
        shares = F.softmax(logits, dim=1).tolist()[0]
        best = max(range(len(shares)), key=shares.__getitem__)
        print(f"{path}: {run.network.classes[best]} ({100 * shares[best]:.1f} %)")
        print(f"  image: {'; '.join(steps) or 'taken as it is'}")
        every = zip(run.network.classes, shares, strict=True)
        print("  " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in every))
    return status
