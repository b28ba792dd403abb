"""What a file of any kind holds: slices, each with its place in a series, decoded only when it is asked for."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from brainq_torch.data.reading.grey import FilePath, GreyImage
from brainq_torch.run_files import BrainqError

MASK_FOLDERS = frozenset({"mask", "masks", "segmentation", "segmentations", "annotation", "annotations"})
_MASK = re.compile(r".[_-](mask|seg|segmentation)s?(\.nii)?\.[a-z0-9]+", re.IGNORECASE)

PLANES = ("sagittal", "coronal", "axial")
"""By the world axis (x to the right, y forward, z up) across the slice."""


@dataclass(frozen=True)
class FileSlice:
    """One picture in a file, not decoded yet.

    Attributes:
        path: the file.
        decode: reads it; what it raises is not yet the one error that callers know (``image.read_slice``).
        series: SeriesInstanceUID, or the path of a volume; empty for a picture of its own.
        title: what the series calls itself.
        place: what slices of a series are sorted by: position in mm, number.
        position_mm: along the slices' normal, None where the file does not say.
        unfit: what kind of picture it is that is no slice through a head, empty for one that may be.
        instance: what copies have in common: SOPInstanceUID, a hash of the pixels where the position is not known.
        axes: direction cosines of its rows and columns, empty where the file does not say.
        traits: what may tell one stack of a series from another, by name, the strongest first.
    """

    path: FilePath
    decode: Callable[[], GreyImage]
    series: str = ""
    title: str = ""
    place: tuple[float, ...] = ()
    position_mm: float | None = None
    unfit: str = ""
    instance: str = ""
    axes: tuple[float, ...] = ()
    traits: Mapping[str, str] = field(default_factory=dict)


def find_header(path: str) -> str:
    """Return the header (.hdr, .hdr.gz) beside a file of a NIfTI volume's voxels (.img, .img.gz), else nothing."""
    stem, end = os.path.splitext(path.removesuffix(".gz"))
    header = stem + {".img": ".hdr", ".IMG": ".HDR"}.get(end, "")
    return next((name for name in (header, f"{header}.gz") if header != stem and os.path.isfile(name)), "")


def is_mask_by_name(path: FilePath, classes: Sequence[str] = ()) -> bool:
    """Tell whether a file calls itself a mask, or its folder, whose name is none of these classes, calls it one."""
    parent, name = os.path.split(path)
    folder = os.path.basename(parent).lower()
    return _MASK.search(name) is not None or folder in MASK_FOLDERS - {each.lower() for each in classes}


class SliceChoiceError(BrainqError):
    """A word for slices that is none."""


def choose_slices(count: int, word: str) -> list[int]:
    """Return which of a series' slices a word means, counted from 1.

    Args:
        count: of all slices.
        word: ``all``, ``middle``, a number, or ``every=K`` for each K-th around the middle. A number beyond the last
            slice means none.

    Raises:
        SliceChoiceError: It is none of these.
    """
    numbers, middle = list(range(1, count + 1)), count // 2
    if word == "all":
        return numbers
    if word == "middle":
        return numbers[middle : middle + 1]
    found = re.fullmatch(r"(every=)?0*([1-9][0-9]{0,5})", word)
    if found is None:
        raise SliceChoiceError(f"--slices is {word!r}; allowed are all, middle, a number from 1, and every=K")
    number = int(found[2])
    return numbers[middle % number :: number] if found[1] else numbers[number - 1 : number]
