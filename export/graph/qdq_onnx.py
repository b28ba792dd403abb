"""A fake-quantized network as QDQ ONNX: int8 weights, int32 biases, and the scales that training left."""

from pathlib import Path

import numpy as np
from torch import Tensor, fx, nn

from brainq_torch.data.pixels import PixelSpec
from brainq_torch.quant.encoding import UINT8_SHIFT
from brainq_torch.quant.fake_quantize import TIE_BREAK, MeanQuantizer
from brainq_torch.quant.layers import Layer, activation_quantizers, weighted_layers
from brainq_torch.quant.prepare import check_finalized
from brainq_torch.quant.scheme import quantize_bias, quantize_weight
from export.extra import import_extra
from export.graph.float_onnx import OPSET, GraphWriter

STORED = "/uint8"
"""Ending of the name under which an activation is stored as integers."""

TIES = "/ties"
"""Ending of the name of a mean as it is rounded, moved off half-way; all that makes it is called so, and more."""

LARGEST_INT4 = 7
_INT4_OPSET = 21


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
        OnnxExportError: It has an operation that no node is known for.
    """
    check_finalized(model)
    path.write_bytes(_QdqWriter(model).write(pixels).SerializeToString(deterministic=True))


class _QdqWriter(GraphWriter):
    """Writes a finalized network: layers with their integers, and the rounding behind each module.

    Activations are uint8, the real values those of int8: ONNX Runtime's x86 kernels multiply uint8 by int8; given int8
    activations it has to convert, does so for some only, and leaves 15 of MobileNetV2's 52 convolutions and every
    addition in float.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = {layer.name: layer for layer in weighted_layers(model)}
        self._quantizers = activation_quantizers(model)
        packed = any(layer.largest <= LARGEST_INT4 for layer in self._layers.values())
        super().__init__(model, _INT4_OPSET if packed else OPSET)

    def write_module(self, node: fx.Node, source: str, fed: Tensor, made: Tensor) -> str:
        """Write a module, or of a FloatFunctional, whose function is written already, the rounding."""
        name = str(node.target)
        owner, _, part = name.rpartition(".")
        if part == "activation_post_process":
            return self._round(owner, source)
        if name in self._layers:
            value = self._write_integers(self._layers[name], source)
        else:
            value = super().write_module(node, source, fed, made)
        if isinstance(self._quantizers.get(name), MeanQuantizer) and fed[0, 0].numel() % 2 == 0:
            value = self._break_ties(name, value)
        return self._round(name, value) if name in self._quantizers else value

    def write_mean(self, source: str, output: str) -> str:
        """Write the mean over height and width as ONNX Runtime has an integer kernel for."""
        return self.add_node("GlobalAveragePool", [source], output)

    def _write_integers(self, layer: Layer, source: str) -> str:
        """Write a layer with its ReLU."""
        bias, bias_scale = quantize_bias(layer.bias, self._quantizers[layer.source].encoding.scale, layer.weight_scale)
        weight = quantize_weight(layer.weight, layer.weight_scale, layer.largest).numpy()
        if layer.largest <= LARGEST_INT4:
            weight = weight.astype(import_extra("ml_dtypes").int4)
        inputs = []
        for part, integers, scale in (("weight", weight, layer.weight_scale), ("bias", bias.numpy(), bias_scale)):
            name = f"{layer.name}.{part}"
            zeros = np.zeros(len(scale), integers.dtype)
            constants = {name: integers, f"{name}_scale": scale.numpy(), f"{name}_zero_point": zeros}
            stored = [self.add_constant(*one) for one in constants.items()]
            inputs.append(self.add_node("DequantizeLinear", stored, f"{name}/real", axis=0))
        value = self.write_layer(layer.module, [source, *inputs], f"{layer.name}/real")
        return self.write_limit(value, f"{layer.name}/limited", layer.ceiling) if layer.relu else value

    def _round(self, name: str, value: str) -> str:
        """Write QuantizeLinear and DequantizeLinear of an activation."""
        scale, zero_point = self._quantizers[name].encoding
        constants = {f"{name}/scale": np.float32(scale), f"{name}/zero_point": np.uint8(zero_point + UINT8_SHIFT)}
        grid = [self.add_constant(*one) for one in constants.items()]
        stored = self.add_node("QuantizeLinear", [value, *grid], name + STORED)
        return self.add_node("DequantizeLinear", [stored, *grid], name)

    def _break_ties(self, name: str, mean: str) -> str:
        """Let means half-way between two integers go where LiteRT's go: ``fake_quantize.break_ties`` as nodes.

        QuantizeLinear rounds them to even. Of an odd number of integers no mean lies half-way: such a pooling is left
        for ONNX Runtime to run in its integer kernel.
        """
        ties, (scale, zero_point) = name + TIES, self._quantizers[name].encoding
        zero = self.add_constant(f"{ties}/zero", np.float32(zero_point * scale))
        size = self.add_constant(f"{ties}/size", np.float32(TIE_BREAK * scale))
        centred = self.add_node("Add", [mean, zero], f"{ties}/integer")
        step = self.add_node("Mul", [self.add_node("Sign", [centred], f"{ties}/sign"), size], f"{ties}/step")
        return self.add_node("Add", [mean, step], ties)
