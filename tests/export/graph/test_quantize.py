import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from export.graph import quantize
from export.graph.flatbuffer import constant, operator_name, read_model, write_model
from export.graph.quantize import QuantizeError, cast_to_float16
from export.run.sessions import ask_tflite, open_tflite
from tests.support.handmade_models import TFLiteBuilder, write_float_tflite, write_int8_tflite


def delegated_parts(path):
    """Into how many pieces XNNPACK took the model: one piece runs at full speed."""
    return [details["op_name"] for details in open_tflite(path)._get_ops_details()].count("DELEGATE")


def constants(model, kind, dtype):
    tensors = model.subgraphs[0].tensors
    values = {t.name.decode(): constant(model, t, dtype) for t in tensors if t.type == getattr(schema.TensorType, kind)}
    return {name: value for name, value in values.items() if value is not None}


def test_every_float_constant_is_its_own_float16_rounding(tiny_export):
    full = constants(read_model(tiny_export / "model_fp32.tflite"), "FLOAT32", "<f4")
    model = read_model(tiny_export / "model_fp16.tflite")
    half = constants(model, "FLOAT16", "<f2")
    assert not constants(model, "FLOAT32", "<f4")
    assert len(full) == 106  # weight and bias of 52 convolutions and the head
    assert set(half) == {f"{name}_float16" for name in full}
    for name, values in full.items():
        np.testing.assert_array_equal(half[f"{name}_float16"], values.astype(np.float16))


def test_only_dequantize_is_added_and_activations_stay_float32(tiny_export):
    full, half = (read_model(tiny_export / f"model_{kind}.tflite") for kind in ("fp32", "fp16"))
    names = [[operator_name(model, operator) for operator in model.subgraphs[0].operators] for model in (full, half)]
    assert names[1] == ["DEQUANTIZE"] * 106 + names[0]
    for index in (*half.subgraphs[0].inputs, *half.subgraphs[0].outputs):
        assert half.subgraphs[0].tensors[index].type == schema.TensorType.FLOAT32


def test_it_is_half_the_bytes_and_xnnpack_takes_it_in_one_piece_as_it_does_the_float32_file(tiny_export):
    full, half = (tiny_export / f"model_{kind}.tflite" for kind in ("fp32", "fp16"))
    assert half.stat().st_size / full.stat().st_size <= 0.52
    assert delegated_parts(full) == delegated_parts(half) == 1


def test_with_float32_biases_xnnpack_would_leave_the_convolutions_out(tiny_export, tmp_path, monkeypatch):
    # The negative control of the test above, and the reason for casting biases.
    def without_biases(model, tensor, dtype):
        return constant(model, tensor, dtype) if len(tensor.shape) > 1 else None

    monkeypatch.setattr(quantize, "constant", without_biases)
    cast_to_float16(tiny_export / "model_fp32.tflite", tmp_path / "weights_only.tflite")
    assert delegated_parts(tmp_path / "weights_only.tflite") > 1


def test_two_tensors_of_one_buffer_are_both_right(tmp_path):
    build = TFLiteBuilder()
    image = build.tensor("image", (1, 4))
    first = build.tensor("first", (4,), data=np.array([0.5, 1.5, -2.0, 3.0], np.float32))
    second = build.tensor("second", (4,))
    build.graph.tensors[second].buffer = build.graph.tensors[first].buffer
    middle = build.made("ADD", [image, first], "middle", (1, 4))
    logits = build.made("MUL", [middle, second], "logits", (1, 4))
    path = build.write(tmp_path / "shared.tflite", [image], [logits])
    cast_to_float16(path, tmp_path / "half.tflite")
    logits = ask_tflite(open_tflite(tmp_path / "half.tflite"), np.ones((1, 4), np.float32))
    np.testing.assert_array_equal(logits, [[0.75, 3.75, 2.0, 12.0]])


def test_a_padded_max_pooling_stays_what_it_is(tmp_path):
    # As onnx2tf writes MaxPool2d(3, 2, padding=1): PADV2 with float32's lowest number, which float16 does not have.
    build = TFLiteBuilder()
    image = build.tensor("image", (1, 4, 4, 1))
    pads = build.tensor("pads", (4, 2), "INT32", data=np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
    lowest = build.tensor("pad_value", (1,), data=np.array([np.finfo(np.float32).min], np.float32))
    padded = build.made("PADV2", [image, pads, lowest], "padded", (1, 6, 6, 1), options=schema.PadV2OptionsT())
    pool = schema.Pool2DOptionsT(schema.Padding.VALID, filterHeight=3, filterWidth=3, strideH=2, strideW=2)
    pooled = build.made("MAX_POOL_2D", [padded], "pooled", (1, 2, 2, 1), options=pool)
    factor = build.tensor("factor", (1,), data=np.array([0.5], np.float32))
    logits = build.made("MUL", [pooled, factor], "logits", (1, 2, 2, 1))
    path = build.write(tmp_path / "padded.tflite", [image], [logits])
    cast_to_float16(path, tmp_path / "half.tflite")
    values = -np.arange(1, 17, dtype=np.float32).reshape(1, 4, 4, 1)
    logits = ask_tflite(open_tflite(tmp_path / "half.tflite"), values)
    np.testing.assert_array_equal(logits[0, ..., 0], [[-0.5, -1.0], [-2.5, -3.0]])
    assert set(constants(read_model(tmp_path / "half.tflite"), "FLOAT16", "<f2")) == {"factor_float16"}


@pytest.mark.parametrize("value", [70000.0, np.nan])
def test_refuses_what_float16_cannot_hold(tmp_path, value):
    path = write_float_tflite(tmp_path / "model.tflite")
    model = read_model(path)
    kernel = next(tensor for tensor in model.subgraphs[0].tensors if tensor.name == b"kernel")
    values = constant(model, kernel, "<f4").copy()
    values[0] = value
    model.buffers[kernel.buffer].data = values.view(np.uint8)
    write_model(model, path)
    with pytest.raises(QuantizeError, match=r"kernel holds .*; float16 ends at 65504"):
        cast_to_float16(path, tmp_path / "half.tflite")
    assert not (tmp_path / "half.tflite").exists()


def test_refuses_a_file_without_float_constants(tmp_path):
    with pytest.raises(QuantizeError, match="no float32 constants"):
        cast_to_float16(write_int8_tflite(tmp_path / "int8.tflite"), tmp_path / "half.tflite")
