"""Answers of slices and of series, with a network whose logits are known."""

import argparse
import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from brainq_torch.console import drop_output
from brainq_torch.data.classes import CLASSES
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.synthesis.phantom import render_phantom
from brainq_torch.run_files import BrainqError
from brainq_torch.series import answer, show
from brainq_torch.series.answer import Answerer, BrokenModelError, answer_series
from brainq_torch.series.find import find_series
from brainq_torch.series.kept_file import KeptFileError
from brainq_torch.series.rule import SeriesRule
from brainq_torch.series.show import answer_command
from tests.brainq_torch.series.test_find import nibabel, write_series  # skips this file where it is absent

RULE = SeriesRule(neighbours=1, healthy_up_to=0.3, tumour_from=0.7, fewest=3)


def see_middle(images, names):
    """Glioma where the middle is bright, no tumour where it is dark: probabilities of 0.997 and 0.001 each."""
    bright = images[:, 16, 16] > 127
    logits = np.zeros((len(images), 4), np.float32)
    logits[bright, 0] = logits[~bright, 2] = np.log(997.0)
    return logits


def answerer(run=see_middle):
    return Answerer(PixelSpec(32), CLASSES, None, run, RULE)


def write_volume(path, bright):
    """A ramp whose middle is bright or dark in each slice; nothing where it is None."""
    volume = np.zeros((48, 48, len(bright)), np.int16)
    for index, is_bright in enumerate(bright):
        if is_bright is not None:
            volume[..., index] = np.add.outer(np.arange(48), np.arange(48)) * 10
            volume[16:32, 16:32, index] = 940 if is_bright else 20
    kind = nibabel.Nifti1Pair if str(path).endswith(".hdr") else nibabel.Nifti1Image
    nibabel.save(kind(volume, np.diag([-1.0, -1.0, 3.0, 1.0])), path)
    return str(path)


def asked(**more):
    return argparse.Namespace(**{"slices": "all", "plane": None, "limits": None, "csv": None, "montage": None} | more)


def rows(words, slices="all", run=see_middle):
    series = find_series([str(word) for word in words])
    return [found.row for found in answer_series(answerer(run), series, slices)]


def test_every_slice_is_answered_and_then_the_series(tmp_path):
    bright = [None, False, False, True, True, True, False]
    path = write_volume(tmp_path / "a.nii.gz", bright)
    asked = []
    *slices, series = rows([path], run=lambda images, names: asked.append(names) or see_middle(images, names))
    assert asked == [[path] * 6]  # in one call: dealing images out to threads is the model's own business
    labels = {None: "uncertain", True: "glioma", False: "notumor"}
    assert [row["label"] for row in slices] == [labels[is_bright] for is_bright in bright]
    assert [(row["level"], row["slice"], row["position_mm"]) for row in slices] == [
        ("slice", number, 3.0 * (number - 1)) for number in range(1, 8)
    ]
    assert all(row["path"] == row["series"] == path for row in slices)
    assert (slices[0]["probabilities"], slices[0]["uncertain"]) == (None, True)
    assert "fewer than 16 grey levels" in slices[0]["reason"]
    assert series["tumour"] == pytest.approx(0.999)
    strongest = series.pop("strongest")
    assert (strongest["slice"], strongest["position_mm"]) == (4, 9.0)
    assert strongest["probability"] == pytest.approx(0.997)
    wanted = {
        "level": "series", "series": path, "slices": 7, "answered": 7, "label": "glioma", "uncertain": False,
        "reason": "", "carried_by": [4, 5, 6],
        "counts": {"glioma": 3, "meningioma": 0, "notumor": 3, "pituitary": 0, "uncertain": 1},
    }  # fmt: skip
    assert {key: series[key] for key in wanted} == wanted


def test_one_bright_slice_alone_is_uncertain_and_none_is_healthy(tmp_path):
    *_, alone = rows([write_volume(tmp_path / "a.nii", [False] * 4 + [True] + [False] * 4)])
    # (0.999 + 2 * 0.003) / 3 lies between the limits
    assert alone["tumour"] == pytest.approx(0.335)
    assert (alone["label"], alone["best"], alone["uncertain"]) == ("uncertain", "glioma", True)
    *_, none = rows([write_volume(tmp_path / "b.nii", [False] * 9)])
    assert (none["label"], none["carried_by"]) == ("notumor", list(range(1, 10)))


def test_chosen_slices(tmp_path):
    path = write_volume(tmp_path / "a.nii", [False] * 9)
    middle, series = rows([path], "middle")
    assert (middle["slice"], series["slices"], series["answered"], series["label"]) == (5, 9, 1, "uncertain")
    assert series["reason"] == "1 slice counts, 3 are needed"
    assert [row.get("slice") for row in rows([path], "every=4")] == [1, 5, 9, None]
    (wrong,) = rows([path], "10")
    assert wrong["error"] == "has 9 slices, none of them is --slices 10"


