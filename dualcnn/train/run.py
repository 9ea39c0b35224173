"""The folder that a training leaves behind, and how to use it again.

config.json holds the options; metrics.csv a row an epoch; last.safetensors and best.safetensors
the weights, with the network they belong to in their metadata. Each is replaced in one step, so
whenever the training is killed, those of the last whole epoch are there.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import interop, models
from ..nn import Module
from .loop import Callback, TrainingState
from .metrics import Epoch

__all__ = ["Network", "Run", "RunError", "RunFolder"]

CONFIG = "config.json"
METRICS = "metrics.csv"
NETWORK = "network"
"""The entry of the weights' metadata that describes the network."""


class RunError(ValueError):
    """A run folder that is in use, missing or not what it should be."""


@dataclass(frozen=True)
class Network:
    """What must be known to build a network again: see `models.build`; classes are names."""

    name: str
    in_channels: int
    image_size: tuple[int, int]
    classes: tuple[str, ...]

    def build(self) -> Module:
        """A new network of this kind on the current backend."""
        return models.build(
            self.name,
            in_channels=self.in_channels,
            image_size=self.image_size,
            num_classes=len(self.classes),
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return (self.in_channels, *self.image_size)


class RunFolder(Callback):
    """Writes a run folder as `fit` goes.

    path: a folder that is new or empty; by default runs/<date-time>-<model> where the program runs.
    options: what config.json keeps. Raises RunError where the folder is not empty.

    >>> fit(model, train, callbacks=[RunFolder(network, {"lr": 0.1}, "runs/first")])
    """

    def __init__(
        self,
        network: Network,
        options: Mapping[str, Any],
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.network = network
        self.epoch = 0
        """The last epoch that was saved."""
        self.path = _new_folder(network.name) if path is None else _empty_folder(Path(path))
        content = json.dumps(dict(options), indent=2) + "\n"
        try:
            # Exclusive, so that of two trainings that start at once only one gets the folder.
            with open(self.path / CONFIG, "x", encoding="utf-8") as out:
                out.write(content)
        except FileExistsError:
            raise _not_empty(self.path) from None
        except OSError as error:
            raise RunError(f"could not write {self.path / CONFIG}: {error.strerror}") from error

    def on_epoch_end(self, state: TrainingState) -> None:
        from .. import __version__

        row = state.history[-1]
        weights = state.model.state_dict()
        notes = {
            NETWORK: json.dumps(dataclasses.asdict(self.network)),
            "epoch": str(row.epoch),
            "dualcnn": __version__,
        }
        interop.save(weights, self.path / "last.safetensors", notes)
        if state.history.best is row:
            interop.save(weights, self.path / "best.safetensors", notes)
        interop.write_file(self.path / METRICS, _table(state.history))
        self.epoch = row.epoch


@dataclass(frozen=True)
class Run:
    """A run that was read again: its network with weights, the epoch of these, and the options."""

    path: Path
    weights: Path
    network: Network
    model: Module
    epoch: int
    options: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str], which: str = "last") -> Run:
        """Read a run folder, or one weights file of such a folder, onto the current backend.

        which: "best" or "last". Raises RunError or WeightsError, which name the file.
        """
        path = Path(path)
        weights = path / f"{which}.safetensors" if path.is_dir() else path
        if not path.exists():
            raise RunError(
                f"there is no run folder {path}; `dualcnn train` prints where a run lies"
            )
        if not weights.is_file():
            raise RunError(
                f"{path} holds no {weights.name}: it is no run folder, or its training stopped "
                "before the end of the first epoch"
            )
        arrays, notes = interop.read(weights)
        network, epoch = _network(weights, notes)
        config = weights.parent / CONFIG
        options = _options(config)
        trained = options.get("model", network.name)
        # Options are anybody's: only another model that can be built is surely another network.
        if trained != network.name and trained in models.names():
            raise RunError(
                f"{weights} holds weights of {network.name}, but by {config} the run trained "
                f"{trained}: they are of different runs; put the right weights there, or these "
                "into a folder of their own"
            )
        model = network.build()
        try:
            model.load_state_dict(arrays)
        except ValueError as error:
            raise RunError(f"{weights} does not fit its network {network.name}: {error}") from error
        return cls(path, weights, network, model, epoch, options)


def _network(weights: Path, notes: Mapping[str, str]) -> tuple[Network, int]:
    if NETWORK not in notes:
        raise RunError(
            f"{weights} does not say which network it belongs to, so `dualcnn train` did not write "
            "it; build the network and use model.load_state_dict(dualcnn.load(path))"
        )
    try:
        found = json.loads(notes[NETWORK])
        found["image_size"] = tuple(found["image_size"])
        found["classes"] = tuple(found["classes"])
        return Network(**found), int(notes.get("epoch", 0))
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{weights}: can't read the description of its network: {error}") from error


def _options(config: Path) -> dict[str, Any]:
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunError(f"{config} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise RunError(f"{config}: expected an object of options, found {type(found).__name__}")
    return found


def _new_folder(model: str) -> Path:
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{model}"
    for attempt in itertools.count(1):
        path = Path("runs") / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable")


def _empty_folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise RunError(f"{path} is a file; choose a folder for the run") from None
    if any(path.iterdir()):
        raise _not_empty(path)
    return path


def _not_empty(path: Path) -> RunError:
    return RunError(f"the folder {path} is not empty; choose another for this run (--out)")


def _table(history: list[Epoch]) -> bytes:
    text = io.StringIO(newline="")
    columns = [column.name for column in dataclasses.fields(Epoch)]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in history:
        values = dataclasses.asdict(row)
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})
    return text.getvalue().encode()
