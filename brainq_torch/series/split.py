"""Tells apart the stacks that share one SeriesInstanceUID, as a radiologist's viewer does."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from brainq_torch.data.reading.slices import PLANES, FileSlice

_PATIENT, _ORIENTATION, _VOLUME = "PatientID", "orientation", "volume"
_NUMBERS = ("AcquisitionNumber", _VOLUME)  # may number slices that all claim to be at one position
_ALWAYS = (_PATIENT, _ORIENTATION, "EchoNumbers")
"""What a stack has one of. Anything else may differ from slice to slice, so that it counts where positions repeat."""
_TILT = 0.1  # between direction cosines of neighbours, 6 degrees: some scanners follow the head
_MOST_PLANES = 3  # of single slices; more are one view that rotates

_Part = tuple[tuple[str, ...], Sequence[FileSlice]]


def split_series(slices: Sequence[FileSlice]) -> list[_Part]:
    """Return each stack, and the words that tell it from the others; as it is what is one stack, or no DICOM series.

    Args:
        slices: of one series, in order.
    """
    parts: list[_Part] = [((), slices)]
    for name in dict.fromkeys((*_ALWAYS, *slices[0].traits, _VOLUME)) if slices[0].traits else ():
        parts = [part for told, some in parts for part in _split(name, told, some)]
    return parts


def _split(name: str, told: tuple[str, ...], slices: Sequence[FileSlice]) -> list[_Part]:
    groups: dict[Hashable, list[FileSlice]] = {}
    for value, one in zip(_values(name, slices), slices, strict=True):
        groups.setdefault(value, []).append(one)
    if len(groups) == 1 or not (name in _ALWAYS or _is_repeated(name, list(groups.values()))):
        return [(told, slices)]
    if name == _PATIENT and _is_new_in_each(slices):
        return [((*told, "PatientID is a new one in each file, ignored"), slices)]
    if name == _ORIENTATION and len(groups) == len(slices) > _MOST_PLANES:
        return [(told, slices)]
    words = [_plane(group[0].axes) if name == _ORIENTATION else value for value, group in groups.items()]
    return [((*told, f"{name} {word or 'unknown'}"), group) for word, group in zip(words, groups.values(), strict=True)]


def _values(name: str, slices: Sequence[FileSlice]) -> Iterator[Hashable]:
    planes = _number_planes([one.axes for one in slices] if name == _ORIENTATION else [])
    counts = Counter[Hashable]()
    for one in slices:
        if name == _ORIENTATION:
            yield planes[one.axes]
        elif name == _VOLUME:  # of the slices at one position the first is of the first volume
            counts[_spot(one)] += one.position_mm is not None
            yield max(1, counts[_spot(one)])
        else:
            yield one.traits[name]


def _number_planes(all_axes: Sequence[tuple[float, ...]]) -> dict[tuple[float, ...], int]:
    """Number orientations; those that are near each other, or near one between them, have one number."""
    numbers: dict[tuple[float, ...], int] = {}
    for axes in dict.fromkeys(all_axes):
        new, near = len(numbers), {number for known, number in numbers.items() if _is_near(known, axes)}
        numbers = {known: new if number in near else number for known, number in numbers.items()} | {axes: new}
    return numbers


def _is_near(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return len(one) == len(other) and all(abs(a - b) < _TILT for a, b in zip(one, other, strict=True))


def _plane(axes: tuple[float, ...]) -> str:
    return PLANES[int(np.abs(np.cross(axes[:3], axes[3:])).argmax())] if axes else ""


def _spot(one: FileSlice) -> Hashable:
    """Return what slices have in common that show the same: slices that cross may be at one position, too."""
    return (*(round(10 * cosine) for cosine in one.axes), one.position_mm)


def _is_repeated(name: str, groups: Sequence[Sequence[FileSlice]]) -> bool:
    """Tell whether groups lie at the same positions, as those of slabs that overlap, or of single slices, do not."""
    spots = [[_spot(one) for one in group if one.position_mm is not None] for group in groups]
    places = [set(some) for some in spots]
    if name in _NUMBERS and len(set.union(*places)) < 2:
        return False
    if name == _VOLUME:
        return 2 * len(places[1]) >= len(places[0])
    slices = Counter(place for some in spots for place in some)
    shared = sum(count > 1 for count in Counter(place for some in places for place in some).values())
    return len(groups) <= max(slices.values(), default=0) and 2 * shared >= max(1, min(map(len, places)))


def _is_new_in_each(slices: Sequence[FileSlice]) -> bool:
    """Tell whether PatientID names files instead of patients, in what is else one stack of one study."""
    files = {one.path for one in slices}
    patients = {one.traits[_PATIENT] for one in slices}
    studies = {one.traits["StudyInstanceUID"] for one in slices}
    places = {(one.axes, *one.place[: 1 if one.position_mm is not None else 2]) for one in slices}
    is_one = len(studies) == 1 and "" not in studies and len(places) == len(slices)
    return is_one and len(patients) == len(files) > 2
