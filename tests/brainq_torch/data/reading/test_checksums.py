"""One flipped bit: the file is refused, or its pixels are what they were."""

import gzip
import struct
import zlib

import nibabel
import numpy as np
import pytest
from PIL import Image

from brainq_torch.data.reading.grey import UnreadableImageError
from brainq_torch.data.reading.image import read_grey
from tests.support.pictures import write_png, write_tiff
from tests.support.unreadable import check_unreadable

FLIPS = 300
RANDOM = np.random.default_rng(0)
GREY = (np.add.outer(np.arange(48), np.arange(40)) * 2 + RANDOM.integers(0, 30, (48, 40))).astype(np.uint8)
COLOURS = np.dstack([GREY, GREY // 2, 255 - GREY])
DEFLATE = {"compression": "tiff_adobe_deflate"}


def write_nifti(path):
    voxels = RANDOM.integers(0, 900, (12, 10, 6)).astype(np.int16)
    path.write_bytes(gzip.compress(nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes()))


def strips(plane):
    return [plane[top : top + 7] for top in range(0, len(plane), 7)]


def tiles(plane):
    padded = np.pad(plane, ((0, 0), (0, 8), *((0, 0),) * (plane.ndim - 2)))
    return [padded[top : top + 16, left : left + 16] for top in range(0, 48, 16) for left in range(0, 48, 16)]


KINDS = {
    "grey.png": lambda path: Image.fromarray(GREY).save(path),
    "wide.png": lambda path: Image.fromarray(GREY.astype(np.uint16) * 200).save(path),
    "palette.png": lambda path: Image.fromarray(COLOURS).quantize(40).save(path),
    "volume.nii.gz": write_nifti,
    "one.tif": lambda path: Image.fromarray(GREY).save(path, **DEFLATE),
    "strips.tif": lambda path: Image.fromarray(GREY).save(path, strip_size=400, **DEFLATE),
    "wide.tif": lambda path: Image.fromarray(GREY.astype(np.uint16) * 200).save(path, **DEFLATE),
    "differences.tif": lambda path: Image.fromarray(GREY).save(path, tiffinfo={317: 2}, **DEFLATE),
    "wide_differences.tif": lambda path: Image.fromarray(GREY.astype(np.uint16) * 200).save(
        path, tiffinfo={317: 2}, **DEFLATE
    ),
    "float.tif": lambda path: Image.fromarray(GREY.astype(np.float32)).save(path, **DEFLATE),
    "tiles.tif": lambda path: write_tiff(path, COLOURS, parts=tiles(COLOURS), t259=8, t322=16, t323=16),
}


def values_of(whole):
    """Return the first bit of each tag's value in a TIFF."""
    (table,) = struct.unpack_from("<I", whole, 4)
    (count,) = struct.unpack_from("<H", whole, table)
    entries = range(table + 2, table + 2 + 12 * count, 12)
    return {struct.unpack_from("<H", whole, entry)[0]: 8 * entry + 64 for entry in entries}


def choose_bits(path, whole):
    """Return what to flip: of a TIFF also each bit of its tags, but not the values that might as well be others."""
    bits = np.random.default_rng(1).choice(8 * len(whole), FLIPS)
    if path.suffix != ".tif":
        return bits
    values = values_of(whole)
    unseen = [values[262], *(range(values[339], values[339] + 8) if 339 in values else [])]
    if 322 in values:  # how much of the last tiles is padding
        unseen += [values[tag] + bit for tag in (256, 257) for bit in range(8)]
    tags = np.arange(min(values.values()) - 64, max(values.values()) + 64)
    return np.setdiff1d([*bits, *tags], unseen)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_never_gives_other_pixels(tmp_path, name):
    path = tmp_path / name
    KINDS[name](path)
    whole, expected = path.read_bytes(), read_grey(path).pixels
    refused = 0
    bits = choose_bits(path, whole)
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read_grey(path).pixels, expected)
        except UnreadableImageError:
            refused += 1
    assert refused > (0.7 if path.suffix == ".tif" else 0.9) * len(bits)  # the rest is nobody's business, such as names


@pytest.mark.parametrize("tag", [256, 257, 258, 259, 262])
def test_a_tiff_whose_tags_say_another_size_or_nothing_is_refused(tmp_path, tag):
    path = tmp_path / "a.tif"
    KINDS["strips.tif"](path)
    whole = path.read_bytes()
    entry = next(place for place in range(8, len(whole)) if whole[place : place + 2] == struct.pack("<H", tag))
    for place in [*range(entry, entry + 2), *([entry + 8] if tag < 258 else [])]:
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(UnreadableImageError):
                read_grey(path)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("layout", "cut"), [({"t278": 7}, strips), ({"t322": 16, "t323": 16}, tiles)])
def test_a_whole_tiff_of_any_layout_is_read_and_a_damaged_one_is_not(tmp_path, apart, layout, cut):
    path = tmp_path / "a.tif"
    parts = [part for plane in (COLOURS.transpose(2, 0, 1) if apart else [COLOURS]) for part in cut(plane)]
    write_tiff(path, COLOURS, parts=parts, t259=8, t284=1 + apart, **layout)
    np.testing.assert_array_equal(read_grey(path).pixels, np.asarray(Image.fromarray(COLOURS).convert("L")))
    damaged = bytearray(path.read_bytes())
    damaged[300] ^= 4
    path.write_bytes(damaged)
    check_unreadable(path, "truncated or damaged TIFF")


@pytest.mark.parametrize("change", [lambda stream: stream[:-1] + bytes([stream[-1] ^ 1]), lambda stream: stream[:-4]])
def test_a_png_keeps_a_checksum_of_its_pixels_as_well(tmp_path, change):
    stream = change(zlib.compress(b"".join(b"\0" + row.tobytes() for row in GREY)))
    path = write_png(tmp_path / "a.png", 40, 48, 8, 0, stream[:-4], stream[-4:])  # Pillow stops before the second
    check_unreadable(path, "truncated or damaged PNG")
