import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.pixels import PixelSpec, scale_pixels
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.quant.calibrate import quantize_post_training
from brainq_torch.quant.encoding import Encoding
from brainq_torch.quant.fake_quantize import WeightQuantizer
from brainq_torch.run import RunError, load_run
from export.run.metadata import FileMetadata, MetadataError, write_metadata
from export.run.runners import OnnxRunner, load_runner
from export.run.sessions import RunnerError, feed
from export.run.torch_runner import TorchRunner
from tests.support.handmade_models import (
    TFLiteBuilder,
    save_onnx,
    write_float_onnx,
    write_float_tflite,
    write_int8_tflite,
)
from tests.support.small_network import SIDE, as_input, small_images, small_network
from tests.support.windows import refuse_as_windows

SPEC = PixelSpec(32)
FILES = ("model_fp32.onnx", "model_fp32.tflite", "model_fp16.tflite")


def check_refused(path, words, **options):
    with pytest.raises(RunnerError, match=words):
        load_runner(path, **options)


def fed(runner, images):
    """Return what the file is fed for (N, 32, 32) uint8 images, (N, 32, 32)."""
    return feed(scale_pixels(images)[:, 0, :, :, None], runner._input)[..., 0]


def random_images(count, size=32):
    return np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tiny_run):
    return load_runner(tiny_run)


@pytest.mark.parametrize("name", FILES)
def test_every_file_answers_as_its_checkpoint(tiny_export, checkpoint, name):
    images, _ = phantom_images(9, 32)
    expected, logits = checkpoint(images), load_runner(tiny_export / name)(images)
    assert logits.shape == (9, 4)
    assert logits.dtype == np.float32
    # float16 rounds weights by up to 2**-11; these logits are of the order of 1.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-2 if "fp16" in name else 1e-5)


@pytest.mark.parametrize("name", ["", *FILES])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_any_number_of_images_gives_each_the_same_logits(tiny_run, tiny_export, name, count):
    runner = load_runner(tiny_export / name if name else tiny_run)
    assert (runner.pixels, runner.classes, runner.logit_scale) == (SPEC, CLASSES, None)
    images = random_images(7)
    logits = runner(images[:count])
    assert logits.shape == (count, 4)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, runner(images)[:count], rtol=0, atol=1e-6)


def test_threads_deal_out_the_images_of_a_tflite_file(tiny_export):
    images = random_images(23)
    alone, together = (load_runner(tiny_export / "model_fp32.tflite", threads) for threads in (1, 3))
    expected = np.concatenate([alone(image[None]) for image in images])
    np.testing.assert_array_equal(together(images), expected)
    np.testing.assert_array_equal(together(images[:2]), expected[:2])
    assert (len(alone._interpreters), len(together._interpreters)) == (1, 3)


@pytest.mark.parametrize("name", ["model_fp32.tflite", "model_fp32.onnx", ""])
def test_threads_that_share_a_model_get_what_one_gets(tiny_export, tiny_run, name):
    runner = load_runner(tiny_export / name if name else tiny_run)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, runner.pixels.size, runner.pixels.size), np.uint8)
    alone = [runner(some) for some in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            np.testing.assert_array_equal(list(pool.map(runner, images)), alone)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
@pytest.mark.parametrize("name", FILES)
def test_a_folder_whose_name_is_not_utf8_is_read(tiny_export, tmp_path, name):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/B\xfcndel"))  # as an archive packed elsewhere leaves it
    folder.mkdir()
    images = random_images(2)
    moved = load_runner(shutil.copy(tiny_export / name, folder))
    np.testing.assert_array_equal(moved(images), load_runner(tiny_export / name)(images))


@pytest.mark.parametrize("name", FILES)
def test_a_file_may_be_removed_while_it_runs(tiny_export, tmp_path, monkeypatch, name):
    refuse_as_windows(monkeypatch)
    copy = tmp_path / name
    copy.write_bytes((tiny_export / name).read_bytes())
    runner = load_runner(copy)
    runner(random_images(2))
    copy.unlink()


def test_every_exported_file_does_not_answer_where_its_network_does_not(tiny_run, tiny_export, tiny_int8_export):
    """One image is no longer uncertain in one file and answered in the next, as one fitted on other images did."""
    run = load_run(tiny_run)
    paths = [path for folder in (tiny_export, tiny_int8_export) for path in folder.glob("model_*")]
    assert len(paths) == 5
    for path in paths:
        assert load_runner(path).abstention == run.abstention
    assert load_runner(tiny_run).abstention.to_json() == run.abstention.to_json()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 32, 32), np.float32),
        np.zeros((2, 32, 32, 1), np.uint8),
        np.zeros((32, 32), np.uint8),
        np.zeros((2, 31, 32), np.uint8),
    ],
)
@pytest.mark.parametrize("name", ["", "model_fp32.onnx", "model_fp32.tflite"])
def test_refuses_other_images(tiny_run, tiny_export, name, images):
    with pytest.raises(RunnerError, match=r"need \(N, 32, 32\) uint8"):
        load_runner(tiny_export / name if name else tiny_run)(images)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [({}, lambda pixel: pixel - 128), ({"input_kind": "UINT8"}, lambda pixel: pixel),
     ({"input_scale": 1 / 64}, lambda pixel: np.rint((pixel - 128) / 2))],
)  # fmt: skip
def test_an_integer_input_is_fed_by_its_own_scale(tmp_path, made, wanted):
    """Pixel - 128 at scale 1/128; as uint8 the pixel itself."""
    runner = load_runner(write_int8_tflite(tmp_path / "model.tflite", **made), pixels=SPEC, classes=CLASSES)
    every_value = np.arange(256, dtype=np.uint8).repeat(4).reshape(1, 32, 32)
    np.testing.assert_array_equal(fed(runner, every_value), wanted(every_value.astype(np.int16)))


