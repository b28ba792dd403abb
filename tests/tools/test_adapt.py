"""A network fitted to a new hospital: before and after on images that were not trained on, none forgotten, few told."""

import json
from collections import Counter

import numpy as np
import pytest

from brainq_torch.data.dataset.manifest import ManifestRow, read_manifest
from brainq_torch.data.synthesis.phantom import write_phantoms
from brainq_torch.texts import fill_text
from tools import restore
from tools.adapt import __main__ as adapt
from tools.adapt.change import Change
from tools.shared.command import CommandError

SMALL = ["--data.batch_size=8", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """20 images a class, each a group of its own."""
    root = tmp_path_factory.mktemp("hospital")
    write_phantoms(root / "all", 20, 1, seed=7, size=32)
    (root / "all" / "Training").rename(root / "images")
    lines = ["path,class,group"]
    for number, path in enumerate(sorted((root / "images").rglob("*.png"))):
        lines.append(f"{path.relative_to(root / 'images').as_posix()},{path.parent.name},p{number}")
    (root / "images" / "labels.csv").write_text("\n".join(lines) + "\n")
    return root / "images"


def test_too_few_images_are_cross_validated_over_groups_and_a_file_is_restored(
    hospital, tiny_export, tmp_path, in_process, ended
):
    out = tmp_path / "out"
    words = [str(tiny_export / "model_fp32.tflite"), "--data", str(hospital), "--out", str(out), "--train", "head"]
    words += [*SMALL, "--stages.epochs=1"]
    printed = ended(adapt.main(words)).out
    assert [each[0] for each in in_process] == ["tools.restore", *["brainq_torch.fit"] * 6]
    found = json.loads((out / "adapt.json").read_text())
    assert list(found) == ["all new ones", "new"]
    assert found["all new ones"]["before"]["n"] == found["all new ones"]["after"]["n"] == 80
    assert found["all new ones"]["how"] == "5-fold cross-validation over groups"
    assert found["new"]["how"] == "val"
    assert f"{found['new']['after']['n']} new images held out are too few to tell anything by" in printed
    assert (f"python -m export {out / 'run'}" in printed) != ("warning: more new images lost" in printed)
    tested = [row.path for n in range(5) for row in read_manifest(out / f"fold_{n}.csv") if row.split == "Testing"]
    assert len(tested) == len(set(tested)) == 80
    assert adapt.main(words) == 0  # nothing twice
    assert len(in_process) == 7


def test_old_images_mixed_in_are_measured_beside_the_new(
    hospital, phantoms, tiny_run, tmp_path, in_process, monkeypatch
):
    monkeypatch.setattr(adapt, "FEWEST", 10)
    out = tmp_path / "out"
    words = [str(tiny_run), "--data", str(hospital), "--old", str(phantoms), "--out", str(out), *SMALL]
    assert adapt.main([*words, "--stages=[{name: all, epochs: 1}]"]) == 0
    assert len(in_process) == 1
    found = json.loads((out / "adapt.json").read_text())
    assert {name: each["how"] for name, each in found.items()} == {"new": "val", "old": "Testing"}
    assert found["old"]["after"]["n"] == 12
    assert {row.source for row in read_manifest(out / "run" / "manifest.csv")} == {"new", "old"}
    assert (out / "adapt.md").read_text().startswith(f"{tiny_run} -> ")


@pytest.mark.parametrize(("how", "warned"), [("val", True), ("Testing", False)])
def test_old_images_that_validate_may_have_been_trained_on_before(how, warned):
    labels, logits = np.arange(12) % 2, np.tile(np.eye(2, dtype=np.float32), (6, 1))
    found = {"old": Change(how, labels, logits, logits, ("glioma", "notumor"))}
    text = fill_text("change", title="a -> b", count=0, fewest=100, folds=0, found=found)
    assert ("the network before may have been trained on any image of it" in text) == warned


@pytest.mark.parametrize("worse", [True, False])
def test_a_network_that_lost_more_than_it_gained_is_not_recommended(worse, tmp_path, capsys):
    labels, right = np.arange(12) % 2, np.tile(np.eye(2, dtype=np.float32), (6, 1))
    both = (right, right[::-1]) if worse else (right[::-1], right)
    adapt._report(tmp_path, "a -> b", {"new": Change("val", labels, *both, ("glioma", "notumor"))}, 0)
    printed = capsys.readouterr().out
    assert ("warning: more new images lost than gained" in printed) == worse
    assert ("next: python -m export" in printed) != worse


def rows_of(count):
    return [
        ManifestRow(f"{label}/{n}.png", label, "Training", f"{label}{n // 2}", "0", "new")
        for label in ("glioma", "notumor")
        for n in range(count)
    ]


def test_folds_divide_no_group_and_leave_old_testing_out():
    places = (("o1", "Training", "x"), ("o2", "Testing", "y"), ("o3", "Training", "glioma0"))  # o3 copies a new one
    old = [ManifestRow(path, "glioma", split, group, "0", "old") for path, split, group in places]
    folds = adapt.divide([*rows_of(20), *old])
    assert len(folds) == 5
    for fold in folds:
        assert {row.path for row in fold if row.source == "old"} == {"o1"}
        splits = {}
        for row in fold:
            splits.setdefault(row.group, set()).add(row.split)
        assert all(len(each) == 1 for each in splits.values())
        assert Counter(row.split for row in fold if row.source == "new") == {"Testing": 8, "val": 8, "Training": 24}
    with pytest.raises(CommandError, match=r"needs 5 groups \(patients\) of each class, one has 4"):
        adapt.divide(rows_of(8))


def test_a_class_that_the_hospital_lacks_asks_for_the_old_images(hospital, tiny_run, tmp_path, ended):
    root = tmp_path / "three"
    root.mkdir()
    for name in ("glioma", "meningioma", "notumor"):
        (root / name).symlink_to(hospital / name)
    error = ended(adapt.main([str(tiny_run), "--data", str(root), "--out", str(tmp_path / "out"), *SMALL]), 2).err
    assert "no training image of pituitary" in error
    assert "the images have no" in error
    assert "come with --old DIR" in error
    assert "leave it out" not in error  # the network's classes stay


def test_a_file_that_cannot_be_restored_is_refused_before_anything_is_done(hospital, tmp_path, ended):
    words = ["results/densenet32/model_int8.tflite", "--data", str(hospital), "--out", str(tmp_path / "out")]
    assert "weights that are no floats" in ended(adapt.main(words), 2).err
    words[0] = "results/densenet32/model_fp16.tflite"
    assert "leave --data.size and --data.fit out" in ended(adapt.main([*words, "--data.size=32"]), 2).err
    assert not (tmp_path / "out").exists()


def test_help_is_short(stopped):
    for command in (adapt, restore):
        assert len(stopped(command.main, ["--help"], 0).out.splitlines()) < 40
