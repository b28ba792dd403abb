"""Draws the audit as one self-contained HTML page, pictures included, under 1 MB."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.leakage.near_duplicates import COPY, ORIENTATIONS, SCAN, orient
from brainq_torch.data.reading.raster import COLOURED

if TYPE_CHECKING:
    from tools.audit.__main__ import Audit, Match

_SIDE = 96  # pixels of a thumbnail
_QUALITY = 55
_PAIRS, _CONFLICTS, _MEMBERS = 12, 12, 16  # pictures shown; with the means at most 130 of about 3 kB each

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1a1a1a;background:#fff}
h1{font-size:1.5rem;margin-bottom:.2rem} h2{font-size:1.1rem;margin:2rem 0 .4rem;border-bottom:1px solid #ccc}
.verdict{padding:.6rem 1rem;margin:.3rem 0;border-left:5px solid #2a7d46;background:#eef7f0}
.verdict.bad{border-color:#b3261e;background:#fbeeed}
table{border-collapse:collapse;margin:.5rem 0} td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child,.text td:nth-child(2){text-align:left} .note{color:#555;max-width:50rem}
.strip{display:flex;flex-wrap:wrap;gap:.8rem} figure{margin:0;width:206px} figure.one{width:100px}
figure img{width:96px;height:96px;background:#000;margin-right:4px} figcaption{font-size:11px;color:#444;
overflow-wrap:anywhere}
"""


def render_page(found: Audit, pixels: NDArray[np.uint8]) -> str:
    """Return the page as HTML.

    pixels: (N, s, s) uint8, as audited.
    """
    name = escape(found.folder.root.resolve().name)
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>Data audit: {name}</title><style>{_STYLE}</style><h1>Data audit: {name}</h1>",
        *_verdict(found),
        *_counts(found),
        *_leaks(found, pixels),
        *_conflicts(found, pixels),
        *_duplicates(found, pixels),
        *_shortcuts(found, pixels),
        "<p class='note'>Not a medical device. Made by <code>python -m tools.audit</code>; the groups are in its "
        "<code>--groups</code> file: divide a data set by them, never through one.</p></html>",
    ]
    return "\n".join(parts) + "\n"


def _verdict(found: Audit) -> Iterable[str]:
    for index, line in enumerate(found.verdict()):
        bad = found.leaks if index < len(found.checks) else bool(found.conflicts)
        yield f"<p class='verdict{' bad' if bad else ''}'>{escape(line)}</p>"


def _counts(found: Audit) -> Iterable[str]:
    splits = found.to_json()["splits"]
    rows = [[split, *counts.values(), sum(counts.values())] for split, counts in splits.items()]
    yield "<h2>Images</h2>" + _table(["split", *CLASSES, "all"], rows)
    errors = [problem for problem in found.folder.problems if problem.severity == "error"]
    if errors:
        yield f"<p class='note'>{len(errors)} images could not be read, first: {escape(errors[0].path)}</p>"


def _leaks(found: Audit, pixels: NDArray[np.uint8]) -> Iterable[str]:
    for split, check in found.checks.items():
        unseen = check.nearest_neighbour_unseen
        yield f"<h2>{escape(split)} against what is trained on</h2>"
        yield _table(
            ["figure", "value"],
            [
                ["pixel-equal to a training image", _share(check.equal_count, check.test_count)],
                ["copies, also mirrored, turned, cropped, re-windowed", _share(check.copy_count, check.test_count)],
                ["with neighbouring slices of one head", _share(check.related_count, check.test_count)],
                ["1-nearest-neighbour on 32 x 32 pixels, all", f"{check.nearest_neighbour:.1%}"],
                ["the same on unseen images only", "none is unseen" if unseen is None else f"{unseen:.1%}"],
                ["always the largest class", f"{check.majority:.1%}"],
            ],
        )
        matches = found.matches[split]
        ordered = sorted(matches, key=lambda match: -match.correlation)
        chosen = [*_spread(ordered[:-_PAIRS], _PAIRS), *ordered[-_PAIRS:]]
        yield f"<h3>{len(chosen)} of {len(matches)} pairs: a cross-section, then the {_PAIRS} least alike</h3>"
        yield "<p class='note'>Left the held-out image, right its training copy, turned alike.</p>"
        yield _strip(_pair(found, pixels, match) for match in chosen)
        yield "<h3>How the held-out copies are turned against their training copy</h3>"
        yield (
            "<p class='note'>Where classes differ, the way up tells the class: train with all flips, or turn all "
            "images alike.</p>"
        )
        ways = found.orientations(split)
        rows = [[label, *(counts.get(way, 0) for way in ORIENTATIONS)] for label, counts in ways.items()]
        yield _table(["class", *ORIENTATIONS], rows)


def _conflicts(found: Audit, pixels: NDArray[np.uint8]) -> Iterable[str]:
    if not found.conflicts:
        return
    count = len(found.conflicts)
    yield f"<h2>{count} picture{'' if count == 1 else 's'} under more than one label</h2>"
    for group in found.conflicts[:_CONFLICTS]:
        seen = {int(found.labels[image]): image for image in reversed(group)}
        yield _strip(_single(found, pixels, image) for image in seen.values())


