"""Reads one image file to grey uint8: picture, DICOM, NIfTI or figshare .mat. Content decides, never the name."""

import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from brainq_torch.data.head_crop import BLANK, is_blank
from brainq_torch.data.reading.grey import FilePath, GreyImage, Origin, UnreadableImageError, shrink_remedy
from brainq_torch.data.reading.raster import PICTURE_FORMATS, PICTURE_SUFFIXES, is_picture, read_picture
from brainq_torch.data.reading.slices import FileSlice

IMAGE_SUFFIXES: frozenset[str] = PICTURE_SUFFIXES | {".dcm", ".dicom", ".ima", ".nii", ".gz", ".mat"}
"""Suffixes (lower case) of files that claim to be images; any other file is an image only if its content says so."""

_PICTURE, _DICOM, _NIFTI, _FIGSHARE = "picture", "DICOM", "NIfTI", "figshare .mat"
_HEAD_BYTES = 1024
_EMPTY = "has zero bytes"
_BARE_DICOM = re.compile(rb"[\x02\x08]\0.\0([A-Z]{2}|.\0\0\0)|\0\x08\0.[A-Z]{2}", re.DOTALL)
"""DICOM without preamble: the first tag is of group 2 or 8, with a type of two letters or a length below 256."""

_IMAGELESS = re.compile(
    rb"DICM.*\x02\0\x02\0UI..1\."
    rb"(2\.840\.10008\.(1\.3\.10[\0\x02]|5\.1\.4\.1\.1\.(88|11|104|66|9|4\.2|481\.[358])[.\0\x02])|3\.12\.2\.1107\.5\.9\.1\0)",
    re.DOTALL,
)
"""Storage classes (PS3.4 B.5, Siemens' CSA) without a picture: DICOMDIR, reports, presentation states, spectra."""
_DICOMDIR = re.compile(rb"DICM.*\x02\0\x02\0UI..1\.2\.840\.10008\.1\.3\.10[\0\x02]", re.DOTALL)

