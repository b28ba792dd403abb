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

    def fuse_list(self) -> list[list[str]]:
        """Name the modules that become one integer operation: [conv, BatchNorm] or [conv, BatchNorm, ReLU]."""
        groups = []
        for name, module in self.named_modules():
            if isinstance(module, Conv2dNormActivation):
                groups.append([f"{name}.{part}" for part in range(3)])
            elif isinstance(module, QuantizableInvertedResidual):
                last = len(module.conv) - 2
                groups.append([f"{name}.conv.{last}", f"{name}.conv.{last + 1}"])
        return groups

    def shared_activation_groups(self) -> list[list[str]]:
        """Name the modules that share one scale: a chain of shortcuts, which adds integers; a pooling and its input."""
        chains: list[list[str]] = []
        for position, block in enumerate(self.features):
            if isinstance(block, QuantizableInvertedResidual):
                projection = f"features.{position}.conv.{len(block.conv) - 2}"
                if block.use_res_connect:
                    chains[-1] += [projection, f"features.{position}.skip_add"]
                else:
                    chains.append([projection])
        return [*(chain for chain in chains if len(chain) > 1), [f"features.{len(self.features) - 1}.0", "pool"]]
