"""Which tensor of a float TFLite file holds which activation of the QDQ file: found by running both on one image."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from brainq_torch.quant.encoding import Encoding
from export.extra import import_extra
from export.graph.encodings import Array, EncodingError, Encodings, channels_last, weighted_operators
from export.graph.flatbuffer import operator_name, read_model, write_model
from export.graph.float_onnx import INPUT, OUTPUT
from export.graph.onnx_file import drop_unused_constants, read_constants, rename_values
from export.graph.qdq_onnx import TIES
from export.run.sessions import BUILTIN_KERNELS, ask_tflite, open_onnx, open_tflite

KEEPS_SCALE = frozenset({"RESHAPE", "PAD", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS"})
"""TFLite operations that move values and leave them as they are: output and input have one encoding."""

_CLOSE = 1e-4
"""Two float runtimes' values of one tensor differ by less than this share of its largest; other tensors by far more."""


def strip_quantization(qdq_path: Path, out_path: Path) -> None:
    """Write the float network inside a QDQ file: no rounding of activations, weights as their integers stand for.

    Activations keep the names they have in the QDQ file; input and output are those of every file of ours.
    """
    onnx = import_extra("onnx")
    model = onnx.load(qdq_path)
    graph = model.graph
    constants = read_constants(graph)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            integers, scale = (constants[name] for name in node.input[:2])
            real = integers.astype(np.float32) * scale.reshape(-1, *[1] * (integers.ndim - 1))  # a scale per channel
            graph.initializer.append(onnx.numpy_helper.from_array(real, node.output[0]))
    renamed = _real_names(graph.node, constants)
    kept = [
        node
        for node in graph.node
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") and TIES not in node.output[0]
    ]
    del graph.node[:]
    graph.node.extend(kept)
    rename_values(graph, renamed)
    drop_unused_constants(graph)
    onnx.checker.check_model(model, full_check=True)
    out_path.write_bytes(model.SerializeToString(deterministic=True))


def take_weights(stripped_path: Path, float_path: Path, out_path: Path) -> bool:
    """Write a file of ``strip_quantization`` with the weights that the float file of its network has.

    Returns whether it could be: not where the two have other layers, such as average poolings that became convolutions.
    """
    onnx = import_extra("onnx")
    model = onnx.load(stripped_path)
    ours, theirs = (_weights_by_layer(graph) for graph in (model.graph, onnx.load(float_path).graph))
    if [value.shape for _, value in ours] != [value.shape for _, value in theirs]:
        return False
    taken = {name: value for (name, _), (_, value) in zip(ours, theirs, strict=True)}
    for tensor in model.graph.initializer:
        if tensor.name in taken:
            tensor.CopyFrom(onnx.numpy_helper.from_array(taken[tensor.name], tensor.name))
    out_path.write_bytes(model.SerializeToString())
    return True


def _weights_by_layer(graph: Any) -> list[tuple[str, Array]]:
    """Return name and values of each layer's weight and bias, in running order."""
    constants = read_constants(graph)
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    return [(name, constants[name]) for node in layers for name in node.input[1:] if name in constants]


def _real_names(nodes: Iterable[Any], constants: Mapping[str, Array]) -> dict[str, str]:
    """Return the new names of real values: what made one makes it under the activation's name; the input's stays."""
    producers = {output: node for node in nodes for output in node.output}
    renamed: dict[str, str] = {}
    for node in nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] not in constants:
            before = producers[node.input[0]].input[0]
            if before.endswith(TIES):
                before = producers[before].input[0]
            renamed |= {node.output[0]: INPUT} if before == INPUT else {before: node.output[0]}
    return renamed