def test_integer_logits_are_dequantized(tmp_path):
    runner = load_runner(write_int8_tflite(tmp_path / "model.tflite"), pixels=SPEC, classes=CLASSES)
    assert runner.logit_scale == Encoding(pytest.approx(0.05), 0)
    steps = runner(random_images(3)) / np.float32(0.05)
    assert np.abs(steps).max() > 1
    np.testing.assert_allclose(steps, np.rint(steps), rtol=1e-6)


@pytest.mark.parametrize("zero_point", [np.int8(-3), np.uint8(125)])
def test_a_qdq_files_logits_have_the_scale_that_it_holds(tmp_path, zero_point):
    path = write_qdq_onnx(tmp_path / "model.onnx", 0.02, zero_point)
    runner = OnnxRunner(path, FileMetadata(CLASSES, SPEC, {}), optimised=False)
    images = random_images(5)
    expected = np.clip(np.rint(scale_pixels(images).mean((2, 3)) / np.float32(0.02)), -125, 130)
    assert runner.logit_scale == Encoding(pytest.approx(0.02), -3)
    np.testing.assert_allclose(runner(images) / np.float32(0.02), np.repeat(expected, 4, axis=1), rtol=1e-6)


def write_qdq_onnx(path, scale, zero_point):
    """Four times the image's mean, through QuantizeLinear and DequantizeLinear."""
    make = onnx.helper
    constants = [
        onnx.numpy_helper.from_array(np.float32(scale), "scale"),
        onnx.numpy_helper.from_array(zero_point, "zero"),
        onnx.numpy_helper.from_array(np.array([2, 3]), "axes"),
    ]
    nodes = [
        make.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        make.make_node("Concat", ["mean"] * 4, ["real"], axis=1),
        make.make_node("QuantizeLinear", ["real", "scale", "zero"], ["steps"]),
        make.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["logits"]),
    ]
    return save_onnx(path, nodes, constants)


@pytest.mark.parametrize("write", [write_float_onnx, write_float_tflite])
def test_a_file_of_others_runs_once_pixels_and_classes_are_given(tmp_path, write):
    path = write(tmp_path / f"model.{write.__name__.rpartition('_')[2]}")
    with pytest.raises(MetadataError, match="does not say its classes and pixels"):
        load_runner(path)
    check_refused(path, "give pixels and classes together", pixels=SPEC)
    assert load_runner(path, pixels=SPEC, classes=CLASSES)(random_images(2)).shape == (2, 4)


@pytest.mark.parametrize("write", [write_float_onnx, write_float_tflite])
def test_refuses_claims_that_do_not_fit_the_file(tmp_path, write):
    path = write(tmp_path / f"model.{write.__name__.rpartition('_')[2]}")
    check_refused(path, r"takes images of shape", pixels=PixelSpec(64), classes=CLASSES)
    check_refused(path, "gives 4 logits, but names 3 classes", pixels=SPEC, classes=CLASSES[:3])
    write_metadata(path, FileMetadata(CLASSES, SPEC, {}))
    check_refused(path, "was made for", pixels=PixelSpec(32, "pad"), classes=CLASSES)
    check_refused(path, "has the classes", pixels=SPEC, classes=CLASSES[::-1])


