import numpy as np
import onnx
import pytest

from brainq_torch.checksum import KEY, find_damage
from brainq_torch.data.classes import CLASSES
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.synthesis.phantom import phantom_images
from export.run.metadata import FileMetadata, MetadataError, write_metadata
from export.run.runners import load_runner
from export.run.sessions import RunnerError
from tests.support.handmade_models import set_onnx_metadata, write_float_onnx, write_int8_tflite

FLIPS = 400


@pytest.fixture(params=[write_float_onnx, write_int8_tflite])
def path(request, tmp_path):
    path = request.param(tmp_path / f"model.{request.param.__name__.rpartition('_')[2]}")
    write_metadata(path, FileMetadata(CLASSES, PixelSpec(32), {"commit": None}))
    return path


def test_a_flipped_bit_is_refused_or_changes_no_logit(path):
    whole, images = path.read_bytes(), phantom_images(2, 32)[0]
    logits = load_runner(path)(images)
    refused = 0
    for bit in np.random.default_rng(0).choice(8 * len(whole), FLIPS, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            answered = load_runner(path)(images)
        except (RunnerError, MetadataError):
            refused += 1
        else:  # the bit lay in the key of the checksum itself
            np.testing.assert_array_equal(answered, logits)
    assert refused > 0.95 * FLIPS


def test_the_message_says_what_to_do(path):
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(RunnerError, match=r"model\.\w+ is damaged or was edited: .*; copy or export it again"):
        load_runner(path)


def test_a_file_without_a_checksum_still_loads(tmp_path):
    path = write_float_onnx(tmp_path / "model.onnx")
    model = onnx.load(path)
    set_onnx_metadata(model, FileMetadata(CLASSES, PixelSpec(32), {}).to_json())
    onnx.save(model, path)
    assert KEY.encode() not in path.read_bytes()
    assert find_damage(path) is None
    assert load_runner(path).classes == CLASSES


def test_the_exported_files_carry_one(tiny_export):
    files = [path for path in tiny_export.iterdir() if path.suffix in (".onnx", ".tflite")]
    assert len(files) == 3
    for file in files:
        assert KEY.encode() in file.read_bytes()
        assert find_damage(file) is None
