"""Who trains, who validates: the stratified split and the manifest that pins every image by its hash."""

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainq_torch.console import name_first
from brainq_torch.data.classes import ALONE, CLASSES, Labels
from brainq_torch.data.dataset.sample import ImageFolder, ImageRecord
from brainq_torch.data.tables import read_table
from brainq_torch.run_files import BrainqError, hash_file

MANIFEST_COLUMNS = ("path", "label", "split", "group", "sha256", "source")


class ManifestError(BrainqError):
    """A manifest that cannot be read, or images that are no longer those it lists."""


@dataclass(frozen=True)
class ManifestRow:
    """One image of a run: path below the data root, class name, ``Training``/``val``/``Testing``, group, SHA-256.

    source: where it comes from; empty in a run without ``data.sources``.
    """

    path: str
    label: str
    split: str
    group: str
    sha256: str
    source: str = ""


def stratified_split(
    labels: Sequence[int], fraction: float, seed: int, classes: Sequence[str] = CLASSES
) -> NDArray[np.bool_]:
    """Choose validation images, the same share of every class: (N,) bool, True for validation.

    Raises:
        BrainqError: A class is too small to give each side an image.
    """
    from sklearn.model_selection import train_test_split  # a second, and a file is measured without

    if not 0 < fraction < 1:
        raise ValueError(f"the validation fraction is {fraction}; allowed is more than 0 and less than 1")
    counts = np.bincount(labels, minlength=len(classes))
    small = [classes[label] for label, count in enumerate(counts) if 0 < count < 2]
    if small:
        raise BrainqError(ALONE.format(", ".join(small)))
    positions = np.arange(len(labels))
    try:
        _, chosen = train_test_split(positions, test_size=fraction, random_state=seed, stratify=labels)
    except ValueError as error:
        raise BrainqError(f"{len(labels)} images cannot be split with fraction {fraction}: {error}") from error
    mask = np.zeros(len(labels), dtype=bool)
    mask[chosen] = True
    return mask


def assign_splits(records: Sequence[ImageRecord], validation: NDArray[np.bool_]) -> list[ImageRecord]:
    """Give every image the part it plays in a run: ``Training``, ``val`` or ``Testing``.

    ``validation`` is over the non-Testing records in order.
    """
    drawn = iter(np.where(validation, "val", "Training").tolist())
    return [record if record.split == "Testing" else replace(record, split=next(drawn)) for record in records]


def make_manifest(root: Path, records: Sequence[ImageRecord], classes: Sequence[str] = CLASSES) -> list[ManifestRow]:
    """Hash every record's file, in order. Raises OSError when one has gone."""
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(lambda record: hash_file(root / record.path), records))
    return [
        ManifestRow(record.path, classes[record.label], record.split, record.group, sha256, record.source)
        for record, sha256 in zip(records, hashes, strict=True)
    ]


def write_manifest(path: Path, rows: Sequence[ManifestRow]) -> None:
    """Write ``manifest.csv``: one line per image, columns as in ``MANIFEST_COLUMNS`` (UTF-8)."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(MANIFEST_COLUMNS)
        writer.writerows(astuple(row) for row in rows)


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read ``manifest.csv``; one of before there were sources has no column for them.

    Raises:
        ManifestError: It is missing, or its columns are not ours.
    """
    if not path.is_file():
        raise ManifestError(f"{path} is missing; a run folder made by brainq_torch.fit has one")
    columns, lines = read_table(path, ManifestError)
    if tuple(columns) not in (MANIFEST_COLUMNS, MANIFEST_COLUMNS[:-1]):
        raise ManifestError(f"{path} has columns {columns}; expected {list(MANIFEST_COLUMNS)}")
    return [ManifestRow(**line) for line in lines]


def number_groups(rows: Sequence[ManifestRow]) -> NDArray[np.int64]:
    """Return the number of each row's group, (len(rows),) int64; a row without a group is a group of its own."""
    return np.unique([row.group or f"image:{row.path}" for row in rows], return_inverse=True)[1]


def class_names(rows: Sequence[ManifestRow]) -> tuple[str, ...]:
    """Return the classes of a run's whole manifest in label order, which is alphabetical."""
    return tuple(sorted({row.label for row in rows}))


def manifest_folder(root: Path, rows: Sequence[ManifestRow], labels: Labels | None = None) -> ImageFolder:
    """Turn manifest rows back into an image folder below ``root``.

    Args:
        root: the folder that their paths are relative to.
        rows: of a manifest.
        labels: what the rows' labels mean, default themselves.

    Raises:
        ManifestError: a label means no class.
    """
    classes = labels.names if labels else class_names(rows)
    meanings = {label: labels.of_folder(label) if labels else label for label in {row.label for row in rows}}
    unknown = sorted(label for label, meaning in meanings.items() if meaning is None)
    if unknown:
        raise ManifestError(f"the manifest names unknown classes {unknown}; allowed are {list(classes)}")
    records = tuple(
        ImageRecord(row.path, classes.index(meanings[row.label] or ""), row.split, row.group, source=row.source)
        for row in rows
    )
    return ImageFolder(root, records, (), classes)


def find_faults(root: Path, rows: Sequence[ManifestRow]) -> list[str]:
    """Return for each row what is wrong with its image below ``root``; empty where it is still the one listed."""

    def fault(row: ManifestRow) -> str:
        path = root / row.path
        if not path.is_file():
            return f"{row.path} is missing"
        return "" if hash_file(path) == row.sha256 else f"{row.path} has changed"

    with ThreadPoolExecutor() as pool:
        return list(pool.map(fault, rows))


def verify_manifest(root: Path, rows: Sequence[ManifestRow]) -> None:
    """Check that every image is still the one the manifest lists.

    Raises:
        ManifestError: It counts and names the missing and the changed images.
    """
    faults = [fault for fault in find_faults(root, rows) if fault]
    if faults:
        raise ManifestError(
            f"{len(faults)} of {len(rows)} images under {root} are not those of the run's manifest: "
            f"{name_first(faults)}. Restore them, name the folder that they are below, or train a new run"
        )
