import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainq_torch.abstention.outlier import fit_typicality
from brainq_torch.abstention.policy import fit_abstention
from brainq_torch.console import printable, run_command
from brainq_torch.data.classes import CLASSES
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.series.find import Unread, find_series
from export.run.model import load
from tools import predict

ROOT = Path(__file__).parents[2]


class GreyRunner:
    """Logits that are known from the grey in the image's middle: log of (grey + 1, 1, 1, 1)."""

    classes, pixels = CLASSES, PixelSpec(32)

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        grey = images[:, 16, 16].astype(float)
        return np.log(np.stack([grey + 1, *[np.ones(len(images))] * 3], 1)).astype(np.float32)


@pytest.fixture
def runner(monkeypatch):
    fake = GreyRunner()
    monkeypatch.setattr("export.run.model.load_runner", lambda model, threads: fake)
    return fake


def picture(grey, width=40, height=36):
    """One grey in the middle, many around it."""
    pixels = np.add.outer(np.arange(height), np.arange(width)).astype(np.uint8)
    pixels[height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4] = grey
    return Image.fromarray(pixels)


@pytest.fixture
def images(tmp_path):
    """Good images of grey 9 and 6 in two folders, and everything that can go wrong beside them."""
    folder = tmp_path / "scans"
    (folder / "deeper").mkdir(parents=True)
    picture(9).save(folder / "a b.png")
    picture(6).save(folder / "deeper" / "ünï[1].png")
    return folder


@pytest.fixture
def answers(runner, ended):
    """Return the rows that the command writes of what is named."""

    def run(*named, model="model", code=0):
        printed = ended(predict.main([model, *map(str, named), "--json"]), code)
        return [json.loads(line) for line in printed.out.splitlines()]

    return run


def test_json_lines_have_class_and_exact_probability(answers, images):
    (row,) = answers(images / "a b.png")
    assert row.keys() == {
        "level", "path", "class", "label", "best", "probability", "probabilities", "uncertain", "reason", "notes",
        "logits",
    }  # fmt: skip
    assert (row["level"], row["label"], row["uncertain"], row["reason"]) == ("slice", "glioma", False, "")
    assert (row["path"], row["class"], row["notes"]) == (str(images / "a b.png"), "glioma", [])
    # (9 + 1) / (10 + 1 + 1 + 1)
    assert row["probability"] == row["probabilities"]["glioma"] == pytest.approx(10 / 13, abs=1e-6)
    assert list(row["probabilities"]) == list(CLASSES)
    assert math.isclose(sum(row["probabilities"].values()), 1.0)


def test_a_model_that_knows_when_not_to_answer_says_uncertain(runner, images, answers, ended):
    heads, labels = phantom_images(64, 32)
    logits = runner(heads)
    abstention = fit_abstention(logits, labels, heads, fit_typicality(heads))
    runner.abstention = replace(abstention, temperature=2.0, threshold=0.9)
    Image.fromarray(heads[0]).save(images / "head.png")
    flat, head = answers(images / "a b.png", images / "head.png")
    # A flat picture is no head, however sure the network is; a head is answered when the network is sure enough.
    assert (flat["class"], flat["abstained"]) == ("uncertain", "unlike the images it was trained on")
    assert flat["outlier"] > 1 >= head["outlier"]
    assert flat["probability"] == flat["probabilities"][flat["best"]]
    grey = float(heads[0][16, 16])
    expected = (grey + 1) ** 0.5 / ((grey + 1) ** 0.5 + 3)  # at temperature 2
    assert head["probability"] == pytest.approx(expected, rel=1e-5)
    assert (head["class"], head["best"], head["abstained"]) == ("uncertain", "glioma", "not sure enough")
    runner.abstention = replace(abstention, temperature=2.0, threshold=0.1)
    text = ended(predict.main(["model", str(images / "a b.png"), str(images / "head.png")])).out.splitlines()
    assert "a b.png: uncertain, unlike the images it was trained on  (glioma" in text[0]
    assert "head.png: glioma" in text[1]


