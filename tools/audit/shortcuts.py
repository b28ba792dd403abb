"""Asks what gives the class away besides the tumour: a thumbnail, the border, the way up. Linear probes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.leakage.candidates import ORIENTATIONS, orient

_FOLDS = 5
_THUMBNAIL_SIDE, _BORDER_SIDE = 16, 56
_POSES, _POSE_STEPS = 12, 15


@dataclass(frozen=True)
class Probe:
    """How well a linear classifier tells the class from very little, on groups it was not trained on.

    name: what it sees, in a word. meaning: what it sees. balanced_accuracy: mean recall, chance is 1 / number of
    classes. recall: per class name.
    """

    name: str
    meaning: str
    balanced_accuracy: float
    recall: dict[str, float]


def run_probes(
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    classes: Sequence[str] = CLASSES,
    poses: bool = True,
) -> list[Probe]:
    """Probe thumbnails and border pixels, and where ``poses`` is said, views and orientation.

    pixels: (N, s, s) uint8. labels: (N,). groups: (N,), none of which is divided between training and test.
    """
    if not len(labels):
        return []
    fewest = min(len(np.unique(groups[labels == label])) for label in np.unique(labels))
    count = min(_FOLDS, fewest)
    if count < 2 or len(np.unique(labels)) < 2:
        return []
    folds = list(StratifiedGroupKFold(count, shuffle=True, random_state=0).split(labels, labels, groups))
    thumbnails = _shrink(pixels, _THUMBNAIL_SIDE)
    features: list[tuple[str, str, NDArray[Any]]] = [
        ("thumbnail", "16 x 16 pixels: the look of the source", thumbnails.reshape(len(pixels), -1)),
        ("border", "the outermost 1/56 of the frame: nothing of the head", _ring(_shrink(pixels, _BORDER_SIDE))),
    ]
    if poses:
        pose, turn = _poses(thumbnails)
        both, ways = pose * len(ORIENTATIONS) + turn, len(ORIENTATIONS)
        features += [
            ("pose", "which of 12 typical views it resembles, way up ignored", np.eye(_POSES)[pose]),
            ("pose and way up", "the same with the way up: what it adds is a shortcut", np.eye(_POSES * ways)[both]),
            ("way up", "which of 8 ways the view is turned and mirrored", np.eye(ways)[turn]),
        ]
    return [_probe((name, meaning), table, labels, folds, classes) for name, meaning, table in features]


def _probe(
    words: tuple[str, str],
    features: NDArray[Any],
    labels: NDArray[np.int64],
    folds: list[tuple[Any, Any]],
    classes: Sequence[str],
) -> Probe:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=300))
    guesses = cross_val_predict(model, features.astype(np.float64), labels, cv=folds)
    present = np.unique(labels)
    recalls = recall_score(labels, guesses, labels=present, average=None, zero_division=0.0)
    recall = {classes[label]: float(value) for label, value in zip(present, recalls, strict=True)}
    return Probe(*words, float(np.mean(recalls)), recall)


def _shrink(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX)) for image in pixels])


def _ring(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    sides = (images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1])
    return np.concatenate(sides, axis=1)


def _poses(thumbnails: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cluster thumbnails whatever their way up: k-means over correlation, the best of 8 orientations for each image.

    Returns (N,) cluster and (N,) turn. The clusters' means are turned to look like that of the largest one: turns
    compare between clusters as far as these look alike.
    """
    views = np.stack([orient(thumbnails, turn).reshape(len(thumbnails), -1) for turn in range(len(ORIENTATIONS))])
    rows = views.astype(np.float32) - views.mean(axis=2, keepdims=True, dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True) + 1e-6
    rng = np.random.default_rng(0)
    means = rows[0, rng.choice(len(thumbnails), _POSES, replace=len(thumbnails) < _POSES)]
    for _ in range(_POSE_STEPS):
        scores = rows @ means.T
        pose, turn = scores.max(axis=0).argmax(axis=1), np.empty(len(thumbnails), np.int64)
        turn[:] = scores[:, np.arange(len(pose)), pose].argmax(axis=0)
        for cluster in np.unique(pose):
            members = np.flatnonzero(pose == cluster)
            mean = rows[turn[members], members].sum(axis=0)
            means[cluster] = mean / (np.linalg.norm(mean) + 1e-6)
    return pose, _one_way_up(means, pose, turn)


def _one_way_up(means: NDArray[np.float32], pose: NDArray[np.int64], turn: NDArray[np.int64]) -> NDArray[np.int64]:
    """Refer the turns to the largest cluster's mean instead of each to its own cluster's."""
    squares = means.reshape(-1, _THUMBNAIL_SIDE, _THUMBNAIL_SIDE)
    largest = squares[np.bincount(pose).argmax()]
    numbered = np.arange(4).reshape(2, 2)  # no symmetry: its 8 orientations differ
    ways = [orient(numbered, way).tobytes() for way in range(len(ORIENTATIONS))]
    further = [int(np.argmax([(orient(mean, way) * largest).sum() for way in range(len(ways))])) for mean in squares]
    together = [
        [ways.index(orient(orient(numbered, way), more).tobytes()) for way in range(len(ways))] for more in further
    ]
    return np.array(together)[pose, turn]
