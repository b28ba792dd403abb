"""Scores of the shift suite: what was asked, what a model answered, how two models differ, and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from brainq_torch.data.classes import CLASSES
from tools.shift.corruptions import CORRUPTIONS, STRENGTHS

NOTUMOR = CLASSES.index("notumor")
LESIONS = tuple(label for label in range(len(CLASSES)) if label != NOTUMOR)
NOT_RUN = -1

_RESAMPLES = 1000


class Shift(NamedTuple):
    """One row of the grid. strength: 1 to 3 of a corruption, else 0."""

    family: Literal["clean", "corruption", "style", "lesion"]
    name: str
    strength: int = 0


CLEAN = Shift("clean", "clean")
SHIFTS: tuple[Shift, ...] = (
    CLEAN,
    *(Shift("corruption", name, strength) for name in CORRUPTIONS for strength in STRENGTHS),
    *(Shift("style", name) for name in CLASSES),
    *(Shift("lesion", CLASSES[label]) for label in LESIONS),
)


@dataclass(frozen=True)
class Outcome:
    """What one model answered.

    predictions: (len(SHIFTS), N) int64 indices into CLASSES; ``NOT_RUN`` where a shift does not concern an image.
    labels: (N,) int64, of the images as they are. model: how the report calls it.
    """

    model: str
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]

    def answers(self, shift: Shift) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return labels and predictions of the images that the shift concerns; a painted lesion changes the label."""
        predicted = self.predictions[SHIFTS.index(shift)]
        run = predicted != NOT_RUN
        truth = np.full_like(self.labels, CLASSES.index(shift.name)) if shift.family == "lesion" else self.labels
        return truth[run], predicted[run]

    def score(self, shift: Shift) -> dict[str, Any]:
        """Return n, accuracy and macro F1; for a style also the accuracy on images of other classes."""
        truth, predicted = self.answers(shift)
        if not len(truth):
            return {"n": 0, "accuracy": None, "macro_f1": None}
        row: dict[str, Any] = {"n": len(truth), "accuracy": float(np.mean(truth == predicted))}
        if shift.family == "lesion":
            return row | {"found": float(np.mean(predicted != NOTUMOR))}
        row["macro_f1"] = float(f1_score(truth, predicted, average="macro", zero_division=0))
        if shift.family == "style":
            own = truth == CLASSES.index(shift.name)
            row["accuracy_of_other_classes"] = _share(truth[~own] == predicted[~own])
            row["accuracy_of_own_class"] = _share(truth[own] == predicted[own])
        return row

    def mean_accuracy(self, shifts: Sequence[Shift]) -> dict[str, Any]:
        """Return the mean over these shifts with a 95 % bootstrap interval over the images (all shifts together)."""
        rows = [SHIFTS.index(shift) for shift in shifts]
        right = (self.predictions[rows] == self.labels).mean(axis=0)
        draws = np.random.default_rng(0).integers(0, len(right), (_RESAMPLES, len(right)))
        low, high = np.quantile(right[draws].mean(axis=1), (0.025, 0.975))
        return {"accuracy": float(right.mean()), "interval": [float(low), float(high)]}

    def to_json(self) -> dict[str, Any]:
        """Return the whole grid."""
        grid = {name: {str(s): self.score(Shift("corruption", name, s)) for s in STRENGTHS} for name in CORRUPTIONS}
        styles = {name: self.score(Shift("style", name)) for name in CLASSES}
        means = {}
        for strength in STRENGTHS:
            shifts = [Shift("corruption", name, strength) for name in CORRUPTIONS]
            f1 = [grid[name][str(strength)]["macro_f1"] for name in CORRUPTIONS]
            means[str(strength)] = self.mean_accuracy(shifts) | {"macro_f1": float(np.mean(f1))}
        swapped, own = self._pool_styles()
        return {
            "model": self.model,
            "clean": self.score(CLEAN),
            "corruptions": grid,
            "mean": means,
            "styles": styles | {"other_classes": swapped, "own_class": own},
            "lesions": {CLASSES[label]: self.score(Shift("lesion", CLASSES[label])) for label in LESIONS},
        }

    def _pool_styles(self) -> tuple[float | None, float | None]:
        """Return the accuracy over all images in the styles of other classes, and of other images of their own."""
        rows = [self.predictions[SHIFTS.index(Shift("style", name))] for name in CLASSES]
        styles = np.arange(len(CLASSES))[:, None]
        run, right, own = np.array(rows) != NOT_RUN, np.array(rows) == self.labels, styles == self.labels
        return _share(right[run & ~own]), _share(right[run & own])


