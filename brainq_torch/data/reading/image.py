"""Reads one image file to grey uint8: picture, DICOM, NIfTI or figshare .mat. Content decides, never the name."""

import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from brainq_torch.data.head_crop import is_blank
from brainq_torch.data.reading.grey import (
    COPY_AGAIN,
    MAX_PIXELS,
    FilePath,
    GreyImage,
    UnreadableImageError,
    shrink_remedy,
)
from brainq_torch.data.reading.raster import PICTURE_FORMATS, PICTURE_SUFFIXES, is_picture, read_picture

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "GreyImage",
    "Origin",
    "UnreadableImageError",
    "looks_like_image",
    "read_grey",
    "read_origin",
]

_MEDICAL_SUFFIXES = frozenset({".dcm", ".dicom", ".ima", ".nii", ".gz", ".mat"})

IMAGE_SUFFIXES: frozenset[str] = PICTURE_SUFFIXES | _MEDICAL_SUFFIXES
"""Suffixes (lower case) of files that claim to be images; any other file is an image only if its content says so."""

_HEAD_BYTES = 1024
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Origin:
    """What an image file says about itself beside its pixels.

    Attributes:
        label: index into CLASSES, None when the file does not say.
        group: the patient, empty when the file does not say.
    """

    label: int | None = None
    group: str = ""


def read_grey(path: FilePath) -> GreyImage:
    """Decode one image file to grey uint8.

    RGB becomes grey by Pillow's "L" (ITU-R 601-2 luma). EXIF orientation is applied, transparency is composited on
    black, 16-bit, 32-bit and float pixels are rescaled linearly from their own minimum..maximum to 0..255, and each of
    these is noted. Above ``MAX_PIXELS`` a file is refused by its header, before any pixel is decoded. What DICOM, NIfTI
    and figshare .mat files add is said in ``dicom.py``, ``nifti.py`` and ``figshare.py``.

    Raises:
        UnreadableImageError: The file is missing, empty, truncated, damaged, not an image, animated, gigantic, not
            finite, or blank (``head_crop.is_blank``).
    """
    reader = _reader_of(_read_head(path))
    if reader is None:
        reason = f"is not an image in a known format ({', '.join(PICTURE_FORMATS)}, DICOM, NIfTI, figshare .mat)"
        raise UnreadableImageError(path, reason, "remove it or convert it to PNG")
    with _guarded(path):
        image = reader(path)
    if is_blank(image.pixels):
        reason = "shows fewer than 16 grey levels, as an empty frame or a mask does"
        raise UnreadableImageError(path, reason, "remove it, or export the scan again with all its grey levels")
    return image


def read_origin(path: FilePath) -> Origin:
    """Read the label and the patient that a DICOM or figshare .mat file names; pictures and NIfTI name none.

    Raises:
        UnreadableImageError: As ``read_grey`` does.
    """
    reader = _reader_of(_read_head(path))
    with _guarded(path):
        if reader is _read_dicom:
            return _dicom_origin(path)
        if reader is _read_figshare:
            return _figshare_origin(path)
    return Origin()


def looks_like_image(path: FilePath) -> bool:
    """Tell from its first bytes whether a file claims to be an image, whatever its name.

    Raises:
        UnreadableImageError: There are no first bytes to look at.
    """
    return _reader_of(_read_head(path)) is not None


def _read_head(path: FilePath) -> bytes:
    """Return the first bytes of a regular, non-empty file."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableImageError(path, "is a folder, not an image file", "name the files inside it")
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
            raise UnreadableImageError(path, "is not a regular file", "copy the image itself here")
        if status.st_size == 0:
            raise UnreadableImageError(path, "has zero bytes", COPY_AGAIN)
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)
    except FileNotFoundError:
        reason = "is a link to nothing" if Path(path).is_symlink() else "does not exist"
        raise UnreadableImageError(path, reason, "check the path") from None
    except PermissionError:
        raise UnreadableImageError(path, "may not be read by this user", "give read permission (chmod +r)") from None
    except OSError as error:
        raise UnreadableImageError(path, f"cannot be opened ({error.strerror})", "check the file system") from error


def _reader_of(head: bytes) -> Callable[[FilePath], GreyImage] | None:
    """Choose the reader by the file's first bytes."""
    if head[128:132] == b"DICM":  # before pictures: a DICOM file may carry a TIFF header in its preamble
        return _read_dicom
    if is_picture(head):
        return read_picture
    if head.startswith((b"MATLAB 7.3 MAT-file", b"MATLAB 5.0 MAT-file", _HDF5_MAGIC)):
        return _read_figshare
    return _read_nifti if _is_nifti(_gunzip(head)) else None


def _gunzip(head: bytes) -> bytes:
    """Decompress the first bytes of a gzip file; return any others as they are."""
    if head[:2] != b"\x1f\x8b":
        return head
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, _HEAD_BYTES)
    except zlib.error:
        return b""


def _is_nifti(head: bytes) -> bool:
    """Tell NIfTI-1 (https://nifti.nimh.nih.gov/nifti-1) and NIfTI-2 by their magic fields."""
    return head[344:348] in (b"n+1\x00", b"ni1\x00") or head[4:8] in (b"n+2\x00", b"ni2\x00")


# The libraries behind these are an optional extra, so they are imported when such a file is met.


def _read_dicom(path: FilePath) -> GreyImage:
    from brainq_torch.data.reading.dicom import read_dicom

    return read_dicom(path)


def _dicom_origin(path: FilePath) -> Origin:
    from brainq_torch.data.reading.dicom import read_patient

    return Origin(group=read_patient(path))


def _read_nifti(path: FilePath) -> GreyImage:
    from brainq_torch.data.reading.nifti import read_nifti

    return read_nifti(path)


def _read_figshare(path: FilePath) -> GreyImage:
    from brainq_torch.data.reading.figshare import read_figshare

    return read_figshare(path)


def _figshare_origin(path: FilePath) -> Origin:
    from brainq_torch.data.reading.figshare import read_figshare_origin

    label, patient = read_figshare_origin(path)
    return Origin(label, patient)


@contextmanager
def _guarded(path: FilePath) -> Iterator[None]:
    """Turn whatever a reader raises for one file into the one error that callers know."""
    try:
        yield
    except UnreadableImageError:
        raise
    except ModuleNotFoundError as error:
        remedy = "install the optional readers, in the checkout: pip install -e '.[medical]'"
        raise UnreadableImageError(path, f"needs the package {error.name}", remedy) from error
    except MemoryError:
        raise UnreadableImageError(path, "does not fit into memory", shrink_remedy()) from None
    # Hostile bytes make decoders raise nearly anything: OSError, SyntaxError, EOFError, KeyError, struct.error, ...
    except Exception as error:
        reason = f"is truncated or damaged ({type(error).__name__}: {error})"
        raise UnreadableImageError(path, reason, COPY_AGAIN) from error
