"""The arguments of the command `dualcnn`, from the command line and from a file."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__, models
from ..tracing import LIMIT
from ..train.recipe import LEARNING_RATES, SCHEDULES
from .errors import UserError
from .resources import DATA

__all__ = ["parse"]


class _Mistake(Exception):
    """Arguments that a parser rejects, for `parse` to say where they came from."""

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.parser = parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Mistake(self, message)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the command, `.command` its name, with those of a `--config` file.

    Ends the program, as argparse does, where the arguments are wrong or ask for help; raises
    UserError, which names the file, for mistakes in the file.
    """
    parser, commands = _parsers()
    try:
        options = _options(parser, commands, arguments)
        if getattr(options, "config", None) is None:
            return options
        # As arguments before the given ones, those of the file lose against them.
        place = arguments.index("train") + 1
        configured = _config_arguments(options.config, commands["train"])
        return _options(parser, commands, [*arguments[:place], *configured, *arguments[place:]])
    except _Mistake as mistake:
        argparse.ArgumentParser.error(mistake.parser, str(mistake))


def _options(
    parser: _Parser, commands: dict[str, _Parser], arguments: list[str]
) -> argparse.Namespace:
    options, rest = parser.parse_known_args(arguments)
    if rest:
        commands[options.command].error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser of everything, and those of the commands by name."""
    parser = _Parser(
        prog="dualcnn", description="Train convolutional networks on NumPy or on CuPy."
    )
    parser.add_argument("--version", action="version", version=f"dualcnn {__version__}")
    group = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands: dict[str, _Parser] = {}

    def command(name: str, text: str) -> _Parser:
        added = group.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(command=name)
        commands[name] = added
        return added

    def backend_option(added: _Parser) -> None:
        added.add_argument(
            "--backend",
            help='"cpu", "cuda", "cuda:1" or "auto" (default: DUALCNN_BACKEND, or cpu)',
        )

    def data_folder(added: _Parser) -> None:
        added.add_argument(
            "--data-dir",
            metavar="DIR",
            help="folder with the files of mnist; those that are neither there nor in "
            "DUALCNN_DATA or the cache are downloaded into it",
        )

    add = command("train", "Train a network and leave a run folder.")
    add.add_argument("--data", **_one_of(DATA), default="mnist5k", help="default: %(default)s")
    data_folder(add)
    add.add_argument(
        "--model", **_one_of(models.names()), default="lenet", help="default: %(default)s"
    )
    backend_option(add)
    add.add_argument("--epochs", type=_count, default=15, metavar="N", help="default: %(default)s")
    add.add_argument(
        "--batch-size", type=_count, default=64, metavar="N", help="default: %(default)s"
    )
    add.add_argument(
        "--optimizer", **_one_of(LEARNING_RATES), default="adam", help="default: %(default)s"
    )
    rates = ", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items())
    add.add_argument("--lr", type=_positive, metavar="X", help=f"learning rate (default: {rates})")
    add.add_argument(
        "--schedule", **_one_of(SCHEDULES), default="onecycle", help="default: %(default)s"
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
    add.add_argument(
        "--config", metavar="FILE", help="a .toml or .json file with options of these names"
    )

    run_help = "a run folder, or a .safetensors file of one"
    evaluate = command("evaluate", "Measure a run on test images.")
    predict = command("predict", "Say what images show: PNG, JPEG or .npy files.")
    for each in (evaluate, predict):
        each.add_argument("run", metavar="RUN", help=run_help)
        each.add_argument(
            "--weights", **_one_of(("last", "best")), default="last", help="default: %(default)s"
        )
        backend_option(each)
    evaluate.add_argument("--data", **_one_of(DATA), help="default: the data of the run")
    data_folder(evaluate)
    predict.add_argument("images", nargs="+", metavar="IMAGE")

    trace = command("trace", "Show every number of a forward and a backward pass, as a web page.")
    trace.add_argument(
        "--model", metavar="RUN", help=f"{run_help} (default: a small network, not trained)"
    )
    trace.add_argument(
        "--weights", **_one_of(("last", "best")), default="last", help="default: %(default)s"
    )
    trace.add_argument("--data", **_one_of(DATA), help="default: the data of the run, or mnist5k")
    data_folder(trace)
    trace.add_argument(
        "--index",
        type=_index,
        default=0,
        metavar="N",
        help="of a test image (default: %(default)s)",
    )
    trace.add_argument(
        "--seed", type=_seed, metavar="N", help="of the small network's weights (default: 0)"
    )
    trace.add_argument(
        "--limit",
        type=_count,
        default=LIMIT,
        metavar="N",
        help="write out at most N numbers of a step (default: %(default)s)",
    )
    trace.add_argument("--text", action="store_true", help="print the steps as text")
    trace.add_argument(
        "--out", metavar="FILE", help="the page (default: trace.html, or none with --text)"
    )
    backend_option(trace)

    compare = command(
        "compare", "Run a training on two backends and say which operation they part at."
    )
    compare.add_argument(
        "--backends",
        default="numpy,cupy",
        metavar="A,B",
        help="two of numpy, cupy, cuda:1, strict; each may go on with +float64 and with "
        "+ and an algorithm for convolutions, such as numpy+winograd4 (default: %(default)s)",
    )
    compare.add_argument("--data", **_one_of(DATA), default="mnist5k", help="default: %(default)s")
    data_folder(compare)
    compare.add_argument(
        "--model", **_one_of(models.names()), default="lenet", help="default: %(default)s"
    )
    compare.add_argument(
        "--steps", type=_count, default=3, metavar="N", help="default: %(default)s"
    )
    compare.add_argument(
        "--batch-size", type=_count, default=32, metavar="N", help="default: %(default)s"
    )
    compare.add_argument(
        "--optimizer", **_one_of(LEARNING_RATES), default="adam", help="default: %(default)s"
    )
    compare.add_argument("--seed", type=_seed, default=0, metavar="N", help="default: %(default)s")
    compare.add_argument(
        "--tolerance",
        type=_positive,
        metavar="X",
        help="relative distance that counts as rounding (default: 1e-4, for float64 1e-11)",
    )

    command("info", "Show versions, backends, threads, memory and data.")
    return parser, commands


def _one_of(names: Collection[str]) -> dict[str, Any]:
    """The settings of an argument that is one of `names`."""
    known = ", ".join(names)

    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected one of {known}, got {text}")
        return text

    return {"type": read, "metavar": f"{{{','.join(names)}}}"}


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
_index = _number(int, "a whole number from 0", lambda n: n >= 0)
_seed = _number(int, "a seed from 0 to 2**64 - 1", lambda n: 0 <= n < 1 << 64)
_positive = _number(float, "a number above 0", lambda x: 0 < x < float("inf"))
_share = _number(float, "a number from 0 to below 1", lambda x: 0 <= x < 1)


def _config_arguments(path: str, parser: _Parser) -> list[str]:
    """The options of a file as command-line arguments that `parser` accepts."""
    known = {name for name in vars(parser.parse_args([])) if name not in ("config", "command")}
    content = _read(path)
    if unknown := [name for name in content if name.replace("-", "_") not in known]:
        raise UserError(
            f"{path}: unknown option {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    arguments: dict[str, list[str]] = {}
    for name, value in content.items():
        flag = f"--{name.replace('_', '-')}"
        if flag in arguments:
            raise UserError(f"{path}: {name} is there twice, once with - and once with _")
        if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
            raise UserError(f"{path}: {name}: expected a number or text, got {value!r}")
        arguments[flag] = [] if value is None else [f"{flag}={value}"]
        try:
            parser.parse_args(arguments[flag])
        except _Mistake as mistake:
            what = str(mistake).removeprefix(f"argument {flag}: ")
            raise UserError(f"{path}: {name}: {what}") from mistake
    return [argument for given in arguments.values() for argument in given]


def _read(path: str) -> dict[str, Any]:
    kind = Path(path).suffix.lower()
    if kind not in (".toml", ".json"):
        raise UserError(f"{path}: expected a .toml or a .json file")
    try:
        # With or without the mark that some editors put at the beginning.
        text = Path(path).read_text(encoding="utf-8-sig")
        content = json.loads(text) if kind == ".json" else tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected text in UTF-8: {error}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid {kind[1:].upper()}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected options by name, got a {type(content).__name__}")
    return content
