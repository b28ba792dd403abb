"""Says which slices a DICOM file holds and where they lie, and which files a DICOMDIR names."""

import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from brainq_torch.data.reading.dicom import read_dicom
from brainq_torch.data.reading.dicom_header import ONE_AT_A_TIME, read_header, require_mr, why_unfit
from brainq_torch.data.reading.grey import FilePath
from brainq_torch.data.reading.slices import FileSlice


def list_dicom_slices(path: FilePath) -> list[FileSlice]:
    """Return a slice for each frame; place and position as PS3.3 C.7.6.2 and C.7.6.16 say them (no pixel is read).

    Raises:
        UnreadableImageError: It is no MR image.
    """
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ``read_dicom`` notes them
        header = read_header(path)
        require_mr(path, header)
        count, unfit = int(header.get("NumberOfFrames", 1) or 1), why_unfit(header)
        series = str(header.get("SeriesInstanceUID", "") or "") or os.fspath(path)
        title = str(header.get("SeriesDescription", "") or "").strip()
        number = float(header.get("InstanceNumber") or 0)
        found = []
        for frame in range(count):
            *direction, position = _place(header, frame)
            place = (*direction, 0.0 if position is None else position, number, float(frame))
            decode = partial(read_dicom, path, frame + 1 if count > 1 else None)
            instance = "" if position is None else str(header.get("SOPInstanceUID", "") or "")
            found.append(FileSlice(path, decode, series, title, place, position, unfit, instance))
    return found


def list_dicomdir(path: FilePath) -> list[str]:
    """Return the images that a DICOMDIR names (PS3.3 F.3), whichever case their names have on this disk."""
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records = pydicom.dcmread(path).get("DirectoryRecordSequence") or []
    named = [record.ReferencedFileID for record in records if record.get("DirectoryRecordType") == "IMAGE"]
    return [_find(Path(path).parent, [name] if isinstance(name, str) else list(name)) for name in named]


def _find(folder: Path, parts: list[str]) -> str:
    for part in parts:
        same = [name for name in os.listdir(folder) if name.upper() == part.upper()] if folder.is_dir() else []
        folder /= part if part in same or not same else same[0]
    return str(folder)


def _place(header: pydicom.Dataset, frame: int) -> tuple[Any, ...]:
    """Return the slices' normal, (3,) rounded, and the position in mm along it; None where the file does not say."""
    corner = _per_frame(header, frame, "PlanePositionSequence", "ImagePositionPatient")
    axes = _per_frame(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient")
    if corner is None or axes is None or len(corner) != 3 or len(axes) != 6:
        return (0.0, 0.0, 0.0, None)
    normal = np.cross([float(value) for value in axes[:3]], [float(value) for value in axes[3:]])
    position = float(normal @ [float(value) for value in corner])
    if not np.isfinite(position):
        return (0.0, 0.0, 0.0, None)
    return (*(float(value) for value in np.round(normal, 1)), round(position, 3))


def _per_frame(header: pydicom.Dataset, frame: int, group: str, name: str) -> Any:
    """Return a value of one frame: of its functional group, else of the group of all frames, else in the open."""
    for sequence, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        for item in (header.get(sequence) or [])[index : index + 1]:
            for held in (item.get(group) or [])[:1]:
                if held.get(name) is not None:
                    return held.get(name)
    return header.get(name)
