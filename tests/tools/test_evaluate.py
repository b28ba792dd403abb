import json
import runpy
import shutil
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score

from brainq_torch.data.classes import CLASSES, Labels
from brainq_torch.data.dataset.load import scan_folder
from brainq_torch.data.dataset.manifest import make_manifest, write_manifest
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.evaluation.metrics import compute_metrics
from tests.support.narrow_run import write_run
from tools.evaluate import __main__ as evaluate
from tools.evaluate.question import ask
from tools.shared.command import CommandError
from tools.shared.images import check_folders

KEYS = {"n", "accuracy", "macro_f1", "ece", "per_class", "confusion", "classes", "absent"}
GREYS = (20, 80, 140, 200)
"""Mean grey of each class's images, which the fake model tells apart."""


class GreyRunner:
    """Answers the class whose grey is nearest to the image's mean: right by construction, and exact."""

    def __init__(self, classes=CLASSES, size=32, shift=0):
        self.classes, self.pixels, self.shift = tuple(classes), PixelSpec(size), shift
        self.greys = [GREYS[CLASSES.index(name)] if name in CLASSES else 0 for name in self.classes]
        self.logit_scale = None

    def __call__(self, images):
        means = images.mean(axis=(1, 2)) + self.shift
        return -np.abs(means[:, None] - np.array(self.greys)).astype(np.float32)


def picture(grey):
    """An image of many greys around one."""
    return Image.fromarray((grey - 15 + np.arange(36 * 40).reshape(36, 40) % 31).astype(np.uint8))


def write_images(root, split, count, wrong=0):
    """Write images per class; the first ``wrong`` gliomas look like a meningioma."""
    for label, name in enumerate(CLASSES):
        folder = root / split / name
        folder.mkdir(parents=True)
        for index in range(count):
            grey = GREYS[1] if name == "glioma" and index < wrong else GREYS[label]
            picture(grey).save(folder / f"{index}.png")


@pytest.fixture
def data(tmp_path):
    write_images(tmp_path / "data", "Testing", 5, wrong=2)
    write_images(tmp_path / "data", "Training", 3)
    return tmp_path / "data"


@pytest.fixture
def fake(monkeypatch):
    """Stand-ins for model files, by name."""
    runners = {"a": GreyRunner(), "b": GreyRunner(shift=70), "size": GreyRunner(size=48)}
    monkeypatch.setattr(evaluate, "load_runner", lambda name, threads: runners[name])
    return runners


@pytest.fixture
def measure(reported, data, fake):
    """Measure the first of them and return the report and what is printed."""
    return partial(reported, evaluate.main, "a", "--data", data)


def test_figures_and_json_are_exact(measure, tmp_path):
    (tmp_path / "report.json").write_text("old")
    report, out = measure("--plot", tmp_path / "c.png")
    assert Image.open(tmp_path / "c.png").format == "PNG"
    assert report.keys() >= KEYS
    assert (report["n"], report["accuracy"], report["split"]) == (20, 0.9, "Testing")
    assert report["confusion"] == [[3, 2, 0, 0], [0, 5, 0, 0], [0, 0, 5, 0], [0, 0, 0, 5]]
    labels, predictions = np.repeat(range(4), 5), np.array([1, 1, 0, 0, 0] + [1] * 5 + [2] * 5 + [3] * 5)
    assert report["accuracy"] == accuracy_score(labels, predictions)
    assert report["macro_f1"] == f1_score(labels, predictions, average="macro")
    assert report["classes"] == list(CLASSES)
    assert report["per_class"]["glioma"] == {"precision": 1.0, "recall": 0.6, "f1": 0.75, "support": 5}
    assert "split Testing: 20 images" in out
    assert "90.00 %" in out


@pytest.mark.parametrize(("split", "expected"), [("Training", 12), ("test", 20), ("all", 32)])
def test_a_named_split_is_measured(measure, split, expected):
    assert measure("--split", split)[0]["n"] == expected


def test_all_of_folders_without_splits_are_measured_and_val_before_training(data, fake, ended):
    assert "split all: 12 images" in ended(evaluate.main(["a", "--data", str(data / "Training")])).out
    (data / "Testing").rename(data / "val")
    assert "split val: 20 images" in ended(evaluate.main(["a", "--data", str(data)])).out


def test_a_models_own_class_order_does_not_change_the_report(measure, fake):
    first, _ = measure()
    fake["a"] = GreyRunner(classes=reversed(CLASSES))
    second, _ = measure()
    assert {key: first[key] for key in KEYS} == {key: second[key] for key in KEYS}


