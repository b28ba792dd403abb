import numpy as np
import pytest
from PIL import Image

from export.run.runners import load_runner
from tools.abstention import __main__ as abstention
from tools.abstention.outliers import KINDS, draw_outliers


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(abstention, "DRAWN", 4)


def test_the_report_has_every_kind_and_its_figures(few, tiny_run, phantoms, tmp_path, reported):
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (90, 1))).save(tmp_path / "pictures" / "ramp.png")
    words = ["--data", phantoms, "--outliers", tmp_path / "pictures", "--plot", tmp_path / "a.png", "--threads=1"]
    data, said = reported(abstention.main, tiny_run, *words)
    assert data["outliers"].keys() == {*KINDS, "inverted", "pictures in the folder"}
    assert data["outliers"]["blank"]["n"] == 4
    assert data["outliers"]["blank"]["auroc"] == 1.0
    for row in data["outliers"].values():
        assert row["tumour"] <= min(row["answered"], row["tumour_without"])
    assert (data["split"], data["n"], data["curve"][-1]) == ("Testing", 12, [1.0, round(data["accuracy_of_all"], 4)])
    assert data["threshold"] == load_runner(tiny_run).abstention.threshold
    assert Image.open(tmp_path / "a.png").width > 800
    assert "called a tumour" in said
    assert "% both" in said
    assert "answered" in said


def test_a_model_without_abstention_is_refused(monkeypatch, tiny_run, phantoms, ended):
    runner = load_runner(tiny_run)
    runner.abstention = None
    monkeypatch.setattr(abstention, "load_runner", lambda *_: runner)
    assert "export it again" in ended(abstention.main([str(tiny_run), "--data", str(phantoms)]), 2).err


def test_an_empty_folder_of_pictures_is_named(few, tiny_run, phantoms, tmp_path, ended):
    words = [str(tiny_run), "--data", str(phantoms), "--outliers", str(tmp_path)]
    assert "holds no images" in ended(abstention.main(words), 2).err


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_drawn_the_same_again_and_differ(kind):
    one, other = draw_outliers(kind, 3), draw_outliers(kind, 3)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert one[0].shape == (256, 256)
    assert len({picture.tobytes() for picture in [*one, *draw_outliers(kind, 3, seed=1)]}) >= 3
