"""The quantization scheme: bit widths and ranges that ONNX Runtime and TFLite carry exactly."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from brainq_torch.data.pixels import MIDDLE_GREY

SMALLEST_SCALE = float(torch.finfo(torch.float32).eps)
"""Floor of every scale, torch.ao's: an all-zero channel or a dead activation must not divide by zero."""

LARGEST_BIAS = 2**30
"""Largest bias in steps of input scale x weight scale. int32 holds twice that: the rest is left to the accumulator."""


class Encoding(NamedTuple):
    """Affine int8 quantization of one tensor: real = scale * (integer - zero_point), integer in [-128, 127].

    scale: a float32 value, held exactly in a Python float.
    """

    scale: float
    zero_point: int


INPUT_ENCODING = Encoding(1 / MIDDLE_GREY, 0)
"""The network's input: int8 is pixel - 128, so that quantizing it loses nothing (see ``data/pixels.py``)."""


@dataclass(frozen=True)
class Scheme:
    """How a network is quantized: weights symmetric per output channel, activations affine per tensor.

    weight_bits: weights are integers in [-(2**(bits-1) - 1), 2**(bits-1) - 1]; 8 or 4.
    activation_bits: activations are integers in [-128, 127]; 8.
    range_averaging: weight of the newest batch in an activation range's moving average, in (0, 1].
    """

    weight_bits: int = 8
    activation_bits: int = 8
    range_averaging: float = 0.01

    def __post_init__(self) -> None:
        if self.weight_bits not in (4, 8):
            raise ValueError(f"weight_bits is {self.weight_bits}; allowed are 4 and 8")
        if self.activation_bits != 8:
            raise ValueError(f"activation_bits is {self.activation_bits}; allowed is 8, what integer kernels take")
        if not 0 < self.range_averaging <= 1:
            raise ValueError(f"range_averaging is {self.range_averaging}; allowed is more than 0 and at most 1")

    @property
    def largest_weight(self) -> int:
        """Largest weight integer: 127 for 8 bits, 7 for 4. The range is symmetric, as TFLite demands."""
        return (1 << (self.weight_bits - 1)) - 1

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a checkpoint's ``quantization``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scheme:
        """Rebuild from ``to_json``'s data. Raises ValueError on keys this version does not know."""
        unknown = set(data) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(f"unknown Scheme keys {sorted(unknown)}; this file was made by a newer brainq_torch")
        return cls(**data)


def encode_range(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Choose scale and zero point so that 256 integers span a range of reals, zero being one of them exactly.

    low, high: () float32, low <= high. Returns scale () float32 and zero point () int32 in [-128, 127].
    Same arithmetic as torch.ao's observers (``UniformQuantizationObserverBase._calculate_qparams``), shifted to int8.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / 255.0).clamp(min=SMALLEST_SCALE)
    zero_point = (-128.0 - torch.round(low / scale)).clamp(-128.0, 127.0)
    return scale, zero_point.to(torch.int32)


def encode_weight(weight: Tensor, largest: int) -> Tensor:
    """Choose one scale per output channel so that the channel's largest weight is the largest integer.

    weight: (C, ...) float32. largest: ``Scheme.largest_weight``. Returns (C,) float32.
    Same arithmetic as torch.ao's MovingAveragePerChannelMinMaxObserver with averaging_constant=1: no memory, so that
    max|w| = largest * scale holds for the weights that are written, and any min-max quantizer finds this scale again.
    """
    return (weight.flatten(1).abs().amax(1) / float(largest)).clamp(min=SMALLEST_SCALE)


def quantize_weight(weight: Tensor, scale: Tensor, largest: int) -> Tensor:
    """Round weights to integers. weight: (C, ...) float32, scale: (C,) float32. Returns (C, ...) int8."""
    steps = torch.round(weight / scale.reshape(-1, *[1] * (weight.dim() - 1)))
    return steps.clamp(-largest, largest).to(torch.int8)


def quantize_bias(bias: Tensor, input_scale: float, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Round biases to the integers that the accumulator adds.

    bias, weight_scale: (C,) float32. Returns (C,) int32 and its scale, input scale x weight scale, (C,) float32.
    """
    scale = weight_scale * torch.tensor(input_scale, dtype=torch.float32)
    # float64: an int32 does not fit in float32's 24 bits.
    return torch.round(bias.double() / scale.double()).to(torch.int32), scale
