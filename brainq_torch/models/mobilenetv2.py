"""MobileNetV2 for one grey channel, quantizable: module names and first weights are torchvision's.

Not torchvision's own class: to import it takes 1.3 s of every command that opens a run, most of it TorchDynamo.
"""

# torch.ao has no types.
# mypy: disable-error-code="no-untyped-call"

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub

_STEM, _LAST = 32, 1280
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, output channels, blocks and the first one's stride: table 2 of the paper."""


class ConvBatchNormReLU(nn.Sequential):
    """A convolution that keeps the size where its stride is 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; the input is added where it has the output's shape (figure 3b)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        widen = [ConvBatchNormReLU(inputs, width, 1)] if expansion > 1 else []
        narrow = nn.Conv2d(width, outputs, 1, bias=False)
        self.conv = nn.Sequential(
            *widen, ConvBatchNormReLU(width, width, 3, stride, width), narrow, nn.BatchNorm2d(outputs)
        )
        self.skip_add, self.adds = FloatFunctional(), stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        changed: Tensor = self.conv(features)
        return self.skip_add.add(features, changed) if self.adds else changed


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), quantizable, one input channel.

    Input (N, 1, H, W) float32, (pixel - 128) / 128; output (N, class_count) float32 logits.
    As in torchvision's own quantizable network, ReLU stands where the paper has ReLU6: eager-mode fusing knows conv +
    BatchNorm + ReLU only, and the activation's range is learned or calibrated anyway.

    Args:
        class_count: length of the logit vector.
        dropout: probability before the head.
        width_mult: multiplies every layer's channels (0.35 makes a network that tests can train).
    """

    def __init__(self, class_count: int = 4, dropout: float = 0.2, width_mult: float = 1.0) -> None:
        if not 0 < width_mult <= 10:
            raise ValueError(f"width_mult is {width_mult}; allowed are more than 0 to 10 times the paper's channels")
        super().__init__()
        channels, last = _multiply(_STEM, width_mult), _multiply(_LAST, max(1.0, width_mult))
        features: list[nn.Module] = [ConvBatchNormReLU(3, channels, 3, 2)]
        for expansion, paper_channels, blocks, first_stride in _STAGES:
            outputs = _multiply(paper_channels, width_mult)
            for stride in (first_stride, *[1] * (blocks - 1)):
                features.append(InvertedResidual(channels, outputs, stride, expansion))
                channels = outputs
        self.features = nn.Sequential(*features, ConvBatchNormReLU(channels, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, class_count))

        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.pool = nn.AdaptiveAvgPool2d(1)  # a module, not a function call: its output gets a quantizer
        self._initialise()

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        features = self.pool(self.features(self.quant(image)))
        logits: Tensor = self.dequant(self.classifier(torch.flatten(features, 1)))
        return logits

    def _initialise(self) -> None:
        """Draw the weights in torchvision's order, the stem's for RGB and then for grey: a seed keeps its network."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        stem: Any = self.features[0]
        head: Any = self.classifier[1]
        nn.init.normal_(head.weight, 0, 0.01)
        nn.init.zeros_(head.bias)
        stem[0] = nn.Conv2d(1, stem[0].out_channels, 3, 2, 1, bias=False)
        nn.init.kaiming_normal_(stem[0].weight, mode="fan_out")


def _multiply(channels: int, by: float) -> int:
    """Return the multiple of 8 nearest to the product, at least 90 % of it, as the authors' code does."""
    rounded = max(8, int(channels * by + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels * by else rounded
