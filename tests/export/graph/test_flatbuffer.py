import pytest
from ai_edge_litert import schema_py_generated as schema

from export.graph.flatbuffer import FlatbufferError, read_model, write_model
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


@pytest.mark.parametrize("content", [b"", b"TFL3", b"PK\x03\x04 a zip file", b"\x1c\x00\x00\x00ONNX"])
def test_refuses_what_is_no_tflite_file(tmp_path, content):
    (tmp_path / "model.tflite").write_bytes(content)
    with pytest.raises(FlatbufferError, match="not a TFLite file"):
        read_model(tmp_path / "model.tflite")
