"""Make every operation carryable: BatchNorms that cannot be folded and average poolings become convolutions."""

import copy
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from brainq_torch.models.wiring import fuse_list, trace_modules


def lower_batchnorms(model: nn.Module) -> nn.Module:
    """Return a copy in which every BatchNorm that cannot be folded is a 1x1 depthwise convolution.

    Foldable are those directly behind their convolution (``fuse_list``). A lowered one keeps its name and
    computes gamma / sqrt(var + eps) * x + (beta - gamma * mean / sqrt(var + eps)), also in training mode. It has one
    weight per channel, so a per-channel INT8 weight is exact (+-127), and TFLite runs it with its ReLU as one op.
    Raises ValueError, and WiringError where it cannot be traced.
    """
    lowered = copy.deepcopy(model)
    foldable = {name for group in fuse_list(lowered) for name in group}
    norms = [(name, part) for name, part in lowered.named_modules() if type(part) is nn.BatchNorm2d]  # no author's own
    for name, norm in norms:
        if name not in foldable:
            lowered.set_submodule(name, _as_depthwise(name, norm))
    return lowered


@torch.no_grad()
def fold_batchnorms(model: nn.Module, kind: type[Any] = nn.BatchNorm2d) -> nn.Module:
    """Fold every BatchNorm directly behind its layer (``fuse_list``) into it; for eval mode, in place.

    Those behind a linear layer (kind: BatchNorm1d) only where it sees vectors, as it does in integers. The exporter
    folds them to the same bits, but takes two fifths of its time to trace them first. In NumPy, as there: PyTorch's
    square root may be off in its last bit.
    """
    groups: list[Any] = [[(name, model.get_submodule(name)) for name in names[:2]] for names in fuse_list(model)]
    for (_, convolution), (name, norm) in groups:
        if not isinstance(norm, kind) or norm.running_mean is None or norm.running_var is None:
            continue
        zeros = torch.zeros_like(norm.running_var)
        bias, beta = (zeros if one is None else one for one in (convolution.bias, norm.bias))
        gamma = torch.ones_like(zeros) if norm.weight is None else norm.weight
        weight, mean, variance = convolution.weight.numpy(), norm.running_mean.numpy(), norm.running_var.numpy()
        factor = gamma.numpy() / np.sqrt(variance + np.float32(norm.eps))
        shift = (bias.numpy() - mean) * factor + beta.numpy()
        factor = factor.reshape(-1, *[1] * (weight.ndim - 1))
        convolution.weight = nn.Parameter(torch.from_numpy(weight * factor))
        convolution.bias = nn.Parameter(torch.from_numpy(shift))
        model.set_submodule(name, nn.Identity())
    return model


def lower_average_pools(model: nn.Module) -> nn.Module:
    """Return a copy in which every unpadded AvgPool2d is a depthwise convolution with constant weights.

    Integers with one scale on both sides tie when averaged: the mean of four lies half-way in one case of four, and
    every engine breaks ties its own way (measured on DenseNet-32: up to 8 LSB at the logits). A convolution rounds to
    a scale of its own, where ties do not happen. A weight of 1/K is exact in per-channel INT8: it sits on 127.
    """
    lowered = copy.deepcopy(model)
    for name, count in _channels_at_pools(lowered).items():
        pool: Any = lowered.get_submodule(name)
        conv = nn.Conv2d(count, count, pool.kernel_size, pool.stride, groups=count, bias=False).train(pool.training)
        nn.init.constant_(conv.weight, 1 / conv.weight[0].numel())
        conv.weight.requires_grad_(False)
        lowered.set_submodule(name, conv.to(next(lowered.parameters()).device))
    return lowered


def _channels_at_pools(model: nn.Module) -> dict[str, int]:
    """Return how many channels each unpadded average pooling sees. Raises WiringError."""
    modules, counts, seen = dict(model.named_modules()), dict[fx.Node, int](), dict[str, int]()
    for node in trace_modules(model).nodes:
        inputs = [counts[one] for one in node.all_input_nodes]
        module: Any = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, nn.AvgPool2d) and module.padding in (0, (0, 0)) and not module.ceil_mode:
            seen[str(node.target)] = inputs[0]
        members: Any = node.args[0] if node.target is torch.cat else ()
        joined = sum(counts[one] for one in members) or max(inputs, default=1)  # of the image: 1
        counts[node] = getattr(module, "out_channels", joined)
    return seen


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
