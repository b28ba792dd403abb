"""Says how far an accuracy can be believed: a nearest neighbour's beside it, and the one on images never seen."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.dataset.manifest import ManifestRow, number_groups
from brainq_torch.data.leakage.check import SOURCES, LeakCheck, share_group
from brainq_torch.evaluation.metrics import wilson_interval


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
