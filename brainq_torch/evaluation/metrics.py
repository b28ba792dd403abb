"""Classification metrics with bootstrap intervals.

In NumPy: a TFLite file is measured without PyTorch, which with scikit-learn and SciPy takes seconds to load. The tests
hold every value to theirs.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brainq_torch.data.classes import CLASSES
from brainq_torch.evaluation.figure import save_figure

ECE_BINS = 15
"""Equal-width confidence bins of the expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""
LEVEL = 0.95
_RESAMPLED_ROWS_AT_ONCE = 500_000
_PER_CLASS = ("precision", "recall", "f1")

Interval = tuple[float | None, float | None]
"""Low and high end; None where no resample held the class, so that nothing could be measured."""


@dataclass(frozen=True)
class ClassMetrics:
    """One class against the rest. A class that is never predicted has precision 0, as in scikit-learn."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Metrics:
    """What a model scores on ``n`` images.

    Attributes:
        macro_f1: mean over the classes that have images.
        confusion: rows are labels, columns are predictions, both in the order of ``classes``.
        intervals: see ``bootstrap_intervals``; empty when no resamples were asked for.
    """

    n: int
    accuracy: float
    macro_f1: float
    ece: float
    per_class: dict[str, ClassMetrics]
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]
    intervals: dict[str, Any]

    @property
    def absent(self) -> list[str]:
        """Classes without images: nothing can be said of them."""
        return [name for name, row in self.per_class.items() if not row.support]

    def to_json(self) -> dict[str, Any]:
        """Return plain data for ``metrics.json``."""
        lists = {"confusion": [list(row) for row in self.confusion], "classes": list(self.classes)}
        return asdict(self) | lists | {"absent": self.absent}


def compute_metrics(
    logits: ArrayLike,
    labels: ArrayLike,
    classes: tuple[str, ...] = CLASSES,
    resamples: int = 1000,
    seed: int = 0,
    probabilities: NDArray[np.float64] | None = None,
) -> Metrics:
    """Measure a model from its logits.

    Args:
        logits: (N, C) real, before softmax.
        labels: (N,) integer in [0, C).
        classes: names of the C classes.
        resamples: bootstrap resamples for the intervals; 0 leaves them out.
        seed: of the resamples.
        probabilities: (N, C), where they are not the softmax of the logits, of which the largest decides all the same.

    Raises:
        ValueError: the input is empty, not finite or mis-shaped.
    """
    scores, truth = check_predictions(logits, labels, classes)
    predictions = scores.argmax(1)
    confidence = _confidence(scores, predictions, probabilities)
    once = np.arange(len(truth))[None]  # one sample, of every image
    counts = ClassCounts.of(predictions, truth, len(classes), once)
    shares = [counts.shares(key, absent=0.0)[0] for key in _PER_CLASS]
    rows = zip(classes, *(column.tolist() for column in (*shares, counts.support[0])), strict=True)
    confusion = _count(truth * len(classes) + predictions, len(classes) ** 2, once).reshape(len(classes), -1)
    return Metrics(
        n=len(truth),
        accuracy=float((predictions == truth).mean()),
        macro_f1=float(shares[-1][counts.support[0] > 0].mean()),
        ece=float(_calibration_errors(confidence, predictions == truth, once)[0]),
        per_class={name: ClassMetrics(*row) for name, *row in rows},
        confusion=tuple(map(tuple, confusion.tolist())),
        classes=tuple(classes),
        intervals=bootstrap_intervals(predictions, confidence, truth, classes, (resamples, seed)) if resamples else {},
    )


def _confidence(
    scores: NDArray[Any], predictions: NDArray[Any], probabilities: NDArray[np.float64] | None
) -> NDArray[Any]:
    """Return the predictions' probabilities, (N,), by default the softmax."""
    if probabilities is None:
        return np.asarray(1 / np.exp(scores - scores.max(1, keepdims=True)).sum(1))
    return np.take_along_axis(probabilities, predictions[:, None], 1)[:, 0]


