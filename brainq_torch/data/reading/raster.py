"""Reads what Pillow decodes: PNG, JPEG, TIFF and the like."""

import re
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageFile, UnidentifiedImageError

from brainq_torch.data.reading.checksums import refuse_broken_checksums
from brainq_torch.data.reading.grey import (
    COPY_AGAIN,
    FilePath,
    GreyImage,
    UnreadableImageError,
    refuse_gigantic,
    rescale_to_uint8,
    shrink_remedy,
)

COLOURED = "coloured pixels converted to grey"
"""The note of a picture that is not grey throughout."""

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

PICTURE_FORMATS = tuple(name for name in _SUFFIXES if name != "MPO")  # Pillow opens MPO as the JPEG that it starts with

PICTURE_SUFFIXES: frozenset[str] = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
"""Suffixes (lower case) of files that claim to be images; any other file is an image only if its content says so."""

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
_BITS_TAG, _PHOTOMETRIC_TAG, _PLANAR_TAG = 258, 262, 284
_COLOUR_SPREAD = 32
_COLOUR_FRACTION = 0.001
_SMALL_SIDE = 32
# Pillow's names of 16-bit colours, and of the order of their bytes.
_WIDE_COLOUR = re.compile(r"'(LA|RGB|RGB[AXa]|CMYK);16([BLN])'")
_SIGNED = re.compile(r"([IF];\d\d)B?([SF])")  # and of signed and float pixels
_SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def is_picture(head: bytes) -> bool:
    """Tell whether a file's first bytes are those of a format that Pillow decodes here."""
    if any(head[start : start + len(magic)] == magic for start, magic in _MAGIC):
        return True
    # Two letters are a weak magic number, so the field after them must fit as well.
    is_bitmap = head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BITMAP_HEADER_BYTES
    is_netpbm = len(head) > 2 and head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n"
    return is_bitmap or is_netpbm


def read_picture(path: FilePath) -> GreyImage:
    """Decode one picture to upright grey; see ``read_grey`` for the rules.

    Raises:
        UnreadableImageError: The picture is none that is read.
        Exception: Whatever Pillow raises for a damaged file.
    """
    # A file object, not a path: Pillow 13 would map an uncompressed TIFF into memory and scramble it when turned.
    try:
        with open(path, "rb") as file, Image.open(file, formats=PICTURE_FORMATS) as image:
            refuse_gigantic(*image.size)
            notes = _format_notes(path, image)
            refuse_broken_checksums(file, image)
            wide = _find_wide_colours(image)
            upright, more = _rescale_colours(file, *wide.groups()) if wide else _decode_upright(image)
            return _to_grey(upright, [*notes, *more])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # Pillow's own limit came before ours
        raise UnreadableImageError("gigantic dimensions", shrink_remedy()) from None
    except UnidentifiedImageError:
        reason = "starts like an image, but its header is truncated or damaged, or of a kind that is not read"
        raise UnreadableImageError(reason, f"{COPY_AGAIN}, or save it as PNG") from None


def _format_notes(path: FilePath, image: Image.Image) -> list[str]:
    """Note a name that lies about the format; refuse several frames, of which nobody said which one is meant."""
    name = image.format or "unknown"
    notes = []
    if name == "MPO":  # a camera's JPEG with a preview or gain map behind the picture; viewers show the first, too
        notes.append("JPEG with several pictures inside (MPO), the first one read")
    elif getattr(image, "is_animated", False):
        raise UnreadableImageError(f"{name} with several frames", "save the one frame that is meant as PNG")
    suffix = Path(path).suffix.lower()
    if suffix in PICTURE_SUFFIXES and suffix not in _SUFFIXES[name]:
        notes.append(f"content is {name} although the name ends in {suffix}")
    if min(image.size) < _SMALL_SIDE:
        notes.append(f"only {image.width} x {image.height} pixels")
    return notes


def _find_wide_colours(image: Image.Image) -> re.Match[str] | None:
    """Return what 16-bit colours are there, and in which order their bytes are; None where they have fewer bits."""
    tags = getattr(image, "tag_v2", {})
    found = _WIDE_COLOUR.search(str(getattr(image, "tile", "")))
    are_apart = tags.get(_PLANAR_TAG) == 2 and 16 in tags.get(_BITS_TAG, ())  # Pillow takes bytes of it for pixels
    if are_apart or (found and found[1] == "CMYK"):
        raise UnreadableImageError("has 16-bit colours in an order that is not read", "save it as PNG")
    return found