def test_a_series_is_answered_by_the_limits_beside_the_model(answers, tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="the optional extra 'medical' is not installed")
    volume = np.repeat(np.asarray(picture(30))[..., None], 4, 2)  # 99 % a tumour
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1.0, -1.0, 3.0, 1.0])), tmp_path / "a.nii")
    model, scan = str(tmp_path / "model.tflite"), str(tmp_path / "a.nii")
    for label, source in (("uncertain", "built in"), ("glioma", str(tmp_path / "series_rule.json"))):
        row = answers(scan, model=model)[-1]
        assert (row["label"], row["limits_from"]) == (label, source)
        (tmp_path / "series_rule.json").write_text('{"tumour_from": 0.95}')
    assert load(model).predict(scan)[-1].label == "glioma"


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_model_that_cannot_abstain_is_told_once(runner, images, form, ended):
    error = ended(predict.main(["model", str(images), *form])).err
    assert error.count("model cannot say uncertain: it carries no abstention") == 1
    heads, labels = phantom_images(64, 32)
    runner.abstention = fit_abstention(runner(heads), labels, heads, fit_typicality(heads))
    assert "cannot say" not in ended(predict.main(["model", str(images), *form])).err


def test_text_names_class_probability_and_the_notice(runner, images, ended):
    captured = ended(predict.main(["model", str(images / "a b.png")]))
    assert captured.out == (f"{images}/a b.png: glioma 76.9 %  (meningioma 7.7 %, notumor 7.7 %, pituitary 7.7 %)\n")
    assert "not a medical device" in captured.err


def test_folders_and_globs_are_searched_in_order_and_each_image_is_answered_once(answers, images):
    expected = [str(images / "a b.png"), str(images / "deeper" / "ünï[1].png")]
    for words in ([images], [images / "**" / "*.png"], [*expected, images]):
        assert [row["path"] for row in answers(*words)] == expected


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(answers, images):
    assert answers(images / "deeper" / "ünï[1].png")[0]["probability"] == pytest.approx(7 / 10, abs=1e-6)


