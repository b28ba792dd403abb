"""TFLite and ONNX files as one kind of graph, so that a diagnosis is written once.

ONNX says QuantizeLinear and DequantizeLinear around float operators where TFLite gives a tensor a type and a scale.
Here both read alike: a tensor has a stored type, and a QUANTIZE or DEQUANTIZE that is left is one that really computes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.run_files import BrainqError
from export.extra import import_extra
from export.graph.flatbuffer import operator_name, read_model, schema

QUANTIZE, DEQUANTIZE = "QUANTIZE", "DEQUANTIZE"
HEAVY = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL"})
"""Operators with weights: they decide what a file computes in."""

INTEGERS = frozenset({"int4", "int8", "uint8", "int16"})
"""Types that hold quantized values; int32 and int64 are biases, shapes and axes."""
FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})

_ONNX_NAMES = {
    "Conv": "CONV_2D", "ConvTranspose": "TRANSPOSE_CONV", "Gemm": "FULLY_CONNECTED", "MatMul": "FULLY_CONNECTED",
    "Transpose": "TRANSPOSE", "Mul": "MUL", "Add": "ADD", "Sub": "SUB", "Div": "DIV", "Pad": "PAD", "Cast": "CAST",
    "Reshape": "RESHAPE", "QuantizeLinear": QUANTIZE, "DequantizeLinear": DEQUANTIZE,
    "ConvInteger": "CONV_2D", "MatMulInteger": "FULLY_CONNECTED",
}  # fmt: skip
"""ONNX operators that a diagnosis asks for, under TFLite's names; the others keep theirs."""
_VIEWS = frozenset({"RESHAPE", "FLATTEN", "SQUEEZE", "UNSQUEEZE", "TRANSPOSE", "IDENTITY"})
"""Operators that move values without computing: integers stay integers, with no QuantizeLinear behind them."""
_ONNX_FUSED = frozenset({"Relu", "Clip", "HardSwish"})
"""Activations that an integer engine computes as part of the operator before them."""


class ModelGraphError(BrainqError):
    """A file that is no model, or a damaged one."""


@dataclass(frozen=True)
class Tensor:
    """One tensor.

    kind: NumPy's name of the stored type, such as ``int8``, or ``int4``. shape: open sides are -1, None when unknown.
    scales, zero_points: (1,) per tensor, (C,) along ``axis``; None where not quantized.
    values: of a constant, as stored (int4 as int8 numbers), else None. size_bytes: of a constant, in the file.
    quantized_at_run_time: constant stored as float and quantized whenever the model is loaded.
    buffer: number of the place in a TFLite file that holds a constant; tensors that share it are stored once.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    scales: NDArray[np.float32] | None = None
    zero_points: NDArray[np.int64] | None = None
    axis: int = 0
    values: NDArray[Any] | None = None
    size_bytes: int = 0
    quantized_at_run_time: bool = False
    buffer: int | None = None


@dataclass(frozen=True)
class Node:
    """One operator, under TFLite's name. name: its first output's. activation: fused into it, such as ``RELU6``."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    activation: str = "NONE"

    @property
    def name(self) -> str:
        """Name of the first output, or of the operator where it has none."""
        return self.outputs[0] if self.outputs else self.operator


