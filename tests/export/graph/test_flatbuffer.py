import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from export.graph.flatbuffer import FlatbufferError, add_buffer, constant, operator_name, read_model, write_model
from tests.support.handmade_models import write_float_tflite


def test_reading_and_writing_again_keeps_every_byte(tmp_path):
    path = write_float_tflite(tmp_path / "model.tflite")
    write_model(read_model(path), tmp_path / "again.tflite")
    assert (tmp_path / "again.tflite").read_bytes() == path.read_bytes()


def test_constants_lie_at_multiples_of_16_bytes(tiny_export):
    content = (tiny_export / "model_fp32.tflite").read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    offsets = []
    for index in range(model.BuffersLength()):
        buffer = model.Buffers(index)
        if buffer.DataLength():
            field = buffer._tab.Offset(4)
            offsets.append(buffer._tab.Vector(field))
    assert len(offsets) > 100
    assert {offset % 16 for offset in offsets} == {0}


def test_names_operators_and_finds_constants(tmp_path):
    model = read_model(write_float_tflite(tmp_path / "model.tflite"))
    graph = model.subgraphs[0]
    assert [operator_name(model, operator) for operator in graph.operators] == ["CONV_2D", "MEAN", "FULLY_CONNECTED"]
    assert constant(model, graph.tensors[graph.inputs[0]], "<f4") is None
    axes = next(tensor for tensor in graph.tensors if tensor.name == b"axes")
    np.testing.assert_array_equal(constant(model, axes, "<i4"), [1, 2])


def test_an_added_buffer_is_read_back(tmp_path):
    path = write_float_tflite(tmp_path / "model.tflite")
    model = read_model(path)
    index = add_buffer(model, b"seventeen bytes..")
    write_model(model, path)
    assert bytes(read_model(path).buffers[index].data) == b"seventeen bytes.."


@pytest.mark.parametrize("content", [b"", b"TFL3", b"PK\x03\x04 a zip file", b"\x1c\x00\x00\x00ONNX"])
def test_refuses_what_is_no_tflite_file(tmp_path, content):
    (tmp_path / "model.tflite").write_bytes(content)
    with pytest.raises(FlatbufferError, match="not a TFLite file"):
        read_model(tmp_path / "model.tflite")


def test_refuses_a_file_cut_short(tmp_path):
    path = write_float_tflite(tmp_path / "model.tflite")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FlatbufferError, match="damaged"):
        read_model(path)
