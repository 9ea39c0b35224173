"""What the five scripts take on the command line, and the digits they train on."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import dualcnn
from dualcnn import data
from dualcnn.data.download import cache_dir
from dualcnn.data.mnist import find_mnist

CONTROLS = {"torch": ("torch",), "keras": ("keras", "tensorflow")}
"""What `--control` may name, and the packages to install for it."""

INSTEAD = {"tensorflow": ("jax", "torch")}
"""What does as well as a package that is not there: the other backends of Keras."""

BUNDLED = 5000, 1000
"""How many training and test images come with dualcnn."""

WHOLE = 60_000, 10_000
"""How many MNIST has."""


def number(least: int, most: int) -> Callable[[str], int]:
    """What reads a number of images for argparse."""

    def read(text: str) -> int:
        found = int(text) if text.isdecimal() else least - 1
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} to {most:,}, of the images that MNIST has, "
                f"got {text}"
            )
        return found

    return read


def parser(
    doc: str | None, images: int, test_images: int = 0, least: int = 1
) -> argparse.ArgumentParser:
    """The options all five share; `images` and `test_images` are the notebook's own numbers.

    Without `test_images` a script tests on training images that it keeps back. With fewer than
    `least` of either it can't do what it does.
    """
    options = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    options.add_argument("--backend", default="cpu", help='"cpu", "cuda", "cuda:1" or "auto"')
    options.add_argument("--seed", type=int, default=0, help="of the initial weights")
    options.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    options.add_argument(
        "--images",
        type=number(least, WHOLE[0]),
        default=images,
        metavar="N",
        help="training images (%(default)s, the notebook's)",
    )
    if test_images:
        options.add_argument(
            "--test-images",
            type=number(least, WHOLE[1]),
            default=test_images,
            metavar="N",
            help="(%(default)s)",
        )
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
        if not all(map(_installed, packages)):
            sys.exit(f"{option} needs other packages: pip install {' '.join(packages)}")
    dualcnn.use(args.backend)
    dualcnn.manual_seed(args.seed)


def _installed(package: str) -> bool:
    names = (package, *INSTEAD.get(package, ()))
    return any(importlib.util.find_spec(name) is not None for name in names)


def digits(args: argparse.Namespace) -> tuple[data.ImageDataset, data.ImageDataset]:
    """The training and test images that the options ask for."""
    fewer = f"--images {BUNDLED[0]}"
    if args.test_images:
        fewer += f" --test-images {BUNDLED[1]}"
    return first(args.images, args.test_images, args.data_dir, fewer)


def first(
    images: int, test_images: int, folder: Path | None, fewer: str
) -> tuple[data.ImageDataset, data.ImageDataset]:
    """The first training and test images: bundled ones if these are enough, else whole MNIST's.

    Ends the program where MNIST can't be had; `fewer` are options for which the bundled ones do.
    """
    if images <= BUNDLED[0] and test_images <= BUNDLED[1]:
        train, test = data.mnist5k()
    else:
        try:
            train, test = data.mnist(folder)
        except data.DownloadError as error:
            why = str(error).partition("; ")[0]
            _fail(f"{why}. {_absent(folder)}, or take digits that come with dualcnn: {fewer}")
        except (data.DataFormatError, OSError) as error:
            _fail(str(error))
    return train[:images], test[:test_images]


def _absent(folder: Path | None) -> str:
    names = [name for name, path in find_mnist(folder).items() if path is None]
    places = f"--data-dir ({folder or 'not given'}), DUALCNN_DATA "
    places += f"({os.environ.get('DUALCNN_DATA') or 'not set'}) or the cache ({cache_dir()})"
    return (
        f"Expected {', '.join(names)}, or the same without .gz, in mnist/ under {places}. Set "
        "DUALCNN_DATA or --data-dir to the folder above mnist/"
    )


def _fail(message: str) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(2)


def centred(part: data.ImageDataset, batch_size: int, args: argparse.Namespace) -> data.DataLoader:
    """Batches in the order of the file, pixels from -0.5 to 0.5."""
    return data.DataLoader(part, batch_size, dtype=args.dtype, mean=0.5)


def from_zero(
    part: data.ImageDataset, batch_size: int, args: argparse.Namespace
) -> data.DataLoader:
    """Batches in the order of the file, pixels from 0 to 1."""
    return data.DataLoader(part, batch_size, dtype=args.dtype)
