"""Make every BatchNorm foldable: one that stands before its convolution becomes a 1x1 depthwise convolution."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def lower_batchnorms(model: nn.Module) -> nn.Module:
    """Return a copy in which every BatchNorm that cannot be folded is a 1x1 depthwise convolution.

    Foldable are those inside a group of ``model.fuse_list()``, directly behind their convolution; they stay. A
    lowered one keeps its name and computes gamma / sqrt(var + eps) * x + (beta - gamma * mean / sqrt(var + eps)) from
    the running statistics, in training mode too. It has one weight per channel, so a per-channel INT8 weight is exact
    (it sits on +-127), and TFLite runs it with its ReLU as one op. Lowering a lowered model changes nothing.

    Raises TypeError for a model without ``fuse_list``, ValueError for a BatchNorm without affine or running statistics.
    """
    if not hasattr(model, "fuse_list"):
        raise TypeError(f"{type(model).__name__} has no fuse_list(), which says what can be folded; give it one")
    lowered: Any = copy.deepcopy(model)
    foldable = {name for group in lowered.fuse_list() for name in group}
    norms = [(name, part) for name, part in lowered.named_modules() if isinstance(part, nn.BatchNorm2d)]
    for name, norm in norms:
        if name not in foldable:
            lowered.set_submodule(name, _as_depthwise(name, norm))
    result: nn.Module = lowered
    return result


def _as_depthwise(name: str, norm: nn.BatchNorm2d) -> nn.Conv2d:
    if norm.running_mean is None or norm.running_var is None or not norm.affine:
        raise ValueError(
            f"BatchNorm {name!r} has affine={norm.affine}, track_running_stats={norm.track_running_stats}; "
            "only one with both can become a convolution"
        )
    # float64, so that the two roundings to float32 are the only error.
    scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    shift = norm.bias.detach().double() - scale * norm.running_mean.double()
    channels = norm.num_features
    conv = nn.Conv2d(channels, channels, kernel_size=1, groups=channels)
    conv = conv.to(device=norm.weight.device, dtype=norm.weight.dtype).train(norm.training)
    with torch.no_grad():
        conv.weight.copy_(scale[:, None, None, None])
        conv.bias.copy_(shift)  # type: ignore[union-attr]
    return conv
