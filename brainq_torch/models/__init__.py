"""The networks, and the one table that names them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from brainq_torch.models.densenet import DENSENET_32, DENSENET_101, DenseNet
from brainq_torch.models.mobilenetv2 import MobileNetV2

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mobilenetv2": MobileNetV2,
    "densenet": DenseNet,
    "densenet101": partial(DenseNet, **DENSENET_101),
    "densenet32": partial(DenseNet, **DENSENET_32),
}
"""Name in a configuration or checkpoint -> constructor. Each has ``classifier`` (the head) and ``fuse_list()``."""


@dataclass(frozen=True)
class ModelOptions:
    """Which network, and what it starts from.

    Attributes:
        name: of the network, see ``MODELS``.
        pretrained: ``none``, ``imagenet`` (download), or the path of a torchvision-named .safetensors or .pth file.
        arguments: the network's own, such as width_mult.
    """

    name: str = "mobilenetv2"
    pretrained: str = "none"
    arguments: dict[str, Any] = field(default_factory=dict)


def build_model(name: str, class_count: int = 4, /, **arguments: Any) -> nn.Module:
    """Build a network by name. Raises ValueError for an unknown name or arguments that it does not take."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; allowed are {sorted(MODELS)}")
    try:
        return MODELS[name](class_count=class_count, **arguments)
    except TypeError as error:
        raise ValueError(f"model {name!r} does not take {arguments}: {error}") from error
