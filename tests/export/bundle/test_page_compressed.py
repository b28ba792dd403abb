"""The browser page decompresses DICOM as Python does: losslessly to the last bit, JPEG by the browser."""
# ruff: noqa: E402
# (the imports below need packages that may be absent, and then the file is skipped)

import zlib
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the optional extra 'medical' is not installed")
gdcm = pytest.importorskip("gdcm", reason="the optional extra 'medical' is not installed")

from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from brainq_torch.data.reading.grey import UnreadableImageError
from brainq_torch.data.reading.image import list_slices, read_slice
from brainq_torch.series.answer import answer_series
from brainq_torch.series.find import find_series
from export.bundle.answers import BundledModel
from tests.brainq_torch.data.reading.test_dicom import write_dicom
from tests.export.bundle.test_page_series import head
from tests.export.bundle.test_web import hash_of, read_in_node
from tests.support.lossless_jpeg import encode_lossless

KINDS = {
    JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
    JPEGLSNearLossless: gdcm.TransferSyntax.JPEGLSNearLossless,
    JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
    JPEG2000: gdcm.TransferSyntax.JPEG2000,
    RLELossless: gdcm.TransferSyntax.RLELossless,
    JPEGBaseline8Bit: gdcm.TransferSyntax.JPEGBaselineProcess1,
}
LOSSLESS = (JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless)


