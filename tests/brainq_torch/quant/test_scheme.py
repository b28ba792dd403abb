"""Scales: torch.ao's numbers off the grid, exact arithmetic on it."""

import numpy as np
import pytest
import torch
from torch.ao.quantization import MinMaxObserver, MovingAveragePerChannelMinMaxObserver

from brainq_torch.quant.encoding import INPUT_ENCODING
from brainq_torch.quant.scheme import (
    Scheme,
    encode_range,
    encode_weight,
    quantize_bias,
    quantize_weight,
    raise_for_bias,
)


def test_input_holds_every_pixel_exactly():
    scale, zero_point = INPUT_ENCODING
    pixels = torch.arange(256)
    assert torch.equal(torch.round((pixels - 128) / 128 / scale) + zero_point, (pixels - 128).float())


def test_scheme_survives_json_and_refuses_what_it_does_not_know():
    scheme = Scheme(weight_bits=4, range_averaging=0.1, exact_scales=False)
    assert Scheme.from_json(scheme.to_json()) == scheme
    assert (Scheme().largest_weight, scheme.largest_weight) == (127, 7)
    with pytest.raises(ValueError, match=r"unknown Scheme keys \['rounding'\]"):
        Scheme.from_json({"rounding": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_bits": 7}, "allowed are 2, 3, 4, 5, 6, 8 bits"),
        ({"activation_bits": 16}, "allowed is 8"),
        ({"range_averaging": 0.0}, "more than 0"),
        ({"range_averaging": 1.5}, "at most 1"),
    ],
)
def test_schemes_that_no_runtime_carries_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scheme(**arguments)


RANGES = [(-1.7, 3.3), (0.0, 21.25), (-5.0, 0.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0), (-1e-9, 1e-9), (-0.01, 250.0)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_free_encoding_is_torch_aos(low, high):
    observer = MinMaxObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine)
    observer(torch.tensor([low, high]))
    scale, zero_point = observer.calculate_qparams()
    ours = encode_range(torch.tensor(low), torch.tensor(high), exact=False)
    assert (ours[0].item(), ours[1].item()) == (scale.item(), zero_point.item() - 128)


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_exact_encoding_is_the_next_power_of_two(low, high):
    scale, zero_point = (part.item() for part in encode_range(torch.tensor(low), torch.tensor(high), exact=True))
    fraction, _ = torch.frexp(torch.tensor(scale))
    assert fraction == 0.5
    span = max(high, 0.0) - min(low, 0.0)
    assert 255 * scale * 1.25 >= span * (1 - 1e-6)
    assert 255 * scale < 2 * span or span < 1e-3  # and no wider than it must be
    assert -128 <= zero_point <= 127
    if low >= 0:
        assert zero_point == -128  # ReLU: no integer is spent on what cannot occur


def test_exact_encoding_literals():
    # 255 steps of 1/8 reach 31.875; up to 1.25 times that is clipped, more doubles the scale.
    for high, expected in ((31.875, 1 / 8), (39.8, 1 / 8), (39.9, 1 / 4), (16.0, 1 / 16)):
        scale, _ = encode_range(torch.tensor(0.0), torch.tensor(high), exact=True)
        assert scale.item() == expected, high
    # Room and clipping go to both ends in proportion: a range centred on zero stays centred.
    _, zero_point = encode_range(torch.tensor(-1.0), torch.tensor(1.0), exact=True)
    assert abs(zero_point.item()) <= 1


def _weights(channels=64, *shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(channels, *shape, generator=generator) * torch.rand(
        channels, *[1] * len(shape), generator=generator
    )


def test_free_weight_scale_is_torch_aos():
    weight = _weights(64, 16, 3, 3)
    observer = MovingAveragePerChannelMinMaxObserver(
        averaging_constant=1.0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-127, quant_max=127
    )
    observer(weight)
    assert torch.equal(encode_weight(weight, 127, exact=False), observer.calculate_qparams()[0])


@pytest.mark.parametrize("largest", [127, 7])
def test_largest_weight_is_the_largest_integer_and_min_max_finds_the_free_scale_again(largest):
    weight = _weights(64, 16, 3, 3)
    scale = encode_weight(weight, largest, exact=False)
    integers = quantize_weight(weight, scale, largest)
    assert (integers.abs().amax((1, 2, 3)) == largest).all()
    written = integers * scale.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(encode_weight(written, largest, exact=False), scale, rtol=2e-7, atol=0)
    assert torch.equal(quantize_weight(written, scale, largest), integers)


def test_exact_weight_scale_has_six_bits_and_clips_nothing():
    weight = _weights(512, 16)
    scale = encode_weight(weight, 127, exact=True)
    fraction, _ = torch.frexp(scale)
    assert torch.equal(fraction * 64, torch.round(fraction * 64))
    used = weight.abs().amax(1) / (127 * scale)
    assert used.min() > 1 / (1 + 1 / 32)
    assert used.max() <= 1
    assert quantize_weight(weight, scale, 127).abs().amax(1).min() >= 123


def test_a_channels_only_weight_is_hit_within_two_thousandths():
    weight = _weights(512, 1, 1, 1)
    scale = encode_weight(weight, 127, exact=True)
    integers = quantize_weight(weight, scale, 127)
    torch.testing.assert_close(integers * scale.reshape(-1, 1, 1, 1), weight, rtol=2e-3, atol=0)
    quarter = torch.full((1, 1, 1, 1), 0.25)
    scale = encode_weight(quarter, 127, exact=True)
    assert quantize_weight(quarter, scale, 127).item() * scale.item() == 0.25


def test_exact_scales_make_float32_sums_exact_in_any_order():
    generator = np.random.default_rng(0)
    steps = generator.integers(-127, 128, 960), generator.integers(-128, 128, 960)
    weight = _weights(1, 960)

    def sums(exact):
        """Every sum that float32 gives when the products are added one by one, in twenty orders."""
        scale = encode_weight(weight, 127, exact).item(), encode_range(weight.min(), weight.max(), exact)[0].item()
        products = np.multiply(
            *(part.astype(np.float32) * np.float32(size) for part, size in zip(steps, scale, strict=True))
        )
        return {np.cumsum(generator.permutation(products), dtype=np.float32)[-1] / np.prod(scale) for _ in range(20)}

    assert sums(exact=True) == {np.dot(*steps)}
    assert len(sums(exact=False)) > 1  # this is what flips roundings between runtimes


def test_biases_are_rounded_to_input_scale_times_weight_scale():
    steps, scale = quantize_bias(torch.tensor([1.0, -0.3, 0.0]), 0.5, torch.tensor([0.01, 0.1, 1.0]))
    assert steps.tolist() == [200, -6, 0]
    assert steps.dtype == torch.int32
    assert torch.equal(scale, torch.tensor([0.01, 0.1, 1.0]) * 0.5)


def test_weak_channels_get_a_scale_that_their_bias_fits():
    scale, bias = torch.tensor([1e-7, 0.01]), torch.tensor([5.0, 5.0])
    raised = raise_for_bias(scale, bias, 0.25, Scheme().largest_bias)
    assert raised[1] == scale[1]
    steps, _ = quantize_bias(bias, 0.25, raised)
    assert 2**16 < steps[0].abs() <= 2**17
    assert torch.frexp(raised)[0][0] == 0.5
