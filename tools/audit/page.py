"""Draws the audit as one self-contained HTML page, pictures included, under 1 MB."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from brainq_torch.data.leakage.candidates import ORIENTATIONS, orient
from brainq_torch.data.leakage.near_duplicates import COPY, SCAN
from tools.audit.findings import Audit

_SIDE = 96  # pixels of a thumbnail
_QUALITY = 55
_PAIRS, _CONFLICTS, _MEMBERS = 12, 12, 16  # pictures shown; with the means at most 130 of about 3 kB each

type Figure = tuple[Sequence[NDArray[np.uint8]], Sequence[object]]
"""One image, or two beside each other, and the lines below."""


def render_page(found: Audit, pixels: NDArray[np.uint8]) -> str:
    """Return the page as HTML. pixels: (N, s, s) uint8, as audited."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"jpeg": _jpeg, "percent": "{:.1%}".format}
    splits = found.to_json()["splits"]
    ways = {split: found.orientations(split) for split in found.matches}
    return environment.get_template("page.html.j2").render(
        found=found,
        name=found.folder.root.resolve().name,
        pictures=_Pictures(found, pixels),
        classes=list(found.classes),
        orientations=list(ORIENTATIONS),
        least_alike=_PAIRS,
        errors=[problem for problem in found.folder.problems if problem.severity == "error"],
        counts=[[split, *counts.values(), sum(counts.values())] for split, counts in splits.items()],
        ways={
            split: [[label, *(counts.get(way, 0) for way in ORIENTATIONS)] for label, counts in table.items()]
            for split, table in ways.items()
        },
        distinct=[
            [name.replace("_", " "), row["pictures"], *row["pictures_per_class"].values(), row["largest_group"]]
            for name, row in found.duplicates().items()
        ],
        probes=[
            [probe.name, probe.meaning, f"{probe.balanced_accuracy:.1%}", *(f"{v:.0%}" for v in probe.recall.values())]
            for probe in found.probes
        ],
    )


@dataclass(frozen=True)
class _Pictures:
    """What of the images is shown."""

    found: Audit
    pixels: NDArray[np.uint8]

    def pairs(self, split: str) -> list[Figure]:
        """Return copies of a split beside their sources: a cross-section, then the least alike."""
        ordered = sorted(self.found.matches[split], key=lambda match: -match.correlation)
        return [
            (
                [self.pixels[match.image], orient(self.pixels[match.source], match.turn)],
                [
                    self._path(match.image),
                    self._path(match.source),
                    f"{ORIENTATIONS[match.turn]}, correlation {match.correlation:.3f}",
                ],
            )
            for match in [*_spread(ordered[:-_PAIRS]), *ordered[-_PAIRS:]]
        ]

    def conflicts(self) -> list[list[Figure]]:
        """Return, for each picture under several labels, one image of each label."""
        labels = self.found.labels
        seen = [{int(labels[image]): image for image in reversed(group)} for group in self.found.conflicts]
        return [self._singles(list(images.values())) for images in seen[:_CONFLICTS]]

    def largest_group(self) -> tuple[int, list[Figure]]:
        """Return the size of the largest group, and some of its images."""
        groups = self.found.links.groups(SCAN)
        largest = np.flatnonzero(groups == np.bincount(groups).argmax()).tolist()
        return len(largest), self._singles(_spread(largest, _MEMBERS))

    def weakest_links(self) -> list[Figure]:
        """Return the least similar pairs that still count as copies."""
        links = self.found.links
        copies = np.flatnonzero(links.kind == COPY)
        figures: list[Figure] = []
        for link in copies[np.argsort(links.overall[copies])[:_PAIRS]]:
            first, second = int(links.first[link]), int(links.second[link])
            images = [orient(self.pixels[first], int(links.turn[link])), self.pixels[second]]
            caption = [self._path(first), self._path(second), f"similarity {links.overall[link]:.3f}"]
            figures.append((images, caption))
        return figures

    def means(self) -> list[Figure]:
        """Return the mean image of each class that has any."""
        of_class = {name: self.pixels[self.found.labels == label] for label, name in enumerate(self.found.classes)}
        shown = {name: images.mean(axis=0).astype(np.uint8) for name, images in of_class.items() if len(images)}
        return [([image], [f"mean {name}"]) for name, image in shown.items()]

    def coloured(self) -> list[Figure]:
        """Return some of the images with coloured marks."""
        return self._singles(_spread(self.found.coloured_images()))

    def _singles(self, images: Sequence[int]) -> list[Figure]:
        return [([self.pixels[image]], [self._path(image)]) for image in images]

    def _path(self, image: int) -> str:
        return self.found.folder.records[image].path


def _spread[T](items: Sequence[T], count: int = _PAIRS) -> list[T]:
    """Return up to ``count`` items at even steps, first and last included."""
    if len(items) <= count:
        return list(items)
    return [items[round(step * (len(items) - 1) / (count - 1))] for step in range(count)]


def _jpeg(image: NDArray[np.uint8]) -> str:
    """Return a thumbnail as a data URL."""
    file = io.BytesIO()
    small = Image.fromarray(np.ascontiguousarray(image)).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    small.save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
