"""A data set as one table: ``labels.csv`` with the columns path and label, and where they are known group and split."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from brainq_torch.console import name_first
from brainq_torch.data.classes import split_of_folder
from brainq_torch.data.dataset.folder_scan import FolderWalk
from brainq_torch.data.dataset.sample import DataFolderError
from brainq_torch.data.tables import read_table

LABEL_TABLE = "labels.csv"
_NEEDED, _KNOWN = {"path", "label"}, {"path", "label", "group", "split"}


def find_table(root: Path) -> Path | None:
    """Return the table of a data folder, None where it has none with a path and a label."""
    table = root / LABEL_TABLE
    return table if table.is_file() and set(read_table(table, DataFolderError)[0]) >= _NEEDED else None


def read_label_table(walk: FolderWalk, table: Path) -> None:
    """Collect the images that a table lists, in place of those in class folders.

    Raises:
        DataFolderError: The table is none, or has a path twice, a path outside the folder, or no known split.
    """
    columns, rows = read_table(table, DataFolderError)
    if set(columns) - _KNOWN:
        raise DataFolderError(f"{table} has columns {columns}; allowed are {sorted(_KNOWN)}, the first two needed")
    _check_paths(table, [row["path"] for row in rows])
    splits = [_read_split(table, row.get("split", "")) for row in rows]
    rest = "Training" if any(splits) else "all"
    for row, split in zip(rows, splits, strict=True):
        name, path = walk.class_of(row["label"]), walk.root / row["path"]
        walk.folders.add(row["label"])
        if name is None:
            raise DataFolderError(f"{table}: {row['path']} is {row['label']!r}; need {walk.labels.describe()}")
        if not path.is_file():
            walk.name_problem(path, "is listed and not there, left out", "restore it, or take its line out", "error")
            continue
        before = len(walk.records)
        walk.add(path, name, split or rest)
        walk.records[before:] = [replace(one, group=row.get("group") or one.group) for one in walk.records[before:]]
    held = {"Training", "all"} if walk.labels.auto else set(splits) - {""} | {rest}
    walk.expected.extend((split, name) for split in sorted(held & {*splits, rest}) for name in walk.found)


def _read_split(table: Path, word: str) -> str:
    split = split_of_folder(word)
    if word and split is None:
        raise DataFolderError(f"{table} has the split {word!r}; allowed are Training, val, Testing, or nothing")
    return split or ""


def _check_paths(table: Path, paths: Sequence[str]) -> None:
    outside = [path for path in paths if not path or PurePosixPath(path).is_absolute() or ".." in Path(path).parts]
    if outside:
        raise DataFolderError(
            f"{table}: a path is relative to its folder and stays in it; not so: {name_first(outside)}"
        )
    twice = len(paths) - len(set(paths))
    if twice:
        raise DataFolderError(f"{table} lists {twice} images more than once; leave one line each")
