"""Scale, zero point and integers per tensor: read from the QDQ file, matched to TFLite tensors, checked in the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainq_torch.quant.scheme import Encoding
from brainq_torch.run_files import BrainqError
from export.extra import import_extra
from export.graph.flatbuffer import constant, operator_name, read_model, schema, unpack_int4, write_model
from export.graph.float_onnx import INPUT, OUTPUT
from export.graph.qdq_onnx import STORED, TIES, UINT8_SHIFT, read_constants

Array = npt.NDArray[Any]

KEEPS_SCALE = frozenset({"RESHAPE", "PAD", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS"})
"""TFLite operations that move values and leave them as they are: output and input have one encoding."""

WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})

_CLOSE = 1e-4
"""Two float runtimes' values of one tensor differ by less than this share of its largest; other tensors by far more."""


_BEHIND_FLOAT_END = "_quantized"
"""What ai-edge-quantizer appends to the name of a float input to call what it quantizes it to."""


class EncodingError(BrainqError):
    """A file whose scales, zero points or integers are not those that training left."""


@dataclass(frozen=True)
class LayerIntegers:
    """One convolution or linear layer.

    weight: (O, ...) int8, in torch's layout or TFLite's. weight_scale: (O,) float32. bias: (O,) int32.
    bias_scale: (O,) float32, input scale x weight scale. axis: the weight's output channel axis. bits: what a weight
    takes in the file, 8 or 4.
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

    activations: {name: encoding} in running order, the input first, the logits last.
    layers: {name: integers}; a layer has the name of the activation it makes.
    """

    activations: dict[str, Encoding]
    layers: dict[str, LayerIntegers]

    @property
    def input(self) -> str:
        """Name of the network's input."""
        return next(iter(self.activations))

    @property
    def output(self) -> str:
        """Name of the logits."""
        return list(self.activations)[-1]


