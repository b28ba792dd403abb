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
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm", ".jp2"}
)
"""Suffixes (lower case) by which a folder scan expects an image; other files are images only if their content says so."""

MAX_PIXELS = 40_000_000
"""Largest width * height that is decoded: Pillow then holds at most 160 MB for one colour image."""

_FORMATS = ("PNG", "JPEG", "MPO", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
# Only these: Pillow would also start Ghostscript for an EPS file, and guess at headerless formats.

_HEAD_BYTES = 1024
_MAGIC: tuple[tuple[int, bytes], ...] = (
    (0, b"\x89PNG\r\n\x1a\n"),
    (0, b"\xff\xd8\xff"),
    (0, b"BM"),
    (0, b"II*\x00"),
    (0, b"MM\x00*"),
    (0, b"II+\x00"),
    (0, b"MM\x00+"),
    (8, b"WEBP"),
    (0, b"GIF8"),
    (0, b"P5"),
    (0, b"P6"),
    (0, b"\x00\x00\x00\x0cjP  "),
)


class UnreadableImageError(ValueError):
    """An image file that cannot be read correctly.

    path: the file. reason: what is wrong with it. remedy: what to do about it.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, remedy: str) -> None:
        self.path = os.fspath(path)
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{self.path}: {reason}; {remedy}")


@dataclass(frozen=True)
class GreyImage:
    """One decoded image.

    pixels: (h, w) uint8, upright.
    notes: what had to be converted on the way, e.g. ``CMYK converted to grey``; empty for a plain 8-bit grey or RGB file.
    """

    pixels: npt.NDArray[np.uint8]
    notes: tuple[str, ...]


def read_grey(path: str | os.PathLike[str]) -> GreyImage:
    """Decode one image file to grey uint8.

    RGB becomes grey by Pillow's "L" (ITU-R 601-2 luma). EXIF orientation is applied, transparency is composited on black,
    16-bit, 32-bit and float pixels are rescaled linearly from their own minimum..maximum to 0..255. Each is noted.
    Files above ``MAX_PIXELS`` are refused from their header, before any pixel is decoded.

    Raises UnreadableImageError for what is missing, not a file, empty, truncated, not an image, animated, gigantic or not finite.
    """
    head = _read_head(path)
    reader = _reader_of(head)
    if reader is None:
        raise UnreadableImageError(path, "is not an image in a known format", "remove it or convert it to PNG")
    return reader(path)


def looks_like_image(path: str | os.PathLike[str]) -> bool:
    """Tell from its first bytes whether a file claims to be an image, whatever its name."""
    return _reader_of(_read_head(path)) is not None


def _read_head(path: str | os.PathLike[str]) -> bytes:
    """Return the first bytes of a regular, non-empty file."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableImageError(path, "is a folder, not an image file", "name the files inside it")
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
            raise UnreadableImageError(path, "is not a regular file", "copy the image itself here")
        if status.st_size == 0:
            raise UnreadableImageError(path, "has zero bytes", "copy or download it again, or remove it")
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)
    except FileNotFoundError:
        reason = "is a link to nothing" if Path(path).is_symlink() else "does not exist"
        raise UnreadableImageError(path, reason, "check the path") from None
    except PermissionError:
        raise UnreadableImageError(path, "may not be read by this user", "give read permission (chmod +r)") from None
    except OSError as error:
        raise UnreadableImageError(path, f"cannot be opened ({error.strerror})", "check the file system") from error


def _reader_of(head: bytes) -> Callable[[str | os.PathLike[str]], GreyImage] | None:
    """Choose the reader by the file's first bytes."""
    if any(head[start : start + len(magic)] == magic for start, magic in _MAGIC):
        return _read_picture
    return None


def _read_picture(path: str | os.PathLike[str]) -> GreyImage:
    """Decode what Pillow decodes."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _refuse_gigantic(path, image.size)
            if getattr(image, "is_animated", False):
                raise UnreadableImageError(
                    path, f"{image.format} with several frames", "save the one frame you mean as PNG"
                )
            return _to_grey(path, image)
    except UnreadableImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(path, f"gigantic dimensions ({error})", _shrink_remedy()) from None
    except UnidentifiedImageError:
        raise UnreadableImageError(
            path, "starts like an image but its header is damaged", "copy or download it again, or remove it"
        ) from None
    except MemoryError:
        raise UnreadableImageError(path, "does not fit into memory", _shrink_remedy()) from None
    # A decoder meets hostile bytes here, and Pillow's raise nearly anything: OSError, SyntaxError, EOFError, struct.error, ...
    except Exception as error:
        raise UnreadableImageError(
            path, f"is truncated or damaged ({error})", "copy or download it again, or remove it"
        ) from error


def _refuse_gigantic(path: str | os.PathLike[str], size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(path, f"gigantic dimensions ({width} x {height} pixels)", _shrink_remedy())


def _shrink_remedy() -> str:
    return f"resize it to at most {MAX_PIXELS // 1_000_000} megapixels"


def _to_grey(path: str | os.PathLike[str], image: Image.Image) -> GreyImage:
    """Turn an opened Pillow image upright and grey."""
    notes: list[str] = []
    if ";16" in str(getattr(image, "tile", "")) and not image.mode.startswith("I"):
        notes.append("16 bits per colour reduced to 8")
    orientation = image.getexif().get(0x0112, 1)
    image.load()
    if orientation in range(2, 9):
        image = ImageOps.exif_transpose(image)
        notes.append(f"EXIF orientation {orientation} applied")
    if image.mode.startswith("I") or image.mode == "F":
        name = "float" if image.mode == "F" else "16-bit or 32-bit"
        pixels, note = rescale_to_uint8(path, np.asarray(image), f"{name} pixels")
        return GreyImage(pixels, (*notes, note))
    if image.has_transparency_data:
        image = _on_black(image, notes)
    if image.mode == "1":
        notes.append("1-bit black and white converted to grey")
    elif image.mode not in ("L", "RGB"):
        notes.append(f"{'palette' if image.mode == 'P' else image.mode} converted to grey")
    return GreyImage(np.array(image.convert("L")), tuple(notes))


def _on_black(image: Image.Image, notes: list[str]) -> Image.Image:
    """Composite a transparent image on black; note it only where something is really transparent."""
    coloured = image.convert("RGBA")
    if np.asarray(coloured.getchannel("A")).min() < 255:
        notes.append("transparency composited on black")
    black = Image.new("RGBA", coloured.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, coloured).convert("RGB")


def rescale_to_uint8(
    path: str | os.PathLike[str], values: npt.NDArray[Any], what: str
) -> tuple[npt.NDArray[np.uint8], str]:
    """Rescale linearly from the values' own minimum..maximum to 0..255; constant images become black.

    values: (h, w) of any real dtype. Returns (h, w) uint8 and the note that says what was done.
    Raises UnreadableImageError when a value is not finite.
    """
    if not np.isfinite(values).all():
        raise UnreadableImageError(
            path, "has pixels that are not finite numbers", "replace NaN and infinity, save again"
        )
    low, high = float(values.min()), float(values.max())
    if high == low:
        return np.zeros(values.shape, np.uint8), f"{what}, all {low:g}: shown as black"
    scaled = (values.astype(np.float64) - low) * (255.0 / (high - low))
    return np.rint(scaled).astype(np.uint8), f"{what} rescaled from {low:g}..{high:g} to 0..255"
