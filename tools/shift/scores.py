"""Scores of the shift suite: what was asked, what a model answered, how two models differ, and the tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.synthesis.corruptions import CORRUPTIONS, STRENGTHS
from tools.shared.command import format_table

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
        grid = _tabulate(self.score)
        means = {}
        for strength in STRENGTHS:
            shifts = [Shift("corruption", name, strength) for name in CORRUPTIONS]
            f1 = [row[str(strength)]["macro_f1"] for row in grid["corruptions"].values()]
            means[str(strength)] = self.mean_accuracy(shifts) | {"macro_f1": float(np.mean(f1))}
        swapped, own = self._pool_styles()
        styles = grid["styles"] | {"other_classes": swapped, "own_class": own}
        return {"model": self.model} | grid | {"mean": means, "styles": styles}

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


def format_outcome(outcome: Outcome) -> str:
    """Return the readable tables."""
    data = outcome.to_json()
    strengths = [str(strength) for strength in STRENGTHS]
    grid = [[name, *(_cell(row[key]) for key in strengths)] for name, row in data["corruptions"].items()]
    grid.append(["mean", *(_cell(data["mean"][key]) for key in strengths)])
    ends = [[f"{100 * end:.2f}" for end in data["mean"][key]["interval"]] for key in strengths]
    grid.append(["95 %", *map("-".join, ends)])
    asked = {name: ("accuracy_of_other_classes", "accuracy_of_own_class") for name in CLASSES}
    styles = [[name, *(_percent(data["styles"][name].get(key)) for key in keys)] for name, keys in asked.items()]
    styles.append(["all", *(_percent(data["styles"][key]) for key in ("other_classes", "own_class"))])
    about = f"{outcome.model}: {data['clean']['n']} images, accuracy %, macro F1 in brackets"
    lesions = [[name, _percent(row["accuracy"]), _percent(row.get("found"))] for name, row in data["lesions"].items()]
    return "\n".join(
        [
            f"{about}; clean {_cell(data['clean'])}",
            format_table(["corruption", *(f"strength {key}" for key in strengths)], grid),
            format_table(["in the style of", "other classes", "its own class"], styles),
            format_table(["lesion painted", "right class", "not notumor"], lesions),
        ]
    )


def format_comparison(first: Outcome, second: Outcome) -> str:
    """Return where two models differ."""
    data = compare(first, second)
    strengths = [str(strength) for strength in STRENGTHS]
    grid = [[name, *(_difference(row[key]) for key in strengths)] for name, row in data["corruptions"].items()]
    others = [
        [f"{name} {family[:-1]}", _difference(row)]
        for family in ("styles", "lesions")
        for name, row in data[family].items()
    ]
    about = f"{second.model} less {first.model}: accuracy in points, images with the same class in brackets"
    return "\n".join(
        [
            f"{about}; clean {_difference(data['clean'])}",
            format_table(["corruption", *(f"strength {key}" for key in strengths)], grid),
            format_table(["shift", "difference"], others),
        ]
    )


def _cell(row: dict[str, Any]) -> str:
    if row["accuracy"] is None:
        return "no images"
    return f"{100 * row['accuracy']:6.2f} ({row['macro_f1']:.3f})"


def _difference(row: dict[str, Any]) -> str:
    if row["accuracy_difference"] is None:
        return "no images"
    return f"{100 * row['accuracy_difference']:+6.2f} ({100 * row['agreement']:.2f} %)"


def _percent(share: float | None) -> str:
    return "no images" if share is None else f"{100 * share:.2f}"


def _share(right: NDArray[np.bool_]) -> float | None:
    return float(right.mean()) if right.size else None
