"""Draws accuracy against bits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from brainq_torch.evaluation.figure import save_figure


def plot_curve(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against bits."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(100 * points[0]["accuracy"], color="0.5", linestyle="--", label="float32")
    names = {"nearest": "rounded to nearest", "adaround": "learned (AdaRound)", "descent": "learned (descent)"}
    colours = {"nearest": "#c44e52", "adaround": "#55a868", "descent": "#4c72b0"}
    equal = [point for point in points[1:] if "layers" not in point]
    for method in dict.fromkeys(point["method"] for point in equal):
        # At 8 bits there is one way of rounding: all lines end there.
        mine = sorted((p["bits"], 100 * p["accuracy"]) for p in equal if p["method"] == method or p["bits"] == 8)
        axes.plot(*zip(*mine, strict=True), "o-", color=colours[method], label=names[method])
        for bits, accuracy in mine:
            if method == "adaround" or (bits == 8 and method != "nearest"):
                continue  # beside descent's
            below = -14 if method == "nearest" else 7
            axes.annotate(
                f"{accuracy:.1f}", (bits, accuracy), (0, below), textcoords="offset points", ha="center", fontsize=8
            )
    mixed = [point for point in points[1:] if "layers" in point]
    if mixed:
        label = f"4 or 8 bits by sensitivity, {mixed[0]['method']}"
        bits, accuracies = [p["bits"] for p in mixed], [100 * p["accuracy"] for p in mixed]
        axes.plot(bits, accuracies, "*", color="k", ms=10, label=label, zorder=3)
    axes.set(xlabel="bits per weight (ends and depthwise: 8)", ylabel="accuracy / %", xticks=range(2, 9), ylim=(0, 110))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save_figure(figure, path, dpi=110)
