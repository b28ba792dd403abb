"""Reads a DICOM file's header: what kind of picture it says it is, and whose."""

import hashlib
import math
import os
import re
import threading
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
from pydicom.filereader import read_dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from brainq_torch.data.reading.grey import (
    PLACEHOLDER,
    FilePath,
    Origin,
    OtherKindError,
    UnreadableImageError,
)

_MAX_FILE_BYTES = 512 * 1024 * 1024
_MOST_FRAMES = 65_535
_DEFER_BYTES = 64 * 1024
_PIECE_BYTES = 1024 * 1024
NO_LENGTH = 2**32 - 1  # as compressed pixels have it
_FLOATS = (b"\x08\0", b"\x09\0", b"\0\x08", b"\0\x09")
"""Ends of the tags of pixels that are floats."""
_NUMBERS = ("PixelSpacing", "WindowCenter", "WindowWidth", "ImagePositionPatient", "ImageOrientationPatient",
            "InstanceNumber")  # fmt: skip
"""What a picture can be read without."""
_GROUPS = (
    "PixelMeasuresSequence",
    "FrameVOILUTSequence",
    "PixelValueTransformationSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "MRImageFrameTypeSequence",
)
"""What PS3.3 C.7.6.16 keeps for each frame, and a file of one frame in the open."""

_IMAGES = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7")
"""What storage classes of MR and secondary capture images begin with; scanners' private ones may hold anything."""
_HEAD = re.compile(
    r"HEAD|BRAIN|SKULL|NEURO|CEREB|PITUITAR|SELLA|ORBIT|\bIAC|TEMPORAL|CRAN|FACE|KOPF|SCH(A|AE|Ä)DEL|HIRN|HYPOPHYS|"
    r"T[EÊ]TE|CERVEAU|CERVELLO|ENCE(PH|F)AL|TESTA|CABE[CÇZ]A|HOOFD|HERSEN|SCHEDEL"
)
"""Of BodyPartExamined, as scanners in several languages write it."""
_MODALITY = re.compile(r"[A-Z0-9_ ]{1,16}")  # a code string, PS3.5 6.2
_UNSAID = ("", "UNKNOWN", "OTHER", "UNSPECIFIED", "NONE", "NA", "N/A")
_LOCALIZER = re.compile(r"LOCALI[SZ]|LOKALI|SCOUT|SURVEY|PILOT|(^|[^A-Z])LOC([^A-Z]|$)")
"""Of SeriesDescription: most scanners' ImageType does not tell a localizer from other images."""
_UNFIT = {
    "a localizer": {"LOCALIZER", "SCOUT"},
    "a phase map": {"P", "PHASE", "PHASE MAP", "PHASE MAP B0"},
    "a velocity map": {"V", "VELOCITY", "VELOCITY MAP", "VELOCITY_MAP", "FLOW_ENCODED", "PHASE CONTRAST M"},
    "an imaginary part": {"IMAGINARY"},
    "a projection": {"PROJECTION IMAGE", "MIP", "MAXIP", "MINIP", "MAX_IP", "MIN_IP", "MNIP"},
}
"""What is no slice through a head, and the values of ImageType that say so."""

_NOBODY = ("ANON", "ANONYM", "ANONYMOUS", "ANONYMIZED", "ANONYMISED", "UNKNOWN", "NONE", "NULL", "NA", "NAN",
           "REMOVED", "DELETED", "DEIDENTIFIED", "PATIENT", "PATIENTID", "ID", "TEST", "NOID", "NONAME")  # fmt: skip
_IDENTIFIERS = {
    "patient": "PatientID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "frame": "FrameOfReferenceUID",
}
ONE_AT_A_TIME = threading.RLock()
"""Python's warnings are caught for the whole process, so pydicom is asked by one thread at a time."""


def read_dicom_origin(path: FilePath) -> Origin:
    """Return what the file says whose scan it is, and why it is no slice to train on.

    Files that share any of the names are of one patient (or study, or series, or stood in one frame of reference).
    The names are hashes, so that no identifier of a person ends up in ``manifest.csv``. A PatientID that is a
    placeholder (``ANONYMOUS``, ``0000``) names nobody.
    """
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ``read_dicom`` notes them
        header = read_header(path)
        values = {kind: str(header.get(name, "") or "").strip() for kind, name in _IDENTIFIERS.items()}
        unfit = why_unfit(header.get)
    names = [f"{kind} {hashlib.sha256(value.encode()).hexdigest()[:16]}" for kind, value in values.items() if value]
    if names and values["patient"] and _is_placeholder(values["patient"]):
        names[0] = f"{PLACEHOLDER}{values['patient']}"
    return Origin(names=tuple(names), unfit=unfit)


def _is_placeholder(patient: str) -> bool:
    letters = "".join(letter for letter in patient.upper() if letter.isalnum())
    return letters in _NOBODY or set(letters) in ({"0"}, {"X"})


