import json

import numpy as np
import pytest
from PIL import Image

from export.run.runners import load_runner
from tools.abstention import __main__ as abstention
from tools.abstention.outliers import KINDS, draw_outliers


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(abstention, "DRAWN", 4)


def test_the_report_has_every_kind_and_its_figures(few, tiny_run, phantoms, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (90, 1))).save(tmp_path / "pictures" / "ramp.png")
    words = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"), "--threads=1"]
    more = ["--data", str(phantoms), "--outliers", str(tmp_path / "pictures")]
    assert abstention.main([str(tiny_run), *more, *words]) == 0
    data = json.loads((tmp_path / "a.json").read_text())
    assert data["outliers"].keys() == {*KINDS, "inverted", "pictures in the folder"}
    assert data["outliers"]["blank"]["n"] == 4
    assert data["outliers"]["blank"]["auroc"] == 1.0
    for row in data["outliers"].values():
        assert row["tumour"] <= min(row["answered"], row["tumour_without"])
    assert (data["split"], data["n"], data["curve"][-1]) == ("Testing", 12, [1.0, round(data["accuracy_of_all"], 4)])
    assert data["threshold"] == load_runner(tiny_run).abstention.threshold
    assert Image.open(tmp_path / "a.png").width > 800
    said = capsys.readouterr().out
    assert "called a tumour" in said
    assert "answered" in said


def test_a_model_without_abstention_is_refused(monkeypatch, tiny_run, phantoms, ended):
    runner = load_runner(tiny_run)
    runner.abstention = None
    monkeypatch.setattr(abstention, "load_runner", lambda *_: runner)
    assert "export it again" in ended(abstention.main([str(tiny_run), "--data", str(phantoms)]), 2).err


def test_an_empty_folder_of_pictures_is_named(few, tiny_run, phantoms, tmp_path, capsys):
    assert abstention.main([str(tiny_run), "--data", str(phantoms), "--outliers", str(tmp_path)]) == 2
    assert "holds no images" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_drawn_the_same_again_and_differ(kind):
    one, other = draw_outliers(kind, 3), draw_outliers(kind, 3)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert one[0].shape == (256, 256)
    assert len({picture.tobytes() for picture in [*one, *draw_outliers(kind, 3, seed=1)]}) >= 3
