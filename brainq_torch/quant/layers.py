"""A fake-quantized network seen as the integer files hold it: its layers, activations, and the order they run in."""

# torch.ao has no types.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.ao.nn.intrinsic as fused
import torch.ao.nn.intrinsic.qat as fused_qat
from torch import Tensor, fx, nn
from torch.nn import functional

from brainq_torch.models.wiring import PASSING_FUNCTIONS, is_passing, trace_modules
from brainq_torch.quant.fake_quantize import ActivationQuantizer, WeightQuantizer
from brainq_torch.quant.layer_samples import apply_rows
from brainq_torch.quant.scheme import Scheme, held_bits
from brainq_torch.run_files import BrainqError

RELU6_CEILING = 6.0


class PrepareError(BrainqError):
    """A network that cannot be quantized as it is."""


class FoldedConvBn2d(fused_qat.ConvBn2d):
    """Convolution with BatchNorm that computes what the integer kernel will, once the statistics are frozen.

    torch.ao divides the BatchNorm's factor out of the convolution and applies BatchNorm again: two passes over the
    activation that cost as much as the convolution, and 0 / 0 where gamma is 0. Folded, there is one convolution.
    """

    def fold(self) -> tuple[Tensor, Tensor]:
        """Return weight (O, I, kH, kW) and bias (O,) with the running statistics folded in."""
        norm: Any = self.bn  # torch types its statistics as optional; fusing requires them
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shift = -norm.running_mean if self.bias is None else self.bias - norm.running_mean
        return self.weight * factor.reshape(-1, 1, 1, 1), norm.bias + shift * factor

    def _forward(self, image: Tensor) -> Tensor:
        if self.training and not self.freeze_bn:
            normalised: Tensor = super()._forward(image)
            return normalised
        weight, bias = self.fold()
        quantizer: Any = self.weight_fake_quant
        result: Tensor = self._conv_forward(image, quantizer(weight), quantizer.round_bias(bias))
        return result

    def train(self, mode: bool = True) -> FoldedConvBn2d:
        """Switch the quantizers too where BatchNorm is frozen: torch.ao leaves every child behind then."""
        super().train(mode)
        for child in self.children():
            if child is not self.bn:
                child.train(mode)
        return self


class Limited(nn.Module):
    """What comes before a fused layer of torch.ao's, so that the ReLU behind it may be a ReLU6, with a ceiling.

    6 is an integer on every scale that is a power of two below.
    """

    ceiling: float | None = None

    def forward(self, input: Tensor) -> Tensor:  # torch.ao's name
        """Return the layer's output, clipped."""
        output = super().forward(input)
        return nn.functional.relu(output) if self.ceiling is None else output.clamp(0.0, self.ceiling)


class FoldedConvBnReLU2d(Limited, FoldedConvBn2d):
    """Convolution with BatchNorm and ReLU."""

    _FLOAT_MODULE = fused.ConvBnReLU2d  # type: ignore[assignment]  # torch.ao types it after the base class


class LimitedConvReLU2d(Limited, fused_qat.ConvReLU2d):
    """Convolution with ReLU."""


class LimitedLinearReLU(Limited, fused_qat.LinearReLU):
    """Linear layer with ReLU."""


