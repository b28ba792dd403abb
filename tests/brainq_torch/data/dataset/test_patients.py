"""Which files are of one patient, by what their headers say."""

from brainq_torch.data.dataset.patients import join_patients
from brainq_torch.data.dataset.sample import ImageRecord


def record(place: int, *names: str) -> ImageRecord:
    return ImageRecord(f"{place}.dcm", 0, "all", "", names)


def groups(*records: ImageRecord) -> tuple[list[int], list[str]]:
    """The groups, numbered as they appear, and what was ignored."""
    joined, ignored = join_patients(records)
    found = [item.group for item in joined]
    assert not any(item.names for item in joined)
    return [found.index(group) for group in found], ignored


def test_a_study_joins_patients_and_a_patient_joins_studies():
    one, other = record(0, "patient a", "study s"), record(1, "patient b", "study s")
    far, alone = record(2, "patient b", "study t"), record(3, "patient c", "study u")
    assert groups(one, other, far, alone) == ([0, 0, 0, 3], [])
    assert groups(far, alone, other, one) == ([0, 1, 0, 0], [])


def test_a_placeholder_joins_nothing_and_is_named():
    found, (ignored,) = groups(record(0, "placeholder ANON", "study s"), record(1, "placeholder ANON", "study t"))
    assert found == [0, 1]
    assert ignored.startswith("PatientID 'ANON' of 2 files is a placeholder, ignored")


def test_one_patient_for_all_studies_joins_nothing():
    found, (ignored,) = groups(*(record(place, "patient a", f"study {place // 2}") for place in range(4)))
    assert found == [0, 0, 2, 2]
    assert "the same in all 4 files" in ignored
    assert groups(record(0, "patient a", "study s"), record(1, "patient a", "study s")) == ([0, 0], [])


def test_a_new_patient_for_each_file_of_a_study_is_named():
    found, (ignored,) = groups(*(record(place, f"patient {place}", f"study {place // 2}") for place in range(4)))
    assert found == [0, 0, 2, 2]
    assert "a new one in each of 4 files, ignored" in ignored
    assert groups(*(record(place, f"patient {place}", f"study {place}") for place in range(4))) == ([0, 1, 2, 3], [])


def test_records_without_names_keep_their_group():
    assert join_patients([ImageRecord("a.png", 0, "all", "7")])[0] == [ImageRecord("a.png", 0, "all", "7")]
