"""DenseNet-32 the whole way: fake-quantized torch, QDQ ONNX and INT8 TFLite give the same integers."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from brainq_torch.data.pixels import PixelSpec, scale_pixels
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.models import build_model
from brainq_torch.quant.layers import activation_quantizers, set_fake_quant
from brainq_torch.quant.prepare import finalize, prepare_qat
from brainq_torch.quant.scheme import Scheme
from tools.edge.layer_cost import measure_cost

SIZE = 64
COUNT = 32

pytestmark = pytest.mark.slow  # two converters, each half a minute on a busy machine


def train_briefly(pixels: np.ndarray, labels: np.ndarray) -> torch.nn.Module:
    """Enough steps for activations and BatchNorm statistics that are not those of random weights."""
    torch.manual_seed(0)
    model = build_model("densenet32")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    images, targets = torch.from_numpy(scale_pixels(pixels)), torch.from_numpy(labels)
    for _ in range(10):
        for part in torch.arange(COUNT).chunk(2):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[part]), targets[part]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    pytest.importorskip("onnxruntime", reason="the optional extra `export` is not installed")
    from export.graph.qdq_onnx import export_qdq_onnx
    from export.integer_files import convert_int8

    folder = tmp_path_factory.mktemp("densenet32")
    pixels, labels = phantom_images(COUNT, SIZE)
    model = train_briefly(pixels, labels)
    quantized = prepare_qat(model, Scheme())
    images = torch.from_numpy(scale_pixels(pixels))
    with torch.no_grad():
        set_fake_quant(quantized, False)
        quantized(images)
        set_fake_quant(quantized, True)
        finalize(quantized)
        expected = quantized(images).numpy()
    export_qdq_onnx(quantized, PixelSpec(SIZE), folder / "model.onnx")
    convert_int8(folder / "model.onnx", folder / "model.tflite", PixelSpec(SIZE))
    return folder, pixels, expected, activation_quantizers(quantized)["classifier"].encoding


def run_tflite(path, pixels):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (image,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()
    results = []
    for grey in pixels:
        interpreter.set_tensor(image["index"], (grey.astype(np.int16) - 128).astype(np.int8)[None, :, :, None])
        interpreter.invoke()
        results.append(interpreter.get_tensor(logits["index"])[0].astype(int))
    return np.stack(results), Counter(operator["op_name"] for operator in interpreter._get_ops_details())


def test_onnx_runtime_gives_the_fake_quantized_networks_integers(artefacts):
    import onnxruntime

    folder, pixels, expected, encoding = artefacts
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    (logits,) = session.run(None, {"image": scale_pixels(pixels)})
    assert np.abs(logits - expected).max() <= encoding.scale  # the ladder's limit: 1 LSB
    assert expected.std(axis=0).min() > 5 * encoding.scale  # and the images are told apart by more than that


def test_tflite_gives_the_same_integers_without_requantizing(artefacts):
    folder, pixels, expected, encoding = artefacts
    logits, operators = run_tflite(folder / "model.tflite", pixels)
    difference = np.abs(logits - (np.round(expected / encoding.scale) + encoding.zero_point))
    assert difference.mean() <= 0.25
    assert difference.max() <= 4
    operators.pop("DELEGATE", None)
    # stem 1 + 14 * 2 + 2 transitions; 14 norm1 + 2 transitions + norm5 + 2 poolings; one concatenation per layer
    assert operators == {
        "CONV_2D": 31, "DEPTHWISE_CONV_2D": 19, "CONCATENATION": 14, "PAD": 1, "MAX_POOL_2D": 1, "MEAN": 1,
        "RESHAPE": 1, "FULLY_CONNECTED": 1,
    }  # fmt: skip


def test_file_costs_the_multiplications_that_pytorch_counts(artefacts):
    cost = measure_cost(artefacts[0] / "model.tflite")
    network = prepare_qat(build_model("densenet32").eval(), Scheme())  # BatchNorms and poolings as depthwise layers
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 1, SIZE, SIZE))
    assert cost.macs == counter.get_total_flops() / 2


def test_file_is_within_its_size(artefacts):
    assert (artefacts[0] / "model.tflite").stat().st_size <= 350_000
