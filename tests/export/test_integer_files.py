import dataclasses
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter

from brainq_torch.data.pixels import PixelSpec
from brainq_torch.models import ModelOptions
from brainq_torch.quant.calibrate import quantize_post_training
from brainq_torch.quant.layers import activation_quantizers
from brainq_torch.quant.scheme import Scheme
from brainq_torch.run import load_run, save_checkpoint
from export import integer_files as int8
from export.context import ExportContext, ExportOptions
from export.graph.encodings import read_encodings
from export.integer_files import describe_calibration, make_dynamic_int8, make_int8, make_int8_tf
from export.recipes import RECIPES, find_float_model
from export.run.metadata import FileMetadata, read_metadata, write_metadata
from export.run.sample import ImageSample, check_run_images
from export.run.torch_runner import TorchRunner
from export.verify.parity import FAKE_QUANTIZED, FLOAT_MODEL, LogitTable, climb
from tests.support.small_network import SIDE, small_images, small_network
from tools.doctor.__main__ import diagnose

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
PIXELS = PixelSpec(SIDE)


def sample_of(pixels):
    count = len(pixels)
    return ImageSample(pixels, np.arange(count) % 4, tuple(map(str, range(count))), ("phantom",) * count)


def context_of(run_folder, out):
    out.mkdir(exist_ok=True)
    run = load_run(run_folder)
    return ExportContext(run, out, check_run_images(run), ExportOptions(calibration_images=8))


@pytest.fixture
def quantized_run(tiny_run, tmp_path):
    """A run as quantization-aware training leaves it."""
    folder = shutil.copytree(tiny_run, tmp_path / "quantized")
    run = load_run(folder)
    network = quantize_post_training(run.model, check_run_images(run).calibration(8).pixels, Scheme())
    options = ModelOptions(run.model_name, arguments=run.model_arguments)
    save_checkpoint(folder / "model.ckpt", network, options, run.pixels, run.classes)
    return folder


def test_the_input_is_the_pixel_less_128_and_the_doctor_finds_it_integer(small_int8, tmp_path):
    path = Path(shutil.copy(small_int8.tflite, tmp_path / "model_int8.tflite"))
    (image,) = Interpreter(str(path)).get_input_details()
    assert (image["dtype"], image["quantization"]) == (np.int8, (1 / 128, 0))
    write_metadata(path, FileMetadata(CLASSES, PIXELS, {"recipe": "int8"}))
    diagnosis = diagnose(path)
    assert (diagnosis.kind, diagnosis.not_int8) == ("int8", ())
    assert diagnosis.healthy, diagnosis.findings


def test_a_calibration_is_told_by_its_images_and_their_order():
    sample = sample_of(small_images(4))
    first = describe_calibration(sample, "percentile")
    assert (first["count"], first["method"], first["splits"]) == (4, "percentile", {"phantom": 4})
    changed = sample.pixels.copy()
    changed[2, 0, 0] ^= 1
    others = [
        dataclasses.replace(sample, pixels=changed),
        dataclasses.replace(sample, pixels=sample.pixels[::-1], names=sample.names[::-1]),
    ]
    assert len({first["sha256"], *(describe_calibration(other, "percentile")["sha256"] for other in others)}) == 3


def test_a_float_run_is_calibrated_and_says_on_what(tiny_int8_export):
    report = json.loads((tiny_int8_export / "parity.json").read_text())
    assert report["passed"] is True
    assert report["float_model"] == "the run's own"
    assert len(report["calibrated_on"]["model_int8.onnx"]) == 16
    assert all(name.startswith("Training/") for name in report["calibrated_on"]["model_int8.onnx"])
    for file in RECIPES["int8"].files:
        artefact = report["artefacts"][file]
        assert (artefact["bit_equal"], artefact["max_lsb"]) == (1.0, 0.0)
        assert -artefact["against_float"]["accuracy_difference"] <= artefact["limits"]["accuracy_fall"]
        assert artefact["against_float"]["logit_noise"] <= artefact["limits"]["float_noise"]
        provenance = read_metadata(tiny_int8_export / file).provenance
        assert provenance["scales"] == "calibrated after training"
        assert provenance["calibration"]["count"] == 16


