"""Packed int4 weights in a TFLite file: two in a byte, and as the operation that runs them exactly.

Measured with LiteRT 2.1.2: XNNPACK takes no CONV_2D with int4 weights. The built-in kernel then runs, which unpacks
the weights for every image (3 times slower on MobileNetV2) and rounds twice where everybody else rounds once (one
integer in thirty is one step off on MobileNetV2; 8 steps at DenseNet-32's logits). It does take FULLY_CONNECTED with
int4 weights, applied to every pixel, which is what a 1x1 convolution is: the same integers as from int8 weights, at
the same speed. A larger convolution is that too, on patches gathered before it. An odd number of inputs (a 3x3 stem on
one channel) stays with the built-in kernel: such a layer should keep 8 bits, as the first one does by default.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.graph.encodings import weighted_operators
from export.graph.flatbuffer import constant, operator_code, operator_name, read_model, schema, write_model
from export.graph.patches import gather_patches

_VERSIONS = {"DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 12}
"""First versions of the operators that take int4 weights with a scale per channel."""


def pack_weights(path: Path, layers: Collection[str]) -> None:
    """Store the weights of these layers of an INT8 TFLite file as int4. In place.

    Convolutions that are not depthwise become FULLY_CONNECTED. layers: names of ``encodings.weighted_operators``.
    Raises ValueError when a weight does not fit 4 bits.
    """
    if not layers:
        return
    model = read_model(path)
    graph = model.subgraphs[0]
    names = {id(operator): name for operator, name in weighted_operators(model)}
    operators: list[Any] = []
    for operator in graph.operators:
        if names.get(id(operator)) in layers:
            weight = graph.tensors[operator.inputs[1]]
            kind = operator_name(model, operator)
            if kind == "CONV_2D":
                kind = "FULLY_CONNECTED"
                operators += gather_patches(model, operator)
                weight.shape = [int(weight.shape[0]), int(np.prod(weight.shape[1:]))]
                operator.builtinOptionsType = schema().BuiltinOptions.FullyConnectedOptions
                operator.builtinOptions = _per_pixel(operator.builtinOptions.fusedActivationFunction)
            integers = constant(model, weight, np.int8)
            if integers is None:
                raise ValueError(f"{path}: the weight of {names[id(operator)]} is no constant")
            model.buffers[weight.buffer].data = pack_int4(integers)
            weight.type = schema().TensorType.INT4
            operator.opcodeIndex = operator_code(model, kind, _VERSIONS[kind])
        operators.append(operator)
    graph.operators = operators
    write_model(model, path)


def pack_int4(integers: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Pack integers in [-8, 7], the first of each two in the lower half of its byte; an odd one out gets a zero."""
    if integers.size and (integers.min() < -8 or integers.max() > 7):
        raise ValueError(f"integers from {integers.min()} to {integers.max()} do not fit 4 bits: -8 to 7")
    flat = integers.reshape(-1).astype(np.int8)
    pairs = np.append(flat, np.zeros(flat.size % 2, np.int8)).view(np.uint8).reshape(-1, 2) & 15
    packed: npt.NDArray[np.uint8] = (pairs[:, 0] | (pairs[:, 1] << 4)).astype(np.uint8)
    return packed


def _per_pixel(activation: int) -> Any:
    """Return FULLY_CONNECTED's options that keep every dimension but the last."""
    options = schema().FullyConnectedOptionsT()
    options.fusedActivationFunction, options.keepNumDims = activation, True
    return options
