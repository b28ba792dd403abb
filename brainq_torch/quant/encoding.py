"""Scale and zero point of one tensor, and the ways to choose them. Without PyTorch: to run a file needs none."""

from typing import Literal, NamedTuple

from brainq_torch.data.pixels import MIDDLE_GREY

CalibrationMethod = Literal["min_max", "percentile", "mse"]
"""How an activation's range is chosen from calibration images."""

RoundingMethod = Literal["nearest", "descent", "adaround"]
"""How weights of few bits are rounded."""

ROUNDING: RoundingMethod = "descent"


BiasCorrection = Literal["auto", "off", "on"]
"""Whether calibrated biases are corrected; ``auto``: where that leaves less noise in the logits of held-out images."""


class Encoding(NamedTuple):
    """Affine int8: real = scale * (integer - zero_point), integer in [-128, 127]; scale is a float32 value."""

    scale: float
    zero_point: int


INPUT_ENCODING = Encoding(1 / MIDDLE_GREY, 0)
"""The network's input: int8 is pixel - 128, so that quantizing it loses nothing (see ``data/pixels.py``)."""

UINT8_SHIFT = 128
"""What a uint8 integer and its zero point are more than the int8 ones of the same real value."""
