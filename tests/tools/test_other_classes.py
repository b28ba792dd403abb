"""Every tool that measures a model takes what it was trained to tell apart, and says so where it needs the four."""

import json
import shutil

import numpy as np
import pytest

from brainq_torch.console import WRONG_INPUT
from brainq_torch.data.dataset.manifest import read_manifest
from brainq_torch.fit import main as fit
from brainq_torch.training.teacher_logits import TeacherLogits, TeacherLogitsError
from tests.conftest import TINY
from tools import compare, gradcam, pairs, predictions, teacher_logits
from tools.abstention import __main__ as abstention
from tools.low_bits import measure
from tools.low_bits.__main__ import main as low_bits
from tools.shift.__main__ import main as shift

CLASSES = ("astrocytoma", "meningioma", "pituitary")


@pytest.fixture(scope="module")
def data(phantoms, tmp_path_factory):
    root = tmp_path_factory.mktemp("three") / "data"
    shutil.copytree(phantoms, root, ignore=shutil.ignore_patterns("notumor"))
    for part in ("Training", "Testing"):
        (root / part / "glioma").rename(root / part / "astrocytoma")
    return root


@pytest.fixture(scope="module")
def run(data):
    out = data.parent / "run"
    assert fit([*TINY, f"--data.root={data}", f"--out={out}", "--stages=[{name: all, epochs: 1}]"]) == 0
    return out


def words(*arguments):
    return [str(argument) for argument in arguments]


def test_compare_names_the_models_classes_which_all_have(run, tiny_run, data, reported, ended):
    report, printed = reported(compare.main, run, "--data", data)
    (model,) = report["models"]
    assert tuple(model["metrics"]["per_class"]) == CLASSES
    assert "recall astrocytoma / meningioma / pituitary" in printed
    error = ended(compare.main(words(run, tiny_run, "--data", data)), WRONG_INPUT).err
    assert "tells glioma, meningioma, notumor, pituitary apart, the images are astro" in error


def test_abstention_counts_every_class_but_notumor_as_a_tumour(run, data, reported, monkeypatch):
    monkeypatch.setattr(abstention, "DRAWN", 4)
    found, _ = reported(abstention.main, run, "--data", data)
    assert found["n"] == 9
    for outliers in found["outliers"].values():
        assert (outliers["tumour"], outliers["tumour_without"]) == (outliers["answered"], 1.0)


def test_gradcam_shows_the_models_classes(run, data, tmp_path, ended):
    asked = words(run, "--data", data, "--out", tmp_path / "cam.png", "--images", 4)
    shown = ended(gradcam.main(asked)).out.splitlines()
    assert shown
    assert {line.split("label ")[1].split(",")[0] for line in shown} <= set(CLASSES)


def test_folders_that_a_run_was_told_the_meaning_of_are_known_by_its_manifest(data, tmp_path, ended):
    out, picture = tmp_path / "run", tmp_path / "cases.png"
    stages = "--stages=[{name: all, epochs: 1}]"
    assert fit([*TINY, f"--data.root={data}", f"--out={out}", stages, "--data.class_map={astrocytoma: pituitary}"]) == 0
    for tool, more in ((compare.main, ["--json", tmp_path / "compare.json"]), (gradcam.main, ["--out", picture])):
        error = ended(tool(words(out, "--data", data, *more)), WRONG_INPUT).err
        assert "by the --manifest of a run that was trained on it" in error
        assert tool(words(out, "--data", data, "--manifest", out / "manifest.csv", *more)) == 0
    (model,) = json.loads((tmp_path / "compare.json").read_text())["models"]
    assert {name: row["support"] for name, row in model["metrics"]["per_class"].items()} == {
        "meningioma": 3, "pituitary": 6,
    }  # fmt: skip


def test_predictions_hold_a_logit_a_class(run, data, tmp_path):
    assert predictions.main(words(run, "--run", run, "--data", data, "--out", tmp_path / "p.npz")) == 0
    with np.load(tmp_path / "p.npz") as found:
        assert found["logits"].shape == (9, 3)
        assert [CLASSES[label] for label in found["labels"]] == [path.split("/")[1] for path in found["paths"]]


def test_teachers_of_these_classes_keep_their_logits(run, tiny_run, data, tmp_path, ended):
    file = tmp_path / "logits.jsonl"
    assert teacher_logits.main(words(run, "--data", data, "--out", file)) == 0
    rows = [row for row in read_manifest(run / "manifest.csv") if row.split == "Training"]
    assert TeacherLogits(file, CLASSES).lookup(rows).shape == (len(rows), 3)
    with pytest.raises(TeacherLogitsError, match="expected 1 and"):
        TeacherLogits(file)
    other = words(tiny_run, "--data", data, "--manifest", run / "manifest.csv", "--out", tmp_path / "other.jsonl")
    assert "name a teacher of the same classes" in ended(teacher_logits.main(other), WRONG_INPUT).err


def test_low_bits_measures_the_models_classes(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "BITS_OF_A_BUDGET", (8,))
    few = ["--calibration-images", 4, "--sensitivity-images", 2, "--images", 6, "--bits", 8]
    assert low_bits(words(run, "--data", data, "--out", tmp_path / "low", *few)) == 0
    report = json.loads((tmp_path / "low" / "low_bits.json").read_text())
    assert tuple(report["curve"][0]["recall"]) == CLASSES


@pytest.mark.parametrize(("tool", "more"), [(pairs.main, ["--manifest", "manifest.csv"]), (shift, [])])
def test_what_draws_lesions_of_the_four_says_so_first(run, data, tool, more, ended):
    error = ended(tool(words(run, "--data", data, *more)), WRONG_INPUT).err
    assert "needs the classes glioma, meningioma, notumor, pituitary; here they are astrocytoma, meningioma, " in error
    assert "the images are" not in error