def _rescale_colours(file: BinaryIO, kind: str, order: str) -> tuple[Image.Image, list[str]]:
    """Decode 16-bit colours, and rescale them to 8 bits by the one scale of all that their channels hold.

    Pillow keeps the upper byte of each, so the lower ones are read apart, as the upper ones of the other order.
    """
    (upper, notes), (lower, _) = (_decode_bytes(file, kind, letter) for letter in (order, _SWAPPED[order]))
    if kind == "LA":  # both are the bytes as they stand: two of grey, two of opacity
        upper, lower = upper[..., [0, 0, 0, 2]], lower[..., [1, 1, 1, 3]]
    wide = upper[..., :3].astype(np.uint16) << 8 | lower[..., :3]
    scaled, note = rescale_to_uint8(wide.reshape(len(wide), -1), "16-bit colours")
    opacity = upper[..., 3:] if kind != "RGBa" else upper[..., :0]  # else multiplied in already: black lies beneath
    return Image.fromarray(np.concatenate([scaled.reshape(wide.shape), opacity], -1)), [note, *notes]


def _decode_bytes(file: BinaryIO, kind: str, letter: str) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Decode the upper bytes of 16-bit colours, whose order a letter says, upright: (h, w, 3 or 4), and notes."""
    file.seek(0)
    with Image.open(file, formats=PICTURE_FORMATS) as image:
        raw = "RGBA" if kind == "LA" else f"{kind.replace('a', 'A')};16{letter}"
        for place, tile in enumerate(image.tile):
            rest = tile.args[1:] if isinstance(tile.args, tuple) else ()
            image.tile[place] = tile._replace(args=(raw, *rest))
        ignored = ["transparency ignored"] if "transparency" in image.info else []
        upright, notes = _decode_upright(image)
        return np.asarray(upright), [*ignored, *notes]


def _decode_upright(image: ImageFile.ImageFile) -> tuple[Image.Image, list[str]]:
    """Decode and apply the EXIF orientation."""
    turned = getattr(image, "tag_v2", {}).get(_ORIENTATION_TAG, 1)  # Pillow turns a TIFF itself, and drops the tag
    for place, tile in enumerate(image.tile):
        # libtiff gives this machine's order of bytes; Pillow 13 takes that of the file.
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple):
            native = _SIGNED.sub(r"\1N\2", tile.args[0])
            image.tile[place] = tile._replace(args=(native, *tile.args[1:]))
    image.load()
    try:
        exif = image.getexif()
        orientation = exif.get(_ORIENTATION_TAG, turned)
        is_damaged = not exif and bool(image.info.get("exif"))  # Pillow keeps quiet about it in a JPEG
    except Exception:  # and raises nearly anything elsewhere; the picture itself is good
        is_damaged = True
    if is_damaged:
        return image, ["EXIF data damaged, read as upright"]
    if orientation not in _UPRIGHT:
        return image, []
    note = f"EXIF orientation {orientation} applied"
    return (image if orientation == turned else image.transpose(_UPRIGHT[orientation])), [note]


def _to_grey(image: Image.Image, notes: list[str]) -> GreyImage:
    """Turn a decoded Pillow image of any mode grey."""
    if image.mode[0] in "IF":
        return _wide_to_grey(image, notes)
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


def _wide_to_grey(image: Image.Image, notes: list[str]) -> GreyImage:
    """Rescale 16-bit, 32-bit and float pixels to 8 bits."""
    what = "float pixels" if image.mode == "F" else "16-bit or 32-bit pixels"
    pixels, note = rescale_to_uint8(np.asarray(image), what)
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
    if red == green == blue:  # the usual scan, told ten times as fast
        return []
    brightest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    darkest = ImageChops.darker(ImageChops.darker(red, green), blue)
    spread = ImageChops.subtract(brightest, darkest).histogram()
    fraction = sum(spread[_COLOUR_SPREAD + 1 :]) / (image.width * image.height)
    return [COLOURED] if fraction > _COLOUR_FRACTION else []
