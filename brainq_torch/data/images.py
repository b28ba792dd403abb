"""Reads one image file to grey uint8. The file's content decides its format, never its name."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, UnidentifiedImageError

type FilePath = str | os.PathLike[str]

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "PPM": (".pgm", ".ppm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
}
# Only these: for an EPS file Pillow would start Ghostscript, and some formats have no magic number.

Image.init()  # registers the formats now, as a registration by several threads at once is not foreseen

_PILLOW_FORMATS = tuple(name for name in _SUFFIXES if name != "MPO")  # Pillow opens MPO as the JPEG that it starts with

IMAGE_SUFFIXES: frozenset[str] = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
"""Suffixes (lower case) of files that claim to be images; any other file is an image only if its content says so."""

MAX_PIXELS = 40_000_000
"""Largest width * height that is decoded; Pillow then holds at most two copies of 4 bytes per pixel, 320 MB."""

_HEAD_BYTES = 1024
_MAGIC: tuple[tuple[int, bytes], ...] = (
    (0, b"\x89PNG\r\n\x1a\n"),
    (0, b"\xff\xd8\xff"),
    (0, b"II*\x00"),
    (0, b"MM\x00*"),
    (0, b"II+\x00"),
    (0, b"MM\x00+"),
    (8, b"WEBP"),
    (0, b"GIF8"),
    (0, b"\x00\x00\x00\x0cjP  "),
    (0, b"\xff\x4f\xff\x51"),
)
_BITMAP_HEADER_BYTES = frozenset({12, 40, 52, 56, 64, 108, 124})

# EXIF 2.3, tag 0x0112: the step that puts each orientation upright.
_UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_PHOTOMETRIC_TAG = 262
_COLOUR_SPREAD = 32
_COLOUR_FRACTION = 0.001
_SMALL_SIDE = 32

_COPY_AGAIN = "copy or download it again, or remove it"


class UnreadableImageError(ValueError):
    """An image file that cannot be read correctly.

    path: the file. reason: what is wrong with it. remedy: what to do about it.
    """

    def __init__(self, path: FilePath, reason: str, remedy: str) -> None:
        # All three go to the base class, or the error could not travel between processes (pickle).
        super().__init__(os.fspath(path), reason, remedy)
        self.path = os.fspath(path)
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        """Return the error as one sentence."""
        return f"{self.path}: {self.reason}; {self.remedy}"


@dataclass(frozen=True)
class GreyImage:
    """One decoded image.

    pixels: (h, w) uint8, upright.
    notes: what was converted on the way, e.g. ``CMYK converted to grey``; none for a plain 8-bit grey picture.
    """

    pixels: npt.NDArray[np.uint8]
    notes: tuple[str, ...]


def read_grey(path: FilePath) -> GreyImage:
    """Decode one image file to grey uint8.

    RGB becomes grey by Pillow's "L" (ITU-R 601-2 luma). EXIF orientation is applied, transparency is composited on
    black, 16-bit, 32-bit and float pixels are rescaled linearly from their own minimum..maximum to 0..255, and each of
    these is noted. Above ``MAX_PIXELS`` a file is refused by its header, before any pixel is decoded.

    Raises UnreadableImageError for what is missing, empty, truncated, not an image, animated, gigantic or not finite.
    """
    reader = _reader_of(_read_head(path))
    if reader is None:
        reason = f"is not an image in a known format ({', '.join(_PILLOW_FORMATS)})"
        raise UnreadableImageError(path, reason, "remove it or convert it to PNG")
    return reader(path)


def looks_like_image(path: FilePath) -> bool:
    """Tell from its first bytes whether a file claims to be an image, whatever its name.

    Raises UnreadableImageError when there are no first bytes to look at.
    """
    return _reader_of(_read_head(path)) is not None


def rescale_to_uint8(path: FilePath, values: npt.NDArray[Any], what: str) -> tuple[npt.NDArray[np.uint8], str]:
    """Rescale linearly from the values' own minimum..maximum to 0..255; a constant image becomes black.

    values: (h, w) of any real dtype. what: their name in the note. Returns (h, w) uint8 and the note.
    Raises UnreadableImageError when a value is not finite.
    """
    low, high = float(values.min()), float(values.max())  # a NaN anywhere makes both NaN
    if not np.isfinite([low, high]).all():
        remedy = "replace NaN and infinity by numbers and save it again"
        raise UnreadableImageError(path, "has pixels that are not finite numbers", remedy)
    if high == low:
        return np.zeros(values.shape, np.uint8), f"{what}, all equal to {low:g}, shown as black"
    if not np.isfinite(high - low):
        raise UnreadableImageError(path, f"has pixels from {low:g} to {high:g}", "rescale it and save it again")
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), 256):  # in bands, so that float64 copies stay small
        band = values[top : top + 256].astype(np.float64)
        grey[top : top + 256] = np.rint((band - low) / (high - low) * 255)
    return grey, f"{what} rescaled from {low:g}..{high:g} to 0..255"


def refuse_gigantic(path: FilePath, width: int, height: int) -> None:
    """Raise UnreadableImageError when an image would not fit into ``MAX_PIXELS``."""
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(path, f"gigantic dimensions, {width} x {height} pixels", _shrink())


def _shrink() -> str:
    return f"resize it to at most {MAX_PIXELS // 1_000_000} megapixels"


def _read_head(path: FilePath) -> bytes:
    """Return the first bytes of a regular, non-empty file."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableImageError(path, "is a folder, not an image file", "name the files inside it")
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
            raise UnreadableImageError(path, "is not a regular file", "copy the image itself here")
        if status.st_size == 0:
            raise UnreadableImageError(path, "has zero bytes", _COPY_AGAIN)
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
    if any(head[start : start + len(magic)] == magic for start, magic in _MAGIC):
        return _read_picture
    # Two letters are a weak magic number, so the field after them must fit as well.
    is_bitmap = head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BITMAP_HEADER_BYTES
    is_netpbm = len(head) > 2 and head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n"
    return _read_picture if is_bitmap or is_netpbm else None


