import dataclasses
import json

import pytest

from brainq_torch.run import load_run
from export.run.metadata import MetadataError, read_metadata, read_onnx, write_metadata
from export.run.runners import load_runner
from export.run.sample import check_run_images
from export.verify import abstention
from export.verify.abstention import ValidationPart, _leave_out_seen


@pytest.fixture(scope="module")
def run(tiny_run):
    return load_run(tiny_run)


def test_every_exported_file_says_when_it_does_not_answer(run, tiny_export):
    sample = ValidationPart.of(run, check_run_images(run)).sample
    assert set(sample.splits) == {"val"}
    for path in tiny_export.glob("model_*"):
        runner = load_runner(path)
        assert runner.abstention.fitted_on == 8
        # Float files answer as the network does.
        assert runner.abstention == run.abstention
        judged = runner.abstention.judge(runner(sample.pixels), sample.pixels)
        assert judged.answered.mean() >= 0.75
    assert load_runner(run.folder).abstention.to_json() == run.abstention.to_json()


def test_without_validation_images_the_networks_own_is_taken(run, tmp_path):
    part = ValidationPart.of(run, check_run_images(run, tmp_path))
    assert part.sample is None
    assert part.fit(tmp_path / "model.tflite", "float") is run.abstention


def test_files_of_a_restored_run_keep_what_the_network_learned_on_images_of_its_own(run, tmp_path):
    """Its validation part is drawn anew: the network may have been trained on any of it, and is too sure there."""
    restored = dataclasses.replace(run, folder=tmp_path)
    (tmp_path / "metrics.json").write_text('{"restored_from": "model_fp16.tflite"}')
    assert ValidationPart.of(restored, check_run_images(run)).fit(tmp_path / "a.tflite", "int8") is run.abstention
    config = run.config | {"data": run.config["data"] | {"manifest": "manifest.csv"}}  # the network's own splits
    assert ValidationPart.of(dataclasses.replace(restored, config=config), check_run_images(run)).sample is not None


def test_a_file_that_cannot_run_is_left_to_the_parity_ladder(run, tmp_path, tiny_export):
    broken = tmp_path / "model_fp32.onnx"
    broken.write_bytes((tiny_export / "model_fp32.onnx").read_bytes()[:2000])
    with pytest.raises(MetadataError):
        read_onnx(broken)
    assert ValidationPart.of(run, check_run_images(run)).fit(broken, "int8") is run.abstention


def test_files_that_answer_alike_are_fitted_once(run, tiny_export, monkeypatch):
    opened = []
    monkeypatch.setattr(
        abstention, "load_runner", lambda path, **said: opened.append(path) or load_runner(path, **said)
    )
    part = ValidationPart.of(run, check_run_images(run))
    paths = sorted(tiny_export.glob("model_*"))
    fits = [part.fit(path, kind) for kind in ("float", "int8") for path in paths]
    assert opened == [paths[0]]  # float files have what the network learned
    assert all(fit is run.abstention for fit in fits[:3])
    assert all(fit is fits[3] for fit in fits[3:])
    assert fits[3].temperature == pytest.approx(run.abstention.temperature, rel=0.02)


def test_a_run_of_an_earlier_version_learns_from_its_images(run):
    images = check_run_images(run)
    earlier = dataclasses.replace(run, abstention=None)
    assert ValidationPart.of(earlier, images).sample is None  # 8 images are too few to learn from
    many = dataclasses.replace(images, rows=images.rows * 20)
    part = ValidationPart.of(earlier, many)
    assert part.typicality is not None
    assert len(part.sample.labels) > 100


def test_validation_images_that_training_has_copies_of_are_left_out(run):
    images = check_run_images(run)
    training, validated = ([row for row in images.rows if row.split == split] for split in ("Training", "val"))
    copies = [dataclasses.replace(row, path=f"copy of {row.path}", group=training[0].group) for row in validated]
    fresh = [dataclasses.replace(row, path=f"{number} {row.path}") for number in range(20) for row in validated]
    many = dataclasses.replace(images, rows=(*training, *copies, *fresh))
    assert {row.path for row in _leave_out_seen(many).rows} == {row.path for row in (*training, *fresh)}
    few = dataclasses.replace(images, rows=(*training, *copies, *validated))
    assert _leave_out_seen(few) is few  # 8 images would be too few to learn from


def test_a_damaged_entry_is_named(run, tiny_export, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes((tiny_export / "model_fp16.tflite").read_bytes())
    metadata = read_metadata(path)
    data = metadata.to_json()
    del data["abstention"]["limit"]
    with pytest.raises(MetadataError, match="abstention is not as this version writes it"):
        type(metadata).from_json(json.loads(json.dumps(data)), "file")
    write_metadata(path, dataclasses.replace(metadata, abstention=None))
    assert read_metadata(path).abstention is None
    assert "abstention" not in read_metadata(path).to_json()
