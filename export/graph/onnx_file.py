"""Reads ONNX files and changes their graphs, without PyTorch."""

from pathlib import Path
from typing import Any

from brainq_torch.run_files import BrainqError
from export.extra import import_extra


class OnnxFileError(BrainqError):
    """A file that is not a whole ONNX model."""


def read_model(path: Path) -> Any:
    """Return an ONNX file as a `ModelProto`; weights in other files stay there. Raises OnnxFileError."""
    try:
        return import_extra("onnx").load(path, load_external_data=False)
    except import_extra("google.protobuf.message").DecodeError as error:
        raise OnnxFileError(f"{path} is not an ONNX file, or is cut short: {error}") from error


def read_constants(graph: Any) -> dict[str, Any]:
    """Return every constant of an ONNX graph as {name: array}, initializer or Constant node."""
    onnx = import_extra("onnx")
    outside = onnx.TensorProto.EXTERNAL
    found = {tensor.name: tensor for tensor in graph.initializer if tensor.data_location != outside}
    found |= {
        node.output[0]: node.attribute[0].t
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    return {name: onnx.numpy_helper.to_array(tensor) for name, tensor in found.items()}


def drop_unused_constants(graph: Any) -> None:
    """Remove initializers that no node reads."""
    used = {value for node in graph.node for value in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def rename_values(graph: Any, names: dict[str, str]) -> None:
    """Rename what nodes make and read. names: {old: new}."""
    for node in graph.node:
        node.input[:] = [names.get(value, value) for value in node.input]
        node.output[:] = [names.get(value, value) for value in node.output]
    del graph.value_info[:]  # they hold the old names; shapes are inferred again by whoever needs them
