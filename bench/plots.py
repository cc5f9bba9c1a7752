"""Cost against ledger size, as SVG: the same bytes for the same data and version of matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLOTTED = {
    1: "A repeated read of metrics",
    2: "An exact read after another process appended, applied by the daemon",
    3: "An exact read after another process appended, not applied yet",
    4: "Append one event, read self-model and metrics back",
    5: "An append alone",
    6: "Daemon start with nothing published",
    7: "First read of a new process, import included",
    11: "State assembly for one user message",
}


def name_of(number: int) -> str:
    return f"row-{number}.svg"


def plotted(report: Mapping[str, Any]) -> list[int]:
    """The rows that have a plot: those with a curve of two points or more."""
    return [
        row["number"]
        for row in report["rows"]
        if row["number"] in PLOTTED and any(len(points) > 1 for points in row["curves"].values())
    ]


def write(report: Mapping[str, Any], directory: Path) -> None:
    """One file for each row that has a curve; without matplotlib, none."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("svg")
    # Else every run would name its elements otherwise.
    matplotlib.rcParams.update({"svg.hashsalt": "pmm-shm", "svg.fonttype": "none", "font.size": 9})
    directory.mkdir(parents=True, exist_ok=True)
    rows = {row["number"]: row for row in report["rows"]}
    for number in plotted(report):
        _plot(PLOTTED[number], rows[number]["curves"], directory / name_of(number))


def _plot(title: str, curves: Mapping[str, Mapping[str, float]], path: Path) -> None:
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    from pmm_shm_cli.commands.bench import duration

    figure, axes = pyplot.subplots(figsize=(7.0, 3.6), layout="constrained")
    for name, points in curves.items():
        sizes = sorted(map(int, points))
        axes.plot(sizes, [points[str(size)] for size in sizes], marker="o", markersize=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel="events in the ledger", ylabel="p50", title=title)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda microseconds, _: duration(microseconds)))
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
