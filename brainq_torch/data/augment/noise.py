"""Noise for whole batches, drawn where the images are: a value for each pixel is too much to send over."""

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_noise(shape: Sequence[int], device: torch.device, generator: torch.Generator) -> Tensor:
    """Draw standard normal values on ``device``, which the CPU generator alone decides for each kind of device."""
    if device.type == "cpu":
        return torch.randn(tuple(shape), generator=generator)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return torch.randn(tuple(shape), device=device, generator=torch.Generator(device).manual_seed(seed))
