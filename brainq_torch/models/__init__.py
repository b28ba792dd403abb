"""The networks, and the one table that names them."""

from __future__ import annotations

from typing import Any

from torch import nn

from brainq_torch.models.mobilenetv2 import MobileNetV2

MODELS: dict[str, type[nn.Module]] = {"mobilenetv2": MobileNetV2}
"""Name in a configuration or checkpoint -> class. Each has ``classifier`` (the head) and ``fuse_list()``."""


def build_model(name: str, **arguments: Any) -> nn.Module:
    """Build a network by name. Raises ValueError for an unknown name or arguments that the network does not take."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; allowed are {sorted(MODELS)}")
    try:
        return MODELS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"model {name!r} does not take {arguments}: {error}") from error
