"""Reads one DICOM MR image the way a viewer shows it (with ``dicom_header.py`` the only file that knows pydicom).

Steps and their order are those of DICOM PS3.4 N.2: stored values -> modality transform (rescale) -> VOI transform
(look-up table or window) -> grey, inverted for MONOCHROME1.
https://dicom.nema.org/medical/dicom/2024b/output/chtml/part04/sect_N.2.html
"""

import os
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.pixels.processing import apply_windowing
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEGLSTransferSyntaxes

from brainq_torch.data.reading.apart import decode_apart
from brainq_torch.data.reading.dicom_header import (
    ONE_AT_A_TIME,
    count_frames,
    read_header,
    require_mr,
    use_functional_groups,
    why_unfit,
)
from brainq_torch.data.reading.grey import (
    FilePath,
    GreyImage,
    UnreadableImageError,
    make_square,
    refuse_gigantic,
    rescale_to_uint8,
)

_REQUIRED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_WINDOWS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
"""What a window may be (PS3.3 C.11.2.1.3); of an empty or unknown name it is the first."""
_FEWEST_SHOWN = 0.01  # of all pixels between black and white: less is a head in one grey


def read_dicom(path: FilePath, frame: int | None = None) -> GreyImage:
    """Decode one frame of a DICOM MR image to grey.

    The frame's first VOI window (or look-up table) is applied where there is one that shows the image; without it the
    frame is rescaled as ``rescale_to_uint8`` says. Each step is noted, and what pydicom warns of. Padding is as dark as
    the darkest pixel shown. Pixels that are not square are stretched to squares.

    Args:
        path: the file.
        frame: counted from 1; without it the middle one of several.

    Raises:
        UnreadableImageError: Another modality than MR, a mosaic of slices, missing tags, a compression for which no
            decoder is installed, and gigantic dimensions, all before any pixel is decoded.
    """
    with ONE_AT_A_TIME, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        image = _read(path, frame)
    said = dict.fromkeys(f"pydicom: {str(warning.message).splitlines()[0]}" for warning in warned)
    return GreyImage(image.pixels, (*image.notes, *said))


def _read(path: FilePath, frame: int | None) -> GreyImage:
    header = read_header(path)
    _require_slice(header)
    index, notes = _frame_index(header, frame)
    use_functional_groups(header, index)
    unfit = why_unfit(header.get)
    notes.extend([f"{unfit}, no slice through a head: do not rely on the answer"] if unfit else [])
    refuse_gigantic(int(header.Columns), int(header.Rows))
    stored = _decode(path, header, index)
    if stored.ndim == 3:
        colours = Image.fromarray(stored.astype(np.uint8), "RGB")
        return GreyImage(np.array(colours.convert("L")), (*notes, "DICOM colours converted to grey"))
    is_padding = _find_padding(header, stored)
    grey, shown = _show(header, stored, ~is_padding)
    notes.extend(shown)
    if is_padding.any():
        grey = np.where(is_padding, grey[~is_padding].min(), grey)
        notes.append("padding pixels shown as the darkest")
    square, stretched = make_square(grey, *_spacing(header))
    return GreyImage(square, (*notes, *stretched))


def _require_slice(header: pydicom.Dataset) -> None:
    """Refuse what is no MR image of one slice with all that says how to show it."""
    require_mr(header)
    if "MOSAIC" in np.atleast_1d(header.get("ImageType") or ""):
        remedy = "convert its series to NIfTI, e.g. with dcm2niix"
        raise UnreadableImageError("is a mosaic: many slices side by side in one picture", remedy)
    missing = [name for name in _REQUIRED if header.get(name) in (None, "")]
    if missing:
        raise UnreadableImageError(f"has no {', '.join(missing)}", "export it again from the scanner or archive")
    kind = header.PhotometricInterpretation
    if kind not in _MONOCHROME + _COLOUR:
        allowed = ", ".join(_MONOCHROME + _COLOUR)
        raise UnreadableImageError(f"has PhotometricInterpretation {kind}; read are {allowed}", "save it as PNG")
    if kind in _COLOUR and header.BitsAllocated != 8:
        raise UnreadableImageError(f"has colours of {header.BitsAllocated} bits; read are 8", "save it as PNG")


