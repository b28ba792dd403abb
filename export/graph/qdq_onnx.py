"""A fake-quantized network as QDQ ONNX: int8 weights, int32 biases, and the scales that training left."""

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brainq_torch.data.pixels import PixelSpec
from brainq_torch.quant.encoding import UINT8_SHIFT, Encoding
from brainq_torch.quant.fake_quantize import TIE_BREAK, MeanQuantizer
from brainq_torch.quant.layers import Layer, activation_quantizers, limit, running_order, weighted_layers
from brainq_torch.quant.prepare import check_finalized
from brainq_torch.quant.scheme import quantize_bias, quantize_weight
from export.extra import import_extra
from export.graph.float_onnx import OUTPUT, OnnxExportError, trace_onnx
from export.graph.onnx_file import drop_unused_constants, insert_nodes, read_constants, rename_values

STORED = "/uint8"
"""Ending of the name under which an activation is stored as integers."""

TIES = "/ties"
"""Ending of the name of a mean as it is rounded, moved off half-way; all that makes it is called so, and more."""

LARGEST_INT4 = 7
_INT4_OPSET = 21
_INT4_IR_VERSION = 10

_OPS = torch.ops.quantized_decomposed  # registered by brainq_torch.quant.prepare


def export_qdq_onnx(model: nn.Module, pixels: PixelSpec, path: Path) -> None:
    """Write a fake-quantized network as QDQ ONNX, which ONNX Runtime fuses into integer kernels.

    Input and output are float32, so that the file runs wherever the float one does. Each activation is called after
    the module that makes it: ``features.0.0`` dequantized, ``features.0.0/uint8`` as stored. Each weight is an int8
    initializer ``features.0.0.weight``, each bias an int32 one with scale input scale x weight scale, as in TFLite.
    Weights of 4 bits and fewer are packed int4 initializers; such a file is of opset 21, the first that has them.

    Args:
        model: Finalized (``quant.prepare.finalize``), (N, 1, size, size) float32 (pixel - 128) / 128 -> (N, C) logits.
        pixels: Its input.
        path: What is written.

    Raises:
        PrepareError: The network is float or not finalized.
        OnnxExportError: The exporter failed, or left out a layer.
    """
    check_finalized(model)
    graph = trace_onnx(integer_copy(model), pixels)
    _pool_globally(graph.graph)
    _name_activations(graph.graph, model)
    _break_ties(graph.graph, model, pixels)
    _name_constants(graph.graph, model)
    _pack_weights(graph, [layer.name for layer in weighted_layers(model) if layer.largest <= LARGEST_INT4])
    import_extra("onnx").checker.check_model(graph, full_check=True)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def refill_qdq_onnx(template: Path, model: nn.Module, path: Path) -> None:
    """Write ``export_qdq_onnx``'s file of another network of the same structure, whose tracing takes most of the time.

    Args:
        template: A file of ``export_qdq_onnx``.
        model: Finalized; its layers may have other integers, scales and bits.
        path: What is written.
    """
    check_finalized(model)
    graph, quantizers = import_extra("onnx").load(template), activation_quantizers(model)
    for name in running_order(model):
        encoding = quantizers[name].encoding
        _add_constant(graph.graph, f"{name}/scale", np.float32(encoding.scale))
        _add_constant(graph.graph, f"{name}/zero_point", np.uint8(encoding.zero_point + UINT8_SHIFT))
        if any(node.output[0] == name + TIES for node in graph.graph.node):
            _add_tie_constants(graph.graph, name, encoding)
    _name_constants(graph.graph, model)
    _pack_weights(graph, [layer.name for layer in weighted_layers(model) if layer.largest <= LARGEST_INT4])
    path.write_bytes(graph.SerializeToString(deterministic=True))


def integer_copy(model: nn.Module) -> nn.Module:
    """Return a copy that computes with what the integers stand for: the QDQ file, but for ``_break_ties``."""
    result = copy.deepcopy(model).eval()
    quantizers = activation_quantizers(model)
    for name, quantizer in quantizers.items():
        result.set_submodule(f"{name}.activation_post_process", _Rounded(quantizer.encoding))
    for layer in weighted_layers(model):
        result.set_submodule(
            layer.name, _IntegerLayer(layer, quantizers[layer.source].encoding, quantizers[layer.name].encoding)
        )
    return result


