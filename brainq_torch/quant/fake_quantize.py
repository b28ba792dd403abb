"""The two quantizers inside a fake-quantized network: one for activations, one for weights.

They give torch.ao's numbers (``FakeQuantize`` with moving-average observers; the tests hold them against it). Three
things differ. Validation does not move a range, as it would in torch.ao. Quantizers can share one encoding. And
training is faster: torch's own CPU kernel takes 24 ms for 5 million values, forward and back, where this takes 9.
Everything is int8: torch's quint8 with zero point z is int8 with zero point z - 128.
"""

from typing import Any

import torch
from torch import Tensor, nn

from brainq_torch.quant.encoding import Encoding
from brainq_torch.quant.scheme import encode_range, encode_weight

LOWEST, HIGHEST = -128, 127

TIE_BREAK = 2.0**-12
"""In steps: more than float32 loses on a mean, less than any mean that is not half-way lies from half-way."""


class _StraightThrough(torch.autograd.Function):
    """Round to a grid; the gradient passes where nothing was clipped (arXiv:1308.3432; arXiv:1712.05877, section 3)."""

    @staticmethod
    def forward(ctx: Any, real: Tensor, scale: float, lowest: int, highest: int) -> Tensor:
        ctx.save_for_backward(real)  # kept by the operation before it anyway: no more memory
        ctx.limits = (lowest - 0.5) * scale, (highest + 0.5) * scale
        return (real / scale).round_().clamp_(lowest, highest).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (real,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], real, *ctx.limits), None, None, None


def fake_quantize(real: Tensor, scale: float, zero_point: int, lowest: int, highest: int) -> Tensor:
    """Divide, round to even, shift, clamp, in the order of ONNX's QuantizeLinear; differentiable (straight-through)."""
    # Clipping before the shift gives the same, and leaves the shift out.
    result: Tensor = _StraightThrough.apply(real, scale, lowest - zero_point, highest - zero_point)
    return result


class _Switchable(nn.Module):
    """A quantizer whose observing can be switched off; the switch travels in the state dict."""

    observer_enabled: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("observer_enabled", torch.tensor(1, dtype=torch.uint8))
        self.quantizing = True

    def observe(self, enabled: bool) -> None:
        """Let the range follow the data, or freeze it."""
        self.observer_enabled.fill_(int(enabled))

    @property
    def observing(self) -> bool:
        """Whether the range follows the data."""
        return bool(self.observer_enabled)


class ActivationQuantizer(_Switchable):
    """Quantize an activation, affine per tensor, to a moving average of its range, or to ``fixed``.

    ``group``: every quantizer that shares this one's encoding, itself included; it spans all their ranges.
    """

    low: Tensor
    high: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, averaging: float, exact: bool, fixed: Encoding | None = None) -> None:
        super().__init__()
        self.averaging, self.exact = averaging, exact
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))
        start = fixed or Encoding(1.0, 0)
        self.register_buffer("scale", torch.tensor(start.scale))
        self.register_buffer("zero_point", torch.tensor(start.zero_point, dtype=torch.int32))
        self.group: list[ActivationQuantizer] = [self]
        self.fixed = fixed is not None
        if self.fixed:
            self.observe(False)

    @property
    def encoding(self) -> Encoding:
        """Scale and int8 zero point as numbers."""
        return Encoding(float(self.scale), int(self.zero_point))

    def forward(self, activation: Tensor) -> Tensor:
        """Return the activation rounded to its grid; in training mode, move the range first unless it is frozen."""
        if self.observing and self.training:
            self._follow(activation.detach())
        if not self.quantizing:
            return activation
        return self._round(activation)

    def _round(self, activation: Tensor) -> Tensor:
        return fake_quantize(activation, *self.encoding, LOWEST, HIGHEST)

    def refresh(self) -> None:
        """Recompute the encoding from the ranges of the whole group."""
        if self.fixed:
            return
        low = torch.stack([member.low for member in self.group]).amin()
        high = torch.stack([member.high for member in self.group]).amax()
        scale, zero_point = encode_range(low, high, self.exact)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    @torch.no_grad()
    def _follow(self, activation: Tensor) -> None:
        low, high = torch.aminmax(activation)
        first = torch.isinf(self.low)
        self.low.copy_(torch.where(first, low, self.low + self.averaging * (low - self.low)))
        self.high.copy_(torch.where(first, high, self.high + self.averaging * (high - self.high)))
        self.refresh()


class MeanQuantizer(ActivationQuantizer):
    """Quantize a mean over pixels: one half-way between two integers goes to the one farther from integer 0.

    That is how LiteRT rounds MEAN. Of an even number of integers on one scale the mean is half-way in one case of 4
    (2 x 2 pixels) to 64 (8 x 8), and rounding to even there put 12 to 69 % of a network's logits one step apart.
    """

    def _round(self, activation: Tensor) -> Tensor:
        return super()._round(break_ties(activation, self.encoding))


def break_ties(mean: Tensor, encoding: Encoding) -> Tensor:
    """Move means of under 2048 values ``TIE_BREAK`` steps away from integer 0, so that halves round away from it."""
    scale, zero_point = encoding
    return mean + torch.sign(mean + zero_point * scale) * (TIE_BREAK * scale)


class WeightQuantizer(_Switchable):
    """Quantize a weight, symmetric per output channel, always to the range of the weight at hand."""

    scale: Tensor
    bias_scale: Tensor

    def __init__(self, largest: int, exact: bool) -> None:
        super().__init__()
        self.largest, self.exact = largest, exact
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("bias_scale", torch.ones(1))

    def size_to(self, weight: Tensor) -> None:
        """Give the scale one entry per output channel of this weight."""
        self.scale = self._encode(weight)
        self.bias_scale = torch.ones_like(self.scale)

    def settle(self, scale: Tensor, bias_scale: Tensor) -> None:
        """Keep these scales from here: the weight's, and the one that the layer's bias is rounded to. (C,) float32."""
        self.scale.copy_(scale)
        self.bias_scale.copy_(bias_scale)
        self.observe(False)

    def round_bias(self, bias: Tensor) -> Tensor:
        """Return the bias as the integer files hold it, once ``settle`` was called; until then as it is."""
        return bias if self.observing else torch.round(bias / self.bias_scale) * self.bias_scale

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight rounded to its grid."""
        if self.observing:
            self.scale.copy_(self._encode(weight))
        if not self.quantizing:
            return weight
        scale = self.scale.reshape(-1, *[1] * (weight.dim() - 1))
        return fake_quantize(weight / scale, 1.0, 0, -self.largest, self.largest) * scale

    def _encode(self, weight: Tensor) -> Tensor:
        return encode_weight(weight.detach(), self.largest, self.exact)