def _read_picture(path: FilePath) -> GreyImage:
    """Decode what Pillow decodes."""
    try:
        # A file object, not a path: Pillow 13 would map an uncompressed TIFF into memory and scramble it when turned.
        with open(path, "rb") as file, Image.open(file, formats=_PILLOW_FORMATS) as image:
            refuse_gigantic(path, *image.size)
            notes = [*_format_notes(path, image), *_depth_notes(image)]
            upright, turned = _decode_upright(image)
            return _to_grey(path, upright, [*notes, *turned])
    except UnreadableImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # Pillow's own limit came before ours
        raise UnreadableImageError(path, "gigantic dimensions", _shrink()) from None
    except UnidentifiedImageError:
        reason = "starts like an image, but its header is truncated or damaged"
        raise UnreadableImageError(path, reason, _COPY_AGAIN) from None
    except MemoryError:
        raise UnreadableImageError(path, "does not fit into memory", _shrink()) from None
    # Hostile bytes make Pillow's decoders raise nearly anything: OSError, SyntaxError, EOFError, struct.error, ...
    except Exception as error:
        raise UnreadableImageError(
            path, f"is truncated or damaged ({type(error).__name__}: {error})", _COPY_AGAIN
        ) from error


def _format_notes(path: FilePath, image: Image.Image) -> list[str]:
    """Note a name that lies about the format; refuse several frames, of which nobody said which one is meant."""
    name = image.format or "unknown"
    notes = []
    if name == "MPO":  # a camera's JPEG with a preview or gain map behind the picture; viewers show the first, too
        notes.append("JPEG with several pictures inside (MPO), the first one read")
    elif getattr(image, "is_animated", False):
        raise UnreadableImageError(path, f"{name} with several frames", "save the one frame that is meant as PNG")
    suffix = Path(path).suffix.lower()
    if suffix in IMAGE_SUFFIXES and suffix not in _SUFFIXES[name]:
        notes.append(f"content is {name} although the name ends in {suffix}")
    if min(image.size) < _SMALL_SIDE:
        notes.append(f"only {image.width} x {image.height} pixels")
    return notes


