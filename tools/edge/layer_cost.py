"""What a TFLite file costs by its graph alone: multiply-accumulates, bytes of every sort, memory for activations.

Exact, in that nothing is run and nothing is assumed: shapes, types and the order of operators are in the file.
"""

import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from brainq_torch.checksum import find_damage
from brainq_torch.run_files import atomic_path
from export.graph.flatbuffer import length_of, read_model
from export.graph.model_graph import ModelGraph, Tensor
from export.graph.read_graph import read_graph
from tools.shared.command import CommandError

SCALE_BYTES, ZERO_POINT_BYTES = 4, 8
"""The schema's float32 and int64 of a quantized tensor's scale and zero point."""

_MACS: dict[str, Callable[[Tensor, Tensor, Tensor], int]] = {
    # (data, weight, output) -> MACs. Weights are (O, kH, kW, I), (1, kH, kW, O), (O, I), (O, kH, kW, I).
    "CONV_2D": lambda data, weight, output: count(output) * math.prod(_shape(weight)[1:]),
    "DEPTHWISE_CONV_2D": lambda data, weight, output: count(output) * math.prod(_shape(weight)[1:3]),
    "FULLY_CONNECTED": lambda data, weight, output: count(output) * _shape(weight)[-1],
    "TRANSPOSE_CONV": lambda data, weight, output: count(data) * math.prod(_shape(weight)[:3]),
}
"""Operators whose multiply-accumulates are counted; taps that fall on padding count, as an engine pads and multiplies.
Poolings, additions, and multiplications by a constant per channel have none."""

_DATA_INPUT = {"TRANSPOSE_CONV": 2}
"""Where an operator's data stand when not first; its weights are second, always."""

_UNKNOWN = frozenset({
    "BATCH_MATMUL", "CONV_3D", "CONV_3D_TRANSPOSE", "CUSTOM", "LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "RNN", "SVDF",
    "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "WHILE", "IF", "CALL_ONCE", "STABLEHLO_COMPOSITE",
})  # fmt: skip
"""Operators that multiply (or may) in ways that are not counted here: a file with one is refused, not undercounted."""