def _frame_index(header: pydicom.Dataset, frame: int | None) -> tuple[int, list[str]]:
    """Return the index from 0 of the frame to decode, with a note where nobody named it."""
    count = count_frames(header)
    if frame is None:
        return count // 2, [f"frame {count // 2 + 1} of {count} shown"] if count > 1 else []
    if not 1 <= frame <= count:
        raise UnreadableImageError(f"has no frame {frame}, its frames are 1 to {count}", "choose one of those")
    return frame - 1, []


def _decode(path: FilePath, header: pydicom.Dataset, index: int) -> npt.NDArray[Any]:
    """Decode one frame: (rows, columns) stored values, or (rows, columns, 3) RGB."""
    syntax = header.file_meta.TransferSyntaxUID
    bits = int(header.BitsStored)
    top = bits if syntax.is_compressed else max(bits, int(header.get("HighBit") or 0) + 1)  # above them in old files
    try:
        is_repaired = "PixelData" in header
        filled = {"samples_per_pixel": header.SamplesPerPixel, "number_of_frames": count_frames(header)}
        is_free = not syntax.is_compressed or syntax in JPEGLSTransferSyntaxes  # others say themselves how samples lie
        filled["planar_configuration"] = int(is_free and header.get("PlanarConfiguration") == 1)
        filled |= {"index": index, "bits_stored": top}
        stored: npt.NDArray[Any]
        if syntax.is_compressed:
            stored = decode_apart(os.fspath(path), is_repaired=is_repaired, **filled)
        else:
            stored = pixel_array(header if is_repaired else os.fspath(path), **filled)
    except (RuntimeError, NotImplementedError) as error:  # pydicom's words for "no decoder installed" and "failed"
        if "missing dependencies" not in str(error):
            raise UnreadableImageError(f"cannot be decoded ({syntax.name}: {str(error).splitlines()[0]})") from error
        reason = f"is compressed ({syntax.name}), and no decoder of that is installed"
        remedy = "python -m pip install python-gdcm, or save it uncompressed, e.g. with gdcmconv --raw"
        raise UnreadableImageError(reason, remedy) from error
    except AttributeError as error:
        raise UnreadableImageError(f"has no pixels ({error})", "leave it out") from error
    expected = (int(header.Rows), int(header.Columns))
    if stored.shape not in (expected, (*expected, 3)):
        raise UnreadableImageError(f"decodes to {stored.shape}, its header says {expected}")
    return stored >> (top - bits) if top > bits else stored


