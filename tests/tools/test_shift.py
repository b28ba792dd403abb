import json
import shutil

import numpy as np
import pytest
from PIL import Image

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.load import scan_folder
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.synthesis.corruptions import CORRUPTIONS, STRENGTHS, corrupt, seeded
from brainq_torch.data.synthesis.phantom import phantom_images, write_phantoms
from tools.shift.__main__ import draw_balanced, main, measure
from tools.shift.plot import _tell_apart
from tools.shift.scores import CLEAN, LESIONS, NOT_RUN, NOTUMOR, SHIFTS, Outcome, Shift, compare
from tools.shift.simulated import find_head_mask, lesioned, restyle


@pytest.fixture(scope="module")
def heads():
    """Draw phantoms; returns (8, 96, 96) uint8."""
    return phantom_images(8, 96, seed=5)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("shift") / "data"
    write_phantoms(root, 1, 3, seed=1, size=64)
    return scan_folder(root).select("Testing")


class Fixed:
    """Answers by the image's mean grey alone: brighter images are later classes."""

    pixels, classes, logit_scale = PixelSpec(32), CLASSES, None

    def __call__(self, images):
        edges = np.array([20.0, 40.0, 60.0])
        return np.eye(4, dtype=np.float32)[np.digitize(images.mean((1, 2)), edges)]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_the_same_each_time_and_grows_with_its_strength(heads, name):
    for shape in ((1, 1), (2, 300), (64, 64)):
        corrupt(np.zeros(shape, np.uint8), name, 3, "odd.png")  # odd images survive
    changes = []
    for strength in STRENGTHS:
        images = [corrupt(grey, name, strength, f"{place}.png") for place, grey in enumerate(heads)]
        again = [corrupt(grey, name, strength, f"{place}.png") for place, grey in enumerate(heads)]
        assert all(np.array_equal(one, two) and one.dtype == np.uint8 for one, two in zip(images, again, strict=True))
        seen = [np.asarray(Image.fromarray(image).resize((96, 96))).astype(float) for image in images]
        changes.append(np.mean([np.abs(one - two).mean() for one, two in zip(seen, heads.astype(float), strict=True)]))
    assert changes[0] > 0.2
    if name != "mirrored":
        assert changes[0] < changes[1] < changes[2]


def test_corruptions_by_hand(heads):
    assert not np.array_equal(*(corrupt(heads[0], "bias field", 2, key) for key in ("a.png", "b.png")))
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(corrupt(grey, "mirrored", 1, ""), grey[:, ::-1])
    assert np.array_equal(corrupt(grey, "mirrored", 3, ""), grey[::-1, ::-1])
    grey = np.full((100, 80), 50, np.uint8)
    framed = corrupt(grey, "border", 2, "x")
    assert framed.shape == (130, 110)
    assert len(np.unique(framed[:15])) == 1
    assert np.array_equal(framed[15:-15, 15:-15], grey)
    assert np.array_equal(corrupt(grey, "resolution", 3, ""), grey)  # nothing to lose in a plain image
    for name, strength in (("fog", 1), ("blur", 0), ("blur", 4)):
        with pytest.raises(ValueError, match="allowed are bias field"):
            corrupt(grey, name, strength, "")


def test_a_style_is_the_sources_histogram_on_the_images_anatomy(heads):
    grey, source = heads[0], heads[5]
    styled = restyle(grey, source)
    mask = find_head_mask(grey)
    assert 0.2 < mask.mean() < 0.9
    assert styled.shape == grey.shape
    ranks = [np.argsort(np.argsort(image[mask])) for image in (grey, styled)]
    assert np.corrcoef(*ranks)[0, 1] > 0.85
    quantiles = [np.quantile(image[find_head_mask(image)], (0.25, 0.5, 0.75)) for image in (styled, source)]
    assert np.abs(quantiles[0] - quantiles[1]).max() < 15
    assert np.abs(restyle(grey, grey).astype(int) - grey)[mask].mean() < 6  # control: its own style changes little


def test_lesions_are_painted_on_heads_and_nowhere_else(heads):
    grey = phantom_images(4, 128, seed=2)[0][NOTUMOR]
    for label in LESIONS:
        painted = lesioned(grey, label, seeded(str(label)))
        plain = np.asarray(Image.fromarray(grey).resize((224, 224), Image.Resampling.BILINEAR))
        changed = np.abs(painted.astype(int) - plain) > 8
        assert 0.005 < changed.mean() < 0.3
        assert not changed[~find_head_mask(plain)].any()
    assert lesioned(np.zeros((80, 80), np.uint8), 0, seeded("x")) is None


def test_every_shift_is_measured_and_scores_are_right(folder):
    readable, (outcome,) = measure({"fixed": Fixed()}, folder, progress=False)
    assert len(readable.records) == outcome.predictions.shape[1] == 12
    assert len(SHIFTS) == 1 + 39 + 4 + 3
    is_lesion = np.array([shift.family == "lesion" for shift in SHIFTS])
    run = outcome.predictions != NOT_RUN
    assert run[~is_lesion].all()
    assert (run[is_lesion] == (outcome.labels == NOTUMOR)).all()
    clean = outcome.score(CLEAN)
    assert clean["accuracy"] == np.mean(outcome.predictions[0] == outcome.labels)
    json.dumps(outcome.to_json(), allow_nan=False)


