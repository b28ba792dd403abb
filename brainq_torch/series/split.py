"""Tells apart the stacks that share one SeriesInstanceUID, as a radiologist's viewer does."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from brainq_torch.data.reading.slices import PLANES, FileSlice

_PATIENT, _ORIENTATION, _VOLUME = "PatientID", "orientation", "volume"
_NUMBERS = ("AcquisitionNumber", _VOLUME)  # may number slices that all claim to be at one position
_ALWAYS = (_PATIENT, _ORIENTATION, "EchoNumbers")
"""What a stack has one of. Anything else may differ from slice to slice, so that it counts where positions repeat."""
_TILT = 0.1  # between direction cosines of one stack, 6 degrees: some scanners follow the head

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
    return [((*told, f"{name} {_word(name, value)}"), group) for value, group in groups.items()]


def _values(name: str, slices: Sequence[FileSlice]) -> Iterator[Hashable]:
    known: list[tuple[float, ...]] = []
    counts = Counter[float | None]()
    for one in slices:
        if name == _ORIENTATION:
            near = next((axes for axes in known if _is_near(axes, one.axes)), None)
            known += [one.axes] if near is None else []
            yield one.axes if near is None else near
        elif name == _VOLUME:  # of the slices at one position the first is of the first volume
            counts[one.position_mm] += one.position_mm is not None
            yield max(1, counts[one.position_mm])
        else:
            yield one.traits[name]


def _is_near(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return len(one) == len(other) and all(abs(a - b) < _TILT for a, b in zip(one, other, strict=True))


def _word(name: str, value: Hashable) -> Hashable:
    if name != _ORIENTATION or not isinstance(value, tuple) or not value:
        return value or "unknown"
    return PLANES[int(np.abs(np.cross(value[:3], value[3:])).argmax())]


def _is_repeated(name: str, groups: Sequence[Sequence[FileSlice]]) -> bool:
    """Tell whether groups lie at the same positions, as those of slabs that overlap, or of single slices, do not."""
    places = [{one.position_mm for one in group} - {None} for group in groups]
    if name in _NUMBERS and len(set.union(*places)) < 2:
        return False
    if name == _VOLUME:
        return 2 * len(places[1]) >= len(places[0])
    slices = Counter(one.position_mm for group in groups for one in group if one.position_mm is not None)
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
