"""Post-training quantization: choose each activation's range from a few un-augmented training images.

And correct biases, where that is asked: rounding shifts the mean of what a layer makes, its bias can take that back
(Nagel et al. 2019, arXiv:1906.04721, section 4.2, with means measured on images).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brainq_torch.quant.encoding import CalibrationMethod
from brainq_torch.quant.equalize import equalize, find_equal, noting_peaks
from brainq_torch.quant.fake_quantize import HIGHEST, LOWEST, fake_quantize
from brainq_torch.quant.layer_samples import make_batches, mean_of_positions, walk_inputs
from brainq_torch.quant.layers import (
    Layer,
    PrepareError,
    activation_quantizers,
    scheme_of,
    set_fake_quant,
    weighted_layers,
)
from brainq_torch.quant.prepare import finalize, move_bias, prepare_qat, set_activation_ranges
from brainq_torch.quant.scheme import Scheme, encode_range

_BINS = 2048
_PERCENTILE = 99.99
"""Share of an activation's values, in percent, that the percentile method keeps between its two ends."""
_TAIL = (100 - _PERCENTILE) / 200
"""Share that may be lost at each end."""
_ROW = 1024  # values that are passed over at once where none of them is among the kept
_CANDIDATES = np.linspace(0.3, 1.0, 71)
"""Shares of the full range that the MSE method tries."""

_BATCH = 8
_TO_CORRECT = 32
"""Images to take means over, at every position of each."""
_CARRIED = 0.5
"""Of what earlier layers moved, the share that a bias takes back where weights have few bits. With 8 it is mostly what
activations lose, which differs from image to image, and none is: noise of a plain MobileNetV2 on 512 held-out images in
another look, mean of two draws of calibration images, 0.088 with none of it, 0.096 with half, 0.100 with all."""


@dataclass(frozen=True)
class ValueHistogram:
    """Values of one activation over all images: (2048,) counts in equal bins; exact: for a power-of-two scale."""

    low: float
    high: float
    counts: NDArray[Any]
    exact: bool = False


