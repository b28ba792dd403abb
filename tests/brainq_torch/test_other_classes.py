"""Other label sets than the paper's four, from the images to the bundle."""

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from brainq_torch.data.synthesis.phantom import render_phantom
from brainq_torch.fit import main
from brainq_torch.run import load_run
from export.__main__ import main as export_main
from export.run.metadata import read_metadata
from tests.conftest import TINY
from tools import predict
from tools.evaluate import __main__ as evaluate

STAGES = "--stages=[{name: all, epochs: 1}]"
ANSWERS = ("HGG", "healthy tissue")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """HGG and LGG, which are phantoms of gliomas, and ``healthy tissue``."""
    root = tmp_path_factory.mktemp("data") / "grades"
    for split, count in (("Training", 12), ("Testing", 3)):
        for place, (name, label) in enumerate((("HGG", 0), ("LGG", 0), ("healthy tissue", 2))):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                seed = 1000 * place + 100 * len(split) + index
                Image.fromarray(render_phantom(label, seed, size=32)).save(root / split / name / f"{index}.png")
    return root


def fit(root, out, *words):
    return main([*TINY, f"--data.root={root}", f"--out={out}", STAGES, *words])


@pytest.fixture(scope="module")
def run(tmp_path_factory, images):
    """Two classes: the gliomas joined."""
    out = tmp_path_factory.mktemp("runs") / "grades"
    assert fit(images, out, "--data.class_map={LGG: HGG}") == 0
    return out


def test_a_run_of_two_classes_says_them_everywhere(run):
    assert load_run(run).classes == ANSWERS
    assert next(load_run(run).model.modules()).classifier[1].out_features == 2
    measured = json.loads((run / "metrics.json").read_text())
    assert (measured["classes"], measured["absent"], measured["n"]) == (list(ANSWERS), [], 9)
    assert {line.split(",")[1] for line in (run / "manifest.csv").read_text().splitlines()[1:]} == set(ANSWERS)


def test_its_files_and_bundle_answer_in_its_classes(run, images, tmp_path, capsys, ended):
    out, bundle = tmp_path / "export", tmp_path / "bundle"
    words = ["--recipes", "fp32", "int8", "--calibration-images", "16"]
    assert export_main([str(run), "--out", str(out), "--bundle", str(bundle), *words]) == 0
    assert "\nno series is answered: the model has no class notumor; where" in capsys.readouterr().out
    assert "there is no class `notumor`" in (bundle / "MODEL_CARD.md").read_text()
    for file in ("model_fp32.onnx", "model_int8.tflite"):
        assert read_metadata(out / file).classes == ANSWERS
    picture = str(images / "Testing" / "healthy tissue" / "0.png")
    capsys.readouterr()
    assert any(name in ended(predict.main([str(out / "model_int8.tflite"), picture])).out for name in ANSWERS)
    alone = [sys.executable, str(bundle / "predict.py")]
    assert subprocess.run([*alone, "--verify"], check=False).returncode == 0
    said = subprocess.run([*alone, picture], check=True, capture_output=True, text=True).stdout
    assert any(name in said for name in ANSWERS)
    assert (bundle / "labels.txt").read_text().split("\n")[:2] == list(ANSWERS)
    words = ["--label-map", "LGG=HGG", "HGG=HGG", "healthy tissue=healthy tissue"]
    assert evaluate.main([str(out / "model_int8.tflite"), "--data", str(images), *words]) == 0
    assert "positive is LGG+HGG" in capsys.readouterr().out


def test_a_class_that_own_validation_images_lack_is_a_warning(images, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "data")
    shutil.copytree(images / "Testing", tmp_path / "data" / "val")
    shutil.rmtree(tmp_path / "data" / "val" / "LGG")
    assert fit(tmp_path / "data", tmp_path / "run") == 0
    assert "warning: no validation image of LGG: its recall is unknown" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["splits"]["val"]["absent"] == ["LGG"]


def one_class(root):
    shutil.rmtree(root / "Training" / "LGG")
    shutil.rmtree(root / "Testing" / "LGG")
    for split in ("Training", "Testing"):
        shutil.rmtree(root / split / "healthy tissue")


@pytest.mark.parametrize(
    ("change", "word", "message"),
    [
        (one_class, "", r"has 1 classes (HGG); 2 to 100 are needed"),
        (None, "--data.class_map={yes: glioma}", "class_map names yes, no class folder of"),
        (None, "--data.classes=[HGG, hgg]", "data.classes names hgg twice"),
        (None, "--data.classes=[HGG, LGG]", "unknown folder, its name means no class (HGG, LGG)"),
        (None, "--data.classes=[HGG, LGG, healthy tissue, notumor]", "class notumor is missing"),
        (None, "--data.counterfactual.share=0.5", "data.counterfactual needs the classes glioma"),
    ],
)
def test_a_label_set_that_does_not_fit_is_one_line(images, tmp_path, ended, change, word, message):
    shutil.copytree(images, tmp_path / "data")
    if change:
        change(tmp_path / "data")
    error = ended(fit(tmp_path / "data", tmp_path / "run", *([word] if word else [])), 2).err.splitlines()
    assert message in error[-1]
    assert error[-1].startswith("error: ")


def test_weights_and_teachers_of_other_classes_are_refused(run, images, tmp_path, capsys):
    assert fit(images, tmp_path / "run", f"--init={run}") == 2
    assert "tells HGG, healthy tissue apart, this run HGG, LGG, healthy tissue" in capsys.readouterr().err
