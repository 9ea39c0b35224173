"""What the five scripts take on the command line, and the digits they train on."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import dualcnn
from dualcnn import data

CONTROLS = {"torch": ("torch",), "keras": ("keras",)}
"""What `--control` may name, and the packages that each needs."""

BUNDLED = 5000, 1000
"""How many training and test images come with dualcnn."""


def parser(doc: str | None, images: int, test_images: int = 0) -> argparse.ArgumentParser:
    """The options all five share; `images` and `test_images` are the notebook's own numbers.

    Without `test_images` a script tests on training images that it keeps back.
    """
    options = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    options.add_argument("--backend", default="cpu", help='"cpu", "cuda", "cuda:1" or "auto"')
    options.add_argument("--seed", type=int, default=0, help="of the initial weights")
    options.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    options.add_argument(
        "--images", type=int, default=images, help="training images (%(default)s, the notebook's)"
    )
    if test_images:
        options.add_argument("--test-images", type=int, default=test_images, help="(%(default)s)")
    else:
        options.set_defaults(test_images=0)
    options.add_argument(
        "--data-dir", type=Path, help="a folder with mnist/, if more digits are asked for than the "
        "bundled ones; by default DUALCNN_DATA and the cache, then a download",
    )  # fmt: skip
    options.add_argument(
        "--control",
        choices=CONTROLS,
        help="train the same network on the same batches there too, and print both",
    )
    options.add_argument(
        "--every", type=int, help="with --control, print every that many steps (default: 50 rows)"
    )
    options.add_argument(
        "--winograd",
        action="store_true",
        help="with --control, let convolutions be Winograd's, which round ten times more coarsely",
    )
    options.add_argument("--plot", type=Path, metavar="FOLDER", help="write pictures there")
    return options


def begin(args: argparse.Namespace) -> None:
    """Choose backend and seed; end the program if an optional package is asked for and absent."""
    needed = {f"--control {args.control}": CONTROLS.get(args.control, ())}
    if args.plot:
        needed["--plot"] = ("matplotlib",)
    for option, packages in needed.items():
        absent = [name for name in packages if importlib.util.find_spec(name) is None]
        if absent:
            sys.exit(f"{option} needs other packages: pip install {' '.join(absent)}")
    dualcnn.use(args.backend)
    dualcnn.manual_seed(args.seed)


def digits(args: argparse.Namespace) -> tuple[data.ImageDataset, data.ImageDataset]:
    """The first training and test images: bundled ones if these are enough, else whole MNIST's."""
    enough = args.images <= BUNDLED[0] and args.test_images <= BUNDLED[1]
    train, test = data.mnist5k() if enough else data.mnist(args.data_dir)
    return train[: args.images], test[: args.test_images]


def centred(part: data.ImageDataset, batch_size: int, args: argparse.Namespace) -> data.DataLoader:
    """Batches in the order of the file, pixels from -0.5 to 0.5."""
    return data.DataLoader(part, batch_size, dtype=args.dtype, mean=0.5)


def from_zero(
    part: data.ImageDataset, batch_size: int, args: argparse.Namespace
) -> data.DataLoader:
    """Batches in the order of the file, pixels from 0 to 1."""
    return data.DataLoader(part, batch_size, dtype=args.dtype)