def read_encodings(path: Path) -> Encodings:
    """Read a QDQ file of ``export_qdq_onnx``. Raises EncodingError when a value is not what that writes."""
    graph = import_extra("onnx").load(path).graph
    constants = read_constants(graph)
    activations, layers = {}, {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            name = _activation_name(path, node.output[0])
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


def strip_quantization(qdq_path: Path, out_path: Path) -> None:
    """Write the float network inside a QDQ file: no rounding of activations, weights as their integers stand for.

    Activations keep the names they have in the QDQ file; input and output are those of every file of ours.
    """
    onnx = import_extra("onnx")
    model = onnx.load(qdq_path)
    graph = model.graph
    constants = read_constants(graph)
    producers = {output: node for node in graph.node for output in node.output}
    renamed: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        if node.input[0] in constants:
            real = _dequantize(*(constants[name] for name in node.input[:2]))
            graph.initializer.append(onnx.numpy_helper.from_array(real, node.output[0]))
        else:
            before = producers[node.input[0]].input[0]
            if before.endswith(TIES):
                before = producers[before].input[0]
            # What made the real value makes it under the activation's name; the input's own name stays.
            renamed |= {node.output[0]: INPUT} if before == INPUT else {before: node.output[0]}
    kept = [
        node
        for node in graph.node
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") and TIES not in node.output[0]
    ]
    for node in kept:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    onnx.checker.check_model(model, full_check=True)
    out_path.write_bytes(model.SerializeToString(deterministic=True))


def name_tensors(onnx_path: Path, tflite_path: Path, encodings: Encodings, image: Array) -> None:
    """Give the tensors of a float TFLite file the names of the activations they hold, found by value. In place.

    The converter's own account of which tensor is which mis-names some. Both files run one image; a tensor holds the
    activation whose values it has, the first in running order that no tensor before it holds: where the image has
    shrunk to one pixel, a pooling has its input's values. A further tensor (after RESHAPE) is called ``name#2``.
    onnx_path: of ``strip_quantization``. image: (1, 1, H, W) float32.
    Raises EncodingError when a tensor holds no activation, or may hold two with different encodings.
    """
    expected = _run_onnx(onnx_path, encodings, image)
    model = read_model(tflite_path)
    graph = model.subgraphs[0]
    computed = [index for operator in graph.operators for index in operator.outputs]
    found = _run_tflite(tflite_path, image, [*graph.inputs, *computed])
    names: dict[int, str] = {}
    for operator in [None, *graph.operators]:
        for index in graph.inputs if operator is None else operator.outputs:
            if operator is not None and operator_name(model, operator) in KEEPS_SCALE:
                names[index] = names[operator.inputs[0]]
            else:
                label = graph.tensors[index].name.decode()
                fitting = _match(label, found[index], expected, encodings.activations)
                names[index] = next((name for name in fitting if name not in names.values()), fitting[0])
    missing = [name for name in encodings.activations if name not in names.values()]
    if missing:
        raise EncodingError(f"{tflite_path} has no tensor that holds {', '.join(missing)}")
    counts: dict[str, int] = {}
    for index, name in names.items():
        counts[name] = counts.get(name, 0) + 1
        graph.tensors[index].name = name.encode() if counts[name] == 1 else f"{name}#{counts[name]}".encode()
    for operator, name in weighted_operators(model):
        graph.tensors[operator.inputs[1]].name = f"{name}.weight".encode()
        graph.tensors[operator.inputs[2]].name = f"{name}.bias".encode()
    write_model(model, tflite_path)


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


def in_tflite_layout(layer: LayerIntegers, kind: str) -> LayerIntegers:
    """Reorder a layer's weight from torch's layout to that of a TFLite operation.

    kind: CONV_2D (O, H, W, I), DEPTHWISE_CONV_2D (1, H, W, O) or FULLY_CONNECTED (O, I); a convolution that runs
    as one has its patches as I, (H, W, I) flat.
    """
    orders = {"CONV_2D": ((0, 2, 3, 1), 0), "DEPTHWISE_CONV_2D": ((1, 2, 3, 0), 3), "FULLY_CONNECTED": ((0, 1), 0)}
    if kind == "FULLY_CONNECTED" and layer.weight.ndim == 4:
        patches = layer.weight.transpose(orders["CONV_2D"][0]).reshape(len(layer.weight), -1)
        return replace(layer, weight=np.ascontiguousarray(patches), axis=0)
    order, axis = orders[kind]
    return replace(layer, weight=np.ascontiguousarray(layer.weight.transpose(order)), axis=axis)


def check_encodings(path: Path, encodings: Encodings, float_ends: bool = False) -> None:
    """Check a written INT8 or W4A8 TFLite file against what training left, bit for bit.

    Every activation is int8 with the learned scale and zero point, every weight int8 (or packed int4, where the layer
    says so) per output channel with the learned scales and equal integers, every bias int32 with scale input x weight;
    nothing computes in float.
    float_ends: the file may quantize its input and dequantize its output itself.
    Raises EncodingError that names every tensor that differs.
    """
    model = read_model(path)
    faults = [*_activation_faults(model, encodings, float_ends), *_layer_faults(model, encodings)]
    if faults:
        shown = "\n  ".join(faults[:20])
        raise EncodingError(f"{path.name} does not hold what training left ({len(faults)} differences):\n  {shown}")


def _activation_faults(model: Any, encodings: Encodings, float_ends: bool) -> Iterator[str]:
    types, graph = schema().TensorType, model.subgraphs[0]
    ends = {index for operator in _end_operators(model) for index in (*operator.inputs, *operator.outputs)}
    missing = set(encodings.activations)
    for operator in graph.operators:
        if operator_name(model, operator) in ("QUANTIZE", "DEQUANTIZE") and not float_ends:
            yield f"{graph.tensors[operator.outputs[0]].name.decode()}: {operator_name(model, operator)} in the graph"
    for index, tensor in enumerate(graph.tensors):
        if constant(model, tensor, np.uint8) is not None:
            continue
        name = activation_of(tensor)
        if float_ends and tensor.type == types.FLOAT32 and index in ends:
            continue
        if float_ends:
            name = name.removesuffix(_BEHIND_FLOAT_END)
        if name not in encodings.activations:
            yield f"{name}: holds no activation of the network"
            continue
        missing.discard(name)
        yield from _encoding_faults(name, tensor, encodings.activations[name])
    for name in sorted(missing):
        yield f"{name}: no tensor holds it"


def _end_operators(model: Any) -> list[Any]:
    graph = model.subgraphs[0]
    ends = {*graph.inputs, *graph.outputs}
    return [
        operator
        for operator in graph.operators
        if operator_name(model, operator) in ("QUANTIZE", "DEQUANTIZE") and ends & {*operator.inputs, *operator.outputs}
    ]


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
        layer = in_tflite_layout(encodings.layers[name], operator_name(model, operator))
        weight, bias = (tensors[index] for index in operator.inputs[1:3])
        yield from _integer_faults(
            model, f"{name}.weight", weight, layer.weight, layer.weight_scale, layer.axis, layer.bits
        )
        yield from _integer_faults(model, f"{name}.bias", bias, layer.bias, layer.bias_scale, 0, 32)
        source = encodings.activations[activation_of(tensors[operator.inputs[0]])]
        if not np.array_equal(layer.weight_scale * np.float32(source.scale), layer.bias_scale):
            yield f"{name}.bias: its scale is not input scale x weight scale"
    for name in sorted(encodings.layers.keys() - seen):
        yield f"{name}: the layer is missing"


def _integer_faults(
    model: Any, name: str, tensor: Any, integers: Array, scale: Array, axis: int, bits: int
) -> Iterator[str]:
    """Compare a constant's type, integers, scales and channel axis."""
    types = schema().TensorType
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
    written = np.asarray(tensor.quantization.scale, np.float32)
    if not np.array_equal(written, scale):
        if written.shape == scale.shape:
            unequal = np.flatnonzero(written != scale)
            count = f"{len(unequal)} of {len(scale)}"
            yield f"{name}: {count} scales differ from the learned ones, first in channel {unequal[0]}"
        else:
            yield f"{name}: {len(written)} scales instead of {len(scale)}"
    if len(scale) > 1 and tensor.quantization.quantizedDimension != axis:
        yield f"{name}: quantized along axis {tensor.quantization.quantizedDimension} instead of {axis}"
    if np.any(tensor.quantization.zeroPoint):
        yield f"{name}: zero points are not zero"


def _activation_name(path: Path, stored: str) -> str:
    if not stored.endswith(STORED):
        raise EncodingError(f"{path}: {stored} is not named as the exporter names activations")
    return stored.removesuffix(STORED)


def _dequantize(integers: Array, scale: Array) -> Array:
    """Return the real values that per-channel integers stand for, (O, ...) float32."""
    real: Array = integers.astype(np.float32) * scale.reshape(-1, *[1] * (integers.ndim - 1))
    return real


def _run_onnx(path: Path, encodings: Encodings, image: Array) -> dict[str, Array]:
    """Return every activation's values for an image, flat in TFLite's order (channels last)."""
    onnx, runtime = import_extra("onnx"), import_extra("onnxruntime")
    model = onnx.load(path)
    # The ends have the names of every file of ours; the rest are those of the activations.
    files_names = {name: name for name in encodings.activations} | {encodings.input: INPUT, encodings.output: OUTPUT}
    wanted = [name for name in files_names.values() if name not in (INPUT, OUTPUT)]
    for name in wanted:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = dict(zip([*wanted, OUTPUT], session.run([*wanted, OUTPUT], {INPUT: image}), strict=True)) | {INPUT: image}
    return {name: _channels_last(values[name_in_file]) for name, name_in_file in files_names.items()}


def _run_tflite(path: Path, image: Array, indices: Iterable[int]) -> dict[int, Array]:
    """Return the values of the first subgraph's tensors of these indices for an image, flat."""
    litert = import_extra("ai_edge_litert.interpreter")
    interpreter = litert.Interpreter(
        str(path),
        num_threads=1,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image.transpose(0, 2, 3, 1))
    interpreter.invoke()
    return {index: interpreter.get_tensor(index).reshape(-1) for index in indices}


def _channels_last(values: Array) -> Array:
    flat: Array = (values.transpose(0, 2, 3, 1) if values.ndim == 4 else values).reshape(-1)
    return flat


def _match(label: str, values: Array, expected: Mapping[str, Array], activations: Mapping[str, Encoding]) -> list[str]:
    """Return the activations that have these values, in running order; they have one encoding."""
    same_size = {name: other for name, other in expected.items() if other.size == values.size}
    distances = {
        name: float(np.abs(values - other).max() / max(np.abs(other).max(), 1e-30)) for name, other in same_size.items()
    }
    close = [name for name, distance in distances.items() if distance <= _CLOSE]
    if not close:
        nearest = min(distances, key=lambda name: distances[name], default=None)
        near = f"; nearest is {nearest}, {distances[nearest]:.2g} of its range away" if nearest else ""
        raise EncodingError(f"tensor {label} of the TFLite file holds none of the network's activations{near}")
    if len({activations[name] for name in close}) > 1:
        names = ", ".join(close)
        raise EncodingError(f"tensor {label} of the TFLite file may be any of {names}, whose encodings differ")
    return close
