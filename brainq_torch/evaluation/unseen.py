"""Says how far an accuracy can be believed: a nearest neighbour's beside it, and the one on images never seen."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.dataset.manifest import ManifestRow, number_groups
from brainq_torch.data.leakage.check import SOURCES, LeakCheck, share_group
from brainq_torch.evaluation.metrics import Metrics, wilson_interval


@dataclass(frozen=True)
class Unseen:
    """Accuracy, with Wilson's 95 % interval, on the ``n`` held-out images without a copy or slice of a trained head."""

    n: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class LeakReport:
    """What stands beside the accuracies, per held-out split; ``unseen`` lacks those where all or none are unseen."""

    leakage: dict[str, LeakCheck]
    unseen: dict[str, Unseen]

    def to_json(self) -> dict[str, Any]:
        """Return plain data for ``metrics.json``."""
        return {
            "leakage": {split: check.to_json() for split, check in self.leakage.items()},
            "unseen": {split: asdict(found) for split, found in self.unseen.items()},
        }


def measure_leaks(
    rows: Sequence[ManifestRow],
    predicted: Mapping[str, tuple[NDArray[np.float32], NDArray[np.int64]]],
    leakage: dict[str, LeakCheck],
) -> LeakReport:
    """Measure each held-out split's logits (N, classes) and labels (N,), in manifest order, on unseen images."""
    unseen = {}
    for split, (logits, labels) in predicted.items():
        fresh = find_unseen(rows, split)
        count, right = int(fresh.sum()), int((logits.argmax(1) == labels)[fresh].sum())
        if 0 < count < len(fresh):
            unseen[split] = Unseen(count, right / count, wilson_interval(right, count))
    return LeakReport(leakage, unseen)


def find_unseen(rows: Sequence[ManifestRow], split: str) -> NDArray[np.bool_]:
    """Return whether training has none of the group of each image of a split; one without a group is its own."""
    splits = np.array([row.split for row in rows])
    groups = number_groups(rows)
    held_out = splits == split
    return np.asarray(~share_group(groups, held_out, np.isin(splits, SOURCES[split]))[held_out])


def summarise(out: Path, measured: Mapping[str, Metrics], leaks: LeakReport, phantom: bool) -> list[str]:
    """Return the lines that a finished run prints: every accuracy with the nearest neighbour's beside it."""
    lines = [f"{out}{' (synthetic phantoms, not patients)' if phantom else ''}"]
    for split, metrics in measured.items():
        low, high = metrics.intervals["accuracy"]
        check = leaks.leakage[split]
        lines.append(
            f"  {_title(split, check)}: accuracy {metrics.accuracy:.2%} [{low:.2%}, {high:.2%}], macro F1 "
            f"{metrics.macro_f1:.4f}, ECE {metrics.ece:.4f}, {metrics.n} images; a nearest neighbour "
            f"{check.nearest_neighbour:.2%}"
        )
        if low <= check.majority:
            lines.append(
                f"    warning: that cannot be told from always naming the largest class ({check.majority:.2%}): train "
                "longer, or give more images; the files of such a network fail their checks easily"
            )
        if check.leaks:
            lines.append(f"    warning: {check.verdict}")
        if split in leaks.unseen:
            found = leaks.unseen[split]
            lines.append(
                f"    on its {found.n} images that training has not seen: accuracy {found.accuracy:.2%} "
                f"[{found.interval[0]:.2%}, {found.interval[1]:.2%}]; a nearest neighbour "
                f"{check.nearest_neighbour_unseen:.2%}"
            )
    return lines


def _title(split: str, check: LeakCheck) -> str:
    if split == "Testing":
        return "Testing (official)"
    return "val (shares groups with training: read it with care)" if check.related_count else "val (grouped)"
