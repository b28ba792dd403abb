"""What a model scores on every source of its images, and where it is worst: an average hides a hospital."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.evaluation.metrics import Metrics, compute_metrics, wilson_interval


@dataclass(frozen=True)
class SourceMetrics:
    """What a model scores on each source, by name in alphabetical order; intervals are Wilson's, of accuracy."""

    metrics: Mapping[str, Metrics]

    def balanced(self, name: str) -> float:
        """Return the mean recall over the classes that a source has images of."""
        return float(np.mean([row.recall for row in self.metrics[name].per_class.values() if row.support]))

    def interval(self, name: str) -> tuple[float, float]:
        """Return Wilson's interval of a source's accuracy."""
        metrics = self.metrics[name]
        return wilson_interval(round(metrics.accuracy * metrics.n), metrics.n)

    @property
    def worst(self) -> str:
        """The source with the least mean recall."""
        return min(self.metrics, key=self.balanced)

    @property
    def worst_cell(self) -> tuple[str, str]:
        """The source and the class with the least recall."""
        cells = [
            (row.recall, source, name)
            for source, metrics in self.metrics.items()
            for name, row in metrics.per_class.items()
            if row.support
        ]
        return min(cells)[1:]

    def to_json(self) -> dict[str, Any]:
        """Return ``sources``, ``worst_source`` and ``worst_class_of_source`` as plain data."""
        source, name = self.worst_cell
        row = self.metrics[source].per_class[name]
        rows = {each: self._row(each) for each in self.metrics}
        return {
            "sources": rows,
            "worst_source": {"name": self.worst}
            | {key: rows[self.worst][key] for key in ("n", "accuracy", "balanced_accuracy", "macro_f1")},
            "worst_class_of_source": {"source": source, "class": name, "recall": row.recall, "n": row.support},
        }

    def _row(self, name: str) -> dict[str, Any]:
        metrics = self.metrics[name]
        plain = metrics.to_json()
        kept = {key: plain[key] for key in ("n", "accuracy", "macro_f1", "ece", "per_class", "confusion", "absent")}
        return kept | {"balanced_accuracy": self.balanced(name), "accuracy_wilson": self.interval(name)}


def measure_sources(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    sources: Sequence[str],
    classes: tuple[str, ...],
    probabilities: NDArray[np.float64] | None = None,
) -> SourceMetrics | None:
    """Measure each source's images, None where no image names its source.

    Args:
        logits: (N, C).
        labels: (N,).
        sources: of each image; empty where unknown.
        classes: names of the C classes.
        probabilities: see ``compute_metrics``.
    """
    if not any(sources):
        return None
    origins, found = np.array(sources), {}
    for name in np.unique(origins):
        of_it = origins == name
        parts = None if probabilities is None else probabilities[of_it]
        found[str(name) or "(unknown)"] = compute_metrics(
            logits[of_it], labels[of_it], classes, resamples=0, probabilities=parts
        )
    return SourceMetrics(found)