def compress(source, target, kind):
    """Write an image compressed."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(KINDS[kind]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def write_plain(folder):
    """Write heads as scanners do: 12 bits, signed, 8 bits, inverted with padding, several frames, colours."""
    values = head()[2]
    grey = (values // 13).astype(np.uint8)
    red = np.dstack([grey, grey // 2, 255 - grey])
    window = {"WindowCenter": 900, "WindowWidth": 1500, "RescaleSlope": 0.5, "RescaleIntercept": -3}
    inverted = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0, "PixelSpacing": [1, 0.7]}
    colours = {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0}
    colours |= {"Rows": red.shape[0], "Columns": red.shape[1]}
    return {
        "12 bits": write_dicom(folder / "12", values, BitsStored=12, HighBit=11, **window),
        "signed": write_dicom(folder / "signed", values.astype(np.int16) - 900, **window),
        "8 bits": write_dicom(folder / "8", grey),
        "inverted": write_dicom(folder / "inverted", values, **inverted),
        "frames": write_dicom(folder / "frames", head(6)[1:5], NumberOfFrames=4),
        "colours": write_dicom(folder / "colours", red, **colours),
    }


def in_python(path):
    return [read_slice(one) for one in list_slices(path)]


def test_what_is_compressed_gives_what_it_gave_before(page, tmp_path):
    """JPEG apart, which the browser decodes."""
    written = []
    for name, plain in write_plain(tmp_path).items():
        before = [grey.pixels for grey in in_python(plain)]
        for kind in KINDS.keys() - {JPEGBaseline8Bit}:
            compress(plain, path := tmp_path / f"{name} {kind.name}.dcm", kind)
            written.append(path)
            if kind in LOSSLESS:
                assert all(map(np.array_equal, before, [grey.pixels for grey in in_python(path)])), path.name
    check_same(page, tmp_path, written)
    assert len(written) == 42


def check_same(page, folder, paths):
    found = read_in_node(folder, paths, page=page, series=True)
    for path in paths:
        expected = [(hash_of(grey.pixels), list(grey.notes)) for grey in in_python(path)]
        assert [(one.get("sha256"), one.get("notes")) for one in found[str(path)]] == expected, (
            path.name,
            found[str(path)],
        )


def write_big_endian(path, name, kind, stored, **tags):
    """Write an image whose pixels are an element of this name and type; 8 bits in words lie two in each."""
    image = pydicom.dcmread(write_dicom(path, stored, **tags | {"PixelData": None}))
    held = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
    if kind == "OW" and stored.itemsize == 1:
        held = np.frombuffer(held + b"\0" * (len(held) % 2), "<u2").byteswap().tobytes()
    plain = pydicom.Dataset(image)
    plain.file_meta, plain[name] = image.file_meta, pydicom.DataElement(name, kind, held)
    plain.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    plain.save_as(path, implicit_vr=False, little_endian=False, enforce_file_format=True)
    return path


def test_rare_kinds_of_pixels_give_what_they_give_in_python(page, tmp_path):
    """Floats, 64 bits, 8 bits in words of big-endian files, chromas that two pixels share, a type that is unknown."""
    values, window = head()[2], {"WindowCenter": 400, "WindowWidth": 700}
    grey, floats = (values // 13).astype(np.uint8), values * 0.37 - 11
    unsaid = dict.fromkeys(("PixelData", "BitsStored", "HighBit", "PixelRepresentation"))
    single, double = floats.astype("<f4"), np.where(values < 100, -99999.0, floats)
    padded = unsaid | {"DoubleFloatPixelPaddingValue": -99999.0, "DoubleFloatPixelData": double.tobytes()}
    odd = np.stack([grey[:79, :63], grey[79:0:-1, 1:], grey[1:, 63:0:-1]])
    colours = {"PhotometricInterpretation": "YBR_FULL_422", "SamplesPerPixel": 3, "Rows": 80, "Columns": 64}
    shared = np.stack([grey[:, ::2], grey[:, 1::2], 140 - grey[:, ::2] // 3, 120 + grey[:, ::2] // 4], -1)
    inverted = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": -2000}
    written = [
        write_dicom(tmp_path / "float", single, FloatPixelData=single.tobytes(), **unsaid, **window),
        write_dicom(tmp_path / "said", single, PixelData=None, FloatPixelData=single.tobytes(), RescaleSlope=2),
        write_dicom(tmp_path / "double", double, **padded),
        write_dicom(tmp_path / "64", values.astype(np.uint64) << 40),
        write_dicom(tmp_path / "64 signed", np.where(values < 100, -2000, values.astype(np.int64)), **inverted),
        write_dicom(tmp_path / "12 of 64", values.astype(np.uint64) | 1 << 50, BitsStored=12, HighBit=11, **window),
        write_dicom(tmp_path / "shared", np.dstack([grey] * 3), PixelData=shared.tobytes(), **colours),
        write_big_endian(tmp_path / "words", "PixelData", "OW", grey),
        write_big_endian(tmp_path / "odd words", "PixelData", "OW", odd, NumberOfFrames=3),
        write_big_endian(tmp_path / "bytes", "PixelData", "OB", grey),
        write_big_endian(tmp_path / "float big", "FloatPixelData", "OF", single, **unsaid),
    ]
    plain = write_dicom(tmp_path / "unknown", values)
    plain.write_bytes(plain.read_bytes().replace(b"\xe0\x7f\x10\0OW", b"\xe0\x7f\x10\0UN"))
    check_same(page, tmp_path, [*written, plain])


def test_frames_are_found_in_fragments_with_and_without_a_table_of_offsets(page, tmp_path):
    plain, written = write_plain(tmp_path), []
    for name, kind in (("frames", JPEGLosslessSV1), ("frames", JPEG2000Lossless), ("12 bits", JPEGLSLossless)):
        compress(plain[name], tmp_path / "whole", kind)
        image = pydicom.dcmread(tmp_path / "whole")
        frames = list(generate_frames(image.PixelData, number_of_frames=int(image.get("NumberOfFrames", 1))))
        for fragments in (1, 3):
            for has_table in (True, False):
                image.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=has_table)
                image.SeriesInstanceUID = f"1.2.{len(written)}"
                image.save_as(path := tmp_path / f"{name} {kind.name} {fragments} {has_table}")
                written.append(path)
    check_same(page, tmp_path, written)


def test_a_table_of_offsets_that_lies_misleads_nobody_where_each_frame_is_a_fragment(page, tmp_path):
    """An empty one is no lie, and an extended one is of a type of its own."""
    plain, written = write_plain(tmp_path)["frames"], []
    for kind in (JPEGLosslessSV1, JPEGLSLossless, RLELossless):
        compress(plain, tmp_path / "whole", kind)
        image = pydicom.dcmread(tmp_path / "whole")
        frames = list(generate_frames(image.PixelData, number_of_frames=4))
        items = encapsulate(frames, has_bot=False)[8:]
        held, *extended = encapsulate_extended(frames)
        for offsets in ([0, 0, 0, 0], [0], [0, 10**8, 0, 4], [4, 5, 6, 7, 8], None):
            table = np.array(offsets or [], "<u4").tobytes()
            image.PixelData = b"\xfe\xff\0\xe0" + len(table).to_bytes(4, "little") + table + items
            if offsets is None:
                image.PixelData, (image.ExtendedOffsetTable, image.ExtendedOffsetTableLengths) = held, extended
            image.SeriesInstanceUID = f"1.2.{len(written)}"
            image.save_as(path := tmp_path / f"{len(written)}.dcm")
            written.append(path)
    check_same(page, tmp_path, written)
    expected = [hash_of(grey.pixels) for grey in in_python(plain)]
    assert all([hash_of(grey.pixels) for grey in in_python(path)] == expected for path in written)
    assert len(written) == 15


def test_lossless_streams_are_read_to_the_last_pixel_whatever_their_predictor_and_restarts(page, tmp_path):
    """Where one is cut, it is damaged: the rest was black."""
    plain, written = pydicom.dcmread(write_plain(tmp_path)["12 bits"]), []
    stored = plain.pixel_array
    plain.file_meta.TransferSyntaxUID = JPEGLossless
    for number in range(42):
        moved = np.roll(stored, number // 21, 1)  # its code ends at another bit
        stream = encode_lossless(moved, 1 + number % 7, (0, 1, 32)[number // 7 % 3])
        plain.PixelData, plain.SeriesInstanceUID = encapsulate([stream]), f"1.2.{number}"
        plain.save_as(path := tmp_path / f"{number}.dcm")
        written.append(path)
    check_same(page, tmp_path, written)
    assert len({hash_of(in_python(path)[0].pixels) for path in written}) == 2
    plain.PixelData = encapsulate([stream[: len(stream) // 2] + b"\xff\xd9"])
    plain.save_as(tmp_path / "cut.dcm")
    cut = read_in_node(tmp_path, [tmp_path / "cut.dcm"], page=page)[str(tmp_path / "cut.dcm")]
    assert "truncated or damaged DICOM file (JPEG Lossless: it is cut short)" in cut["error"]


def test_a_deflated_file_is_read_and_a_bomb_is_not(page, tmp_path):
    """With and without the byte that makes its length even."""
    image = pydicom.dcmread(write_plain(tmp_path)["12 bits"])
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    written = []
    for number in range(8):
        image.PatientID = "x" * number
        image.save_as(path := tmp_path / f"deflated {number}")
        written.append(path)
    check_same(page, tmp_path, written)
    whole = written[0].read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-2000])
    start = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(9, wbits=-15)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(520)) + packer.flush()
    (tmp_path / "bomb").write_bytes(whole[:start] + bomb)
    found = read_in_node(tmp_path, [tmp_path / "cut", tmp_path / "bomb"], page=page)
    assert "truncated or damaged DICOM file" in found[str(tmp_path / "cut")]["error"]
    assert "inflates to more than is read" in found[str(tmp_path / "bomb")]["error"]


def write_lies(folder, kind, rows, columns):
    """Write an image whose header says other sides, or fewer bits, than its stream does; RLE says no sides."""
    lies = [{"Rows": rows + 1}, {"Rows": 2 * rows}, {"Rows": rows // 2}, {"Columns": columns // 2}, {"Rows": rows - 1}]
    lies += [{"Columns": columns - 1}, {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}]
    if kind != RLELossless:
        lies += [{"Rows": columns, "Columns": rows}, {"Rows": rows // 2, "Columns": 2 * columns}, {"BitsStored": 8}]
    for number, lie in enumerate(lies):
        wrong = pydicom.dcmread(folder / "whole")
        wrong.update(lie)
        wrong.save_as(folder / f"{kind.name} d {number}")
    return [folder / f"{kind.name} d {number}" for number in range(len(lies))]


def test_what_is_damaged_is_refused_and_what_follows_is_read(page, tmp_path):
    plain, written = write_plain(tmp_path)["12 bits"], []
    for kind in (*LOSSLESS, JPEG2000, JPEGLSNearLossless):
        compress(plain, tmp_path / "whole", kind)
        image = pydicom.dcmread(tmp_path / "whole")
        (frame,) = generate_frames(image.PixelData, number_of_frames=1)
        for name, held in {
            "a empty": b"\xff\xd8",
            "b cut": frame[: len(frame) // 2 // 2 * 2],
            "c sound": frame,
        }.items():
            image.PixelData = encapsulate([held])
            image.save_as(path := tmp_path / f"{kind.name} {name}")
            written.append(path)
        written += write_lies(tmp_path, kind, image.Rows, image.Columns)
    found = read_in_node(tmp_path, written, page=page)
    for path in written:
        said = found[str(path)]
        if path.name.endswith("sound"):
            assert said["sha256"] == hash_of(in_python(plain)[0].pixels)
            continue
        assert "is a truncated or damaged DICOM file" in said["error"], path.name
        with pytest.raises(UnreadableImageError, match=r"cannot be decoded|truncated or damaged"):
            in_python(path)


def test_of_colours_the_stream_says_how_they_lie_and_not_that_they_are_grey(page, tmp_path):
    plain, sound, wrong = write_plain(tmp_path)["colours"], [], []
    for kind in (JPEGLosslessSV1, JPEG2000Lossless, JPEGLSLossless, RLELossless):
        compress(plain, path := tmp_path / f"{kind.name} planes", kind)
        image = pydicom.dcmread(path)
        image.PlanarConfiguration, image.SeriesInstanceUID = 1, f"1.2.{len(sound)}"
        image.save_as(path)
        sound.append(path)
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.save_as(path := tmp_path / f"{kind.name} grey")
        wrong.append(path)
    check_same(page, tmp_path, sound)
    compress(plain, shared := tmp_path / "shared", JPEGBaseline8Bit)  # which its header still calls red, green and blue
    before, now = (in_python(path)[0].pixels.astype(int) for path in (plain, shared))
    assert abs(now - before).max() <= 2
    assert {hash_of(in_python(path)[0].pixels) for path in sound} == {hash_of(in_python(plain)[0].pixels)}
    found = read_in_node(tmp_path, wrong, page=page)
    for path in wrong:
        assert "is a truncated or damaged DICOM file" in found[str(path)]["error"]
        with pytest.raises(UnreadableImageError, match="cannot be decoded"):
            in_python(path)


def test_in_chromium_what_is_compressed_is_answered(browser, int8_bundle, tmp_path):
    """The page's policy lets the codecs run; JPEG is decoded by the browser."""
    plain, written = write_plain(tmp_path), []
    kinds = {"8 bits": JPEGBaseline8Bit, "colours": JPEGBaseline8Bit, "12 bits": JPEGLSLossless}
    kinds |= {"signed": JPEG2000Lossless, "frames": JPEGLosslessSV1, "inverted": RLELossless}
    for name, kind in kinds.items():
        compress(plain[name], path := tmp_path / f"{name}.dcm", kind)
        written.append(path)
    with browser.showing(int8_bundle):
        browser.choose("#files", written)
        found = browser.answers(6)
    assert not browser.problems
    answerer = BundledModel.load(int8_bundle).answerer()
    rows = [one.row for one in answer_series(answerer, find_series(list(map(str, written))))]
    expected = {Path(row["path"]).name: row for row in rows}  # that of a series stands below its slices
    for said in found:
        row, name = expected[said["path"]], said["path"].removesuffix(".dcm")
        assert said["best"] == row["best"]
        if kinds[name] == JPEGBaseline8Bit:
            assert "may differ by 1 from Python's" in said["notes"][-1]
            assert said["probabilities"] == pytest.approx(row["probabilities"], abs=0.01)
        else:
            assert said["notes"] == row["notes"]
