"""Says which images belong together: a table, a pattern in their paths or their own headers do, else a search does."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainq_torch.console import name_first
from brainq_torch.data.dataset.sample import ImageRecord
from brainq_torch.data.leakage.near_duplicates import SCAN, Links, find_links, link_given
from brainq_torch.data.tables import read_table
from brainq_torch.run_files import BrainqError

_ALONE = 0.8  # groups per image: an identifier made anew for each file says nothing of who belongs together

EACH_ITS_OWN = "(.*)"
"""The pattern that makes every image a group of its own."""


class GroupError(BrainqError):
    """Groups that were asked for and do not fit the images."""


@dataclass(frozen=True)
class Grouping:
    """Which images belong together: the group of each, which may not be divided, and the links they follow from."""

    groups: tuple[str, ...]
    links: Links


def name_groups(records: Sequence[ImageRecord], table: str = "", pattern: str = "") -> list[ImageRecord]:
    """Give each record its group in a CSV table (path, group), or by a pattern's first group; else leave its own."""
    if table and pattern:
        raise GroupError(f"groups are given twice, by the table {table} and the pattern {pattern!r}; leave one out")
    if not table and not pattern:
        return list(records)
    named = _read_table(Path(table)) if table else _match(records, pattern)
    without = [record.path for record in records if not named.get(record.path)]
    if without:
        source, remedy = (table, "add them") if table else (f"the pattern {pattern!r}", "change it so that it matches")
        raise GroupError(
            f"{len(without)} of {len(records)} images get no group from {source}: {name_first(without)}"
            f"; {remedy}. Paths are relative to the data's root"
        )
    return [replace(record, group=named[record.path]) for record in records]


def _read_table(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise GroupError(f"{path}, the table of groups, is no file; make one with python -m tools.audit DIR --groups")
    columns, rows = read_table(path, GroupError)
    if not {"path", "group"} <= set(columns):
        raise GroupError(f"{path} has the columns {columns}; path and group are needed")
    groups: dict[str, str] = {}
    for name, group in ((row["path"], row["group"]) for row in rows):
        if groups.setdefault(name, group) != group:
            raise GroupError(f"{path} puts {name} into two groups, {groups[name]!r} and {group!r}; leave one")
    return groups


def _match(records: Sequence[ImageRecord], pattern: str) -> dict[str, str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise GroupError(f"the group pattern {pattern!r} is no regular expression: {error}") from error
    matches = ((record.path, compiled.search(record.path)) for record in records)
    return {path: found[1 if compiled.groups else 0] or "" for path, found in matches if found}


def needs_search(records: Sequence[ImageRecord], are_given: bool) -> bool:
    """Tell whether copies are to be searched for: a group is missing, or the files name one for about each image.

    Groups that somebody gave (a table, a pattern, a manifest) are taken at their word.
    """
    groups = [record.group for record in records]
    return not all(groups) or (not are_given and len(set(groups)) > _ALONE * len(groups))


def group_images(
    records: Sequence[ImageRecord], pixels: NDArray[np.uint8], kept: Path | None = None, are_given: bool = True
) -> Grouping:
    """Take the groups of the records, or join a search's (``kept``: see ``find_links``) with them: ``needs_search``."""
    if not needs_search(records, are_given):
        groups = tuple(record.group for record in records)
        return Grouping(groups, link_given(pixels, np.unique(groups, return_inverse=True)[1]))
    links = find_all_links(records, pixels, kept)
    return Grouping(tuple(map(str, links.groups(SCAN).tolist())), links)


def find_all_links(records: Sequence[ImageRecord], pixels: NDArray[np.uint8], kept: Path | None = None) -> Links:
    """Search all images, and link those of one given group as well; for the arguments see ``group_images``."""
    found = find_links(pixels, kept)
    if not any(record.group for record in records):
        return found
    names = [record.group or f"\0{position}" for position, record in enumerate(records)]  # without one: its own
    said = link_given(pixels, np.unique(names, return_inverse=True)[1])
    columns = ("first", "second", "kind", "turn", "overall", "windows")
    return Links(found.count, *(np.concatenate([getattr(found, name), getattr(said, name)]) for name in columns))