@dataclass(frozen=True)
class ModelGraph:
    """A model file. notes: what was not read. Constants are in ``tensors``, never in ``nodes``."""

    file_format: str
    tensors: dict[str, Tensor]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def producers(self) -> dict[str, Node]:
        """Return the node that makes each computed tensor."""
        return {output: node for node in self.nodes for output in node.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """Return the nodes that read each tensor."""
        found: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in node.inputs:
                found[name].append(node)
        return found

    def is_constant(self, name: str) -> bool:
        """Tell a constant from a computed tensor."""
        return self.tensors[name].values is not None

    def computed_inputs(self, node: Node) -> list[Tensor]:
        """Return the node's inputs that are not constants."""
        return [self.tensors[name] for name in node.inputs if not self.is_constant(name)]


def read_graph(path: Path) -> ModelGraph:
    """Read an .onnx or .tflite file. Raises ModelGraphError or FlatbufferError."""
    if not path.is_file():
        raise ModelGraphError(
            f"{path} is {'a folder' if path.is_dir() else 'missing'}; give an .onnx or a .tflite file"
        )
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


# TFLite


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
    data = model.buffers[tensor.buffer].data
    raw = np.zeros(0, np.uint8) if data is None else np.asarray(data, np.uint8)
    values = _stored_values(raw, kind, shape) if len(raw) else None
    axis = 0 if quantization is None else quantization.quantizedDimension
    return Tensor(name, kind, shape, scales, zero_points, axis, values, len(raw), buffer=int(tensor.buffer))


def _stored_values(raw: NDArray[np.uint8], kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Decode a constant. Two int4 numbers lie in a byte, the first one in its lower half."""
    if kind == "int4":
        halves = np.stack([raw & 15, raw >> 4], 1).reshape(-1)[: int(np.prod(shape))].astype(np.int8)
        return np.where(halves > 7, halves - 16, halves).astype(np.int8).reshape(shape)
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


# ONNX


def _read_onnx(path: Path) -> ModelGraph:
    onnx = import_extra("onnx")
    protobuf = import_extra("google.protobuf.message")
    try:
        model = onnx.load(path, load_external_data=False)
    except protobuf.DecodeError as error:
        raise ModelGraphError(f"{path} is not an ONNX file, or is cut short: {error}") from error
    if not model.graph.node:
        raise ModelGraphError(f"{path} is not an ONNX file: it has no operators")
    outside = [tensor.name for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    notes = (f"{len(outside)} weights are in another file, such as {outside[0]}",) if outside else ()
    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name not in outside
    }
    constants |= {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
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
    inputs = [value.name for value in model.graph.input if value.name not in constants]
    graph = ModelGraph("ONNX", tensors, tuple(nodes), tuple(inputs), tuple(v.name for v in model.graph.output), notes)
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
    fused: dict[str, Node] = {}
    gone: set[str] = set()
    for node in graph.nodes:
        if node.operator not in {name.upper() for name in _ONNX_FUSED}:
            continue
        before = producers.get(node.inputs[0])
        if before and before.operator in HEAVY | {"ADD"} and len(consumers[node.inputs[0]]) == 1:
            fused[before.name] = replace(before, outputs=node.outputs, activation=node.operator)
            gone.add(node.name)
    nodes = tuple(fused.get(node.name, node) for node in graph.nodes if node.name not in gone)
    return replace(graph, nodes=nodes)


def _fold_qdq(graph: ModelGraph, axes: dict[str, int]) -> ModelGraph:
    """Turn QuantizeLinear and DequantizeLinear pairs into quantized tensors."""
    producers, consumers = graph.producers(), graph.consumers()
    tensors, renamed, gone = dict(graph.tensors), {}, set()
    for node in graph.nodes:
        if node.operator != DEQUANTIZE:
            continue
        stored, output = node.inputs[0], node.outputs[0]
        scales, zero_points = _onnx_scale(graph, node)
        axis = axes.get(output, 1)
        before = producers.get(stored)
        if graph.is_constant(stored):
            tensors[output] = replace(
                graph.tensors[stored], name=output, scales=scales, zero_points=zero_points, axis=axis
            )
            gone.add(node.name)
        elif before and before.operator == QUANTIZE:
            real = before.inputs[0]
            kind = _quantized_kind(graph, before)
            if graph.is_constant(real):
                tensors[output] = replace(
                    graph.tensors[real], name=output, kind=kind, scales=scales, zero_points=zero_points, axis=axis,
                    values=_quantize(graph.tensors[real].values, scales, zero_points, axis, kind),
                    quantized_at_run_time=True,
                )  # fmt: skip
                gone |= {node.name, before.name}
            elif real not in graph.inputs and all(user.operator == QUANTIZE for user in consumers[real]):
                # The tensor keeps its name and is integer from here on; what read it dequantized reads it as it is.
                tensors[real] = replace(graph.tensors[real], kind=kind, scales=scales, zero_points=zero_points)
                gone.add(before.name)
                if output not in graph.outputs:
                    renamed[output] = real
                    gone.add(node.name)
                else:
                    renamed[stored] = real
            else:
                tensors[stored] = replace(graph.tensors[stored], kind=kind, scales=scales, zero_points=zero_points)
                if output not in graph.outputs:
                    renamed[output] = stored
                    gone.add(node.name)
        else:  # made by an integer operator (QLinearConv, ...)
            tensors[stored] = replace(graph.tensors[stored], scales=scales, zero_points=zero_points)
    nodes = tuple(
        replace(node, inputs=tuple(renamed.get(name, name) for name in _data_inputs(node)))
        for node in graph.nodes
        if node.name not in gone
    )
    for node in nodes:
        if node.operator in _VIEWS and tensors[node.outputs[0]].kind in FLOATS:
            source = tensors[node.inputs[0]]
            if source.kind in INTEGERS:
                view = replace(source, name=node.outputs[0], shape=tensors[node.outputs[0]].shape)
                tensors[node.outputs[0]] = view
    return replace(graph, tensors=tensors, nodes=nodes)


def _data_inputs(node: Node) -> tuple[str, ...]:
    """Leave out scale and zero point, which are part of the tensor here."""
    return node.inputs[:1] if node.operator in (QUANTIZE, DEQUANTIZE) else node.inputs


def _onnx_scale(graph: ModelGraph, node: Node) -> tuple[NDArray[np.float32] | None, NDArray[np.int64] | None]:
    """Return the scale and zero point of a QuantizeLinear or DequantizeLinear; None where they are computed."""
    scale = graph.tensors[node.inputs[1]].values
    if scale is None:
        return None, None
    scales = np.atleast_1d(scale).astype(np.float32)
    zero = graph.tensors[node.inputs[2]].values if len(node.inputs) > 2 else None
    zero_points = np.zeros(len(scales), np.int64) if zero is None else np.atleast_1d(zero).astype(np.int64)
    return scales, zero_points


def _quantized_kind(graph: ModelGraph, node: Node) -> str:
    """Return the type a QuantizeLinear makes: its zero point's, uint8 without one."""
    return graph.tensors[node.inputs[2]].kind if len(node.inputs) > 2 else "uint8"


def _quantize(
    values: NDArray[Any] | None,
    scales: NDArray[np.float32] | None,
    zero_points: NDArray[np.int64] | None,
    axis: int,
    kind: str,
) -> NDArray[Any] | None:
    """Quantize a float constant as QuantizeLinear would."""
    if values is None or scales is None or zero_points is None:
        return values
    along = [1] * values.ndim
    if len(scales) > 1:
        along[axis] = len(scales)
    limits = np.iinfo(kind)
    steps = np.rint(values / scales.reshape(along)) + zero_points.reshape(along)
    return np.clip(steps, limits.min, limits.max).astype(kind)
