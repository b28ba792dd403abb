"""Recipes on a TFLite file: fewer bits for the same operators."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.flatbuffer import constant, read_model, schema, write_model


class QuantizeError(ValueError):
    """A TFLite file that a recipe cannot be applied to."""


def cast_to_float16(source: Path, target: Path) -> None:
    """Store every float32 constant of a TFLite file as float16 and compute in float32.

    Each constant is read through a DEQUANTIZE, as TensorFlow's converter writes it; XNNPACK resolves those once, when
    the model is loaded, so that it runs at the speed of the float32 file. Biases are cast too, and that matters:
    XNNPACK takes a convolution with float16 weights only when its bias is float16 as well. With float32 biases
    (which ai-edge-quantizer's FLOAT_CASTING leaves) every weight is dequantized on every call: 3.3 times slower.

    Raises QuantizeError when a constant exceeds float16's range, or when nothing in the file is float32.
    """
    generated = schema()
    model = read_model(source)
    graph = model.subgraphs[0]
    opcode = _add_operator_code(model, generated.BuiltinOperator.DEQUANTIZE)
    casts, halves = [], {}
    for index, tensor in enumerate(list(graph.tensors)):
        values = constant(model, tensor, "<f4") if tensor.type == generated.TensorType.FLOAT32 else None
        if values is None:
            continue
        halves[tensor.buffer] = _halve(tensor.name.decode(), values)  # by buffer: two tensors may share one
        half = copy.copy(tensor)
        half.name, half.type = f"{tensor.name.decode()}_float16", generated.TensorType.FLOAT16
        tensor.buffer = 0  # the schema's empty buffer: the value is computed now
        graph.tensors.append(half)
        casts.append(_dequantize(opcode, len(graph.tensors) - 1, index))
    if not casts:
        raise QuantizeError(f"{source} has no float32 constants; a float32 file is needed")
    for buffer, values in halves.items():
        model.buffers[buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    graph.operators = casts + list(graph.operators)
    write_model(model, target)


def _halve(name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    largest = float(np.abs(values).max())
    limit = float(np.finfo(np.float16).max)
    if not largest <= limit:
        raise QuantizeError(f"{name} holds {largest:g}; float16 ends at {limit:g}")
    return values.astype("<f2")


def _add_operator_code(model: Any, builtin: int) -> int:
    """Register a built-in operator with a model and return its index."""
    code = schema().OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = 3  # the version of DEQUANTIZE that takes float16
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _dequantize(opcode: int, source: int, target: int) -> Any:
    generated = schema()
    operator = generated.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = opcode, [source], [target]
    operator.builtinOptionsType = generated.BuiltinOptions.DequantizeOptions
    operator.builtinOptions = generated.DequantizeOptionsT()
    return operator
