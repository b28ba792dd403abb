import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from brainq_torch.data.pixels import scale_pixels
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.quant.encoding import Encoding
from brainq_torch.quant.layers import activation_quantizers, running_order, weighted_layers
from brainq_torch.quant.scheme import quantize_weight
from export.graph import match
from export.graph.check import check_encodings
from export.graph.encodings import EncodingError, read_encodings
from export.graph.flatbuffer import constant, read_model, write_model
from export.graph.match import name_tensors
from tests.support.sabotage import FAULTS, change_activation_scale
from tests.support.small_network import SIDE

IMAGE = scale_pixels(phantom_images(1, SIDE)[0])


def test_the_file_holds_the_networks_own_integers(small_int8):
    encodings, network = read_encodings(small_int8.onnx), small_int8.network
    quantizers = activation_quantizers(network)
    assert list(encodings.activations) == running_order(network)
    assert encodings.activations == {name: quantizers[name].encoding for name in encodings.activations}
    layers = {layer.name: layer for layer in weighted_layers(network)}
    assert encodings.layers.keys() == layers.keys()
    for name, layer in layers.items():
        expected = quantize_weight(layer.weight, layer.weight_scale, layer.largest).numpy()
        np.testing.assert_array_equal(encodings.layers[name].weight, expected)
        np.testing.assert_array_equal(encodings.layers[name].weight_scale, layer.weight_scale.numpy())


def test_a_tensor_is_found_in_either_layout():
    """onnx2tf leaves some of DenseNet-101's concatenations between channels-first tensors."""
    first = np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(np.float32)
    last = first.transpose(0, 2, 3, 1)
    activations = {"a": Encoding(0.5, 0), "b": Encoding(0.25, 0)}
    expected = {"a": last.reshape(-1), "b": last[..., ::-1].reshape(-1)}
    for values in (first, last):
        assert match._match("tensor", values, expected, activations) == ["a"]
    with pytest.raises(EncodingError, match="holds none of the network's activations"):
        match._match("tensor", first[:, :, ::-1], expected, activations)


def test_a_float_file_has_no_encodings(small_int8):
    with pytest.raises(EncodingError, match="0 quantized activations, 0 layers: no QDQ file"):
        read_encodings(small_int8.stripped)


def test_stripped_of_its_quantization_the_file_is_float(small_int8):
    graph = onnx.load(small_int8.stripped).graph
    assert not {node.op_type for node in graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    assert {tensor.data_type for tensor in graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (FAULTS["scale"], r"depth\.0\.weight: 1 of 8 scales differ from the learned ones, first in channel 1"),
        (FAULTS["weights"], r"depth\.0\.weight: \d integers differ, in 1 channels \(first 1\)"),
        (FAULTS["bias"], r"depth\.0\.bias: \d+ integers differ"),
        (change_activation_scale, r"1 difference\):\n  depth\.0: scale .*, learned "),
    ],
)
def test_what_is_damaged_is_named(small_int8, tmp_path, damage, said):
    """Of the file as it was written nothing is, or it would not have been written."""
    damaged = Path(shutil.copy(small_int8.tflite, tmp_path / "damaged.tflite"))
    damage(damaged, "depth.0")
    with pytest.raises(EncodingError, match=said):
        check_encodings(damaged, read_encodings(small_int8.onnx))


def test_a_tensor_that_holds_no_activation_is_named_with_the_nearest(small_int8, tmp_path):
    """A converter that got a layer wrong: its values are none of the network's."""
    damaged = Path(shutil.copy(small_int8.plain, tmp_path / "damaged.tflite"))
    model = read_model(damaged)
    weight = next(tensor for tensor in model.subgraphs[0].tensors if len(tensor.shape) == 4 and tensor.buffer)
    values = constant(model, weight, "<f4")
    model.buffers[weight.buffer].data = (values * np.float32(1.1)).view(np.uint8)
    write_model(model, damaged)
    with pytest.raises(EncodingError, match=r"holds none of the network's activations; nearest is \S+, 0\.\d+ of"):
        name_tensors(small_int8.stripped, damaged, read_encodings(small_int8.onnx), IMAGE)


def test_a_file_of_another_network_is_refused(small_int8, tiny_int8_export):
    with pytest.raises(EncodingError) as refusal:
        check_encodings(tiny_int8_export / "model_int8.tflite", read_encodings(small_int8.onnx))
    assert re.search(r"features\.\S+: holds no activation of the network", str(refusal.value))
