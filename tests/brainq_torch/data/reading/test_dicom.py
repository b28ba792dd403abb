"""The DICOM reader, on files made by pydicom and on damaged ones."""
# ruff: noqa: E402
# (the imports below need a package that may be absent, and then the file is skipped)

import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom", reason="the optional extra 'medical' is not installed")

from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

from brainq_torch.data.reading import apart, dicom
from brainq_torch.data.reading.dicom import read_dicom
from brainq_torch.data.reading.dicom_header import read_header, use_functional_groups
from brainq_torch.data.reading.grey import OtherKindError, UnreadableImageError
from brainq_torch.data.reading.image import (
    is_meant_as_image,
    list_slices,
    looks_like_image,
    read_grey,
    read_origin,
    read_slice,
)
from tests.brainq_torch.data.reading.scale_rule import rescaled
from tests.support.lossless_jpeg import encode_lossless
from tests.support.unreadable import check_cut, check_damaged, check_unreadable

pytestmark = pytest.mark.filterwarnings(
    "ignore:(Invalid value for VR|Expected explicit VR)"
)  # pydicom, on damaged files

STORED = (np.add.outer(np.arange(40) * 20, np.arange(60) * 10) + 5).astype(np.uint16)  # 5 .. 1375


def write_dicom(path: Path, stored: np.ndarray = STORED, syntax: str = ExplicitVRLittleEndian, **tags) -> Path:
    """Write an MR image; a tag given as None is left out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    bits = stored.dtype.itemsize * 8
    values = {
        "SOPClassUID": MRImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "MR",
        "PatientID": "patient 7",
        "Rows": stored.shape[-2],
        "Columns": stored.shape[-1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "PixelData": stored.tobytes(),
        **tags,
    }
    image.update({name: value for name, value in values.items() if value is not None})
    image.save_as(path, enforce_file_format=True)
    return path


def group(**tags) -> pydicom.Dataset:
    """Return a functional group, or what stands in a sequence of one."""
    item = pydicom.Dataset()
    item.update(tags)
    return item


def windowed(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, written down apart from the reader."""
    fraction = (values - (centre - 0.5)) / (width - 1) + 0.5
    return np.rint(np.clip(fraction, 0, 1) * 255).astype(np.uint8)


def window(centre, width, **more):
    return {"WindowCenter": centre, "WindowWidth": width, **more}


SIGNED, WHITE_IS_ZERO = STORED.astype(np.int16) - 700, {"PhotometricInterpretation": "MONOCHROME1"}
PADDED = np.vstack([np.full((3, 60), -32000, np.int16), SIGNED])
EXACT, SIGMOID = ((STORED - 600.0) / 300, 1 / (1 + np.exp(-4 * (STORED - 600.0) / 300)))  # PS3.3 C.11.2.1.3
SCALED, APPLIED = r"DICOM values rescaled from \S+ to 0\.\.255", "VOI window centre 600 width 300 applied"
INVERTED = r"MONOCHROME1 \(white is zero\) inverted"