def read_header(path: FilePath) -> pydicom.Dataset:
    """Read everything before the pixels; a file whose syntax is missing, wrong or deflated as a whole.

    What should be numbers and is none, as ``1,5``, is emptied: it says nothing. What old files leave out is filled in:
    samples of a pixel, and how many frames there are pixels for.
    """
    header, pixel_bytes = _parse(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is emptied
        for name in _NUMBERS:
            try:
                value = header.get(name)
                np.asarray(np.atleast_1d(value)[0] if name.startswith("Window") and value else value, np.float64)
            except (TypeError, ValueError):
                header[name] = pydicom.DataElement(name, "DS", None)
    if not header.get("SamplesPerPixel"):
        header.SamplesPerPixel = 1 if str(header.get("PhotometricInterpretation")).startswith("MONOCHROME") else 3
    sides = [header.get(name) for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
    if not header.get("NumberOfFrames") and all(sides):
        header.NumberOfFrames = max(1, 8 * pixel_bytes // math.prod(sides))
    return header


def _parse(path: FilePath) -> tuple[pydicom.Dataset, int]:
    """Return the header, and how many bytes its pixels have, 0 where they are compressed."""
    size_bytes = os.path.getsize(path)
    if size_bytes > _MAX_FILE_BYTES:
        reason = f"is a DICOM file of {size_bytes // 2**20} MiB; at most {_MAX_FILE_BYTES // 2**20} MiB are read"
        raise UnreadableImageError(reason, "export the one image that is meant as its own file")
    with open(path, "rb") as file:
        meta = pydicom.Dataset()
        if file.read(132)[128:] == b"DICM":
            meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        start = file.tell()
    syntax = meta.get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        _refuse_bomb(path, start)
    elif syntax is not None:
        with open(path, "rb") as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, defer_size=_DEFER_BYTES)
            _require_pixels(header, file.tell() < size_bytes)
            implicit, little = header.original_encoding
            head = file.read(8 if implicit else 12)
            length = int.from_bytes(head[-4:], "little" if little else "big")
        if head[2:4] in _FLOATS:  # which have no unused bits and no sign, and none of this is said (PS3.3 C.7.6.24)
            header.BitsStored, header.PixelRepresentation = header.get("BitsAllocated"), 0
        if _is_implicit(header) == (syntax == ImplicitVRLittleEndian):
            return header, length % NO_LENGTH
    header = pydicom.dcmread(path, force=True)
    _require_pixels(header, "PixelData" in header)
    if syntax is not None and syntax.is_compressed:
        return header, 0
    implicit, little = _is_implicit(header), header.original_encoding[1]
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return header, len(header.get("PixelData") or b"")


def _is_implicit(header: pydicom.Dataset) -> bool:
    """Tell how the elements are encoded, whatever the transfer syntax says."""
    first = header.get_item(next(iter(header.keys())), keep_deferred=True)
    return bool(getattr(first, "is_implicit_VR", header.original_encoding[0]))


def _require_pixels(header: pydicom.Dataset, has_pixels: bool) -> None:
    """Refuse what is cut off in its header, which pydicom takes for whole; other kinds of objects have no pixels."""
    if not has_pixels and "MR".startswith(str(header.get("Modality") or "")):
        kind = str(header.get("SOPClassUID") or "")
        if not any(kind.startswith(image) or image.startswith(kind) for image in _IMAGES):
            raise OtherKindError("is a DICOM file without an image (by its SOPClassUID)", "leave it out")
        raise UnreadableImageError("is truncated or damaged (it has no pixels)")


def _refuse_bomb(path: FilePath, start: int) -> None:
    """Inflate a deflated file in small pieces and keep nothing: pydicom would take whatever it becomes."""
    inflater, size_bytes = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with open(path, "rb") as file:
        file.seek(start)
        while part := inflater.unconsumed_tail or file.read(_PIECE_BYTES):
            size_bytes += len(inflater.decompress(part, _PIECE_BYTES))
            if size_bytes > _MAX_FILE_BYTES:
                reason = "is a deflated DICOM file that inflates to more than is read (a decompression bomb)"
                raise UnreadableImageError(reason)
            if inflater.eof:
                return


def require_mr(header: pydicom.Dataset) -> None:
    """Refuse another modality than MR: the network knows nothing else."""
    modality = header.get("Modality")
    if not modality:
        raise UnreadableImageError("names no modality (tag 0008,0060); only MR images are read", "leave it out")
    if not isinstance(modality, str) or not _MODALITY.fullmatch(modality):
        raise UnreadableImageError(f"is truncated or damaged (its modality is {modality!r})")
    if modality != "MR":
        raise OtherKindError(f"has modality {modality!r}; only MR images are read", "leave it out")


def count_frames(header: pydicom.Dataset) -> int:
    """Return the number of frames, 1 where the file does not say; refuse one that makes no sense."""
    count = int(header.get("NumberOfFrames", 1) or 1)
    if not 1 <= count <= _MOST_FRAMES:
        raise UnreadableImageError(f"says that it has {count} frames; read are 1 to {_MOST_FRAMES}")
    return count


def why_unfit(get: Callable[[str], Any]) -> str:
    """Say which kind of picture a header, whose values ``get`` gets, says it is that is no slice through a head."""
    types = np.atleast_1d(get("FrameType") or get("ImageType") or "")
    kinds = {str(kind).strip().upper() for kind in types}
    kinds.add(str(get("ComplexImageComponent") or "").upper())
    for what, values in _UNFIT.items():
        if kinds & values:
            return f"is {what} (ImageType {', '.join(sorted(kinds & values))})"
    if _LOCALIZER.search(str(get("SeriesDescription") or "").upper()):
        return "is a localizer (SeriesDescription)"
    part = str(get("BodyPartExamined") or "").strip().upper()
    return "" if part in _UNSAID or _HEAD.search(part) else f"shows {part} (BodyPartExamined)"


def use_functional_groups(header: pydicom.Dataset, index: int) -> None:
    """Put what an enhanced file says of all frames, and of this one, where a file of one frame says it."""
    for sequence, place in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", index)):
        groups = header.get(sequence) or []
        for group in groups[place : place + 1]:
            for name in _GROUPS:
                for item in (group.get(name) or [])[:1]:
                    header.update(item)
