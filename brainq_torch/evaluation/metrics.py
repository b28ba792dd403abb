"""Classification metrics with bootstrap intervals.

The values come from scikit-learn, torchmetrics and SciPy; this file only arranges them.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from brainq_torch.data.classes import CLASSES
from brainq_torch.run_files import atomic_path

ECE_BINS = 15
"""Equal-width confidence bins of the expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""
LEVEL = 0.95
_RESAMPLED_ROWS_AT_ONCE = 500_000
# validate_args is off because it refuses NaN, which is what a resample without the class must give.
SAMPLEWISE: dict[str, Any] = {"multidim_average": "samplewise", "validate_args": False}
ABSENT = float("nan")
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
    logits: NDArray[Any] | torch.Tensor,
    labels: NDArray[Any] | torch.Tensor,
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
    names = range(len(classes))
    softmax = torch.softmax(torch.from_numpy(scores), 1).numpy() if probabilities is None else probabilities
    confidence = np.take_along_axis(softmax, predictions[:, None], 1)
    columns = precision_recall_fscore_support(truth, predictions, labels=names, average=None, zero_division=0.0)
    return Metrics(
        n=len(truth),
        accuracy=float(accuracy_score(truth, predictions)),
        macro_f1=float(f1_score(truth, predictions, labels=np.unique(truth), average="macro", zero_division=0.0)),
        ece=_calibration_error(torch.from_numpy(confidence), torch.from_numpy(predictions == truth)),
        per_class={
            name: ClassMetrics(float(precision), float(recall), float(f1), int(support))
            for name, precision, recall, f1, support in zip(classes, *columns, strict=True)
        },
        confusion=tuple(tuple(map(int, row)) for row in confusion_matrix(truth, predictions, labels=names)),
        classes=tuple(classes),
        intervals=bootstrap_intervals(predictions, confidence, truth, classes, (resamples, seed)) if resamples else {},
    )


def bootstrap_intervals(
    answers: NDArray[Any],
    confidence: NDArray[Any],
    labels: NDArray[Any],
    classes: tuple[str, ...],
    draws: tuple[int, int],
) -> dict[str, Any]:
    """Percentile bootstrap over images (Efron and Tibshirani 1993, ch. 13), 95 %, seeded.

    answers: (N,) predicted labels. confidence: (N, 1), their probabilities. draws: how many, and their seed.

    ``accuracy_wilson`` is there because the bootstrap of a model without a single error is [1, 1], which
    says too much.

    Returns:
        ``accuracy``, ``macro_f1``, ``ece`` as [low, high], the same per class for precision, recall and F1, and how
        they were made.
    """
    predictions, truth = torch.from_numpy(answers), torch.from_numpy(labels)
    values = _measure_resamples(predictions, torch.from_numpy(confidence), truth, len(classes), draws)
    return {
        "level": LEVEL,
        "resamples": draws[0],
        "seed": draws[1],
        **{key: percentile_interval(values[key]) for key in ("accuracy", "macro_f1", "ece")},
        "accuracy_wilson": wilson_interval(int((predictions == truth).sum()), len(truth)),
        "per_class": {
            name: {key: percentile_interval(values[key][:, label]) for key in _PER_CLASS}
            for label, name in enumerate(classes)
        },
    }


def _measure_resamples(
    predictions: torch.Tensor, confidence: torch.Tensor, truth: torch.Tensor, classes: int, draws: tuple[int, int]
) -> dict[str, NDArray[Any]]:
    """Return every measure of each resample: (R,), or (R, classes) of those per class."""
    score = load_torchmetrics()
    by_class = {
        "precision": score.multiclass_precision, "recall": score.multiclass_recall, "f1": score.multiclass_f1_score,
    }  # fmt: skip
    correct, there = predictions == truth, np.unique(truth.numpy()).tolist()
    drawn: dict[str, list[torch.Tensor]] = {key: [] for key in ("accuracy", "macro_f1", "ece", *_PER_CLASS)}
    for rows in resample_rows(len(truth), *draws):
        resampled = {"preds": predictions[rows], "target": truth[rows], "num_classes": classes, **SAMPLEWISE}
        drawn["accuracy"].append(score.multiclass_accuracy(**resampled, average="micro"))
        drawn["ece"].append(torch.tensor([_calibration_error(confidence[row], correct[row]) for row in rows]))
        for name, measure in by_class.items():
            drawn[name].append(measure(**resampled, average="none", zero_division=ABSENT))
        drawn["macro_f1"].append(drawn["f1"][-1][:, there].nanmean(1))
    return {key: torch.cat(parts).double().numpy() for key, parts in drawn.items()}


def plot_confusion(metrics: Metrics, path: str | Path) -> None:
    """Draw the confusion matrix: counts, and each row's share of its label. Replaces ``path`` (PNG) in one step."""
    counts = np.array(metrics.confusion)
    # A label without images has no shares: its row stays white.
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # A Figure of its own, not pyplot: no global state and no display, whatever the backend.
    many = max(len(counts) / 10, 1)
    figure = Figure(figsize=(5.6 * many, 5.0 * many), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        text = f"{count}\n{100 * share:.1f} %" if count else "0"
        colour = "white" if share > 0.5 else "#222222" if count else "#999999"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=10)
    ticks = range(len(metrics.classes))
    axes.set_xticks(ticks, metrics.classes, rotation=90 if len(ticks) > 6 else 0)
    axes.set_yticks(ticks, [f"{name}\n({counts[label].sum()})" for label, name in enumerate(metrics.classes)])
    axes.set_xlabel("predicted")
    axes.set_ylabel("label (images)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(
        f"accuracy {100 * metrics.accuracy:.2f} %, macro F1 {metrics.macro_f1:.3f}, {metrics.n} images", fontsize=11
    )
    with atomic_path(Path(path)) as partial:
        figure.savefig(partial, format="png", bbox_inches="tight", pad_inches=0.1)


def check_predictions(
    logits: NDArray[Any] | torch.Tensor, labels: NDArray[Any] | torch.Tensor, classes: tuple[str, ...]
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


def _calibration_error(confidence: torch.Tensor, correct: torch.Tensor) -> float:
    """Return the expected calibration error of the answers' (N, 1) probabilities, l1, equal-width bins."""
    measure = load_torchmetrics().multiclass_calibration_error  # of the one class 0, which is right or is not
    return float(measure(confidence, (~correct).long(), 1, n_bins=ECE_BINS, norm="l1", validate_args=False))


def load_torchmetrics() -> Any:
    """Import it where something is measured: it takes longer to load than PyTorch itself."""
    from torchmetrics.functional import classification

    return classification


def resample_rows(n: int, resamples: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield (R, n) row indices, sampled with replacement, R resamples at a time so that memory stays bounded."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _RESAMPLED_ROWS_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        yield torch.from_numpy(generator.integers(0, n, size=(min(at_once, resamples - start), n)))


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a share (Wilson 1927, JASA 22:209)."""
    low, high = binomtest(hits, count).proportion_ci(LEVEL, method="wilson")
    return float(low), float(high)


def percentile_interval(values: NDArray[Any]) -> Interval:
    """Return the central 95 % of (R,) resampled values; resamples without the class (NaN) do not count."""
    measured = values[~np.isnan(values)]
    if not len(measured):
        return None, None
    low, high = np.quantile(measured, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