# Stored values and tags -> what is shown, and all notes.
SHOWN = {
    "plain": (STORED, {}, rescaled(STORED), r"DICOM values rescaled from 25\.\.1345 to 0\.\.255"),
    "implicit": (STORED, {"syntax": ImplicitVRLittleEndian}, rescaled(STORED), SCALED),
    "rescaled, then windowed": (
        STORED, window(900, 800, RescaleSlope=2, RescaleIntercept=-100), windowed(STORED * 2.0 - 100, 900, 800),
        "VOI window centre 900 width 800 applied",
    ),
    "slope alone": (STORED, window(600, 300, RescaleSlope=2), windowed(STORED * 2.0, 600, 300), APPLIED),
    "intercept alone": (STORED, window(600, 300, RescaleIntercept=-90), windowed(STORED - 90.0, 600, 300), APPLIED),
    "empty slope": (STORED, {"RescaleSlope": "", "RescaleIntercept": "5"}, rescaled(STORED), SCALED),
    "signed": (SIGNED, {}, rescaled(SIGNED), SCALED),
    "signed, windowed": (SIGNED, window(0, 500), windowed(SIGNED, 0, 500), "VOI window centre 0 width 500 applied"),
    "two windows": (
        STORED, window([600, 100], [300, 50]), windowed(STORED, 600, 300), f"first of 2 VOI windows; {APPLIED}",
    ),
    "half of two": (STORED, window("600\\", "300\\"), windowed(STORED, 600, 300), f"first of 2 VOI windows; {APPLIED}"),
    "exact": (STORED, window(600, 300, VOILUTFunction="LINEAR_EXACT"), np.clip(EXACT + 0.5, 0, 1) * 255, APPLIED),
    "sigmoid": (STORED, window(600, 300, VOILUTFunction="SIGMOID"), SIGMOID * 255, APPLIED),
    **{
        f"impossible window {place}": (STORED, window(*place), rescaled(STORED), rf"VOI window .* ignored; {SCALED}")
        for place in ((600, 0), (600, -5), (None, 100), (600, None))
    },
    "window elsewhere": (
        STORED, window(9000, 200), rescaled(STORED),
        f"VOI window centre 9000 width 200 misses nearly all pixels, ignored; {SCALED}",
    ),
    "white is zero": (STORED, WHITE_IS_ZERO, rescaled(-STORED.astype(int)), f"{SCALED}; {INVERTED}"),
    "white is zero, windowed": (
        STORED, window(600, 300, **WHITE_IS_ZERO), 255 - windowed(STORED, 600, 300), f"{APPLIED}; {INVERTED}",
    ),
    "padding": (
        PADDED, {"PixelPaddingValue": -32000}, np.vstack([np.zeros((3, 60)), rescaled(SIGNED)]),
        f"{SCALED}; padding pixels shown as the darkest",
    ),
    "bits above those stored": (STORED << 4, {"BitsStored": 12, "HighBit": 15}, rescaled(STORED), SCALED),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_stored_is_shown_as_its_tags_say(tmp_path, name):
    stored, tags, pixels, notes = SHOWN[name]
    grey = read_grey(write_dicom(tmp_path / "a.dcm", stored, **tags))
    np.testing.assert_array_equal(grey.pixels, np.rint(pixels))
    assert re.fullmatch(notes, "; ".join(grey.notes))


def test_content_decides_and_the_patient_becomes_a_group_without_a_name(tmp_path):
    path = write_dicom(tmp_path / "IM0001")
    assert looks_like_image(path)
    names = read_origin(path).names
    assert [len(name) for name in names] == [len("patient ") + 16]
    assert "patient 7" not in names[0]
    assert read_origin(path).label is None
    assert names == read_origin(write_dicom(tmp_path / "b.dcm", stored=STORED[::-1].copy())).names
    assert names != read_origin(write_dicom(tmp_path / "c.dcm", PatientID="patient 8")).names
    assert read_origin(write_dicom(tmp_path / "d.dcm", PatientID=None)).names == ()


@pytest.mark.parametrize(("patient", "is_nobody"), [("Anonymous", True), ("0000", True), ("N/A", True), ("A0", False)])
def test_a_placeholder_names_nobody(tmp_path, patient, is_nobody):
    (name,) = read_origin(write_dicom(tmp_path / "a.dcm", PatientID=patient)).names
    assert (name == f"placeholder {patient}") is is_nobody


def look_up_table(bits: int, kind: type = np.uint16, first: int = 0, held: int = 1000) -> list[pydicom.Dataset]:
    """A table of 1000 entries, of which some are held: two in a word where kind has 8 bits."""
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "SS" if first < 0 else "US", [1000, first, bits])
    entries = np.sqrt(np.linspace(0, 1, 1000)) * (2**bits - 1)
    table.add_new("LUTData", "OW", entries[:held].astype(kind).tobytes())
    return [table]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(("bits", "kind"), [(8, np.uint8), (8, np.uint16), (12, np.uint16), (16, np.uint16)])