@dataclass
class _Tails:
    """The smallest and the largest values of one activation, as many as the percentile method may clip and two more."""

    lowest: Tensor = field(default_factory=lambda: torch.empty(0))  # negated
    highest: Tensor = field(default_factory=lambda: torch.empty(0))
    total: int = 0

    def add(self, values: Tensor, images: int) -> None:
        """Take in a batch's values, (B, ...) of ``images`` in all."""
        whole = values[0].numel() * images
        kept = max(1, min(int(_TAIL * whole) + 2, whole // 2))
        rows = values.float().reshape(-1, math.gcd(values.numel(), _ROW))
        self.lowest = _keep_largest(self.lowest, rows, kept, -1)
        self.highest = _keep_largest(self.highest, rows, kept, 1)
        self.total += values.numel()

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return -self.lowest.max().item(), self.highest.max().item()

    def counts(self) -> Tensor:
        """Count both ends' values in the bins of a histogram; all between stand in one bin, where none is clipped."""
        parts = (-self.lowest, self.highest, -self.lowest.min())
        low, high, between = (torch.histc(part, _BINS, *self.ends).double() for part in parts)
        return low + high + between * (self.total - len(self.lowest) - len(self.highest))


def _keep_largest(kept: Tensor, rows: Tensor, count: int, sign: int) -> Tensor:
    """Return the ``count`` largest of what was kept before and of a batch's values times ``sign``.

    Most rows are passed over by their largest value alone: at least ``count`` values are as large as the rows' own.
    """
    largest = rows.amax(1) if sign > 0 else -rows.amin(1)
    if len(kept) == count:
        least = kept.min()
    elif len(largest) >= count:
        least = largest.topk(count, sorted=False).values.min()
        if least == largest.max():  # what a ReLU makes ends in as many zeros
            return least.expand(count)
        least = torch.nextafter(least, torch.tensor(-torch.inf))
    else:
        least = torch.tensor(-torch.inf)
    values = sign * rows[~(largest <= least)]  # not >, so that what is no number stays and is refused
    found = torch.cat([kept, values[~(values <= least)]])
    return found.topk(min(count, len(found)), sorted=False).values


def quantize_post_training(
    model: nn.Module,
    pixels: NDArray[Any],
    scheme: Scheme = Scheme(),  # noqa: B008  # frozen
    method: CalibrationMethod = "percentile",
    equal: bool = True,
) -> nn.Module:
    """Return a fake-quantized, calibrated, finalized copy of a float network.

    Args:
        model: The float network.
        pixels: (N, H, W) uint8 images to choose ranges on.
        scheme: Bits and scales.
        method: How ranges are chosen.
        equal: Make channels alike in strength (``equalize``); not for further training, to which each weight's size
            matters.
    """
    prepared = prepare_qat(model, scheme).eval()
    equals = find_equal(prepared) if equal else []
    with noting_peaks(prepared, equals) as peaks:
        ranges = choose_ranges(prepared, pixels, method)
    set_activation_ranges(prepared, equalize(prepared, equals, peaks, ranges))
    finalize(prepared)
    return prepared


def choose_ranges(
    prepared: nn.Module, pixels: NDArray[Any], method: CalibrationMethod = "percentile"
) -> dict[str, tuple[float, float]]:
    """Return {activation: (smallest, largest)} of (N, H, W) uint8 images. The bits of weights play no part.

    ``min_max`` keeps every value, ``percentile`` clips 0.01 % of them, ``mse`` clips where the squared error is least
    (Banner et al. 2019, arXiv:1810.05723). Raises ValueError without images and for other methods.
    """
    if method not in _CHOOSERS:
        raise ValueError(f"unknown calibration method {method!r}; allowed are {', '.join(_CHOOSERS)}")
    if len(pixels) == 0:
        raise ValueError("no images to calibrate with; at least one is needed, a few hundred are usual")
    batches = make_batches(pixels, _BATCH)
    histograms = collect_histograms(prepared, batches, tails=method != "mse")
    choose = _CHOOSERS[method]
    return {name: choose(histogram) for name, histogram in histograms.items()}


@torch.no_grad()
def correct_biases(network: Any, means: Mapping[str, Tensor], pixels: NDArray[Any], share: float = 1.0) -> None:
    """Let each bias, in running order and in place, take back by how much its layer's rounded weights move the mean.

    Args:
        network: Finalized; it stays so, on the int32 grid: a later layer sees what the corrected ones make.
        means: ``measure_means`` of the float network.
        pixels: (N, H, W) uint8; the first are taken, those of the means.
        share: Of all that is taken back.
    """
    carried = _share_carried(scheme_of(network))
    for layer, fed in _walk_means(network, pixels):
        weight = layer.module.weight_fake_quant(layer.weight)  # type: ignore[operator]  # a module of torch.ao
        plain, rounded = (layer.outputs(fed, one)[0] for one in (layer.weight, weight))
        shift = plain - rounded
        if carried:
            shift += carried * (means[layer.name] * network.equalization.get(layer.name, 1) - plain)
        move_bias(network, layer, share * shift)


@torch.no_grad()
def measure_means(model: nn.Module, scheme: Scheme, pixels: NDArray[Any]) -> dict[str, Tensor]:
    """Return {layer: mean output (O,)} of a float network, before the ReLU, over the first (N, H, W) images.

    Nothing, and no image runs, where ``correct_biases`` asks for none: for weights of 8 bits.
    """
    if not _share_carried(scheme):
        return {}
    reference = prepare_qat(model, scheme).eval()
    set_fake_quant(reference, False)
    return {layer.name: layer.outputs(fed)[0] for layer, fed in _walk_means(reference, pixels)}


def _share_carried(scheme: Scheme) -> float:
    return _CARRIED if scheme.weight_bits < Scheme().weight_bits else 0.0


def _walk_means(network: nn.Module, pixels: NDArray[Any]) -> Iterator[tuple[Layer, Tensor]]:
    """Yield each layer and what it is fed of the first images: the mean over all positions, (1, groups, K)."""
    layers, batches = weighted_layers(network), make_batches(pixels[:_TO_CORRECT], _BATCH)
    walk = walk_inputs(network, [layer.name for layer in layers], batches, mean_of_positions)
    return ((layer, rows.mean(0, keepdim=True)) for layer, (_, rows) in zip(layers, walk, strict=True))


@torch.no_grad()
def collect_histograms(
    prepared: nn.Module, batches: Sequence[Tensor], tails: bool = False
) -> dict[str, ValueHistogram]:
    """Histogram every activation but the input of the un-rounded network in two passes: ends, then bins.

    ``tails``: exact at both ends alone, as far as the percentile method clips, and half the time: one pass.
    """
    found: defaultdict[str, _Tails] = defaultdict(_Tails)
    counts: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(_BINS, dtype=torch.float64))
    images = sum(map(len, batches))

    def note_tails(name: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
        found[name].add(inputs[0], images)

    def note_counts(name: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
        counts[name] += torch.histc(inputs[0].float(), _BINS, *found[name].ends).double()

    exact = scheme_of(prepared).exact_scales
    training = prepared.training
    prepared.eval()
    set_fake_quant(prepared, False)
    try:
        for note in (note_tails,) if tails else (note_tails, note_counts):
            _run_noting(prepared, batches, note)
            for name, tail in found.items():
                if not np.isfinite(tail.ends).all():
                    raise PrepareError(f"{name} gives values that are not finite: weights are broken, or too large")
    finally:
        set_fake_quant(prepared, True)
        prepared.train(training)
    return {
        name: ValueHistogram(*tail.ends, (tail.counts() if tails else counts[name]).numpy(), exact)
        for name, tail in found.items()
    }


def _run_noting(prepared: nn.Module, batches: Sequence[Tensor], note: Callable[..., Any]) -> None:
    with ExitStack() as hooks:
        for name, one in activation_quantizers(prepared).items():
            if not one.fixed:
                hooks.enter_context(one.register_forward_pre_hook(partial(note, name)))
        for batch in batches:
            prepared(batch)


def _choose_percentile(histogram: ValueHistogram) -> tuple[float, float]:
    """Clip half of what may be lost at each end; an end that is zero (ReLU) stays."""
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    edges = np.linspace(histogram.low, histogram.high, _BINS + 1)
    low = edges[int(np.searchsorted(share, _TAIL, side="right"))] if histogram.low < 0 else histogram.low
    high = edges[min(_BINS, int(np.searchsorted(share, 1 - _TAIL)) + 1)]
    return float(low), float(high)


def _choose_mse(histogram: ValueHistogram) -> tuple[float, float]:
    edges = np.linspace(histogram.low, histogram.high, _BINS + 1)
    values, weights = (edges[:-1] + edges[1:]) / 2, histogram.counts  # of each bin the middle

    def error(candidate: tuple[float, float]) -> float:
        low, high = map(torch.tensor, candidate)
        scale, zero_point = encode_range(low, high, histogram.exact)
        rounded = fake_quantize(torch.from_numpy(values), float(scale), int(zero_point), LOWEST, HIGHEST).numpy()
        return float(np.sum(weights * (rounded - values) ** 2))

    candidates = [(float(histogram.low * share), float(histogram.high * share)) for share in _CANDIDATES[::-1]]
    return min(candidates, key=error)


_CHOOSERS: dict[str, Callable[[ValueHistogram], tuple[float, float]]] = {
    "min_max": lambda histogram: (histogram.low, histogram.high),
    "percentile": _choose_percentile,
    "mse": _choose_mse,
}
