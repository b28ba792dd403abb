"""Two models on the same images, paired: who is right where, which images change class, and what that can be chance of.

In NumPy, as ``metrics`` and for the same reason.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brainq_torch.data.classes import CLASSES
from brainq_torch.evaluation.metrics import Interval, check_predictions, percentile_interval, resample_rows


@dataclass(frozen=True)
class Flip:
    """One image, row ``index`` of the logits, whose class differs between the two models."""

    index: int
    label: str
    before: str
    after: str


@dataclass(frozen=True)
class Comparison:
    """Model B measured against model A on the same ``n`` images; differences are B minus A.

    Attributes:
        agreement: share of images to which both give one class.
        accuracy_difference_interval: of a paired bootstrap, 95 %.
        only_a_right: the first of McNemar's discordant counts; ``mcnemar_p`` is his exact two-sided p.
        flips_by_class: per label, the images whose class changed; of these lost: A was right, gained: B is.
        recall_difference: per class, with the ends of its interval; None where the class has no images.
        ties_a: images whose largest logit is shared by two classes; the lower label wins, as in argmax.
    """

    n: int
    agreement: float
    accuracy_a: float
    accuracy_b: float
    accuracy_difference: float
    accuracy_difference_interval: Interval
    only_a_right: int
    only_b_right: int
    mcnemar_p: float
    flips: tuple[Flip, ...]
    flips_by_class: dict[str, dict[str, int]]
    recall_difference: dict[str, dict[str, float | None]]
    ties_a: int
    ties_b: int

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a report."""
        return asdict(self) | {"flips": [asdict(flip) for flip in self.flips]}


def compare_predictions(
    logits_a: ArrayLike,
    logits_b: ArrayLike,
    labels: ArrayLike,
    classes: tuple[str, ...] = CLASSES,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare model B with model A: logits (N, C), row i of both is image i, and labels (N,) in [0, C).

    Raises:
        ValueError: the input is empty, not finite or mis-shaped.
    """
    (scores_a, truth), (scores_b, _) = (check_predictions(each, labels, classes) for each in (logits_a, logits_b))
    a, b = scores_a.argmax(1), scores_b.argmax(1)
    of_a, of_b, agreement = (float((one == other).mean()) for one, other in ((a, truth), (b, truth), (a, b)))
    only_a, only_b = int(((a == truth) & (b != truth)).sum()), int(((a != truth) & (b == truth)).sum())
    accuracy_interval, recall_intervals = _difference_intervals(a, b, truth, len(classes), resamples, seed)
    return Comparison(
        n=len(truth),
        agreement=agreement,
        accuracy_a=of_a,
        accuracy_b=of_b,
        accuracy_difference=of_b - of_a,
        accuracy_difference_interval=accuracy_interval,
        only_a_right=only_a,
        only_b_right=only_b,
        mcnemar_p=mcnemar_p(only_a, only_b),
        flips=tuple(Flip(int(i), classes[truth[i]], classes[a[i]], classes[b[i]]) for i in np.flatnonzero(a != b)),
        flips_by_class={name: _count_flips(a, b, truth, label) for label, name in enumerate(classes)},
        recall_difference=_recall_differences(a, b, truth, classes, recall_intervals),
        ties_a=_ties(scores_a),
        ties_b=_ties(scores_b),
    )


def mcnemar_p(lost: int, gained: int) -> float:
    """Return McNemar's exact two-sided p of so many discordant pairs: a binomial test at one half, 1 without any.

    Source: McNemar 1947; exact form: Fagerland, Lydersen and Laake 2013, https://doi.org/10.1186/1471-2288-13-91.
    """
    ways = tail = 1  # in whole numbers, and without SciPy, which takes longer to load than this to count
    for place in range(min(lost, gained)):
        ways = ways * (lost + gained - place) // (place + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << (lost + gained)))


def _count_flips(a: NDArray[Any], b: NDArray[Any], truth: NDArray[Any], label: int) -> dict[str, int]:
    changed = (a != b) & (truth == label)
    found = {"changed": changed, "lost": changed & (a == label), "gained": changed & (b == label)}
    return {name: int(images.sum()) for name, images in found.items()}


def _recall_differences(
    a: NDArray[Any], b: NDArray[Any], truth: NDArray[Any], classes: tuple[str, ...], intervals: list[Interval]
) -> dict[str, dict[str, float | None]]:
    gain = (b == truth).astype(np.float64) - (a == truth)
    means = [float(gain[truth == label].mean()) if (truth == label).any() else None for label in range(len(classes))]
    return {
        name: {"difference": difference, "low": low, "high": high}
        for name, difference, (low, high) in zip(classes, means, intervals, strict=True)
    }


def _difference_intervals(
    a: NDArray[Any], b: NDArray[Any], truth: NDArray[Any], classes: int, resamples: int, seed: int
) -> tuple[Interval, list[Interval]]:
    """Paired bootstrap of accuracy and per-class recall, B minus A: both models see the same resampled images."""
    gain = (b == truth).astype(np.float64) - (a == truth)  # 1 where B alone is right, -1 where A is
    members = [(truth == label).astype(np.float64) for label in range(classes)]
    drawn = []
    for rows in resample_rows(len(truth), resamples, seed):
        gained = gain[rows]
        with np.errstate(invalid="ignore"):  # NaN without the class
            by_class = [(gained * one[rows]).sum(1) / one[rows].sum(1) for one in members]
        drawn.append(np.stack([gained.mean(1), *by_class]))
    accuracy, *recalls = np.concatenate(drawn, axis=1)
    return percentile_interval(accuracy), [percentile_interval(column) for column in recalls]


def _ties(scores: NDArray[Any]) -> int:
    return int(((scores == scores.max(1, keepdims=True)).sum(1) > 1).sum())