_SUMS = ("macs", "weights", "weight_bytes", "bias_bytes")
_TOTALS = (
    "file", "kind", "macs", "weights", "size_bytes", "weight_bytes", "bias_bytes", "other_constant_bytes",
    "quantization_bytes", "metadata_bytes", "structure_bytes", "unpacked_weight_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class LayerCost:
    """One operator, in the order in which the file runs them.

    output_shape: such as ``1x112x112x32``. macs: 0 for an operator that has none. weights: numbers, not bytes.
    weight_bytes, bias_bytes: as stored; what several operators share is counted with the first. output_bytes: of what
    it makes. live_bytes: of all computed tensors that exist while it runs, its own included.
    """

    index: int
    operator: str
    name: str
    output_shape: str
    macs: int
    weight_kind: str
    weights: int
    weight_bytes: int
    bias_bytes: int
    output_bytes: int
    live_bytes: int


@dataclass(frozen=True)
class ModelCost:
    """One file. Its bytes are exactly weights + biases + other constants + quantization + metadata + structure.

    kind: what it computes in, such as ``int8 with int4 weights``. macs, weights, weight_bytes, bias_bytes: sums of the
    layers'. other_constant_bytes: shapes, axes, positions. quantization_bytes: scales and zero points. metadata_bytes:
    what the file says about itself. structure_bytes: operators, tensor names, alignment: the rest.
    unpacked_weight_bytes: float16 weights as float32, the copy that an engine without float16 arithmetic keeps.
    """

    file: str
    size_bytes: int
    kind: str
    layers: tuple[LayerCost, ...]
    macs: int
    weights: int
    weight_bytes: int
    bias_bytes: int
    other_constant_bytes: int
    quantization_bytes: int
    metadata_bytes: int
    unpacked_weight_bytes: int

    @property
    def structure_bytes(self) -> int:
        """Bytes that are none of the others."""
        named = self.weight_bytes + self.bias_bytes + self.other_constant_bytes
        return self.size_bytes - named - self.quantization_bytes - self.metadata_bytes

    @property
    def peak(self) -> LayerCost:
        """The first operator during which most activations exist; its ``live_bytes`` is the peak."""
        return max(self.layers, key=lambda layer: layer.live_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, totals first."""
        totals: dict[str, Any] = {name: getattr(self, name) for name in _TOTALS}
        operator = f"{self.peak.operator} {self.peak.name}"
        totals |= {"peak_activation_bytes": self.peak.live_bytes, "peak_operator": operator}
        return totals | {"layers": [asdict(layer) for layer in self.layers]}


def measure_cost(path: Path) -> ModelCost:
    """Count a TFLite file."""
    if path.suffix == ".onnx":
        raise CommandError(f"{path} is an ONNX file; devices run TFLite: give the .tflite file beside it")
    graph = read_graph(path)
    if damage := find_damage(path):
        raise CommandError(damage)
    refused = sorted({node.operator for node in graph.nodes} & _UNKNOWN)
    if refused or graph.notes:
        reason = f"{', '.join(refused)} has multiplications that are not counted here" if refused else graph.notes[0]
        raise CommandError(f"{path}: {reason}; give a file of convolutions and dense layers, such as export writes")
    if not graph.nodes:
        raise CommandError(f"{path} has no operators: nothing to count; export the run again")
    layers, counted = _count_layers(graph)
    constants = {tensor.buffer: tensor.size_bytes for tensor in graph.tensors.values() if tensor.values is not None}
    quantization, metadata = _count_parameters(path)
    return ModelCost(
        file=str(path),
        size_bytes=path.stat().st_size,
        kind=graph.kind,
        layers=layers,
        **{name: sum(getattr(layer, name) for layer in layers) for name in _SUMS},
        other_constant_bytes=sum(size for buffer, size in constants.items() if buffer not in counted),
        quantization_bytes=quantization,
        metadata_bytes=metadata,
        unpacked_weight_bytes=_unpacked_bytes(graph),
    )


def live_bytes(graph: ModelGraph) -> list[int]:
    """Return, per operator, the bytes of the computed tensors that exist while it runs.

    A tensor exists from the operator that makes it (an input of the graph: from the start) to the last one that reads
    it (an output of the graph: to the end). No operator writes over its input; where one may, less is needed.
    """
    first = {name: index for index, node in enumerate(graph.nodes) for name in node.outputs}
    last = dict(first)
    for index, node in enumerate(graph.nodes):
        for name in node.inputs:
            if not graph.is_constant(name):
                last[name] = max(index, last.get(name, 0))
                first.setdefault(name, 0)
    last |= dict.fromkeys(graph.outputs, len(graph.nodes) - 1)
    live = [0] * len(graph.nodes)
    for name, end in last.items():
        size = size_bytes(graph.tensors[name])
        for index in range(first.get(name, 0), end + 1):
            live[index] += size
    return live


def count(tensor: Tensor) -> int:
    """Return the number of values of one image."""
    return math.prod(abs(side) for side in _shape(tensor))


def size_bytes(tensor: Tensor) -> int:
    """Return what a tensor's values take in memory: two int4 share a byte."""
    if tensor.kind == "int4":
        return (count(tensor) + 1) // 2
    try:
        return count(tensor) * np.dtype(tensor.kind).itemsize
    except TypeError:
        raise CommandError(f"{tensor.name} has the type {tensor.kind}, whose size is not known here") from None


def write_layers(cost: ModelCost, path: Path) -> None:
    """Write the layers of a file as CSV, replacing it."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(LayerCost)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(layer) for layer in cost.layers)


def _count_layers(graph: ModelGraph) -> tuple[tuple[LayerCost, ...], set[int | None]]:
    """Return the layers, and the buffers that hold their weights and biases."""
    live, counted, layers = live_bytes(graph), set[int | None](), []

    def take(tensors: Iterable[Tensor]) -> int:
        total = 0
        for tensor in tensors:
            if tensor.values is not None and tensor.buffer not in counted:
                counted.add(tensor.buffer)
                total += tensor.size_bytes
        return total

    for index, node in enumerate(graph.nodes):
        inputs, outputs = ([graph.tensors[name] for name in names] for names in (node.inputs, node.outputs))
        rule = _MACS.get(node.operator)
        data = _DATA_INPUT.get(node.operator, 0)
        weight, biases = (inputs[1], inputs[max(2, data + 1) :]) if rule else (None, [])
        fresh = weight is not None and weight.values is not None and weight.buffer not in counted
        layers.append(
            LayerCost(
                index=index,
                operator=node.operator,
                name=node.name,
                output_shape="x".join(map(str, _shape(outputs[0]))) if outputs else "",
                macs=rule(inputs[data], inputs[1], outputs[0]) if rule else 0,
                weight_kind=weight.kind if weight else "",
                weights=count(weight) if weight and fresh else 0,
                weight_bytes=take([weight] if weight else []),
                bias_bytes=take(biases),
                output_bytes=sum(size_bytes(tensor) for tensor in outputs),
                live_bytes=live[index],
            )
        )
    return tuple(layers), counted


def _count_parameters(path: Path) -> tuple[int, int]:
    """Return the bytes of scales and zero points, and those of metadata."""
    model = read_model(path)
    quantization = 0
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            found = tensor.quantization
            if found is not None:
                real = sum(map(length_of, (found.scale, found.min, found.max)))
                quantization += SCALE_BYTES * real + ZERO_POINT_BYTES * length_of(found.zeroPoint)
    buffers = {entry.buffer for entry in model.metadata or ()}
    return quantization, sum(length_of(model.buffers[index].data) for index in buffers)


def _unpacked_bytes(graph: ModelGraph) -> int:
    """Return the bytes of float16 constants as the float32 that operators with float32 outputs read."""
    packed = {
        graph.tensors[name].buffer: 4 * count(graph.tensors[name])
        for node in graph.nodes
        for name in node.inputs
        if graph.tensors[name].kind == "float16"
        and graph.is_constant(name)
        and any(graph.tensors[output].kind == "float32" for output in node.outputs)
    }
    return sum(packed.values())


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """Return a shape. Raises CommandError where it is not known."""
    if tensor.shape is None:
        raise CommandError(f"{tensor.name} has no shape in the file; export it with fixed sides")
    return tensor.shape
