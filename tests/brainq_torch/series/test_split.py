"""What shares a SeriesInstanceUID and is several stacks is answered as several; what is one stack as one."""

import pytest

from brainq_torch.series.find import find_series
from tests.brainq_torch.data.reading.test_dicom import STORED, write_dicom
from tests.support.stacks import ONE, SEVERAL, UIDS, UP, stack, write_enhanced, write_stacks


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stacks")
    write_stacks(folder)
    return folder


def positions(series):
    return [found.position_mm for found in series.slices]


@pytest.mark.parametrize("name", SEVERAL)
def test_each_stack_is_a_series_named_by_what_tells_it_apart(stacks, name):
    expected = SEVERAL[name][1]
    found = list(find_series([str(stacks / name)]))
    numbers = range(1, len(expected) + 1)
    assert [one.name for one in found] == [f"{UIDS[name]}#{number}" for number in numbers]
    assert [one.title.partition(": ")[0] for one in found] == [f"T2, {number} of {len(expected)}" for number in numbers]
    assert {one.title.partition(": ")[2]: positions(one) for one in found} == expected


@pytest.mark.parametrize("name", ONE)
def test_one_stack_stays_one_series(stacks, name):
    (series,) = find_series([str(stacks / name)])
    assert (series.name, len(series.slices)) == (UIDS[name], len(ONE[name]))
    ignored = ", PatientID is a new one in each file, ignored" if name == "an identifier each" else ""
    assert series.title == f"T2{ignored}"
    assert positions(series) == sorted(positions(series)) if name != "no position" else [None] * 3


def test_frames_of_an_enhanced_file_are_told_apart_too(tmp_path):
    expected = write_enhanced(tmp_path / "a.dcm")
    found = list(find_series([str(tmp_path / "a.dcm")]))
    assert {one.title.partition(": ")[2]: positions(one) for one in found} == expected
    assert [{bool(slice.unfit) for slice in one.slices} for one in found] == [{False}, {False}, {True}, {True}]


def test_images_of_two_patients_are_no_copies_of_each_other_whatever_their_identifiers_say(tmp_path):
    for patient in "AB":
        for number, tags in enumerate(stack(UP, PatientID=patient, SeriesInstanceUID="1.2.3", SOPInstanceUID="1.2.4")):
            write_dicom(tmp_path / f"{patient}{number}", STORED + number, **tags)
    assert [len(one.slices) for one in find_series([str(tmp_path)])] == [3, 3]
