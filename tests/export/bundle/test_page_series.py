"""The browser page reads volumes and DICOM series as Python does, and answers them by the same rule."""
# ruff: noqa: E402
# (the imports below need packages that may be absent, and then the file is skipped)

import gzip
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom", reason="the optional extra 'medical' is not installed")
nibabel = pytest.importorskip("nibabel", reason="the optional extra 'medical' is not installed")

from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLosslessSV1

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.reading import dicom_header, image
from brainq_torch.data.reading.grey import UnreadableImageError
from brainq_torch.data.reading.image import read_grey, read_slice
from brainq_torch.data.reading.slices import is_mask_by_name
from brainq_torch.data.synthesis.phantom import render_phantom
from brainq_torch.series.answer import answer_series
from brainq_torch.series.find import Series, find_series
from brainq_torch.series.rule import SeriesRule
from export.bundle.answers import BundledModel
from tests.brainq_torch.data.reading.test_dicom import group, look_up_table, write_dicom
from tests.export.bundle.test_web import PAGE, hash_of, read_in_node
from tests.support.stacks import write_enhanced, write_stacks

DEPTH = 8
OBLIQUE = np.array([[-0.9, 0.1, 0.2, 90.0], [0.1, 0.05, 1.9, -120.0], [0.05, -1.1, 0.1, 60.5], [0, 0, 0, 1]])


def head(depth=DEPTH):
    """(depth, 80, 64) uint16: phantoms in 12 bits, the ends of which are empty."""
    slices = [np.pad(render_phantom(place % 4, 64, seed=place, size=64), ((9, 7), (0, 0))) for place in range(depth)]
    volume = np.stack(slices).astype(np.uint16) * 13
    volume[0] = volume[-1] = 0
    return volume


def write_volumes(folder):
    values = head()
    plain = nibabel.Nifti1Image(values.T.astype(np.int16), np.diag([-1, -1.5, 3, 1]))
    plain.header.set_slope_inter(0.37, -5)
    nibabel.save(plain, folder / "plain.nii.gz")
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), OBLIQUE), folder / "oblique.nii")
    turned = nibabel.Nifti1Image(values.transpose(1, 0, 2).astype(np.uint8), None)
    turned.set_qform(OBLIQUE)
    turned.set_sform(None, code=0)
    nibabel.save(turned, folder / "quaternion.nii")
    for kind in (np.int64, np.uint64):  # as NumPy's whole numbers are by default
        nibabel.save(
            nibabel.Nifti1Image(values.astype(kind) << 40, OBLIQUE, dtype=kind), folder / f"{kind.__name__}.nii"
        )
    hollow = values.astype(np.float64) / 7
    hollow[:, :3] = np.nan
    unknown = nibabel.Nifti1Image(hollow, np.eye(4))
    unknown.set_sform(None, code=0)
    unknown.set_qform(None, code=0)
    nibabel.save(unknown, folder / "nowhere.nii")
    nibabel.save(nibabel.Nifti1Image(np.stack([values, values[::-1]], -1), np.eye(4)), folder / "two.nii")
    second = nibabel.Nifti2Image(values.astype(np.int16), OBLIQUE * 1.01)
    second.header.set_slope_inter(0.37, -5)
    nibabel.save(second, folder / "second.nii.gz")
    turned = nibabel.Nifti2Image(values, None, nibabel.Nifti2Header(endianness=">"))
    turned.set_qform(OBLIQUE)
    turned.set_sform(None, code=0)
    nibabel.save(turned, folder / "turned.nii")
    pair = nibabel.Nifti1Pair(values.astype(np.int16), OBLIQUE, nibabel.nifti1.Nifti1PairHeader(endianness=">"))
    nibabel.save(pair, folder / "pair.hdr")
    nibabel.save(pair, folder / "both.img.gz")  # and both.hdr.gz
    odd = bytearray(gzip.decompress((folder / "plain.nii.gz").read_bytes()))
    odd[76:92] = np.array([2, -1, 0, -3], "<f4").tobytes()  # sizes of voxels that make no sense
    odd[252:256] = np.array([1, 0], "<i2").tobytes()
    (folder / "odd.nii").write_bytes(odd)
    odd[252:256] = np.array([1, 200], "<i2").tobytes()  # no kind of orientation has this number
    odd[280:328] = (np.diag([2, -3, -4, 1]) @ OBLIQUE)[:3].astype("<f4").tobytes()
    (folder / "kind.nii").write_bytes(odd)
    (folder / "zipped.hdr").write_bytes((folder / "pair.hdr").read_bytes())
    (folder / "zipped.img.gz").write_bytes(gzip.compress((folder / "pair.img").read_bytes()))