def test_look_up_tables(tmp_path, bits, kind, syntax):
    stored = STORED.astype(np.int16) - 300
    place = np.clip(stored.astype(int) + 200, 0, 999)
    expected = np.floor(np.sqrt(np.linspace(0, 1, 1000)) * (2**bits - 1))[place]
    table = look_up_table(bits, kind, first=-200)
    path = write_dicom(tmp_path / "a.dcm", stored, syntax, VOILUTSequence=table, WindowCenter=9, WindowWidth=9)
    np.testing.assert_array_equal(read_grey(path).pixels, np.rint(expected / (2**bits - 1) * 255).astype(np.uint8))
    assert read_grey(path).notes == ("VOI look-up table applied",)
    path = write_dicom(tmp_path / "b.dcm", stored, syntax, ModalityLUTSequence=table, RescaleSlope=-1)
    np.testing.assert_array_equal(read_grey(path).pixels, rescaled(expected))


def test_an_empty_look_up_table_is_ignored_and_a_cut_one_refused(tmp_path):
    window = {"WindowCenter": 600, "WindowWidth": 300}
    for name in ("VOI", "Modality"):
        for table in ([pydicom.Dataset()], look_up_table(16, held=0)):
            grey = read_grey(write_dicom(tmp_path / "a.dcm", **{f"{name}LUTSequence": table}, **window))
            np.testing.assert_array_equal(grey.pixels, windowed(STORED.astype(float), 600, 300))
            assert grey.notes[0] == f"{name} look-up table without entries ignored"
    check_unreadable(write_dicom(tmp_path / "a.dcm", VOILUTSequence=look_up_table(16, held=900)), "has 900 of its")
    check_unreadable(write_dicom(tmp_path / "a.dcm", VOILUTSequence=look_up_table(7)), "look-up table of 7 bits")


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    grey = read_grey(write_dicom(tmp_path / "a.dcm", PixelSpacing=[1.0, 0.5]))  # rows 1 mm apart, columns 0.5 mm
    assert grey.pixels.shape == (80, 60)
    assert grey.notes[-1] == "pixels of 1 x 0.5 mm stretched to squares"


def test_colours_become_grey(tmp_path):
    colours = np.repeat(np.arange(2400).reshape(40, 60, 1) % 256, 3, axis=2).astype(np.uint8)
    colours[:8] = (200, 100, 50)
    path = write_dicom(
        tmp_path / "a.dcm",
        colours,
        Rows=40,
        Columns=60,
        SamplesPerPixel=3,
        PlanarConfiguration=0,
        PhotometricInterpretation="RGB",
    )
    grey = read_grey(path).pixels
    assert np.unique(grey[:8]).tolist() == [124]
    np.testing.assert_array_equal(grey[8:], colours[8:, :, 0])


def test_of_several_frames_the_middle_one_is_shown(tmp_path):
    frames = np.stack([STORED, STORED[::-1], STORED[:, ::-1]])
    path = write_dicom(tmp_path / "a.dcm", frames, NumberOfFrames=3)
    assert read_grey(path).notes[0] == "frame 2 of 3 shown"
    np.testing.assert_array_equal(read_grey(path).pixels, rescaled(frames[1].astype(float)))
    np.testing.assert_array_equal(read_dicom(path, frame=2).pixels, rescaled(frames[1].astype(float)))
    with pytest.raises(UnreadableImageError, match="no frame 4, its frames are 1 to 3"):
        read_dicom(path, frame=4)
    old = write_dicom(tmp_path / "b.dcm", frames, SamplesPerPixel=None)  # nor does it say how many frames it has
    assert read_grey(old).notes == read_grey(path).notes
    for number, one in enumerate(list_slices(old)):
        np.testing.assert_array_equal(read_slice(one).pixels, rescaled(frames[number].astype(float)))


