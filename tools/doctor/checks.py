"""What can be told from a file's graph alone: what it computes in, and the faults of its layout and quantization."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.pixels import MIDDLE_GREY
from export.graph.model_graph import DEQUANTIZE, FLOATS, INTEGERS, QUANTIZE, ModelGraph, Node, Tensor

_ARITHMETIC = frozenset({"MUL", "ADD", "SUB", "DIV"})
_CARRIERS = frozenset({QUANTIZE, DEQUANTIZE, "TRANSPOSE", "RESHAPE", "PAD", "CAST"})
"""What may stand between the input and a normalisation without changing what it is."""
_FEW_LEVELS = 32
_MANY_AT_LIMIT = 0.1
_ENOUGH_WEIGHTS = 32
"""Weights of a channel from which on their share at the limit says something: nine alike are no fault."""


type Severity = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """One thing found.

    code: its stable name. remedy: what to do, empty when nothing is wrong. where: the tensors.
    """

    code: str
    severity: Severity
    what: str
    remedy: str = ""
    where: tuple[str, ...] = ()


def check_graph(graph: ModelGraph, kind: str, ours: bool) -> list[Finding]:
    """Examine a graph. ours: its metadata says that it is fed (pixel - 128) / 128."""
    findings = [Finding("note", "warning", note, "see that this is meant") for note in graph.notes]
    findings += _check_layout(graph)
    findings += _check_normalisation(graph, ours)
    findings += _check_input_scale(graph)
    findings += _check_transposes(graph)
    findings += _check_scales(graph)
    if any(map(graph.is_integer, graph.layers)):
        findings += _check_islands(graph)
        findings += _check_requantize(graph)
    findings += _check_weights(graph)
    findings += _check_biases(graph)
    findings += _check_stored_floats(graph)
    if not any(finding.severity != "ok" for finding in findings):
        findings.append(Finding("graph", "ok", f"no fault in the graph; every weighted layer computes in {kind}"))
    return findings


def _check_layout(graph: ModelGraph) -> list[Finding]:
    """Check that TFLite is fed NHWC and ONNX NCHW, as the runners do."""
    shape = graph.tensors[graph.inputs[0]].shape
    if shape is None or len(shape) != 4:
        return []
    channels_first, channels_last = shape[1] == 1, shape[3] == 1
    if graph.file_format == "TFLite" and channels_first and not channels_last:
        what = f"NCHW input: {graph.inputs[0]} is {shape}, TFLite computes in NHWC and would need (N, H, W, 1)"
        return [Finding("nchw_input", "fault", what, "convert without keeping the layout (onnx2tf: no -kat, no -k)")]
    if graph.file_format == "ONNX" and channels_last and not channels_first:
        what = f"NHWC input: {graph.inputs[0]} is {shape}, an ONNX file here takes (N, 1, H, W)"
        return [Finding("nhwc_input", "fault", what, "export from PyTorch with python -m export")]
    return []


def _check_normalisation(graph: ModelGraph, ours: bool) -> list[Finding]:
    """Find arithmetic with a constant between the input and the first layer: pixels arrive scaled already."""
    consumers = graph.consumers()
    reached, found = list(graph.inputs), []
    for name in reached:
        for node in consumers[name]:
            others = [graph.tensors[other].values for other in node.inputs if other != name]
            # As many numbers as channels at most: a larger constant is no normalisation.
            small = [values is not None and values.size in (1, 3) for values in others]
            if node.operator in _ARITHMETIC and small and all(small):
                found.append(node.name)
            if node.operator in _CARRIERS or node.name in found:
                reached.extend(node.outputs)
    if not found:
        return []
    what = "double normalisation: the file rescales its input itself, "
    what += (
        "but its metadata says that it is fed (pixel - 128) / 128" if ours else "so it must not be fed scaled pixels"
    )
    remedy = "leave normalisation out of the network: published weights are folded into the stem at load"
    return [Finding("double_normalisation", "fault" if ours else "warning", what, remedy, tuple(found))]


def _check_input_scale(graph: ModelGraph) -> list[Finding]:
    """Check that an integer input is pixel - 128 (int8) or the pixel (uint8): scale 1/128 loses no grey level."""
    image = graph.tensors[graph.inputs[0]]
    for node in graph.consumers()[image.name]:
        if node.operator == QUANTIZE and image.kind in FLOATS:
            image = graph.tensors[node.outputs[0]]
    if image.kind not in INTEGERS or image.scales is None or image.zero_points is None:
        return []
    expected = (1 / MIDDLE_GREY, MIDDLE_GREY if image.kind == "uint8" else 0)
    got = (float(image.scales[0]), int(image.zero_points[0]))
    if got == expected:
        return [Finding("lossless_input", "ok", "the input's scale is 1/128: quantizing the image loses nothing")]
    what = f"the input's scale and zero point are {got[0]:.8g}, {got[1]} instead of 1/128, {expected[1]}"
    remedy = "fix the input's range to -1 .. 127/128; a scale of 1/255 means that the file expects pixel / 255"
    return [
        Finding("input_scale", "fault", f"{what}: pixels fed as pixel - 128 are misread or lose grey levels", remedy)
    ]


def _check_transposes(graph: ModelGraph) -> list[Finding]:
    found = [node.name for node in graph.nodes if node.operator == "TRANSPOSE"]
    what, remedy = "transposes, each a copy of the activations", "convert to the engine's own layout (NHWC for TFLite)"
    return _count("transposes", "warning", what, remedy, found)


def _check_islands(graph: ModelGraph) -> list[Finding]:
    """Find float operators within an integer file; QUANTIZE at the input and DEQUANTIZE at the output are its edges."""
    islands, inner = [], []
    for node in graph.nodes:
        # By what it gives: an operator that reads floats for their shape or their largest computes nothing in float.
        gives_float = any(graph.tensors[name].kind in FLOATS for name in node.outputs)
        if node.operator == DEQUANTIZE:
            inner += [] if set(node.outputs) <= set(graph.outputs) else [node.name]
        elif node.operator == QUANTIZE:
            inner += [] if set(node.inputs) & set(graph.inputs) else [node.name]
        elif gives_float:
            islands.append(f"{node.operator} {node.name}")
    if not islands and not inner:
        return []
    what = f"float island: operators that compute in float between integer ones: {len(islands)}"
    what += f"; conversions in the middle of the file: {len(inner)}" if inner else ""
    remedy = "quantize these tensors too, or replace the operator by one that has integers"
    return [Finding("float_island", "fault", what, remedy, tuple(islands or inner))]


def _check_requantize(graph: ModelGraph) -> list[Finding]:
    """Find integer tensors that are only rescaled, such as the members of a concatenation with scales of their own."""
    found = tuple(
        node.name
        for node in graph.nodes
        if node.operator == QUANTIZE
        and graph.tensors[node.inputs[0]].kind in INTEGERS
        and node.inputs[0] not in graph.inputs
    )
    remedy = "share one activation quantizer where they meet (concatenation, pooling)"
    return _count(
        "requantize", "warning", "tensors that are only requantized, each a rounding and a copy", remedy, found
    )


def _check_scales(graph: ModelGraph) -> list[Finding]:
    """Check that every scale is a positive, normal number."""
    smallest = np.finfo(np.float32).tiny
    found = tuple(
        name
        for name, tensor in graph.tensors.items()
        if tensor.scales is not None and not (np.isfinite(tensor.scales) & (tensor.scales >= smallest)).all()
    )
    what, remedy = "scales that are zero, negative, denormal or not finite", "look for a channel that is always zero"
    return _count("broken_scale", "fault", what, f"calibrate again; {remedy}", found)


def _check_weights(graph: ModelGraph) -> list[Finding]:
    """Examine the quantized weights of convolutions and dense layers."""
    owners = {node.inputs[1]: node for node in graph.layers}
    weights = [graph.tensors[name] for name in owners]
    quantized = [w for w in weights if w.kind in INTEGERS and w.values is not None and w.scales is not None]
    if not quantized:
        return []
    channels = {w.name: _by_channel(w, owners[w.name], graph.file_format) for w in quantized}
    single = tuple(w.name for w in quantized if w.scales is not None and len(w.scales) == 1 < len(channels[w.name]))
    findings = []
    if single:
        what = f"weights with one scale for the whole tensor: {len(single)} of {len(quantized)}"
        findings.append(Finding("per_tensor", "warning", what, "quantize weights per output channel", single))
    else:
        findings.append(
            Finding("per_channel", "ok", f"all {len(quantized)} quantized weights have a scale per channel")
        )
    own_scale = [w for w in quantized if w.name not in single]
    tests: list[tuple[str, list[Tensor], Callable[[Tensor], int], str, str]] = [
        ("dead_channels", quantized, lambda w: int((channels[w.name] == 0).all(1).sum()),
         "output channels with only zero weights", "prune them, or look for what killed them in training"),
        ("saturated_weights", quantized, lambda w: _saturated(channels[w.name], w.kind),
         f"output channels with more than {_MANY_AT_LIMIT:.0%} of the weights at the limit",
         "the scale is too small: derive it from the largest weight of the channel"),
        ("coarse_weights", [w for w in own_scale if w.kind == "int8"], lambda w: _coarse(channels[w.name]),
         f"output channels whose largest weight is below {_FEW_LEVELS} of 127",
         "the channel is nearly dead, or its scale is too large: derive it from the largest weight"),
        ("asymmetric_weights", quantized, lambda w: int(np.count_nonzero(np.asarray(w.zero_points))),
         "channels with a zero point that is not 0", "quantize weights symmetrically; kernels are made for that"),
    ]  # fmt: skip
    for code, tensors, count, what, remedy in tests:
        found = {w.name: count(w) for w in tensors}
        where = tuple(f"{name} ({number})" for name, number in found.items() if number)
        if where:
            findings.append(Finding(code, "warning", f"{what}: {sum(found.values())}", remedy, where))
    return findings


def _by_channel(weight: Tensor, owner: Node, file_format: str) -> NDArray[np.int64]:
    """Return a weight as (output channels, rest)."""
    values = np.asarray(weight.values).astype(np.int64)
    axis = values.ndim - 1 if (owner.operator, file_format) == ("DEPTHWISE_CONV_2D", "TFLite") else 0
    if weight.scales is not None and len(weight.scales) > 1:
        axis = weight.axis
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _coarse(rows: NDArray[np.int64]) -> int:
    largest = np.abs(rows).max(1)
    return int(((largest > 0) & (largest < _FEW_LEVELS)).sum())


def _saturated(rows: NDArray[np.int64], kind: str) -> int:
    """Count channels with many weights at the limit; one weight there is what a right scale gives."""
    if kind not in ("int4", "int8") or rows.shape[1] < _ENOUGH_WEIGHTS:
        return 0
    limit = 7 if kind == "int4" else 127
    # On a 4-bit grid a normal distribution alone puts some weights on 7.
    allowed = _MANY_AT_LIMIT * (1 if kind == "int8" else 4)
    return int(((np.abs(rows) >= limit).mean(1) > allowed).sum())


def _check_biases(graph: ModelGraph) -> list[Finding]:
    """Check that a bias is what is added to int32 sums: int32, at input scale times weight scale."""
    wrong_kind, wrong_scale = [], []
    for node in graph.layers:
        if len(node.inputs) < 3 or not graph.is_integer(node):
            continue
        image, weight, bias = (graph.tensors[name] for name in node.inputs[:3])
        if bias.kind not in ("int32", "int64"):
            wrong_kind.append(f"{bias.name} ({bias.kind})")
        elif image.scales is not None and weight.scales is not None and bias.scales is not None:
            expected = image.scales[0].astype(np.float64) * weight.scales
            if not np.allclose(bias.scales, expected, rtol=1e-4, atol=0):
                wrong_scale.append(bias.name)
    what, remedy = "biases of integer layers that are not int32", "quantize biases to int32"
    scaled = "biases whose scale is not input x weight, so that they are added in the wrong size"
    again = "quantize the bias again with the scales that the file has now"
    return [
        *_count("bias_type", "fault", what, remedy, wrong_kind),
        *_count("bias_scale", "fault", scaled, again, wrong_scale),
    ]


def _count(code: str, severity: Severity, what: str, remedy: str, where: Sequence[str]) -> list[Finding]:
    """Return one finding that counts and names tensors; none where there are none."""
    return [Finding(code, severity, f"{what}: {len(where)}", remedy, tuple(where))] if where else []


def _check_stored_floats(graph: ModelGraph) -> list[Finding]:
    found = tuple(name for name, tensor in graph.tensors.items() if tensor.quantized_at_run_time)
    if not found:
        return []
    size = sum(graph.tensors[name].size_bytes for name in found)
    what = f"weights stored as float32 and quantized when the file is loaded: {len(found)} ({size / 1e6:.3f} MB)"
    remedy = "store them as int8 with a DequantizeLinear: a quarter of the bytes"
    return [Finding("stored_as_float", "fault", what, remedy, found)]
