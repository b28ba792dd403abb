"""What an audit finds: leaks, copies with their sources, conflicting labels, shortcuts."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brainq_torch.data.dataset.sample import ImageFolder
from brainq_torch.data.leakage.candidates import ORIENTATIONS, orient, shrink
from brainq_torch.data.leakage.check import (
    NEIGHBOUR_SIDE,
    SOURCES,
    LeakCheck,
    ask_neighbours,
    check_splits,
    grouped_split,
    share_group,
)
from brainq_torch.data.leakage.groups import find_all_links
from brainq_torch.data.leakage.near_duplicates import COPY, EQUAL, SCAN, Links
from brainq_torch.data.reading.raster import COLOURED
from tools.audit.shortcuts import Probe, run_probes
from tools.audit.sources import SourceAudit, audit_sources

_NEAR_EQUAL = 0.99  # correlation at 32 x 32, same field of view; the real data have a gap from 0.98 to 0.998
_MATCH_SIDE = 32
_LINKED = {EQUAL: "pixel_equal", COPY: "copies", SCAN: "related"}


@dataclass(frozen=True)
class Match:
    """One held-out image and the image it is a copy of, by position.

    image: position of the held-out image. source: position of the image that it is a copy of. turn: ``orient(source,
    turn)`` looks like the image. correlation: at 32 x 32, whole frame.
    """

    image: int
    source: int
    turn: int
    correlation: float

    @property
    def how(self) -> str:
        """Return in one word how the two differ."""
        if self.correlation < _NEAR_EQUAL:
            return "altered"  # windowed, sharpened, cropped or padded anew
        return "same" if self.turn == 0 else "turned"


@dataclass(frozen=True)
class Audit:
    """Everything that was found. Positions are those of ``folder.records``.

    folder: the images. labels: (N,). links: which images are copies of each other, or slices of one head. checks: per
    held-out split. matches: per held-out split, every copied image with its nearest source. conflicts: copies of one
    picture under several labels. grouped_neighbour: 1-NN accuracy on a fifth of the images other than Testing, no group
    divided; None where a class cannot be divided. probes: how well linear classifiers tell the class from very little.
    sources: what was found across them, where the images name several.
    """

    folder: ImageFolder
    labels: NDArray[np.int64]
    links: Links
    checks: dict[str, LeakCheck]
    matches: dict[str, list[Match]]
    conflicts: list[list[int]]
    grouped_neighbour: float | None
    probes: list[Probe]
    sources: SourceAudit | None = None

    @property
    def leaks(self) -> bool:
        """Whether any held-out split leaks."""
        return any(check.leaks for check in self.checks.values())

    def verdict(self) -> list[str]:
        """Return one plain sentence per finding that changes what a figure means."""
        lines = [f"{split}: {check.verdict}" for split, check in self.checks.items()]
        lines = lines or ["the data set has one split only: nothing can leak yet; divide it by the groups"]
        coloured, sizes = self.coloured(), Counter(self.labels.tolist())
        if len({coloured.get(name, 0) / sizes[label] for label, name in enumerate(self.classes) if sizes[label]}) > 1:
            where = ", ".join(f"{count} of {name}" for name, count in coloured.items())
            lines.append(f"coloured marks, which tell the class where classes differ: on {where}")
        if self.conflicts:
            count = len(self.conflicts)
            lines.append(f"{count} {'picture stands' if count == 1 else 'pictures stand'} under more than one label")
        return [*lines, *(self.sources.verdict() if self.sources else [])]

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names in label order."""
        return self.folder.classes

    def coloured(self) -> dict[str, int]:
        """Count the images with coloured pixels (arrows, overlays, photographs) of each class that has any."""
        counts = Counter(self.classes[self.labels[image]] for image in self.coloured_images())
        return {name: counts[name] for name in self.classes if counts[name]}

    def coloured_images(self) -> list[int]:
        """Return the positions of the images with coloured pixels."""
        paths = {problem.path for problem in self.folder.problems if problem.what == COLOURED}
        return [image for image, record in enumerate(self.folder.records) if record.path in paths]

    def duplicates(self) -> dict[str, Any]:
        """Count groups and images at every strength of link."""
        table = {}
        for kind, name in _LINKED.items():
            groups = self.links.groups(kind)
            sizes = np.bincount(groups)
            table[name] = {
                "pictures": len(sizes),
                "groups_of_several": int((sizes > 1).sum()),
                "images_in_them": int(sizes[sizes > 1].sum()),
                "largest_group": int(sizes.max()),
                "pictures_per_class": {
                    name: len(np.unique(groups[self.labels == label])) for label, name in enumerate(self.classes)
                },
                "images_with_a_partner": _partners(self.folder, self.labels, groups),
            }
        return table

    def to_json(self) -> dict[str, Any]:
        """Return the whole audit as plain data."""
        paths = [record.path for record in self.folder.records]
        counts = Counter((record.split, self.classes[record.label]) for record in self.folder.records)
        splits = {split: {name: counts[split, name] for name in self.classes} for split in self.folder.split_counts()}
        return {
            "verdict": self.verdict(),
            "leaks": self.leaks,
            "n": len(paths),
            "splits": splits,
            "held_out": {split: check.to_json() for split, check in self.checks.items()},
            "leaked_how": {split: self.how(split) for split in self.matches},
            "leaked_orientation": {split: self.orientations(split) for split in self.matches},
            "duplicates": self.duplicates(),
            "label_conflicts": [
                [{"path": paths[image], "label": self.classes[self.labels[image]]} for image in group]
                for group in self.conflicts
            ],
            "grouped_nearest_neighbour": self.grouped_neighbour,
            "coloured": self.coloured(),
            "shortcuts": [asdict(probe) for probe in self.probes],
            **({"sources": self.sources.to_json()} if self.sources else {}),
            "problems": [asdict(problem) for problem in self.folder.problems],
            "leaked": {
                split: [
                    {
                        "path": paths[match.image],
                        "copy_of": paths[match.source],
                        "orientation": ORIENTATIONS[match.turn],
                        "correlation": round(match.correlation, 4),
                    }
                    for match in matches
                ]
                for split, matches in self.matches.items()
            },
        }

    def how(self, split: str) -> dict[str, int]:
        """Count how the copies of a split differ from their sources."""
        counts = Counter(match.how for match in self.matches[split])
        return {how: counts[how] for how in ("same", "turned", "altered")}

    def orientations(self, split: str) -> dict[str, dict[str, int]]:
        """Count, per class, how the copies of a split are turned and mirrored against their sources."""
        counts = Counter((int(self.labels[match.image]), match.turn) for match in self.matches[split])
        return {
            name: {way: counts[label, turn] for turn, way in enumerate(ORIENTATIONS) if counts[label, turn]}
            for label, name in enumerate(self.classes)
        }


