"""A data set as one table: ``labels.csv`` with path and label (or class), and what else is known of each image."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from brainq_torch.console import counted, name_first
from brainq_torch.data.classes import split_of_folder
from brainq_torch.data.dataset.folder_scan import FolderWalk
from brainq_torch.data.dataset.sample import DataFolderError
from brainq_torch.data.tables import read_table

LABEL_TABLE = "labels.csv"
NOT_THERE = "is listed and not there, left out"
_OPTIONAL = ("group", "split", "source", "sequence", "plane", "sha256")
"""What a table may say besides; a hash is not checked: a run's manifest.csv is such a table, too."""


def find_table(root: Path) -> Path | None:
    """Return the table of a data folder, None where it has none with a path and a label."""
    table = root / LABEL_TABLE
    return table if table.is_file() and _label_column(read_table(table, DataFolderError)[0]) else None


def locate_table(root: Path, name: str) -> Path | None:
    """Return the table of that name in the data folder, or by its own path; None for none. Raises DataFolderError."""
    if not name:
        return None
    table = next((path for path in (root / name, Path(name)) if path.is_file()), None)
    if table is None:
        raise DataFolderError(f"the table {name} is neither in {root} nor a file by itself; correct its path")
    return table


def split_table(path: Path) -> tuple[Path, Path | None]:
    """Return the data folder that a path means, and the table where it is one (.csv) of the images beside it."""
    return (path.parent, path) if path.suffix == ".csv" and path.is_file() else (path, None)


def _label_column(columns: Sequence[str]) -> str | None:
    return next((name for name in ("label", "class") if "path" in columns and name in columns), None)


def read_label_table(walk: FolderWalk, table: Path) -> None:
    """Collect the images that a table lists, in place of those in class folders.

    Raises:
        DataFolderError: The table is none, or has a path twice, a path outside the folder, or no known split.
    """
    columns, rows = read_table(table, DataFolderError)
    label = _label_column(columns)
    if label is None or set(columns) - {"path", label, *_OPTIONAL}:
        allowed = f"path and label (or class), and of {', '.join(_OPTIONAL)} what is known"
        raise DataFolderError(f"{table} has columns {columns}; allowed are {allowed}")
    rows = [{**row, "path": _as_here(walk.root, row["path"]), label: row[label].strip()} for row in rows]
    _check_paths(table, [row["path"] for row in rows])
    _check_rows(table, walk.root, {row["path"]: row[label] for row in rows})
    splits = [_read_split(table, row.get("split", "")) for row in rows]
    rest = "Training" if any(splits) else "all"
    for row, split in zip(rows, splits, strict=True):
        name, path = walk.class_of(row[label]), walk.root / row["path"]
        walk.folders.add(row[label])
        if name is None:
            raise DataFolderError(f"{table}: {row['path']} is {row[label]!r}; need {walk.labels.describe()}")
        if not path.is_file():
            walk.name_problem(path, NOT_THERE, "restore it, or take its line out", "error")
            continue
        before = len(walk.records)
        walk.add(path, name, split or rest)
        known: dict[str, Any] = {name: row[name] for name in ("group", "source", "sequence", "plane") if row.get(name)}
        walk.records[before:] = [replace(one, **known) for one in walk.records[before:]]
    held = {"Training", "all"} if walk.labels.auto else set(splits) - {""} | {rest}
    walk.expected.extend((split, name) for split in sorted(held & {*splits, rest}) for name in walk.found)


def _read_split(table: Path, word: str) -> str:
    split = split_of_folder(word)
    if word and split is None:
        raise DataFolderError(f"{table} has the split {word!r}; allowed are Training, val, Testing, or nothing")
    return split or ""


def _as_here(root: Path, path: str) -> str:
    """Return a path with slashes where it is there by no other, as Windows writes it."""
    return path if "\\" not in path or (root / path).is_file() else path.replace("\\", "/")


def _check_rows(table: Path, root: Path, labels: Mapping[str, str]) -> None:
    unlabelled = [path for path, label in labels.items() if not label]
    if unlabelled:
        raise DataFolderError(f"{table} has no label of {name_first(unlabelled)}; give it one, or take its line out")
    if not labels:
        raise DataFolderError(f"{table} lists no image; give each a line")
    if not any((root / path).is_file() for path in labels):
        raise DataFolderError(
            f"{table}: none of its {len(labels)} images is below {root}: {name_first(list(labels), 1)}; a path is "
            "relative to that folder: correct them"
        )


def _check_paths(table: Path, paths: Sequence[str]) -> None:
    outside = [path for path in paths if not path or PurePosixPath(path).is_absolute() or ".." in Path(path).parts]
    if outside:
        raise DataFolderError(
            f"{table}: a path is relative to its folder and stays in it; not so: {name_first(outside)}"
        )
    twice = len(paths) - len(set(paths))
    if twice:
        raise DataFolderError(f"{table} lists {counted(twice, 'image')} more than once; leave one line each")
