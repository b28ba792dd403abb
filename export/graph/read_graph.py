"""Reads TFLite and ONNX files into a ``ModelGraph``."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.run_files import BrainqError
from export.extra import import_extra
from export.graph import onnx_file
from export.graph.flatbuffer import constant, operator_name, read_model, schema, unpack_int4
from export.graph.model_graph import DEQUANTIZE, FLOATS, HEAVY, INTEGERS, QUANTIZE, ModelGraph, Node, Tensor

_ONNX_NAMES = {
    "Conv": "CONV_2D", "ConvTranspose": "TRANSPOSE_CONV", "Gemm": "FULLY_CONNECTED", "MatMul": "FULLY_CONNECTED",
    "QuantizeLinear": QUANTIZE, "DequantizeLinear": DEQUANTIZE, "ConvInteger": "CONV_2D",
    "MatMulInteger": "FULLY_CONNECTED",
}  # fmt: skip
"""ONNX operators that TFLite calls otherwise; the others keep their names, in capitals."""
_VIEWS = frozenset({"RESHAPE", "FLATTEN", "SQUEEZE", "UNSQUEEZE", "TRANSPOSE", "IDENTITY"})
"""Operators that move values without computing: integers stay integers, with no QuantizeLinear behind them."""
_FUSED = frozenset({"RELU", "CLIP", "HARDSWISH"})
"""Activations that an integer engine computes as part of the operator before them."""


class ModelGraphError(BrainqError):
    """A file that is no model, or a damaged one."""


def read_graph(path: Path) -> ModelGraph:
    """Read an .onnx or .tflite file. Raises ModelGraphError, FlatbufferError or OnnxFileError."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "missing"
        raise ModelGraphError(f"{path} is {found}; give an .onnx or a .tflite file")
    readers = {".onnx": _read_onnx, ".tflite": _read_tflite}
    if path.suffix not in readers:
        raise ModelGraphError(f"{path} ends in {path.suffix!r}; give a file ending in {' or '.join(sorted(readers))}")
    with naming_damage(path):
        return readers[path.suffix](path)


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Turn what following a damaged file's tables ends in, which may be anything, into ModelGraphError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BrainqError | OSError):
            raise
        what = f"its graph makes no sense ({type(error).__name__}: {error})".splitlines()[0]
        raise ModelGraphError(f"{path} is damaged: {what}; copy or export it again") from error


def _read_tflite(path: Path) -> ModelGraph:
    model = read_model(path)
    graph = model.subgraphs[0]
    names = _unique_names([tensor.name.decode(errors="replace") for tensor in graph.tensors])
    tensors = {name: _tflite_tensor(model, tensor, name) for name, tensor in zip(names, graph.tensors, strict=True)}
    activations = {value: name for name, value in vars(schema().ActivationFunctionType).items() if name[0] != "_"}
    nodes = [
        Node(
            operator_name(model, operator),
            tuple(names[index] for index in operator.inputs if index >= 0),
            tuple(names[index] for index in operator.outputs),
            activations[getattr(operator.builtinOptions, "fusedActivationFunction", 0)],
        )
        for operator in graph.operators
    ]
    inputs, outputs = ([names[index] for index in ends] for ends in (graph.inputs, graph.outputs))
    notes = () if len(model.subgraphs) == 1 else (f"{len(model.subgraphs)} subgraphs, only the first is examined",)
    return _fold_stored_constants(ModelGraph("TFLite", tensors, tuple(nodes), tuple(inputs), tuple(outputs), notes))


def _tflite_tensor(model: Any, tensor: Any, name: str) -> Tensor:
    kinds = {value: kind.lower() for kind, value in vars(schema().TensorType).items() if kind[0] != "_"}
    kind = kinds[tensor.type]
    shape = tuple(map(int, tensor.shape)) if tensor.shape is not None else ()
    quantization = tensor.quantization
    scales = None if quantization is None or quantization.scale is None else np.asarray(quantization.scale, np.float32)
    if scales is None or not len(scales):
        scales = zero_points = None
    else:
        zero_points = np.asarray(quantization.zeroPoint, np.int64)
    raw = constant(model, tensor, np.uint8)
    values, size_bytes = (None, 0) if raw is None else (_stored_values(raw, kind, shape), len(raw))
    axis = 0 if quantization is None else quantization.quantizedDimension
    return Tensor(name, kind, shape, scales, zero_points, axis, values, size_bytes, buffer=int(tensor.buffer))


