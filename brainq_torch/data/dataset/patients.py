"""Makes one group of all files that share a patient, a study, a series or a frame of reference."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from brainq_torch.data.dataset.sample import ImageRecord
from brainq_torch.data.reading.grey import PATIENT, PLACEHOLDER

_REMEDY = "ignored: grouped by study, series and frame of reference"


def join_patients(records: Sequence[ImageRecord]) -> tuple[list[ImageRecord], list[str]]:
    """Give each record with names the group of all that share one with it, directly or through others.

    A PatientID names nobody where it is a placeholder, or one and the same in files of several studies.

    Returns:
        The records in order, and what was ignored and why.
    """
    named = [set(record.names) for record in records if record.names]
    counts = Counter(name for names in named for name in names)
    ids = [name for name in counts if name.startswith(PATIENT)]
    several = len({name for name in counts if name.startswith("study ")}) > 1
    same = {name for name in ids if several and counts[name] == len(named)}
    placeholders = [name for name in counts if name.startswith(PLACEHOLDER)]
    what = [f"PatientID {name.removeprefix(PLACEHOLDER)!r} of {counts[name]} files is a placeholder, {_REMEDY}"
            for name in placeholders]  # fmt: skip
    what += [f"PatientID is the same in all {len(named)} files of several studies, {_REMEDY}"] * len(same)
    kept = [[name for name in record.names if name not in {*same, *placeholders}] for record in records]
    parents: dict[str, str] = {}
    for names in kept:
        for name in names:
            one, other = sorted((_find(parents, names[0]), _find(parents, name)))
            parents[other] = one
    groups = [_find(parents, names[0]).rpartition(" ")[2] if names else "" for names in kept]
    if len({group for group in groups if group}) < len(ids) == len(named):
        what.append(f"PatientID is a new one in each of {len(named)} files, {_REMEDY}")
    joined = [
        replace(record, group=group or record.group, names=()) for record, group in zip(records, groups, strict=True)
    ]
    return joined, what


def _find(parents: dict[str, str], name: str) -> str:
    while parents.setdefault(name, name) != name:
        name = parents[name]
    return name