def test_of_a_quantized_run_the_scales_are_those_it_learned(quantized_run, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "convert_int8", lambda *paths, **more: None)
    context = context_of(quantized_run, tmp_path / "out")
    make_int8(context)
    assert context.networks[FAKE_QUANTIZED] is context.run.model
    assert context.calibrated_on == {}
    assert context.provenance["int8"]["scales"] == "learned in training"
    learned = activation_quantizers(context.run.model)
    found = read_encodings(context.path("model_int8.onnx")).activations
    assert found == {name: learned[name].encoding for name in found}


def test_a_quantized_run_is_held_against_the_run_it_began_with(quantized_run, tiny_run):
    run = load_run(quantized_run)
    started = {str(tiny_run): str(tiny_run), "nowhere": "none: nowhere is no folder", "": "none: the run"}
    for init, said in started.items():
        model, origin = find_float_model(dataclasses.replace(run, config=run.config | {"init": init}))
        assert (model is not None) == (init == str(tiny_run))
        assert origin.startswith(said)
    other = dataclasses.replace(run, config=run.config | {"init": str(tiny_run)}, pixels=PixelSpec(64))
    assert find_float_model(other)[0] is None


def network_without_offsets():
    """Return a network whose activations are as large as the image's contrast, as those of a deep one are."""
    model = small_network()
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.zeros_(norm.bias)
        norm.running_mean.zero_()
    return model


@pytest.mark.parametrize(("calibration", "passes"), [("its images", True), ("faint noise", False), ("grey", False)])
def test_calibration_on_noise_is_caught_although_all_files_agree(tmp_path, calibration, passes):
    images = small_images(24)
    model = network_without_offsets()
    made = {
        "its images": small_images(16, seed=2),
        "faint noise": np.random.default_rng(0).integers(118, 138, (16, SIDE, SIDE)).astype(np.uint8),
        "grey": np.full((16, SIDE, SIDE), 127, np.uint8),
    }
    network = quantize_post_training(model, made[calibration])
    path = tmp_path / "model_int8.onnx"
    int8.export_qdq_onnx(network, PIXELS, path)
    write_metadata(path, FileMetadata(CLASSES, PIXELS, {}))
    runners = {
        name: TorchRunner(net.eval(), PIXELS, CLASSES)
        for name, net in ((FLOAT_MODEL, model), (FAKE_QUANTIZED, network))
    }
    sample = sample_of(images)
    report = climb(RECIPES["int8"].rungs[:1], LogitTable(tmp_path, sample, runners, 1))[path.name]
    assert report.max_lsb == 0.0
    assert report.passed == passes
    assert passes or "ranges do not fit these images" in report.error


def test_dynamic_range_is_said_to_be_what_it_is(tiny_run, tiny_export, tmp_path):
    context = context_of(tiny_run, tmp_path / "out")
    shutil.copy(tiny_export / "model_fp32.tflite", context.folder)
    make_dynamic_int8(context)
    path = context.path("model_dynamic_int8.tflite")
    assert path.stat().st_size < 0.4 * (tiny_export / "model_fp32.tflite").stat().st_size
    write_metadata(path, FileMetadata(CLASSES, context.run.pixels, {}))
    assert "float32 with int8 weights" in diagnose(path, run=False).kind


def test_tensorflows_converter_makes_an_integer_file_too(tiny_run, small_int8, tmp_path):
    if find_spec("tf_keras") is None:  # not imported: that takes seconds, and here nothing needs it
        pytest.skip("the optional extra `tensorflow` is not installed")
    context = context_of(tiny_run, tmp_path / "out")
    context = dataclasses.replace(context, images=dataclasses.replace(context.images, pixels=PIXELS))
    shutil.copy(small_int8.stripped, context.path("model_fp32.onnx"))
    make_int8_tf(context)
    path = context.path("model_int8_tf.tflite")
    write_metadata(path, FileMetadata(CLASSES, PIXELS, {}))
    assert diagnose(path, run=False).kind == "int8"
    assert context.provenance["int8_tf"]["calibration"]["count"] == 8