def test_unreadable_images_are_named_and_left_out(data, measure):
    (data / "Testing" / "pituitary" / "0.png").write_bytes(b"")
    (data / "Testing" / "pituitary" / "notes.txt").write_text("no image")
    report, out = measure()
    assert report["n"] == 19
    assert [p["path"] for p in report["problems"] if p["severity"] == "error"] == ["Testing/pituitary/0.png"]
    assert "Testing/pituitary/0.png: has zero bytes" in out
    assert "notes.txt" in out


def test_a_class_without_readable_image_is_an_error(data, fake, ended):
    for path in (data / "Testing" / "notumor").iterdir():
        path.write_bytes(b"")
    error = ended(evaluate.main(["a", "--data", str(data)]), 2).err
    assert "class notumor has no readable image" in error
    assert "Testing/notumor/4.png" in error


def test_second_model_is_compared_image_by_image(measure):
    report, out = measure("--compare", "b")
    compare = report["compare"]
    # Shifted by one class: glioma (20 -> 90) is called meningioma, and so on; pituitary stays, two flat ones move.
    assert compare["agreement"] == 5 / 20
    assert (compare["only_a_right"], compare["only_b_right"]) == (13, 0)
    assert compare["mcnemar_p"] == pytest.approx(2 / 2**13)
    assert compare["metrics"]["accuracy"] == 5 / 20
    assert "McNemar, exact p   0.0002441" in out
    assert "Testing/glioma/2.png: glioma -> meningioma (label glioma)" in out


def test_models_of_two_sizes_are_compared(measure):
    assert "same class         100.00 % (0 images differ)" in measure("--compare", "size")[1]


def test_manifest_chooses_the_validation_images_and_checks_their_hashes(data, fake, tmp_path, ended):
    records = scan_folder(data).select("Training").records
    chosen = [replace(record, split="val") if record.path.endswith("0.png") else record for record in records]
    manifest = tmp_path / "manifest.csv"
    write_manifest(manifest, make_manifest(data, chosen))
    words = ["a", "--data", str(data), "--manifest", str(manifest), "--split", "val"]
    assert "split val: 4 images" in ended(evaluate.main(words)).out
    picture(15).save(data / "Training" / "glioma" / "0.png")
    assert "Training/glioma/0.png has changed" in ended(evaluate.main(words), 2).err


def test_other_classes_than_the_datas_are_refused(data, fake, ended):
    fake["cats"] = GreyRunner(classes=("cat", "dog", "glioma", "mouse"))
    error = ended(evaluate.main(["cats", "--data", str(data)]), 2).err
    assert "cats tells cat, dog, glioma, mouse apart" in error
    assert "holds meningioma, notumor, pituitary; say what that means with --label-map" in error


def test_a_class_that_the_test_set_lacks_does_not_count(data, measure):
    assert measure()[0]["absent"] == []
    shutil.rmtree(data / "Testing" / "meningioma")
    report, out = measure()
    assert (report["n"], report["absent"]) == (15, ["meningioma"])
    # Two of five gliomas are called meningioma: F1 3/4, the two others 1, and meningioma is no part of the mean.
    assert report["macro_f1"] == pytest.approx((0.75 + 1 + 1) / 3)
    low, high = report["intervals"]["macro_f1"]
    assert low <= report["macro_f1"] <= high == 1.0
    assert report["classes"] == list(CLASSES)
    row = next(line for line in out.splitlines() if line.startswith("| meningioma"))
    assert row.split("|")[2:4] == [" no images ", row.split("|")[3]]
    assert row.split("|")[-2].strip() == "0"


YES_NO = ["--label-map", "yes=glioma+meningioma+pituitary", "no=notumor"]


@pytest.fixture
def yes_no(data):
    """Two of 15 tumours look like no tumour, one of five healthy ones like a tumour; two are another tumour."""
    for name in ("glioma", "meningioma", "pituitary"):
        for path in (data / "Testing" / name).iterdir():
            path.rename(path.with_name(f"{name}{path.name}"))
            shutil.copytree(data / "Testing" / name, data / "yes", dirs_exist_ok=True)
    (data / "Testing" / "notumor").rename(data / "no")
    shutil.rmtree(data / "Testing")
    shutil.rmtree(data / "Training")
    for path in data.glob("yes/[0-9]*"):
        path.unlink()
    for name in ("pituitary0", "pituitary1"):
        picture(GREYS[2]).save(data / "yes" / f"{name}.png")
    picture(GREYS[0]).save(data / "no" / "0.png")
    return data


