import shutil

import numpy as np
import pytest

from brainq_torch.data.dataset.manifest import read_manifest
from brainq_torch.data.synthesis.corruptions import shift_all
from brainq_torch.evaluation.unseen import find_unseen
from export.run.runners import load_runner
from tools.predictions import main
from tools.shared.images import choose_images, decode_images

ARRAYS = {"logits", "labels", "paths", "unseen", "shifted_logits"}


def predict(model, run, data, out):
    return main([str(model), "--run", str(run), "--data", str(data), "--out", str(out), "--threads", "1"])


def test_every_held_out_image_is_answered_in_the_manifest_order(tiny_run, tiny_export, phantoms, tmp_path):
    model = tiny_export / "model_fp16.tflite"
    assert predict(model, tiny_run, phantoms, tmp_path / "a.npz") == 0
    rows = read_manifest(tiny_run / "manifest.csv")
    with np.load(tmp_path / "a.npz") as file:
        arrays = dict(file)
    assert set(arrays) == ARRAYS | {f"val_{name}" for name in ARRAYS} | {"abstention"}
    runner = load_runner(model)
    for split, prefix in (("Testing", ""), ("val", "val_")):
        listed = [row for row in rows if row.split == split]
        assert arrays[prefix + "paths"].tolist() == [row.path for row in listed]
        images = choose_images(phantoms, split, str(tiny_run / "manifest.csv"))[1]
        pixels = decode_images(images, runner.pixels)[1]
        assert [runner.classes[label] for label in arrays[prefix + "labels"]] == [row.label for row in listed]
        np.testing.assert_array_equal(arrays[prefix + "logits"], runner(pixels))
        shifted = shift_all(pixels, [row.path for row in listed], runner.pixels)[: len(listed) if not prefix else 0]
        np.testing.assert_array_equal(arrays[prefix + "shifted_logits"], runner(shifted))
        np.testing.assert_array_equal(arrays[prefix + "unseen"], find_unseen(rows, split))
    assert arrays["abstention"].tolist() == [runner.abstention.temperature, runner.abstention.threshold]
    assert list(tmp_path.iterdir()) == [tmp_path / "a.npz"]


def test_other_sources_are_answered_beside(tiny_run, tiny_export, phantoms, tmp_path, ended):
    """From class folders, where the folder is the source, and from a table that names it and lacks classes."""
    model, table = tiny_export / "model_fp16.tflite", tmp_path / "scans" / "images.csv"
    images = sorted((phantoms / "Testing/glioma").iterdir())[:2]
    table.parent.mkdir()
    for image in images:
        shutil.copy(image, table.parent)
    table.write_text("path,class,source\n" + "".join(f"{image.name},glioma,far\n" for image in images))
    words = ["--run", str(tiny_run), "--data", str(phantoms), "--out", str(tmp_path / "a.npz"), "--elsewhere"]
    assert main([str(model), *words, str(table), str(phantoms / "Testing")]) == 0
    with np.load(tmp_path / "a.npz") as file:
        assert file["elsewhere_sources"].tolist() == ["far"] * 2 + [str(phantoms / "Testing")] * 12
        np.testing.assert_array_equal(file["elsewhere_labels"][2:], file["labels"])
        np.testing.assert_array_equal(file["elsewhere_logits"][2:], file["logits"])
        kept = [file["paths"].tolist().index(f"Testing/glioma/{image.name}") for image in images]
        np.testing.assert_array_equal(file["elsewhere_logits"][:2], file["logits"][kept])
    (table.parent / images[0].name).write_bytes(b"no picture")
    assert "cannot be read" in ended(main([str(model), *words, str(table)]), 2).err


def test_without_a_validation_part_its_arrays_are_empty_and_without_groups_it_is_refused(
    tiny_run, tiny_export, phantoms, tmp_path, ended
):
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.csv").write_text((tiny_run / "manifest.csv").read_text().replace(",val,", ",Training,"))
    assert predict(tiny_export / "model_fp16.tflite", run, phantoms, tmp_path / "a.npz") == 0
    with np.load(tmp_path / "a.npz") as file:
        assert file["val_logits"].shape == (0, 4)
        assert len(file["val_paths"]) == len(file["val_unseen"]) == 0
        assert len(file["logits"]) == 12
    lines = [line.split(",") for line in (run / "manifest.csv").read_text().splitlines()]
    lines[1][3] = ""
    (run / "manifest.csv").write_text("\n".join(",".join(line) for line in lines) + "\n")
    said = ended(predict(tiny_export / "model_fp16.tflite", run, phantoms, tmp_path / "a.npz"), 2).err
    assert "does not say which images belong together" in said


@pytest.mark.parametrize("out", ["a.npy", "absent/a.npz"])
def test_a_wrong_target_is_refused_before_any_work(tiny_run, phantoms, tmp_path, out, ended):
    assert "absent.tflite" not in ended(predict("absent.tflite", tiny_run, phantoms, tmp_path / out), 2).err