def _duplicates(found: Audit, pixels: NDArray[np.uint8]) -> Iterable[str]:
    table = found.duplicates()
    yield "<h2>Distinct pictures</h2>"
    yield _table(
        ["counted as one", "distinct", *CLASSES, "largest group"],
        [
            [name.replace("_", " "), row["pictures"], *row["pictures_per_class"].values(), row["largest_group"]]
            for name, row in table.items()
        ],
    )
    groups = found.links.groups(SCAN)
    largest = np.flatnonzero(groups == np.bincount(groups).argmax())
    if len(largest) > 1:
        shown = _spread(largest.tolist(), _MEMBERS)
        yield f"<h3>The largest group: {len(shown)} of its {len(largest)} images</h3>"
        yield "<p class='note'>Look whether it is one head: links are transitive.</p>"
        yield _strip(_single(found, pixels, image) for image in shown)
    copies = np.flatnonzero(found.links.kind == COPY)
    weakest = copies[np.argsort(found.links.overall[copies])[:_PAIRS]]
    if len(weakest):
        yield f"<h3>The {len(weakest)} weakest links that count as copies</h3>"
        yield _strip(_link(found, pixels, int(link)) for link in weakest)


def _shortcuts(found: Audit, pixels: NDArray[np.uint8]) -> Iterable[str]:
    yield "<h2>Shortcuts: what tells the class besides the tumour</h2>"
    yield _strip(
        _figure([pixels[found.labels == label].mean(axis=0).astype(np.uint8)], f"mean {name}")
        for label, name in enumerate(CLASSES)
        if (found.labels == label).any()
    )
    coloured = [
        image
        for image, record in enumerate(found.folder.records)
        if record.path in {problem.path for problem in found.folder.problems if problem.what == COLOURED}
    ]
    if coloured:
        counts = ", ".join(f"{name} {count}" for name, count in found.coloured().items())
        yield f"<h3>{len(coloured)} images have coloured marks: {escape(counts)}</h3>"
        yield _strip(_single(found, pixels, image) for image in _spread(coloured))
    if not found.probes:
        yield "<p class='note'>Too few groups per class for probes.</p>"
        return
    present = [name for name in CLASSES if name in found.probes[0].recall]
    yield (
        "<p class='note'>Linear classifiers, cross-validated with groups kept whole. Balanced accuracy; chance is "
        f"{1 / len(present):.0%}. Per class: recall.</p>"
    )
    yield "<div class=text>"
    yield _table(
        ["probe", "sees", "balanced accuracy", *present],
        [
            [probe.name, probe.meaning, f"{probe.balanced_accuracy:.1%}", *(f"{v:.0%}" for v in probe.recall.values())]
            for probe in found.probes
        ],
    )
    yield "</div>"
    if found.grouped_neighbour is not None:
        yield (
            "<p class='note'>1-nearest-neighbour on a grouped validation part: "
            f"<b>{found.grouped_neighbour:.1%}</b>. A model is worth what it has above this.</p>"
        )


def _spread[T](items: Sequence[T], count: int = _PAIRS) -> list[T]:
    """Return up to ``count`` items at even steps, first and last included."""
    if len(items) <= count:
        return list(items)
    return [items[round(step * (len(items) - 1) / (count - 1))] for step in range(count)]


def _pair(found: Audit, pixels: NDArray[np.uint8], match: Match) -> str:
    caption = f"{_path(found, match.image)}<br>{_path(found, match.source)}<br>"
    caption += f"{ORIENTATIONS[match.turn]}, correlation {match.correlation:.3f}"
    return _figure([pixels[match.image], orient(pixels[match.source], match.turn)], caption)


def _link(found: Audit, pixels: NDArray[np.uint8], link: int) -> str:
    first, second = int(found.links.first[link]), int(found.links.second[link])
    caption = f"{_path(found, first)}<br>{_path(found, second)}<br>similarity {found.links.overall[link]:.3f}"
    return _figure([orient(pixels[first], int(found.links.turn[link])), pixels[second]], caption)


def _single(found: Audit, pixels: NDArray[np.uint8], image: int) -> str:
    return _figure([pixels[image]], _path(found, image))


def _path(found: Audit, image: int) -> str:
    return escape(found.folder.records[image].path)


def _figure(images: Sequence[NDArray[np.uint8]], caption: str) -> str:
    pictures = "".join(f'<img alt="" src="{_jpeg(image)}">' for image in images)
    return f"<figure{' class=one' if len(images) == 1 else ''}>{pictures}<figcaption>{caption}</figcaption></figure>"


def _jpeg(image: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    small = Image.fromarray(np.ascontiguousarray(image)).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    small.save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _strip(figures: Iterable[str]) -> str:
    return f"<div class=strip>{''.join(figures)}</div>"


def _share(count: int, total: int) -> str:
    return f"{count} of {total} ({count / total:.1%})"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    return (
        "<table><tr>"
        + "".join(f"<th>{escape(cell)}</th>" for cell in head)
        + "</tr>"
        + "".join(f"<tr>{line}</tr>" for line in lines)
        + "</table>"
    )
