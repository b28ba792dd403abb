"""Train-only random changes of a batch: one affine and one intensity change per image, from an explicit generator."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from brainq_torch.data.augment.noise import draw_noise
from brainq_torch.data.ranges import Amount, Probability, Share


@dataclass(frozen=True)
class Augmentation:
    """How far images are changed. Every image of a batch gets its own draw; zero switches a change off.

    Args:
        flip: probability of mirroring left-right.
        rotation_degrees: largest rotation either way.
        zoom: largest relative change of size (0.1: 90 to 110 %).
        shift: largest move along each axis, as a share of the side.
        contrast: largest relative change of contrast around middle grey.
        brightness: largest change of brightness, as a share of the full range.
        gamma: largest exponent of a gamma change, drawn log-uniformly from [1 / (1 + gamma), 1 + gamma].
        noise: largest standard deviation of Gaussian noise, as a share of the full range.
        turn: probability of turning by a quarter, a half or three quarters, too, as files without orientation come.
    """

    flip: Probability = 0.5
    rotation_degrees: Amount = 15.0
    zoom: Share = 0.1
    shift: Probability = 0.05
    contrast: Probability = 0.2
    brightness: Probability = 0.1
    gamma: Amount = 0.0
    noise: Probability = 0.0
    turn: Probability = 0.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch, (N, 1, H, W) float32 in [-1, 1], as the CPU generator alone decides; shape and range stay."""
        return self._change_intensity(self._change_geometry(images, generator), generator)

    def _change_geometry(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Sample each image through one affine map; what comes from outside the frame is black (-1)."""
        count = len(images)
        angle = math.radians(self.rotation_degrees) * _symmetric(count, generator)
        if self.turn:
            turned = torch.rand(count, generator=generator) < self.turn
            angle = angle + turned * torch.randint(1, 4, (count,), generator=generator) * (math.pi / 2)
        scale = 1 / (1 + self.zoom * _symmetric(count, generator))
        mirror = torch.where(torch.rand(count, generator=generator) < self.flip, -1.0, 1.0)
        shift = 2 * self.shift * torch.stack([_symmetric(count, generator), _symmetric(count, generator)], dim=1)
        cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
        rows = [torch.stack([mirror * cosine, -sine], dim=1), torch.stack([mirror * sine, cosine], dim=1)]
        theta = torch.cat([torch.stack(rows, dim=1), shift.unsqueeze(2)], dim=2).to(images.device)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        # grid_sample pads with zeros: shifted by one, zero is black
        return functional.grid_sample(images + 1, grid, mode="bilinear", align_corners=False) - 1

    def _change_intensity(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count = len(images)

        def per_image(values: Tensor) -> Tensor:
            return values.view(count, 1, 1, 1).to(images.device)

        exponent = per_image((1 + self.gamma) ** _symmetric(count, generator))
        gain = per_image(1 + self.contrast * _symmetric(count, generator))
        offset = per_image(2 * self.brightness * _symmetric(count, generator))
        if self.gamma:
            images = 2 * ((images + 1) / 2).clamp(min=0) ** exponent - 1
        images = images * gain + offset
        if self.noise:
            deviation = per_image(2 * self.noise * torch.rand(count, generator=generator))
            images = images + deviation * draw_noise(images.shape, images.device, generator)
        return images.clamp(-1, 1)


def _symmetric(count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` values uniformly from [-1, 1)."""
    return 2 * torch.rand(count, generator=generator) - 1
