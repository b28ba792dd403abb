"""MobileNetV2 for one grey channel: torchvision's quantizable network with a one-channel stem."""

import torch
from torch import Tensor, nn
from torchvision.models.quantization.mobilenetv2 import QuantizableInvertedResidual, QuantizableMobileNetV2
from torchvision.ops.misc import Conv2dNormActivation


class MobileNetV2(QuantizableMobileNetV2):  # type: ignore[misc]  # torchvision publishes no types
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
        super().__init__(
            num_classes=class_count, dropout=dropout, width_mult=width_mult, block=QuantizableInvertedResidual
        )
        rgb = self.features[0][0]
        grey = nn.Conv2d(1, rgb.out_channels, rgb.kernel_size, rgb.stride, rgb.padding, bias=False)
        nn.init.kaiming_normal_(grey.weight, mode="fan_out")
        self.features[0][0] = grey
        for module in self.modules():
            if isinstance(module, Conv2dNormActivation):
                module[2] = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)  # a module, not torchvision's function call: its output gets a quantizer

    def _forward_impl(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))  # type: ignore[no-any-return]
