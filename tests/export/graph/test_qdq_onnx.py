from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from brainq_torch.data.pixels import PixelSpec, scale_pixels
from brainq_torch.quant.calibrate import quantize_post_training
from brainq_torch.quant.layers import PrepareError
from brainq_torch.quant.prepare import prepare_qat
from brainq_torch.quant.scheme import Scheme
from export.graph.encodings import read_encodings
from export.graph.qdq_onnx import export_qdq_onnx
from tests.support.small_network import SIDE, as_input, small_images, small_network

LAYERS = ("stem.0", "depth.0", "point.0", "norm", "down", "classifier")


@torch.no_grad()
def logits_of(network, images):
    return network(as_input(images)).numpy()


def run(path, images, options=None):
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": scale_pixels(images)})[0]


def test_onnx_runtime_gives_the_very_logits_of_the_network(small_int8):
    images = small_images()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    np.testing.assert_array_equal(run(small_int8.onnx, images, options), logits_of(small_int8.network, images))
    np.testing.assert_array_equal(run(small_int8.onnx, images), logits_of(small_int8.network, images))


def test_weights_of_four_bits_are_stored_as_such(tmp_path):
    network = quantize_post_training(small_network(seed=1), small_images(seed=4), Scheme(weight_bits=4))
    export_qdq_onnx(network, PixelSpec(SIDE), tmp_path / "four.onnx")
    assert {layer.bits for layer in read_encodings(tmp_path / "four.onnx").layers.values()} == {4}
    images = small_images()
    np.testing.assert_array_equal(run(tmp_path / "four.onnx", images), logits_of(network, images))


def test_onnx_runtime_runs_it_in_integer_kernels(small_int8, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    run(small_int8.onnx, small_images(1), options)
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert (kernels["QLinearConv"], kernels["QGemm"], kernels["QLinearAdd"]) == (len(LAYERS) - 2, 1, 1)
    assert kernels["QLinearGlobalAveragePool"] == 1
    # The stem shares its scale with what is added to it, so that its ReLU is no end of the range.
    assert kernels["FusedConv"] == 1
    assert not kernels.keys() & {"Conv", "Gemm", "MatMul", "Add"}


def test_a_network_that_is_not_ready_is_refused(tmp_path):
    with pytest.raises(PrepareError):
        export_qdq_onnx(small_network(), PixelSpec(SIDE), tmp_path / "float.onnx")
    with pytest.raises(PrepareError):
        export_qdq_onnx(prepare_qat(small_network(), Scheme()).eval(), PixelSpec(SIDE), tmp_path / "open.onnx")
    assert not list(tmp_path.iterdir())
