"""Keeps accuracy honest: groups that may not be divided, a split that respects them, how far a test set leaks."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.classes import ALONE, CLASSES
from brainq_torch.data.leakage.candidates import shrink
from brainq_torch.data.leakage.near_duplicates import COPY, EQUAL, SCAN, Links
from brainq_torch.run_files import BrainqError

SOURCES = {"val": ("Training",), "Testing": ("Training", "val")}
"""Held-out split -> the splits that a model measured on it has seen."""

_NAMES = {"val": "validation part", "Testing": "test set"}
NEIGHBOUR_SIDE = 32


def share_group(
    groups: NDArray[np.int64], in_test: NDArray[np.bool_], in_train: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return (N,) bool: test images whose group also has a training image."""
    return np.asarray(in_test & np.isin(groups, groups[in_train]))


def grouped_split(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    fraction: float,
    seed: int,
    classes: Sequence[str] = CLASSES,
    each_class: bool = True,
) -> NDArray[np.bool_]:
    """Choose validation images, (N,) bool: no group on both sides, and of every class its share as far as groups allow.

    Groups come in random order and are taken while they fit; then small ones, while that brings counts nearer.
    (scikit-learn's StratifiedGroupKFold knows fractions 1/k only, and refuses classes of fewer than k images.)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the validation fraction is {fraction}; allowed is more than 0 and less than 1")
    if not len(labels) == len(groups) > 0:
        raise ValueError(
            f"there are {len(labels)} labels and {len(groups)} groups; there must be one of each per image"
        )
    _, member = np.unique(groups, return_inverse=True)
    table = np.zeros((member.max() + 1, max(len(classes), int(labels.max()) + 1)))
    np.add.at(table, (member, labels), 1)
    chosen = _choose_groups(table, fraction * table.sum(axis=0), np.random.default_rng(seed))
    if each_class:  # else other images bring the class to the side that lacks it
        _check_both_sides(table, chosen, classes)
    return np.asarray(chosen[member])


def _choose_groups(
    table: NDArray[np.float64], wanted: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """table: (groups, classes) image counts. wanted: (classes,) images to choose. Returns (groups,) bool."""
    weight = 1.0 / np.maximum(wanted, 1e-9)  # a class's miss counts relative to its share, not to its size
    missing = wanted.copy()
    chosen = np.zeros(len(table), dtype=bool)
    order = rng.permutation(len(table))
    for group in order:
        if (table[group] <= missing)[table[group] > 0].all():
            chosen[group] = True
            missing -= table[group]
    for group in order[np.argsort(table[order].sum(axis=1), kind="stable")]:  # the small ones fill up best
        after = missing - table[group]
        if not chosen[group] and ((after * weight) ** 2).sum() < ((missing * weight) ** 2).sum():
            chosen[group] = True
            missing = after
    taken = wanted - missing
    for label in np.flatnonzero((table.sum(axis=0) > 0) & (taken < 0.5)):  # a few images: the share rounds to none
        holders = np.flatnonzero(table[:, label])
        if len(holders) > 1:
            chosen[holders[np.argmin(table[holders].sum(axis=1))]] = True
    return chosen


def _check_both_sides(table: NDArray[np.float64], chosen: NDArray[np.bool_], classes: Sequence[str]) -> None:
    one_sided = (table.sum(axis=0) > 0) & ((table[chosen].sum(axis=0) == 0) | (table[~chosen].sum(axis=0) == 0))
    if one_sided.any():
        label = int(np.flatnonzero(one_sided)[0])
        name = classes[label] if label < len(classes) else str(label)
        if (count := int(table[:, label].sum())) == 1:
            raise BrainqError(ALONE.format(name))
        raise BrainqError(
            f"the {count} images of class {name} form {np.count_nonzero(table[:, label])} "
            "group(s) of near-identical images, which cannot be divided between training and validation: add images "
            "of other patients, or use --data.split stratified, knowing that its validation figure is then too good"
        )


def ask_neighbours(
    train_pixels: NDArray[np.uint8],
    train_labels: NDArray[np.int64],
    test_pixels: NDArray[np.uint8],
    test_labels: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Return of each test image whether its nearest training image, at 32 x 32, has its class."""
    from sklearn.neighbors import KNeighborsClassifier  # a second, and groups are told apart without

    if not len(train_pixels) or not len(test_pixels):
        raise ValueError(
            f"a nearest neighbour needs images on both sides; got {len(train_pixels)} training and {len(test_pixels)} "
            "test images"
        )
    train, test = (shrink(part, NEIGHBOUR_SIDE).reshape(len(part), -1) for part in (train_pixels, test_pixels))
    model = KNeighborsClassifier(n_neighbors=1, algorithm="brute")
    model.fit(train.astype(np.float32), train_labels)
    return np.asarray(model.predict(test.astype(np.float32)) == test_labels)


