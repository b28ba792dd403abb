"""Draws the splits of a run, no group on both sides, and says first how far the held-out images leak."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from brainq_torch.console import counted, name_first
from brainq_torch.data.dataset.load import load_pixels
from brainq_torch.data.dataset.manifest import (
    ManifestError,
    ManifestRow,
    assign_splits,
    make_manifest,
    manifest_folder,
    read_manifest,
    stratified_split,
    verify_manifest,
)
from brainq_torch.data.dataset.sample import DataFolderError, ImageFolder, ImageRecord
from brainq_torch.data.leakage.check import LeakCheck, check_splits, grouped_split
from brainq_torch.data.leakage.groups import Grouping, group_images, name_groups, needs_search
from brainq_torch.data.pixels import SEARCH_PIXELS
from brainq_torch.texts import fill_text

SPLITS = ("Training", "val", "Testing")


@dataclass(frozen=True)
class RunSplits:
    """The manifest of a run, per held-out split how far it leaks, and the images as ``SEARCH_PIXELS``, in its order."""

    rows: list[ManifestRow]
    leakage: dict[str, LeakCheck]
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class SplitPlan:
    """How the validation part is drawn where the folder brings none, and what may not be divided.

    Attributes:
        split: ``grouped`` keeps groups whole, ``stratified`` does not.
        fraction: of the images other than Testing.
        groups: see ``name_groups``; without it and ``group_pattern``, the groups that the files name, or a search's.
        group_pattern: see ``name_groups``.
    """

    split: Literal["grouped", "stratified"]
    fraction: float
    seed: int
    groups: str = ""
    group_pattern: str = ""

    def split_images(self, folder: ImageFolder, kept: Path | None = None) -> RunSplits:
        """Draw the splits; for ``kept`` see ``find_links``.

        Raises:
            GroupError: the groups asked for do not fit the images.
            ValueError: a class cannot be divided.
        """
        records = name_groups(folder.records, self.groups, self.group_pattern)
        pixels, found = _find_groups(folder, records, kept, bool(self.groups or self.group_pattern))
        records = [replace(record, group=group) for record, group in zip(records, found.groups, strict=True)]
        records = assign_splits(records, self._choose(records, folder.classes))
        _check_each_class(folder, records)
        rows = make_manifest(folder.root, records, folder.classes)
        return RunSplits(rows, _report_leaks(pixels, records, found), pixels)

    def _choose(self, records: Sequence[ImageRecord], classes: Sequence[str]) -> NDArray[np.bool_]:
        """Return the validation images among the records other than Testing; a source that has its own keeps them."""
        with_own = {record.source for record in records if record.split == "val"}
        usable = [record for record in records if record.split != "Testing"]
        free = np.array([record.source not in with_own for record in usable])
        chosen = np.array([record.split == "val" for record in usable])
        if not free.any():
            return chosen
        labels = np.array([record.label for record in usable])[free]
        if self.split == "stratified":
            chosen[free] = stratified_split(labels.tolist(), self.fraction, self.seed, classes)
        else:
            groups = np.unique([record.group for record in usable], return_inverse=True)[1]
            chosen[free] = grouped_split(labels, groups[free], self.fraction, self.seed, classes, not with_own)
        return chosen


def adopt_splits(folder: ImageFolder, manifest: Path, kept: Path | None = None) -> RunSplits:
    """Take over the splits and groups of another manifest; images that it does not list are left out.

    Groups are searched for where the manifest lacks any. The folder need not be decoded.

    Raises:
        ManifestError: it lists images that the folder lacks, has changed, or keeps under another class, splits that do
            not exist, or a class or part without images.
    """
    rows = read_manifest(manifest)
    _check_splits(manifest, rows, folder.classes)
    verify_manifest(folder.root, rows)
    _check_labels(folder, manifest, rows)
    known = {record.path: record.source for record in folder.records}
    rows = [replace(row, source=row.source or known.get(row.path, "")) for row in rows]
    unlisted = len({record.path for record in folder.records} - {row.path for row in rows})
    if unlisted:
        print(f"not in {manifest}, and left out: {counted(unlisted, 'image')} of {folder.root}", flush=True)
    return check_rows(folder.root, rows, kept)


def check_rows(root: Path, rows: Sequence[ManifestRow], kept: Path | None = None) -> RunSplits:
    """Measure how far splits that are there already leak; groups are searched for where any is missing."""
    listed = manifest_folder(root, rows)
    pixels, found = _find_groups(listed, listed.records, kept)
    rows = [replace(row, group=group) for row, group in zip(rows, found.groups, strict=True)]
    return RunSplits(rows, _report_leaks(pixels, listed.records, found), pixels)


def _check_splits(manifest: Path, rows: Sequence[ManifestRow], classes: Sequence[str]) -> None:
    counts = Counter(row.split for row in rows)
    unknown = sorted(counts.keys() - set(SPLITS))
    if unknown:
        raise ManifestError(f"{manifest} names unknown splits {unknown}; allowed are {list(SPLITS)}")
    empty = [split for split in ("Training", "val") if not counts[split]]
    if empty:
        raise ManifestError(
            f"{manifest} has no images of split {empty[0]}; a run needs some to train and to validate on"
        )
    untrained = sorted(set(classes) - {row.label for row in rows if row.split == "Training"})
    if untrained:
        raise ManifestError(f"{manifest} has no Training image of {', '.join(untrained)}; each class needs some")
    twice = [path for path, count in Counter(row.path for row in rows).items() if count > 1]
    if twice:
        raise ManifestError(
            f"{manifest} lists {counted(len(twice), 'image')} more than once, first: {twice[0]}; leave one line each"
        )


def _check_each_class(folder: ImageFolder, records: Sequence[ImageRecord]) -> None:
    """Raise DataFolderError where a class has no training image; say where it has none to validate on."""
    there = {(record.split, folder.classes[record.label]) for record in records}
    untrained, unseen = ([n for n in folder.classes if (split, n) not in there] for split in ("Training", "val"))
    if untrained:
        raise DataFolderError(
            f"{folder.root} has no training image of {', '.join(untrained)}; add some, or leave it out of the data and "
            "of data.classes"
        )
    if unseen:
        print(f"warning: no validation image of {', '.join(unseen)}: its recall is unknown", flush=True)


def _check_labels(folder: ImageFolder, manifest: Path, rows: Sequence[ManifestRow]) -> None:
    labels = {record.path: folder.classes[record.label] for record in folder.records}
    wrong = [
        f"{row.path} ({row.label}, in the folder {labels[row.path]})"
        for row in rows
        if row.path in labels and labels[row.path] != row.label
    ]
    if wrong:
        raise ManifestError(
            f"{manifest} gives {counted(len(wrong), 'image')} another class than {folder.root}: {name_first(wrong)}. "
            "Correct the manifest, or move the images"
        )


def _find_groups(
    folder: ImageFolder, records: Sequence[ImageRecord], kept: Path | None, are_given: bool = True
) -> tuple[NDArray[np.uint8], Grouping]:
    pixels = load_pixels(folder, SEARCH_PIXELS)
    if needs_search(records, are_given):
        print(f"looking for copies among {counted(len(records), 'image')}, half a minute for 7000 ...", flush=True)
    return pixels, group_images(records, pixels, kept, are_given)


def _report_leaks(pixels: NDArray[np.uint8], records: Sequence[ImageRecord], found: Grouping) -> dict[str, LeakCheck]:
    labels, splits = np.array([record.label for record in records]), np.array([record.split for record in records])
    checks = check_splits(pixels, labels, splits, found.links)
    for split, check in checks.items():
        print(fill_text("leak", split=split, check=check), flush=True)
    return checks
