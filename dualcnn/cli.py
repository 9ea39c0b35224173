"""The command `dualcnn`: train a network, evaluate it, use it, and say what this machine offers."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import signal
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import __version__, backend, data, interop, models, random, train
from . import functional as F
from .backend import Backend
from .data import ImageDataset
from .data.download import cache_dir
from .train import Network, Run, RunFolder
from .train.recipe import LEARNING_RATES, SCHEDULES, make_optimizer, make_scheduler

__all__ = ["main"]

DATA = ("mnist5k", "mnist")


class UserError(Exception):
    """Something that the user asked for and can mend; its text is all that is shown."""


USER_ERRORS = (
    UserError,
    OSError,
    backend.BackendUnavailableError,
    data.DataFormatError,
    interop.WeightsError,
    models.ModelError,
    train.ImageError,
    train.RunError,
    train.TrainingError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv`, by default the program's arguments; returns the exit status.

    0 done; 2 a mistake that the user can mend, told on standard error; 130 stopped by Ctrl-C and
    143 by SIGTERM; 141 the reader of the output went away.
    """
    try:
        options = _parse(list(sys.argv[1:] if argv is None else argv))
        with _sigterm_stops(), _talk(), _chosen_backend(options) as be:
            options.command(options, be)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Python flushes standard output once more as it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError as error:
        return _fail(f"out of memory ({error}); a smaller --batch-size may do")
    except OSError as error:
        known = error.filename is not None and error.strerror is not None
        return _fail(f"{error.filename}: {error.strerror}" if known else str(error))
    except USER_ERRORS as error:
        return _fail(str(error))
    return 0


def _fail(message: str) -> int:
    print(f"dualcnn: error: {message}", file=sys.stderr)
    return 2


# The arguments.


def _parse(arguments: list[str]) -> argparse.Namespace:
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

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(command=function)
        return added

    def common(added: argparse.ArgumentParser) -> None:
        added.add_argument("--backend", help='"cpu", "cuda", "cuda:1" or "auto" (default: cpu)')

    add = command("train", _train, "Train a network and leave a run folder.")
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
    evaluate = command("evaluate", _evaluate, "Measure a run on test images.")
    predict = command("predict", _predict, "Say what images show: PNG, JPEG or .npy files.")
    for each in (evaluate, predict):
        each.add_argument("run", metavar="RUN", help=run_help)
        each.add_argument("--weights", choices=("last", "best"), default="last")
        common(each)
    evaluate.add_argument("--data", choices=DATA, help="default: the data of the run")
    evaluate.add_argument("--data-dir", metavar="DIR")
    predict.add_argument("images", nargs="+", metavar="IMAGE")

    info = command("info", _info, "Show versions, backends, threads, memory and data.")
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


# The surroundings of a command.


@contextmanager
def _chosen_backend(options: argparse.Namespace) -> Iterator[Backend]:
    try:
        chosen = backend.current() if options.backend is None else backend.get(options.backend)
    except ValueError as error:
        raise UserError(error) from error
    with backend.use(chosen):
        yield chosen


