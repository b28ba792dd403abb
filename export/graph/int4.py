"""Packed int4 weights in a TFLite file: two in a byte, and as the operation that runs them exactly.

Measured with LiteRT 2.1.2: XNNPACK takes no CONV_2D with int4 weights. The built-in kernel then runs, which unpacks
the weights for every image (3 times slower on MobileNetV2) and rounds twice where everybody else rounds once (one
integer in thirty is one step off on MobileNetV2; 8 steps at DenseNet-32's logits). It does take FULLY_CONNECTED with
int4 weights, applied to every pixel, which is what a 1x1 convolution is: the same integers as from int8 weights, at
the same speed. A larger convolution is that too, on patches gathered before it. An odd number of inputs (a 3x3 stem on
one channel) stays with the built-in kernel, as depthwise convolutions do: their weights are held as int8, the same
integers, and few.
"""

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.graph.encodings import weighted_operators
from export.graph.flatbuffer import add_buffer, constant, operator_code, operator_name, read_model, schema, write_model

Array = npt.NDArray[Any]

_VERSIONS = {"FULLY_CONNECTED": 12, "PAD": 2, "GATHER": 2, "TRANSPOSE": 6, "RESHAPE": 1}
"""First versions of the operators that take int4 weights with a scale per channel, or int8 in six dimensions."""


def pack_weights(path: Path, layers: Collection[str]) -> None:
    """Store the weights of these layers of an INT8 TFLite file as int4. In place.

    Convolutions become FULLY_CONNECTED.

    Args:
        path: The file.
        layers: Names of ``encodings.weighted_operators``; none is a depthwise convolution.

    Raises:
        ValueError: A weight does not fit 4 bits.
    """
    if not layers:
        return
    model = read_model(path)
    graph = model.subgraphs[0]
    names = {id(operator): name for operator, name in weighted_operators(model)}
    operators: list[Any] = []
    for operator in graph.operators:
        if names.get(id(operator)) in layers:
            weight, kind = graph.tensors[operator.inputs[1]], operator_name(model, operator)
            if kind == "CONV_2D":
                kind = "FULLY_CONNECTED"
                operators += _gather_patches(model, operator)
                weight.shape = [int(weight.shape[0]), int(np.prod(weight.shape[1:]))]
                operator.builtinOptionsType = schema().BuiltinOptions.FullyConnectedOptions
                activation = operator.builtinOptions.fusedActivationFunction
                # applied to every pixel: every dimension but the last is kept
                operator.builtinOptions = schema().FullyConnectedOptionsT(activation, keepNumDims=True)
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


def _gather_patches(model: Any, operator: Any) -> list[Any]:
    """Return the operators that gather a convolution's input patches, and let it read them. None for 1x1.

    Each output pixel's neighbourhood as channels: with it a convolution is a linear layer, applied to every pixel.

    (1, H, W, C) is padded, gathered along both sides to (1, OH, kH, OW, kW, C) and brought to (1, OH, OW, kH kW C), the
    order of the weight's own (O, kH, kW, C). Integers are copied, never computed with.
    model: a TFLite model with named tensors. operator: a CONV_2D of it.
    """
    tensors, options = model.subgraphs[0].tensors, operator.builtinOptions
    source, output = tensors[operator.inputs[0]], tensors[operator.outputs[0]]
    kernel = [int(side) for side in tensors[operator.inputs[1]].shape[1:3]]
    strides, sides = [options.strideH, options.strideW], [int(side) for side in output.shape[1:3]]
    offsets = [np.arange(kernel[0]) * options.dilationHFactor, np.arange(kernel[1]) * options.dilationWFactor]
    if kernel == [1, 1] and strides == [1, 1]:
        return []
    height, width, channels = (int(side) for side in source.shape[1:])
    copies = _Copies(model, operator.inputs[0])
    missing = [max((sides[i] - 1) * strides[i] + int(offsets[i][-1]) + 1 - (height, width)[i], 0) for i in (0, 1)]
    if any(missing):
        amounts = [[0, 0], *([total // 2, total - total // 2] for total in missing), [0, 0]]
        copies.add("PAD", amounts, schema().PadOptionsT(), [1, height + missing[0], width + missing[1], channels])
    for i, axis in ((0, 1), (1, 3)):
        positions = np.arange(sides[i])[:, None] * strides[i] + offsets[i]
        gather = schema().GatherOptionsT(axis=axis)
        copies.add("GATHER", positions, gather, [*copies.shape[:axis], *positions.shape, *copies.shape[axis + 1 :]])
    order = [0, 1, 3, 2, 4, 5]
    copies.add("TRANSPOSE", order, schema().TransposeOptionsT(), [copies.shape[i] for i in order])
    reshape = schema().ReshapeOptionsT(newShape=[1, *sides, kernel[0] * kernel[1] * channels])
    copies.add("RESHAPE", reshape.newShape, reshape, reshape.newShape)
    operator.inputs = [copies.index, *map(int, operator.inputs[1:])]
    return copies.operators


class _Copies:
    """A chain of operators behind a tensor; what each makes has that tensor's encoding and activation."""

    def __init__(self, model: Any, index: int) -> None:
        self.model, self.index = model, index
        self.operators: list[Any] = []

    @property
    def shape(self) -> list[int]:
        """Shape of what the chain makes so far."""
        return [int(side) for side in self.model.subgraphs[0].tensors[self.index].shape]

    def add(self, kind: str, argument: Any, options: Any, shape: list[int]) -> None:
        """Append an operator with one constant argument, of integers."""
        tensors = self.model.subgraphs[0].tensors
        argument_index = _constant(self.model, np.asarray(argument, np.int32))
        made = copy.copy(tensors[self.index])
        made.shape, made.shapeSignature, made.buffer = shape, None, 0
        made.name = made.name.partition(b"#")[0] + f"#{len(tensors)}".encode()
        tensors.append(made)
        generated, code = schema(), operator_code(self.model, kind, _VERSIONS[kind])
        ends = [self.index, argument_index], [len(tensors) - 1]
        options_kind = getattr(generated.BuiltinOptions, f"{kind.title()}Options")
        self.operators.append(generated.OperatorT(code, *ends, options_kind, options))
        self.index = len(tensors) - 1


def _constant(model: Any, values: Array) -> int:
    """Return the index of an int32 constant tensor: layers of one size share theirs."""
    tensors = model.subgraphs[0].tensors
    name = ("copy " + ",".join(map(str, values.flat[-4:]))).encode()
    for index, tensor in enumerate(tensors):
        found = constant(model, tensor, np.int32) if tensor.name == name else None
        if found is not None and list(tensor.shape) == list(values.shape) and np.array_equal(found, values.flat):
            return index
    tensor = schema().TensorT()
    tensor.name, tensor.type, tensor.shape = name, schema().TensorType.INT32, list(values.shape)
    tensor.buffer = add_buffer(model, values.tobytes())
    tensors.append(tensor)
    return len(tensors) - 1
