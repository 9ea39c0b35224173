"""The arguments of the command `dualcnn`, from the command line and from a file."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import __version__, models
from ..train.recipe import LEARNING_RATES, SCHEDULES

__all__ = ["DATA", "UserError", "parse"]

DATA = ("mnist5k", "mnist")


class UserError(Exception):
    """Something that the user asked for and can mend; its text is all that is shown."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the command, `.command` its name, with those of a `--config` file."""
    parser, train_parser = _parsers()
    options = parser.parse_args(arguments)
    if getattr(options, "config", None) is not None:
        # As arguments before the given ones, values pass the same checks and lose against those.
        place = arguments.index("train") + 1
        configured = _config_arguments(options.config, train_parser)
        options = parser.parse_args([*arguments[:place], *configured, *arguments[place:]])
    return options


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        prog="dualcnn", description="Train convolutional networks on NumPy or on CuPy."
    )
    parser.add_argument("--version", action="version", version=f"dualcnn {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(command=name)
        return added

    def common(added: argparse.ArgumentParser) -> None:
        added.add_argument("--backend", help='"cpu", "cuda", "cuda:1" or "auto" (default: cpu)')

    add = command("train", "Train a network and leave a run folder.")
    add.add_argument("--data", choices=DATA, default="mnist5k", help="default: %(default)s")
    add.add_argument("--data-dir", metavar="DIR", help="where to look for the files of the data")
    add.add_argument(
        "--model", choices=models.names(), default="lenet", help="default: %(default)s"
    )
    common(add)
    add.add_argument("--epochs", type=_count, default=15, metavar="N", help="default: %(default)s")
    add.add_argument(
        "--batch-size", type=_count, default=64, metavar="N", help="default: %(default)s"
    )
    add.add_argument(
        "--optimizer", choices=LEARNING_RATES, default="adam", help="default: %(default)s"
    )
    rates = ", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items())
    add.add_argument("--lr", type=_positive, metavar="X", help=f"learning rate (default: {rates})")
    add.add_argument(
        "--schedule", choices=SCHEDULES, default="onecycle", help="default: %(default)s"
    )
    add.add_argument("--momentum", type=_share, metavar="X", help="of sgd (default: 0.9)")
    add.add_argument("--weight-decay", type=_share, metavar="X", help="default: the optimizer's")
    add.add_argument(
        "--shift",
        type=_pixels,
        default=1,
        metavar="N",
        help="move training images by up to N pixels; 0 leaves them (default: %(default)s)",
    )
    add.add_argument(
        "--validation",
        type=_share,
        default=0.1,
        metavar="X",
        help="share of the training images, the last ones, held out to choose the best epoch "
        "(default: %(default)s)",
    )
    add.add_argument("--seed", type=_seed, default=0, metavar="N", help="default: %(default)s")
    add.add_argument("--out", metavar="DIR", help="default: runs/<date-time>-<model>")
    add.add_argument("--config", metavar="FILE", help="TOML or JSON with options of these names")

    run_help = "a run folder, or a .safetensors file of one"
    evaluate = command("evaluate", "Measure a run on test images.")
    predict = command("predict", "Say what images show: PNG, JPEG or .npy files.")
    for each in (evaluate, predict):
        each.add_argument("run", metavar="RUN", help=run_help)
        each.add_argument("--weights", choices=("last", "best"), default="last")
        common(each)
    evaluate.add_argument("--data", choices=DATA, help="default: the data of the run")
    evaluate.add_argument("--data-dir", metavar="DIR")
    predict.add_argument("images", nargs="+", metavar="IMAGE")

    info = command("info", "Show versions, backends, threads, memory and data.")
    info.set_defaults(backend=None)
    return parser, add


def _number(kind: Any, expected: str, fits: Callable[[Any], bool]) -> Callable[[str], Any]:
    """Reads an argument as a number of that kind that `fits`."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
        return value

    return read


_count = _number(int, "a whole number from 1", lambda n: n >= 1)
_pixels = _number(int, "a number of pixels from 0 to 8", lambda n: 0 <= n <= 8)
_seed = _number(int, "a seed from 0 to 2**64 - 1", lambda n: 0 <= n < 1 << 64)
_positive = _number(float, "a number above 0", lambda x: 0 < x < float("inf"))
_share = _number(float, "a number from 0 to below 1", lambda x: 0 <= x < 1)


def _config_arguments(path: str, parser: argparse.ArgumentParser) -> list[str]:
    """The options of a file as command-line arguments."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        content = json.loads(text) if path.lower().endswith(".json") else tomllib.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid as JSON or TOML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected options by name, found a {type(content).__name__}")
    known = {name for name in vars(parser.parse_args([])) if name not in ("config", "command")}
    given = {name.replace("-", "_"): value for name, value in content.items()}
    if unknown := sorted(given.keys() - known):
        raise UserError(
            f"{path}: unknown option {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
            raise UserError(f"{path}: {name}: expected a number or text, found {value!r}")
    return [
        f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None
    ]
