"""Scores of the shift suite: what was asked, what a model answered, and how two models differ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.synthesis.corruptions import CORRUPTIONS, STRENGTHS

NOTUMOR = CLASSES.index("notumor")
LESIONS = tuple(label for label in range(len(CLASSES)) if label != NOTUMOR)
NOT_RUN = -1

_RESAMPLES = 1000


class Shift(NamedTuple):
    """One row of the grid.

    strength: 1 to 3 of a corruption, else 0.
    """

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

    model: how the report calls it. labels: (N,), of the images as they are. predictions: (len(SHIFTS), N), indices into
    CLASSES; ``NOT_RUN`` where a shift does not concern an image.
    """

    model: str
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]

    def answers(self, shift: Shift, own: bool = False) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return labels and predictions of the images that the shift concerns; a painted lesion changes the label.

        A style is asked of the images of other classes, with ``own`` of those of its own class.
        """
        predicted = self.predictions[SHIFTS.index(shift)]
        run, truth = predicted != NOT_RUN, self.labels
        if shift.family == "style":
            run &= (truth == CLASSES.index(shift.name)) == own
        elif shift.family == "lesion":
            truth = np.full_like(truth, CLASSES.index(shift.name))
        return truth[run], predicted[run]

    def score(self, shift: Shift) -> dict[str, Any]:
        """Return n, accuracy and macro F1; of a style also the accuracy on other images of its own class."""
        truth, predicted = self.answers(shift)
        row: dict[str, Any] = {"n": len(truth), "accuracy": _share(truth == predicted)}
        if shift.family == "lesion":
            return row | {"found": _share(predicted != NOTUMOR)}
        there = np.unique(truth)
        row["macro_f1"] = float(f1_score(truth, predicted, labels=there, average="macro")) if len(truth) else None
        if shift.family == "style":
            row["accuracy_of_own_class"] = _share(np.equal(*self.answers(shift, own=True)))
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
        grid = _tabulate(self.score)
        means = {}
        for strength in STRENGTHS:
            shifts = [Shift("corruption", name, strength) for name in CORRUPTIONS]
            f1 = [row[str(strength)]["macro_f1"] for row in grid["corruptions"].values()]
            means[str(strength)] = self.mean_accuracy(shifts) | {"macro_f1": float(np.mean(f1))}
        rows = [Shift("style", name) for name in CLASSES]
        pools = [np.concatenate([np.equal(*self.answers(row, own)) for row in rows]) for own in (False, True)]
        styles = grid["styles"] | dict(zip(("other_classes", "own_class"), map(_share, pools), strict=True))
        return {"model": self.model} | grid | {"mean": means, "styles": styles}


def compare(first: Outcome, second: Outcome) -> dict[str, Any]:
    """Return, for each shift, the second model's accuracy less the first's, and how often both give one class."""

    def row(shift: Shift) -> dict[str, Any]:
        (truth, one), (_, other) = first.answers(shift), second.answers(shift)
        difference = None if not len(truth) else float(np.mean(other == truth) - np.mean(one == truth))
        return {"accuracy_difference": difference, "agreement": _share(one == other)}

    agreement = [_share(first.answers(shift)[1] == second.answers(shift)[1]) for shift in SHIFTS[1:]]
    lowest = min((share for share in agreement if share is not None), default=None)
    return {"model": first.model} | _tabulate(row) | {"lowest_agreement": lowest}


def _tabulate(row: Callable[[Shift], dict[str, Any]]) -> dict[str, Any]:
    """Return what is said of every shift, nested as the report has it."""
    return {
        "clean": row(CLEAN),
        "corruptions": {n: {str(s): row(Shift("corruption", n, s)) for s in STRENGTHS} for n in CORRUPTIONS},
        "styles": {name: row(Shift("style", name)) for name in CLASSES},
        "lesions": {CLASSES[label]: row(Shift("lesion", CLASSES[label])) for label in LESIONS},
    }


def _share(right: NDArray[np.bool_]) -> float | None:
    return float(right.mean()) if right.size else None