def test_a_localizer_is_left_out_of_the_series_answer_with_a_note(tmp_path):
    write_series(tmp_path / "a", "1.2.3", [1.0, 2.0, 3.0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    *slices, series = rows([tmp_path / "a"])
    assert [row["slice"] for row in slices] == [1, 2, 3]
    assert (series["label"], series["reason"]) == ("uncertain", "no slice counts")
    assert series["notes"] == ["3 slices left out: each is a localizer (ImageType LOCALIZER)"]


def test_slices_unlike_the_training_images_do_not_count(tmp_path, monkeypatch):
    path = write_volume(tmp_path / "a.nii", [False] * 5 + [True] * 4)
    judged = answer.judge
    monkeypatch.setattr(answer, "judge", lambda *given: [
        row | {"outlier": 2.0 if row["best"] == "glioma" else 0.5} for row in judged(*given)
    ])  # fmt: skip
    *_, series = rows([path])
    assert (series["label"], series["carried_by"]) == ("notumor", [1, 2, 3, 4, 5])
    assert series["notes"] == ["4 slices do not count: unlike the images it was trained on"]


def test_a_long_command_says_how_far_it_is(tmp_path, monkeypatch, ended):
    monkeypatch.setattr(show, "_SAY_EVERY_S", 0.0)
    path = write_volume(tmp_path / "a.nii", [False] * 3)
    options = asked(images=[path], json=True)
    assert "... 0 files looked at, 4 answers" in ended(answer_command(answerer(), options)).err


def test_a_slice_that_cannot_be_read_does_not_stop_the_rest(tmp_path):
    write_series(tmp_path / "a", "1.2.3", [1.0, 2.0, 3.0, 4.0])
    write_series(tmp_path / "b", "1.2.3", [5.0], ImageType=["ORIGINAL", "MOSAIC"])
    *slices, series = rows([tmp_path])
    assert "is a mosaic" in slices[4]["error"]
    assert (series["answered"], series["notes"]) == (4, ["1 slice could not be read"])


def test_a_broken_model_is_an_error_of_each_image(tmp_path):
    def fail(images, names):
        raise BrokenModelError("broken")

    assert [row["error"] for row in rows([write_volume(tmp_path / "a.nii", [True] * 3)], run=fail)] == ["broken"]


def test_a_damaged_volume_is_told_of_once(tmp_path):
    path = Path(write_volume(tmp_path / "a.nii.gz", [True] * 40))
    path.write_bytes(path.read_bytes()[:-400])
    (row,) = rows([path])
    assert "truncated" in row["error"]
    write_volume(tmp_path / "b.hdr", [True] * 40)
    (tmp_path / "b.img").unlink()
    assert ["one half of a NIfTI pair" in row["error"] for row in rows([tmp_path / "b.hdr"])] == [True]


def test_the_command_prints_lines_and_what_it_comes_to(tmp_path, ended):
    paths = [write_volume(tmp_path / f"{name}.nii", bright) for name, bright in (("a", [True] * 5), ("b", [False] * 5))]
    options = asked(images=paths, json=False)
    printed = ended(answer_command(answerer(), options))
    assert printed.out.splitlines()[5].startswith(
        f"SERIES {paths[0]}: glioma  (5 slices: 5 glioma; strongest: glioma, slice"
    )
    limits = "limits of a series: up to 0.3 notumor, from 0.7 a tumour (built in)"
    assert printed.err.splitlines()[-2:] == [limits, "2 series: 1 glioma, 1 notumor"]
    options.json = True
    printed = [json.loads(line) for line in ended(answer_command(answerer(), options, model="m")).out.splitlines()]
    assert [row["level"] for row in printed] == ["slice"] * 5 + ["series"] + ["slice"] * 5 + ["series"]
    assert {row["model"] for row in printed} == {"m"}


def test_limits_of_other_patients_may_be_given(tmp_path, ended):
    path = write_volume(tmp_path / "a.nii", [False, False, True, False, False])
    for limits, label in ((None, "uncertain"), ([0.1, 0.3], "glioma"), ([0.4, 0.9], "notumor")):
        printed = ended(answer_command(answerer(), asked(images=[path], json=True, limits=limits))).out
        row = json.loads(printed.splitlines()[-1])
        told = (limits, "--limits") if limits else ([0.3, 0.7], "built in")
        assert (row["label"], row["limits"], row["limits_from"]) == (label, *told)
    for limits in ([0.9, 0.1], [0.2, float("nan")], [-1.0, 0.5]):
        with pytest.raises(BrainqError, match=r"--limits is .*; allowed are two probabilities from 0 to 1"):
            answer_command(answerer(), asked(images=[path], json=True, limits=limits))


def test_a_model_without_a_healthy_class_gives_no_series_answer():
    said = RULE.judge(("a", "b"), np.full((9, 2), 0.5), [True] * 9)
    assert (said.label, said.reason) == (None, "the model has no class notumor")


def test_a_table_and_a_sheet_hold_what_was_answered(tmp_path, ended):
    path = write_volume(tmp_path / "a.nii", [None, False, True, True, True])
    (tmp_path / "empty.png").write_bytes(b"")
    kept = {"csv": str(tmp_path / "a.csv"), "montage": str(tmp_path / "sheet.png")}
    options = asked(images=[path, str(tmp_path / "empty.png")], json=True, **kept)
    printed = [json.loads(line) for line in ended(answer_command(answerer(), options), 1).out.splitlines()]
    with (tmp_path / "a.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["label"] for row in table] == [row.get("label", "") for row in printed]
    assert float(table[2]["glioma"]) == printed[2]["probabilities"]["glioma"]
    assert (table[5]["level"], table[5]["counts"], table[5]["carried_by"]) == (
        "series", "3 glioma, 1 notumor, 1 uncertain", "3 4 5",
    )  # fmt: skip
    assert "zero bytes" in table[6]["error"]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    tops = [20 + 2, 20 + 2]  # below the title, the frame's third row
    frames = [tuple(map(int, sheet[top, place * 134 + 60])) for top, place in zip(tops, (0, 1), strict=True)]
    assert frames == [(0, 160, 135), (230, 75, 53)]  # the empty slice has no tile: no tumour first, then glioma
    options.montage = str(tmp_path / "sheet.jpg")
    with pytest.raises(KeptFileError, match=r"name a \.png file"):
        answer_command(answerer(), options)


def test_a_reader_who_leaves_costs_the_table_no_answer(tmp_path, monkeypatch):
    """``predict ... --csv all.csv --json | head -2`` left a table of two lines."""
    path, table = write_volume(tmp_path / "a.nii", [True] * 5), tmp_path / "a.csv"
    for kept in ({"csv": str(table)}, {}):
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as gone:
            monkeypatch.setattr("sys.stdout", gone)
            if kept:
                assert answer_command(answerer(), asked(images=[path], json=True, **kept)) == 0
            else:
                with pytest.raises(BrokenPipeError):
                    answer_command(answerer(), asked(images=[path], json=True))
                drop_output()  # or closing it would raise again
    assert len(table.read_text().splitlines()) == 7  # with the names of columns and the series


def test_a_sheet_names_classes_in_letters_that_its_font_has(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda pen, place, text, **more: drawn.append(text))
    path = write_volume(tmp_path / "Schädel 頭.nii", [True, False])
    named = replace(answerer(), classes=("tumeur bénigne", "b", "健康", "d"))
    options = asked(images=[path], json=True, montage=str(tmp_path / "sheet.png"))
    assert answer_command(named, options) == 0
    assert drawn[:2] == ["1 tumeur benigne 100 %", "2 class 3 100 %"]
    assert "Schadel ?.nii" in drawn[2]
    assert all(text.isascii() for text in drawn)


@pytest.mark.parametrize("word", ["csv", "montage"])
def test_what_is_kept_never_replaces_a_scan_but_an_earlier_answer(tmp_path, word):
    scan = Path(write_volume(tmp_path / "a.nii", [True] * 3))
    picture = tmp_path / "b.png"
    Image.fromarray(render_phantom(0, 1, size=64)).save(picture)
    for place in (picture, *([scan] if word == "csv" else [])):
        whole = place.read_bytes()
        with pytest.raises(KeptFileError, match=rf"{place.name} is an image, which would be lost"):
            answer_command(answerer(), asked(images=[str(scan)], json=True, **{word: str(place)}))
        assert place.read_bytes() == whole
    model = tmp_path / "model.png"
    model.write_bytes(b"\x1c\0\0\0TFL3")
    with pytest.raises(KeptFileError, match="is a model or another file that is no text, which would be lost"):
        answer_command(answerer(), asked(images=[str(scan)], json=True, **{word: str(model)}))
    for place in (tmp_path, tmp_path / "gone" / "a.png"):
        with pytest.raises(KeptFileError, match="cannot be written"):
            answer_command(answerer(), asked(images=[str(scan)], json=True, **{word: str(place)}))
    place = tmp_path / {"csv": "table.csv", "montage": "sheet.png"}[word]
    found = []
    for images in ([scan], [scan, picture]):
        assert answer_command(answerer(), asked(images=list(map(str, images)), json=True, **{word: str(place)})) == 0
        found.append(place.read_bytes())
    assert found[0] != found[1]