def write_series(folder, name, **more):
    (folder / name).mkdir()
    for place, stored in enumerate(head()):
        tags = {"SeriesInstanceUID": f"1.2.{len(name)}", "InstanceNumber": place, "SeriesDescription": name}
        tags |= {"ImagePositionPatient": [0, 0, 40 - 5.1 * place], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        write_dicom(folder / name / f"IM{place}", stored, **tags | more)


def write_all(folder):
    write_volumes(folder)
    write_series(folder, "plain")
    write_series(folder, "cut")  # the file of one slice: it still is one
    cut = folder / "cut" / "IM3"
    cut.write_bytes(cut.read_bytes()[:-4000])
    write_series(folder, "joined")  # from two folders, of which the first has the last slice
    (folder / "first").mkdir()
    (folder / "joined" / "IM0").rename(folder / "first" / "IM0")
    window = {"WindowCenter": [900, 40], "WindowWidth": [1500, 80], "RescaleSlope": 0.5, "RescaleIntercept": -3}
    write_series(folder, "window", **window)
    inverted = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0, "PixelSpacing": [1, 0.7]}
    write_series(folder, "inverted", **inverted)
    sigmoid = {"WindowCenter": 900, "WindowWidth": 900, "VOILUTFunction": "SIGMOID", "ImageType": ["A", "B", "P"]}
    write_series(folder, "sigmoids", **sigmoid)
    write_series(folder, "3-plane loc", BodyPartExamined="KOPF", BitsStored=12, HighBit=15)
    write_series(folder, "cardiac", BodyPartExamined="CARDIAC", PixelSpacing=[1])
    write_series(folder, "implicit1", syntax=ImplicitVRLittleEndian, BodyPartExamined="BRAIN", BitsStored=12)
    names = {"": "Schadel", "ISO_IR 192": "Schä 頭", "ISO_IR 101": "Głowa", "ISO_IR 144": "Голова", "GB18030": "头部"}
    for place, (letters, title) in enumerate(names.items()):  # with a window that is there and empty
        named = {"SpecificCharacterSet": letters, "SeriesDescription": title, "SeriesInstanceUID": f"1.3.{place}"}
        write_series(folder, f"letters{place}", WindowCenter="", WindowWidth="", **named)
    japanese = {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "SeriesDescription": "頭部"}
    write_series(folder, "no function", **window | japanese | {"VOILUTFunction": ""})
    write_series(folder, "other function", **window | {"VOILUTFunction": "CUBIC"})
    write_series(folder, "half a window", WindowCenter="900\\", WindowWidth="1500\\")  # a second one that is empty
    write_odd(folder)
    frames = head(4)[1:3]
    groups = [
        group(
            FrameVOILUTSequence=[group(WindowCenter=centre, WindowWidth=1500)],
            PlanePositionSequence=[group(ImagePositionPatient=[0, 0, centre])],
        )
        for centre in (600, 700)
    ]
    tags = {"PerFrameFunctionalGroupsSequence": groups, "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    write_dicom(folder / "enhanced.dcm", frames, NumberOfFrames=2, SeriesInstanceUID="1.2.99", **tags)
    write_stacks(folder / "stacks")
    write_enhanced(folder / "echoes.dcm")
    cut = frames.tobytes()[:-200]  # within the second frame: the first is answered
    write_dicom(folder / "cut.dcm", frames, NumberOfFrames=2, SeriesInstanceUID="1.2.98", PixelData=cut)


def write_odd(folder):
    """Write series as old and odd scanners do."""
    odd = {
        "table": {"VOILUTSequence": look_up_table(8)},
        "packed table": {"VOILUTSequence": look_up_table(8, np.uint8), "ModalityLUTSequence": look_up_table(12)},
        "table below": {"VOILUTSequence": look_up_table(16, first=-200), "RescaleIntercept": -300},
        "empty table": {"VOILUTSequence": look_up_table(8, held=0), "WindowCenter": 900, "WindowWidth": 900},
        "slope alone": {"RescaleSlope": 2, "WindowCenter": 900, "WindowWidth": 900},
        "one sample": {"SamplesPerPixel": None, "ImageType": ["ORIGINAL", "PRIMARY", "VELOCITY MAP"]},
        "IM numbers": {"InstanceNumber": 1234, "syntax": ImplicitVRLittleEndian},
    }  # fmt: skip
    for place, (name, tags) in enumerate(odd.items()):
        write_series(folder, name, SeriesInstanceUID=f"1.4.{place}", **tags)
    for path in (folder / "IM numbers").iterdir():
        path.write_bytes(path.read_bytes().replace(b"1234", b"IM 3"))
    write_dicom(folder / "unsaid.dcm", head(4)[1:3], SeriesInstanceUID="1.2.97")


def in_python(folder):
    found = {}
    for series in find_series([str(folder)]):
        rows = found.setdefault(series.path, [])
        for one in series.slices:
            row = {"title": series.title, "position": one.position_mm, "unfit": one.unfit}
            try:
                grey = read_slice(one)
                rows.append(
                    row | {"sha256": hash_of(grey.pixels), "shape": [*grey.pixels.shape], "notes": [*grey.notes]}
                )
            except UnreadableImageError as error:
                rows.append(row | {"error": f"{error.reason}; {error.remedy}"})
    return found


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    write_all(folder)
    return folder


def test_the_page_reads_volumes_and_series_as_python_does(page, scans, tmp_path):
    paths = sorted(path for path in scans.rglob("*") if path.is_file())
    found, expected = read_in_node(tmp_path, paths, series=True, page=page), in_python(scans)
    assert list(found) == list(expected)
    for path, rows in expected.items():
        assert len(found[path]) == len(rows)
        for number, (one, other) in enumerate(zip(found[path], rows, strict=True)):
            assert one["position"] == pytest.approx(other["position"]), path
            cut = ["truncated or damaged" in row.get("error", "") for row in (one, other)]
            assert cut[0] == cut[1] == ((path.removeprefix(f"{scans}/"), number) in {("cut", 4), ("cut.dcm", 1)})
            same = other.keys() - {"position", "error"}
            assert {key: one[key] for key in same} == {key: other[key] for key in same}, (path, number)


def test_the_page_lists_the_kinds_of_pictures_that_python_lists():
    text = (PAGE / "dicom.js").read_text(encoding="utf-8")
    listed = {name: re.search(rf"const {name} =\s(.+?);\n", text, re.DOTALL)[1].strip() for name in (
        "HEAD", "LOCALIZER", "IMAGELESS", "IMAGES", "UNSAID", "UNFIT",
    )}  # fmt: skip
    said = [json.loads(re.sub(r",(?=\s*})", "", listed[name])) for name in ("IMAGES", "UNSAID", "UNFIT")]
    unfit = {what: set(values) for what, values in said[2].items()}
    assert (*map(tuple, said[:2]), unfit) == (dicom_header._IMAGES, dicom_header._UNSAID, dicom_header._UNFIT)
    assert listed["HEAD"] == f"/{dicom_header._HEAD.pattern}/"
    assert listed["LOCALIZER"] == f"/{dicom_header._LOCALIZER.pattern}/"
    assert listed["IMAGELESS"] == f"/{image._IMAGELESS.pattern.decode()}/s"


def test_the_page_refuses_what_it_cannot_decode(page, tmp_path):
    stored = head()[2]
    write_dicom(tmp_path / "ct", stored, Modality="CT")
    write_dicom(tmp_path / "mosaic", stored, ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"])
    write_dicom(tmp_path / "compressed", stored, JPEGLosslessSV1, PixelData=encapsulate([b"\xff\xd8"]))
    write_dicom(tmp_path / "frames", stored, NumberOfFrames=2_000_000_000)
    write_dicom(tmp_path / "private", SOPClassUID="1.3.46.670589.11.0.0.12.4", PixelData=None)
    write_dicom(tmp_path / "samples", np.dstack([stored] * 3).astype(np.uint8), Rows=80, Columns=64, SamplesPerPixel=3)
    write_dicom(tmp_path / "bits", stored, BitsStored=0)
    whole = write_dicom(tmp_path / "whole", stored).read_bytes()
    (tmp_path / "cut").write_bytes(whole[:3000])
    frames = pydicom.Dataset(pydicom.dcmread(write_dicom(tmp_path / "bare", head(4), NumberOfFrames=4)))
    frames.save_as(tmp_path / "bare", implicit_vr=False, little_endian=True)
    (tmp_path / "bare").write_bytes((tmp_path / "bare").read_bytes()[:-4])  # the third frame is the one shown
    with pytest.raises(UnreadableImageError, match="truncated or damaged"):
        read_grey(tmp_path / "bare")
    nibabel.save(nibabel.Nifti1Image(head(), np.eye(4)), tmp_path / "a.nii")
    (tmp_path / "cut.nii").write_bytes((tmp_path / "a.nii").read_bytes()[:9000])
    long = bytearray((tmp_path / "a.nii").read_bytes())
    long[252:260] = np.array([1, 0, 0, 16384], "<u2").tobytes()  # by its quaternion alone, which begins with 2
    (tmp_path / "long.nii").write_bytes(long)
    beyond = head().astype(float)
    beyond[:2, 40, 0] = [-1e308, 1e308]
    nibabel.save(nibabel.Nifti1Image(beyond, np.eye(4)), tmp_path / "beyond.nii")
    nibabel.save(nibabel.Nifti1Pair(head(), np.eye(4)), tmp_path / "half.img")
    (tmp_path / "half.img").unlink()
    (tmp_path / "portal.zip").write_bytes(b"PK\3\4" + bytes(500))
    reasons = {
        "portal.zip": "is an archive; unpack it, and choose its folder",
        "half.hdr": "one half of a NIfTI pair",
        "ct": "modality 'CT'",
        "mosaic": "a mosaic",
        "compressed": "damaged DICOM file (JPEG Lossless",
        "frames": "has 2000000000 frames",
        "private": "without an image",
        "samples": "has 3 samples in each pixel of MONOCHROME2",
        "bits": "its bits make no sense",
        "cut": "truncated",
        "bare": "truncated",
        "cut.nii": "missing",
        "long.nii": "orientation makes no sense",
        "beyond.nii": "beyond all bounds",
    }
    found = read_in_node(tmp_path, [tmp_path / name for name in reasons], page=page)
    for name, reason in reasons.items():
        assert reason in found[str(tmp_path / name)]["error"], name


def test_the_page_says_of_a_cut_header_and_of_another_encoding_what_python_says(page, tmp_path):
    """The data set may be encoded otherwise than its transfer syntax says, or that be missing."""
    for kind, syntax in (("explicit", ExplicitVRLittleEndian), ("implicit", ImplicitVRLittleEndian)):
        whole = write_dicom(tmp_path / kind, head()[2], syntax).read_bytes()
        for end in range(200, whole.index(b"\xe0\x7f\x10\0") + 8, 7):
            (tmp_path / f"cut {kind} {end}").write_bytes(whole[:end])
    start = {kind: (tmp_path / kind).read_bytes().index(b"\x08\0\x16\0") for kind in ("explicit", "implicit")}
    for meta, data in (("explicit", "implicit"), ("implicit", "explicit")):
        swapped = (tmp_path / meta).read_bytes()[: start[meta]] + (tmp_path / data).read_bytes()[start[data] :]
        (tmp_path / f"{data} under {meta}").write_bytes(swapped)
    unnamed = (tmp_path / "explicit").read_bytes().replace(b"\x02\0\x10\0UI", b"\x02\0\x11\0UI")
    (tmp_path / "no syntax").write_bytes(unnamed)
    packed = (tmp_path / "implicit under explicit").read_bytes()
    packed = packed.replace(b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x001.2.840.10008.1.2.4.50")
    (tmp_path / "packed").write_bytes(packed)
    paths = sorted(tmp_path.iterdir())
    found = read_in_node(tmp_path, paths, page=page)
    assert "damaged DICOM file (JPEG: " in found.pop(str(tmp_path / "packed"))["error"]
    read = {path for path, answer in found.items() if "sha256" in answer}
    for path, answer in found.items():
        if path in read:
            assert answer["sha256"] == hash_of(read_grey(path).pixels)
            continue
        assert "is a truncated or damaged DICOM file" in answer["error"], path
        with pytest.raises(UnreadableImageError, match="is truncated or damaged"):
            read_grey(path)
    assert len(read) == 5
    assert len(found) > 100


def test_the_page_leaves_masks_out_as_python_does(tmp_path):
    names = ("a_mask.png", "Masks/a.png", "masks/deep/a.png", "annotation/a.png", "mask.png")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render_phantom(0, 3, size=40)).save(tmp_path / name)
    for classes in (["glioma", "notumor"], ["masks", "notumor"]):
        paths = [tmp_path / name for name in names]
        found = read_in_node(tmp_path, paths, classes=classes, together=True)
        left_out = {path for path, answer in found.items() if "is a mask by its name" in answer.get("error", "")}
        assert left_out == {str(path) for path in paths if is_mask_by_name(path, classes)}
        assert len(left_out) == {"glioma": 3, "masks": 2}[classes[0]]


def test_page_and_python_unpack_nifti_alone(page, tmp_path):
    """Any other gzip file is refused alike, and told what to do: the page once read what all commands refused."""
    plain, volume = write_dicom(tmp_path / "a", head()[2]), tmp_path / "volume.nii"
    picture = tmp_path / "a.png"
    Image.fromarray(render_phantom(0, 64, seed=0, size=64)).save(picture)
    nibabel.save(nibabel.Nifti1Image(head(), np.eye(4)), volume)
    for path in (plain, picture, volume):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    found = read_in_node(tmp_path, sorted(tmp_path.glob("*.gz")), page=page)
    assert "sha256" in found.pop(str(tmp_path / "volume.nii.gz"))
    assert found.keys() == {str(tmp_path / "a.gz"), str(tmp_path / "a.png.gz")}
    for path, answer in found.items():
        with pytest.raises(UnreadableImageError) as refused:
            read_grey(path)
        assert "is not an image in a known format" in refused.value.reason
        assert answer["error"] == f"is a gzip file of something else than NIfTI; {refused.value.remedy}"


def test_the_rule_says_what_pythons_says(tmp_path):
    random, jobs, expected = np.random.default_rng(0), [], []
    for number in range(60):
        values = random.dirichlet([0.3, 0.3, (0.3, 30)[number % 2], 0.3], number % 9)
        counts = (random.random(len(values)) < 0.8).tolist()
        classes = list(CLASSES) if number % 10 else ["a", "b", "c", "d"]
        rule = SeriesRule() if number % 3 else SeriesRule(2, 0.4, 0.6, 2)
        said = rule.judge(classes, values, counts)
        jobs.append({"classes": classes, "probabilities": values.tolist(), "counts": counts, "rule": rule.to_json()})
        expected.append(said)
    for found, said in zip(read_in_node(tmp_path, [], rule=jobs)["rule"], expected, strict=True):
        assert found["probability"] == pytest.approx(said.probability)
        assert [found[key] for key in ("label", "best", "reason")] == [said.label, said.best, said.reason]
        assert found["strongest"] == said.strongest
    assert {said.label for said in expected} >= {None, "notumor"}


def test_in_chromium_a_knee_alone_is_answered_with_a_warning(browser, int8_bundle, tmp_path):
    write_dicom(tmp_path / "knee", head()[3], BodyPartExamined="KNEE")
    (tmp_path / "cut").write_bytes((tmp_path / "knee").read_bytes()[:400])
    with browser.showing(int8_bundle):
        browser.choose("#files", [tmp_path / "knee"])
        (answer,) = browser.answers(1)
        warned = browser.evaluate("document.querySelector('article .class').textContent")
        about = browser.evaluate("document.getElementById('about').textContent")
        browser.choose("#files", [tmp_path / "cut"])
        browser.answers(2)
        assert "parseDicomDataSetExplicit" in browser.evaluate("document.querySelector('article .error').textContent")
        assert browser.width_on_a_phone() == 390  # a long word breaks
    assert "no slice through a head: do not rely on the answer" in warned  # it is what stands out, no class does
    assert answer["warning"] == warned
    assert warned not in answer["notes"]
    assert "at most 0.01, a tumour from 0.02, else uncertain" in about


def test_in_chromium_a_series_is_stepped_through_and_answered(browser, int8_bundle, scans, tmp_path):
    files = [*sorted((scans / "plain").iterdir()), scans / "plain.nii.gz"]
    answerer = BundledModel.load(int8_bundle).answerer()
    rows = [one.row for one in answer_series(answerer, find_series(list(map(str, files))))]
    with browser.showing(int8_bundle):
        browser.choose("#files", files)
        found = browser.answers(2)
        for name, dark, width in (("wide", False, 1000), ("phone", True, 390)):
            browser.screenshot(tmp_path / f"{name}.png", width, 1400, dark, mobile=dark)
        assert browser.width_on_a_phone() == 390
        browser.evaluate("document.querySelector('.strip').focus()")
        current = "Number(document.querySelector('article').dataset.slice)"
        before = browser.evaluate(current)
        browser.send("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", code="ArrowLeft")
        assert browser.evaluate(current) == before - 1
        browser.send("Input.dispatchKeyEvent", type="keyDown", key="End", code="End")
        caption = browser.evaluate("document.querySelector('article figcaption').textContent")
        assert caption.startswith(f"slice {DEPTH} of {DEPTH}")
    assert not browser.problems
    in_order = []
    for said in found:
        names = {said["path"], str(scans / said["path"])} | ({str(scans / "plain")} if said["path"] == "." else set())
        series = next(row for row in rows if row["level"] == "series" and row["path"] in names)
        mine = [row for row in rows if row["level"] == "slice" and row["series"] == series["series"]]
        assert [row["class"] for row in said["rows"]] == [row["class"] for row in mine]
        for one, other in zip(said["rows"], mine, strict=True):
            if other["probabilities"]:
                assert one["probabilities"] == pytest.approx(other["probabilities"])
        in_order.append(series)
        assert said["limits"] == [0.01, 0.02]
        for key in ("class", "best", "reason", "counts", "carried_by", "notes", "limits", "limits_from"):
            assert said[key] == series[key], (said["path"], key)
    assert in_order == [row for row in rows if row["level"] == "series"]


def test_in_chromium_a_folder_is_dropped(browser, int8_bundle, tmp_path):
    folder = tmp_path / "CD"
    (folder / "deep").mkdir(parents=True)
    write_series(folder / "deep", "plain")
    packed = {"syntax": JPEGLosslessSV1, "PixelData": encapsulate([b"\xff\xd8"])}
    write_series(folder / "deep", "packed", **packed)
    write_dicom(folder / "frames", head()[2], NumberOfFrames=3, SeriesInstanceUID="1.2.99", **packed)
    for number in range(2):
        write_dicom(folder / f"CT{number}", head()[2], Modality="CT")
    directory = pydicom.dcmread(write_dicom(folder / "DICOMDIR", head()[2]))
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.save_as(folder / "DICOMDIR")
    (folder / "DICOMDIR").write_bytes((folder / "DICOMDIR").read_bytes()[:400])
    shutil.copytree(folder / "deep" / "plain", folder / "deep" / "plain - copy")
    first = sorted((folder / "deep" / "plain").iterdir())[0]
    (folder / "damaged").write_bytes(first.read_bytes()[:-100])
    nowhere = {"SeriesInstanceUID": "1.2.97", "SOPInstanceUID": "1.2.4"}
    for number, place in enumerate((2, 3, 2)):  # the last is the first
        write_dicom(folder / f"nowhere{number}", head()[place], **nowhere)
    for name in (".hidden.png", "VIEWER.EXE", "deep/empty"):
        (folder / name).write_bytes(b"")
    Image.fromarray(np.diag(np.full(40, 255, np.uint8))).save(folder / "scan_mask.png")
    with browser.showing(int8_bundle):
        browser.drop([folder])
        found = browser.answers(8)
    by_path = {said["path"]: said for said in found}
    assert len(by_path) == 8
    assert len(by_path["CD/deep/plain"]["rows"]) == DEPTH
    assert len(by_path["CD"]["rows"]) == 2
    left_out = {path: (said["files"], said["error"]) for path, said in by_path.items() if said.get("left_out")}
    assert left_out.pop("CD/scan_mask.png")[1].startswith("is a mask by its name")
    assert left_out.pop("CD/nowhere2")[0] == 1 + DEPTH
    ((files, error),) = left_out.values()
    assert (files, error.startswith("has modality 'CT'")) == (2, True)
    assert "truncated or damaged" in by_path.pop("CD/damaged")["error"]
    faults = {said["files"]: said["error"] for said in by_path.values() if said.get("left_out") is False}
    assert faults.keys() == {1, DEPTH}  # a file of several frames is one
    assert all("damaged DICOM file (JPEG Lossless: " in error for error in faults.values())
    assert not browser.problems


def test_in_chromium_a_check_and_answers_wait_for_each_other(browser, int8_bundle, scans):
    with browser.showing(int8_bundle):
        browser.choose("#files", sorted((scans / "plain").iterdir()))
        browser.evaluate("document.getElementById('verify').click()")
        browser.drop([scans / "plain.nii.gz"])
        found = browser.answers(2)
    assert [len(said["rows"]) for said in found] == [DEPTH, DEPTH]
    assert all(row["class"] for said in found for row in said["rows"])


def test_in_chromium_answers_stand_in_pythons_order_above_those_before(browser, int8_bundle, tmp_path):
    for name in ("z.png", "b/a.png", "b/c/a.png", "b.png", "b/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render_phantom(0, 64, seed=0, size=64)).save(tmp_path / name)
    (tmp_path / "b" / "broken.png").write_bytes(b"")
    paths = [series.path for series in find_series([str(tmp_path)]) if isinstance(series, Series)]
    with browser.showing(int8_bundle):
        browser.choose("#files", [tmp_path / "z.png"])
        browser.answers(1)
        browser.drop([tmp_path])
        found = [said["path"] for said in browser.answers(len(paths) + 2)]
    assert len(paths) == 5
    expected = [*paths, str(tmp_path / "b" / "broken.png")]
    assert found == [*(path.replace(str(tmp_path), tmp_path.name) for path in expected), "z.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is Unicode")
def test_in_chromium_a_folder_of_no_readable_name_is_named_and_holds_nothing_up(browser, int8_bundle, tmp_path):
    for folder in (b"good", b"sch\xe4del"):
        (tmp_path / "CD" / os.fsdecode(folder)).mkdir(parents=True)
        picture = Image.fromarray(render_phantom(0, 64, seed=0, size=64))
        picture.save(tmp_path / "CD" / os.fsdecode(folder) / "a.png")
    with browser.showing(int8_bundle):
        browser.drop([tmp_path / "CD"])
        found = browser.answers(2)
    refused = {said["path"]: "name that the browser cannot read" in said.get("error", "") for said in found}
    assert refused == {"CD/good/a.png": False, "CD/": True}