def compare(first: Outcome, second: Outcome) -> dict[str, Any]:
    """Return, for each shift, the second model's accuracy less the first's, and how often both give one class."""

    def row(shift: Shift) -> dict[str, Any]:
        (truth, one), (_, other) = first.answers(shift), second.answers(shift)
        difference = None if not len(truth) else float(np.mean(other == truth) - np.mean(one == truth))
        return {"accuracy_difference": difference, "agreement": _share(one == other)}

    agreement = [_share(first.answers(shift)[1] == second.answers(shift)[1]) for shift in SHIFTS[1:]]
    return {
        "model": first.model,
        "clean": row(CLEAN),
        "corruptions": {n: {str(s): row(Shift("corruption", n, s)) for s in STRENGTHS} for n in CORRUPTIONS},
        "styles": {name: row(Shift("style", name)) for name in CLASSES},
        "lesions": {CLASSES[label]: row(Shift("lesion", CLASSES[label])) for label in LESIONS},
        "lowest_agreement": min((share for share in agreement if share is not None), default=None),
    }


def format_outcome(outcome: Outcome) -> str:
    """Return the readable table."""
    data = outcome.to_json()
    clean = data["clean"]
    lines = [
        f"{outcome.model}: {clean['n']} images, accuracy %, macro F1 in brackets",
        f"{'clean':14} {_cell(clean)}",
        f"{'':14} {'strength 1':>15} {'2':>15} {'3':>15}",
    ]
    for name, row in data["corruptions"].items():
        lines.append(f"{name:14} " + " ".join(_cell(row[str(strength)]) for strength in STRENGTHS))
    lines.append(f"{'mean':14} " + " ".join(_cell(data["mean"][str(strength)]) for strength in STRENGTHS))
    lines.append(
        f"{'95 %':14} " + " ".join(f"{_range(data['mean'][str(strength)]['interval']):>15}" for strength in STRENGTHS)
    )
    lines.append(f"{'in the style of':16} {'other classes':>14} {'its own class':>14}")
    for name in CLASSES:
        row = data["styles"][name]
        parts = (row.get("accuracy_of_other_classes"), row.get("accuracy_of_own_class"))
        lines.append(f"  {name:14} " + " ".join(f"{_percent(part):>14}" for part in parts))
    pooled = (data["styles"]["other_classes"], data["styles"]["own_class"])
    lines.append(f"  {'all':14} " + " ".join(f"{_percent(part):>14}" for part in pooled))
    lines.append(f"{'lesion painted':16} {'right class':>14} {'not notumor':>14}")
    for name, row in data["lesions"].items():
        lines.append(f"  {name:14} {_percent(row['accuracy']):>14} {_percent(row.get('found')):>14}")
    return "\n".join(lines) + "\n"


def format_comparison(first: Outcome, second: Outcome) -> str:
    """Return where two models differ."""
    data = compare(first, second)
    lines = [
        f"{second.model} less {first.model}: accuracy in points, images with the same class in brackets",
        f"{'clean':14} {_difference(data['clean'])}",
    ]
    for name, row in data["corruptions"].items():
        lines.append(f"{name:14} " + " ".join(_difference(row[str(strength)]) for strength in STRENGTHS))
    for family in ("styles", "lesions"):
        lines += [f"{name + ' ' + family[:-1]:18} {_difference(row)}" for name, row in data[family].items()]
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    if row["accuracy"] is None:
        return f"{'no images':>15}"
    return f"{100 * row['accuracy']:6.2f} ({row['macro_f1']:.3f})".rjust(15)


def _difference(row: dict[str, Any]) -> str:
    if row["accuracy_difference"] is None:
        return f"{'no images':>17}"
    return f"{100 * row['accuracy_difference']:+6.2f} ({100 * row['agreement']:.2f} %)".rjust(17)


def _range(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.2f}-{100 * interval[1]:.2f}"


def _percent(share: float | None) -> str:
    return "no images" if share is None else f"{100 * share:.2f}"


def _share(right: NDArray[np.bool_]) -> float | None:
    return float(right.mean()) if right.size else None