def test_compressed_jpeg_and_rle(tmp_path):
    grey = (STORED // 6).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.jpg", quality=95)
    data = encapsulate([(tmp_path / "a.jpg").read_bytes()])
    path = write_dicom(tmp_path / "a.dcm", grey, JPEGBaseline8Bit, PixelData=data)
    assert np.abs(read_grey(path).pixels.astype(int) - rescaled(grey.astype(float))).max() <= 4
    image = pydicom.dcmread(write_dicom(tmp_path / "b.dcm"))
    image.compress(RLELossless)
    image.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(read_grey(tmp_path / "b.dcm").pixels, rescaled(STORED.astype(float)))


def test_lossless_jpegs_give_the_pixels_that_were_stored(tmp_path):
    pytest.importorskip("gdcm", reason="python-gdcm is not installed")
    stream = encode_lossless(STORED, selection=1, bits=16)
    path = write_dicom(tmp_path / "a.dcm", syntax=JPEGLosslessSV1, PixelData=encapsulate([stream]))
    np.testing.assert_array_equal(read_grey(path).pixels, rescaled(STORED))
    plain, compressed = map(get_testdata_file, ("MR_small.dcm", "MR_small_jpeg_ls_lossless.dcm"))
    np.testing.assert_array_equal(read_grey(plain).pixels, read_grey(compressed).pixels)
    broken = write_dicom(tmp_path / "b.dcm", syntax=JPEGLSLossless, PixelData=encapsulate([b"\xff\xd8\xff\xf7"]))
    check_unreadable(broken, r"cannot be decoded \(JPEG-LS Lossless.*; copy or download it again")


def test_a_file_that_ends_the_decoder_s_process_is_damaged_and_the_next_is_read():
    """As those do that make the decoder's library abort."""
    pytest.importorskip("gdcm", reason="python-gdcm is not installed")
    plain, compressed = map(get_testdata_file, ("MR_small.dcm", "MR_small_jpeg_ls_lossless.dcm"))
    read_grey(compressed)
    apart._children[os.getpid()].kill()
    check_unreadable(Path(compressed), "cannot be decoded .*the decoder crashed.; copy or download it again")
    np.testing.assert_array_equal(read_grey(plain).pixels, read_grey(compressed).pixels)


def test_an_answer_that_nobody_took_is_not_the_next_image_s(tmp_path, monkeypatch):
    """After Ctrl-C, and where the decoder takes too long."""
    first = write_dicom(tmp_path / "a.dcm")
    second = write_dicom(tmp_path / "b.dcm", STORED[::-1])
    np.testing.assert_array_equal(apart.decode_apart(str(first), index=0), STORED)
    with monkeypatch.context() as patched:
        patched.setattr(apart.pickle, "load", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            apart.decode_apart(str(first), index=0)
    np.testing.assert_array_equal(apart.decode_apart(str(second), index=0), STORED[::-1])
    with monkeypatch.context() as patched:
        patched.setattr(apart, "_PATIENCE_SECONDS", 0)
        patched.setattr(apart.pickle, "dump", Mock())  # it is never asked
        with pytest.raises(RuntimeError, match="the decoder crashed"):
            apart.decode_apart(str(first), index=0)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: apart.decode_apart(path, index=0)[0, 0], [str(first), str(second)] * 50))
    assert found == [STORED[0, 0], STORED[-1, 0]] * 50