@dataclass(frozen=True)
class LeakCheck:
    """How much of a test set the training set already holds; each count includes the one before.

    Attributes:
        copy_count: also mirrored, turned, cropped and re-windowed copies.
        related_count: also neighbouring slices of one head, or images of a given group that training has, too.
        nearest_neighbour: accuracy of 1-NN on 32 x 32 pixels.
        nearest_neighbour_unseen: on the images that are related to none in training; None where there are none.
        majority: accuracy of always naming training's largest class.
        searched: False where groups were given: then copies are the pixel-equal images alone.
        name: what the report calls the test set.
    """

    test_count: int
    equal_count: int
    copy_count: int
    related_count: int
    nearest_neighbour: float
    nearest_neighbour_unseen: float | None
    majority: float
    searched: bool = True
    name: str = "test set"

    @property
    def leaks(self) -> bool:
        """Whether any test image is a copy of a training image, or is of a given group that training has, too."""
        return (self.copy_count if self.searched else self.related_count) > 0

    @property
    def verdict(self) -> str:
        """Return one plain sentence."""
        count, what = self.related_count, "are of groups that training images are of, too"
        none = "is of a group that a training image is of, too"
        if self.searched:
            count, what = self.copy_count, "are copies of training images"
            more = f"{self.related_count} of {self.test_count} may be neighbouring slices"
            none = f"is a copy of a training image ({more})"
        if self.leaks:
            return f"the {self.name} leaks: {count} of {self.test_count} images ({count / self.test_count:.1%}) {what}"
        return f"no image of the {self.name} {none}"

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return asdict(self) | {"leaks": self.leaks}


def check_leak(
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    in_train: NDArray[np.bool_],
    in_test: NDArray[np.bool_],
    links: Links,
    name: str = "test set",
) -> LeakCheck:
    """Measure how far a test set leaks; both sides, (N,) bool, hold images, ``links`` are of the same pixels."""
    _check_sides(len(pixels), in_train, in_test, links)
    equal, copied, related = (share_group(links.groups(kind), in_test, in_train) for kind in (EQUAL, COPY, SCAN))
    unseen = in_test & ~related
    right = ask_neighbours(pixels[in_train], labels[in_train], pixels[in_test], labels[in_test])
    return LeakCheck(
        test_count=int(in_test.sum()),
        equal_count=int(equal.sum()),
        copy_count=int(copied.sum()),
        related_count=int(related.sum()),
        nearest_neighbour=float(np.mean(right)),
        nearest_neighbour_unseen=float(np.mean(right[unseen[in_test]])) if unseen.any() else None,
        majority=float(np.mean(labels[in_test] == np.bincount(labels[in_train]).argmax())),
        searched=links.searched,
        name=name,
    )


def _check_sides(count: int, in_train: NDArray[np.bool_], in_test: NDArray[np.bool_], links: Links) -> None:
    if links.count != count:
        raise ValueError(f"the links are of {links.count} images, the pixels of {count}; find them on the same ones")
    if not in_train.any() or not in_test.any() or (in_train & in_test).any():
        raise ValueError(
            f"{in_train.sum()} images are for training, {in_test.sum()} for testing, {(in_train & in_test).sum()} for "
            "both; each side needs some of its own"
        )


def check_splits(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64], splits: NDArray[np.str_], links: Links
) -> dict[str, LeakCheck]:
    """Measure how far each held-out split that has images leaks: ``val`` from Training, ``Testing`` from both."""
    checks, pixels = {}, shrink(pixels, NEIGHBOUR_SIDE)  # once, before parts are copied
    for split, sources in SOURCES.items():
        held_out, source = splits == split, np.isin(splits, sources)
        if held_out.any() and source.any():
            checks[split] = check_leak(pixels, labels, source, held_out, links, _NAMES[split])
    return checks


def read_leakage(path: Path) -> dict[str, LeakCheck]:
    """Read a JSON object of split -> ``LeakCheck.to_json``."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return {
        split: LeakCheck(**{name: value for name, value in check.items() if name != "leaks"})
        for split, check in data.items()
    }