def test_a_coarser_question_is_right_when_the_prediction_is_among_its_classes(yes_no, measure):
    report, out = measure(*YES_NO)
    assert (report["n"], report["accuracy"], report["classes"]) == (20, 17 / 20, ["yes", "no"])
    assert report["confusion"] == [[13, 2], [1, 4]]
    binary = report["binary"]
    assert (binary["positive"], binary["sensitivity"], binary["specificity"]) == ("yes", 13 / 15, 4 / 5)
    # By hand: of 75 pairs 13 * 4 are in order, the wrong no outranks or ties with 13, two wrong yes tie with four noes.
    assert 0.7 < binary["auroc"] < 1
    assert "sensitivity 0.8667" in out
    assert "positive is yes, negative no" in out
    turned, _ = measure("--label-map", *YES_NO[:0:-1])
    assert (turned["classes"], turned["binary"]) == (["no", "yes"], binary)


def test_what_the_question_does_not_name_is_a_wrong_answer(yes_no, measure):
    report, _ = measure("--label-map", "yes=glioma+meningioma", "no=notumor")
    assert report["confusion"] == [[10, 2, 3], [1, 4, 0], [0, 0, 0]]
    assert report["absent"] == ["(other classes)"]
    assert report["binary"]["sensitivity"] == 10 / 15


def test_folders_of_the_same_classes_are_one_answer(measure):
    words = [f"{name}=glioma" for name in ("glioma", "meningioma")] + ["notumor=notumor", "pituitary=pituitary"]
    report, _ = measure("--label-map", *words)
    assert report["classes"] == ["glioma+meningioma", "notumor", "pituitary", "(other classes)"]
    assert report["confusion"][0] == [3, 0, 0, 7]


def test_a_coarse_answers_probability_is_the_sum_of_its_classes():
    question = ask("a", GreyRunner(), YES_NO[1:])
    logits = np.log(np.array([[0.2, 0.2, 0.4, 0.2], [0.5, 0.1, 0.1, 0.3]], np.float32))
    assert question.probabilities(logits, CLASSES) == pytest.approx(np.array([[0.6, 0.4], [0.9, 0.1]]), abs=1e-6)
    assert question.score(logits, CLASSES).argmax(1).tolist() == [1, 0]
    metrics = compute_metrics(
        question.score(logits, CLASSES), np.array([1, 0]), ("yes", "no"), 0, 0, question.probabilities(logits, CLASSES)
    )
    # Both are right, with 0.4 and 0.9: two bins, each off by what is missing to 1.
    assert metrics.ece == pytest.approx((0.6 + 0.1) / 2, abs=1e-6)


def test_a_class_may_hold_the_signs_of_a_label_map():
    runner = SimpleNamespace(classes=("grade II+III", "a=b", "no"))
    question = ask("a", runner, ["yes=grade II+III", "other=a=b", "no=no"])
    assert question.groups == (("grade II+III",), ("a=b",), ("no",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["yes=cat", "no=notumor"], "a knows no class 'cat'; allowed are glioma"),
        (["no=notumor"], "holds yes; say what that means with --label-map FOLDER=CLASS"),
        (["yes"], "'yes' is not FOLDER=CLASS[+CLASS]"),
        (["yes=glioma", "yes=pituitary", "no=notumor"], "names yes twice"),
        (["yes=glioma+notumor", "no=notumor"], "notumor means two answers"),
    ],
)
def test_a_wrong_label_map_is_refused_in_one_line_before_anything_is_decoded(yes_no, fake, ended, words, message):
    for path in yes_no.glob("*/*"):
        path.write_bytes(b"no image")
    error = ended(evaluate.main(["a", "--data", str(yes_no), "--label-map", *words]), 2).err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--data", "{data}", "--split", "val"], "no images of split 'val'"),
        (["--data", "{data}", "--manifest", "nowhere.csv"], "nowhere.csv is missing"),
    ],
)
def test_wrong_words_are_named(data, fake, ended, words, message):
    assert message in ended(evaluate.main(["a", *(word.format(data=data) for word in words)]), 2).err


def test_a_real_run_folder_from_the_command_line(data, tmp_path, monkeypatch):
    """Run as ``python -m`` does, but in this process: importing PyTorch again would take longer than the rest."""
    target = tmp_path / "m.json"
    words = [str(write_run(tmp_path / "run")), "--data", str(data), "--json", str(target)]
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    monkeypatch.delitem(sys.modules, "tools.evaluate.__main__")
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("tools.evaluate", run_name="__main__")
    assert json.loads(target.read_text())["n"] == 20


def test_folders_of_pictures_beside_a_table_are_no_classes(tmp_path):
    (tmp_path / "pictures").mkdir()
    labels = Labels(("notumor", "yes"), (("pos", "yes"),))
    with pytest.raises(CommandError, match="holds pictures; say what that means"):
        check_folders("model", labels.names, tmp_path, labels)
    (tmp_path / "labels.csv").write_text("path,label\npictures/0.png,pos\n")
    check_folders("model", labels.names, tmp_path, labels)
