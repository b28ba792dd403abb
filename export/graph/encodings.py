"""Scale, zero point and integers per tensor: read from the QDQ file, and found in a TFLite file with named tensors."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainq_torch.quant.encoding import UINT8_SHIFT, Encoding
from brainq_torch.quant.scheme import held_bits
from brainq_torch.run_files import BrainqError
from export.extra import import_extra
from export.graph.flatbuffer import operator_name
from export.graph.onnx_file import read_constants
from export.graph.qdq_onnx import STORED

Array = npt.NDArray[Any]

WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})


class EncodingError(BrainqError):
    """A file whose scales, zero points or integers are not those that training left."""


@dataclass(frozen=True)
class LayerIntegers:
    """One convolution or linear layer.

    Attributes:
        weight: (O, ...) int8, in torch's layout or TFLite's.
        weight_scale: (O,) float32.
        bias: (O,) int32.
        bias_scale: (O,) float32, input scale x weight scale.
        axis: The weight's output channel axis.
        bits: What a weight takes in the file, 8 or 4.
    """

    weight: Array
    weight_scale: Array
    bias: Array
    bias_scale: Array
    axis: int = 0
    bits: int = 8


@dataclass(frozen=True)
class Encodings:
    """All of a network's integers.

    Attributes:
        activations: {name: encoding} in running order, the input first, the logits last.
        layers: {name: integers}; a layer has the name of the activation it makes.
    """

    activations: dict[str, Encoding]
    layers: dict[str, LayerIntegers]


def read_encodings(path: Path) -> Encodings:
    """Read a QDQ file of ``export_qdq_onnx``. Raises EncodingError when a value is not what that writes."""
    graph = import_extra("onnx").load(path).graph
    constants = read_constants(graph)
    activations, layers = {}, {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            name = node.output[0].removesuffix(STORED)
            if name == node.output[0]:
                raise EncodingError(f"{path}: {name} is not named as the exporter names activations")
            scale, zero_point = constants[node.input[1]], constants[node.input[2]]
            if zero_point.dtype != np.uint8 or scale.dtype != np.float32:
                raise EncodingError(f"{path}: {name} has a {scale.dtype} scale and a {zero_point.dtype} zero point")
            activations[name] = Encoding(float(scale), int(zero_point) - UINT8_SHIFT)
    for name in activations:
        if f"{name}.weight" in constants:
            weight, scale, bias, bias_scale = (
                constants[f"{name}.{part}"] for part in ("weight", "weight_scale", "bias", "bias_scale")
            )
            bits = 8 if weight.dtype == np.int8 else 4
            layers[name] = LayerIntegers(weight.astype(np.int8), scale, bias, bias_scale, bits=bits)
    if not activations or not layers:
        raise EncodingError(f"{path} has {len(activations)} quantized activations, {len(layers)} layers: no QDQ file")
    return Encodings(activations, layers)


def weighted_operators(model: Any) -> Iterator[tuple[Any, str]]:
    """Yield a named TFLite model's convolutions and linear layers with the name of the activation each makes.

    Raises EncodingError for one without bias, which the exporter always gives it.
    """
    tensors = model.subgraphs[0].tensors
    for operator in model.subgraphs[0].operators:
        if operator_name(model, operator) in WEIGHTED:
            name = activation_of(tensors[operator.outputs[0]])
            if len(operator.inputs) < 3 or operator.inputs[2] < 0:
                raise EncodingError(f"layer {name} has no bias in the TFLite file")
            yield operator, name


def activation_of(tensor: Any) -> str:
    """Return the activation that a tensor of a named TFLite file holds."""
    name: str = tensor.name.decode().partition("#")[0]
    return name


def in_tflite_layout(layer: LayerIntegers, model: Any, operator: Any) -> LayerIntegers:
    """Reorder a layer's weight from torch's layout to that of a TFLite operation, and say in how many bits that has it.

    Args:
        layer: In torch's layout.
        model: A TFLite model.
        operator: Its CONV_2D (O, H, W, I), DEPTHWISE_CONV_2D (1, H, W, O) or FULLY_CONNECTED (O, I); a convolution that
            runs as one has its patches as I, (H, W, I) flat.
    """
    kind = operator_name(model, operator)
    source, weight = (model.subgraphs[0].tensors[index].shape for index in operator.inputs[:2])
    orders = {"CONV_2D": ((0, 2, 3, 1), 0), "DEPTHWISE_CONV_2D": ((1, 2, 3, 0), 3), "FULLY_CONNECTED": ((0, 1), 0)}
    if kind == "FULLY_CONNECTED" and layer.weight.ndim == 4:
        patches = layer.weight.transpose(orders["CONV_2D"][0]).reshape(len(layer.weight), -1)
        return replace(layer, weight=np.ascontiguousarray(patches), axis=0)
    order, axis = orders[kind]
    bits = held_bits(layer.bits, layer.weight[0].size, axis == 3 or weight[-1] < source[-1])
    return replace(layer, weight=np.ascontiguousarray(layer.weight.transpose(order)), axis=axis, bits=bits)


def channels_last(values: Array) -> Array:
    """Return an activation's values in TFLite's order."""
    return values.transpose(0, 2, 3, 1) if values.ndim == 4 else values
