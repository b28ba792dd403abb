"""What the rule of a series is worth, on slices whose probabilities are known."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.series.rule import SeriesAnswer, SeriesRule
from tools import series_rule

PATIENTS = 40


class MiddleRunner:
    """Glioma is as likely as the middle is bright."""

    classes, pixels, abstention = CLASSES, PixelSpec(32), None

    def __call__(self, images):
        bright = images[:, 16, 16].astype(np.float32) / 16
        return np.stack([bright, np.zeros_like(bright), np.full_like(bright, 7), np.zeros_like(bright)], axis=1)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Five tumour-free slices and three with a tumour of each patient."""
    monkeypatch.setattr(series_rule, "load_runner", lambda model, threads: MiddleRunner())
    rows = []
    for patient in range(PATIENTS):
        for number in range(8):
            is_tumour = 3 <= number < 6
            pixels = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
            pixels[8:24, 8:24] = 240 if is_tumour else 30
            name = f"{patient:02}_{number}.png"
            Image.fromarray(pixels).save(tmp_path / name)
            rows.append((name, "glioma" if is_tumour else "notumor", f"patient {patient}", "T1", "a"))
    with (tmp_path / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "class", "group", "sequence", "source"), *rows])
    return tmp_path


def test_the_halves_share_no_patient_and_series_are_what_they_say(data):
    rows = series_rule.read_rows(data / "images.csv", "")
    healthy = np.array([row["class"] == "notumor" for row in rows])
    halves = [series_rule.split_series(rows, healthy, part) for part in (0, 1)]
    patients = [{group for group, _ in half["tumour"]} for half in halves]
    assert patients[0] | patients[1] == {f"patient {number}" for number in range(PATIENTS)}
    assert not patients[0] & patients[1]
    for half in halves:
        assert all(len(at) == 8 for _, at in half["tumour"])
        assert all(healthy[at].all() and len(at) == 5 for _, at in half["own tumour-free"])
        assert all(healthy[at].all() and 24 <= len(at) < 29 for _, at in half["joined to 24"])


def test_what_can_be_told_apart_is(data, reported):
    report, printed = reported(series_rule.main, "model", "--data", data)
    found = report["model"]
    assert found["slices"]["tumour"]["right"]["hits"] == 3 * PATIENTS
    for told in (found["rules"]["built in"], found["rules"]["fitted, 1 neighbours on each side"]):
        tumours, free = told["tumour"]["series"], told["own tumour-free"]["series"]
        assert tumours["tumour"]["hits"] == tumours["tumour"]["n"] > 0
        assert free["notumor"]["hits"] == free["notumor"]["n"] == tumours["tumour"]["n"]
    assert "| tumour          | " in printed
    assert "100 % [" in printed


def test_what_was_fitted_is_kept_beside_the_model_and_measured_the_next_time(data, tmp_path, reported, ended):
    model = tmp_path / "model.tflite"
    (first, printed), (second, _) = (reported(series_rule.main, model, "--data", data, "--keep") for _ in range(2))
    assert f"wrote {tmp_path / 'series_rule.json'}" in printed
    before, own = first[str(model)]["rules"], second[str(model)]["rules"]["the model's own"]
    assert "the model's own" not in before
    assert own == before["fitted, 1 neighbours on each side"]
    assert json.loads((tmp_path / "series_rule.json").read_text()) == own["rule"]
    words = [str(model), "other", "--data", str(data), "--keep"]
    assert "--keep is for one MODEL, 2 are named" in ended(series_rule.main(words), 2).err


def test_no_tumour_free_series_that_fitted_the_limits_is_called_a_tumour():
    said = {kind: [SeriesAnswer(None, None, "", value, 0) for value in values] for kind, values in
            {"tumour": [0.5, 0.9], "own tumour-free": [0.7], "joined to 8": []}.items()}  # fmt: skip
    low, high = series_rule._fit_limits(said)
    assert (low, high) == (pytest.approx(0.52), pytest.approx(0.7))
    values = np.array([[0.7, 0.0, 0.3, 0.0]])
    assert SeriesRule(0, low, float(1 - values[0, 2]), 1).judge(CLASSES, values, [True]).label == "glioma"
    assert SeriesRule(0, low, high, 1).judge(CLASSES, values, [True]).label is None


def test_too_few_patients_and_a_source_that_is_not_there_are_a_line(data, ended):
    words = ["model", "--data", str(data)]
    nowhere = ended(series_rule.main([*words, "--sources", "b"]), 2).err
    assert "has no source whose name begins with b; leave --sources out" in nowhere
    lines = (data / "images.csv").read_text().splitlines()
    (data / "images.csv").write_text("\n".join([line for line in lines if "notumor" not in line]))
    few = ended(series_rule.main(words), 2).err
    assert "series with a tumour and 0 of 3 or more slices without; both are needed" in few


def test_a_table_that_is_missing_or_has_no_patients_is_refused(tmp_path, capsys):
    words = ["results/robust_mobilenetv2/model_int8.tflite", "--data", str(tmp_path)]
    assert series_rule.main(words) == 2
    assert "is missing; write one with the columns path, class, group, sequence" in capsys.readouterr().err
    (tmp_path / "images.csv").write_text("\ufeffpath;Class\r\na.png;glioma\r\n")
    assert series_rule.main(words) == 2
    assert "has no group, sequence; it needs the columns path, class, group, sequence" in capsys.readouterr().err
