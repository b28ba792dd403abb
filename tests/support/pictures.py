"""Writes pictures that Pillow does not write: TIFF 6.0 and PNG."""

import struct
import zlib

import numpy as np

NONE, DEFLATE, PACK_BITS = 1, 8, 32773
OFFSETS, SIZES, TILE_WIDTH, TILE_OFFSETS, TILE_SIZES = 273, 279, 322, 324, 325


def pack_bits(content):
    """Pack runs of literal bytes, each behind a byte that says nothing (TIFF 6.0, section 9)."""
    runs = [content[start : start + 100] for start in range(0, len(content), 100)]
    return b"".join(b"\x80" + bytes([len(run) - 1]) + run for run in runs)


SQUEEZERS = {NONE: bytes, DEFLATE: zlib.compress, PACK_BITS: pack_bits}


def write_tiff(path, pixels, order="<", parts=None, **more):
    """Write (h, w) or (h, w, channels) of any type.

    order: of bytes, as struct has it. parts: strips or tiles, the whole in one without them. more: other tags, "t262".
    """
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    tags = {256: pixels.shape[1], 257: len(pixels), 258: [8 * pixels.itemsize] * channels, 259: NONE}
    tags |= {262: 1 + (channels > 2), 277: channels, 339: ["uif".index(pixels.dtype.kind) + 1] * channels}
    tags |= {int(name[1:]): value for name, value in more.items()}
    kind = pixels.dtype.newbyteorder(order)
    squeeze = SQUEEZERS[tags[259]]
    packed = [squeeze(np.ascontiguousarray(part).astype(kind).tobytes()) for part in (parts or [pixels])]
    starts = [8 + sum(map(len, packed[:index])) for index in range(len(packed))]
    tags |= dict(zip((TILE_OFFSETS, TILE_SIZES) if TILE_WIDTH in tags else (OFFSETS, SIZES),
                     (starts, [*map(len, packed)]), strict=True))  # fmt: skip
    table = 8 + sum(map(len, packed))
    entries, behind = b"", b""
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, list) else [value]
        letter = "I" if tag in (OFFSETS, SIZES, TILE_OFFSETS, TILE_SIZES) else "H"
        words = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(words) > 4:
            place = struct.pack(f"{order}I", table + 6 + 12 * len(tags) + len(behind))
            words, behind = place, behind + words
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[letter], len(values)) + words.ljust(4, b"\0")
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, table)
    path.write_bytes(head + b"".join(packed) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + behind)
    return path


def png_chunk(kind, content):
    """Return a chunk as section 5.3 of the PNG specification has it."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(path, width, height, depth, colour, *streams, interlaced=0, extra=b""):
    """Write compressed rows, each stream as a chunk of its own, behind ``extra`` chunks."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    pixels = b"".join(png_chunk(b"IDAT", stream) for stream in streams)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + extra + pixels + png_chunk(b"IEND", b""))
    return path
