"""Reads one DICOM MR image the way a viewer shows it (the only file that knows pydicom).

Steps and their order are those of DICOM PS3.4 N.2: stored values -> modality transform (rescale) -> VOI transform
(look-up table or window) -> grey, inverted for MONOCHROME1.
https://dicom.nema.org/medical/dicom/2024b/output/chtml/part04/sect_N.2.html
"""

import hashlib
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing
from pydicom.pixels.utils import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian

from brainq_torch.data.reading.grey import (
    COPY_AGAIN,
    FilePath,
    GreyImage,
    UnreadableImageError,
    make_square,
    refuse_gigantic,
    rescale_to_uint8,
)

MODALITY = "MR"
_MAX_FILE_BYTES = 512 * 1024 * 1024
_DEFER_BYTES = 64 * 1024
_REQUIRED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")


def read_dicom(path: FilePath, frame: int | None = None) -> GreyImage:
    """Decode one frame of a DICOM MR image to grey.

    The file's first VOI window (or look-up table) is applied where there is one; without it the frame's own
    minimum..maximum becomes 0..255. Each step is noted. Pixels that are not square are stretched to squares.

    Args:
        path: the file.
        frame: counted from 1; needed where the file has more than one, as nobody else can know which one is meant.

    Raises:
        UnreadableImageError: Another modality than MR, missing tags, several frames, a compression for which no decoder
            is installed, and gigantic dimensions, all before any pixel is decoded.
    """
    header = _read_header(path)
    _require_mr(path, header)
    index = _frame_index(path, header, frame)
    refuse_gigantic(path, int(header.Columns), int(header.Rows))
    stored = _decode(path, header, index)
    if stored.ndim == 3:
        colours = Image.fromarray(stored.astype(np.uint8), "RGB")
        return GreyImage(np.array(colours.convert("L")), ("DICOM colours converted to grey",))
    values, notes = _fill_padding(header, stored)
    grey, shown = _show(path, header, values)
    notes.extend(shown)
    if header.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
        notes.append("MONOCHROME1 (white is zero) inverted")
    rows_mm, columns_mm = _spacing(header)
    square, stretched = make_square(grey, rows_mm, columns_mm)
    return GreyImage(square, (*notes, *stretched))


def read_patient(path: FilePath) -> str:
    """Return a name for the file's patient that is the same for all of that patient's files, empty when it has none.

    It is a hash of PatientID, so that no identifier of a person ends up in ``manifest.csv``.
    """
    patient = str(_read_header(path).get("PatientID", "") or "").strip()
    return hashlib.sha256(patient.encode()).hexdigest()[:16] if patient else ""


def _read_header(path: FilePath) -> pydicom.Dataset:
    """Read everything before the pixels."""
    size_bytes = os.path.getsize(path)
    if size_bytes > _MAX_FILE_BYTES:
        reason = f"is a DICOM file of {size_bytes // 2**20} MiB; at most {_MAX_FILE_BYTES // 2**20} MiB are read"
        raise UnreadableImageError(path, reason, "export the one image that is meant as its own file")
    if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        # pydicom inflates such a file as a whole, however large it becomes.
        raise UnreadableImageError(path, "is a deflated DICOM file", "save it uncompressed, e.g. with dcmconv +te")
    return pydicom.dcmread(path, stop_before_pixels=True, defer_size=_DEFER_BYTES)


def _require_mr(path: FilePath, header: pydicom.Dataset) -> None:
    """Refuse what is no MR image: the network knows nothing else."""
    modality = header.get("Modality")
    if modality != MODALITY:
        found = f"has modality {modality!r}" if modality else "names no modality (tag 0008,0060)"
        raise UnreadableImageError(path, f"{found}; only {MODALITY} images are read", "leave it out")
    missing = [name for name in _REQUIRED if header.get(name) in (None, "")]
    if missing:
        raise UnreadableImageError(path, f"has no {', '.join(missing)}", "export it again from the scanner or archive")
    kind = header.PhotometricInterpretation
    if kind not in _MONOCHROME + _COLOUR:
        allowed = ", ".join(_MONOCHROME + _COLOUR)
        raise UnreadableImageError(path, f"has PhotometricInterpretation {kind}; read are {allowed}", "save it as PNG")


def _frame_index(path: FilePath, header: pydicom.Dataset, frame: int | None) -> int:
    """Return the index from 0 of the frame to decode."""
    count = int(header.get("NumberOfFrames", 1) or 1)
    if frame is None and count > 1:
        remedy = "save the one frame that is meant as its own file, or call read_dicom(path, frame=...)"
        raise UnreadableImageError(path, f"has {count} frames", remedy)
    if frame is not None and not 1 <= frame <= count:
        raise UnreadableImageError(path, f"has no frame {frame}, its frames are 1 to {count}", "choose one of those")
    return 0 if frame is None else frame - 1


