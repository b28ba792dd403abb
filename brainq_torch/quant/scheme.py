"""The quantization scheme: bit widths and scales that ONNX Runtime and TFLite carry exactly.

Every runtime computes real = scale * integer, sums products, and rounds to the next scale. With arbitrary scales those
sums round differently in each of them; a few activations in a million then fall on the other side of a rounding, and
sixty layers amplify that: on MobileNetV2 at 224 pixels half of all logits differed between PyTorch and ONNX Runtime, by
up to 3 steps, from the same integers. So scales lie on a grid where nothing is left to round differently: activation
scales are powers of two, weight scales have 6 significant bits. Float32's 24 bits then hold every sum below 2**18
steps exactly, in any order (largest seen on MobileNetV2: 178 000), and all runtimes give the same integers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

SMALLEST_SCALE = float(torch.finfo(torch.float32).eps)
"""Floor of every scale, torch.ao's: an all-zero channel or a dead activation must not divide by zero."""

_WEIGHT_SCALE_BITS = 6
_CLIP_SHARES = [share / 50 for share in range(20, 51)]
"""Shares of the largest weight that a clipped scale may end at."""
_CLIPPED = 1.25
"""A range up to this much wider than a power of two spans is clipped to it; a wider one gets the next.

Measured on MobileNetV2 (mean logit difference to float, 100 images): 0.205 with 1.25, 0.222 without clipping, 0.203
with rounding to the nearest power, which clips up to 1.41.
"""


WEIGHT_BITS = (2, 3, 4, 5, 6, 8)
"""The files hold 2 and 3 bits as 4, 5 and 6 as 8."""
LAYER_KINDS = ("first", "last", "depthwise")
"""Names in ``Scheme.exceptions`` that stand for every layer of a kind."""


@dataclass(frozen=True)
class Scheme:
    """How a network is quantized: weights symmetric per output channel, activations affine per tensor.

    Attributes:
        weight_bits: weights are integers in [-(2**(bits-1) - 1), 2**(bits-1) - 1]; one of ``WEIGHT_BITS``.
        activation_bits: activations are integers in [-128, 127]; 8.
        range_averaging: weight of the newest batch in an activation range's moving average, in (0, 1].
        exact_scales: scales on the grid that every runtime computes with exactly (see above); off, scales are free and
            runtimes agree only roughly.
        exceptions: weight bits of layers that differ, by name or by kind: ``first``, ``last`` (in running order),
            ``depthwise``. A name goes before a kind; of several kinds the most bits count.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    range_averaging: float = 0.01
    exact_scales: bool = True
    exceptions: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, bits in {"weight_bits": self.weight_bits, **self.exceptions}.items():
            if bits not in WEIGHT_BITS:
                raise ValueError(f"{what} is {bits}; allowed are {', '.join(map(str, WEIGHT_BITS))} bits")
        if self.activation_bits != 8:
            raise ValueError(f"activation_bits is {self.activation_bits}; allowed is 8, what integer kernels take")
        if not 0 < self.range_averaging <= 1:
            raise ValueError(f"range_averaging is {self.range_averaging}; allowed is more than 0 and at most 1")

    @property
    def largest_weight(self) -> int:
        """Largest weight integer of a layer that is no exception."""
        return largest_integer(self.weight_bits)

    def bits_of(self, name: str, kinds: Collection[str]) -> int:
        """Return the weight bits of a layer, which may be of several of ``LAYER_KINDS``."""
        if name in self.exceptions:
            return self.exceptions[name]
        return max((self.exceptions[kind] for kind in kinds if kind in self.exceptions), default=self.weight_bits)

    @property
    def largest_bias(self) -> int:
        """Largest bias in steps; int32 holds 2**31 of them, exact sums in float32 2**18, the products beside it."""
        return 2**17 if self.exact_scales else 2**30

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a checkpoint's ``quantization``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scheme:
        """Rebuild from ``to_json``'s data. Raises ValueError for keys that this version does not know."""
        unknown = set(data) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(f"unknown Scheme keys {sorted(unknown)}; this file was made by a newer brainq_torch")
        return cls(**data)


def largest_integer(bits: int) -> int:
    """Return the largest weight integer: 127 for 8 bits, 7 for 4. The range is symmetric, as TFLite demands."""
    return (1 << (bits - 1)) - 1


