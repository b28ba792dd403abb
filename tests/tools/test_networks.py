"""The command that tries networks: a row each, whatever becomes of it."""

from torch.nn import functional

from brainq_torch.console import WRONG_INPUT
from tools.networks import main

NAMES = [f"tests.support.networks:{name}" for name in ("TwoPools", "Gated", "Branching")]


def test_each_network_has_a_row_that_says_what_its_files_keep(phantoms, reported):
    rows, printed = reported(main, *NAMES, "--data", phantoms, "--size", 36, "--images", 16, "--steps", 4)
    whole, floats, none = rows
    assert (whole["onnx_max_lsb"], whole["tflite_max_lsb"], whole["note"]) == (0, 0, "")
    assert whole["parameters"] == 8 * 9 + 8 + 8 * 8 * 9 + 8 + 8 * 16 + 16 + 16 * 12 + 12 + 12 * 4 + 4
    assert 0 <= whole["fp32_max_diff"] <= 1e-4 < whole["int8_bytes"]
    assert floats["fp32_max_diff"] <= 1e-4
    assert floats["tflite_max_lsb"] is None
    assert "act (SiLU)" in floats["note"]
    assert none["fp32_max_diff"] is None
    assert "cannot be traced" in none["note"]
    assert printed.count("| tests.support.networks:") == 3


def link_classes(data, phantoms):
    """Return words for a folder of two classes of other names, a scan of one and seven of the other."""
    for name, count in (("glioma", 1), ("notumor", 7)):
        (data / f"{name} of ours").mkdir(parents=True)
        for path in sorted((phantoms / "Training" / name).iterdir())[:count]:
            (data / f"{name} of ours" / path.name).symlink_to(path.resolve())
    return ["--data", str(data), "--size", "36", "--images", "4", "--steps", "1"]


def test_it_tries_them_on_any_classes_and_with_arguments(phantoms, tmp_path, reported):
    (row,), _ = reported(main, "mobilenetv2{width_mult: 0.1}", *link_classes(tmp_path / "data", phantoms))
    assert row["fp32_max_diff"] <= 1e-4
    assert 0 < row["parameters"] < 300_000


def test_names_of_no_network_are_wrong_input(phantoms, tmp_path, ended):
    printed = ended(main(["no_such", *link_classes(tmp_path, phantoms)]), WRONG_INPUT).out
    assert "unknown model 'no_such'; allowed are" in printed


def test_each_image_is_trained_on_with_its_own_label(phantoms, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(functional, "cross_entropy", lambda logits, labels: asked.extend(labels.tolist()) or 1 / 0)
    assert main([NAMES[0], *link_classes(tmp_path, phantoms)]) == 0
    assert asked == [0, 1, 1, 1]
