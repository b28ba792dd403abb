"""The networks, and the one table that names them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from brainq_torch.models.densenet import DENSENET_32, DENSENET_101, DenseNet
from brainq_torch.models.mobilenetv2 import MobileNetV2
from brainq_torch.models.network import Network, rewrite
from brainq_torch.models.sources import ALLOWED, build_source
from brainq_torch.models.wiring import WiringError

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mobilenetv2": MobileNetV2,
    "densenet": DenseNet,
    "densenet101": partial(DenseNet, **DENSENET_101),
    "densenet32": partial(DenseNet, **DENSENET_32),
}
"""Name in a configuration or checkpoint -> constructor; names with a colon are built by ``models.sources``."""


@dataclass(frozen=True)
class ModelOptions:
    """Which network, and what it starts from.

    Attributes:
        name: mobilenetv2, densenet32, densenet101, densenet, or any convolutional network: ``torchvision:resnet18``,
            ``timm:mobilenetv4_conv_small``, ``package.module:Class``.
        pretrained: ``none``, ``imagenet`` (download), or the path of a .safetensors or .pth file, keys as its authors'.
        arguments: the network's own, such as width_mult.
    """

    name: str = "mobilenetv2"
    pretrained: str = "none"
    arguments: dict[str, Any] = field(default_factory=dict)


def build_model(name: str, class_count: int = 4, /, **arguments: Any) -> nn.Module:
    """Build a network by name. Raises ValueError for an unknown name or arguments that it does not take."""
    if ":" in name:
        try:
            network = rewrite(build_source(name, class_count, arguments), class_count)
        except WiringError as error:
            raise ValueError(f"{name}: {error}") from error
        # Some authors draw the head for 1000 classes: with four, timm's EfficientNets begin with logits of 30.
        head: Any = network.get_submodule(network.head_name)
        head.reset_parameters()
        return network
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; allowed are {sorted(MODELS)}, {ALLOWED}")
    try:
        return MODELS[name](class_count=class_count, **arguments)
    except TypeError as error:
        raise ValueError(f"model {name!r} does not take {arguments}: {error}") from error


def head_name(model: nn.Module) -> str:
    """Return the name of the module that makes the logits."""
    return model.head_name if isinstance(model, Network) else "classifier"
