"""Pictures of results: ratios as bars by network, or over the batch size as lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#000000")
"""Okabe and Ito's, which colour-blind readers tell apart."""


def draw(results: Sequence[dict[str, Any]], scan: bool, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    series = grouped(results)
    # Room for the number above each bar.
    width = 7 if scan else max(7.0, 0.4 * sum(map(len, series.values())))
    figure, axes = plt.subplots(figsize=(width, 4), layout="constrained")
    axes.set_prop_cycle(color=COLOURS)
    if scan:
        for label, of_label in series.items():
            for net in dict.fromkeys(r["net"] for r, _ in of_label):
                points = [(r["batch"], ratio) for r, ratio in of_label if r["net"] == net]
                axes.plot(*zip(*points, strict=True), "o-", label=f"{net}, {label}")
        batches = sorted({r["batch"] for r in results})
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(b) for b in batches])
        axes.set_xlabel("batch size")
    else:
        nets = list(dict.fromkeys(r["net"] for r in results))
        width = 0.8 / len(series)
        for i, (label, of_label) in enumerate(series.items()):
            shift = (i - (len(series) - 1) / 2) * width
            places = [nets.index(r["net"]) + shift for r, _ in of_label]
            bars = axes.bar(places, [ratio for _, ratio in of_label], width * 0.95, label=label)
            axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
        axes.set_xticks(range(len(nets)), nets)
        axes.margins(y=0.1)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylim(bottom=0)
    what = ("memory of a " if "mb" in results[0] else "") + results[0]["what"]
    axes.set_ylabel(f"{what}: dualcnn / other")
    axes.set_title("Below the line dualcnn is ahead", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def grouped(results: Sequence[dict[str, Any]]) -> dict[str, list[tuple[dict[str, Any], float]]]:
    """Rows with their ratio, by library and number of threads."""
    series: dict[str, list[tuple[dict[str, Any], float]]] = {}
    for row in results:
        for library, ratio in row["ratios"].items():
            threads = row["threads"]
            label = f"{library}, {threads} thread" + "s" * (threads > 1)
            series.setdefault(label, []).append((row, ratio))
    return series