def held_bits(bits: int, inputs: int, grouped: bool) -> int:
    """Return the bits of a weight in a TFLite file: 8 for fewer, too, where LiteRT has no exact kernel for packed ones.

    inputs: how many weights each output channel has. grouped: a convolution of several groups, such as a depthwise one.
    """
    return 8 if bits > 4 or grouped or inputs % 2 else 4


def encode_range(low: Tensor, high: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    """Choose scale () float32 and zero point () int32 so that 256 integers span a range and one of them is zero.

    Same arithmetic as torch.ao's observers (``UniformQuantizationObserverBase._calculate_qparams``), shifted to int8.
    Exact: a power of two; what it spans more or less than the range, it does so at both ends in proportion.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / 255.0).clamp(min=SMALLEST_SCALE)
    zero_point = (-128.0 - torch.round(low / scale)).clamp(-128.0, 127.0).to(torch.int32)
    if exact:
        fraction, exponent = torch.frexp(scale)  # fraction in [0.5, 1)
        scale = torch.ldexp(torch.ones_like(scale), exponent - (fraction <= 0.5 * _CLIPPED).to(torch.int32))
    return scale, zero_point


def encode_weight(weight: Tensor, largest: int, exact: bool) -> Tensor:
    """Choose one scale per output channel, (C,), so that the channel's largest weight is the largest integer.

    Same arithmetic as torch.ao's MovingAveragePerChannelMinMaxObserver with averaging_constant=1, which has no memory.
    Exact: rounded up to 6 significant bits, at most 3.2 %, so that nothing is clipped.
    """
    scale = (weight.flatten(1).abs().amax(1) / float(largest)).clamp(min=SMALLEST_SCALE)
    if not exact:
        return scale
    return _encode_single(weight, largest) if weight[0].numel() == 1 else shorten(scale, torch.ceil)


def _encode_single(weight: Tensor, largest: int) -> Tensor:
    """Choose the scale of channels with one weight, on any integer of the upper half, to come within 0.2 % of it."""
    integers = torch.arange(largest // 2 + 1, largest + 1, device=weight.device)
    sizes = weight.reshape(-1, 1).abs()
    scales = shorten((sizes / integers).clamp(min=SMALLEST_SCALE), torch.round)
    best = (scales * integers - sizes).abs().argmin(1, keepdim=True)
    return scales.gather(1, best).squeeze(1)


def shorten(scale: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Round scales to 6 significant bits, by ``torch.round`` or ``torch.ceil``."""
    fraction, exponent = torch.frexp(scale)
    steps = 2.0**_WEIGHT_SCALE_BITS
    return torch.ldexp(rounding(fraction * steps) / steps, exponent)


def encode_weight_clipped(weight: Tensor, importance: Tensor, largest: int, exact: bool) -> Tensor:
    """Choose the scale (C,) per channel of (C, K) weights that makes the weighted rounding error least.

    ``importance``, (K,), is the mean square of the input that each weight multiplies: the error is then that of the
    layer's output, inputs taken as uncorrelated.
    """
    start = weight.abs().amax(1) / float(largest)
    best, least = encode_weight(weight, largest, exact), torch.full_like(start, torch.inf)
    for share in _CLIP_SHARES:
        scale = (start * share).clamp(min=SMALLEST_SCALE)
        scale = shorten(scale, torch.round) if exact else scale
        error = ((quantize_weight(weight, scale, largest) * scale[:, None] - weight) ** 2 * importance).sum(1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def raise_for_bias(scale: Tensor, bias: Tensor, input_scale: float, largest_bias: int) -> Tensor:
    """Raise, to powers of two, the weight scales (C,) of channels so weak that their bias would need too many steps."""
    needed = bias.abs() / (input_scale * largest_bias)
    _, exponent = torch.frexp(needed)
    return torch.where(needed > scale, torch.ldexp(torch.ones_like(scale), exponent), scale)


def quantize_weight(weight: Tensor, scale: Tensor, largest: int) -> Tensor:
    """Round weights (C, ...) float32 with scales (C,) float32 to integers (C, ...) int8."""
    steps = torch.round(weight / scale.reshape(-1, *[1] * (weight.dim() - 1)))
    return steps.clamp(-largest, largest).to(torch.int8)


def quantize_bias(bias: Tensor, input_scale: float, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Round biases (C,) to the int32 integers that the accumulator adds; return their scale, input x weight, too."""
    scale = weight_scale * torch.tensor(input_scale, dtype=torch.float32)
    # float64: an int32 does not fit in float32's 24 bits.
    return torch.round(bias.double() / scale.double()).to(torch.int32), scale
