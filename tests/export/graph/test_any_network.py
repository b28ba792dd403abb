"""Networks of others in files: the same logits as PyTorch's, and the same integers in all three engines."""

from collections import Counter

import numpy as np
import pytest
import torch

from brainq_torch.data.pixels import PixelSpec
from brainq_torch.models import build_model
from brainq_torch.models.wiring import WiringError
from brainq_torch.quant.calibrate import quantize_post_training
from brainq_torch.quant.layers import activation_quantizers, weighted_layers
from brainq_torch.quant.low_bits import quantize_low_bits
from brainq_torch.quant.rounding import Rounding
from export import integer_files
from export.graph.float_onnx import export_float_onnx
from export.graph.qdq_onnx import export_qdq_onnx
from export.graph.read_graph import read_graph
from export.graph.tflite import convert_float
from export.integer_files import convert_int8
from export.run.runners import load_runner
from export.run.torch_runner import TorchRunner
from tests.support.networks import README_CLASS, settle
from tests.support.small_network import as_input, small_images

PIXELS, CLASSES = PixelSpec(36), ("no", "yes")
OTHERS = ["tests.support.networks:TwoPools", "tests.support.networks:Padded"]


def build(name, tmp_path, monkeypatch):
    (tmp_path / "my_network.py").write_text(README_CLASS)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    return settle(build_model(name, 2), as_input(small_images()))


# stem 1 + 14 * 2 + 2 transitions; 14 norm1 + 2 transitions + norm5 + 2 poolings; one concatenation per layer
DENSENET_32 = {"CONV_2D": 31, "DEPTHWISE_CONV_2D": 19, "CONCATENATION": 14, "PAD": 1, "MAX_POOL_2D": 1, "MEAN": 1,
               "RESHAPE": 1, "FULLY_CONNECTED": 1}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["my_network:MyNetwork", *OTHERS, pytest.param("densenet32", marks=pytest.mark.slow)],
)
def test_float_and_integer_files_give_the_networks_logits(name, tmp_path, monkeypatch):
    network, images = build(name, tmp_path, monkeypatch), small_images(seed=2)
    integer = quantize_post_training(network, small_images())
    export_float_onnx(network, PIXELS, tmp_path / "fp32.onnx")
    convert_float(tmp_path / "fp32.onnx", tmp_path / "fp32.tflite")
    compared = [(network, "fp32"), (integer, "int8")]
    if name == OTHERS[1]:
        compared.append((quantize_low_bits(network, small_images(8), options=Rounding(positions=8)).network, "w4a8"))
    for model, kind in compared[1:]:
        export_qdq_onnx(model, PIXELS, tmp_path / f"{kind}.onnx")
        convert_int8(tmp_path / f"{kind}.onnx", tmp_path / f"{kind}.tflite", PIXELS)
    for model, kind in compared:
        here = TorchRunner(model, PIXELS, CLASSES)(images)
        assert np.ptp(here, axis=0).min() > 0
        for file in (f"{kind}.onnx", f"{kind}.tflite"):
            there = load_runner(
                tmp_path / file, 1, PIXELS, CLASSES, accelerated=file not in ("int8.onnx", "w4a8.onnx")
            )(images)
            np.testing.assert_allclose(there, here, rtol=0, atol=1e-4 if kind == "fp32" else 0)
    if name == "densenet32":
        assert Counter(node.operator for node in read_graph(tmp_path / "int8.tflite").nodes) == DENSENET_32
        assert (tmp_path / "int8.tflite").stat().st_size <= 350_000


def test_the_float_networks_file_lends_its_operators(tmp_path, monkeypatch):
    network = build("my_network:MyNetwork", tmp_path, monkeypatch)
    integer = quantize_post_training(network, small_images())
    floats = tmp_path / "fp32.onnx", tmp_path / "fp32.tflite"
    export_float_onnx(network, PIXELS, floats[0])
    convert_float(*floats)
    export_qdq_onnx(integer, PIXELS, tmp_path / "int8.onnx")
    convert_int8(tmp_path / "int8.onnx", tmp_path / "converted.tflite", PIXELS)
    monkeypatch.setattr(integer_files, "convert_float", None)
    convert_int8(tmp_path / "int8.onnx", tmp_path / "lent.tflite", PIXELS, floats=floats)  # checked bit for bit
    first, second = (load_runner(tmp_path / f"{name}.tflite", 1, PIXELS, CLASSES) for name in ("converted", "lent"))
    np.testing.assert_array_equal(first(small_images(seed=2)), second(small_images(seed=2)))


def test_relu6_clips_at_six_which_is_an_integer(tmp_path, monkeypatch):
    network = build("my_network:MyNetwork", tmp_path, monkeypatch)
    with torch.no_grad():
        network.get_submodule("blocks.0.norm1").bias.fill_(5.0)
    integer = quantize_post_training(network, small_images(), method="min_max")
    (layer,) = [layer for layer in weighted_layers(integer) if layer.name == "blocks.0.conv1"]
    scale, zero_point = activation_quantizers(integer)["blocks.0.conv1"].encoding
    assert (layer.ceiling, 6 / scale, zero_point) == (6.0, round(6 / scale), -128)
    made = []
    integer.get_submodule("blocks.0.conv1").register_forward_hook(lambda *call: made.append(call[-1].max().item()))
    integer(as_input(small_images()))
    assert made == [6.0]


def test_what_integers_cannot_carry_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    network = build("tests.support.networks:Gated", tmp_path, monkeypatch)
    with pytest.raises(WiringError, match=r"cannot carry sigmoid .*act \(SiLU\) exactly; export the float files"):
        quantize_post_training(network, small_images())