@dataclass(frozen=True)
class Layer:
    """One layer as the integer files hold it: weight (O, ...), BatchNorm folded in, not rounded; scale, bias (O,).

    relu: negative outputs become 0; ceiling: those above it become it (ReLU6), None without.
    ``source`` names the activation that feeds it, a key of ``activation_quantizers``; its own output's is ``name``.
    """

    name: str
    module: nn.Module
    weight: Tensor
    weight_scale: Tensor
    largest: int
    bias: Tensor
    relu: bool
    source: str
    ceiling: float | None = None

    @property
    def compute(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The convolution or linear function of activation, weight and bias, without the ReLU."""
        module = self.module
        if not isinstance(module, nn.Conv2d):
            return functional.linear
        geometry = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}
        return partial(functional.conv2d, **geometry)

    def held_bytes(self, bits: int) -> int:
        """Return what the weight would take in a TFLite file at so many bits."""
        grouped = getattr(self.module, "groups", 1) > 1
        return self.weight.numel() * held_bits(bits, self.weight[0].numel(), grouped) // 8

    def outputs(self, rows: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return (S, O) float32 of rows (S, G, K), before the ReLU; weight: in place of its own."""
        weight = self.weight if weight is None else weight
        return apply_rows(rows, weight.reshape(rows.shape[1], -1, rows.shape[2])) + self.bias


def is_fake_quantized(model: nn.Module) -> bool:
    """Tell whether ``prepare_qat`` or ``rebuild`` made this network."""
    return isinstance(getattr(model, "quantization_scheme", None), Scheme)


def scheme_of(model: nn.Module) -> Scheme:
    """Return the scheme of a fake-quantized network. Raises PrepareError for a float one."""
    scheme = getattr(model, "quantization_scheme", None)
    if not isinstance(scheme, Scheme):
        raise PrepareError(f"{type(model).__name__} is a float network; quantize it with prepare_qat first")
    return scheme


def activation_quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """Return each activation quantizer under the name of the module whose output it rounds, in module order."""
    scheme_of(model)
    found = {name: getattr(module, "activation_post_process", None) for name, module in model.named_modules()}
    return {name: quantizer for name, quantizer in found.items() if isinstance(quantizer, ActivationQuantizer)}


@torch.no_grad()
def weighted_layers(model: nn.Module) -> list[Layer]:
    """Return the network's convolutions and linear layers in the order in which they run."""
    _, sources = trace(model)
    return [_describe(name, model.get_submodule(name), source) for name, source in sources.items()]


def running_order(model: nn.Module) -> list[str]:
    """Return the names of ``activation_quantizers`` in the order in which they run, the input's first."""
    order, _ = trace(model)
    return order


def _describe(name: str, module: Any, source: str) -> Layer:
    weight, bias = fold(module)
    quantizer = module.weight_fake_quant
    relu = isinstance(module, Limited)
    ceiling = module.ceiling if relu else None
    return Layer(
        name, module, weight.detach(), quantizer.scale, quantizer.largest, bias.detach(), relu, source, ceiling
    )


def fold(module: Any) -> tuple[Tensor, Tensor]:
    """Return a layer's weight (O, ...) and bias (O,), BatchNorm folded in, not yet rounded."""
    if isinstance(module, FoldedConvBn2d):
        return module.fold()
    bias = module.bias if module.bias is not None else torch.zeros(len(module.weight), device=module.weight.device)
    return module.weight, bias


def trace(model: nn.Module) -> tuple[list[str], dict[str, str]]:
    """Return activations in running order, and the one that feeds each layer. Raises PrepareError, WiringError."""
    modules, quantizers, order = dict(model.named_modules()), activation_quantizers(model), list[str]()
    sources, made = dict[str, str](), dict[fx.Node, str | None]()
    for node in trace_modules(model).nodes:
        name, fed = str(node.target), next((made[one] for one in node.all_input_nodes), None)
        module = modules[name] if node.op == "call_module" else None
        if hasattr(module, "weight_fake_quant"):
            if fed is None:
                raise PrepareError(
                    f"what feeds {name} passes no quantizer; make that operation a module of a shared group"
                )
            sources[name] = fed
        name = name.removesuffix(".activation_post_process")  # a FloatFunctional calls its quantizer itself
        if module is not None and name in quantizers:
            order.append(name)
            made[node] = name
        else:
            passes = is_passing(module) if module else node.target in PASSING_FUNCTIONS
            made[node] = fed if passes else None
    return order, sources


def freeze_observers(model: nn.Module) -> None:
    """Keep every activation range as it is. Weight scales go on following the weights until ``finalize``."""
    for quantizer in activation_quantizers(model).values():
        quantizer.refresh()
        quantizer.observe(False)


def freeze_batchnorm(model: nn.Module) -> None:
    """Use and keep the running statistics from here, also in training mode; not in the state dict: repeat on resume."""
    scheme_of(model)
    for module in model.modules():
        if isinstance(module, FoldedConvBn2d):
            module.freeze_bn_stats()


def unfreeze(model: nn.Module) -> None:
    """Let ranges and weight scales follow again after ``finalize``: fine-tuning may start from a calibrated network."""
    for quantizer in activation_quantizers(model).values():
        quantizer.observe(not quantizer.fixed)
    for layer in weighted_layers(model):
        quantizer_of_weight: Any = layer.module.weight_fake_quant
        quantizer_of_weight.observe(True)


def set_fake_quant(model: nn.Module, enabled: bool) -> None:
    """Switch all rounding on or off; off, the network computes what the float one does."""
    scheme_of(model)
    for module in model.modules():
        if isinstance(module, ActivationQuantizer | WeightQuantizer):
            module.quantizing = enabled
