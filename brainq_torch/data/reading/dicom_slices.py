"""Says which slices a DICOM file holds and where they lie."""

import hashlib
import os
import warnings
from functools import partial
from typing import Any

import numpy as np
import pydicom
from pydicom.multival import MultiValue

from brainq_torch.data.reading.dicom import read_dicom
from brainq_torch.data.reading.dicom_header import ONE_AT_A_TIME, count_frames, read_header, require_mr, why_unfit
from brainq_torch.data.reading.grey import FilePath
from brainq_torch.data.reading.slices import FileSlice

_FRAME_TYPE = "MRImageFrameTypeSequence"
_TRAITS = {
    "PatientID": ("", "PatientID"),
    "EchoNumbers": ("", "EchoNumbers"),
    "StudyInstanceUID": ("", "StudyInstanceUID"),
    "SeriesNumber": ("", "SeriesNumber"),
    "ImageType": (_FRAME_TYPE, "FrameType"),
    "ComplexImageComponent": (_FRAME_TYPE, "ComplexImageComponent"),
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "InversionTime": ("MRModifierSequence", "InversionTimes"),
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
    "SequenceName": ("", "SequenceName"),
    "RepetitionTime": ("", "RepetitionTime"),
    "FlipAngle": ("", "FlipAngle"),
    "StackID": ("FrameContentSequence", "StackID"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "AcquisitionTime": ("", "AcquisitionTime"),
    "ContentTime": ("", "ContentTime"),
}
"""What may tell stacks apart, and the functional group and the name that an enhanced file has it in."""


def list_dicom_slices(path: FilePath) -> list[FileSlice]:
    """Return a slice for each frame; place and position as PS3.3 C.7.6.2 and C.7.6.16 say them (no pixel is decoded).

    Raises:
        UnreadableImageError: It is no MR image.
    """
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ``read_dicom`` notes them
        header = read_header(path)
        require_mr(header)
        count = count_frames(header)
        series = str(header.get("SeriesInstanceUID", "") or "") or os.fspath(path)
        title = str(header.get("SeriesDescription", "") or "").strip()
        number = float(header.get("InstanceNumber") or 0)
        planes = [_plane(header, frame) for frame in range(count)]
        instance = str(header.get("SOPInstanceUID", "") or "")
        if planes and planes[0][1] is None:  # files that do not say where they are may share a placeholder
            instance = _hash_pixels(path, header)
        found = []
        for frame, (axes, position) in enumerate(planes):
            place = (0.0 if position is None else position, number, float(frame))
            decode = partial(read_dicom, path, frame + 1 if count > 1 else None)
            unfit = why_unfit(partial(_per_frame, header, frame, _FRAME_TYPE))
            traits = {name: _read_trait(header, frame, name) for name in _TRAITS}
            found.append(FileSlice(path, decode, series, title, place, position, unfit, instance, axes, traits))
    return found


def _hash_pixels(path: FilePath, header: pydicom.Dataset) -> str:
    whole = header if "PixelData" in header else pydicom.dcmread(path, specific_tags=["PixelData"])
    held = whole.get_item("PixelData")  # as it stands there, whatever its type
    return hashlib.sha256(held.value).hexdigest() if held and held.value else ""


def _read_trait(header: pydicom.Dataset, frame: int, name: str) -> str:
    """Return a value as text, empty where there is none."""
    try:
        value = _per_frame(header, frame, *_TRAITS[name])
        value = header.get(name) if value is None else value
    except (TypeError, ValueError):  # text where a number belongs
        return ""
    parts = value if isinstance(value, MultiValue | list) else [value]
    return "\\".join(f"{float(part):g}" if isinstance(part, float | int) else str(part or "").strip() for part in parts)


def _plane(header: pydicom.Dataset, frame: int) -> tuple[tuple[float, ...], float | None]:
    """Return the direction cosines of rows and columns, and the position in mm along their normal, where it says so."""
    corner = _per_frame(header, frame, "PlanePositionSequence", "ImagePositionPatient")
    cosines = _per_frame(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient")
    axes = tuple(map(float, cosines)) if np.size(cosines) == 6 else ()
    if not axes or not np.isfinite(axes).all():
        return (), None
    if np.size(corner) != 3:
        return axes, None
    position = float(np.cross(axes[:3], axes[3:]) @ [float(value) for value in corner])
    return axes, round(position, 3) if np.isfinite(position) else None


def _per_frame(header: pydicom.Dataset, frame: int, group: str, name: str) -> Any:
    """Return a value of one frame: of its functional group, else of the group of all frames, else in the open."""
    for sequence, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        for item in (header.get(sequence) or [])[index : index + 1]:
            for held in (item.get(group) or [])[:1]:
                if held.get(name) is not None:
                    return held.get(name)
    return header.get(name)
