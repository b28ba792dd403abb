"""Quantizable DenseNet with a one-channel stem; DenseNet-101 and DenseNet-32 are two configurations of it."""

# torch.ao has no types.
# mypy: disable-error-code="no-untyped-call"

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub

DENSENET_101: Final[dict[str, Any]] = {"block_config": (6, 12, 20, 10), "growth_rate": 32, "stem_channels": 64}
"""The teacher: 1 stem + 2 * 48 dense + 3 transitions + 1 linear = 101 weighted layers."""

DENSENET_32: Final[dict[str, Any]] = {"block_config": (4, 4, 6), "growth_rate": 16, "stem_channels": 32}
"""The student: 1 stem + 2 * 14 dense + 2 transitions + 1 linear = 32 weighted layers.

Three blocks, because with four the count is 2 * sum + 5, which is always odd.
"""


class DenseLayer(nn.Module):
    """BN-ReLU-1x1 convolution, BN-ReLU-3x3 convolution, then the input with the new channels appended (DenseNet-B).

    ``forward`` returns the concatenation, not the new channels alone, so that a block is a plain sequence and each
    concatenation has two members. Source: Huang et al. 2017, https://arxiv.org/abs/1608.06993, section 3, eq. 2.
    """

    def __init__(self, in_channels: int, growth_rate: int, bottleneck_factor: int) -> None:
        super().__init__()
        width = bottleneck_factor * growth_rate
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, growth_rate, kernel_size=3, padding=1, bias=False)
        self.cat = FloatFunctional()

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, in_channels + growth_rate, H, W)."""
        narrow = self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(features)))))
        joined: Tensor = self.cat.cat([features, self.conv2(narrow)], 1)
        return joined


class Transition(nn.Sequential):
    """BN-ReLU-1x1 convolution and 2x2 average pooling between two blocks (DenseNet-C, compression 0.5).

    The pooling comes before the convolution, not behind it as in the paper: both are linear, so it is the same
    function for a quarter of the multiplications.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(kernel_size=2, stride=2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)


class DenseNet(nn.Module):
    """DenseNet-BC (Huang et al. 2017, https://arxiv.org/abs/1608.06993) for torch.ao's eager-mode quantization.

    Module and parameter names are torchvision's, so published weights need no renaming. Two things differ:
    the stem reads one channel, and its max pooling has no padding by default (a padded one becomes
    PADV2(-inf) in TFLite, which the quantizer refuses), so feature maps of a 224 px image are 55, 27, 13 (and 6) wide.
    The smallest image is 17 px for three blocks and 33 px for four.

    Args:
        block_config: dense layers per block; any number of blocks.
        growth_rate: channels that a dense layer adds.
        bottleneck_factor: width of a layer's 1x1 convolution, in growth rates.
        stem_channels: channels of the first convolution; the paper's choice is twice the growth rate.
        stem_kernel: side of the first convolution in pixels, odd; its stride is 2.
        stem_pool_padding: 0, or 1 for torchvision's geometry (not convertible to INT8).
        class_count: length of the logit vector.
        dropout: probability before the linear layer, while training.

    Raises:
        ValueError: the configuration cannot be built.
    """

    def __init__(
        self,
        block_config: Sequence[int],
        growth_rate: int = 32,
        bottleneck_factor: int = 4,
        stem_channels: int = 64,
        stem_kernel: int = 7,
        stem_pool_padding: int = 0,
        class_count: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(block_config, growth_rate, bottleneck_factor, stem_channels, stem_kernel, stem_pool_padding)
        self.features = nn.Sequential()
        self.features.conv0 = nn.Conv2d(1, stem_channels, stem_kernel, stride=2, padding=stem_kernel // 2, bias=False)
        self.features.norm0 = nn.BatchNorm2d(stem_channels)
        self.features.relu0 = nn.ReLU()
        self.features.pool0 = nn.MaxPool2d(kernel_size=3, stride=2, padding=stem_pool_padding)
        channels = stem_channels
        for number, layer_count in enumerate(block_config, start=1):
            block = nn.Sequential()
            for layer in range(1, layer_count + 1):
                block.add_module(f"denselayer{layer}", DenseLayer(channels, growth_rate, bottleneck_factor))
                channels += growth_rate
            self.features.add_module(f"denseblock{number}", block)
            if number < len(block_config):
                self.features.add_module(f"transition{number}", Transition(channels, channels // 2))
                channels //= 2
        self.features.norm5 = nn.BatchNorm2d(channels)
        self.features.relu5 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, class_count)
        self.quant = QuantStub()
        self.dequant = DeQuantStub()
        _initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Return (N, class_count) logits of (N, 1, H, W) float32, (pixel - 128) / 128."""
        pooled = self.avgpool(self.features(self.quant(image)))
        logits: Tensor = self.dequant(self.classifier(self.dropout(torch.flatten(pooled, 1))))
        return logits


def _check(
    block_config: Sequence[int], growth: int, bottleneck: int, stem_channels: int, stem_kernel: int, pool_padding: int
) -> None:
    if not block_config or min(block_config) < 1:
        raise ValueError(f"block_config is {tuple(block_config)}; it needs one or more blocks of one or more layers")
    if min(growth, bottleneck, stem_channels) < 1:
        raise ValueError(
            f"growth_rate, bottleneck_factor and stem_channels are {growth}, {bottleneck} and {stem_channels}; "
            "all must be 1 or more"
        )
    if stem_kernel < 1 or stem_kernel % 2 == 0:
        raise ValueError(f"stem_kernel is {stem_kernel}; allowed are odd sizes such as 3, 5, 7")
    if pool_padding not in (0, 1):
        raise ValueError(f"stem_pool_padding is {pool_padding}; allowed are 0 and 1 (the pooling window is 3 wide)")


def _initialise(model: nn.Module) -> None:
    """Initialise as torchvision does: He-normal convolutions, unit BatchNorm, zero bias of the linear layer."""
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
        elif isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