def _stored_values(raw: NDArray[np.uint8], kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Decode a constant."""
    if kind == "int4":
        return unpack_int4(raw, int(np.prod(shape))).reshape(shape)
    if kind in INTEGERS | FLOATS - {"bfloat16"} | {"int32", "int64", "bool"}:
        return np.frombuffer(raw.tobytes(), kind).reshape(shape)
    return raw


def _fold_stored_constants(graph: ModelGraph) -> ModelGraph:
    """Take a DEQUANTIZE of a constant for what it is: the constant, stored in fewer bits (a float16 file's weights)."""
    tensors, nodes = dict(graph.tensors), []
    for node in graph.nodes:
        if node.operator == DEQUANTIZE and graph.is_constant(node.inputs[0]):
            tensors[node.outputs[0]] = replace(graph.tensors[node.inputs[0]], name=node.outputs[0])
        else:
            nodes.append(node)
    return replace(graph, tensors=tensors, nodes=tuple(nodes))


def _unique_names(names: Sequence[str]) -> list[str]:
    """Make names unique: TFLite knows tensors by number and lets two share a name."""
    counts = Counter(names)
    return [name if counts[name] == 1 and name else f"{name}#{index}" for index, name in enumerate(names)]


def _read_onnx(path: Path) -> ModelGraph:
    onnx = import_extra("onnx")
    model = onnx_file.read_model(path)
    if not model.graph.node:
        raise ModelGraphError(f"{path} is not an ONNX file: it has no operators")
    outside = [tensor.name for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    notes = (f"{len(outside)} weights are in another file, such as {outside[0]}",) if outside else ()
    constants = onnx_file.read_constants(model.graph)
    nodes = [
        Node(_ONNX_NAMES.get(node.op_type, node.op_type.upper()), tuple(filter(None, node.input)), tuple(node.output))
        for node in model.graph.node
        if node.op_type != "Constant"
    ]
    tensors = _onnx_tensors(model, constants, nodes)
    axes = {
        node.output[0]: attribute.i
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and attribute.name == "axis"
    }
    inputs = tuple(value.name for value in model.graph.input if value.name not in constants)
    graph = ModelGraph("ONNX", tensors, tuple(nodes), inputs, tuple(v.name for v in model.graph.output), notes)
    return _fold_qdq(_fuse_activations(graph), axes)


def _onnx_tensors(model: Any, constants: dict[str, NDArray[Any]], nodes: Sequence[Node]) -> dict[str, Tensor]:
    """Describe every tensor; types of computed ones are inferred."""
    onnx = import_extra("onnx")
    inferred = onnx.shape_inference.infer_shapes(model).graph
    tensors = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        kind, shape = value.type.tensor_type.elem_type, value.type.tensor_type
        name = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name if kind else "unknown"
        sides = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in shape.shape.dim)
        tensors[value.name] = Tensor(value.name, name, sides if shape.HasField("shape") else None)
    for name, values in constants.items():
        tensors[name] = Tensor(name, values.dtype.name, values.shape, values=values, size_bytes=values.nbytes)
    for node in nodes:
        for name in (*node.inputs, *node.outputs):
            tensors.setdefault(name, Tensor(name, "unknown", None))
    return tensors


def _fuse_activations(graph: ModelGraph) -> ModelGraph:
    """Join an activation with the operator before it, as every engine does, where nothing else reads between them."""
    consumers, producers = graph.consumers(), graph.producers()
    fused, gone = dict[str, Node](), set[str]()
    for node in graph.nodes:
        if node.operator not in _FUSED:
            continue
        before = producers.get(node.inputs[0])
        if before and before.operator in HEAVY | {"ADD"} and len(consumers[node.inputs[0]]) == 1:
            fused[before.name] = replace(before, outputs=node.outputs, activation=node.operator)
            gone.add(node.name)
    nodes = tuple(fused.get(node.name, node) for node in graph.nodes if node.name not in gone)
    return replace(graph, nodes=nodes)


def _fold_qdq(graph: ModelGraph, axes: dict[str, int]) -> ModelGraph:
    """Turn QuantizeLinear and DequantizeLinear pairs into quantized tensors. axes: of DequantizeLinear, by output."""
    folding = _Folding(graph, dict(graph.tensors))
    producers = graph.producers()
    for node in graph.nodes:
        if node.operator != DEQUANTIZE:
            continue
        stored = node.inputs[0]
        scales, zero_points = _onnx_scale(graph, node)
        quantization: dict[str, Any] = {"scales": scales, "zero_points": zero_points}
        before = producers.get(stored)
        if graph.is_constant(stored):
            folding.constant(node, graph.tensors[stored], quantization | {"axis": axes.get(node.outputs[0], 1)})
        elif before is None or before.operator != QUANTIZE:  # made by an integer operator (QLinearConv, ...)
            folding.tensors[stored] = replace(graph.tensors[stored], **quantization)
        else:
            real, *zero_point = (graph.tensors[name] for name in before.inputs[::2])
            kind = zero_point[0].kind if zero_point else "uint8"  # ONNX's own default
            if real.values is None:
                folding.activation(node, before, quantization | {"kind": kind})
                continue
            axis = axes.get(node.outputs[0], 1)
            values = _quantize(real.values, scales, zero_points, axis, kind)
            at_run_time = {"axis": axis, "kind": kind, "values": values, "quantized_at_run_time": True}
            folding.constant(node, real, quantization | at_run_time)
            folding.gone.add(before.name)
    return _pass_types_through_views(folding.result())


@dataclass
class _Folding:
    """A graph whose QuantizeLinear and DequantizeLinear go one after another.

    Attributes:
        graph: As it was.
        tensors: As they are now.
        renamed: {input of a node: what it reads instead}.
        gone: Names of nodes that are part of a tensor now.
    """

    graph: ModelGraph
    tensors: dict[str, Tensor]
    renamed: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    def constant(self, node: Node, stored: Tensor, changes: dict[str, Any]) -> None:
        """Let a DEQUANTIZE's output be the constant behind it, quantized."""
        self.tensors[node.outputs[0]] = replace(stored, name=node.outputs[0], **changes)
        self.gone.add(node.name)

    def activation(self, node: Node, before: Node, changes: dict[str, Any]) -> None:
        """Let the tensor between a QUANTIZE and its DEQUANTIZE be integer, and those behind read it as it is."""
        real, stored, output = before.inputs[0], node.inputs[0], node.outputs[0]
        readers = (other for other in self.graph.nodes if real in other.inputs)
        if real not in self.graph.inputs and all(reader.operator == QUANTIZE for reader in readers):
            stored = real  # it keeps its name and is integer from here on
            self.gone.add(before.name)
        self.tensors[stored] = replace(self.graph.tensors[stored], **changes)
        if output in self.graph.outputs:
            self.renamed[node.inputs[0]] = stored
        else:
            self.renamed[output] = stored
            self.gone.add(node.name)

    def result(self) -> ModelGraph:
        """Return the graph without what is gone; scales and zero points are parts of tensors now, and no inputs."""
        nodes = []
        for node in (node for node in self.graph.nodes if node.name not in self.gone):
            data = node.inputs[:1] if node.operator in (QUANTIZE, DEQUANTIZE) else node.inputs
            nodes.append(replace(node, inputs=tuple(self.renamed.get(name, name) for name in data)))
        return replace(self.graph, tensors=self.tensors, nodes=tuple(nodes))


def _pass_types_through_views(graph: ModelGraph) -> ModelGraph:
    """Let what a view gives be integer where what it reads is."""
    tensors = dict(graph.tensors)
    for node in graph.nodes:
        if node.operator not in _VIEWS:
            continue
        source, made = tensors[node.inputs[0]], tensors[node.outputs[0]]
        if made.kind in FLOATS and source.kind in INTEGERS:
            tensors[made.name] = replace(source, name=made.name, shape=made.shape)
    return replace(graph, tensors=tensors)


def _onnx_scale(graph: ModelGraph, node: Node) -> tuple[NDArray[np.float32] | None, NDArray[np.int64] | None]:
    """Return the scale and zero point of a QuantizeLinear or DequantizeLinear; None where they are computed."""
    scale = graph.tensors[node.inputs[1]].values
    if scale is None:
        return None, None
    scales = np.atleast_1d(scale).astype(np.float32)
    zero = graph.tensors[node.inputs[2]].values if len(node.inputs) > 2 else None
    zero_points = np.zeros(len(scales), np.int64) if zero is None else np.atleast_1d(zero).astype(np.int64)
    return scales, zero_points


def _quantize(
    values: NDArray[Any], scales: NDArray[Any] | None, zero_points: NDArray[Any] | None, axis: int, kind: str
) -> NDArray[Any]:
    """Quantize a float constant as QuantizeLinear would."""
    if scales is None or zero_points is None:
        return values
    along = [1] * values.ndim
    if len(scales) > 1:
        along[axis] = len(scales)
    limits = np.iinfo(kind)
    steps = np.rint(values / scales.reshape(along)) + zero_points.reshape(along)
    integers: NDArray[Any] = np.clip(steps, limits.min, limits.max).astype(kind)
    return integers