def _decode(path: FilePath, header: pydicom.Dataset, index: int) -> npt.NDArray[Any]:
    """Decode one frame: (rows, columns) stored values, or (rows, columns, 3) RGB."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise UnreadableImageError(path, "has no TransferSyntaxUID", COPY_AGAIN)
    try:
        stored: npt.NDArray[Any] = pixel_array(os.fspath(path), index=index)
    except (RuntimeError, NotImplementedError) as error:  # pydicom's words for "no decoder installed" and "failed"
        reason = f"cannot be decoded ({syntax.name}: {str(error).splitlines()[0]})"
        remedy = "pip install pylibjpeg[all], or save it uncompressed, e.g. with gdcmconv --raw"
        raise UnreadableImageError(path, reason, remedy) from error
    except AttributeError as error:
        raise UnreadableImageError(path, f"has no pixels ({error})", "leave it out") from error
    expected = (int(header.Rows), int(header.Columns))
    if stored.shape not in (expected, (*expected, 3)):
        raise UnreadableImageError(path, f"decodes to {stored.shape}, its header says {expected}", COPY_AGAIN)
    return stored


def _fill_padding(header: pydicom.Dataset, stored: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], list[str]]:
    """Replace padding (PS3.3 C.7.5.1.1.2), which is no measurement, by the smallest measured value."""
    value = header.get("PixelPaddingValue")
    if not isinstance(value, int):
        return stored, []
    limit = header.get("PixelPaddingRangeLimit", value)
    is_padding = (stored >= min(value, limit)) & (stored <= max(value, limit))
    if not is_padding.any() or is_padding.all():
        return stored, []
    return np.where(is_padding, stored[~is_padding].min(), stored), ["padding pixels shown as the darkest"]


def _show(path: FilePath, header: pydicom.Dataset, stored: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Apply the modality and the VOI transform; return (rows, columns) uint8 and notes."""
    if float(header.get("RescaleSlope", 1) or 0) == 0:
        raise UnreadableImageError(path, "has RescaleSlope 0, which erases the image", COPY_AGAIN)
    values = apply_modality_lut(stored, header)
    if header.get("VOILUTSequence"):
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        if not 8 <= bits <= 16:
            raise UnreadableImageError(path, f"has a VOI look-up table of {bits} bits; allowed are 8 to 16", COPY_AGAIN)
        looked_up, brightest = apply_voi(values, header), 2**bits - 1
        return _to_uint8(looked_up / brightest), ["VOI look-up table applied"]
    window, notes = _window(header)
    if window is None:
        grey, note = rescale_to_uint8(path, values, "DICOM values")
        return grey, [*notes, note]
    with np.errstate(over="ignore"):  # a sigmoid window far from its centre
        shown = apply_windowing(values, header)
        # The window maps onto the range of the stored type, whose ends are found by asking far outside the window.
        dark, bright = apply_windowing(np.array([-1e300, 1e300]), header)
    note = f"VOI window centre {window[0]:g} width {window[1]:g} applied"
    return _to_uint8((shown - dark) / (bright - dark)), [*notes, note]


def _to_uint8(fractions: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    grey: npt.NDArray[np.uint8] = np.rint(np.clip(fractions, 0, 1) * 255).astype(np.uint8)
    return grey


def _window(header: pydicom.Dataset) -> tuple[tuple[float, float] | None, list[str]]:
    """Return centre and width of the first window; None, with a note, for one that makes no sense."""
    if "WindowCenter" not in header and "WindowWidth" not in header:
        return None, []
    centres, widths = (np.atleast_1d(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if any(value in (None, "") for value in (*centres[:1], *widths[:1])) or not len(centres) or not len(widths):
        return None, ["VOI window without centre or width ignored"]
    centre, width = float(centres[0]), float(widths[0])
    smallest = 1 if str(header.get("VOILUTFunction", "LINEAR")).upper() == "LINEAR" else 0
    if not np.isfinite([centre, width]).all() or width < smallest or width <= 0:
        return None, [f"VOI window centre {centre:g} width {width:g} is impossible, ignored"]
    return (centre, width), [f"first of {len(centres)} VOI windows"] if len(centres) > 1 else []


def _spacing(header: pydicom.Dataset) -> tuple[float, float]:
    """Return the distances between rows and between columns in mm, 1 and 1 where the file has none."""
    spacing = header.get("PixelSpacing")
    if spacing is None or len(spacing) != 2:
        return 1.0, 1.0
    return float(spacing[0]), float(spacing[1])