def test_what_cannot_be_read_is_named_and_the_rest_is_answered(runner, images, ended):
    (images / "empty.png").write_bytes(b"")
    content = (images / "a b.png").read_bytes()
    (images / "cut.png").write_bytes(content[: len(content) // 2])
    (images / "report.txt").write_text("no image: passed over")
    (images / ".hidden.png").write_bytes(b"")
    missing, pattern = str(images / "gone.png"), str(images / "*.bmp")
    captured = ended(predict.main(["model", str(images), missing, pattern, "--json"]), 1)
    rows = [json.loads(line) for line in captured.out.splitlines()]
    errors = {Path(row["path"]).name: row["error"] for row in rows if "error" in row}
    assert errors.keys() == {"empty.png", "cut.png", "gone.png", "*.bmp"}
    assert "zero bytes" in errors["empty.png"]
    assert "truncated" in errors["cut.png"]
    assert "does not exist" in errors["gone.png"]
    assert "no file matches" in errors["*.bmp"]
    assert sum("class" in row for row in rows) == 2
    for name in errors:
        assert f"not read: {images / name}" in captured.err
    assert "4 of 6 could not be read" in captured.err


def test_masks_are_left_out_with_a_word_unless_they_are_named_alone(runner, images, ended):
    (images / "masks").mkdir()
    masks = [images / "a b_mask.png", images / "masks" / "a b.png", images / "deeper" / "a-seg.tif"]
    for path in masks:
        Image.fromarray(np.diag(np.full(40, 255, np.uint8))).save(path)
    scan = str(images / "a b.png")
    for words, expected in (([images], 3), ([images / "*.png"], 1), ([scan, masks[0]], 1)):
        captured = ended(predict.main(["model", *map(str, words), "--json"]))
        rows = [json.loads(line) for line in captured.out.splitlines()]
        left_out = [row for row in rows if "left_out" in row]
        assert {row["path"] for row in left_out} <= set(map(str, masks))
        assert len(left_out) == expected
        assert scan in [row["path"] for row in rows if "class" in row]
        said = f"left out: {expected}, the first {left_out[0]['path']}: is a mask by its name"
        assert [line.startswith(said) for line in captured.err.splitlines()[-1:]] == [True]
    assert "not read" in ended(predict.main(["model", str(masks[0])]), 1).err  # alone no mask until it is looked at
    assert "1 of 1 could not be read" in ended(predict.main(["model", str(images / "masks")]), 1).err


def test_a_folder_of_a_class_of_the_model_holds_no_masks(images):
    (images / "masks").mkdir()
    picture = images / "masks" / "a b.png"
    picture.write_bytes((images / "a b.png").read_bytes())
    for classes, left_out in ((("plain",), [str(picture)]), (("Masks", "plain"), [])):
        found = [one for one in find_series([str(images)], classes=classes) if isinstance(one, Unread)]
        assert [one.path for one in found if one.left_out] == left_out


def test_of_many_files_with_one_fault_a_few_are_named_and_the_others_counted(runner, images, ended):
    for number in range(7):
        (images / f"{number}.png").write_bytes(b"")
    error = ended(predict.main(["model", str(images), "--csv", str(images / "a.csv")]), 1).err
    said = [line for line in error.splitlines() if "not read" in line]
    assert [line.split(":")[1].strip() for line in said[:3]] == [str(images / f"{number}.png") for number in range(3)]
    assert said[3:] == [
        "not read: 4 more (--json and --csv name them): has zero bytes; copy or download it again, or remove it"
    ]
    assert all(f"{number}.png" in (images / "a.csv").read_text() for number in range(7))


def test_a_folder_without_images_is_an_error(answers, tmp_path):
    assert answers(tmp_path, code=1) == [{"path": str(tmp_path), "error": "holds no images; check the folder"}]


def test_an_image_without_a_suffix_is_found_by_content_and_a_note_says_what_was_converted(answers, tmp_path):
    picture(9).convert("CMYK").save(tmp_path / "scan", "JPEG")
    (row,) = answers(tmp_path)
    assert Path(row["path"]).name == "scan"
    assert "CMYK" in row["notes"][0]


def test_many_images_go_through_in_batches(runner, answers, tmp_path):
    for index in range(70):
        picture(index, 32, 32).save(tmp_path / f"{index:02}.png")
    (tmp_path / "05.png").write_bytes(b"")
    rows = answers(tmp_path, code=1)
    assert runner.batches == [15, 16, 16, 16, 6]
    # Every answer still belongs to its own image behind the gap.
    for index, row in enumerate(rows):
        if index != 5:
            assert row["probabilities"]["glioma"] == pytest.approx((index + 1) / (index + 4), abs=1e-6)
    assert "error" in rows[5]


def test_names_that_would_break_a_terminal_are_escaped():
    assert printable("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert printable(os.fsdecode(b"caf\xe9.png")) == "caf\\xe9.png"
    assert printable("Größe.png") == "Größe.png"


def test_a_name_in_letters_that_the_locale_has_not_ends_no_command():
    code = r"from brainq_torch.console import *; escape_unprintable(); print(printable('\u5065\u5eb7'))"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | plain, capture_output=True, check=True)
    assert run.stdout.split() == [rb"\u5065\u5eb7"]


def test_a_bug_is_no_message_and_a_stop_is_one(ended):
    def fail(error):
        raise error

    with pytest.raises(ValueError, match="a bug"):
        run_command(lambda: fail(ValueError("a bug")))
    assert ended(run_command(lambda: fail(KeyboardInterrupt())), 130).err == "stopped\n"


def test_a_closed_pipe_is_no_traceback():
    code = """from brainq_torch.console import run_command
run_command(lambda: [print(i, flush=True) for i in range(99999)] and 0)"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(timeout=60)
