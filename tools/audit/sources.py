"""Audits across sources: copies between them, what gives the source away, what the class given the source."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.console import counted
from brainq_torch.data.dataset.sample import ImageFolder
from brainq_torch.data.leakage.near_duplicates import COPY, SCAN, Links
from tools.audit.shortcuts import Probe, run_probes


@dataclass(frozen=True)
class SourceAudit:
    """What was found across sources.

    counts: images of each class of each source. copies: per pair of sources, how many images have a copy in the other.
    told: how well the class is guessed from one word of the table alone, ``source``, ``sequence`` or ``plane``: mean
    recall of the best guess, chance is 1 / classes. of_source: probes of the source. of_class: per source with
    several classes, probes of the class within it.
    """

    counts: dict[str, dict[str, int]]
    copies: dict[tuple[str, str], int]
    told: dict[str, float]
    of_source: list[Probe]
    of_class: dict[str, list[Probe]]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "counts": self.counts,
            "copies": [{"sources": list(pair), "images": count} for pair, count in self.copies.items()],
            "class_told_by": self.told,
            "source_told_by": [asdict(probe) for probe in self.of_source],
            "class_told_within": {name: [asdict(probe) for probe in each] for name, each in self.of_class.items()},
        }

    def verdict(self) -> list[str]:
        """Return one plain sentence per finding that changes what a figure means."""
        lines = [
            f"{counted(count, f'image of {a} and {b} has', f'images of {a} and {b} have')} a copy in the other"
            for (a, b), count in self.copies.items()
        ]
        one_class = [name for name, row in self.counts.items() if sum(map(bool, row.values())) == 1]
        if one_class:
            lines.append(f"sources of one class only, which tell the class: {', '.join(one_class)}")
        return lines


def audit_sources(
    folder: ImageFolder, pixels: NDArray[np.uint8], labels: NDArray[np.int64], links: Links
) -> SourceAudit | None:
    """Audit across sources; None where the images do not name several. The arguments are an ``Audit``'s."""
    names, sources = np.unique([record.source for record in folder.records], return_inverse=True)
    if len(names) < 2:
        return None
    groups = links.groups(SCAN)
    words = [str(name) or "(unknown)" for name in names]
    counts = {
        word: {name: int(((sources == place) & (labels == label)).sum()) for label, name in enumerate(folder.classes)}
        for place, word in enumerate(words)
    }
    of_class = {}
    for place, word in enumerate(words):
        within = sources == place
        probes = run_probes(pixels[within], labels[within], groups[within], classes=folder.classes, poses=False)
        if probes:
            of_class[word] = probes
    return SourceAudit(
        counts,
        _count_copies(links.groups(COPY), sources, words),
        _tell_class(folder, labels),
        run_probes(pixels, np.asarray(sources, np.int64), groups, classes=words, poses=False),
        of_class,
    )


def _count_copies(
    groups: NDArray[np.int64], sources: NDArray[np.int64], words: Sequence[str]
) -> dict[tuple[str, str], int]:
    """Count the images of each pair of sources that share a group of copies with the other."""
    found = {}
    for one, other in combinations(range(len(words)), 2):
        shared = set(groups[sources == one].tolist()) & set(groups[sources == other].tolist())
        count = int((np.isin(groups, list(shared)) & np.isin(sources, [one, other])).sum())
        if count:
            found[words[one], words[other]] = count
    return found


def _tell_class(folder: ImageFolder, labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the mean recall of the best guess of the class from each word that the images' table gives."""
    totals = Counter(labels.tolist())
    told = {}
    for word in ("source", "sequence", "plane"):
        values = [getattr(record, word) for record in folder.records]
        if len(set(values)) > 1:
            cells = Counter(zip(values, labels.tolist(), strict=True))
            best = [max(cells[value, label] / count for label, count in totals.items()) for value in set(values)]
            told[word] = sum(best) / len(totals)
    return told
