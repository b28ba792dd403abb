"""Refuses a picture whose checksums do not hold, where Pillow does not: a damaged one would be answered as another."""

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin

from brainq_torch.data.reading.grey import MAX_PIXELS, UnreadableImageError

_PNG_SIGNATURE_BYTES = 8
_PIECE_BYTES = 1024 * 1024
_MOST_BYTES = 9 * MAX_PIXELS  # 16 bits of red, green, blue and alpha, and what filters add

# TIFF 6.0 (https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf)
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS, _SIZES, _PLANAR, _PREDICTOR = 273, 274, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_SIZES = 322, 323, 324, 325
_EXTRA, _FORMAT, _SUBSAMPLING = 338, 339, 530
_SHORT, _INTEGERS = 3, (3, 4, 16)  # 16, 32 and 64 bits
_SINGLE_SHORTS = (_COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANAR, _PREDICTOR)
_SINGLE_INTEGERS = (_WIDTH, _HEIGHT, _ROWS, _TILE_WIDTH, _TILE_HEIGHT)
_TYPES = dict.fromkeys((*_SINGLE_SHORTS, _BITS, _EXTRA, _FORMAT), (_SHORT,)) | dict.fromkeys(
    (*_SINGLE_INTEGERS, _OFFSETS, _SIZES, _TILE_OFFSETS, _TILE_SIZES), _INTEGERS
)
_MAY_BE_ABSENT = (_ORIENTATION, _PREDICTOR, _FORMAT)
_DEFLATE = (8, 32946)
_PREDICTORS = (1, 2, 3)
_MOST_TAGS = 0xFFFF
_SUBSAMPLED = 6  # YCbCr


def refuse_broken_checksums(file: BinaryIO, image: Image.Image) -> None:
    """Check what a PNG or a deflated TIFF says about itself; JPEG, WEBP, GIF, BMP and other TIFFs have no checksums.

    The file may stand at any place, and is left at any; the image is not yet decoded.

    Raises:
        UnreadableImageError: A checksum does not hold, or the file ends before its end.
    """
    try:
        if image.format == "PNG":
            _inflate(_png_parts(file))
        elif isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_tiff(file, image.tag_v2)
    except (ValueError, zlib.error, struct.error) as error:
        raise UnreadableImageError(f"is a truncated or damaged {image.format}: {error}") from error


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
    """Inflate each strip or tile: a zlib stream of its own, as long as the tags say.

    The tags have no checksum. What stands there must make sense, but nobody can notice a flipped bit in a value that
    might as well be another: white or black is zero, an orientation, integers or floats, a palette's colours, and the
    size of a picture in tiles, which are padded.
    """
    needed = (_COMPRESSION, _PHOTOMETRIC, *[_SUBSAMPLING] * (tags.get(_PHOTOMETRIC) == _SUBSAMPLED))
    missing = [tag for tag in needed if tag not in tags]
    if missing:  # for a tag whose number is damaged Pillow takes a default
        raise ValueError(f"it has no tag {missing[0]}")
    if tags[_COMPRESSION] not in _DEFLATE:
        return
    _check_directory(_read_directory(file))
    if tags.get(_PREDICTOR, 1) not in _PREDICTORS:
        raise ValueError(f"its predictor is {tags[_PREDICTOR]}; allowed are {_PREDICTORS}")
    strips = _OFFSETS in tags
    offsets, sizes = (tags[_OFFSETS], tags[_SIZES]) if strips else (tags[_TILE_OFFSETS], tags[_TILE_SIZES])
    if any(start + size > after for (start, size), (after, _) in pairwise(sorted(zip(offsets, sizes, strict=True)))):
        raise ValueError("two of its parts overlap")  # one would be read twice
    for offset, size, expected in zip(offsets, sizes, _part_sizes(tags, strips), strict=True):
        file.seek(offset)
        found = _inflate([file.read(size)])
        if found != expected and tags[_PHOTOMETRIC] != _SUBSAMPLED:
            raise ValueError(f"{found} bytes of pixels stand where its tags say {expected}")


def _read_directory(file: BinaryIO) -> list[tuple[int, int, int]]:
    """Return number, type and count of each tag as they stand in the file: Pillow leaves out what it cannot use."""
    file.seek(0)
    head = file.read(16)
    order, big = "<" if head[:1] == b"I" else ">", 43 in head[2:4]
    start, number, entry = (
        (f"{order}8xQ", f"{order}Q", f"{order}HHQ8x") if big else (f"{order}4xI", f"{order}H", f"{order}HHI4x")
    )
    file.seek(struct.unpack_from(start, head)[0])
    (count,) = struct.unpack(number, file.read(struct.calcsize(number)))
    entries = list(struct.iter_unpack(entry, file.read(min(count, _MOST_TAGS) * struct.calcsize(entry))))
    if any(file.read(8 if big else 4)):
        raise ValueError("its tags end elsewhere than they say")  # several pictures are refused before
    return entries


def _check_directory(entries: list[tuple[int, int, int]]) -> None:
    """Refuse tags that a damaged number, type or count would hide from a reader, which takes a default then."""
    numbers = [tag for tag, _, _ in entries]
    if numbers != sorted(set(numbers)):
        raise ValueError("its tags are not in order")
    for tag, kind, count in entries:
        if kind not in _TYPES.get(tag, (kind,)) or (tag in (*_SINGLE_SHORTS, *_SINGLE_INTEGERS) and count != 1):
            raise ValueError(f"its tag {tag} has type {kind} and {count} values")
        meant = [other for other in _MAY_BE_ABSENT if (tag ^ other).bit_count() == 1 and other not in numbers]
        if meant and tag not in _TYPES and (kind, count) == (_SHORT, 1):
            raise ValueError(f"its tag {tag} seems to be a damaged {meant[0]}")


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