def _find_padding(header: pydicom.Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Tell which pixels are padding (PS3.3 C.7.5.1.1.2), no measurement, of an image that has others."""
    kind = {"f4": "Float", "f8": "DoubleFloat"}.get(stored.dtype.str[1:], "")
    values = [header.get(f"{kind}PixelPadding{name}") for name in ("Value", "RangeLimit")]
    # Whatever type the tag claims to have, its bits are those of the pixels.
    bits = [int.from_bytes(value, "little") if isinstance(value, bytes) else value for value in values]
    if kind:
        ends = [stored.dtype.type(value) for value in bits if isinstance(value, float)]
    else:
        unsigned = np.dtype(f"u{stored.dtype.itemsize}")
        mask = np.iinfo(unsigned).max
        ends = [np.array(value & mask, unsigned).view(stored.dtype) for value in bits if isinstance(value, int)]
    if not isinstance(bits[0], int | float):
        return np.zeros(stored.shape, bool)
    is_padding: npt.NDArray[np.bool_] = (stored >= min(ends)) & (stored <= max(ends))
    return is_padding & ~is_padding.all()


def _show(
    header: pydicom.Dataset, stored: npt.NDArray[Any], measured: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Apply the modality, the VOI and the presentation transform; return (rows, columns) uint8 and notes."""
    values, modality = _apply_modality(header, stored)
    fractions, notes = _apply_voi(header, values)
    notes = [*modality, *notes]
    is_inverted = header.PhotometricInterpretation == "MONOCHROME1"
    inverted = ["MONOCHROME1 (white is zero) inverted"] if is_inverted else []
    if fractions is not None:
        return _to_uint8(1 - fractions if is_inverted else fractions), [*notes, *inverted]
    if is_inverted:
        values = -values.astype(np.float64)
    grey, note = rescale_to_uint8(values, "DICOM values", measured)
    return grey, [*notes, note, *inverted]


def _apply_modality(header: pydicom.Dataset, stored: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], list[str]]:
    """Return what the file's look-up table, or else its slope and intercept, make of stored values, and notes."""
    mapped, _, notes = _look_up(header, "Modality", stored)
    slope, intercept = (header.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
    for name in ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"):
        header.pop(name, None)  # what is applied is not applied again
    is_said = [value not in (None, "") for value in (slope, intercept)]
    if mapped is not None or not any(is_said):
        return stored if mapped is None else mapped, notes
    slope, intercept = float(slope) if is_said[0] else 1.0, float(intercept) if is_said[1] else 0.0
    if slope == 0:
        raise UnreadableImageError("has RescaleSlope 0, which erases the image")
    return stored.astype(np.float64) * slope + intercept, notes


def _look_up(
    header: pydicom.Dataset, kind: str, values: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any] | None, int, list[str]]:
    """Return what a look-up table, Modality or VOI, makes of values, and the most it could; None where it is empty.

    Entries of 8 bits lie two in a word or, as their number tells, each in one of its own (PS3.3 C.11.1.1.1).
    """
    tables = header.get(f"{kind}LUTSequence") or []
    data, descriptor = (tables[0].get(name) if tables else None for name in ("LUTData", "LUTDescriptor"))
    if not data or descriptor is None or len(descriptor) != 3:
        return None, 0, [f"{kind} look-up table without entries ignored"] if tables else []
    count, first, bits = descriptor[0] or 2**16, descriptor[1], descriptor[2]
    if not 8 <= bits <= 16:
        raise UnreadableImageError(f"has a look-up table of {bits} bits; allowed are 8 to 16")
    order = "<u2" if header.original_encoding[1] else ">u2"
    entries = np.frombuffer(data, order) if isinstance(data, bytes) else np.array(data).reshape(-1).astype(np.uint16)
    if len(entries) < count and bits == 8:
        entries = entries.astype("<u2").view(np.uint8)
    if len(entries) < count:
        raise UnreadableImageError(f"has {len(entries)} of its look-up table's {count} entries")
    entries = entries[:count]
    places = np.clip(values.astype(np.float64) - first, 0, count - 1).astype(np.intp)
    return entries[places], max(2**bits - 1, int(entries.max())), []


def _apply_voi(header: pydicom.Dataset, values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any] | None, list[str]]:
    """Return what the file's window or look-up table makes of values, 0 to 1; None where it has no useful one."""
    table, most, ignored = _look_up(header, "VOI", values)
    if table is not None:
        return table / most, ["VOI look-up table applied"]
    function = str(header.get("VOILUTFunction") or "LINEAR").strip().upper()
    header.VOILUTFunction = function if function in _WINDOWS else "LINEAR"
    window, said = _window(header)
    notes = [*ignored, *said]
    if window is None:
        return None, notes
    with np.errstate(over="ignore"):  # a sigmoid window far from its centre
        shown = apply_windowing(values, header)
        # The window maps onto the range of the stored type, whose ends are found by asking far outside the window.
        dark, bright = apply_windowing(np.array([-1e300, 1e300]), header)
    fractions = (shown - dark) / (bright - dark)
    name = f"VOI window centre {window[0]:g} width {window[1]:g}"
    is_shown = (fractions > 0) & (fractions < 1)
    if is_shown.mean() < _FEWEST_SHOWN:
        return None, [*notes, f"{name} misses nearly all pixels, ignored"]
    return fractions, [*notes, f"{name} applied"]


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
    smallest = 1 if header.VOILUTFunction == "LINEAR" else 0
    if not np.isfinite([centre, width]).all() or width < smallest or width <= 0:
        return None, [f"VOI window centre {centre:g} width {width:g} is impossible, ignored"]
    return (centre, width), [f"first of {len(centres)} VOI windows"] if len(centres) > 1 else []


def _spacing(header: pydicom.Dataset) -> tuple[float, float]:
    """Return the distances between rows and between columns in mm, 1 and 1 where the file has none."""
    spacing = header.get("PixelSpacing")
    if spacing is None or np.size(spacing) != 2:
        return 1.0, 1.0
    return float(spacing[0]), float(spacing[1])
