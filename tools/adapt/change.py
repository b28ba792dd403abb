"""What a training changed: the same images before and after, divided so that none was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from brainq_torch.data.dataset.load import load_pixels
from brainq_torch.data.dataset.manifest import ManifestRow, manifest_folder, number_groups
from brainq_torch.evaluation.comparison import Comparison, compare_predictions
from brainq_torch.evaluation.metrics import Metrics, compute_metrics
from brainq_torch.run import load_run
from export.run.runners import load_runner
from tools.shared.command import CommandError

FOLDS = 5
NEW, OLD = "new", "old"


@dataclass(frozen=True)
class Change:
    """What the same images scored before and after. how: where they come from. before, after: (N, classes) logits."""

    how: str
    labels: NDArray[np.int64]
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    classes: tuple[str, ...]

    @cached_property
    def measured(self) -> tuple[Metrics, Metrics, Comparison]:
        """The metrics before and after, and the paired comparison."""
        both = [compute_metrics(logits, self.labels, self.classes) for logits in (self.before, self.after)]
        return both[0], both[1], compare_predictions(self.before, self.after, self.labels, self.classes)

    @property
    def worse(self) -> bool:
        """Whether more images were lost than gained."""
        return self.measured[2].only_a_right > self.measured[2].only_b_right

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        before, after, paired = self.measured
        return {"how": self.how, "before": before.to_json(), "after": after.to_json(), "comparison": paired.to_json()}


def held_out_split(rows: Sequence[ManifestRow], source: str) -> str:
    """Return the split that a source is measured on: its own Testing, else the validation part."""
    return "Testing" if any(row.source == source and row.split == "Testing" for row in rows) else "val"


def divide(rows: Sequence[ManifestRow]) -> list[list[ManifestRow]]:
    """Return a manifest per fold: a fifth of the new groups as Testing, another validating; old Testing is left out.

    Raises:
        CommandError: There are fewer groups of a class than folds.
    """
    new = [row for row in rows if row.source == NEW]
    groups, labels = number_groups(new), np.array([row.label for row in new])
    fewest = min(len(set(groups[labels == label])) for label in set(labels.tolist()))
    if fewest < FOLDS:
        raise CommandError(
            f"the new images are too few to say anything: cross-validation needs {FOLDS} groups (patients) of each "
            f"class, one has {fewest}; add images"
        )
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    fold_of = np.empty(len(new), int)
    for place, (_, held_out) in enumerate(splitter.split(labels, labels, groups)):
        fold_of[held_out] = place
    known = {row.group for row in new}  # an old image that is a copy of a new one takes no part
    old = [row for row in rows if row.source != NEW and row.split != "Testing" and row.group not in known]
    parts = {0: "Testing", 1: "val"}
    return [
        [
            replace(row, split=parts.get((fold - place) % FOLDS, "Training"))
            for row, fold in zip(new, fold_of.tolist(), strict=True)
        ]
        + old
        for place in range(FOLDS)
    ]


def _answer(model: Path, rows: Sequence[ManifestRow]) -> NDArray[np.float32]:
    """Return a run's logits, (N, classes), of images."""
    runner = load_runner(model)
    return runner(load_pixels(manifest_folder(Path(), rows), runner.pixels))


def measure_changes(
    start: Path, trained: Sequence[Path], rows: Sequence[ManifestRow], folds: Sequence[list[ManifestRow]]
) -> dict[str, Change]:
    """Measure before and after, by what the images are. trained: the network, then one for each fold."""
    classes = load_run(start).classes

    def change(how: str, parts: Sequence[tuple[Path, list[ManifestRow]]]) -> Change:
        labels = [classes.index(row.label) for _, part in parts for row in part]
        before = np.concatenate([_answer(start, part) for _, part in parts])
        after = np.concatenate([_answer(run, part) for run, part in parts])
        return Change(how, np.array(labels), before, after, classes)

    found = {}
    if folds:
        parts = [[row for row in fold if row.split == "Testing"] for fold in folds]
        how = f"{FOLDS}-fold cross-validation over groups"
        found[f"all {NEW} ones"] = change(how, list(zip(trained[1:], parts, strict=True)))
    for source in sorted({row.source for row in rows}):
        split = held_out_split(rows, source)
        part = [row for row in rows if (row.source, row.split) == (source, split)]
        if part:
            found[source] = change(split, [(trained[0], part)])
    return found
