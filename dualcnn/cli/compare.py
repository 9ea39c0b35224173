"""`dualcnn compare`."""

from __future__ import annotations

import argparse
from functools import partial
from itertools import islice

from .. import backend, check, data, random
from ..train import Network
from ..train.recipe import make_optimizer
from .errors import UserError
from .resources import load_data

__all__ = ["compare"]


def compare(options: argparse.Namespace) -> int:
    """Run one training on two backends, operation by operation; 1 where they part, else 0."""
    names = options.backends.split(",")
    if len(names) != 2:
        raise UserError(f"--backends: expected two with a comma between, got {options.backends!r}")
    try:
        sides = [check.Side.of(name) for name in names]
    except backend.BackendUnavailableError as error:
        raise UserError(
            f"--backends {options.backends}: {error.problem}. Without it: --backends "
            "numpy,numpy+float64"
        ) from error
    except ValueError as error:
        raise UserError(f"--backends {options.backends}: {error}") from error
    training, _ = load_data(options.data, options.data_dir)
    random.manual_seed(options.seed)
    with backend.use("cpu"):
        network = Network(
            options.model, training.images.shape[1], training.images.shape[2:], training.classes
        )
        model = network.build()
        loader = data.DataLoader(training, options.batch_size, shuffle=True, seed=options.seed)
        batches = [(x.numpy(), y.numpy()) for x, y in islice(loader, options.steps)]

    print(
        f"{options.model} on {options.data}, batches of {options.batch_size}, {options.optimizer}"
    )
    make = partial(make_optimizer, options.optimizer)
    found = check.lockstep(model, batches, sides, optimizer=make, tolerance=options.tolerance)
    print(found)
    return 0 if found.start is None else 1