@dataclass(frozen=True)
class ClassCounts:
    """Of R samples of images, per class: those called so rightly, those called so, those of the class; (R, C) each."""

    right: NDArray[Any]
    predicted: NDArray[Any]
    support: NDArray[Any]

    @classmethod
    def of(cls, predictions: NDArray[Any], truth: NDArray[Any], classes: int, rows: NDArray[Any]) -> "ClassCounts":
        """Count in the images that ``rows``, (R, n), names. predictions, truth: (N,), labels in [0, classes)."""
        hits = np.where(predictions == truth, truth, classes)
        right = _count(hits, classes + 1, rows)[:, :classes]
        return cls(right, _count(predictions, classes, rows), _count(truth, classes, rows))

    def shares(self, key: str, absent: float = np.nan) -> NDArray[Any]:
        """Return ``precision``, ``recall`` or ``f1``, (R, C); ``absent`` where there is nothing to have a share of."""
        whole = {"precision": self.predicted, "recall": self.support, "f1": (self.predicted + self.support) / 2}[key]
        return np.asarray(np.divide(self.right, whole, out=np.full(self.right.shape, absent), where=whole > 0))


def _count(kinds: NDArray[Any], number: int, rows: NDArray[Any], weights: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return how many images, or what weight (N,), each sample has of each kind (N,): (R, number) of rows (R, n)."""
    cells = kinds[rows] + number * np.arange(len(rows))[:, None]
    heavy = None if weights is None else weights[rows].ravel()
    return np.bincount(cells.ravel(), heavy, len(rows) * number).reshape(len(rows), number)


def bootstrap_intervals(
    answers: NDArray[Any],
    confidence: NDArray[Any],
    labels: NDArray[Any],
    classes: tuple[str, ...],
    draws: tuple[int, int],
) -> dict[str, Any]:
    """Percentile bootstrap over images (Efron and Tibshirani 1993, ch. 13), 95 %, seeded.

    answers: (N,) predicted labels. confidence: (N,), their probabilities. draws: how many, and their seed.

    ``accuracy_wilson`` is there because the bootstrap of a model without a single error is [1, 1], which
    says too much.

    Returns:
        ``accuracy``, ``macro_f1``, ``ece`` as [low, high], the same per class for precision, recall and F1, and how
        they were made.
    """
    values = _measure_resamples(answers, confidence, labels, len(classes), draws)
    return {
        "level": LEVEL,
        "resamples": draws[0],
        "seed": draws[1],
        **{key: percentile_interval(values[key]) for key in ("accuracy", "macro_f1", "ece")},
        "accuracy_wilson": wilson_interval(int((answers == labels).sum()), len(labels)),
        "per_class": {
            name: {key: percentile_interval(values[key][:, label]) for key in _PER_CLASS}
            for label, name in enumerate(classes)
        },
    }


def _measure_resamples(
    predictions: NDArray[Any], confidence: NDArray[Any], truth: NDArray[Any], classes: int, draws: tuple[int, int]
) -> dict[str, NDArray[Any]]:
    """Return every measure of each resample: (R,), or (R, classes) of those per class."""
    correct, there = predictions == truth, np.unique(truth)
    drawn: dict[str, list[NDArray[Any]]] = {key: [] for key in ("accuracy", "macro_f1", "ece", *_PER_CLASS)}
    for rows in resample_rows(len(truth), *draws):
        counts = ClassCounts.of(predictions, truth, classes, rows)
        for key in _PER_CLASS:
            drawn[key].append(counts.shares(key))
        drawn["accuracy"].append(correct[rows].mean(1))
        drawn["macro_f1"].append(np.nanmean(drawn["f1"][-1][:, there], 1))
        drawn["ece"].append(_calibration_errors(confidence, correct, rows))
    return {key: np.concatenate(parts) for key, parts in drawn.items()}


_LETTERS = 45
"""How many stand side by side below a confusion matrix."""


def plot_confusion(metrics: Metrics, path: str | Path) -> None:
    """Draw the confusion matrix: counts, and each row's share of its label. Replaces ``path`` (PNG) in one step."""
    counts = np.array(metrics.confusion)
    # A label without images has no shares: its row stays white.
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    from matplotlib.figure import Figure  # half a second, where nothing may be drawn

    # A Figure of its own, not pyplot: no global state and no display, whatever the backend.
    many = max(len(counts) / 10, 1)
    figure = Figure(figsize=(5.6 * many, 5.0 * many), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        text = f"{count}\n{100 * share:.1f} %" if count else "0"
        colour = "white" if share > 0.5 else "#222222" if count else "#999999"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=10 if many == 1 else 8)
    ticks = range(len(metrics.classes))
    crowded = len(ticks) > 6 or len(ticks) * max(map(len, metrics.classes)) > _LETTERS
    axes.set_xticks(ticks, metrics.classes, rotation=90 if crowded else 0)
    axes.set_yticks(ticks, [f"{name}\n({counts[label].sum()})" for label, name in enumerate(metrics.classes)])
    axes.set_xlabel("predicted")
    axes.set_ylabel("label (images)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(
        f"accuracy {100 * metrics.accuracy:.2f} %, macro F1 {metrics.macro_f1:.3f}, {metrics.n} images", fontsize=11
    )
    save_figure(figure, path, bbox_inches="tight", pad_inches=0.1)


def check_predictions(
    logits: ArrayLike, labels: ArrayLike, classes: tuple[str, ...]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (N, C) float64 logits and (N,) int64 labels, or raise ValueError naming what is wrong."""
    scores, truth = np.asarray(logits).astype(np.float64), np.asarray(labels)
    if scores.ndim != 2 or scores.shape[1] != len(classes) or truth.shape != scores.shape[:1]:
        raise ValueError(
            f"logits are {scores.shape} and labels {truth.shape}; need (N, {len(classes)}) and (N,), "
            f"one logit per class of {', '.join(classes)}"
        )
    if not len(truth):
        raise ValueError("there are no images to measure; check the folder and the split")
    if not np.issubdtype(truth.dtype, np.integer):
        raise ValueError(f"labels are {truth.dtype}; need integers, the index of the class")
    if truth.min() < 0 or truth.max() >= len(classes):
        raise ValueError(f"labels go from {truth.min()} to {truth.max()}; allowed are 0 to {len(classes) - 1}")
    finite = np.isfinite(scores).min(axis=1)
    if not finite.all():
        raise ValueError(
            f"{(~finite).sum()} of {len(finite)} rows of logits are not finite (first: row {finite.argmin()}, "
            f"{scores[finite.argmin()].tolist()}); the model is broken, nothing can be measured"
        )
    return scores, truth.astype(np.int64)


def _calibration_errors(confidence: NDArray[Any], correct: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return each sample's expected calibration error, (R,): l1, equal-width bins. confidence, correct: (N,)."""
    bins = np.searchsorted(np.linspace(0, 1, ECE_BINS + 1), confidence, side="right") - 1
    return np.asarray(np.abs(_count(bins, ECE_BINS + 1, rows, confidence - correct)).sum(1) / rows.shape[1])


def resample_rows(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield (R, n) row indices, sampled with replacement, R resamples at a time so that memory stays bounded."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _RESAMPLED_ROWS_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        yield generator.integers(0, n, size=(min(at_once, resamples - start), n))


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a share (Wilson 1927, JASA 22:209)."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    centre, spread = hits + z**2 / 2, z * (hits * (count - hits) / count + z**2 / 4) ** 0.5
    low, high = (centre - spread) / (count + z**2), (centre + spread) / (count + z**2)
    return low if hits else 0.0, high if hits < count else 1.0


def percentile_interval(values: NDArray[Any]) -> Interval:
    """Return the central 95 % of (R,) resampled values; resamples without the class (NaN) do not count."""
    measured = values[~np.isnan(values)]
    if not len(measured):
        return None, None
    low, high = np.quantile(measured, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
