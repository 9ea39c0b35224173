"""`dualcnn trace`."""

from __future__ import annotations

import argparse
from typing import Any

from .. import nn, ops, random, tracing
from ..backend import Array, Backend
from ..data.files import write_file
from ..train import Run
from .errors import UserError
from .resources import load_data
from .use import test_images

__all__ = ["trace"]


def trace(options: argparse.Namespace, be: Backend) -> int:
    """Show a forward and a backward pass of one image, as a page or as text."""
    if options.model is None:
        model, x, label, what = _example(options, be)
    else:
        model, x, label, what = _of_run(options, be)
    traced = tracing.trace(model, x, be.asarray([label]))
    if options.text:
        print(traced.text(options.limit))
    if options.text and options.out is None:
        return 0
    path = options.out or "trace.html"
    write_file(path, traced.html(options.limit).encode())
    if not options.text:
        print(f"{what}, on {be.device} ({be.name})")
        print(traced.chain())
        print(f"loss {traced.loss:.4g}; page: {path}")
    return 0


def _of_run(options: argparse.Namespace, be: Backend) -> tuple[nn.Module, Array, int, str]:
    if options.seed is not None:
        raise UserError("--seed is for the network that comes with the command, not for --model")
    run = Run.open(options.model, options.weights)
    test = test_images(run, options)
    pixels, label = _chosen(test, options.index)
    what = f"{run.network.name}, {test.classes[label]} (image {options.index} of {test.name})"
    return run.model.eval(), be.asarray(pixels / 255, "float32"), label, what


def _example(options: argparse.Namespace, be: Backend) -> tuple[nn.Module, Array, int, str]:
    """A digit of 6x6 pixels and a network for it, its weights drawn anew: numbers of one digit
    after the point, so that a pencil can follow.
    """
    _, test = load_data(options.data or "mnist5k", options.data_dir)
    pixels, label = _chosen(test, options.index)
    random.manual_seed(options.seed or 0)
    model = nn.Sequential(
        {
            "conv": nn.Conv2d(1, 2, 3, padding=1),
            "relu": nn.ReLU(),
            "pool": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),
            "linear": nn.Linear(18, 10),
        }
    )
    for param in model.parameters():
        param.data = _tenths(be, param.data)
    middle = be.asarray(pixels[:, :, 2:26, 2:26] / 255, "float32")
    small, _ = ops.avg_pool2d(middle, kernel_size=4)
    what = f"a small network, {test.classes[label]} (image {options.index} of {test.name}) as 6x6"
    return model, _tenths(be, small), label, what


def _tenths(be: Backend, x: Array) -> Array:
    return be.xp.round(x * 10) / 10


def _chosen(test: Any, index: int) -> tuple[Any, int]:
    """One image `(1, C, H, W)` of a data set and its label."""
    if index >= len(test):
        raise UserError(f"--index: {test.name} has images 0 to {len(test) - 1}, got {index}")
    return test.images[index : index + 1], int(test.labels[index])
