"""The command `dualcnn`: train a network, evaluate it, use it, and say what this machine offers."""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import platform
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .. import __version__, backend, data, interop, models, random, train
from .. import functional as F
from ..backend import Backend
from ..data import ImageDataset
from ..data.download import cache_dir
from ..train import Network, Run, RunFolder
from ..train.recipe import LEARNING_RATES, make_optimizer, make_scheduler
from .arguments import DATA, UserError, parse

__all__ = ["main"]

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
        options = parse(list(sys.argv[1:] if argv is None else argv))
        with _sigterm_stops(), _talk(), _chosen_backend(options) as be:
            COMMANDS[options.command](options, be)
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


COMMANDS = {"train": _train, "evaluate": _evaluate, "predict": _predict, "info": _info}
