"""TFLite and ONNX files as one kind of graph, so that a diagnosis is written once.

ONNX says QuantizeLinear and DequantizeLinear around float operators where TFLite gives a tensor a type and a scale.
Here both read alike: a tensor has a stored type, and a QUANTIZE or DEQUANTIZE that is left is one that really computes.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTIZE, DEQUANTIZE = "QUANTIZE", "DEQUANTIZE"
HEAVY = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL"})
"""Operators with weights: they decide what a file computes in."""
_RUN_TIME = frozenset({"DYNAMICQUANTIZELINEAR"})

INTEGERS = frozenset({"int4", "int8", "uint8", "int16"})
"""Types that hold quantized values; int32 and int64 are biases, shapes and axes."""
FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


@dataclass(frozen=True)
class Tensor:
    """One tensor.

    Attributes:
        name: Unique in the file.
        kind: NumPy's name of the stored type, such as ``int8``, or ``int4``.
        shape: Open sides are -1; None when unknown.
        scales: (1,) per tensor, (C,) along ``axis``; None where not quantized.
        zero_points: Likewise.
        axis: Of scales.
        values: Of a constant, as stored (int4 as int8 numbers), else None.
        size_bytes: Of a constant, in the file.
        quantized_at_run_time: A constant stored as float and quantized whenever the model is loaded.
        buffer: Number of the place in a TFLite file that holds a constant; tensors that share it are stored once.
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
    """One operator, under TFLite's name, with the activation that is fused into it, such as ``RELU6``."""

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

    @property
    def layers(self) -> list[Node]:
        """The convolutions and dense layers."""
        return [node for node in self.nodes if node.operator in HEAVY]

    @property
    def kind(self) -> str:
        """In what they compute, all kinds of it when they differ."""
        return " and ".join(sorted({self._kind_of(layer) for layer in self.layers})) or "nothing with weights"

    def is_integer(self, layer: Node) -> bool:
        """Tell whether a layer computes on integers."""
        computed = not all(map(self.is_constant, layer.inputs))
        return computed and self.tensors[layer.inputs[0]].kind in INTEGERS

    def _kind_of(self, layer: Node) -> str:
        """Name a layer's arithmetic by its activation's and its weight's type."""
        activation, weight = (self.tensors[name].kind for name in layer.inputs[:2])
        producer = self.producers().get(layer.inputs[0])
        quantized_at_run_time = producer is not None and producer.operator in _RUN_TIME
        if quantized_at_run_time or (activation in FLOATS and weight in INTEGERS):
            return f"float32 with {weight} weights"
        names = {
            ("float32", "float32"): "float32", ("float32", "float16"): "float32 with float16 weights",
            ("float16", "float16"): "float16", ("int8", "int8"): "int8", ("uint8", "int8"): "int8",
            ("int8", "int4"): "int8 with int4 weights", ("uint8", "int4"): "int8 with int4 weights",
            ("int16", "int8"): "int16 with int8 weights",
        }  # fmt: skip
        return names.get((activation, weight), f"{activation} with {weight} weights")
