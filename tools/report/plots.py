"""The plots of the report, each small enough to be read on a phone."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from PIL import Image

from brainq_torch.evaluation.figure import draw_letters
from tools.report.statistics import Reliability, find_front

_DPI, _DPI_OF_MANY = 150, 110
_COLOURS_OF_A_FILE = 64
_COLOURS = ("#0b4f9e", "#b3541e", "#17652f", "#7a2a83", "#6b6b00", "#a1121b")
_MARKERS = "osD^PX"
_SPAN = 12.0
"""Points of accuracy that the axis reaches below the best model; what is worse is shown at its edge."""

_NAME_SIZE = 7.5
_WAYS = [(1.0, 0.0), (-1.0, 0.0), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8), (0.0, 1.0), (0.0, -1.0)]
_OFFSETS = [(reach * x, reach * y) for reach in (11, 20, 31, 44, 60, 80, 105) for x, y in _WAYS]
"""Points from a mark to its name, the nearest that is free; the sides before above and below."""


@dataclass(frozen=True)
class Point:
    """One model in a cost-accuracy plot. accuracy, low, high: percent."""

    name: str
    family: str
    cost: float
    accuracy: float
    low: float
    high: float


def plot_front(points: Sequence[Point], cost: str, neighbour: float | None) -> bytes:
    """Draw accuracy against cost (logarithmic) with 95 % intervals, names and the Pareto front.

    Args:
        points: The models.
        cost: What the axis of costs is called, with its unit.
        neighbour: Accuracy of the 1-nearest-neighbour in percent, drawn where the axis reaches it; None: not measured.
    """
    figure = Figure(figsize=(5.2, 4.2), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    _set_scales(axes, points)
    bottom, top = axes.get_ylim()
    _draw_points(axes, points)
    steps = _draw_steps(axes, points)
    axes.set(xlabel=cost, ylabel="accuracy, %")
    if neighbour is not None and bottom < neighbour < top:
        axes.axhline(neighbour, color="#999999", linestyle=":", linewidth=1.2, label="1-nearest-neighbour", zorder=1)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    _place_names(figure, axes, points, steps)
    return _save(figure)


def plot_reliability(before: Reliability, after: Reliability | None, title: str) -> bytes:
    """Draw a reliability curve, before and after temperature scaling. Marks grow with the images. Returns a PNG."""
    figure = Figure(figsize=(3.8, 3.7), dpi=_DPI_OF_MANY, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":", label="perfect")
    curves = [("before", before, "#b3541e", "o"), ("after temperature", after, "#0b4f9e", "s")]
    for name, curve, colour, marker in curves:
        if curve is None:
            continue
        axes.plot(curve.confidence, curve.accuracy, color=colour, linewidth=1, alpha=0.7)
        areas = 8 + 110 * curve.images / curve.images.sum()
        axes.scatter(curve.confidence, curve.accuracy, areas, color=colour, marker=marker, label=name, alpha=0.8)
    axes.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1.03), ylim=(-0.03, 1.05))
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    legend = axes.legend(loc="lower right", fontsize=8, frameon=False)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([25])
    return _save(figure)


def _draw_points(axes: Axes, points: Sequence[Point]) -> None:
    """Draw a mark for each model; one that is far below the axis has it at the edge."""
    bottom, _ = axes.get_ylim()
    families = list(dict.fromkeys(point.family for point in points))
    for place, family in enumerate(families):
        own = [point for point in points if point.family == family and point.accuracy > bottom]
        axes.errorbar(
            [point.cost for point in own],
            [point.accuracy for point in own],
            yerr=[[p.accuracy - p.low for p in own], [p.high - p.accuracy for p in own]],
            fmt=_MARKERS[place % len(_MARKERS)], color=_COLOURS[place % len(_COLOURS)], ecolor="#b8c0c8",
            elinewidth=1.2, markersize=6, label=family, zorder=3,
        )  # fmt: skip
    below = [point for point in points if point.accuracy <= bottom]
    if below:
        axes.plot(
            [point.cost for point in below], [bottom] * len(below), "v", color="#a1121b", clip_on=False,
            label="far below the axis", zorder=5,
        )  # fmt: skip


def _draw_steps(axes: Axes, points: Sequence[Point]) -> list[tuple[float, float]]:
    """Draw the Pareto front. Returns its corners."""
    front = find_front(np.array([p.cost for p in points]), np.array([p.accuracy for p in points]))
    corners = [(points[i].cost, points[i].accuracy) for i in front]
    steps = list(chain(*(((x, y), (following, y)) for (x, y), (following, _) in pairwise(corners)), corners[-1:]))
    axes.plot(*zip(*steps, strict=True), color="#555555", linestyle="--", linewidth=1, label="Pareto front", zorder=2)
    return steps


def _set_scales(axes: Axes, points: Sequence[Point]) -> None:
    axes.set_xscale("log")
    costs = [point.cost for point in points]
    axes.set_xlim(min(costs) / 1.6, max(costs) * 1.9)
    # Plain numbers: 1, 2, 5, 10 and not powers of ten.
    ticks = [base * 10.0**power for power in range(-6, 7) for base in (1, 2, 5)]
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    top = max(point.high for point in points)
    bottom = min(point.low for point in points if point.accuracy > max(p.accuracy for p in points) - _SPAN)
    room = max(0.2 * (top - bottom), 0.3)
    axes.set_ylim(bottom - room, top + room)


def _place_names(figure: Figure, axes: Axes, points: Sequence[Point], steps: Sequence[tuple[float, float]]) -> None:
    """Write each name at the nearest place where it covers no other name, no mark and nothing of the front."""
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    bottom, _ = axes.get_ylim()
    places = [(point.cost, max(point.accuracy, bottom)) for point in points]
    marks = axes.transData.transform(places)
    taken = [Bbox.from_bounds(x - 5 * scale, y - 5 * scale, 10 * scale, 10 * scale) for x, y in marks]
    taken += [Bbox([start, end]).padded(2 * scale) for start, end in pairwise(axes.transData.transform(steps))]
    frame = axes.get_window_extent()
    for index in np.argsort(-marks[:, 1], kind="stable"):
        point = points[index]
        note = axes.annotate(
            point.name if point.accuracy > bottom else f"{point.name}: {point.accuracy:.1f} %", places[index],
            xytext=(0, 0), textcoords="offset points", fontsize=_NAME_SIZE, zorder=4, va="center",
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip
        boxes = {offset: _put(note, offset) for offset in _OFFSETS}
        taken.append(_put(note, min(boxes, key=lambda offset: _count_covered(boxes[offset], taken, frame))))


def _put(note: Annotation, offset: tuple[float, float]) -> Bbox:
    """Write a name so many points beside its mark. Returns where it lies, with a little room around it."""
    note.set_position(offset)
    note.set_horizontalalignment("left" if offset[0] > 0 else "right" if offset[0] < 0 else "center")
    note.get_window_extent()  # brings its text there
    return Text.get_window_extent(note).padded(2)


def _count_covered(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> int:
    """Return how many names and marks a box covers; leaving the frame is worse than all of them."""
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return sum(bool(box.overlaps(other)) for other in taken) + (0 if inside else len(taken) + 1)


def _save(figure: Figure) -> bytes:
    drawn, file = io.BytesIO(), io.BytesIO()

    def draw() -> None:
        drawn.seek(0)
        figure.savefig(drawn, format="png")

    draw_letters(figure, draw, "a figure of the report")
    # A third of the size, which counts twice: the page holds it, too. No software version inside: the same bytes again.
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(_COLOURS_OF_A_FILE, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()
