"""The networks, and the one table that names them."""

from __future__ import annotations

from collections.abc import Callable
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


def build_model(name: str, **arguments: Any) -> nn.Module:
    """Build a network by name. Raises ValueError for an unknown name or arguments that the network does not take."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; allowed are {sorted(MODELS)}")
    try:
        return MODELS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"model {name!r} does not take {arguments}: {error}") from error
