"""Train the same network on the whole of MNIST by direct and by Winograd's arithmetic.

    python scripts/exact_and_winograd.py --json docs/exact_and_winograd.json \
        --plot docs/exact_and_winograd.png

Winograd's convolution rounds ten times more coarsely than a direct one. Whether that matters is
asked of whole trainings: each seed gives both the same initial weights and the same order of
images. The two end within each other's spread if the difference of their means is small beside the
deviation over seeds. `--jobs` trainings run at a time, each on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

WAYS = ("exact", "winograd")


def one_thread() -> None:
    """Before NumPy is loaded: a training keeps to one core."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "DUALCNN_THREADS"):
        os.environ[name] = "1"


def train(way: str, seed: int, epochs: int, batch_size: int, limit: int | None) -> dict[str, Any]:
    """One training: losses, a mean for each tenth of an epoch, and test accuracy an epoch."""
    import dualcnn
    from dualcnn import data, models, nn, optim

    dualcnn.manual_seed(seed)
    train_set, test_set = data.mnist()
    if limit is not None:
        train_set, test_set = train_set[:limit], test_set[:limit]
    model = models.build("cnn")
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    loss_of = nn.CrossEntropyLoss()
    batches = data.DataLoader(train_set, batch_size=batch_size, shuffle=True, seed=seed)
    held = data.DataLoader(test_set, batch_size=500)
    losses: list[float] = []
    accuracies = []
    start = time.perf_counter()
    with dualcnn.algorithms(exact=way == "exact"):
        for _ in range(epochs):
            model.train()
            recent = []
            for x, y in batches:
                optimizer.zero_grad()
                loss = loss_of(model(x), y)
                loss.backward()
                optimizer.step()
                recent.append(float(loss))
            size = max(1, -(-len(recent) // 10))
            losses += [statistics.mean(recent[i : i + size]) for i in range(0, len(recent), size)]
            model.eval()
            with dualcnn.no_grad():
                right = sum(int((model(x).argmax(dim=1) == y).sum()) for x, y in held)
            accuracies.append(right / len(test_set))
    seconds = time.perf_counter() - start
    return {
        "way": way,
        "seed": seed,
        "losses": losses,
        "accuracies": accuracies,
        "seconds": round(seconds, 1),
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and deviation over seeds of what the last epoch gave."""
    rows = []
    for way in WAYS:
        ended = [100 * r["accuracies"][-1] for r in runs if r["way"] == way]
        losses = [r["losses"][-1] for r in runs if r["way"] == way]
        rows.append(
            {
                "way": way,
                "accuracy": round(statistics.mean(ended), 3),
                "deviation": round(statistics.stdev(ended), 3) if len(ended) > 1 else 0.0,
                "lowest": round(min(ended), 2),
                "highest": round(max(ended), 2),
                "loss": round(statistics.mean(losses), 5),
                "seconds": round(statistics.mean(r["seconds"] for r in runs if r["way"] == way)),
            }
        )
    return rows


def plot(runs: list[dict[str, Any]], epochs: int, path: Path) -> None:
    """Loss while training and test accuracy after each epoch, a line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    colours = {"exact": "tab:blue", "winograd": "tab:orange"}
    for run in runs:
        look = {"color": colours[run["way"]], "alpha": 0.6, "linewidth": 1.2}
        label = run["way"] if run["seed"] == min(r["seed"] for r in runs) else None
        count = len(run["losses"])
        places = [(i + 1) * epochs / count for i in range(count)]
        left.plot(places, run["losses"], label=label, **look)
        marks = [100 * a for a in run["accuracies"]]
        right.plot(range(1, epochs + 1), marks, marker="o", markersize=4, label=label, **look)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch", ylabel="test accuracy, %", xticks=range(1, epochs + 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--limit", type=int, help="only that many images of each set")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write every run to this file")
    parser.add_argument("--plot", type=Path, help="draw the runs; needs matplotlib")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    plan = [(way, seed) for seed in range(options.seeds) for way in WAYS]
    rest = options.epochs, options.batch_size, options.limit
    one_thread()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(train, way, seed, *rest) for way, seed in plan]
        runs = []
        for job in jobs:
            run = job.result()
            runs.append(run)
            print(
                f"seed {run['seed']}, {run['way']}: test accuracy "
                f"{100 * run['accuracies'][-1]:.2f} % after {run['seconds']:.0f} s",
                flush=True,
            )
    rows = summary(runs)
    for row in rows:
        print(
            f"{row['way']}: {row['accuracy']:.3f} % on average, deviation {row['deviation']:.3f}, "
            f"{row['lowest']:.2f} to {row['highest']:.2f}; last losses {row['loss']:.5f}"
        )
    if options.json:
        text = json.dumps({"date": time.strftime("%Y-%m-%d"), "summary": rows, "runs": runs})
        options.json.write_text(text + "\n")
    if options.plot:
        plot(runs, options.epochs, options.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
