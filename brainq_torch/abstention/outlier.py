"""Says how unlike the training images an image is, from what it looks like alone: no network, only numpy and Pillow.

A network names one of its classes for a photo, a knee or noise, often with confidence. Two dozen plain statistics
(border, histogram, the head's outline, brightness from its middle outwards, symmetry, noise) and their Mahalanobis
distance to the training images tell most such pictures from heads. The distance is that of a simple
anomaly detector, Lee et al. 2018 (https://arxiv.org/abs/1807.03888, section 2.1), on statistics instead of features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE = 64
_RINGS = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])  # of a uniform ellipse's standard deviations: its edge lies at 2
_SHRINKAGE = 0.05  # towards independent statistics: some hardly vary among the images of one source
_BRIGHT = 0.15
_DIGITS = 5  # of the numbers that travel in a file
_GRID = np.mgrid[0:_SIDE, 0:_SIDE].reshape(2, -1) / (_SIDE - 1) - 0.5  # y, x of every pixel in [-0.5, 0.5]


def describe(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return (N, K) statistics of (N, s, s) uint8 images."""
    return np.stack([_describe(image) for image in images])


def _describe(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    small = np.asarray(Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float64)
    ranks = np.percentile(small, [10, 25, 50, 75, 90, 99])
    top = max(float(ranks[-1]), 8.0)
    ring = np.concatenate([small[0], small[-1], small[1:-1, 0], small[1:-1, -1]])
    corners = small[[0, 0, -1, -1], [0, -1, 0, -1]]
    spread = small.std() + 1.0
    return np.array(
        [
            ring.mean() / top,
            ring.std() / top,
            corners.mean() / top,
            top / 255,
            *ranks[:-1] / top,
            spread / top,
            *_outline(small / top),
            max(_alike(small, small[:, ::-1]), _alike(small, small[::-1])),
            np.log(_roughness(image.astype(np.int16)) / spread + 1e-3),
            np.log(_roughness(small) / spread + 1e-3),
            np.log(_roughness(small.reshape(16, 4, 16, 4).mean(axis=(1, 3))) / spread + 1e-3),
        ]
    )


def _outline(image: NDArray[np.float64]) -> list[float]:
    """Return place, size, shape and brightness from its middle outwards of what is bright in a (64, 64) image."""
    flat = np.clip(image.ravel(), 0.0, 1.0)
    bright = flat > _BRIGHT
    area = bright.mean()
    weights = bright / max(int(bright.sum()), 1)
    middle = _GRID @ weights
    away = _GRID - middle[:, None]
    covariance = (away * weights) @ away.T + 1e-4 * np.eye(2)
    eigenvalues = np.linalg.eigvalsh(covariance)
    filled = area / (4 * np.pi * np.sqrt(np.prod(eigenvalues)))  # 1 for an ellipse without holes
    radius = np.sqrt(np.einsum("ip,ij,jp->p", away, np.linalg.inv(covariance), away))
    ring = np.digitize(radius, _RINGS) - 1
    rings = np.bincount(ring, flat, len(_RINGS)) / np.maximum(np.bincount(ring, minlength=len(_RINGS)), 1)
    off = float(np.abs(middle).max())
    return [float(area), off, float(0.5 * np.log(eigenvalues[1] / eigenvalues[0])), float(filled), *map(float, rings)]


def _alike(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / (np.sqrt((one * one).sum() * (other * other).sum()) + 1.0))


def _roughness(image: NDArray[Any]) -> float:
    """Return the mean absolute difference between each pixel and the mean of its four neighbours: exact in int16."""
    around = image[:-2, 1:-1] + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:]
    return float(np.abs(4 * image[1:-1, 1:-1] - around).mean() / 4)


@dataclass(frozen=True)
class Typicality:
    """What training images look like: |whitening (statistics - middle)| / sqrt(K) is about 1 for a typical image."""

    middle: tuple[float, ...]
    whitening: tuple[tuple[float, ...], ...]

    def distance(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return (N,) how unlike the training images (N, s, s) uint8 images are."""
        matrix = np.zeros((len(self.middle), len(self.middle)))
        for end, row in enumerate(self.whitening):
            matrix[end, : end + 1] = row
        away = (describe(images) - np.array(self.middle)) @ matrix.T
        return np.asarray(np.sqrt((away * away).mean(axis=1)))

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"middle": list(self.middle), "whitening": [list(row) for row in self.whitening]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Typicality:
        """Rebuild from ``to_json``'s data."""
        return cls(tuple(map(float, data["middle"])), tuple(tuple(map(float, row)) for row in data["whitening"]))


def fit_typicality(images: NDArray[np.uint8]) -> Typicality:
    """Learn what (N >= 2, s, s) uint8 images look like; ``whitening`` inverts the Cholesky factor of the covariance."""
    if len(images) < 2:
        raise ValueError(f"there are {len(images)} images to learn from; at least 2 are needed")
    statistics = describe(images)
    covariance = np.cov(statistics, rowvar=False)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.diag(np.diag(covariance))
    covariance += 1e-6 * np.eye(len(covariance))  # a statistic that never varies
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    rows = [_round(row[: end + 1]) for end, row in enumerate(whitening)]
    return Typicality(_round(statistics.mean(axis=0)), tuple(rows))


def _round(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Round to the digits that a file carries, so that it judges as the network did."""
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
