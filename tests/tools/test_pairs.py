"""Pairs tell a model that goes by the lesion from one that goes by the source."""

import numpy as np
import pytest

from brainq_torch.console import WRONG_INPUT
from brainq_torch.data.classes import GLIOMA, MENINGIOMA, NOTUMOR
from brainq_torch.data.dataset.manifest import ManifestRow, write_manifest
from brainq_torch.run_files import hash_file
from tests.brainq_torch.data.synthesis.test_midline import draw_head
from tools.pairs import interval, main, make_pairs, measure
from tools.shared.command import CommandError

ORDER = range(4)


@pytest.fixture(scope="module")
def heads():
    """Tumour-free heads with a bright scalp, tumour heads with a dim one: the source goes with the class."""
    rng = np.random.default_rng(0)
    images = [draw_head(), draw_head(), *(0.5 * draw_head(column, 0.8) for column in (44, 83, 46, 81))]
    noisy = [np.clip(image + 0.01 * rng.standard_normal(image.shape) * (image > 0), 0, 1) for image in images]
    labels = np.array([NOTUMOR, NOTUMOR, GLIOMA, GLIOMA, MENINGIOMA, MENINGIOMA])
    return np.stack([np.round(255 * image).astype(np.uint8) for image in noisy]), labels


@pytest.fixture(scope="module")
def pairs(heads):
    return make_pairs(*heads, count=12)


def answer(names):
    return np.eye(4, dtype=np.float32)[names]


def by_source(images):
    """Name every dim head a glioma, whatever is in it."""
    return answer(np.where(np.quantile(images, 0.97, axis=(1, 2)) < 110, GLIOMA, NOTUMOR))


def by_knowledge(pairs):
    """Name both sides of every pair rightly, as they come: first all heads before, then all after."""
    sides = iter(np.array(pairs.labels).T)
    return lambda images: answer(next(sides))


def test_kinds_and_labels(pairs):
    assert {kind: len(made.labels) for kind, made in pairs.items()} == dict.fromkeys(
        ("painted", "transplanted", "cleared"), 12
    )
    for kind in ("painted", "transplanted"):
        assert {before for before, _ in pairs[kind].labels} == {NOTUMOR}
        assert {after for _, after in pairs[kind].labels} == {GLIOMA, MENINGIOMA}
    assert {after for _, after in pairs["cleared"].labels} == {NOTUMOR}
    for made in pairs.values():
        for before, after in zip(made.before, made.after, strict=True):
            assert before.shape == after.shape
            assert (before != after).any()


def test_a_model_that_goes_by_the_source_tells_no_pair_apart(pairs):
    for made in pairs.values():
        figures = measure(by_source, ORDER, made)
        assert figures["pairs_told_apart"][0] == 0.0
    assert measure(by_source, ORDER, pairs["painted"])["normal_named"][0] == 1.0
    assert measure(by_source, ORDER, pairs["cleared"])["tumours_found"][0] == 1.0


def test_a_model_that_knows_tells_all_apart(pairs):
    for made in pairs.values():
        figures = measure(by_knowledge(made), ORDER, made)
        assert [figures[name][0] for name in figures if name != "pairs"] == [1.0] * 4


def test_wilson_interval_against_published_values():
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81/263 and 0/20, method 3
    assert interval(81, 263) == [0.308, 0.2553, 0.3662]
    assert interval(0, 20) == [0.0, 0.0, 0.1611]


def test_pairs_need_both_sides(heads):
    pixels, labels = heads
    with pytest.raises(CommandError, match="notumor"):
        make_pairs(pixels[labels != NOTUMOR], labels[labels != NOTUMOR], count=1)


def test_command_refuses_an_empty_part_and_images_that_are_not_the_manifests(phantoms, tiny_run, tmp_path, ended):
    path = next((phantoms / "Training" / "glioma").iterdir())
    manifest = tmp_path / "manifest.csv"
    name = path.relative_to(phantoms).as_posix()
    write_manifest(manifest, [ManifestRow(name, "glioma", "Training", "", hash_file(path))])
    words = [str(tiny_run), "--data", str(phantoms), "--manifest", str(manifest)]
    assert "no images in part 'val'" in ended(main(words), WRONG_INPUT).err
    words = [str(tiny_run), "--data", str(tmp_path), "--manifest", str(tiny_run / "manifest.csv")]
    error = ended(main(words), WRONG_INPUT).err
    assert "are not those of the run's manifest" in error
    assert error.count("\n") == 1


def test_command_writes_its_figures(tiny_run, phantoms, heads, reported, monkeypatch):
    monkeypatch.setattr("tools.pairs.load_pixels", lambda folder, spec: heads[0])
    monkeypatch.setattr("tools.pairs.make_pairs", lambda pixels, labels, count: {"painted": _resized(heads, count)})
    report, _ = reported(main, tiny_run, "--data", phantoms, "--manifest", tiny_run / "manifest.csv", "--count", 3)
    figures = report["models"][str(tiny_run)]["painted"]
    assert figures["pairs"] == 3
    assert set(figures) == {"pairs", "tumours_found", "tumours_named", "normal_named", "pairs_told_apart"}


def _resized(heads, count):
    made = make_pairs(*heads, count=count)["painted"]
    small = ([image[::4, ::4].copy() for image in side] for side in (made.before, made.after))
    return made._replace(**dict(zip(("before", "after"), small, strict=True)))