def test_scores_by_hand():
    labels = np.array([0, 1, 2, 3])
    predictions = np.tile(labels, (len(SHIFTS), 1))
    predictions[SHIFTS.index(Shift("style", "glioma"))] = 0
    lesions = [SHIFTS.index(Shift("lesion", CLASSES[label])) for label in LESIONS]
    predictions[lesions] = NOT_RUN
    predictions[lesions, 2] = [0, 2, 1]
    spoilt = predictions.copy()
    spoilt[SHIFTS.index(Shift("corruption", "blur", 3))] = 3
    first, second = Outcome("a", labels, predictions), Outcome("b", labels, spoilt)
    data = first.to_json()
    assert data["clean"] == {"n": 4, "accuracy": 1.0, "macro_f1": 1.0}
    assert data["styles"]["glioma"] == {"n": 3, "accuracy": 0.0, "macro_f1": 0.0, "accuracy_of_own_class": 1.0}
    assert data["styles"]["other_classes"] == pytest.approx(9 / 12)
    assert data["lesions"]["glioma"] == {"n": 1, "accuracy": 1.0, "found": 1.0}
    assert data["lesions"]["meningioma"] == {"n": 1, "accuracy": 0.0, "found": 0.0}
    assert data["lesions"]["pituitary"] == {"n": 1, "accuracy": 0.0, "found": 1.0}
    assert second.to_json()["mean"]["3"]["accuracy"] == pytest.approx((12 + 0.25) / 13)
    spoilt[SHIFTS.index(Shift("style", "notumor"))] = [NOTUMOR, 1, NOTUMOR, 3]  # one of the others, and its own
    against = compare(first, second)
    assert against["styles"]["notumor"] == pytest.approx({"accuracy_difference": -1 / 3, "agreement": 2 / 3})
    assert against["corruptions"]["blur"]["3"] == {"accuracy_difference": -0.75, "agreement": 0.25}
    assert against["corruptions"]["blur"]["2"] == {"accuracy_difference": 0.0, "agreement": 1.0}
    assert against["lowest_agreement"] == 0.25


def test_the_draw_is_balanced_and_seeded(folder):
    drawn = draw_balanced(folder, 8, seed=1)
    assert [record.label for record in drawn.records] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert drawn == draw_balanced(folder, 8, seed=1)
    assert drawn != draw_balanced(folder, 8, seed=2)


@pytest.mark.parametrize(
    ("paths", "titles"),
    [
        (["runs/a/model_int8.tflite"], ["model_int8.tflite"]),
        (["x/model_fp16.tflite", "x/model_int8.tflite"], ["model_fp16.tflite", "model_int8.tflite"]),
        (["a/export/m.tflite", "b/export/m.tflite"], ["a/\nexport/\nm.tflite", "b/\nexport/\nm.tflite"]),
        (["m.tflite", "b/m.tflite"], ["m.tflite", "b/\nm.tflite"]),
        (["a/m.tflite", "a/m.tflite"], ["m.tflite", "m.tflite"]),
    ],
)
def test_two_files_of_one_name_are_told_apart(paths, titles):
    assert _tell_apart(paths) == titles


def test_the_command_writes_grid_and_pictures(folder, tmp_path, monkeypatch, reported):
    monkeypatch.setattr("tools.shift.__main__.load_runner", lambda path, threads: Fixed())
    target = tmp_path / "grid.of"  # a PNG, whatever its name
    words = ["--data", folder.root, "--images", 4, "--threads", 1, "--plot", target]
    report, printed = reported(main, "a.tflite", "--compare", "b.tflite", *words)
    assert report["n"] == 4
    assert report["compare"]["against"]["lowest_agreement"] == 1.0
    assert Image.open(target).width > 300
    assert Image.open(tmp_path / "grid_pictures.of").height > 1000
    assert "images/s" in printed


def test_a_test_set_may_lack_a_class(folder, tmp_path, monkeypatch, reported):
    shutil.copytree(folder.root, tmp_path / "data")
    shutil.rmtree(tmp_path / "data/Testing/meningioma")
    monkeypatch.setattr("tools.shift.__main__.load_runner", lambda path, threads: Fixed())
    report, printed = reported(main, "a.tflite", "--data", tmp_path / "data", "--plot", tmp_path / "grid.png")
    assert report["n"] == 9
    assert report["styles"]["meningioma"]["n"] == 0
    assert "no images" in printed


def test_classes_without_images_do_not_count_for_f1():
    predictions = np.tile([0, 1, 2], (len(SHIFTS), 1))
    assert Outcome("a", np.array([0, 0, 2]), predictions).score(CLEAN)["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
