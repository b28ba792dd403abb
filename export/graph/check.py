"""Whether a written integer TFLite file holds what training left, bit for bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from brainq_torch.console import counted
from brainq_torch.quant.encoding import Encoding
from export.graph.encodings import Array, EncodingError, Encodings, activation_of, in_tflite_layout, weighted_operators
from export.graph.flatbuffer import constant, operator_name, read_model, schema, unpack_int4


def check_encodings(path: Path, encodings: Encodings) -> None:
    """Check a written INT8 or W4A8 TFLite file against what training left, bit for bit.

    Every activation is int8 with the learned scale and zero point, every weight int8 (or packed int4, where the layer
    says so) per output channel with the learned scales and equal integers, every bias int32 with scale input x weight;
    nothing computes in float.

    Args:
        path: The file.
        encodings: What the QDQ file holds.

    Raises:
        EncodingError: It names every tensor that differs.
    """
    model = read_model(path)
    faults = [*_activation_faults(model, encodings), *_layer_faults(model, encodings)]
    if faults:
        shown = "\n  ".join(faults[:20])
        count = counted(len(faults), "difference")
        raise EncodingError(f"{path.name} does not hold what training left ({count}):\n  {shown}")


def _activation_faults(model: Any, encodings: Encodings) -> Iterator[str]:
    graph = model.subgraphs[0]
    missing = set(encodings.activations)
    for operator in graph.operators:
        if operator_name(model, operator) in ("QUANTIZE", "DEQUANTIZE"):
            yield f"{graph.tensors[operator.outputs[0]].name.decode()}: {operator_name(model, operator)} in the graph"
    for tensor in graph.tensors:
        if constant(model, tensor, np.uint8) is not None:
            continue
        name = activation_of(tensor)
        if name not in encodings.activations:
            yield f"{name}: holds no activation of the network"
            continue
        missing.discard(name)
        yield from _encoding_faults(name, tensor, encodings.activations[name])
    for name in sorted(missing):
        yield f"{name}: no tensor holds it"


def _encoding_faults(name: str, tensor: Any, encoding: Encoding) -> Iterator[str]:
    if tensor.type != schema().TensorType.INT8:
        yield f"{name}: type {tensor.type} is not int8"
        return
    scale, zero_point = np.float32(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
    if len(tensor.quantization.scale) != 1 or scale != np.float32(encoding.scale):
        yield f"{name}: scale {scale!r}, learned {np.float32(encoding.scale)!r}"
    if zero_point != encoding.zero_point:
        yield f"{name}: zero point {zero_point}, learned {encoding.zero_point}"


def _layer_faults(model: Any, encodings: Encodings) -> Iterator[str]:
    tensors = model.subgraphs[0].tensors
    seen = set()
    for operator, name in weighted_operators(model):
        if name not in encodings.layers:
            yield f"{name}: a layer that the network does not have"
            continue
        seen.add(name)
        layer = in_tflite_layout(encodings.layers[name], model, operator)
        weight, bias = (tensors[index] for index in operator.inputs[1:3])
        learned = (layer.weight, layer.weight_scale, layer.axis, layer.bits)
        yield from _integer_faults(model, f"{name}.weight", weight, learned)
        yield from _integer_faults(model, f"{name}.bias", bias, (layer.bias, layer.bias_scale, 0, 32))
        source = encodings.activations[activation_of(tensors[operator.inputs[0]])]
        if not np.array_equal(layer.weight_scale * np.float32(source.scale), layer.bias_scale):
            yield f"{name}.bias: its scale is not input scale x weight scale"
    for name in sorted(encodings.layers.keys() - seen):
        yield f"{name}: the layer is missing"


def _integer_faults(model: Any, name: str, tensor: Any, learned: tuple[Array, Array, int, int]) -> Iterator[str]:
    """Compare a constant's type, integers, scales and channel axis.

    learned: its integers as training left them, their scales along an axis, and the bits of each in the file.
    """
    types, (integers, scale, axis, bits) = schema().TensorType, learned
    if tensor.type != {4: types.INT4, 8: types.INT8, 32: types.INT32}[bits]:
        yield f"{name}: type {tensor.type} is not int{bits}"
        return
    values = constant(model, tensor, np.uint8 if bits == 4 else integers.dtype)
    if bits == 4 and values is not None and values.size == (integers.size + 1) // 2:
        values = unpack_int4(values, integers.size)
    if values is None or values.shape != (integers.size,):
        yield f"{name}: {None if values is None else values.size} integers instead of {integers.size}"
        return
    different = np.moveaxis(values.reshape(integers.shape) != integers, axis, 0).reshape(integers.shape[axis], -1)
    if different.any():
        channels = np.flatnonzero(different.any(axis=1))
        yield f"{name}: {different.sum()} integers differ, in {len(channels)} channels (first {channels[0]})"
    yield from _scale_faults(name, tensor.quantization, scale, axis)


def _scale_faults(name: str, quantization: Any, scale: Array, axis: int) -> Iterator[str]:
    written = np.asarray(quantization.scale, np.float32)
    if not np.array_equal(written, scale):
        if written.shape == scale.shape:
            unequal = np.flatnonzero(written != scale)
            count = f"{len(unequal)} of {len(scale)}"
            yield f"{name}: {count} scales differ from the learned ones, first in channel {unequal[0]}"
        else:
            yield f"{name}: {len(written)} scales instead of {len(scale)}"
    if len(scale) > 1 and quantization.quantizedDimension != axis:
        yield f"{name}: quantized along axis {quantization.quantizedDimension} instead of {axis}"
    if np.any(quantization.zeroPoint):
        yield f"{name}: zero points are not zero"
