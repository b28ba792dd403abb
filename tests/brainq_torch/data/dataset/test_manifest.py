import numpy as np
import pytest

from brainq_torch.data.classes import Labels
from brainq_torch.data.dataset.load import scan_folder
from brainq_torch.data.dataset.manifest import (
    ManifestError,
    ManifestRow,
    assign_splits,
    make_manifest,
    manifest_folder,
    read_manifest,
    stratified_split,
    verify_manifest,
    write_manifest,
)
from brainq_torch.data.dataset.sample import ImageRecord

LABELS = [0] * 50 + [1] * 30 + [2] * 100 + [3] * 20


def test_split_takes_the_same_share_of_every_class():
    chosen = stratified_split(LABELS, 0.2, seed=0)
    assert np.bincount(np.array(LABELS)[chosen]).tolist() == [10, 6, 20, 4]


def test_split_depends_on_the_seed_alone():
    assert np.array_equal(stratified_split(LABELS, 0.2, 3), stratified_split(LABELS, 0.2, 3))
    assert not np.array_equal(stratified_split(LABELS, 0.2, 3), stratified_split(LABELS, 0.2, 4))


@pytest.mark.parametrize(
    ("labels", "fraction", "match"),
    [
        (LABELS, 1.0, "fraction is 1.0"),
        (LABELS, 0, "fraction is 0"),
        ([0, 0, 1], 0.5, "meningioma has a single"),
        ([0, 0, 1, 1], 0.1, "cannot be split"),
    ],
)
def test_impossible_splits_are_refused(labels, fraction, match):
    with pytest.raises(ValueError, match=match):
        stratified_split(labels, fraction, 0)


def test_drawn_validation_leaves_testing_alone():
    records = [ImageRecord("a", 0, "Training"), ImageRecord("b", 0, "Testing"), ImageRecord("c", 0, "Training")]
    assigned = assign_splits(records, np.array([False, True]))
    assert [record.split for record in assigned] == ["Training", "Testing", "val"]


def test_manifest_round_trip_and_its_images(tmp_path, phantoms):
    records = scan_folder(phantoms).records
    rows = make_manifest(phantoms, records)
    write_manifest(tmp_path / "manifest.csv", rows)
    assert read_manifest(tmp_path / "manifest.csv") == rows
    assert manifest_folder(phantoms, rows).records == records
    verify_manifest(phantoms, rows)


def test_changed_and_missing_images_are_named(tmp_path):
    for name in ("one.png", "two.png", "three.png"):
        (tmp_path / name).write_bytes(name.encode())
    rows = make_manifest(tmp_path, [ImageRecord(name, 0, "Training") for name in ("one.png", "two.png", "three.png")])
    (tmp_path / "one.png").write_bytes(b"another")
    (tmp_path / "two.png").unlink()
    with pytest.raises(ManifestError, match=r"2 of 3 .*one\.png has changed, two\.png is missing.*Restore them"):
        verify_manifest(tmp_path, rows)


@pytest.mark.parametrize(
    ("text", "match"),
    [("path,label\n", "has columns"), ("path,label,split,group,sha256\na,glioma,val,,0,9\n", "too many")],
)
def test_damaged_manifests_are_refused(tmp_path, text, match):
    with pytest.raises(ManifestError, match="is missing"):
        read_manifest(tmp_path / "manifest.csv")
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(ManifestError, match=match):
        read_manifest(tmp_path / "manifest.csv")


def test_labels_that_mean_no_class_of_a_question_are_refused(tmp_path):
    rows = [ManifestRow("a", "cyst", "val", "", "0"), ManifestRow("b", "glioma", "val", "", "0")]
    assert manifest_folder(tmp_path, rows).classes == ("cyst", "glioma")
    with pytest.raises(ManifestError, match=r"unknown classes \['cyst'\]; allowed are \['glioma'"):
        manifest_folder(tmp_path, rows, labels=Labels())


def test_a_manifest_may_start_with_a_byte_order_mark_and_must_be_utf_8(tmp_path):
    path = tmp_path / "manifest.csv"
    text = "path,label,split,group,sha256\nglioma/ü.png,glioma,val,,0\n"
    path.write_bytes(text.encode("utf-8-sig"))
    assert [row.path for row in read_manifest(path)] == ["glioma/ü.png"]
    for content, message in {
        text.encode("latin-1"): r"is not UTF-8 text \(invalid start byte at byte \d+\); save it as UTF-8",
        text.encode("utf-16"): "is not UTF-8 text",
        b'path,label\0\n"' + b"a" * 200_000: "is no CSV table",
    }.items():
        path.write_bytes(content)
        with pytest.raises(ManifestError, match=message) as caught:
            read_manifest(path)
        assert "\n" not in str(caught.value)