def name_tensors(onnx_path: Path, tflite_path: Path, encodings: Encodings, image: Array) -> None:
    """Give the tensors of a float TFLite file the names of the activations they hold, found by value. In place.

    The converter's own account of which tensor is which mis-names some. Both files run one image. A further tensor with
    the same activation (after RESHAPE) is called ``name#2``.

    Args:
        onnx_path: A file of ``strip_quantization``.
        tflite_path: What the converter made of it.
        encodings: Those of the QDQ file.
        image: (1, 1, H, W) float32.

    Raises:
        EncodingError: A tensor holds no activation, or may hold two with different encodings.
    """
    expected = _run_onnx(onnx_path, encodings, image)
    model = read_model(tflite_path)
    graph = model.subgraphs[0]
    computed = [index for operator in graph.operators for index in operator.outputs]
    found = _run_tflite(tflite_path, image, [*graph.inputs, *computed])
    names = _match_tensors(model, found, expected, encodings.activations)
    missing = [name for name in encodings.activations if name not in names.values()]
    if missing:
        raise EncodingError(f"{tflite_path} has no tensor that holds {', '.join(missing)}")
    counts: Counter[str] = Counter()
    for index, name in names.items():
        counts[name] += 1
        graph.tensors[index].name = (name if counts[name] == 1 else f"{name}#{counts[name]}").encode()
    for operator, name in weighted_operators(model):
        graph.tensors[operator.inputs[1]].name = f"{name}.weight".encode()
        graph.tensors[operator.inputs[2]].name = f"{name}.bias".encode()
    write_model(model, tflite_path)


def _match_tensors(
    model: Any, found: Mapping[int, Array], expected: Mapping[str, Array], activations: Mapping[str, Encoding]
) -> dict[int, str]:
    """Return {tensor: the activation whose values it has}.

    Of several, the first in running order that no tensor before it holds: where the image has shrunk to one pixel, a
    pooling has its input's values.
    """
    graph = model.subgraphs[0]
    names: dict[int, str] = {}
    for operator in [None, *graph.operators]:
        for index in graph.inputs if operator is None else operator.outputs:
            if operator is not None and operator_name(model, operator) in KEEPS_SCALE:
                names[index] = names[operator.inputs[0]]
            else:
                fitting = _match(graph.tensors[index].name.decode(), found[index], expected, activations)
                names[index] = next((name for name in fitting if name not in names.values()), fitting[0])
    return names


def _run_onnx(path: Path, encodings: Encodings, image: Array) -> dict[str, Array]:
    """Return every activation's values for an image, flat in TFLite's order (channels last)."""
    onnx = import_extra("onnx")
    model = onnx.load(path)
    # The ends have the names of every file of ours; the rest are those of the activations.
    first, *_, last = encodings.activations
    files_names = {name: name for name in encodings.activations} | {first: INPUT, last: OUTPUT}
    wanted = [name for name in files_names.values() if name not in (INPUT, OUTPUT)]
    for name in wanted:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = open_onnx(model.SerializeToString())
    values = dict(zip([*wanted, OUTPUT], session.run([*wanted, OUTPUT], {INPUT: image}), strict=True)) | {INPUT: image}
    return {name: channels_last(values[name_in_file]).ravel() for name, name_in_file in files_names.items()}


def _run_tflite(path: Path, image: Array, indices: Iterable[int]) -> dict[int, Array]:
    """Return the values of the first subgraph's tensors of these indices for an image."""
    interpreter = open_tflite(path, kernels=BUILTIN_KERNELS, keep_all=True)
    ask_tflite(interpreter, image.transpose(0, 2, 3, 1))
    return {index: interpreter.get_tensor(index) for index in indices}


def _match(label: str, values: Array, expected: Mapping[str, Array], activations: Mapping[str, Encoding]) -> list[str]:
    """Return the activations that have these values, in running order; they have one encoding.

    onnx2tf leaves some concatenations between channels-first tensors, and transposes before and after.
    """
    layouts = values.ravel(), channels_last(values).ravel()
    distances = {
        name: min(float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-30)) for one in layouts)
        for name, other in expected.items()
        if other.size == values.size
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
