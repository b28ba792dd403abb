"""Files to series: order, grouping, and what is passed over."""
# ruff: noqa: E402
# (the imports below need packages that may be absent, and then the file is skipped)

import gzip
import os
import shutil
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

nibabel = pytest.importorskip("nibabel", reason="the optional extra 'medical' is not installed")
pydicom = pytest.importorskip("pydicom", reason="the optional extra 'medical' is not installed")

from pydicom.fileset import FileSet

from brainq_torch.data.dataset.left_out import why_left_out
from brainq_torch.data.reading.image import read_slice
from brainq_torch.data.reading.slices import SliceChoiceError, choose_slices
from brainq_torch.series.find import Unread, find_images, find_series
from tests.brainq_torch.data.reading.test_dicom import group, write_dicom

AXIAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]
STORED = (np.add.outer(np.arange(40) * 20, np.arange(60) * 10) + 5).astype(np.uint16)


def write_series(folder: Path, uid: str, positions, orientation=AXIAL, **tags):
    """Write a slice for each position in mm, named at random, so that names say nothing."""
    folder.mkdir(exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    names = np.random.default_rng(len(positions)).permutation(len(positions))
    for number, (name, position) in enumerate(zip(names, positions, strict=True)):
        place = [float(value) for value in normal * position]
        more = {"ImagePositionPatient": place, "ImageOrientationPatient": list(map(float, orientation))}
        more |= {"SeriesInstanceUID": uid, "InstanceNumber": number + 1, "SeriesDescription": "T1 post"} | tags
        write_dicom(folder / f"{uid}_{name}.dcm", STORED + number, **more)


def test_dicom_files_are_grouped_by_series_and_sorted_by_position(tmp_path):
    write_series(tmp_path / "a", "1.2.3001", [30.0, 10.0, -5.5, 20.0])
    write_series(tmp_path / "a", "1.2.3002", [8.0, 4.0], SAGITTAL)
    Image.fromarray(STORED.astype(np.uint8)).save(tmp_path / "a" / "picture.png")
    (tmp_path / "a" / "empty.dcm").write_bytes(b"")
    empty, picture, *series = find_series([str(tmp_path / "a")])
    assert isinstance(empty, Unread)
    assert (picture.name, len(picture.slices)) == ("", 1)
    assert {one.name: [found.position_mm for found in one.slices] for one in series} == {
        "1.2.3001": [-5.5, 10.0, 20.0, 30.0], "1.2.3002": [4.0, 8.0],
    }  # fmt: skip
    assert {one.title for one in series} == {"T1 post"}


def test_files_of_a_series_named_one_by_one_are_one_series(tmp_path):
    write_series(tmp_path / "a", "1.2.3", [3.0, 2.0, 1.0])
    (series,) = find_series(sorted(map(str, (tmp_path / "a").iterdir())))
    assert [found.position_mm for found in series.slices] == [1.0, 2.0, 3.0]
    assert series.path == str(tmp_path / "a")


def write_cd(folder):
    """Write two series of two slices with a DICOMDIR, and return its path."""
    said = {"StudyInstanceUID": "1.2", "PatientID": "7", "PatientName": "A^B", "StudyDate": "20200101", "StudyID": "1"}
    said |= {"StudyTime": "101010", "SeriesNumber": 1, "AccessionNumber": ""}
    files = FileSet()
    for uid in ("1.2.3", "1.2.4"):
        write_series(folder / uid, uid, [1.0, 2.0], **said)
        for path in (folder / uid).iterdir():
            files.add(path)
    files.write(folder / "cd")
    return folder / "cd" / "DICOMDIR"


def test_a_dicomdir_leads_to_its_images_and_a_cd_is_searched_without_a_word_about_it(tmp_path, monkeypatch):
    directory = write_cd(tmp_path)
    places = [[one.path for one in series.slices] for series in find_series([str(directory)])]
    assert places == [[one.path for one in series.slices] for series in find_series([str(directory.parent)])]
    assert [len(place) for place in places] == [2, 2]
    with monkeypatch.context() as locked:
        locked.setattr(os, "listdir", Mock(side_effect=PermissionError))  # the folder may be entered, and not listed
        assert set(find_images([str(directory)])) == {path for place in places for path in place}
    Path(places[0][0]).unlink()
    gone, *left = find_series([str(directory)])
    assert "does not exist" in gone.error
    assert [len(series.slices) for series in left] == [1, 2]


def test_of_a_damaged_dicomdir_the_rest_is_answered_and_it_says_so(tmp_path):
    """Whether the lengths of what it lists are said or not: it is cut, or a part of it is zeros."""
    directory = write_cd(tmp_path)
    listed, image = directory.read_bytes(), pydicom.dcmread(directory)
    for each in image.DirectoryRecordSequence:
        each.is_undefined_length_sequence_item = True
    image["DirectoryRecordSequence"].is_undefined_length = True
    image.save_as(directory)
    images, lost = set(find_images([str(directory)])), 0
    for whole in (listed, directory.read_bytes()):
        places = range(len(whole) // 5, len(whole) - 1, 37)
        for wrong in (each for at in places for each in (whole[:at], whole[:at] + bytes(64) + whole[at + 64 :])):
            directory.write_bytes(wrong)
            found = list(find_images([str(directory)]))
            if len(images.intersection(found)) < 4:
                lost += 1
                assert isinstance(found[-1], Unread) or not all(map(os.path.isfile, found))
    assert lost > 100
    directory.write_bytes(whole[: len(whole) // 2])
    *found, said = find_images([str(directory)])
    assert 0 < len(found) < 4
    assert said.error.startswith("is truncated or damaged: it may have named more images; name its folder")


def test_a_dicomdir_without_images_says_so(tmp_path):
    FileSet().write(tmp_path)
    (said,) = find_images([str(tmp_path / "DICOMDIR")])
    assert said.error == "names no images; name its folder in place of it"


def test_other_modalities_are_left_out_beside_others_and_refused_alone(tmp_path):
    write_series(tmp_path / "a", "1.2.3", [1.0, 2.0])
    scan = write_dicom(tmp_path / "a" / "ct.dcm", STORED, Modality="CT")
    nameless = write_dicom(tmp_path / "a" / "nameless.dcm", STORED, Modality=None)
    damaged = write_dicom(tmp_path / "a" / "damaged.dcm", STORED, Modality=["MR", "LO P" * 5000])
    for words in ([str(tmp_path / "a")], sorted(map(str, (tmp_path / "a").iterdir()))):
        *others, series = find_series(words)
        assert len(series.slices) == 2
        found = {one.path: (one.left_out, one.error) for one in others}
        assert found[str(scan)] == (True, "has modality 'CT'; only MR images are read")
        assert found[str(nameless)][0] is False
        assert found[str(damaged)][0] is False
        assert len(found[str(damaged)][1]) < 500
    (alone,) = find_series([str(scan)])
    assert not alone.left_out


def test_a_copy_does_not_count_twice_and_is_named(tmp_path, monkeypatch):
    read: list[str] = []
    monkeypatch.setattr("brainq_torch.series.find.read_slice", lambda one: read.append(one.path))
    write_series(tmp_path / "a", "1.2.3", [1.0, 2.0], SOPInstanceUID="1.2.4")  # placeholders: their places differ
    nowhere = {"SeriesInstanceUID": "1.2.5", "SOPInstanceUID": "1.2.4"}
    for number in range(2):
        write_dicom(tmp_path / f"b{number}", STORED + number, **nowhere)  # nor do these say where they are
    shutil.copy(tmp_path / "b0", tmp_path / "c0")
    write_dicom(tmp_path / "c1", STORED + 1, **nowhere | {"SOPInstanceUID": "1.2.6"})
    shutil.copytree(tmp_path / "a", tmp_path / "copy of a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy once more")
    *copies, without, series = find_series([str(tmp_path)])
    assert [len(one.slices) for one in (without, series)] == [2, 2]
    assert series.path == str(tmp_path / "a")
    again = (tmp_path / "c0", tmp_path / "c1", *tmp_path.glob("copy */*"))
    assert {one.path for one in copies} == set(map(str, again))
    assert all(one.left_out and "is a copy" in one.error for one in copies)
    assert len(read) == len(set(read)) == 4


def test_a_damaged_copy_does_not_hide_the_sound_one(tmp_path):
    write_series(tmp_path / "b", "1.2.3", [1.0, 2.0])
    sound = sorted((tmp_path / "b").iterdir())
    damaged = tmp_path / "a"
    damaged.write_bytes(sound[0].read_bytes()[:-100])
    shutil.copy(sound[0], tmp_path / "c")
    fault, copy, series = find_series([str(tmp_path)])
    assert (fault.path, fault.left_out, "truncated" in fault.error) == (str(damaged), False, True)
    assert (copy.path, copy.left_out) == (str(sound[0]), True)
    assert [one.path for one in series.slices] == [str(tmp_path / "c"), str(sound[1])]


def test_what_is_locked_is_named_and_a_link_is_followed_once(tmp_path, monkeypatch):
    scans, outside = tmp_path / "scans", tmp_path / "outside"
    write_series(outside, "1.2.3", [1.0, 2.0])
    (scans / "locked").mkdir(parents=True)
    (scans / "link").symlink_to(outside)
    (outside / "back").symlink_to(scans)
    write_dicom(scans / "IM0", STORED)
    names = {str(scans / "locked"), str(scans / "IM0")}

    def refuse(real, path, *more, **words):
        if str(path) in names:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *more, **words)

    monkeypatch.setattr("os.scandir", partial(refuse, os.scandir))  # chmod would not stop a test that runs as root
    monkeypatch.setattr("builtins.open", partial(refuse, open))
    *locked, series = find_series([str(scans)])
    assert {one.path for one in locked if not one.left_out} == names
    assert len(series.slices) == 2


def test_frames_of_an_enhanced_file_are_placed_by_their_functional_groups(tmp_path):
    frames = [group(PlanePositionSequence=[group(ImagePositionPatient=[0.0, 0.0, z])]) for z in (9.0, 3.0, 6.0)]
    shared = [group(PlaneOrientationSequence=[group(ImageOrientationPatient=[float(value) for value in AXIAL])])]
    stored = np.stack([STORED, STORED[::-1], STORED[:, ::-1]])
    path = write_dicom(tmp_path / "a.dcm", stored, NumberOfFrames=3, SeriesInstanceUID="1.2.3",
                       PerFrameFunctionalGroupsSequence=frames, SharedFunctionalGroupsSequence=shared)  # fmt: skip
    (series,) = find_series([str(path)])
    assert [found.position_mm for found in series.slices] == [3.0, 6.0, 9.0]
    first, second, third = (read_slice(found).pixels for found in series.slices)
    np.testing.assert_array_equal(first, third[::-1])
    np.testing.assert_array_equal(second, third[:, ::-1])


def volume(path: Path, shape=(40, 50, 6), affine=None, kind=nibabel.Nifti1Image) -> Path:
    values = np.random.default_rng(0).integers(0, 3000, shape).astype(np.int16)
    nibabel.save(kind(values, np.diag([1.0, 1.0, 4.0, 1.0]) if affine is None else affine), path)
    return path


def test_the_gzipped_half_of_a_pair_is_no_image_of_its_own(tmp_path):
    header = volume(tmp_path / "a.hdr", kind=nibabel.Nifti1Pair)
    (tmp_path / "a.img.gz").write_bytes(gzip.compress((tmp_path / "a.img").read_bytes()))
    (tmp_path / "a.img").unlink()
    (series,) = find_series([str(tmp_path)])
    assert (series.path, len(series.slices)) == (str(header), 6)
    assert "read with that" in why_left_out(tmp_path / "a.img.gz")[0]
    assert why_left_out(header) is None
    zipped = tmp_path / "a.hdr.gz"  # as nibabel writes the pair a.img.gz
    zipped.write_bytes(gzip.compress(header.read_bytes()))
    header.unlink()
    (series,) = find_series([str(tmp_path)])
    assert (series.path, len(series.slices)) == (str(zipped), 6)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr"])
def test_a_volume_is_a_series_whose_middle_slice_is_what_an_image_is_read_as(tmp_path, name):
    path = volume(tmp_path / name, kind=nibabel.Nifti1Pair if name == "a.hdr" else nibabel.Nifti1Image)
    (series,) = find_series([str(tmp_path)])
    assert (series.name, series.path, len(series.slices)) == (str(path), str(path), 6)
    assert [found.position_mm for found in series.slices] == [0.0, 4.0, 8.0, 12.0, 16.0, 20.0]
    from brainq_torch.data.reading.image import read_grey

    np.testing.assert_array_equal(read_slice(series.slices[3]).pixels, read_grey(path).pixels)
    if name == "a.hdr":
        assert next(find_series([str(tmp_path / "a.img")])).path == str(path)


def test_slices_run_upwards_whatever_way_the_file_does(tmp_path):
    turned = np.diag([1.0, 1.0, -4.0, 1.0])
    up, down = (next(find_series([str(volume(tmp_path / name, affine=affine))])) for name, affine in
                (("up.nii", None), ("down.nii", turned)))  # fmt: skip
    assert [found.position_mm for found in down.slices] == [-20.0, -16.0, -12.0, -8.0, -4.0, 0.0]
    np.testing.assert_array_equal(read_slice(down.slices[0]).pixels, read_slice(up.slices[-1]).pixels)


PLANES = [("axial", 6, (50, 40)), ("coronal", 50, (24, 40)), ("sagittal", 40, (24, 50))]


@pytest.mark.parametrize(("plane", "count", "shape"), PLANES)
def test_a_plane_on_request(tmp_path, plane, count, shape):
    (series,) = find_series([str(volume(tmp_path / "a.nii"))], plane)
    assert len(series.slices) == count
    assert read_slice(series.slices[0]).pixels.shape == shape


def test_volumes_of_a_4d_file_are_series_and_of_many_the_first_is(tmp_path):
    two = list(find_series([str(volume(tmp_path / "two.nii.gz", (40, 50, 6, 2)))]))
    assert [one.name.rpartition("#")[2] for one in two] == ["1", "2"]
    assert not np.array_equal(read_slice(two[0].slices[0]).pixels, read_slice(two[1].slices[0]).pixels)
    (many,) = find_series([str(volume(tmp_path / "many.nii", (40, 50, 6, 9)))])
    assert (many.title, len(many.slices)) == ("volume 1 of 9", 6)


def test_words_for_slices():
    assert choose_slices(4, "all") == [1, 2, 3, 4]
    assert choose_slices(4, "middle") == choose_slices(4, "3") == [3]
    assert choose_slices(4, "5") == []
    assert choose_slices(9, "every=3") == [2, 5, 8]
    for word in ("", "0", "-1", "every=0", "every=", "most", "1.5"):
        with pytest.raises(SliceChoiceError, match="allowed are all, middle, a number from 1, and every=K"):
            choose_slices(4, word)
