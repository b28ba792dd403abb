"""Everything that the report says in numbers, computed from the stored answers alone."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import cohen_kappa_score

from brainq_torch.abstention.policy import fit_temperature
from brainq_torch.evaluation.comparison import Comparison, compare_predictions
from brainq_torch.evaluation.metrics import ECE_BINS, Metrics, compute_metrics
from brainq_torch.evaluation.paired import (
    MARGIN_OVERALL,
    MARGIN_PER_CLASS,
    PairedDifference,
    compare_answers,
    judge_all,
)
from brainq_torch.evaluation.sources import SourceMetrics, measure_sources
from export.verify.shifted import measure_shift
from tools.report.stored_study import MeasuredRow, Predictions, Study

OVERALL, SHIFTED, ELSEWHERE = "all classes", "shifted copies", "other sources"
RESAMPLES = 1000
SEED = 0


@dataclass(frozen=True)
class ErrorOverlap:
    """Whether two models are wrong on the same images.

    errors_a, errors_b: how many each gets wrong; both: the same images; same_answer: of these, in the same wrong
    class. jaccard: both over either, None where neither errs. kappa: agreement on being right or wrong beyond chance
    ("error consistency", Geirhos et al. 2020, https://arxiv.org/abs/2006.16736), None where one is always right.
    """

    images: int
    errors_a: int
    errors_b: int
    both: int
    same_answer: int
    jaccard: float | None
    kappa: float | None


@dataclass(frozen=True)
class Reliability:
    """Filled bins of a reliability curve. confidence, accuracy: means (B,); images: (B,) counts."""

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    images: NDArray[np.int64]


@dataclass(frozen=True)
class Against:
    """A model measured against its family's float model.

    differences: accuracy, recall of each class, accuracy on shifted copies and on images of other sources.
    elsewhere: of each other source, what ``measure_shift`` says.
    """

    comparison: Comparison
    differences: dict[str, PairedDifference]
    verdict: str
    overlap: dict[str, ErrorOverlap]
    elsewhere: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "comparison": self.comparison.to_json(),
            "non_inferiority": {name: part.to_json() for name, part in self.differences.items()},
            "verdict": self.verdict,
            "errors": {name: asdict(part) for name, part in self.overlap.items()},
            **({"elsewhere": self.elsewhere} if self.elsewhere else {}),
        }


@dataclass(frozen=True)
class RowStatistics:
    """One model's figures.

    unseen: on the split's images without a copy in training, None where there are none. validation: None where the
    run has no validation part. grouped: whether no validation image has a copy in training.
    temperature: stored in the artefact, or fitted here on the validation part (temperature_stored False); None without
    either. ece_after: with it. before, after: reliability curves. against: None for a float model, or without one.
    sources: of ``testing``, ``validation`` and ``elsewhere`` those whose images say where they come from.
    """

    testing: Metrics
    unseen: Metrics | None
    validation: Metrics | None
    grouped: bool
    temperature: float | None
    temperature_stored: bool
    ece_after: float | None
    before: Reliability
    after: Reliability | None
    against: Against | None
    sources: dict[str, SourceMetrics]

    def to_json(self) -> dict[str, Any]:
        """Return plain data, the curves left out."""
        parts = {"testing": self.testing, "unseen": self.unseen, "validation": self.validation}
        return {
            **{name: None if part is None else part.to_json() for name, part in parts.items()},
            "validation_grouped": self.grouped,
            "temperature": self.temperature,
            "temperature_stored": self.temperature_stored,
            "ece_after": self.ece_after,
            "against": None if self.against is None else self.against.to_json(),
            **({"sources": {name: part.to_json() for name, part in self.sources.items()}} if self.sources else {}),
        }


def compute_statistics(study: Study, resamples: int = RESAMPLES) -> dict[str, RowStatistics]:
    """Compute the figures of every row that was measured."""
    return {row.id: _compute_row(study, row, resamples) for row in study.done}


def accuracy_interval(metrics: Metrics) -> tuple[tuple[float, float], str]:
    """Return the 95 % interval of the accuracy and its method: without errors a bootstrap has no width."""
    if metrics.accuracy in (0.0, 1.0):
        return metrics.intervals["accuracy_wilson"], "Wilson"
    return metrics.intervals["accuracy"], "bootstrap"


def overlap_errors(logits_a: NDArray[Any], logits_b: NDArray[Any], labels: NDArray[np.int64]) -> ErrorOverlap:
    """Compare which images two models get wrong.

    logits: (N, C), row i of both is image i. labels: (N,).
    """
    a, b = logits_a.argmax(axis=1), logits_b.argmax(axis=1)
    wrong_a, wrong_b = a != labels, b != labels
    both, either = int((wrong_a & wrong_b).sum()), int((wrong_a | wrong_b).sum())
    defined = 0 < wrong_a.sum() < len(labels) and 0 < wrong_b.sum() < len(labels)
    return ErrorOverlap(
        images=len(labels),
        errors_a=int(wrong_a.sum()),
        errors_b=int(wrong_b.sum()),
        both=both,
        same_answer=int((wrong_a & wrong_b & (a == b)).sum()),
        jaccard=both / either if either else None,
        kappa=float(cohen_kappa_score(wrong_a, wrong_b)) if defined else None,
    )


def bin_confidence(logits: NDArray[Any], labels: NDArray[np.int64], temperature: float = 1.0) -> Reliability:
    """Compute the reliability curve over ``ECE_BINS`` equal-width bins of confidence (0, 1].

    logits: (N, C), before softmax, divided by temperature. labels: (N,). Empty bins are left out.
    """
    scaled = logits.astype(np.float64) / temperature
    confidence = softmax(scaled, axis=1).max(axis=1)
    right = logits.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    counts = np.bincount(place, minlength=ECE_BINS)
    filled = counts > 0
    sums = (np.bincount(place, weights=values, minlength=ECE_BINS)[filled] for values in (confidence, right))
    mean_confidence, accuracy = (values / counts[filled] for values in sums)
    return Reliability(mean_confidence, accuracy, counts[filled])


def find_front(costs: NDArray[np.float64], accuracies: NDArray[np.float64]) -> list[int]:
    """Find the Pareto front, cheapest first: points that no other beats in one and equals in the other; (N,) both."""
    order = np.lexsort((-accuracies, costs))
    front: list[int] = []
    for point in order:
        if not front or accuracies[point] > accuracies[front[-1]]:
            front.append(int(point))
    return front


def _compute_row(study: Study, row: MeasuredRow, resamples: int) -> RowStatistics:
    testing, validation, classes = row.testing, row.validation, study.about.classes
    temperature = None if row.abstention is None else row.abstention.temperature
    if temperature is None and len(validation):
        temperature = fit_temperature(validation.logits, validation.labels)
    ece_after, after = None, None
    if temperature is not None:
        calibrated = testing.logits.astype(np.float64) / temperature
        ece_after = compute_metrics(calibrated, testing.labels, classes, 0).ece
        after = bin_confidence(testing.logits, testing.labels, temperature)
    kept = testing.unseen
    unseen = Predictions(testing.logits[kept], testing.labels[kept], testing.paths[kept], kept[kept])
    return RowStatistics(
        testing=_measure(testing, classes, resamples),
        unseen=_measure(unseen, classes, resamples) if len(unseen) else None,
        validation=_measure(validation, classes, resamples) if len(validation) else None,
        grouped=bool(len(validation) and validation.unseen.all()),
        temperature=temperature,
        temperature_stored=row.abstention is not None,
        ece_after=ece_after,
        before=bin_confidence(testing.logits, testing.labels),
        after=after,
        against=_compare(study, row, resamples),
        sources=_measure_sources({"testing": testing, "validation": validation, "elsewhere": row.elsewhere}, classes),
    )


def _measure_sources(parts: dict[str, Predictions | None], classes: tuple[str, ...]) -> dict[str, SourceMetrics]:
    found = {
        name: measure_sources(part.logits, part.labels, part.sources.tolist(), classes)
        for name, part in parts.items()
        if part is not None and part.sources is not None
    }
    return {name: each for name, each in found.items() if each is not None}


def _measure(part: Predictions, classes: tuple[str, ...], resamples: int) -> Metrics:
    return compute_metrics(part.logits, part.labels, classes, resamples, SEED)


def _compare(study: Study, row: MeasuredRow, resamples: int) -> Against | None:
    reference = study.row(row.float)
    if row.is_float or not isinstance(reference, MeasuredRow):
        return None
    a, b, labels = reference.testing.logits, row.testing.logits, row.testing.labels
    parts = {OVERALL: np.ones(len(labels), bool)}
    parts |= {name: labels == label for label, name in enumerate(study.about.classes) if (labels == label).any()}
    differences = {
        name: compare_answers(a[kept], b[kept], labels[kept], MARGIN_OVERALL if name == OVERALL else MARGIN_PER_CLASS)
        for name, kept in parts.items()
    }
    if reference.shifted is not None and row.shifted is not None:
        differences[SHIFTED] = compare_answers(reference.shifted, row.shifted, labels)
    ours, theirs, elsewhere = row.elsewhere, reference.elsewhere, {}
    if ours is not None and theirs is not None:
        differences[ELSEWHERE] = compare_answers(theirs.logits, ours.logits, ours.labels)
        elsewhere = _compare_sources(theirs, ours)
    return Against(
        comparison=compare_predictions(a, b, labels, study.about.classes, resamples, SEED),
        differences=differences,
        verdict=judge_all(list(differences.values())),
        overlap={name: overlap_errors(a[kept], b[kept], labels[kept]) for name, kept in parts.items()},
        elsewhere=elsewhere,
    )


def _compare_sources(a: Predictions, b: Predictions) -> dict[str, dict[str, Any]]:
    """Return what differs on each source's images."""
    sources = np.asarray(a.sources)
    kept = {str(name): sources == name for name in np.unique(sources)}
    return {name: measure_shift(a.logits[rows], b.logits[rows], a.labels[rows]) for name, rows in kept.items()}
