"""The browser page reads TIFF files as Python does, and refuses what is damaged or of a kind that it does not read."""

import numpy as np
import pytest
from PIL import Image

from tests.brainq_torch.data.reading.test_checksums import COLOURS, KINDS, choose_bits, strips, tiles
from tests.export.bundle.test_web import read_in_node, read_in_python
from tests.support.pictures import DEFLATE, NONE, PACK_BITS, write_tiff

GREY = COLOURS[..., 0].astype(np.int32) * 257 + np.arange(40, dtype=np.int32)
SIGNED, FLOAT = (GREY - 9000).astype(np.int16), (GREY * 0.37 - 5).astype(np.float32)
WIDE = np.dstack([GREY, GREY // 2, 65535 - GREY]).astype(np.uint16)
OPACITY = COLOURS[..., 1]
PLANES = [part for plane in COLOURS.transpose(2, 0, 1) for part in strips(plane)]
SAVED = {
    "L": Image.fromarray(COLOURS[..., 0]),
    "RGB": Image.fromarray(COLOURS),
    "I16": Image.fromarray(GREY.astype(np.uint16)),
    "I": Image.fromarray(GREY * 9),
    "F": Image.fromarray(FLOAT),
    "P": Image.fromarray(COLOURS).quantize(60),
    "LA": Image.fromarray(np.dstack([COLOURS[..., 0], OPACITY]), "LA"),
    "RGBA": Image.fromarray(np.dstack([COLOURS, OPACITY])),
}


def write_kinds(folder):
    """Write what Pillow writes, and what it does not: signed and big-endian pixels, tiles, planes, turned pictures."""
    for name, image in SAVED.items():
        for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
            image.save(folder / f"{name}_{compression}.tif", compression=compression)
        predictor = 3 if name == "F" else 2
        if name != "P":
            image.save(folder / f"{name}_predictor.tif", compression="tiff_lzw", tiffinfo={317: predictor})
    for order in "<>":
        place = {"<": "little", ">": "big"}[order]
        for name, values in {"colours": WIDE, "signed": SIGNED, "float": FLOAT, "long": GREY}.items():
            for compression in (NONE, DEFLATE, PACK_BITS):
                write_tiff(folder / f"{name}_{place}_{compression}.tif", values, order, t259=compression)
        differences = np.diff(SIGNED, axis=1, prepend=np.int16(0))
        write_tiff(folder / f"differences_{place}.tif", differences, order, t259=DEFLATE, t317=2)
        write_tiff(folder / f"white_{place}.tif", FLOAT, order, t262=0)
    for turned in range(1, 9):
        for name, values in {"grey": COLOURS[..., 0], "wide": WIDE}.items():
            write_tiff(folder / f"{name}_turned_{turned}.tif", values, t274=turned)
    write_tiff(folder / "white_8.tif", COLOURS[..., 0], t262=0)
    write_tiff(folder / "white_16.tif", GREY.astype(np.uint16), t262=0)
    write_tiff(folder / "opaque.tif", np.dstack([WIDE, GREY.astype(np.uint16)]), t338=2)
    write_tiff(folder / "spare.tif", np.dstack([WIDE, GREY.astype(np.uint16)]), t338=0)
    write_tiff(folder / "tiles.tif", COLOURS, parts=tiles(COLOURS), t259=DEFLATE, t322=16, t323=16)
    write_tiff(folder / "planes.tif", COLOURS, parts=PLANES, t259=PACK_BITS, t284=2, t278=7)


def test_the_page_sees_of_a_tiff_what_python_sees(page, tmp_path):
    write_kinds(tmp_path)
    paths = sorted(tmp_path.glob("*.tif"))
    assert len(paths) == 89
    found = read_in_node(tmp_path, paths, page=page)
    for path in paths:
        expected = read_in_python(path)
        assert "error" not in expected, path.name
        assert found[str(path)] == expected, path.name


def test_a_kind_that_the_page_does_not_read_is_named(page, tmp_path):
    colours = SAVED["RGB"]
    colours.save(tmp_path / "compressed by JPEG.tif", compression="jpeg")
    colours.convert("CMYK").save(tmp_path / "4 x 8 bits, photometric interpretation 5.tif")
    SAVED["L"].save(tmp_path / "several frames.tif", save_all=True, append_images=[SAVED["L"]])
    write_tiff(tmp_path / "1 x 64 bits.tif", FLOAT.astype(np.float64))
    write_tiff(tmp_path / "shows fewer than 16 grey levels.tif", COLOURS[..., 0] // 200)
    holes = FLOAT.copy()
    holes[20, 20] = np.nan
    write_tiff(tmp_path / "on the head that are not finite.tif", holes)
    paths = sorted(tmp_path.glob("*.tif"))
    found = read_in_node(tmp_path, paths, page=page)
    assert [path.stem for path in paths if path.stem not in found[str(path)]["error"]] == []


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_tiff_that_is_cut_short_is_refused(page, tmp_path, compression):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80)).astype(np.uint8))
    noise.save(tmp_path / "whole.tif", compression=compression)
    whole = (tmp_path / "whole.tif").read_bytes()
    paths = [tmp_path / f"{kept}.tif" for kept in range(5, len(whole), len(whole) // 40)]
    for path in paths:
        path.write_bytes(whole[: int(path.stem)])
    found = read_in_node(tmp_path, paths, page=page, specs=[])
    assert ["error" in found[str(path)] for path in paths] == ["error" in read_in_python(path) for path in paths]
    assert all("error" in answer for answer in found.values())


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", [name for name in KINDS if name.endswith(".tif")])
def test_a_flipped_bit_of_a_deflated_tiff_never_gives_other_pixels(page, tmp_path, name):
    path = tmp_path / name
    KINDS[name](path)
    whole = path.read_bytes()
    paths = [path]
    for bit in choose_bits(path, whole):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        paths.append(tmp_path / f"{bit}.tif")
        paths[-1].write_bytes(damaged)
    found = read_in_node(tmp_path, paths, page=page, specs=[])
    (expected, *answers) = [found[str(path)].get("sha256") for path in paths]
    assert expected
    assert set(answers) <= {expected, None}
    assert answers.count(None) > 0.7 * len(answers)