def test_a_file_whose_beginning_misleads_is_read_once_for_all_of_its_frames(tmp_path, monkeypatch):
    """One that is encoded otherwise than its transfer syntax says: each frame was sent the whole file."""
    frames = np.stack([STORED + number for number in range(4)])
    path, plain = tmp_path / "a.dcm", write_dicom(tmp_path / "plain.dcm", frames, NumberOfFrames=4)
    image = pydicom.dcmread(plain)
    image.compress(RLELossless)
    image.save_as(path)
    start = 144 + int.from_bytes(path.read_bytes()[140:144], "little")
    with DicomBytesIO() as implicit:
        implicit.is_implicit_VR, implicit.is_little_endian = True, True
        write_dataset(implicit, pydicom.Dataset(image))
        path.write_bytes(path.read_bytes()[:start] + implicit.getvalue())
    monkeypatch.setattr(apart, "_ask", Mock(wraps=apart._ask))
    for one, other in zip(list_slices(path), list_slices(plain), strict=True):
        np.testing.assert_array_equal(read_slice(one).pixels, read_slice(other).pixels)
    assert [call.args[0][:2] for call in apart._ask.call_args_list] == [(str(path), True)] * 4
    walk = Mock(wraps=apart._list_fragments)
    monkeypatch.setattr(apart, "_list_fragments", walk)
    found = {apart._find_frame(image.PixelData, index, number_of_frames=4) for index in range(4)}
    assert (len(found), walk.call_count) == (4, 1)


def test_a_compression_without_decoder_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(get_decoder(JPEGLSLossless), "_available", {})  # whatever is installed
    monkeypatch.setattr(dicom, "decode_apart", lambda path, is_repaired, **options: pixel_array(path, **options))
    path = write_dicom(
        tmp_path / "a.dcm", syntax=JPEGLSLossless, PixelData=encapsulate([b"\xff\xd8\xff\xf7 not really"])
    )
    wanted = (
        r"is compressed \(JPEG-LS Lossless.*\), and no decoder of that is installed; python -m pip install python-gdcm"
    )
    check_unreadable(path, wanted)


TAGS = ("Rows", "Columns", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        *(({"Modality": name}, f"has modality '{name}'; only MR images are read") for name in ("CT", "SEG", "OT")),
        *(({"Modality": name}, "names no modality") for name in (None, "")),
        *(({"Modality": name}, r"damaged \(its modality is") for name in ("\x1bR", ["MR", "a\nb" * 5000])),
        *(({name: None}, f"has no {name}; export it again") for name in TAGS),
        ({"PixelData": None}, "has no pixels"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "has PhotometricInterpretation PALETTE COLOR"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope 0"),
        ({"RescaleSlope": "nan", "RescaleIntercept": 0}, "not finite"),
        (
            {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]},
            r"is a mosaic: many slices .*; convert its series to NIfTI",
        ),
    ],
)
def test_tags_that_are_refused_are_named(tmp_path, tags, words):
    check_unreadable(write_dicom(tmp_path / "a.dcm", **tags), words)


def test_truncated_and_damaged_files_end_in_the_one_error(tmp_path):
    check_cut(write_dicom(tmp_path / "a.dcm"), 0.05, 0.3, 0.7, 0.99)
    check_damaged(write_dicom(tmp_path / "b.dcm", WindowCenter=600, WindowWidth=300), 150, 3, slice(132, 1000))


def test_cut_off_in_its_header_is_damaged_and_not_of_another_kind(tmp_path):
    whole = write_dicom(tmp_path / "a.dcm", StudyInstanceUID="1.2.3").read_bytes()
    for end in range(140, whole.index(b"\xe0\x7f\x10\0") + 12):
        (tmp_path / "cut.dcm").write_bytes(whole[:end])
        with pytest.raises(UnreadableImageError, match="is truncated or damaged") as error:
            list_slices(tmp_path / "cut.dcm")
        assert not isinstance(error.value, OtherKindError)
    write_dicom(tmp_path / "plan.dcm", Modality="RTPLAN", PixelData=None)
    with pytest.raises(OtherKindError, match="has modality 'RTPLAN'"):
        list_slices(tmp_path / "plan.dcm")


