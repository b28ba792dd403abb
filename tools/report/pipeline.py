"""Draws the way from images to verified files as SVG, in as many columns as the page has room for."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from tools.report.stored_study import Study

_WIDTH, _HEIGHT, _GAP = 186, 92, 30  # of a box and between two, in pixels
_LINE_LETTERS, _LINES = 25, 3


@dataclass(frozen=True)
class Step:
    """One box. kind: 0 for data, 1 for training, 2 for compression, 3 for checking."""

    title: str
    text: str
    kind: int


_FILLS = ("#eef4fb", "#fdf3ea", "#eef7f0", "#f6eefa")
_EDGES = ("#0b4f9e", "#b3541e", "#17652f", "#7a2a83")


def describe_steps(study: Study) -> tuple[Step, ...]:
    """Return the boxes, with what this study made in each."""
    families = list(dict.fromkeys(row.family for row in study.rows))
    recipes = list(dict.fromkeys(row.recipe for row in study.done if not row.is_float))
    judged = [row.parity.passed for row in study.done if row.parity is not None]
    return (
        Step(
            "Images", f"{study.data['images']} {study.data['split']} images, {study.data['unseen']} without a copy", 0
        ),
        Step("Data", "copies found and kept together, one way to resize", 0),
        Step("Networks", ", ".join(families), 1),
        Step("Training", "three stages; float, quantization-aware, distilled", 1),
        Step("ONNX", "float, and integers as they were trained", 2),
        Step("TFLite", textwrap.shorten(", ".join(recipes), 75, placeholder=" ..."), 2),
        Step("Parity", f"every file against ONNX Runtime: {sum(judged)} of {len(judged)} passed", 3),
        Step("This report", f"{len(study.done)} of {len(study.rows)} rows measured, every figure linked", 3),
    )


def draw_pipeline(steps: tuple[Step, ...], columns: int) -> bytes:
    """Return the picture as SVG; rows run to and fro, so that each arrow is short."""
    rows = -(-len(steps) // columns)
    width, height = columns * (_WIDTH + _GAP) - _GAP + 4, rows * (_HEIGHT + _GAP) - _GAP + 4
    places = [_place(index, columns) for index in range(len(steps))]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(describe_picture(steps))}" font-family="system-ui,sans-serif">',
        *(_arrow(start, end) for start, end in pairwise(places)),
        *(_box(step, place) for step, place in zip(steps, places, strict=True)),
        "</svg>",
    ]
    return "".join(parts).encode("utf-8")


def describe_picture(steps: tuple[Step, ...]) -> str:
    """Return the picture in words."""
    return "The pipeline: " + ", then ".join(f"{step.title} ({step.text})" for step in steps)


def _place(index: int, columns: int) -> tuple[int, int]:
    row, column = divmod(index, columns)
    column = columns - 1 - column if row % 2 else column
    return 2 + column * (_WIDTH + _GAP), 2 + row * (_HEIGHT + _GAP)


def _box(step: Step, place: tuple[int, int]) -> str:
    x, y = place
    lines = textwrap.wrap(step.text, _LINE_LETTERS)[:_LINES]
    text = "".join(
        f'<text x="{x + 10}" y="{y + 43 + 16 * number}" font-size="12" fill="#333">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return (
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="{_FILLS[step.kind]}" '
        f'stroke="{_EDGES[step.kind]}" stroke-width="1.5"/>'
        f'<text x="{x + 10}" y="{y + 23}" font-size="15" font-weight="600" fill="{_EDGES[step.kind]}">'
        f"{escape(step.title)}</text>{text}"
    )


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    (x0, y0), (x1, y1) = start, end
    if y0 == y1:
        way = 1 if x1 > x0 else -1
        y = y0 + _HEIGHT // 2
        first, last = (x0 + _WIDTH, x1) if way > 0 else (x0, x1 + _WIDTH)
        line, head = (
            f"{first},{y} {last - 9 * way},{y}",
            f"{last - 2 * way},{y} {last - 11 * way},{y - 6} {last - 11 * way},{y + 6}",
        )
    else:
        x = x0 + _WIDTH // 2
        line, head = f"{x},{y0 + _HEIGHT} {x},{y1 - 9}", f"{x},{y1 - 2} {x - 6},{y1 - 11} {x + 6},{y1 - 11}"
    return (
        f'<polyline points="{line}" stroke="#57606a" stroke-width="2" fill="none"/>'
        f'<polygon points="{head}" fill="#57606a"/>'
    )