@contextmanager
def _sigterm_stops() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, so that nothing is left half written."""

    def stop(*_: Any) -> None:
        sys.exit(128 + signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _talk() -> Iterator[None]:
    """Show what the library notes, such as why it chose a backend and what it downloads.

    NumPy's warnings of overflow are not shown: a loss that is no number ends the training anyway.
    """
    log, handler = logging.getLogger("dualcnn"), logging.StreamHandler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


# train


def _train(options: argparse.Namespace, be: Backend) -> None:
    _fill_in(options)
    training, test = _load(options.data, options.data_dir)
    held_out = int(len(training) * options.validation)
    kept = len(training) - held_out
    validation = training[kept:] if held_out else None
    training = training[:kept]
    random.manual_seed(options.seed)
    network = Network(
        options.model, training.images.shape[1], training.images.shape[2:], training.classes
    )
    model = network.build()
    shift = train.Shift(options.shift) if options.shift else None
    loader = data.DataLoader(
        training, options.batch_size, shuffle=True, seed=options.seed, transform=shift
    )
    optimizer = make_optimizer(
        options.optimizer,
        model,
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )
    scheduler, each = make_scheduler(options.schedule, optimizer, options.epochs, len(loader))
    folder = RunFolder(network, _resolved(options, be), options.out)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{options.model}, {parameters:,} parameters, on {be.device} ({be.name})")
    print(f"{options.data}: {kept:,} training, {held_out:,} validation, {len(test):,} test images")
    try:
        done = train.fit(
            model,
            loader,
            validation=validation,
            epochs=options.epochs,
            optimizer=optimizer,
            scheduler=scheduler,
            step_scheduler=each,
            callbacks=[folder, train.Progress()],
        )
    except (KeyboardInterrupt, SystemExit):
        saved = f"epoch {folder.epoch}" if folder.epoch else "no whole epoch"
        print(f"stopped; {saved} of {options.epochs} is saved in {folder.path}", file=sys.stderr)
        raise
    print(f"test: {train.evaluate(model, test)}")
    print(f"trained in {sum(done.column('seconds')):.1f} s")
    print(f"run: {folder.path}")


def _load(name: str, folder: str | None) -> tuple[ImageDataset, ImageDataset]:
    if name == "mnist":
        return data.mnist(folder)
    if folder is not None:
        raise UserError(f"--data-dir is for data in files; {name} comes with dualcnn")
    return data.mnist5k()


def _fill_in(options: argparse.Namespace) -> None:
    """Put the defaults of the optimizer in the place of options that were not given."""
    if options.lr is None:
        options.lr = LEARNING_RATES[options.optimizer]
    if options.optimizer == "sgd":
        options.momentum = 0.9 if options.momentum is None else options.momentum
    elif options.momentum is not None:
        raise UserError(f"--momentum is for --optimizer sgd, not {options.optimizer}")


def _resolved(options: argparse.Namespace, be: Backend) -> dict[str, Any]:
    """The options with defaults filled in; `--config` takes a file of them."""
    left_out = ("command", "config", "out")
    resolved = {name: value for name, value in vars(options).items() if name not in left_out}
    resolved["backend"] = be.device
    return resolved


# evaluate, predict


def _evaluate(options: argparse.Namespace, be: Backend) -> None:
    run = Run.open(options.run, options.weights)
    name = options.data or run.options.get("data", "mnist5k")
    if name not in DATA:
        raise UserError(
            f"{run.path}: unknown data {name!r}; choose with --data {' or '.join(DATA)}"
        )
    folder = options.data_dir or (None if options.data else run.options.get("data_dir"))
    _, test = _load(name, folder)
    network = run.network
    if test.images.shape[1:] != network.input_shape or test.classes != network.classes:
        raise UserError(
            f"{run.path} was trained on images {network.input_shape} of {len(network.classes)} "
            f"classes; {test.name} has {test.images.shape[1:]} of {len(test.classes)}"
        )
    print(f"{network.name}, weights of epoch {run.epoch} ({run.weights}), on {be.device}")
    print(f"{test.name}: {train.evaluate(run.model, test)}")


def _predict(options: argparse.Namespace, be: Backend) -> None:
    run = Run.open(options.run, options.weights)
    if run.network.in_channels != 1:
        raise UserError(f"{run.path} takes images of {run.network.in_channels} channels, not grey")
    run.model.eval()
    for path in options.images:
        pixels, steps = train.read_image(path, run.network.image_size)
        logits = run.model(be.asarray(pixels))
        shares = F.softmax(logits, dim=1).tolist()[0]
        best = max(range(len(shares)), key=shares.__getitem__)
        print(f"{path}: {run.network.classes[best]} ({100 * shares[best]:.1f} %)")
        print(f"  image: {'; '.join(steps) or 'taken as it is'}")
        every = zip(run.network.classes, shares, strict=True)
        print("  " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in every))


# info


def _info(options: argparse.Namespace, be: Backend) -> None:
    print(f"dualcnn {__version__}, Python {platform.python_version()}, {platform.platform()}")
    packages = ("numpy", "array-api-compat", "safetensors", "threadpoolctl")
    optional = ("Pillow", "matplotlib", "tqdm")
    print("packages: " + ", ".join(f"{name} {_version(name)}" for name in (*packages, *optional)))
    print(f"backend in use: {be.name} on {be.device}")
    for status in backend.available().values():
        print(f"  {status}")
    setting = os.environ.get("DUALCNN_THREADS")
    source = f"DUALCNN_THREADS={setting}" if setting else "the cores this process may use"
    print(f"threads: {backend.pool.size} ({source}) of {os.cpu_count()} cores")
    for library in _blas():
        print(f"  BLAS: {library}")
    print(f"memory: {_memory()}")
    for name, size in be.memory().items():
        print(f"  {name}: {size / 2**20:,.0f} MiB")
    print("data:")
    print("  mnist5k: comes with dualcnn")
    try:
        data.mnist(download=False)
    except (OSError, data.DataFormatError) as error:
        print(f"  mnist: not here ({error})")
    else:
        print("  mnist: found and checked")
    print(f"  DUALCNN_DATA: {os.environ.get('DUALCNN_DATA') or 'not set'}; cache: {cache_dir()}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _blas() -> list[str]:
    from threadpoolctl import threadpool_info

    return [
        f"{found['internal_api']} {found['version']}, {found.get('architecture', 'unknown')}, "
        f"{found['num_threads']} threads outside dualcnn's own work"
        for found in threadpool_info()
        if found["user_api"] == "blas"
    ]


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (os.sysconf(name) * page for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return "unknown on this system"
    return f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free"
