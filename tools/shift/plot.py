"""Draws the shift suite: the grid as a heat map, and what the shifts look like."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.synthesis.corruptions import CORRUPTIONS, STRENGTHS, Grey
from brainq_torch.evaluation.figure import save_figure
from brainq_torch.run_files import atomic_path
from brainq_torch.series.montage import drawable

_TILE = 96  # pixels
_LABEL = 110


def plot_grid(report: dict[str, Any], path: str | Path) -> None:
    """Write a heat map of accuracies in percent; with a second model, of its differences in points beside it."""
    models = [report, *([report["compare"]] if "compare" in report else [])]
    titles = _tell_apart([model["model"] for model in models])
    panels = [(title, _accuracies(model), "viridis", 0.0, 100.0) for title, model in zip(titles, models, strict=True)]
    if "compare" in report:
        panels.append(("second less first, points", panels[1][1] - panels[0][1], "RdBu", -10.0, 10.0))
    figure = Figure(figsize=(1.4 + 3.2 * len(panels), 8.4), layout="constrained")
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels), sharey=True)), panels, strict=True):
        _draw_panel(axes, *panel)
    figure.suptitle(f"accuracy, {report['n']} images, {report['split']}")
    save_figure(figure, path, dpi=110)


def _tell_apart(paths: Sequence[str]) -> list[str]:
    """Return the paths' ends, a line for each folder, as far as it takes for no two to be alike."""
    parts = [Path(path).parts for path in paths]
    ends = [["/\n".join(part[-length:]) for part in parts] for length in range(1, 1 + max(map(len, parts)))]
    return next((titles for titles in ends if len(set(titles)) == len(titles)), ends[0])


def _accuracies(report: dict[str, Any]) -> NDArray[np.float64]:
    """Return (rows, 3) percent, NaN where there is nothing."""
    rows = [[report["clean"]["accuracy"], None, None]]
    rows += [[report["corruptions"][name][str(strength)]["accuracy"] for strength in STRENGTHS] for name in CORRUPTIONS]
    rows.append([report["mean"][str(strength)]["accuracy"] for strength in STRENGTHS])
    for name in CLASSES:
        style = report["styles"][name]
        rows.append([style["accuracy"], style["accuracy_of_own_class"], None])
    rows += [[row["accuracy"], row["found"], None] for row in report["lesions"].values()]
    return 100 * np.array(rows, float)


def _draw_panel(axes: Axes, title: str, values: NDArray[np.float64], colours: str, low: float, high: float) -> None:
    names = ["clean", *CORRUPTIONS, "mean", *(f"style of {name}*" for name in CLASSES)]
    names += [f"painted {name}**" for name in CLASSES if name != "notumor"]
    image = axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            red, green, blue, _ = image.to_rgba(np.array(value))
            colour = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=8)
    for line in (0.5, len(CORRUPTIONS) + 0.5, len(CORRUPTIONS) + 1.5, len(CORRUPTIONS) + len(CLASSES) + 1.5):
        axes.axhline(line, color="white", linewidth=2)
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(STRENGTHS)), [str(strength) for strength in STRENGTHS])
    axes.set_xlabel("strength\n* other classes, own class\n** right class, not called notumor", fontsize=8)
    axes.set_title(title, fontsize=9)


def plot_pictures(examples: Sequence[tuple[str, Sequence[Grey | None]]], path: str | Path) -> None:
    """Write every shift of one image per class: a row per corruption, the clean image first."""
    across = 1 + len(STRENGTHS)
    rows = [*CORRUPTIONS, "styles", "lesions"]
    sheet = Image.new("L", (_LABEL + across * _TILE * len(examples), 16 + _TILE * len(rows)))
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(rows):
        draw.text((4, 16 + row * _TILE + _TILE // 2), name, fill=255)
    for place, (name, images) in enumerate(examples):
        draw.text((_LABEL + place * across * _TILE + 4, 2), drawable(name), fill=255)
        clean, rest = images[0], list(images[1:])
        grid = [[clean, *rest[start : start + across - 1]] for start in range(0, 3 * len(CORRUPTIONS), 3)]
        styles = rest[3 * len(CORRUPTIONS) :]
        grid += [styles[: len(CLASSES)], [clean, *styles[len(CLASSES) :]]]
        for row, tiles in enumerate(grid):
            for column, tile in enumerate(tiles):
                if tile is not None:
                    x = _LABEL + (place * across + column) * _TILE
                    small = Image.fromarray(tile).resize((_TILE - 2, _TILE - 2), Image.Resampling.BILINEAR)
                    sheet.paste(small, (x, 16 + row * _TILE))
    with atomic_path(Path(path)) as partial:
        sheet.save(partial, "PNG")
