"""`dualcnn train`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .. import data, random
from ..backend import Backend
from ..train import Network, Progress, RunFolder, Shift, fit
from ..train import evaluate as measure
from ..train.recipe import LEARNING_RATES, make_optimizer, make_scheduler
from .errors import UserError
from .resources import load_data

__all__ = ["train"]


def train(options: argparse.Namespace, be: Backend) -> int:
    """Train a network and leave a run folder."""
    _fill_in(options)
    training, test = load_data(options.data, options.data_dir)
    held_out = int(len(training) * options.validation)
    kept = len(training) - held_out
    validation = training[kept:] if held_out else None
    training = training[:kept]
    random.manual_seed(options.seed)
    network = Network(
        options.model, training.images.shape[1], training.images.shape[2:], training.classes
    )
    model = network.build()
    shift = Shift(options.shift) if options.shift else None
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
        done = fit(
            model,
            loader,
            validation=validation,
            epochs=options.epochs,
            optimizer=optimizer,
            scheduler=scheduler,
            step_scheduler=each,
            callbacks=[folder, Progress()],
        )
    except (KeyboardInterrupt, SystemExit):
        saved = f"epoch {folder.epoch}" if folder.epoch else "no whole epoch"
        print(f"stopped; {saved} of {options.epochs} is saved in {folder.path}", file=sys.stderr)
        raise
    print(f"test: {measure(model, test)}")
    print(f"trained in {sum(done.column('seconds')):.1f} s")
    print(f"run: {folder.path}")
    return 0


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
