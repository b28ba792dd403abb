"""Figures with letters that matplotlib's own font has not."""

import warnings

import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from brainq_torch.evaluation.figure import save_figure


@pytest.fixture(autouse=True)
def own_fonts(monkeypatch):
    """Matplotlib's own alone, whatever this machine has."""
    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if "mpl-data" in font.fname])


def draw(text, path, **more):
    figure = Figure()
    title = figure.add_subplot().set_title(text, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, path, dpi=50)
    return title


def test_letters_that_no_font_has_are_said_once_with_the_files_name(tmp_path, capsys):
    draw("健康 é 健", tmp_path / "a.png")
    assert capsys.readouterr().err == ("note: a.png: no font here has 健康; install one that does (Noto Sans CJK)\n")
    assert (tmp_path / "a.png").is_file()


def test_letters_that_another_font_has_are_drawn_in_that(tmp_path, capsys):
    title = draw("Schädel", tmp_path / "a.png", family="STIXSizeOneSym")
    assert title.get_fontfamily()[0] == "STIXSizeOneSym"
    assert len(title.get_fontfamily()) > 1
    draw("Schädel", tmp_path / "b.png")
    assert not capsys.readouterr().err