def _depth_notes(image: Image.Image) -> list[str]:
    """Note 16-bit colour, of which Pillow keeps the upper 8 bits."""
    raw_mode = str(getattr(image, "tile", ""))
    return ["16 bits per colour reduced to 8"] if ";16" in raw_mode and image.mode[0] not in "IF" else []


def _decode_upright(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Decode and apply the EXIF orientation."""
    try:
        exif = image.getexif()
        orientation = exif.get(_ORIENTATION_TAG, 1)
        is_damaged = not exif and bool(image.info.get("exif"))  # Pillow keeps quiet about it in a JPEG
    except Exception:  # and raises nearly anything elsewhere; the picture itself may be good
        orientation, is_damaged = 1, True
    image.load()
    if is_damaged:
        return image, ["EXIF data damaged, read as upright"]
    if orientation not in _UPRIGHT:
        return image, []
    # Pillow turns TIFF files by itself while it decodes, and then the tag is gone.
    left = image.getexif().get(_ORIENTATION_TAG, 1)
    return image.transpose(_UPRIGHT[left]) if left in _UPRIGHT else image, [f"EXIF orientation {orientation} applied"]


def _to_grey(path: FilePath, image: Image.Image, notes: list[str]) -> GreyImage:
    """Turn a decoded Pillow image of any mode grey."""
    if image.mode[0] in "IF":
        return _wide_to_grey(path, image, notes)
    if image.mode == "LAB":
        image = image.getchannel("L")  # lightness is the grey picture; Pillow has no LAB to L
        notes.append("LAB colours converted to grey")
    if image.has_transparency_data:
        image = _on_black(image, notes)
    if image.mode == "1":
        notes.append("1-bit black and white converted to grey")
    elif image.mode == "P":
        notes.append("palette converted to grey")
    elif image.mode == "RGB":
        notes.extend(_colour_notes(image))
    elif image.mode != "L":
        notes.append(f"{image.mode} converted to grey")
    return GreyImage(np.array(image.convert("L")), tuple(notes))


def _wide_to_grey(path: FilePath, image: Image.Image, notes: list[str]) -> GreyImage:
    """Rescale 16-bit, 32-bit and float pixels to 8 bits."""
    what = "float pixels" if image.mode == "F" else "16-bit or 32-bit pixels"
    pixels, note = rescale_to_uint8(path, np.asarray(image), what)
    notes.append(note)
    if "transparency" in image.info:
        notes.append("transparency ignored")
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC_TAG) == 0:  # Pillow inverts WhiteIsZero only up to 8 bits
        pixels = 255 - pixels
        notes.append("white is zero in this TIFF, inverted")
    return GreyImage(pixels, tuple(notes))


def _on_black(image: Image.Image, notes: list[str]) -> Image.Image:
    """Composite on black, which is grey * alpha; note it only where something is really transparent."""
    if image.mode == "La":
        image = image.convert("LA")
    coloured = image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
    alpha = coloured.getchannel("A")
    if np.asarray(alpha).min() == 255:
        return coloured.convert("L" if coloured.mode == "LA" else "RGB")
    notes.append("transparency composited on black")
    return ImageChops.multiply(coloured.convert("L"), alpha)


def _colour_notes(image: Image.Image) -> list[str]:
    """Note an RGB image that is no grey scan: a photograph, or a scan with coloured marks."""
    red, green, blue = image.split()
    brightest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    darkest = ImageChops.darker(ImageChops.darker(red, green), blue)
    spread = ImageChops.subtract(brightest, darkest).histogram()
    fraction = sum(spread[_COLOUR_SPREAD + 1 :]) / (image.width * image.height)
    return ["coloured pixels converted to grey"] if fraction > _COLOUR_FRACTION else []
