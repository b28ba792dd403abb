"""Channels made equally strong: the same network, with all integers used in every channel."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub

from brainq_torch.quant import calibrate, low_bits
from brainq_torch.quant.calibrate import correct_biases, measure_means, quantize_post_training
from brainq_torch.quant.equalize import equalize, find_equal, noting_peaks
from brainq_torch.quant.layers import activation_quantizers, set_fake_quant
from brainq_torch.quant.low_bits import quantize_low_bits
from brainq_torch.quant.prepare import prepare_qat
from brainq_torch.quant.scheme import Scheme
from tests.support.small_network import SIDE, as_input, small_images, small_network

STRENGTH = torch.tensor([0.0, 0.06, 0.06, 0.1, 0.3, 1.0, 3.0, 3.0])


class Uneven(nn.Module):
    """Two depthwise convolutions, the second with two outputs a channel, behind channels from dead to strong."""

    def __init__(self, relu=nn.ReLU):
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), relu())
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), relu())
        self.point = nn.Sequential(nn.Conv2d(8, 8, 1), relu())
        self.twofold = nn.Conv2d(8, 16, 3, 1, 1, groups=8)
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 4)

    def forward(self, image):
        deep = self.twofold(self.point(self.depth(self.stem(self.quant(image)))))
        return self.dequant(self.classifier(torch.flatten(self.pool(deep), 1)))


@pytest.fixture
def uneven():
    torch.manual_seed(0)
    model = Uneven().eval()
    with torch.no_grad():
        model.stem[0].weight.abs_()
        model.stem[1].weight.copy_(STRENGTH)
        model.depth[0].weight.abs_().div_(STRENGTH.clamp(min=0.06).reshape(-1, 1, 1, 1))
        model.point[0].weight.abs_().mul_(STRENGTH.reshape(-1, 1, 1, 1))
    return model


def error(quantized, model, images):
    """Return the root mean square error of the logits."""
    with torch.no_grad():
        return (quantized(images) - model(images)).pow(2).mean().sqrt().item()


@pytest.mark.parametrize("small", [False, True])
def test_without_rounding_it_computes_what_it_did(uneven, small):
    """Behind depthwise and dense layers, a BatchNorm of its own, an addition, poolings and a linear layer."""
    images, model = as_input(small_images()), small_network() if small else uneven
    network = prepare_qat(model, Scheme()).eval()
    set_fake_quant(network, False)
    equals = find_equal(network)
    with noting_peaks(network, equals) as peaks:
        network(images)
    ranges = equalize(network, equals, peaks, dict.fromkeys(activation_quantizers(network), (-1.0, 1.0)))
    left = {"quant", "classifier"}
    assert network.equalization.keys() == ranges.keys() - left == activation_quantizers(network).keys() - left
    assert error(network, model, images) < 1e-5 * model(images).abs().max().item()
    assert {round(high - low, 5) for name, (low, high) in ranges.items() if name not in left} == {15.9375}


def test_factors_are_whole_for_depthwise_readers_half_for_dense_ones_one_for_few_bits(uneven):
    for bits, dense in ((8, 0.5), (4, 0.0)):
        network = prepare_qat(uneven, Scheme(weight_bits=bits, exceptions={"depthwise": 8}))
        shares = {equal.members[0]: equal.share for equal in find_equal(network)}
        assert shares == {"stem.0": 1.0, "point.0": 1.0, "depth.0": dense, "twofold": dense}


def test_a_weak_channel_gets_as_many_integers_as_a_strong_one(uneven):
    pixels = small_images()
    network, plain = (quantize_post_training(uneven, pixels, equal=equal) for equal in (True, False))
    for name in ("stem.0", "point.0"):
        most = {id(one): largest_integers(one, name, as_input(pixels)) for one in (network, plain)}
        assert most[id(plain)].min() < 20  # the dead channel and the weakest
        assert most[id(network)].kthvalue(2).values >= 220  # all but the dead one


def largest_integers(network, name, images):
    """Return the largest integer above the one that stands for 0, of each channel of an activation."""
    quantizer, found = activation_quantizers(network)[name], []
    with quantizer.register_forward_hook(lambda _, inputs, output: found.append(output.amax((0, 2, 3)))):
        network(images)
    return found[0] / quantizer.encoding.scale


def test_what_has_a_ceiling_is_left():
    network = quantize_post_training(Uneven(nn.ReLU6).eval(), small_images())
    assert network.equalization.keys() == {"twofold", "pool"}


def test_corrected_biases_aim_at_means_in_the_changed_size(uneven):
    pixels = small_images()
    network = quantize_post_training(uneven, pixels, Scheme(weight_bits=4))
    corrected = copy.deepcopy(network)
    correct_biases(corrected, measure_means(uneven, Scheme(weight_bits=4), pixels), pixels, share=1)
    images = as_input(pixels)
    with torch.no_grad():
        before, after, wanted = (one(images).mean(0) for one in (network, corrected, uneven))
    assert (after - wanted).abs().max() < 0.2 * (before - wanted).abs().max()


@pytest.mark.parametrize("module", [calibrate, low_bits])
def test_peaks_are_those_of_the_calibration_images_alone(monkeypatch, module):
    seen = []
    monkeypatch.setattr(module, "equalize", lambda *given: seen.append(given) or equalize(*given))
    black = np.zeros((2, SIDE, SIDE), np.uint8)
    {calibrate: quantize_post_training, low_bits: quantize_low_bits}[module](small_network(), black)
    prepared = prepare_qat(small_network(), Scheme()).eval()
    set_fake_quant(prepared, False)
    equals = find_equal(prepared)
    with noting_peaks(prepared, equals) as peaks, torch.no_grad():
        prepared(as_input(black))
    (_, _, found, _), *_ = seen
    assert found.keys() == peaks.keys()
    assert all(torch.equal(found[name], peaks[name]) for name in peaks)
