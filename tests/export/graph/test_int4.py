"""Packed int4 files: every weight arrives, LiteRT runs them both ways, and one wrong nibble is found and named."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.quant.layers import weighted_layers
from brainq_torch.quant.low_bits import quantize_low_bits
from brainq_torch.quant.rounding import Rounding
from brainq_torch.quant.scheme import Scheme, quantize_weight
from export.graph.check import check_encodings
from export.graph.encodings import EncodingError, read_encodings
from export.graph.flatbuffer import operator_name, read_model, schema, unpack_int4, write_model
from export.graph.int4 import pack_int4
from export.graph.qdq_onnx import export_qdq_onnx
from export.integer_files import convert_int8
from export.run.metadata import FileMetadata
from export.run.runners import TFLiteRunner
from tests.support.small_network import SIDE, as_input, small_images, small_network

SCHEME = Scheme(weight_bits=4, exceptions={"last": 8, "depthwise": 8})
"""4 bits for two 3x3 convolutions of stride 2, of 9 and of 72 inputs to a channel, and a 1x1 convolution."""


def test_packing_is_undone():
    integers = np.random.default_rng(0).integers(-8, 8, 101).astype(np.int8)
    packed = pack_int4(integers)
    assert packed.nbytes == 51
    assert np.array_equal(unpack_int4(packed, 101), integers)
    assert pack_int4(np.array([1, -1, 7], np.int8)).tolist() == [0xF1, 0x07]  # the first in the lower half
    with pytest.raises(ValueError, match="integers from -9 to 7 do not fit 4 bits"):
        pack_int4(np.array([-9, 7], np.int8))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int4")
    model = small_network()
    model.down = nn.Conv2d(8, 8, 3, 2, 1, bias=False)
    model.down.weight.data = torch.randint(-8, 9, (8, 8, 3, 3), generator=torch.Generator().manual_seed(0)) / 16
    network = quantize_low_bits(model, small_images(), SCHEME, Rounding(positions=32)).network
    export_qdq_onnx(network, PixelSpec(SIDE), folder / "model.onnx")
    convert_int8(folder / "model.onnx", folder / "model.tflite", PixelSpec(SIDE))
    return network, folder / "model.onnx", folder / "model.tflite"


def int4_weights(model):
    """Return the file's int4 weights by name, each with the operator that uses it."""
    graph = model.subgraphs[0]
    found = {}
    for operator in graph.operators:
        weight = graph.tensors[operator.inputs[1]] if len(operator.inputs) > 1 else None
        if weight is not None and weight.type == schema().TensorType.INT4:
            found[weight.name.decode()] = (weight, operator)
    return found


def test_the_file_holds_the_integers_that_rounding_chose(files):
    network, _, tflite = files
    layers = {layer.name: layer for layer in weighted_layers(network)}
    model = read_model(tflite)
    found = int4_weights(model)
    assert set(found) == {"point.0.weight", "down.weight"}  # the stem's 9 inputs are odd
    for name, (weight, operator) in found.items():
        assert operator_name(model, operator) == "FULLY_CONNECTED"
        assert operator.builtinOptions.keepNumDims
        layer = layers[name.removesuffix(".weight")]
        expected = quantize_weight(layer.weight, layer.weight_scale, layer.largest).permute(0, 2, 3, 1).numpy()
        packed = np.asarray(model.buffers[weight.buffer].data, np.uint8)
        assert packed.nbytes == expected.size / 2
        assert np.array_equal(unpack_int4(packed, expected.size), expected.reshape(-1))


def test_every_engine_gives_the_same_logits(files):
    network, onnx, tflite = files
    pixels = small_images(16, seed=7)
    wanted = network(as_input(pixels)).detach().numpy()
    session = onnxruntime.InferenceSession(onnx)
    assert np.array_equal(session.run(None, {"image": as_input(pixels).numpy()})[0], wanted)
    for xnnpack, most in ((True, 0), (False, 3)):  # the built-in kernels round twice
        runner = TFLiteRunner(tflite, FileMetadata(CLASSES, PixelSpec(SIDE), {}), xnnpack=xnnpack)
        assert np.abs(runner(pixels) - wanted).max() <= most * runner.logit_scale.scale


def test_a_flipped_nibble_is_named(files, tmp_path):
    _, onnx, tflite = files
    encodings = read_encodings(onnx)
    check_encodings(tflite, encodings)
    model = read_model(tflite)
    weight, _ = int4_weights(model)["point.0.weight"]
    data = np.asarray(model.buffers[weight.buffer].data, np.uint8).copy()
    data[21] ^= 0x10  # weight 43: output channel 5
    model.buffers[weight.buffer].data = data
    write_model(model, tmp_path / "flipped.tflite")
    with pytest.raises(EncodingError, match=r"point\.0\.weight: 1 integers differ, in 1 channels \(first 5\)"):
        check_encodings(tmp_path / "flipped.tflite", encodings)


def test_a_file_of_int8_weights_is_no_w4a8_file(files, tmp_path):
    _, onnx, tflite = files
    model = read_model(tflite)
    weight, _ = int4_weights(model)["point.0.weight"]
    packed = np.asarray(model.buffers[weight.buffer].data, np.uint8)
    model.buffers[weight.buffer].data = unpack_int4(packed, 64).view(np.uint8)
    weight.type = schema().TensorType.INT8
    write_model(model, tmp_path / "unpacked.tflite")
    with pytest.raises(EncodingError, match=r"point\.0\.weight: type 9 is not int4"):
        check_encodings(tmp_path / "unpacked.tflite", read_encodings(onnx))