def test_gigantic_dimensions_are_refused_before_decoding(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", Rows=65_000, Columns=65_000)
    check_unreadable(path, "gigantic dimensions, 65000 x 65000")
    with pytest.raises(UnreadableImageError, match="truncated or damaged"):  # within bounds, but the file is too short
        read_grey(write_dicom(tmp_path / "b.dcm", Rows=4000, Columns=4000))


def test_a_deflated_file_is_read_and_a_bomb_is_not_inflated(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", syntax=DeflatedExplicitVRLittleEndian)
    np.testing.assert_array_equal(read_grey(path).pixels, rescaled(STORED))
    whole = path.read_bytes()
    path.write_bytes(whole[:132] + whole[144:])  # without the length of its first group
    np.testing.assert_array_equal(read_grey(path).pixels, rescaled(STORED))
    monkeypatch.setattr("brainq_torch.data.reading.dicom_header._MAX_FILE_BYTES", STORED.nbytes)
    check_unreadable(path, "inflates to more than is read")


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_without_preamble_and_meta(tmp_path, implicit, little):
    image = pydicom.dcmread(write_dicom(tmp_path / "a.dcm"))
    if not little:
        image.PixelData = STORED.byteswap().tobytes()
    plain = pydicom.Dataset(image)
    plain.save_as(tmp_path / "b", implicit_vr=implicit, little_endian=little)
    assert looks_like_image(tmp_path / "b")
    np.testing.assert_array_equal(read_grey(tmp_path / "b").pixels, rescaled(STORED))


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 0, "WindowWidth": 900}])
def test_padding_is_the_darkest_in_either_polarity_and_type(tmp_path, kind, window):
    stored = STORED.astype(np.int16) - 700
    tags = {"PhotometricInterpretation": kind, **window}
    plain = read_grey(write_dicom(tmp_path / "a.dcm", stored[:, 10:], **tags)).pixels
    stored[:, :10] = -2000
    path = write_dicom(tmp_path / "b.dcm", stored, **tags)
    image = pydicom.dcmread(path)
    image.add_new(0x00280120, "US", 63536)  # signed pixels, but the tag's type is for unsigned ones
    image.save_as(path)
    padded = read_grey(path).pixels
    np.testing.assert_array_equal(padded[:, 10:], plain)
    assert (padded[:, :10] == plain.min()).all()


