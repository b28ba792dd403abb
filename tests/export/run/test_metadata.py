import json

import numpy as np
import onnx
import pytest

from brainq_torch.abstention.outlier import fit_typicality
from brainq_torch.abstention.policy import fit_abstention
from brainq_torch.data.classes import CLASSES
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.run_files import hash_file
from export.graph.flatbuffer import read_model, write_model
from export.run.metadata import FileMetadata, MetadataError, read_metadata, write_metadata
from tests.support.handmade_models import write_float_onnx, write_float_tflite

METADATA = FileMetadata(("no tumour", "Tumör"), PixelSpec(96, "pad"), {"commit": None, "versions": {"torch": "2"}})
WRITERS = {".onnx": write_float_onnx, ".tflite": write_float_tflite}


def put(path, text):
    """Put any text where our JSON belongs."""
    write_metadata(path, METADATA)
    if path.suffix == ".onnx":
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {"brainq": text})
        onnx.save(model, path)
        return
    model = read_model(path)
    entry = next(entry for entry in model.metadata if entry.name == b"brainq")
    model.buffers[entry.buffer].data = np.frombuffer(text.encode(), np.uint8)
    write_model(model, path)


@pytest.fixture(params=[".onnx", ".tflite"])
def path(request, tmp_path):
    return WRITERS[request.param](tmp_path / f"model{request.param}")


def test_is_read_back_as_written_and_writing_again_replaces_and_does_not_grow(path):
    write_metadata(path, METADATA)
    assert read_metadata(path) == METADATA
    once = path.read_bytes()
    write_metadata(path, FileMetadata(("a", "b"), PixelSpec(64), {}))
    write_metadata(path, METADATA)
    assert path.read_bytes() == once


GOOD = METADATA.to_json()


def test_what_another_writer_put_there_is_read_and_kept(tmp_path):
    path = write_float_onnx(tmp_path / "model.onnx")
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"author": "someone", "brainq": json.dumps(GOOD)})
    onnx.save(model, path)
    assert read_metadata(path) == METADATA
    write_metadata(path, METADATA)
    assert {entry.key for entry in onnx.load(path).metadata_props} == {"author", "brainq"}


def test_an_export_says_its_classes_pixels_and_origin(tiny_run, tiny_export):
    for name in ("model_fp32.onnx", "model_fp32.tflite", "model_fp16.tflite"):
        metadata = read_metadata(tiny_export / name)
        assert metadata.classes == CLASSES
        assert metadata.pixels == PixelSpec(32, "stretch")
        assert metadata.provenance["recipe"] == name.split("_")[1].split(".")[0]
        assert metadata.provenance["checkpoint_sha256"] == hash_file(tiny_run / "model.ckpt")
        assert metadata.provenance["config_sha256"] == hash_file(tiny_run / "config.yaml")
        assert {"torch", "onnx2tf", "brainq_torch"} <= metadata.provenance["versions"].keys()


def test_a_file_without_an_entry_says_what_to_do(path):
    with pytest.raises(MetadataError, match=r"no metadata entry 'brainq'.*python -m export.*load_runner"):
        read_metadata(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "lacks"),
        (json.dumps({key: GOOD[key] for key in GOOD if key != "classes"}), "lacks .'classes'."),
        (json.dumps(GOOD | {"format": 2}), "has format 2"),
        (json.dumps(GOOD | {"classes": []}), "need a list of names"),
        (json.dumps(GOOD | {"classes": "glioma"}), "need a list of names"),
        (json.dumps(GOOD | {"classes": ["glioma", "glioma"]}), "one class twice"),
        (json.dumps(GOOD | {"pixels": {"size": 96, "fit": "pad", "mean": 0.5}}), "unknown PixelSpec keys"),
        (json.dumps(GOOD | {"pixels": {"size": 3}}), "allowed are 32 to 1024"),
        (json.dumps(GOOD | {"pixels": None}), "pixels are None"),
        (json.dumps(GOOD | {"provenance": [1]}), r"provenance is \[1\]"),
        (json.dumps(GOOD | {"abstention": [1]}), "abstention is not as this version writes it"),
    ],
)
def test_a_damaged_entry_is_named(path, text, message):
    put(path, text)
    with pytest.raises(MetadataError, match=message):
        read_metadata(path)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": 0}, {"energy": {"median": "x", "inside": 1}}, {"fitted_on": 1e400}, {"limit": 0},
     {"typicality": {"middle": [], "whitening": [[1]]}}, {"distance": {"median": 0}}],
)  # fmt: skip
def test_an_abstention_that_cannot_judge_is_refused(wrong):
    heads, labels = phantom_images(8, 32)
    whole = fit_abstention(np.eye(4)[labels], labels, heads, fit_typicality(heads)).to_json()
    assert FileMetadata.from_json(GOOD | {"abstention": whole}, "file").abstention.to_json() == whole
    with pytest.raises(MetadataError, match="abstention is not as this version writes it"):
        FileMetadata.from_json(GOOD | {"abstention": whole | wrong}, "file")


def test_a_truncated_file_is_named(path):
    write_metadata(path, METADATA)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MetadataError, match=r"cut short|damaged"):
        read_metadata(path)


def test_only_onnx_and_tflite_have_metadata(tmp_path):
    with pytest.raises(MetadataError, match=r"allowed are \['.onnx', '.tflite'\]"):
        read_metadata(tmp_path / "model.pt")
