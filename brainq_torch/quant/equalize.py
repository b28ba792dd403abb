"""Equalization: make the channels of an activation equally strong where that costs nothing.

An activation has one scale, set by its strongest channel; a channel a hundred times weaker is left with two integers.
A ReLU lets a positive factor through, and a depthwise convolution has a weight scale for every channel: so the layer
before may make a channel stronger and the depthwise convolution weaker again, and neither's weights are rounded more
coarsely (Nagel et al. 2019, arXiv:1906.04721, section 4.1, which balances both weights, as they have one scale each).
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from brainq_torch.quant.layers import FoldedConvBn2d, activation_quantizers

Peaks = dict[str, Tensor]
"""{activation: (N, C) largest value of every image and channel}."""

_SHARE = 0.99
"""Of images whose largest value keeps its place; of the others it is clipped."""
_WEAKEST = 2.0**-6
"""In parts of the strongest channel: one that calibration hardly sees may be stronger in other images."""
_HIGHEST = 255 * 2.0**-4
"""What every channel's peak becomes: all integers of a scale that is a power of two, none beyond."""


@contextmanager
def noting_peaks(network: nn.Module, readers: Mapping[str, str]) -> Iterator[Peaks]:
    """Note what depthwise convolutions read of all that runs through the network in the block: the peaks so far.

    readers: as ``brainq_torch.models.wiring.depthwise_readers`` finds them.
    """
    peaks, quantizers = Peaks(), activation_quantizers(network)

    def note(name: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
        found = inputs[0].amax((2, 3))
        peaks[name] = torch.cat([peaks[name], found]) if name in peaks else found

    with ExitStack() as hooks:
        for name in readers:
            hooks.enter_context(quantizers[name].register_forward_pre_hook(partial(note, name)))
        yield peaks


@torch.no_grad()
def equalize(network: Any, readers: Mapping[str, str], peaks: Peaks) -> dict[str, tuple[float, float]]:
    """Make channels equally strong, in place; without rounding the network computes what it did.

    Args:
        network: Prepared, neither trained nor finalized since; its attribute ``equalization`` says the factors
            afterwards, {layer: (C,)}.
        readers: {layer with a ReLU: the depthwise convolution that alone reads it}.
        peaks: Of the float network.

    Returns:
        {activation: (smallest, largest)} of those that were changed.
    """
    for name, reader in readers.items():
        typical = peaks[name].quantile(_SHARE, 0)
        if not (strongest := typical.max()) > 0:
            continue
        factor = _HIGHEST / typical.clamp(min=float(strongest) * _WEAKEST)
        _multiply_output(network.get_submodule(name), factor)
        weight = network.get_submodule(reader).weight
        weight.div_(factor.repeat_interleave(len(weight) // len(factor)).reshape(-1, 1, 1, 1))
        network.equalization[name] = factor
    return dict.fromkeys(network.equalization, (0.0, _HIGHEST))


def _multiply_output(module: Any, factor: Tensor) -> None:
    if isinstance(module, FoldedConvBn2d):
        module.bn.weight.mul_(factor)
        module.bn.bias.mul_(factor)
        return
    module.weight.mul_(factor.reshape(-1, 1, 1, 1))
    if module.bias is not None:
        module.bias.mul_(factor)
