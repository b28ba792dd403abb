import numpy as np
import onnx
import onnxruntime
import pytest
from torch import nn

from brainq_torch.data.pixels import PixelSpec, scale_pixels
from brainq_torch.models import build_model
from brainq_torch.quant.lower import fold_batchnorms, lower_batchnorms
from export.graph.float_onnx import (
    GraphWriter,
    OnnxExportError,
    UnknownOperationError,
    export_float_onnx,
    strip_traces,
    trace_onnx,
)
from tests.brainq_torch.quant.test_lower import randomised
from tests.export.graph.test_any_network import build
from tests.support.small_network import SIDE, as_input, small_images, small_network

SIZE = 32


@pytest.fixture(scope="module")
def graph(tiny_export):
    return onnx.load(tiny_export / "model_fp32.onnx")


def test_is_one_file_of_opset_18_with_the_agreed_names_and_an_open_batch(graph):
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 18)]
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert shapes == {"image": ["batch", 1, SIZE, SIZE], "logits": ["batch", 4]}
    assert all(weight.data_location == onnx.TensorProto.DEFAULT for weight in graph.graph.initializer)


def test_holds_no_batchnorm_and_no_transpose(graph):
    operators = {node.op_type for node in graph.graph.node}
    assert operators <= {"Conv", "Relu", "Add", "ReduceMean", "Shape", "Concat", "Reshape", "Gemm"}


def test_says_nothing_about_the_machine_that_made_it(tiny_export):
    content = (tiny_export / "model_fp32.onnx").read_bytes()
    for trace in (b"site-packages", b"stack_trace", b"brainq_torch/models", b".py"):
        assert trace not in content


@pytest.mark.parametrize("name", [None, "my_network:MyNetwork", "tests.support.networks:TwoPools"])
def test_what_is_written_module_by_module_is_what_torchs_exporter_writes(name, tmp_path, monkeypatch):
    network = randomised(small_network()) if name is None else build(name, tmp_path, monkeypatch)
    folded = fold_batchnorms(lower_batchnorms(network))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    graphs = GraphWriter(folded).write(PixelSpec(SIDE)), trace_onnx(lower_batchnorms(network), PixelSpec(SIDE))
    layers = [
        sorted(one.raw_data for one in graph.graph.initializer if one.data_type == 1 and one.dims) for graph in graphs
    ]
    assert layers[0] == layers[1]
    sessions = (onnxruntime.InferenceSession(graph.SerializeToString()) for graph in graphs)
    first, second = (session.run(None, {"image": scale_pixels(small_images())})[0] for session in sessions)
    np.testing.assert_array_equal(first, second)
    assert np.ptp(first, axis=0).min() > 0


def test_other_operations_are_left_to_torchs_exporter(tmp_path, monkeypatch):
    network = build("tests.support.networks:Gated", tmp_path, monkeypatch)
    with pytest.raises(UnknownOperationError, match=r"no node is known for .*sigmoid"):
        GraphWriter(network).write(PixelSpec(SIDE))
    export_float_onnx(network, PixelSpec(SIDE), tmp_path / "model.onnx")
    (logits,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"image": scale_pixels(small_images())})
    np.testing.assert_allclose(logits, network(as_input(small_images())).detach(), rtol=0, atol=1e-4)


class ChannelsLast(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_channels_that_come_last_are_pooled_without_a_loop():
    """As ConvNeXt's do: TFLite has no such loop."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), ChannelsLast(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    graph = trace_onnx(network, PixelSpec(SIDE))
    assert not {node.op_type for node in graph.graph.node} & {"Loop", "SequenceEmpty"}
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (logits,) = session.run(None, {"image": scale_pixels(small_images())})
    np.testing.assert_allclose(logits, network(as_input(small_images())).detach(), rtol=0, atol=1e-6)


def test_refuses_a_model_in_training_mode(tmp_path):
    model = build_model("mobilenetv2", width_mult=0.35).train()
    with pytest.raises(ValueError, match="training mode"):
        export_float_onnx(model, PixelSpec(SIZE), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_dilated_pooling_is_refused_by_its_name(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(3, 2, dilation=2)).eval()
    with pytest.raises(OnnxExportError, match=r"^1 is a MaxPool2d with dilation"):
        export_float_onnx(model, PixelSpec(SIZE), tmp_path / "model.onnx")


def test_strip_traces_leaves_the_computation_alone():
    node = onnx.helper.make_node("Relu", ["image"], ["logits"], doc_string="/home/someone/net.py")
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/someone/net.py")
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("image", "logits")]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "graph", tensors[:1], tensors[1:]))
    strip_traces(model)
    assert b"someone" not in model.SerializeToString()
    assert [(node.op_type, list(node.input)) for node in model.graph.node] == [("Relu", ["image"])]
