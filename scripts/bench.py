"""Time training steps of small CNNs in dualcnn and, interleaved in one run, in other libraries.

    python scripts/bench.py --against torch --nets a1 --threads 2
    python scripts/bench.py --against torch,jax --nets all --threads 1,2 --plot ratios.png
    python scripts/bench.py --nets b --layers

All sides get the same layers, weights, batch, loss and optimizer. A sample is a few steps in a row;
the sides take turns, so a change of the machine's load meets them all. Samples during which other
processes took more than a share of a core are left out, and that load is printed. Medians. The
sides live in one process, or with --apart in one each.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bench_sides
from bench_machine import held_to
from bench_modes import MODES, measure
from bench_nets import NETS

import dualcnn


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--against", default="nothing",
        help=f"of {', '.join(bench_sides.LIBRARIES)}; comma between; nothing is none of them",
    )  # fmt: skip
    parser.add_argument(
        "--nets", default="a1", help=f"of {', '.join(NETS)}; comma between; all is all of them"
    )
    parser.add_argument("--batch", type=int, help="another batch size than the net's own")
    parser.add_argument("--scan", help="several batch sizes; comma between")
    parser.add_argument(
        "--threads",
        default=str(dualcnn.backend.pool.size),
        help="1, or 1,2 for one after the other",
    )
    parser.add_argument(
        "--captured", nargs="?", const="threads", choices=["threads", "processes"],
        help="dualcnn.capture too, beside dualcnn as it stands; with as many processes as threads",
    )  # fmt: skip
    parser.add_argument(
        "--apart", action="store_true", help="each side in a process of its own, which take turns"
    )
    parser.add_argument("--inference", action="store_true", help="forward alone")
    parser.add_argument("--repeats", type=int, default=9, help="quiet samples of each side")
    parser.add_argument("--patience", type=float, default=120, help="seconds a net at most")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratios into this file")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--layers", nargs="?", const="each", choices=["each", "groups"],
        help="each layer of a net beside PyTorch's, or each with the ReLU and so on that follow it",
    )  # fmt: skip
    mode.add_argument("--ops", action="store_true", help="single operations beside PyTorch's")
    mode.add_argument("--memory", action="store_true", help="how much memory training takes")
    mode.add_argument("--check", action="store_true", help="that all sides compute the same")
    # The file for the results of a process of its own, which each number of threads has.
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    try:
        understand(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def understand(options: argparse.Namespace) -> None:
    """Lists out of commas, and what does not go together."""
    options.mode = next((m for m in MODES if getattr(options, m, None)), "nets")
    nets = list(NETS) if options.nets == "all" else options.nets.split(",")
    options.nets = known(nets, NETS, "net")
    libraries = [] if options.against == "nothing" else options.against.split(",")
    options.against = known(libraries, bench_sides.LIBRARIES, "library")
    options.threads = numbers(options.threads, "--threads")
    options.scan = numbers(options.scan, "--scan") if options.scan else []
    for option in ("batch", "repeats"):
        number = getattr(options, option)
        if number is not None and number < 1:
            raise ValueError(f"--{option}: expected a number from 1, got {number}")
    if options.scan and options.batch:
        raise ValueError("--batch is one batch size and --scan several: give one of them")
    if options.mode in ("layers", "ops"):
        if set(options.against) - {"torch"}:
            raise ValueError(f"--{options.mode} compares with torch alone")
        options.against = ["torch"]
    if options.captured and options.mode not in ("nets", "memory", "check"):
        raise ValueError("--captured is for steps of nets, with --memory or --check perhaps")
    if options.apart and options.mode != "nets":
        raise ValueError(
            f"--apart is for steps of nets, without --{options.mode}; --memory has processes of "
            "its own anyway"
        )
    if "onnxruntime" in options.against and not options.inference:
        raise ValueError("onnxruntime only infers: add --inference, or leave it out")
    if options.plot and (options.mode not in ("nets", "memory") or not options.against):
        raise ValueError("--plot draws ratios of nets: give --against, and no --layers or --ops")


def known(names: list[str], among: Iterable[str], what: str) -> list[str]:
    for name in names:
        if name not in among:
            raise ValueError(f"unknown {what} {name!r}; expected some of {', '.join(among)}")
    return names


def numbers(text: str, option: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise ValueError(f"{option}: expected numbers from 1 with commas between, got {text!r}")
    return found


def in_processes(options: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """Measure in a process for each number of threads, as libraries take theirs when loaded."""
    machine: dict[str, Any] = {}
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "results.json"
        for threads in options.threads:
            command = [sys.executable, __file__, *argv, "--threads", str(threads)]
            done = subprocess.run(
                [*command, "--into", str(into)], env=held_to(threads), check=False
            )
            if done.returncode:
                sys.exit(done.returncode)
            found = json.loads(into.read_text())
            machine = found["machine"]
            results += found["results"]
    return {"machine": machine, "results": results}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = arguments(argv)
    if options.into:
        options.into.write_text(json.dumps(measure(options)))
        return 0
    absent = bench_sides.missing(options.against)
    if absent is None and options.plot and importlib.util.find_spec("matplotlib") is None:
        absent = "--plot needs matplotlib: pip install matplotlib"
    if absent:
        sys.exit(absent)
    found = in_processes(options, argv)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        from bench_plot import draw

        draw(found["results"], bool(options.scan), options.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
