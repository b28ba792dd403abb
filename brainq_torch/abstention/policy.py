"""When a model does not answer: calibrated confidence, a threshold for it, and a score for pictures of something else.

Everything here is numpy on logits and pixels, so that it works wherever an exported file runs. Confidence: temperature
scaling, Guo et al. 2017 (https://arxiv.org/abs/1706.04599), and the probability of the best class. Outliers: the energy
of the logits, Liu et al. 2020 (https://arxiv.org/abs/2010.03759, equation 4), and how unlike the training images the
picture is (``outlier.py``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.abstention.outlier import Typicality

UNCERTAIN = "uncertain"
"""What stands in place of a class where a model does not answer."""

TARGET_ACCURACY = 0.99
"""The threshold is the lowest at which the answers on the validation part are right this often."""

LEAST_COVERAGE = 0.8
"""Share of the validation part that is answered in any case, however often the model is wrong on it."""

LEAST_CONFIDENCE = 0.5
"""No answer is less probable than this, unless ``LEAST_COVERAGE`` asks for it."""

_TEMPERATURES = (0.05, 20.0)
_INSIDE = 0.99  # quantile of the validation part
_MARGIN = 1.3  # the limit lies this much further out than that quantile: heads from another hospital are no photos
_DIGITS = 6


@dataclass(frozen=True)
class ScoreScale:
    """Where a score lies among validation images: its median and its 99 % quantile."""

    median: float
    inside: float

    def place(self, score: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the score with the median at 0 and the quantile at 1; what is below the median is as good as that."""
        return np.maximum(score - self.median, 0.0) / (self.inside - self.median)


@dataclass(frozen=True)
class Judgement:
    """Of N answers: calibrated probabilities (N, C), outlier scores (above 1: no such picture), and sure (N,)."""

    probabilities: NDArray[np.float64]
    outlier: NDArray[np.float64]
    sure: NDArray[np.bool_]

    @property
    def answered(self) -> NDArray[np.bool_]:
        """(N,) whether the answer is given."""
        return self.sure & (self.outlier <= 1.0)

    def reason(self, row: int) -> str:
        """Say why a row is not answered; empty where it is."""
        if self.outlier[row] > 1.0:
            return "unlike the images it was trained on"
        return "" if self.sure[row] else "not sure enough"


@dataclass(frozen=True)
class Abstention:
    """When one artefact does not answer: a temperature, a least probability, a ``limit`` of the outlier scores' sum."""

    temperature: float
    threshold: float
    energy: ScoreScale
    distance: ScoreScale
    limit: float
    typicality: Typicality
    fitted_on: int

    def judge(self, logits: NDArray[Any], images: NDArray[np.uint8]) -> Judgement:
        """Decide which of the (N, C) logits to answer with; images are the (N, s, s) uint8 pixels behind them."""
        probabilities = softmax(logits.astype(np.float64) / self.temperature)
        distance = self.typicality.distance(images) if len(images) else np.empty(0)
        outlier = (self.energy.place(_energy(logits)) + self.distance.place(distance)) / self.limit
        return Judgement(probabilities, outlier, probabilities.max(axis=1) >= self.threshold)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a checkpoint or a file's metadata."""
        return asdict(self) | {"typicality": self.typicality.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Abstention:
        """Rebuild from ``to_json``'s data; other data raise ArithmeticError, LookupError, TypeError or ValueError."""
        rebuilt = cls(
            float(data["temperature"]),
            float(data["threshold"]),
            ScoreScale(**data["energy"]),
            ScoreScale(**data["distance"]),
            float(data["limit"]),
            Typicality.from_json(data["typicality"]),
            int(data["fitted_on"]),
        )
        with np.errstate(divide="raise", invalid="raise"):  # what cannot judge fails here, not on somebody's image
            rebuilt.judge(np.zeros((1, 2)), np.zeros((1, 32, 32), np.uint8))
        return rebuilt


def fit_abstention(
    logits: NDArray[Any], labels: NDArray[np.int64], images: NDArray[np.uint8], typicality: Typicality
) -> Abstention:
    """Fit to logits (N, C), labels (N,) and pixels (N, s, s) uint8 of images that were not trained on."""
    if not len(logits) == len(labels) == len(images) > 0:
        raise ValueError(f"{len(logits)} logits, {len(labels)} labels and {len(images)} images; one of each is needed")
    temperature = fit_temperature(logits, labels)
    probabilities = softmax(logits.astype(np.float64) / temperature)
    threshold = fit_threshold(probabilities.max(axis=1), logits.argmax(axis=1) == labels)
    scores = _energy(logits), typicality.distance(images)
    energy, distance = map(_fit_scale, scores)
    together = energy.place(scores[0]) + distance.place(scores[1])
    limit = _round(_MARGIN * float(np.quantile(together, _INSIDE)))
    return Abstention(temperature, threshold, energy, distance, limit, typicality, len(labels))


def fit_temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Return the temperature at which the labels are likeliest, between 0.05 and 20."""
    from scipy.optimize import minimize_scalar  # the clinic's bundle judges with this file, and has no SciPy
    from scipy.special import log_softmax

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(labels)), labels].mean())

    low, high = np.log(_TEMPERATURES)
    return _round(float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x)))


def fit_threshold(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Return the least confidence to answer with: the lowest that reaches ``TARGET_ACCURACY``.

    It is at least ``LEAST_CONFIDENCE``, but ``LEAST_COVERAGE`` of the images are answered in any case.
    """
    accuracy = cover(confidence, right)[1]
    ranked = -np.sort(-confidence)
    last_of_value = np.append(ranked[:-1] > ranked[1:], True)  # equal confidences are answered together
    reached = np.flatnonzero((accuracy >= TARGET_ACCURACY) & last_of_value)
    wanted = max(ranked[reached[-1]] if len(reached) else 1.0, LEAST_CONFIDENCE)
    covering = ranked[int(np.ceil(LEAST_COVERAGE * len(ranked))) - 1]
    return float(np.floor(min(wanted, covering) * 1e6) / 1e6)  # rounded down: the last answer stays answered


def cover(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coverage and accuracy of answering the 1, 2, ... N most confident images, each (N,)."""
    order = np.argsort(-confidence, kind="stable")
    count = np.arange(1, len(order) + 1)
    return count / len(order), np.cumsum(right[order]) / count


def measure(judgement: Judgement, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Return n, coverage and accuracy on what is answered (None where nothing is), and what is left unanswered why."""
    right = judgement.probabilities.argmax(axis=1) == labels
    answered = judgement.answered
    return {
        "n": len(labels),
        "coverage": float(answered.mean()),
        "accuracy": float(right[answered].mean()) if answered.any() else None,
        "accuracy_of_all": float(right.mean()),
        "unlike": float((judgement.outlier > 1.0).mean()),
        "unsure": float((~judgement.sure).mean()),
    }


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities of (N, C) logits."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _energy(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return -log(sum(exp(logits))), (N,)."""
    largest = logits.max(axis=1).astype(np.float64)
    return np.asarray(-largest - np.log(np.exp(logits - largest[:, None]).sum(axis=1)))


def _fit_scale(scores: NDArray[np.float64]) -> ScoreScale:
    median, inside = np.quantile(scores, [0.5, _INSIDE])
    # Equal scores still need a scale.
    return ScoreScale(_round(float(median)), _round(max(float(inside), float(median) + 1e-3)))


def _round(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
