"""read_grey: every common format and every way in which an image file can be wrong."""

import os
import pickle
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainq_torch.data.reading.grey import MAX_PIXELS, UnreadableImageError
from brainq_torch.data.reading.image import looks_like_image, read_grey
from brainq_torch.data.reading.raster import read_picture
from tests.brainq_torch.data.reading.scale_rule import rescaled
from tests.support.pictures import DEFLATE, NONE, PACK_BITS, write_png, write_tiff
from tests.support.unreadable import check_cut, check_unreadable


def ramp(height: int = 40, width: int = 60) -> np.ndarray:
    """A smooth picture in which every corner differs, so that a wrong orientation shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    return (rows * 2 + columns * 2.9).astype(np.uint8)


def save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


GREY = Image.fromarray(ramp())
FLAT = Image.new("L", GREY.size, 128)
BITS = ramp() > 100

# Name of the file -> image, how it is saved, the pixels and the notes that come back.
EXACT = {
    **{f"a.{suffix}": (GREY, {}, ramp(), ()) for suffix in ("png", "bmp", "tif", "pgm")},
    "a.gif": (GREY, {}, ramp(), None),  # Pillow may write a palette
    **{f"{c}.tiff": (GREY, {"compression": c}, ramp(), ()) for c in ("tiff_lzw", "tiff_adobe_deflate", "packbits")},
    "opaque.png": (GREY.convert("RGBA"), {}, ramp(), ()),
    "lab.tif": (Image.merge("LAB", (GREY, FLAT, FLAT)), {}, ramp(), ("LAB colours converted to grey",)),
    "wrong.jpg": (GREY, {"format": "PNG"}, ramp(), ("content is PNG although the name ends in .jpg",)),
    "scan": (GREY, {"format": "PNG"}, ramp(), ()),
    "tiny.png": (Image.fromarray(ramp(8, 9)), {}, ramp(8, 9), ("only 9 x 8 pixels",)),
    **{
        name: (GREY, {"format": "PNG"}, ramp(), ())
        for name in ("with space.png", "опухоль.png", "脑 肿瘤 é.png", "a'b\"c;d,e.png", "line\nbreak.png")
    },
}


@pytest.mark.parametrize("name", EXACT)
def test_what_loses_nothing_comes_out_unchanged(tmp_path, name):
    image, options, pixels, notes = EXACT[name]
    grey = read_grey(save(tmp_path / name, image, **options))
    assert grey.pixels.dtype == np.uint8
    np.testing.assert_array_equal(grey.pixels, pixels)
    assert notes is None or grey.notes == notes
    assert looks_like_image(tmp_path / name)


PLAIN = {  # what a file of so few levels would be refused for is not asked of a picture
    "1-bit black and white converted to grey": (BITS, BITS * np.uint8(255)),
    "16-bit or 32-bit pixels, all equal to 3000, shown as black": (np.full((40, 60), 3000, np.uint16), 0 * ramp()),
}


@pytest.mark.parametrize("note", PLAIN)
def test_pictures_of_one_or_two_levels_say_what_they_are(tmp_path, note):
    stored, pixels = PLAIN[note]
    grey = read_picture(save(tmp_path / "a.png", Image.fromarray(stored)))
    np.testing.assert_array_equal(grey.pixels, pixels)
    assert grey.notes == (note,)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".jp2"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_other_formats_equal_pillows_own_grey(tmp_path, suffix, mode):
    path = save(tmp_path / f"a{suffix}", GREY.convert(mode))
    grey = read_grey(path)
    np.testing.assert_array_equal(grey.pixels, np.asarray(Image.open(path).convert("L")))
    assert grey.notes == ()
    assert np.abs(grey.pixels.astype(int) - ramp()).max() <= 12  # lossy compression of a ramp


def test_colours_become_grey_by_luma_with_a_note(tmp_path):
    colours = np.dstack([ramp()] * 3)
    colours[:8] = (200, 100, 50)
    grey = read_grey(save(tmp_path / "photo.png", Image.fromarray(colours)))
    assert np.unique(grey.pixels[:8]).tolist() == [124]  # 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2
    np.testing.assert_array_equal(grey.pixels[8:], ramp()[8:])
    assert grey.notes == ("coloured pixels converted to grey",)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation_is_honoured(tmp_path, suffix, orientation):
    # What a camera stores, so that the turn that EXIF 2.3 gives for tag 0x0112 brings the picture back.
    upright = ramp()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {".webp": {"lossless": True}, ".jpg": {"quality": 100}}.get(suffix, {})
    path = save(tmp_path / f"a{suffix}", Image.fromarray(np.ascontiguousarray(stored)), exif=exif, **lossless)
    grey = read_grey(path)
    assert grey.pixels.shape == upright.shape
    assert np.abs(grey.pixels.astype(int) - upright).max() <= 4
    assert grey.notes == (() if orientation == 1 else (f"EXIF orientation {orientation} applied",))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's own word for it, beside ours
@pytest.mark.parametrize("exif", [b"II*\x00\xff\xff\xff\x7f garbage", b" this is not EXIF", b""])
@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png"])
def test_damaged_exif_does_not_lose_the_picture(tmp_path, suffix, exif):
    grey = read_grey(save(tmp_path / f"a{suffix}", GREY, exif=b"Exif\x00\x00" + exif))
    assert grey.pixels.shape == (40, 60)
    assert grey.notes in ((), ("EXIF data damaged, read as upright",))
    assert grey.notes or not exif


def test_transparency_is_composited_on_black(tmp_path):
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[:20] = 0
    alpha[20:30] = 128
    rgba = np.dstack([ramp()] * 3 + [alpha])
    expected = np.rint(ramp() * (alpha / 255.0))
    for name, image in {"rgba.png": Image.fromarray(rgba), "la.png": Image.fromarray(rgba).convert("LA")}.items():
        grey = read_grey(save(tmp_path / name, image))
        assert np.abs(grey.pixels - expected).max() <= 1
        assert "transparency composited on black" in grey.notes


def test_palette_and_transparent_palette(tmp_path):
    palette = GREY.convert("P")
    path = save(tmp_path / "a.png", palette)
    np.testing.assert_array_equal(read_grey(path).pixels, np.asarray(palette.convert("L")))
    assert read_grey(path).notes == ("palette converted to grey",)
    index = int(np.asarray(palette)[0, 0])
    path = save(tmp_path / "b.png", palette, transparency=index)
    assert (read_grey(path).pixels[np.asarray(palette) == index] == 0).all()
    assert "transparency composited on black" in read_grey(path).notes


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", GREY.convert("RGB").convert("CMYK"))
    grey = read_grey(path)
    assert np.abs(grey.pixels.astype(int) - ramp()).max() <= 8
    assert grey.notes == ("CMYK converted to grey",)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_rescaled_not_clipped(tmp_path, suffix):
    wide = ramp().astype(np.uint16) * 13 + 700  # 700 .. about 4000, as scanners store it
    grey = read_grey(save(tmp_path / f"a{suffix}", Image.fromarray(wide)))
    np.testing.assert_array_equal(grey.pixels, rescaled(wide))
    assert re.fullmatch(r"16-bit or 32-bit pixels rescaled from \d+\.\.\d+ to 0\.\.255", *grey.notes)


def test_a_few_pixels_far_brighter_than_the_head_change_nothing(tmp_path):
    plain = np.tile(ramp().astype(np.uint16), (3, 3))
    hot = plain.copy()
    hot[20:22, 30:32] = 65535
    expected, found = (
        read_grey(save(tmp_path / f"{name}.png", Image.fromarray(pixels))).pixels.astype(int)
        for name, pixels in (("plain", plain), ("hot", hot))
    )
    hot[20:22, 30:32] = 0
    assert np.abs(found - expected)[hot > 0].max() <= 2


def test_what_is_not_finite_outside_the_head_is_background(tmp_path):
    values = np.zeros((40, 60), np.float32)
    values[8:32, 10:50] = np.add.outer(np.arange(24), np.arange(40)) + 10
    plain = read_grey(save(tmp_path / "a.tif", Image.fromarray(values))).pixels
    values[values == 0] = np.nan
    values[0, 0] = np.inf
    found = read_grey(save(tmp_path / "b.tif", Image.fromarray(values))).pixels
    assert not found[:8].any()
    assert np.abs(found.astype(int) - plain)[8:32, 10:50].max() <= 40  # black is the head's own darkest now


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [NONE, DEFLATE, PACK_BITS])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_signed_and_float_pixels_of_a_tiff_are_read_in_the_order_of_its_bytes(tmp_path, order, compression, dtype):
    values = np.linspace(-7000, 21000, 40 * 60).reshape(40, 60).astype(dtype)
    grey = read_grey(write_tiff(tmp_path / "a.tif", values, order, t259=compression))
    np.testing.assert_array_equal(grey.pixels, rescaled(values))


def test_wide_tiff_in_which_white_is_zero_is_inverted(tmp_path):
    wide = ramp().astype(np.uint16) * 100
    grey = read_grey(write_tiff(tmp_path / "a.tif", wide, t262=0))
    np.testing.assert_array_equal(grey.pixels, 255 - rescaled(wide))
    assert "inverted" in grey.notes[-1]


def wide_png(path: Path, pixels: np.ndarray, colour: int) -> Path:
    """Write 16-bit colours, which Pillow cannot."""
    rows = b"".join(b"\x00" + row.tobytes() for row in pixels.astype(">u2"))
    return write_png(path, pixels.shape[1], pixels.shape[0], 16, colour, zlib.compress(rows))


TWELVE_BITS = np.add.outer(np.arange(40) * 60, np.arange(60) * 20).astype(np.uint16)  # 0 .. 3520
OPAQUE = np.full_like(TWELVE_BITS, 65535)


@pytest.mark.parametrize("colour", [2, 4, 6])
def test_sixteen_bit_colours_of_a_png_lose_no_bit(tmp_path, colour):
    channels = {2: [TWELVE_BITS] * 3, 4: [TWELVE_BITS, OPAQUE], 6: [TWELVE_BITS] * 3 + [OPAQUE]}[colour]
    grey = read_grey(wide_png(tmp_path / "a.png", np.dstack(channels), colour))
    np.testing.assert_array_equal(grey.pixels, rescaled(TWELVE_BITS))
    assert re.fullmatch(r"16-bit colours rescaled from \d+\.\.\d+ to 0\.\.255", *grey.notes)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("extra", [{}, {"t338": 0}, {"t338": 1}, {"t338": 2}, {"t274": 3}])
def test_sixteen_bit_colours_of_a_tiff_lose_no_bit(tmp_path, order, extra):
    opacity = [OPAQUE] if "t338" in extra else []
    pixels = np.dstack([*[TWELVE_BITS] * 3, *opacity])
    grey = read_grey(write_tiff(tmp_path / "a.tif", pixels, order, **extra)).pixels
    np.testing.assert_array_equal(grey[::-1, ::-1] if "t274" in extra else grey, rescaled(TWELVE_BITS))


def test_sixteen_bit_colours_that_lie_apart_or_are_inks_are_refused(tmp_path):
    pixels = np.dstack([TWELVE_BITS] * 4)
    for path in (
        write_tiff(tmp_path / "planes.tif", pixels[..., :3], t284=2),
        write_tiff(tmp_path / "inks.tif", pixels, t262=5),
    ):
        check_unreadable(path, "in an order that is not read; save it as PNG")


def test_half_transparent_sixteen_bit_colours_lie_on_black(tmp_path):
    pixels = np.dstack([*[TWELVE_BITS] * 3, OPAQUE // 2])
    grey = read_grey(wide_png(tmp_path / "a.png", pixels, 6))
    assert np.abs(grey.pixels - rescaled(TWELVE_BITS) * (127 / 255)).max() <= 1
    assert grey.notes[-1] == "transparency composited on black"


def test_a_cameras_second_picture_is_noted(tmp_path):
    path = save(
        tmp_path / "a.jpg", GREY.convert("RGB"), format="MPO", save_all=True, append_images=[GREY.convert("RGB")]
    )
    assert any("several pictures" in note for note in read_grey(path).notes)


FORMATS = {"png": {}, "jpg": {}, "bmp": {}, "tif": {}, "webp": {"lossless": True}, "gif": {}, "pgm": {}, "jp2": {}}


@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_files_are_refused(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (60, 80), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(noise), **FORMATS[suffix])
    check_cut(path, 0.3, 0.6, 0.9, words="truncated or damaged.*; copy or download it again, or remove it")


@pytest.mark.parametrize(
    "content",
    [b"Patient list, 2021\n", b"BMI of all patients\n" * 9, b"%PDF-1.7", b"%!PS-Adobe EPSF", b"PK\x03\x04", b"\0"],
)
def test_files_that_are_no_images(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert not looks_like_image(path)
    remedy = "unpack it" if content.startswith(b"PK") else "convert it to PNG"
    check_unreadable(path, rf"is not an image in a known format \(PNG, JPEG.*; remove it or {remedy}")


def test_missing_empty_folder_pipe_and_broken_links(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    reasons = {
        "missing.png": "does not exist",
        "empty.png": "zero bytes",
        "folder.png": "is a folder",
        "broken.png": "link to nothing",
        "loop.png": "cannot be opened",
        "pipe.png": "not a regular file",
    }
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImageError, match=reason) as caught:
            read_grey(tmp_path / name)
        assert caught.value.path == str(tmp_path / name)
        assert caught.value.remedy


def test_no_permission(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", GREY)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # chmod would not stop a test that runs as root
    check_unreadable(path, "may not be read by this user; give read permission")


def refused():
    """Yield what a file holds, and why it is not read."""
    mask = np.zeros((96, 120), np.uint8)
    mask[20:70, 30:90] = 255
    levels = np.tile(np.arange(15, dtype=np.uint8) * 16, (96, 8))
    hot = np.where(np.arange(levels.size).reshape(levels.shape) % 150 == 7, 250, levels).astype(np.uint8)
    noise = np.random.default_rng(0).integers(100, 115, (96, 120)).astype(np.uint8)
    blank = {"black": mask * 0, "white": mask * 0 + 255, "mask": mask, "levels": levels, "hot": hot, "noise": noise}
    blank |= {"wide": mask.astype(np.uint16) * 9, "dot": mask[:1, :1]}
    for name, pixels in blank.items():
        yield f"{name}.png", pixels, {}, r"fewer than 16 grey levels.*; remove it, or export the scan again"
    for value in (np.nan, np.inf, -np.inf):
        pixels = ramp().astype(np.float32)
        pixels[3, 4] = value
        yield f"{value}.tif", pixels, {}, r"that are not finite numbers; replace NaN"
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - ramp())]}
    for suffix in ("gif", "png", "webp", "tif"):
        yield f"a.{suffix}", ramp(), frames, "several frames; save the one frame"


@pytest.mark.parametrize(("name", "pixels", "options", "reason"), refused())
def test_a_picture_of_nothing_or_of_too_much_is_refused(tmp_path, name, pixels, options, reason):
    path = save(tmp_path / name, Image.fromarray(pixels), **options)
    check_unreadable(path, reason)


def test_levels_are_counted_on_the_head_alone(tmp_path):
    frame = np.zeros((240, 240), np.uint8)
    frame[:, :20] = np.arange(240, dtype=np.uint8)[:, None]  # a colour bar
    inside = np.add.outer(np.square(np.arange(240) - 120), np.square(np.arange(240) - 120)) < 60**2
    frame[inside] = 180
    check_unreadable(save(tmp_path / "mask.png", Image.fromarray(frame)), "fewer than 16 grey levels")
    frame[inside] = 180 + np.arange(inside.sum()) % 16
    assert read_grey(save(tmp_path / "head.png", Image.fromarray(frame))).pixels.shape == (240, 240)


def test_the_error_travels_between_processes():
    error = UnreadableImageError("is broken", "mend it", "a.png")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.path, copy.reason, copy.remedy) == ("a.png", "is broken", "mend it")
    assert str(copy) == "a.png: is broken; mend it"


def gigantic_files(folder: Path) -> list[Path]:
    """Small valid files, their dimensions then overwritten in the header by gigantic ones."""
    patches = {  # where each format keeps width and height
        "png": (16, struct.pack(">II", 200_000, 200_000)),
        "bmp": (18, struct.pack("<ii", 200_000, 200_000)),
        "gif": (6, struct.pack("<HH", 65_535, 65_535)),
        "webp": (24, (16_382).to_bytes(3, "little") * 2),
    }
    paths = []
    for suffix, (start, dimensions) in patches.items():
        image = GREY.convert("RGBA") if suffix == "webp" else GREY
        path = save(folder / f"gigantic.{suffix}", image, **({"exif": b"Exif\x00\x00"} if suffix == "webp" else {}))
        data = bytearray(path.read_bytes())
        data[start : start + len(dimensions)] = dimensions
        if suffix == "png":
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        path.write_bytes(data)
        paths.append(path)
    path = save(folder / "gigantic.jpg", GREY)
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_535, 65_535)
    path.write_bytes(data)
    plain = folder / "gigantic.pgm"
    plain.write_bytes(b"P5 900000 900000 255\n" + b"\0" * 100)
    return [*paths, path, plain]


def zip_bomb(path: Path) -> Path:
    """A real image of 144 megapixels in a 140 kB file: all black, so that deflate shrinks it a thousand times."""
    return save(path, Image.new("L", (12_000, 12_000)), compress_level=9)


def test_gigantic_dimensions_are_refused_from_the_header_in_little_memory(tmp_path):
    paths = [*gigantic_files(tmp_path), zip_bomb(tmp_path / "bomb.png")]
    assert paths[-1].stat().st_size < 200_000
    program = """
import resource, sys, warnings
warnings.simplefilter("ignore")
from brainq_torch.data.reading.grey import UnreadableImageError
from brainq_torch.data.reading.image import read_grey
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read_grey(path)
    except UnreadableImageError as error:
        assert "gigantic" in error.reason or "truncated" in error.reason, error
        assert not path.endswith(("png", "bmp", "jpg", "gif", "pgm")) or "gigantic" in error.reason, error
    else:
        raise SystemExit(f"{path} was read")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    command = [sys.executable, "-c", program, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[4], check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64  # MiB; decoded, the bomb alone would be 144


def test_the_largest_allowed_image_is_read_and_one_row_more_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("brainq_torch.data.reading.grey.MAX_PIXELS", 2400)
    assert read_grey(save(tmp_path / "a.png", GREY)).pixels.size == 2400
    path = save(tmp_path / "b.png", Image.new("L", (60, 41)))
    check_unreadable(path, "gigantic dimensions, 60 x 41 pixels")
    assert MAX_PIXELS == 40_000_000
