from collections import Counter

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema

from brainq_torch.data.pixels import scale_pixels
from export.graph import tflite
from export.graph.flatbuffer import constant, operator_name, read_model
from export.graph.tflite import ConversionError, convert_float
from export.run.sessions import ask_tflite, open_tflite
from tests.support.handmade_models import save_onnx

SIZE = 32


@pytest.fixture(scope="module")
def model(tiny_export):
    return read_model(tiny_export / "model_fp32.tflite")


def test_has_one_operator_per_layer_and_no_transpose(model):
    operators = Counter(operator_name(model, operator) for operator in model.subgraphs[0].operators)
    # 35 convolutions (stem, 16 expansions, 17 projections, head), 17 depthwise, 10 shortcuts; ReLU is fused. PAD is
    # torch's symmetric padding of the five strided convolutions, which TFLite's SAME is not.
    assert operators == {
        "CONV_2D": 35, "DEPTHWISE_CONV_2D": 17, "ADD": 10, "PAD": 5, "MEAN": 1, "RESHAPE": 1, "FULLY_CONNECTED": 1,
    }  # fmt: skip


def test_takes_nhwc_float_images_and_gives_float_logits(model):
    graph = model.subgraphs[0]
    (image,), (logits,) = graph.inputs, graph.outputs
    assert graph.tensors[image].name == b"image"
    assert list(graph.tensors[image].shape) == [1, SIZE, SIZE, 1]
    assert list(graph.tensors[image].shapeSignature) == [-1, SIZE, SIZE, 1]
    assert graph.tensors[logits].name == b"logits"
    assert list(graph.tensors[logits].shape) == [1, 4]
    assert {graph.tensors[index].type for index in (image, logits)} == {schema.TensorType.FLOAT32}


def test_does_not_permit_reduced_precision(model):
    assert [entry.name for entry in model.metadata] == [b"brainq"]


def test_a_folder_may_have_letters_that_the_console_lacks(tiny_export, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    (tmp_path / "\u0141").mkdir()
    convert_float(tiny_export / "model_fp32.onnx", tmp_path / "\u0141" / "a.tflite")
    assert (tmp_path / "\u0141" / "a.tflite").is_file()


def test_can_be_resized_to_any_batch(tiny_export):
    images = scale_pixels(np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8))
    images = images.transpose(0, 2, 3, 1)
    interpreter = open_tflite(tiny_export / "model_fp32.tflite")
    single = np.concatenate([ask_tflite(interpreter, image[None]) for image in images])
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], images.shape, strict=True)
    interpreter.allocate_tensors()
    np.testing.assert_allclose(ask_tflite(interpreter, images), single, rtol=0, atol=1e-6)


def test_carries_the_onnx_weights_unchanged(tiny_export, model):
    onnx_model = onnx.load(tiny_export / "model_fp32.onnx")
    weights = [onnx.numpy_helper.to_array(weight) for weight in onnx_model.graph.initializer]
    ours = [constant(model, t, "<f4") for t in model.subgraphs[0].tensors if t.type == schema.TensorType.FLOAT32]
    # The layout differs (OIHW, OHWI), so each constant is compared as a sorted multiset of its values.
    expected = sorted(np.sort(w.ravel()).tobytes() for w in weights if w.dtype == np.float32)
    assert sorted(np.sort(values).tobytes() for values in ours if values is not None) == expected


def test_a_failed_conversion_shows_what_the_converter_said(tiny_export, tmp_path, monkeypatch):
    monkeypatch.setattr(tflite, "write_single_batch", lambda source, target: target.write_bytes(b"not ONNX"))
    with pytest.raises(ConversionError, match=r"(?s)exit code 1.*DecodeError"):
        convert_float(tiny_export / "model_fp32.onnx", tmp_path / "odd.tflite")
    assert not list(tmp_path.iterdir())


def test_an_operator_without_translation_is_named(tmp_path):
    node = onnx.helper.make_node("Sorcery", ["image"], ["logits"], domain="nowhere")
    save_onnx(tmp_path / "odd.onnx", [node], domain="nowhere")
    with pytest.raises(ConversionError, match=r"cannot translate operators of odd.onnx; it wrote ONNX_SORCERY"):
        convert_float(tmp_path / "odd.onnx", tmp_path / "odd.tflite")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.onnx"]