class _Rounded(nn.Module):
    """QuantizeLinear, DequantizeLinear.

    Activations are uint8 in the QDQ file, the real values the same: ONNX Runtime's x86 kernels multiply uint8 by int8;
    given int8 activations it has to convert, does so for some only, and leaves 15 of MobileNetV2's 52 convolutions and
    every addition in float.
    """

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.grid = (encoding.scale, encoding.zero_point + UINT8_SHIFT, 0, 255, torch.uint8)

    def forward(self, real: Tensor) -> Tensor:
        steps = _OPS.quantize_per_tensor(real, *self.grid)
        result: Tensor = _OPS.dequantize_per_tensor(steps, *self.grid)
        return result


class _IntegerLayer(nn.Module):
    """A convolution or linear layer with its ReLU, whose weight and bias are what integers stand for."""

    def __init__(self, layer: Layer, source: Encoding, output: Encoding) -> None:
        super().__init__()
        bias, bias_scale = quantize_bias(layer.bias, source.scale, layer.weight_scale)
        weight = quantize_weight(layer.weight, layer.weight_scale, layer.largest)
        self.weight = nn.Buffer(weight * layer.weight_scale.reshape(-1, *[1] * (weight.dim() - 1)))
        self.bias = nn.Buffer(bias * bias_scale)
        self.relu, self.ceiling, self.compute = layer.relu, layer.ceiling, layer.compute
        self.activation_post_process = _Rounded(output)

    def forward(self, activation: Tensor) -> Tensor:
        result = self.compute(activation, self.weight, self.bias)
        rounded: Tensor = self.activation_post_process(limit(result, self.relu, self.ceiling))
        return rounded


def _name_activations(graph: Any, model: nn.Module) -> None:
    """Call each activation after the module that makes it. The exporter keeps the order, not the names."""
    names, quantizers = running_order(model), activation_quantizers(model)
    rounding = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    if len(rounding) != len(names):
        raise OnnxExportError(f"the graph has {len(rounding)} QuantizeLinear for {len(names)} activations")
    renamed: dict[str, str] = {}
    for name, node in zip(names, rounding, strict=True):
        (back,) = [user for user in graph.node if node.output[0] in user.input]
        scale, zero_point = (f"{name}/scale", f"{name}/zero_point")
        encoding = quantizers[name].encoding
        _add_constant(graph, scale, np.float32(encoding.scale))
        _add_constant(graph, zero_point, np.uint8(encoding.zero_point + UINT8_SHIFT))
        node.input[1:] = back.input[1:] = [scale, zero_point]
        renamed |= {node.output[0]: name + STORED, back.output[0]: name}
    # The exporter has names of its own, such as add, which a module may have too.
    taken = set(renamed.values())
    values = [value for node in graph.node for value in node.output if value in taken and value not in renamed]
    renamed |= {value: f"{value}/unrounded" for value in values}
    rename_values(graph, {old: new for old, new in renamed.items() if old != OUTPUT})


def _break_ties(graph: Any, model: nn.Module, pixels: PixelSpec) -> None:
    """Let means that lie half-way between two integers go where LiteRT's go: ``fake_quantize.break_ties`` as nodes.

    QuantizeLinear rounds them to even. Of an odd number of integers no mean lies half-way: such a pooling is left for
    ONNX Runtime to run in its integer kernel.
    """
    make_node = import_extra("onnx.helper").make_node
    for name, quantizer in _even_means(model, pixels).items():
        (position,) = [at for at, node in enumerate(graph.node) if node.output[0] == name + STORED]
        mean, ending = graph.node[position].input[0], name + TIES
        centred, sign, step = (f"{ending}/{part}" for part in ("integer", "sign", "step"))
        _add_tie_constants(graph, name, quantizer.encoding)
        nodes = [
            make_node("Add", [mean, f"{ending}/zero"], [centred]),
            make_node("Sign", [centred], [sign]),
            make_node("Mul", [sign, f"{ending}/size"], [step]),
            make_node("Add", [mean, step], [ending]),
        ]
        graph.node[position].input[0] = ending
        insert_nodes(graph, position, nodes)


