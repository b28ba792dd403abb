"""Refuses a picture whose checksums do not hold, where Pillow does not: a damaged one would be answered as another."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin

from brainq_torch.data.reading.grey import COPY_AGAIN, MAX_PIXELS, FilePath, UnreadableImageError

_PNG_SIGNATURE_BYTES = 8
_PIECE_BYTES = 1024 * 1024
_MOST_BYTES = 9 * MAX_PIXELS  # 16 bits of red, green, blue and alpha, and what filters add

# TIFF 6.0 (https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf)
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_OFFSETS, _SAMPLES, _ROWS, _SIZES, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_SIZES = 322, 323, 324, 325
_DEFLATE = (8, 32946)
_SUBSAMPLED = 6  # YCbCr


def refuse_broken_checksums(path: FilePath, file: BinaryIO, image: Image.Image) -> None:
    """Check what a PNG or a deflated TIFF says about itself; JPEG, WEBP, GIF, BMP and other TIFFs have no checksums.

    file: open at any place, and left at any. image: what Pillow made of it, not yet decoded.
    Raises UnreadableImageError when a checksum does not hold, or the file ends before its end.
    """
    try:
        if image.format == "PNG":
            _inflate(_png_parts(file))
        elif isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_tiff(file, image.tag_v2)
    except (ValueError, zlib.error, struct.error) as error:
        reason = f"is a truncated or damaged {image.format}: {error}"
        raise UnreadableImageError(path, reason, COPY_AGAIN) from error


def _png_parts(file: BinaryIO) -> Iterator[bytes]:
    """Yield the compressed pixels; check the CRC-32 of every part of the file (https://www.w3.org/TR/png-3/#5CRC)."""
    file.seek(_PNG_SIGNATURE_BYTES)
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", file.read(8))
        content = file.read(length)
        (checksum,) = struct.unpack(">I", file.read(4))
        if zlib.crc32(content, zlib.crc32(kind)) != checksum:
            raise ValueError(f"its part {kind.decode('latin-1')!r} is broken")
        if kind == b"IDAT":
            yield content


def _check_tiff(file: BinaryIO, tags: Mapping[int, Any]) -> None:
    """Inflate each strip or tile: a zlib stream of its own, as long as the tags say, which have no checksum."""
    missing = [tag for tag in (_COMPRESSION, _PHOTOMETRIC) if tag not in tags]
    if missing:  # for a tag whose number is damaged Pillow takes a default
        raise ValueError(f"it has no tag {missing[0]}")
    if tags[_COMPRESSION] not in _DEFLATE:
        return
    strips = _OFFSETS in tags
    offsets, sizes = (tags[_OFFSETS], tags[_SIZES]) if strips else (tags[_TILE_OFFSETS], tags[_TILE_SIZES])
    for offset, size, expected in zip(offsets, sizes, _part_sizes(tags, strips), strict=True):
        file.seek(offset)
        found = _inflate([file.read(size)])
        if found != expected and tags[_PHOTOMETRIC] != _SUBSAMPLED:
            raise ValueError(f"{found} bytes of pixels stand where its tags say {expected}")


def _part_sizes(tags: Mapping[int, Any], strips: bool) -> list[int]:
    """Return how many bytes each strip or tile has."""
    samples = tags.get(_SAMPLES, 1)
    planes, interleaved = (samples, 1) if tags.get(_PLANAR) == 2 else (1, samples)
    width, height, bits = tags[_WIDTH], tags[_HEIGHT], tags.get(_BITS, (1,))[0] * interleaved
    if strips:
        step, row_bytes = tags.get(_ROWS, height), -(-width * bits // 8)
        return [min(step, height - top) * row_bytes for top in range(0, height, step)] * planes
    across, down = tags[_TILE_WIDTH], tags[_TILE_HEIGHT]
    return [down * -(-across * bits // 8)] * (-(-width // across) * -(-height // down) * planes)


def _inflate(parts: Iterable[bytes]) -> int:
    """Inflate a zlib stream to its end, where the Adler-32 of the pixels stands; return its size, and keep nothing."""
    inflater, size = zlib.decompressobj(), 0
    for part in parts:
        while part:  # in pieces: a small file may inflate to gigabytes
            size += len(inflater.decompress(part, _PIECE_BYTES))
            part = inflater.unconsumed_tail
            if size > _MOST_BYTES:
                raise ValueError("it inflates to more than its header says (a decompression bomb)")
    size += len(inflater.flush())
    if not inflater.eof:
        raise ValueError("its pixels end early")
    return size