def audit(folder: ImageFolder, pixels: NDArray[np.uint8]) -> Audit:
    """Audit a data set, decoded as (N, s, s) uint8 in record order."""
    labels = np.array([record.label for record in folder.records])
    splits = np.array([record.split for record in folder.records])
    links = find_all_links(folder.records, pixels)
    checks = check_splits(pixels, labels, splits, links)
    matches = {split: find_matches(pixels, links, splits == split, np.isin(splits, SOURCES[split])) for split in checks}
    groups = links.groups(SCAN)
    return Audit(
        folder,
        labels,
        links,
        checks,
        matches,
        _conflicts(labels, links.groups(COPY)),
        _grouped_neighbour(pixels, labels, groups, splits != "Testing"),
        run_probes(pixels, labels, groups, classes=folder.classes),
        audit_sources(folder, pixels, labels, links),
    )


def find_matches(
    pixels: NDArray[np.uint8], links: Links, held_out: NDArray[np.bool_], source: NDArray[np.bool_]
) -> list[Match]:
    """Name, for every held-out image that is a copy, the source of its group that it resembles most."""
    groups = links.groups(COPY)
    wanted = share_group(groups, held_out, source)
    small = np.zeros((len(pixels), _MATCH_SIDE, _MATCH_SIDE), np.float32)
    for position in np.flatnonzero(np.isin(groups, groups[wanted])):
        image = Image.fromarray(pixels[position])
        small[position] = np.asarray(image.resize((_MATCH_SIDE, _MATCH_SIDE), Image.Resampling.BOX))
    small -= small.mean(axis=(1, 2), keepdims=True)
    small /= np.linalg.norm(small, axis=(1, 2), keepdims=True) + 1e-6
    matches = []
    for image in np.flatnonzero(wanted):
        members = np.flatnonzero((groups == groups[image]) & source)
        views = np.stack([orient(small[members], turn) for turn in range(len(ORIENTATIONS))])
        scores = np.einsum("tmij,ij->tm", views, small[image])
        upright = scores[0].max() >= _NEAR_EQUAL  # told first: it needs no turning to be memorised
        turn, member = np.unravel_index((scores[:1] if upright else scores).argmax(), scores.shape)
        matches.append(Match(int(image), int(members[member]), int(turn), float(scores[turn, member])))
    return matches


def _partners(folder: ImageFolder, labels: NDArray[np.int64], groups: NDArray[np.int64]) -> dict[str, int]:
    """Count images that share their group with another, by where that one is."""
    splits = np.unique([record.split for record in folder.records], return_inverse=True)[1]

    def sizes(*keys: NDArray[np.int64]) -> NDArray[np.int64]:
        _, number, count = np.unique(np.stack([groups, *keys]), axis=1, return_inverse=True, return_counts=True)
        return np.asarray(count[number.ravel()])

    everyone, same_split, same_class, both = sizes(), sizes(splits), sizes(labels), sizes(splits, labels)
    return {
        "same_split_same_class": int((both > 1).sum()),
        "same_split_other_class": int((same_split > both).sum()),
        "other_split_same_class": int((same_class > both).sum()),
        "other_split_other_class": int((everyone - same_split > same_class - both).sum()),
    }


def _conflicts(labels: NDArray[np.int64], groups: NDArray[np.int64]) -> list[list[int]]:
    """Return the members of every group that has more than one label."""
    members: dict[int, list[int]] = {}
    for image, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(image)
    return [images for images in members.values() if len({int(labels[image]) for image in images}) > 1]


def _grouped_neighbour(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64], groups: NDArray[np.int64], usable: NDArray[np.bool_]
) -> float | None:
    """Return 1-NN accuracy on a fifth of the usable images, no group divided, or None where no such part exists."""
    pixels, labels, groups = shrink(pixels, NEIGHBOUR_SIDE)[usable], labels[usable], groups[usable]
    if any(len(np.unique(groups[labels == label])) < 2 for label in np.unique(labels)):
        return None
    part = grouped_split(labels, groups, 0.2, seed=0)
    return float(ask_neighbours(pixels[~part], labels[~part], pixels[part], labels[part]).mean())