@torch.no_grad()
def _even_means(model: nn.Module, pixels: PixelSpec) -> dict[str, MeanQuantizer]:
    """Return the quantizers of means over an even number of pixels, by activation."""
    found: dict[str, MeanQuantizer] = {}

    def note(name: str, module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        if inputs[0][0, 0].numel() % 2 == 0:
            found[name] = module.activation_post_process

    with ExitStack() as hooks:
        for name, quantizer in activation_quantizers(model).items():
            if isinstance(quantizer, MeanQuantizer):
                hooks.enter_context(model.get_submodule(name).register_forward_hook(partial(note, name)))
        model(torch.zeros(1, 1, pixels.size, pixels.size))
    return found


def _add_tie_constants(graph: Any, name: str, encoding: Encoding) -> None:
    _add_constant(graph, f"{name}{TIES}/zero", np.float32(encoding.zero_point * encoding.scale))
    _add_constant(graph, f"{name}{TIES}/size", np.float32(TIE_BREAK * encoding.scale))


def _name_constants(graph: Any, model: nn.Module) -> None:
    """Give every layer integers of its own, called after it, in place of the real constants that were traced.

    The exporter merges equal ones of different layers under one of their names; ONNX Runtime's
    ``session.x64quantprecision`` (exact sums on processors without VNNI) cannot load such a file.
    """
    layers = weighted_layers(model)
    nodes = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    if len(nodes) != len(layers):
        raise OnnxExportError(f"the graph has {len(nodes)} convolutions and linear layers, the network {len(layers)}")
    helper, quantizers, more = import_extra("onnx.helper"), activation_quantizers(model), []
    made = {output for node in graph.node for output in node.output}
    for layer, node in zip(layers, nodes, strict=True):
        bias, bias_scale = quantize_bias(layer.bias, quantizers[layer.source].encoding.scale, layer.weight_scale)
        weight = quantize_weight(layer.weight, layer.weight_scale, layer.largest)
        del node.input[1:]  # a bias of zeros is not even there
        for part, value, scale in (("weight", weight, layer.weight_scale), ("bias", bias, bias_scale)):
            name = f"{layer.name}.{part}"
            names, real = [name, f"{name}_scale", f"{name}_zero_point"], f"{name}/real"
            for each, content in zip(names, (value, scale, torch.zeros(len(scale), dtype=value.dtype)), strict=True):
                _add_constant(graph, each, content.numpy())
            node.input.append(real)
            if real not in made:
                more.append(helper.make_node("DequantizeLinear", names, [real], f"{name}/dequantize", axis=0))
        if node.op_type == "Gemm":  # with the weight as PyTorch keeps it, (O, I)
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("transB", 1))
    insert_nodes(graph, 0, more)
    drop_unused_constants(graph)


def _pack_weights(model: Any, layers: Sequence[str]) -> None:
    """Store the weights of these layers as int4, two in a byte, and raise the opset to what knows that."""
    if not layers:
        return
    numpy_helper, int4 = import_extra("onnx.numpy_helper"), import_extra("ml_dtypes").int4
    packed = {f"{name}.{part}" for name in layers for part in ("weight", "weight_zero_point")}
    for tensor in model.graph.initializer:
        if tensor.name in packed:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(int4), tensor.name))
    for operators in model.opset_import:
        if operators.domain in ("", "ai.onnx"):
            operators.version = _INT4_OPSET
    model.ir_version = max(model.ir_version, _INT4_IR_VERSION)


def _pool_globally(graph: Any) -> None:
    """Write the mean over height and width as GlobalAveragePool: ONNX Runtime has an integer kernel for that only."""
    constants = read_constants(graph)
    for node in graph.node:
        if node.op_type == "ReduceMean" and sorted(axis % 4 for axis in constants[node.input[1]]) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


def _add_constant(graph: Any, name: str, value: Any) -> None:
    """Add an initializer, in place of one of that name."""
    for position, tensor in enumerate(graph.initializer):
        if tensor.name == name:
            del graph.initializer[position]
            break
    graph.initializer.append(import_extra("onnx.numpy_helper").from_array(np.asarray(value), name))
