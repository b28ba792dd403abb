"""What follows the data in a fake-quantized network, and whether it rounds: switched on and off."""

from typing import Any

from torch import nn

from brainq_torch.quant.fake_quantize import ActivationQuantizer, WeightQuantizer
from brainq_torch.quant.layers import FoldedConvBn2d, activation_quantizers, scheme_of, weighted_layers


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
            module.freeze_bn_stats()  # type: ignore[no-untyped-call]  # torch.ao has no types


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
