import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from brainq_torch.data.pixels import PixelSpec, scale_pixels
from brainq_torch.models import build_model
from brainq_torch.quant.lower import fold_batchnorms, lower_batchnorms
from brainq_torch.run import load_run
from export.graph import float_onnx
from export.graph.float_onnx import export_float_onnx, strip_traces
from tests.brainq_torch.quant.test_lower import randomised
from tests.support.small_network import SIDE, small_network

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


@pytest.mark.parametrize("count", [1, 3])
def test_computes_what_the_run_computes_for_any_batch(tiny_run, tiny_export, count):
    images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE), dtype=np.uint8)
    session = onnxruntime.InferenceSession(tiny_export / "model_fp32.onnx")
    (logits,) = session.run(["logits"], {"image": scale_pixels(images)})
    with torch.inference_mode():
        expected = load_run(tiny_run).model(torch.from_numpy(scale_pixels(images)))
    # Folding BatchNorm and another summation order: rounding of float32, nothing more.
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-5)


def test_says_nothing_about_the_machine_that_made_it(tiny_export):
    content = (tiny_export / "model_fp32.onnx").read_bytes()
    for trace in (b"site-packages", b"stack_trace", b"brainq_torch/models", b".py"):
        assert trace not in content


def test_batchnorms_are_folded_to_the_exporters_bits_before_it_traces_them(tmp_path, monkeypatch):
    network, tensors = randomised(small_network()), []
    for fold in (float_onnx.fold_batchnorms, lambda model: model):
        monkeypatch.setattr(float_onnx, "fold_batchnorms", fold)
        export_float_onnx(network, PixelSpec(SIDE), tmp_path / "model.onnx")
        tensors.append(sorted(one.raw_data for one in onnx.load(tmp_path / "model.onnx").graph.initializer))
    assert tensors[0] == tensors[1]
    folded = fold_batchnorms(lower_batchnorms(network))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())


def test_refuses_a_model_in_training_mode(tmp_path):
    model = build_model("mobilenetv2", width_mult=0.35).train()
    with pytest.raises(ValueError, match="training mode"):
        export_float_onnx(model, PixelSpec(SIZE), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_strip_traces_leaves_the_computation_alone():
    node = onnx.helper.make_node("Relu", ["image"], ["logits"], doc_string="/home/someone/net.py")
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/someone/net.py")
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("image", "logits")]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "graph", tensors[:1], tensors[1:]))
    strip_traces(model)
    assert b"someone" not in model.SerializeToString()
    assert [(node.op_type, list(node.input)) for node in model.graph.node] == [("Relu", ["image"])]
