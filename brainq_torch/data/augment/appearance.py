"""Takes the look of a source off training images: other tone curves, other images' tones and textures, filters, decay.

Every change keeps what is where and changes how it looks, so that weighting, scanner and file format tell nothing about
the class. Each image of a batch gets its own draw from an explicit generator.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from brainq_torch.data.augment.noise import draw_noise
from brainq_torch.data.ranges import Probability

_LEVELS = 256
_BACKGROUND = 12  # grey levels up to here are air, whatever the weighting
_KNOTS = 33  # points at which the distribution of grey levels is described
_FILTER_SIDE = 5


@dataclass(frozen=True)
class StyleMixing:
    """How often each change is made; 0 switches it off.

    Args:
        tone: probability of a random curve over the head's grey levels, rising or bent, as between T1 and T2; after
            Zhou et al. 2021 (Models Genesis, arXiv:2004.07882), but over ranks, so that dark images bend as well.
        match: probability of taking the grey-level distribution of another image of the batch.
        fourier: probability of mixing in another image's low-frequency amplitudes (Yang & Soatto 2020,
            arXiv:2004.05498).
        filter: probability of a random filter (Xu et al. 2021, RandConv, arXiv:2007.13003), mixed with the image.
        bias: largest strength of a smooth brightness field, as a share of the brightness.
        blur: probability of a Gaussian blur or of halved to quartered resolution.
        ghosting: probability of ghosts, as of a head that moves (every few lines of k-space weakened).
        spike: probability of stripes across the image (a point added to k-space).
        noise: largest deviation of Rician noise, as a share of the full range.
    """

    tone: Probability = 0.0
    match: Probability = 0.0
    fourier: Probability = 0.0
    filter: Probability = 0.0
    bias: Probability = 0.0
    blur: Probability = 0.0
    ghosting: Probability = 0.0
    spike: Probability = 0.0
    noise: Probability = 0.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch, (N, 1, H, W) float32 in [-1, 1], as the CPU generator alone decides; shape and range stay."""
        if not any(getattr(self, name) for name in self.__dataclass_fields__):
            return images
        images = images + 1  # air is 0
        partner = torch.randint(1, max(2, len(images)), (1,), generator=generator).item()
        if self.fourier:
            mixed = mix_amplitudes(images, images.roll(int(partner), 0), generator)
            images = self._some(self.fourier, images, mixed, generator)
        if self.tone or self.match:
            images = self._retone(images, generator)
        if self.filter:
            images = self._some(self.filter, images, filter_randomly(images, generator), generator)
        if self.blur:
            images = self._some(self.blur, images, coarsen(images, generator), generator)
        if self.bias:
            images = images * bias_fields(images, self.bias, generator)
        for probability, change in ((self.ghosting, add_ghosts), (self.spike, add_spike)):
            chosen = torch.rand(len(images), generator=generator) < probability if probability else None
            if chosen is not None and chosen.any():
                chosen = chosen.to(images.device)
                images = images.clone()
                images[chosen] = change(images[chosen], generator)
        if self.noise:
            sigma = 2 * self.noise * _column(_uniform(images, generator) ** 2)
            draw = draw_noise((2, *images.shape), images.device, generator)
            images = torch.sqrt((images + sigma * draw[0]) ** 2 + (sigma * draw[1]) ** 2)
        return images.clamp(0, 2) - 1

    def _some(self, probability: float, images: Tensor, changed: Tensor, generator: torch.Generator) -> Tensor:
        chosen = _column(_uniform(images, generator) < probability)
        return torch.where(chosen, changed, images)

    def _retone(self, images: Tensor, generator: torch.Generator) -> Tensor:
        levels = (images * 128).round().clamp(0, _LEVELS - 1).long().flatten(1)
        ranks = rank_levels(levels)
        count = len(images)
        own = quantiles(ranks)
        other = own[torch.randperm(count, generator=generator).to(own.device)]
        target = torch.where(_uniform(images, generator, 1) < self.match, other, own)
        curved = random_curves(count, generator).to(own.device)
        target = torch.where(_uniform(images, generator, 1) < self.tone, curved, target)
        table = _interpolate(target, ranks)
        # Air stays air: the curve holds for the head only, and fades in above the darkest levels.
        level = torch.arange(_LEVELS, dtype=torch.float32, device=table.device)
        fade = ((level - _BACKGROUND) / _BACKGROUND).clamp(0, 1)
        table = level + fade * (table - level)
        return (table.gather(1, levels) / 128).view_as(images)


def rank_levels(levels: Tensor) -> Tensor:
    """Return what share of each head is darker than each grey level: (N, P) int64 -> (N, 256) float32 in [0, 1]."""
    count = len(levels)
    offset = levels + _LEVELS * torch.arange(count, device=levels.device).unsqueeze(1)
    histogram = torch.bincount(offset.flatten(), minlength=count * _LEVELS).view(count, _LEVELS).float()
    histogram[:, : _BACKGROUND + 1] = 0
    below = histogram.cumsum(1) - 0.5 * histogram
    return below / histogram.sum(1, keepdim=True).clamp(min=1)


def quantiles(ranks: Tensor) -> Tensor:
    """Invert ``rank_levels``: (N, 256) -> (N, 33) grey levels at equal steps of rank."""
    steps = torch.linspace(0.005, 0.995, _KNOTS, device=ranks.device).expand(len(ranks), _KNOTS).contiguous()
    return torch.searchsorted(ranks.contiguous(), steps).clamp(_BACKGROUND, _LEVELS - 1).float()