def test_an_onnx_file_that_the_runtime_refuses_is_named(tmp_path):
    path = write_float_onnx(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.node[0].op_type = "Sorcery"
    onnx.save(model, path)
    check_refused(path, "cannot be run by ONNX Runtime", pixels=SPEC, classes=CLASSES)


def write_onnx_that_fails_at_run_time(path):
    beyond = onnx.numpy_helper.from_array(np.full(4, 99, np.int64), "beyond")
    node = onnx.helper.make_node("Gather", ["image", "beyond"], ["logits"], axis=3)
    return save_onnx(path, [node], [beyond], logits=("batch", 1, 32, 4))


def write_tflite_that_fails_at_run_time(path):
    build = TFLiteBuilder()
    image = build.tensor("image", (1, 32, 32, 1))
    beyond = build.tensor("beyond", (4,), "INT32", data=np.full(4, 99, np.int32))
    logits = build.made("GATHER", [image, beyond], "logits", (1, 32, 32, 4), options=schema.GatherOptionsT(axis=3))
    return build.write(path, [image], [logits])


FAILING = {"onnx": write_onnx_that_fails_at_run_time, "tflite": write_tflite_that_fails_at_run_time}


@pytest.mark.parametrize(("kind", "engine"), [("onnx", "ONNX Runtime"), ("tflite", "the LiteRT interpreter")])
def test_a_file_that_fails_at_run_time_is_named(tmp_path, kind, engine):
    path = FAILING[kind](tmp_path / f"model.{kind}")
    with pytest.raises(RunnerError, match=rf"model.{kind} cannot be run by {engine}: "):
        load_runner(path, pixels=SPEC, classes=CLASSES)(random_images(1))


def test_wrong_paths_and_claims_of_a_run_say_what_is_allowed(tmp_path, tiny_run):
    check_refused(tiny_run, "was made for", pixels=PixelSpec(64), classes=CLASSES)
    check_refused(tmp_path / "nothing.onnx", "does not exist")
    (tmp_path / "model.pt").write_bytes(b"")
    check_refused(tmp_path / "model.pt", r"ends in '.pt'")
    with pytest.raises(RunError, match="no run folder"):
        load_runner(tmp_path)
    check_refused(tmp_path, "threads is 0", threads=0)


def test_a_torch_runner_leaves_model_and_threads_as_they_were(tiny_run):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 32), torch.nn.Flatten()).eval()
    weights = model[0].weight.detach().clone()
    before = torch.get_num_threads()
    runner = TorchRunner(model, SPEC, CLASSES, threads=before + 1)
    assert runner(random_images(2)).shape == (2, 4)
    assert torch.get_num_threads() == before
    assert torch.equal(model[0].weight, weights)
    with pytest.raises(RunnerError, match="training mode"):
        TorchRunner(model.train(), SPEC, CLASSES)


def test_a_fake_quantized_network_rounds_its_weights_once(monkeypatch):
    network = quantize_post_training(small_network(), small_images())
    with torch.no_grad():
        expected = network(as_input(small_images())).numpy()
    runner = TorchRunner(network, PixelSpec(SIDE), CLASSES)
    monkeypatch.setattr(WeightQuantizer, "forward", None)
    np.testing.assert_array_equal(runner(small_images()), expected)
    assert isinstance(network.get_submodule("classifier"), nn.Linear)


class LongSums(nn.Module):
    """A network whose second layer sums 16384 products, half of them positive, half negative."""

    def __init__(self):
        super().__init__()
        first, second = nn.Conv2d(1, 256, 3, 2, bias=False), nn.Conv2d(256, 64, 8, bias=False)
        with torch.no_grad():
            first.weight[128:] = first.weight[:128] * 1.003
            second.weight.normal_(1, 0.05)[:, 128:].sub_(2)
        layers = first, nn.BatchNorm2d(256), nn.ReLU(), second, nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.features, self.classifier = nn.Sequential(*layers, nn.Flatten()), nn.Linear(64, 4)
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()

    def forward(self, image):
        return self.dequant(self.classifier(self.features(self.quant(image))))


def test_sums_longer_than_float32_holds_are_exact_in_pytorch():
    torch.manual_seed(0)
    runner = TorchRunner(quantize_post_training(LongSums().eval(), random_images(16)), SPEC, CLASSES)
    seen, layer = [], runner.model.features[3]
    layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].double(), output.double())))
    runner(random_images(16))
    inputs, outputs = map(torch.cat, zip(*seen, strict=True))
    sums = torch.nn.functional.conv2d(inputs, layer.weight.double(), layer.bias.double())
    steps = (sums / layer.scale).round().clamp(layer.lowest, layer.highest)
    assert torch.equal(steps, (outputs / layer.scale).round())
    assert steps.unique().numel() > 100