def test_a_scanners_private_file_without_pixels_is_of_another_kind(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", PixelData=None, SOPClassUID="1.3.46.670589.11.0.0.12.4")
    with pytest.raises(OtherKindError, match="without an image"):
        list_slices(path)


def test_numbers_that_are_none_say_nothing(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", PixelSpacing=[1.5, 1.5], WindowCenter=500.5, WindowWidth=100)
    path.write_bytes(path.read_bytes().replace(b"1.5\\1.5 ", b"1,5\\1,5 ").replace(b"500.5 ", b"500,5 "))
    np.testing.assert_array_equal(read_grey(path).pixels, rescaled(STORED))
    one = write_dicom(tmp_path / "b.dcm", PixelSpacing=[1.5], ImagePositionPatient=[1], ImageOrientationPatient=[1])
    np.testing.assert_array_equal(read_grey(one).pixels, rescaled(STORED))
    assert list_slices(one)[0].position_mm is None
    path = write_dicom(tmp_path / "c.dcm", InstanceNumber=1234)
    path.write_bytes(path.read_bytes().replace(b"1234", b"IM 3"))
    assert [found.place for found in list_slices(path)] == [(0, 0, 0)]
    assert len(read_grey(path).notes) == 1


@pytest.mark.parametrize("count", [-1, 2_000_000_000])
def test_a_number_of_frames_without_sense_is_refused(tmp_path, count):
    path = write_dicom(tmp_path / "a.dcm", NumberOfFrames=count)
    with pytest.raises(UnreadableImageError, match=f"has {count} frames"):
        list_slices(path)


def test_functional_groups_are_read_per_frame(tmp_path):
    shared = group(PixelMeasuresSequence=[group(PixelSpacing=[1.0, 0.5])])
    planes = ([1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1])
    groups = [
        group(
            FrameVOILUTSequence=[group(WindowCenter=centre, WindowWidth=300)],
            PlaneOrientationSequence=[group(ImageOrientationPatient=plane)],
            MRImageFrameTypeSequence=[group(FrameType=["ORIGINAL", "PRIMARY", kind, "NONE"])],
        )
        for centre, plane, kind in zip((600, 700), planes, ("M", "PHASE"), strict=True)
    ]
    tags = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": groups}
    path = write_dicom(tmp_path / "a.dcm", np.stack([STORED, STORED]), NumberOfFrames=2, **tags)
    for frame, centre in enumerate((600, 700), 1):
        header = read_header(path)
        use_functional_groups(header, frame - 1)
        assert header.ImageOrientationPatient == planes[frame - 1]
        grey = read_dicom(path, frame=frame)
        assert any("is a phase map" in note for note in grey.notes) is (frame == 2)
        np.testing.assert_array_equal(grey.pixels[::79], windowed(STORED.astype(float), centre, 300)[::39])
        assert grey.pixels.shape == (80, 60)


@pytest.mark.parametrize(
    ("tags", "unfit"),
    [
        ({"ImageType": ["DERIVED", "PRIMARY", "LOCALIZER"]}, "is a localizer (ImageType LOCALIZER)"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "is a phase map (ImageType P)"),
        ({"ImageType": ["DERIVED", "PRIMARY", "VELOCITY"]}, "is a velocity map (ImageType VELOCITY)"),
        ({"ComplexImageComponent": "IMAGINARY"}, "is an imaginary part (ImageType IMAGINARY)"),
        ({"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]}, "is a projection (ImageType PROJECTION IMAGE)"),
        ({"BodyPartExamined": "KNEE"}, "shows KNEE (BodyPartExamined)"),
        ({"BodyPartExamined": "CARDIAC"}, "shows CARDIAC (BodyPartExamined)"),
        ({"BodyPartExamined": "HEADNECK", "ImageType": ["ORIGINAL", "PRIMARY", "M"]}, ""),
        *(({"BodyPartExamined": part}, "") for part in ("KOPF", "SCHAEDEL", "CRANEO", "ENCEPHALE", "IAC", "UNKNOWN")),
        *(
            ({"SeriesDescription": name}, "is a localizer (SeriesDescription)")
            for name in ("3-pl loc", "SURVEY", "AAHScout", "FAST PILOT")
        ),
        ({"SeriesDescription": "T1 block"}, ""),
    ],
)
def test_what_is_no_slice_through_a_head_is_named(tmp_path, tags, unfit):
    path = write_dicom(tmp_path / "a.dcm", **tags)
    assert read_origin(path).unfit == unfit
    assert (read_grey(path).notes[0] == f"{unfit}, no slice through a head: do not rely on the answer") is bool(unfit)


STORAGES = [f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("88.11", "11.1", "104.1", "4.2", "66")]


@pytest.mark.parametrize("storage", [*STORAGES, "1.2.840.10008.1.3.10", "1.3.12.2.1107.5.9.1"])
def test_a_cd_has_files_without_an_image(tmp_path, storage):
    path = write_dicom(tmp_path / "a.dcm", PixelData=None)
    image = pydicom.dcmread(path)
    image.file_meta.MediaStorageSOPClassUID = storage
    image.save_as(path)
    assert not looks_like_image(path)
    assert not is_meant_as_image(path)
    check_unreadable(path, "without an image; leave it out")


def test_what_pydicom_warns_of_is_a_note(tmp_path, recwarn, monkeypatch):
    def decode(*_, **__):
        warnings.warn("odd length\nand more", stacklevel=1)
        return STORED

    monkeypatch.setattr("brainq_torch.data.reading.dicom.pixel_array", decode)
    assert read_grey(write_dicom(tmp_path / "a.dcm")).notes[-1] == "pydicom: odd length"
    assert not recwarn.list


def test_without_pydicom_the_remedy_is_the_extra(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    monkeypatch.delitem(__import__("sys").modules, "brainq_torch.data.reading.dicom")
    check_unreadable(path, r"needs the package pydicom; .*pip install '\.\[medical\]'")
