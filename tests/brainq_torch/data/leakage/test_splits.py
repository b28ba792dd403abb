import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from brainq_torch.data.dataset.load import scan_folder
from brainq_torch.data.dataset.manifest import ManifestError, read_manifest, write_manifest
from brainq_torch.data.dataset.sample import ImageRecord
from brainq_torch.data.leakage.splits import SplitPlan, adopt_splits
from brainq_torch.data.synthesis.phantom import render_phantom, write_phantoms


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """8 and 2 phantoms a class; every even training image has a mirrored copy, one copy is a test image."""
    root = tmp_path_factory.mktemp("data") / "leaky"
    write_phantoms(root, 8, 2, seed=0, size=64)
    for path in sorted((root / "Training").rglob("*.png"))[::2]:
        pixels = np.asarray(Image.open(path))
        Image.fromarray(np.ascontiguousarray(pixels[:, ::-1])).save(path.with_name(path.stem + "_mirrored.png"))
    first = next((root / "Training" / "glioma").glob("*.png"))
    Image.open(first).rotate(90).save(root / "Testing" / "glioma" / "turned.png")
    return root


def plan(split="grouped", **options):
    return SplitPlan(split, 0.25, 0, **options)


@pytest.fixture(scope="module")
def grouped(leaky):
    return plan().split_images(scan_folder(leaky))


def test_no_group_is_on_both_sides(grouped):
    parts = {split: {row.group for row in grouped.rows if row.split == split} for split in ("Training", "val")}
    assert not parts["Training"] & parts["val"]
    groups = {row.path: row.group for row in grouped.rows}
    pairs = [(path, path.replace("_mirrored", "")) for path in groups if "_mirrored" in path]
    assert len(pairs) == 16
    assert all(groups[one] == groups[other] for one, other in pairs)
    validated = [row.label for row in grouped.rows if row.split == "val"]
    assert [validated.count(name) for name in sorted(set(validated))] == [3, 3, 3, 3]


def test_leaks_are_counted_and_said(grouped, leaky, capsys):
    assert (grouped.leakage["val"].copy_count, grouped.leakage["Testing"].copy_count) == (0, 1)
    stratified = plan("stratified").split_images(scan_folder(leaky))
    said = capsys.readouterr().out
    # The negative control: a split that does not look at groups divides some.
    assert stratified.leakage["val"].copy_count > 0
    assert "val: warning: the validation part leaks" in said
    assert "Testing: warning: the test set leaks: 1 of 9 images (11.1%) are copies of training images" in said
    assert {row.group for row in stratified.rows} == {row.group for row in grouped.rows}


def test_given_groups_are_kept_without_a_search(leaky, monkeypatch, capsys):
    monkeypatch.setattr("brainq_torch.data.leakage.groups.find_links", None)
    drawn = plan(group_pattern=r"([a-z_]+\d*)(_mirrored)?\.png").split_images(scan_folder(leaky, verify=False))
    said = capsys.readouterr().out
    assert "looking for copies" not in said
    # The phantoms' numbers begin anew in Testing: by their names, the first two of each class are in both.
    assert "the test set leaks: 8 of 9 images (88.9%) are of groups that training images are of, too" in said
    assert "val: no image of the validation part is of a group" in said
    assert (drawn.leakage["Testing"].searched, drawn.leakage["Testing"].copy_count) == (False, 0)


def test_adopted_splits_are_taken_as_they_are(grouped, leaky, tmp_path, capsys):
    kept = [replace(row, split="val" if row.split == "Training" else "Training") for row in grouped.rows[:-3]]
    write_manifest(tmp_path / "manifest.csv", kept)
    drawn = adopt_splits(scan_folder(leaky, verify=False), tmp_path / "manifest.csv")
    assert drawn.rows == kept
    assert f"manifest.csv, and left out: 3 images of {leaky}" in capsys.readouterr().out


def test_adopted_splits_without_groups_get_them(grouped, leaky, tmp_path):
    write_manifest(tmp_path / "manifest.csv", [replace(row, group="") for row in grouped.rows])
    assert adopt_splits(scan_folder(leaky, verify=False), tmp_path / "manifest.csv").rows == grouped.rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: replace(row, split="test"), "names unknown splits ['test']"),
        (lambda row: replace(row, split="Training"), "has no images of split val"),
        (lambda row: replace(row, label="glioma"), "has no Training image of meningioma, notumor, pituitary"),
        (lambda row: replace(row, path="Training/glioma/x.png"), "lists 49 images more than once"),
        (lambda row: replace(row, sha256="0" * 64), "has changed"),
        (lambda row: replace(row, path=row.path + "x"), "is missing"),
        (
            lambda row: replace(row, label={"glioma": "pituitary", "pituitary": "glioma"}.get(row.label, row.label)),
            "another class than",
        ),
    ],
)
def test_manifests_that_do_not_fit_are_refused(change, message, grouped, leaky, tmp_path):
    rows = [change(row) for row in grouped.rows]
    if "more than once" in message:
        message = "lists 1 image more than once, first: Training/glioma/x.png"
    write_manifest(tmp_path / "manifest.csv", rows)
    with pytest.raises(ManifestError, match=re.escape(message)):
        adopt_splits(scan_folder(leaky, verify=False), tmp_path / "manifest.csv")
    assert read_manifest(tmp_path / "manifest.csv") == rows


def test_a_class_that_is_one_picture_cannot_be_divided(tmp_path):
    write_phantoms(tmp_path / "data", 3, 1, seed=0, size=64)
    for path in (tmp_path / "data" / "Training" / "notumor").glob("*.png"):
        Image.fromarray(render_phantom(2, 0, size=64)).save(path)
    with pytest.raises(ValueError, match=r"class notumor form 1 group.*--data.split stratified"):
        plan().split_images(scan_folder(tmp_path / "data"))


def test_a_source_without_validation_images_gets_some_beside_one_that_brings_its_own():
    def record(source, split, n, label=0):
        return ImageRecord(f"{source}/{n}", label, split, f"{source}{n // 2}", source=source)

    own = [record("a", "val" if n < 4 else "Training", n, n % 2) for n in range(12)]
    free = [record("b", "all", n, n % 4 // 2) for n in range(40)]
    lone = [ImageRecord("b/lone", 1, "all", "lone", source="b"), ImageRecord("b/lone2", 2, "all", "lone", source="b")]
    drawn = SplitPlan("grouped", 0.2, 0)
    records = [*own, *free, *lone]
    chosen = drawn._choose(records, ("x", "y", "z"))
    assert chosen[:12].tolist() == [True] * 4 + [False] * 8
    assert 6 <= chosen[12:].sum() <= 10
    assert drawn._choose(own, ("x", "y", "z")).tolist() == [True] * 4 + [False] * 8