def random_curves(count: int, generator: torch.Generator) -> Tensor:
    """Draw curves from rank to grey level, (count, 33): half of them rising, half bent anyhow, all piecewise linear."""
    knots = torch.rand(count, 6, generator=generator)
    rising = knots.sort(1).values
    bent = torch.rand(count, 1, generator=generator) < 0.5
    knots = torch.where(bent, knots, rising)
    dark = 10 + 60 * torch.rand(count, 1, generator=generator)
    light = 120 + 135 * torch.rand(count, 1, generator=generator)
    curves = functional.interpolate(knots.unsqueeze(1), _KNOTS, mode="linear", align_corners=True).squeeze(1)
    return dark + (light - dark) * curves


def _interpolate(target: Tensor, ranks: Tensor) -> Tensor:
    """Read (N, 33) curves at (N, 256) ranks."""
    place = ranks.clamp(0, 1) * (_KNOTS - 1)
    low = place.floor().clamp(max=_KNOTS - 2)
    left, right = target.gather(1, low.long()), target.gather(1, low.long() + 1)
    return left + (place - low) * (right - left)


def mix_amplitudes(images: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """Take a share of the other images' amplitudes at the lowest frequencies, up to 1 to 8 cycles a side."""
    spectrum, foreign = torch.fft.rfft2(images), torch.fft.rfft2(others)
    height, width = images.shape[2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=images.device).abs().view(-1, 1)
    columns = torch.fft.rfftfreq(width, 1 / width, device=images.device).view(1, -1)
    reach = _column(1 + 7 * _uniform(images, generator))
    share = _column(_uniform(images, generator)) * (torch.maximum(rows, columns) <= reach)
    amplitude = spectrum.abs()
    mixed = torch.lerp(amplitude, foreign.abs(), share)
    changed: Tensor = torch.fft.irfft2(spectrum * (mixed / amplitude.clamp(min=1e-6)), s=(height, width))
    return changed.clamp(min=0)


def filter_randomly(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mix every image with its answer to two random filters and a rectifier, brought to its own mean and spread."""
    count, _, height, width = images.shape
    first = torch.randn(count, 1, _FILTER_SIDE, _FILTER_SIDE, generator=generator).to(images.device)
    second = torch.randn(count, 1, 3, 3, generator=generator).to(images.device)
    stacked = images.view(1, count, height, width)
    mean, deviation = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
    hidden = functional.conv2d(stacked - mean.view(1, count, 1, 1), first, padding=_FILTER_SIDE // 2, groups=count)
    hidden = functional.leaky_relu(hidden, 0.2)
    out = functional.conv2d(hidden, second, padding=1, groups=count).view(count, 1, height, width)
    out = (out - out.mean((2, 3), keepdim=True)) / out.std((2, 3), keepdim=True).clamp(min=1e-6) * deviation + mean
    share = _column(_uniform(images, generator))
    air = (images > _BACKGROUND / 128).float()
    return torch.lerp(images, out.clamp(0, 2) * air, share)


def coarsen(images: Tensor, generator: torch.Generator) -> Tensor:
    """Lower the resolution of the batch by one factor, 1.3 to 4, and bring it back to size."""
    factor = 1.3 + 2.7 * torch.rand(1, generator=generator).item() ** 2
    size = [max(8, round(side / factor)) for side in images.shape[2:]]
    small = functional.interpolate(images, size, mode="bilinear", antialias=True)
    return functional.interpolate(small, list(images.shape[2:]), mode="bilinear")


def add_ghosts(images: Tensor, generator: torch.Generator) -> Tensor:
    """Weaken every second to fifth k-space line but the middle ones (TorchIO's RandomGhosting, arXiv:2003.04696)."""
    along_columns = bool(torch.rand(1, generator=generator) < 0.5)
    if along_columns:
        images = images.transpose(2, 3)
    height = images.shape[2]
    lines = torch.fft.fftfreq(height, 1 / height, device=images.device).abs().view(1, 1, height, 1)
    period = _column(torch.randint(2, 6, (len(images),), generator=generator).to(images.device))
    strength = _column(_uniform(images, generator))
    weak = ((lines % period) < 0.5) & (lines > 0.01 * height)
    ghosts: Tensor = torch.fft.ifft2(torch.fft.fft2(images) * (1 - strength * weak)).abs()
    return ghosts.transpose(2, 3) if along_columns else ghosts


def add_spike(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add a point to k-space, up to as strong as its middle (TorchIO's RandomSpike, arXiv:2003.04696)."""
    count, _, height, width = images.shape
    spectrum = torch.fft.fft2(images)
    cycles = torch.randint(3, 26, (2, count), generator=generator)
    sign = 2 * torch.randint(0, 2, (2, count), generator=generator) - 1
    rows, columns = (cycles * sign).to(images.device)
    strength = _uniform(images, generator)
    each = torch.arange(count, device=images.device)
    spectrum[each, 0, rows % height, columns % width] += strength * spectrum[:, 0, 0, 0].abs()
    striped: Tensor = torch.fft.ifft2(spectrum).abs()
    return striped


def bias_fields(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Draw smooth brightness fields around 1, (N, 1, H, W)."""
    coarse = 2 * _uniform(images, generator, 1, 4, 4) - 1
    amount = _column(strength * _uniform(images, generator))
    return 1 + amount * functional.interpolate(coarse, list(images.shape[2:]), mode="bicubic", align_corners=True)


def _uniform(images: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
    """Draw (N, *shape) values from [0, 1) where the generator is, for the images' device."""
    return torch.rand(len(images), *shape, generator=generator).to(images.device)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