_HDF5_MAGIC, _GZIP_MAGIC = b"\x89HDF\r\n\x1a\n", b"\x1f\x8b"
_ARCHIVES = (_GZIP_MAGIC, b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!")


def read_grey(path: FilePath) -> GreyImage:
    """Decode one image file to grey uint8.

    RGB becomes grey by Pillow's "L" (ITU-R 601-2 luma). EXIF orientation is applied, transparency is composited on
    black, 16-bit, 32-bit and float pixels are rescaled linearly (``grey.rescale_to_uint8``), and each
    of these is noted. Above ``MAX_PIXELS`` a file is refused by its header, before any pixel is decoded. What DICOM,
    NIfTI and figshare .mat files add is said in ``dicom.py``, ``nifti.py`` and ``figshare.py``.

    Raises:
        UnreadableImageError: The file is missing, empty, truncated, damaged, not an image, animated, gigantic, not
            finite, or blank (``head_crop.is_blank``).
    """
    kind = _require_kind(path)
    return read_slice(FileSlice(path, lambda: _load_reader(kind).grey(path)))


def list_slices(path: FilePath, plane: str | None = None) -> list[FileSlice]:
    """Return all slices of a file: one of a picture, the frames of a DICOM file, those of a volume in order.

    Args:
        path: the file.
        plane: of a volume, one of ``slices.PLANES``; axial without it.

    Raises:
        UnreadableImageError: As ``read_grey`` does, as far as no pixel has to be decoded for it.
    """
    kind = _require_kind(path)
    with _guarded(path):
        reader = _load_reader(kind)
        return reader.slices(path, plane) if reader.slices else [FileSlice(path, partial(reader.grey, path))]


def read_slice(found: FileSlice) -> GreyImage:
    """Decode one slice.

    Raises:
        UnreadableImageError: As ``read_grey`` does.
    """
    with _guarded(found.path):
        image = found.decode()
    if is_blank(image.pixels):
        raise UnreadableImageError(BLANK, "remove it, or export the scan again with all its grey levels", found.path)
    return image


def _require_kind(path: FilePath) -> str:
    head = _read_head(path)
    kind = _kind_of(head)
    if _IMAGELESS.search(head):
        raise UnreadableImageError("is a DICOM directory, report or other file without an image", "leave it out", path)
    if kind is None:
        reason = f"is not an image in a known format ({', '.join(PICTURE_FORMATS)}, DICOM, NIfTI, figshare .mat)"
        remedy = "unpack it" if head.startswith(_ARCHIVES) else "convert it to PNG"
        raise UnreadableImageError(reason, f"remove it or {remedy}", path)
    return kind


def read_origin(path: FilePath) -> Origin:
    """Read the label and the patient that a DICOM or figshare .mat file names; pictures and NIfTI name none.

    Raises:
        UnreadableImageError: As ``read_grey`` does.
    """
    kind = _kind_of(_read_head(path))
    with _guarded(path):
        reader = _load_reader(kind) if kind else None
        return reader.origin(path) if reader and reader.origin else Origin()


def looks_like_image(path: FilePath) -> bool:
    """Tell from its first bytes whether a file claims to be an image, whatever its name.

    Raises:
        UnreadableImageError: There are no first bytes to look at.
    """
    head = _read_head(path)
    return _kind_of(head) is not None and not _IMAGELESS.search(head)


def is_meant_as_image(path: FilePath) -> bool:
    """Tell whether a folder's file is an image, or has the name of one, so that its fault is reported when it is read.

    A healthy CD's directory, reports and presentation states are not.
    """
    has_name = Path(path).suffix.lower() in IMAGE_SUFFIXES
    try:
        return not holds_no_image(path) if has_name else looks_like_image(path)
    except UnreadableImageError as error:  # nobody knows what a locked file is
        return has_name or error.reason != _EMPTY


def holds_no_image(path: FilePath) -> bool:
    """Tell whether a file says at its beginning that it is a DICOM directory, a report or a presentation state.

    Raises:
        UnreadableImageError: There are no first bytes to look at.
    """
    return _IMAGELESS.search(_read_head(path)) is not None


def _read_head(path: FilePath) -> bytes:
    """Return the first bytes of a regular, non-empty file."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableImageError("is a folder, not an image file", "name the files inside it", path)
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
            raise UnreadableImageError("is not a regular file", "copy the image itself here", path)
        if status.st_size == 0:
            raise UnreadableImageError(_EMPTY, path=path)
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)
    except FileNotFoundError:
        reason = "is a link to nothing" if Path(path).is_symlink() else "does not exist"
        raise UnreadableImageError(reason, "check the path", path) from None
    except PermissionError:
        raise UnreadableImageError("may not be read by this user", "give read permission (chmod +r)", path) from None
    except OSError as error:
        raise UnreadableImageError(f"cannot be opened ({error.strerror})", "check the file system", path) from error


def _kind_of(head: bytes) -> str | None:
    """Tell the kind of a file by its first bytes."""
    # Before pictures: a DICOM file may carry a TIFF header in its preamble.
    if head[128:132] == b"DICM" or _BARE_DICOM.match(head):
        return _DICOM
    if is_picture(head):
        return _PICTURE
    if head.startswith((b"MATLAB 7.3 MAT-file", b"MATLAB 5.0 MAT-file", _HDF5_MAGIC)):
        return _FIGSHARE
    return _NIFTI if _is_nifti(_gunzip(head)) else None


def _gunzip(head: bytes) -> bytes:
    """Decompress the first bytes of a gzip file; return any others as they are."""
    if not head.startswith(_GZIP_MAGIC):
        return head
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, _HEAD_BYTES)
    except zlib.error:
        return b""


def _is_nifti(head: bytes) -> bool:
    """Tell NIfTI-1 (https://nifti.nimh.nih.gov/nifti-1) and NIfTI-2 by their magic fields."""
    return head[344:348] in (b"n+1\x00", b"ni1\x00") or head[4:8] in (b"n+2\x00", b"ni2\x00")


@dataclass(frozen=True)
class _Reader:
    """What reads the files of one kind; ``origin``: what they say about themselves, nothing where it is None."""

    grey: Callable[[FilePath], GreyImage]
    slices: Callable[[FilePath, str | None], list[FileSlice]] | None = None
    origin: Callable[[FilePath], Origin] | None = None


def _load_reader(kind: str) -> _Reader:
    """Import what reads a kind of files; of all but pictures, an optional extra brings the library behind it."""
    if kind == _DICOM:
        from brainq_torch.data.reading.dicom import read_dicom
        from brainq_torch.data.reading.dicom_header import read_dicom_origin
        from brainq_torch.data.reading.dicom_slices import list_dicom_slices

        return _Reader(read_dicom, lambda path, plane: list_dicom_slices(path), read_dicom_origin)
    if kind == _NIFTI:
        from brainq_torch.data.reading.nifti import list_nifti_slices, read_nifti

        return _Reader(read_nifti, list_nifti_slices)
    if kind == _FIGSHARE:
        from brainq_torch.data.reading.figshare import read_figshare, read_figshare_origin

        return _Reader(read_figshare, origin=read_figshare_origin)
    return _Reader(read_picture)


def list_named_files(path: FilePath) -> Iterator[str]:
    """Yield the files that a DICOMDIR names; of any other file itself.

    Raises:
        UnreadableImageError: It is damaged, or names none; raised behind those that it names.
    """
    if not _DICOMDIR.search(_read_head(path)):
        yield os.fspath(path)
        return
    with _guarded(path):
        from brainq_torch.data.reading.dicomdir import list_dicomdir

        named, is_whole = list_dicomdir(path)
    yield from named
    if not (named and is_whole):
        reason = "names no images" if is_whole else "is truncated or damaged: it may have named more images"
        raise UnreadableImageError(reason, "name its folder in place of it", path)


@contextmanager
def _guarded(path: FilePath) -> Iterator[None]:
    """Turn what a reader raises for one file into the one error that callers know."""
    try:
        yield
    except UnreadableImageError as error:
        error.path = error.path or os.fspath(path)
        raise
    except ModuleNotFoundError as error:
        remedy = f"python -m pip install {error.name}, or in the checkout all readers: pip install '.[medical]'"
        raise UnreadableImageError(f"needs the package {error.name}", remedy, path) from error
    except MemoryError:
        raise UnreadableImageError("does not fit into memory", shrink_remedy(), path) from None
    # Hostile bytes make decoders raise nearly anything: OSError, SyntaxError, EOFError, KeyError, struct.error, ...
    except Exception as error:
        raise UnreadableImageError(f"is truncated or damaged ({type(error).__name__}: {error})", path=path) from error
