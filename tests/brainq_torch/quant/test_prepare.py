"""Fake quantization: equal to float when off, to torch.ao when on, and frozen for good when finalized."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

from brainq_torch.models import MODELS, build_model
from brainq_torch.models.wiring import shared_activation_groups
from brainq_torch.quant.calibrate import quantize_post_training
from brainq_torch.quant.fake_quantize import ActivationQuantizer, fake_quantize
from brainq_torch.quant.layers import (
    PrepareError,
    activation_quantizers,
    freeze_batchnorm,
    freeze_observers,
    is_fake_quantized,
    running_order,
    scheme_of,
    set_fake_quant,
    unfreeze,
    weighted_layers,
)
from brainq_torch.quant.prepare import check_finalized, finalize, prepare_qat, rebuild, set_activation_ranges
from brainq_torch.quant.scheme import Scheme, quantize_bias
from tests.support.small_network import SmallNetwork, as_input, small_images, small_network

FREE = Scheme(exact_scales=False)


@pytest.fixture(scope="module")
def float_model():
    return small_network()


@pytest.fixture(scope="module")
def images():
    return as_input(small_images())


@pytest.fixture
def calibrated(float_model):
    return quantize_post_training(float_model, small_images())


def ranges_of(model):
    return {name: (one.low.item(), one.high.item(), one.encoding) for name, one in activation_quantizers(model).items()}


def train_steps(model, images, steps, rate=1e-3):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for step in range(steps):
        optimizer.zero_grad()
        model(images[step % 3 :: 3]).square().mean().backward()
        optimizer.step()


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"densenet"}))  # that one has no shape of its own
def test_every_network_computes_the_same_with_rounding_off(name):
    torch.manual_seed(0)
    model = build_model(name).train()
    pictures = torch.rand(4, 1, 64, 64) * 2 - 1
    model(pictures)
    model.eval()
    prepared = prepare_qat(model, Scheme()).eval()
    set_fake_quant(prepared, False)
    assert (prepared(pictures) - model(pictures)).abs().max() <= 1e-5
    assert is_fake_quantized(prepared)
    assert not is_fake_quantized(model)


def test_activation_quantizer_gives_torch_aos_numbers():
    theirs = FakeQuantize(MovingAverageMinMaxObserver, 0, 255, dtype=torch.quint8, averaging_constant=0.1)
    ours = ActivationQuantizer(0.1, exact=False).train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        real = torch.randn(4, 3, 8, 8, generator=generator) + 0.3
        expected, found = theirs(real), ours(real)
        assert (ours.low, ours.high) == (theirs.activation_post_process.min_val, theirs.activation_post_process.max_val)
        assert ours.encoding == (theirs.scale.item(), theirs.zero_point.item() - 128)
        assert (expected - found).abs().max() <= 1e-6
    assert ours.low < 0 < ours.high


def test_gradient_is_torch_aos():
    real = torch.linspace(-3, 3, 1001)
    ours, theirs = real.clone().requires_grad_(), real.clone().requires_grad_()
    fake_quantize(ours, 0.013, -20, -128, 127).sum().backward()
    torch.fake_quantize_per_tensor_affine(theirs, 0.013, -20, -128, 127).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
    assert 0 < ours.grad.sum() < 1001


def test_rounding_literals():
    real = torch.tensor([-10.0, -0.25, 0.25, 0.75, 1.25, 10.0])
    # Ties go to even; the ends clip at (-8 - 2) * 0.5 and (7 - 2) * 0.5.
    assert fake_quantize(real, 0.5, 2, -8, 7).tolist() == [-5.0, 0.0, 0.0, 1.0, 1.0, 2.5]


@torch.no_grad()
def test_validation_does_not_move_a_range(float_model, images):
    prepared = prepare_qat(float_model, Scheme())
    prepared(images)
    before = ranges_of(prepared)
    prepared.eval()(images * 100)
    assert ranges_of(prepared) == before
    prepared.train()(images * 100)
    assert ranges_of(prepared) != before


@torch.no_grad()
def test_frozen_ranges_and_batchnorm_stay_in_training_mode(float_model, images):
    prepared = prepare_qat(float_model, Scheme())
    prepared(images)
    freeze_observers(prepared)
    freeze_batchnorm(prepared)
    prepared(images)  # weight scales follow the statistics as they were frozen
    before = copy.deepcopy(prepared.state_dict())
    prepared.train()(images * 100)
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())


@torch.no_grad()
def test_batchnorm_with_zero_gain_is_folded_without_dividing_by_it(float_model, images):
    model = copy.deepcopy(float_model)
    model.stem[1].weight[2] = 0.0
    prepared = quantize_post_training(model, small_images())
    assert torch.isfinite(prepared(images)).all()


@torch.no_grad()
def test_groups_share_one_encoding_that_spans_them_all(calibrated):
    quantizers = activation_quantizers(calibrated)
    for names in shared_activation_groups(SmallNetwork())[:1]:
        members = [quantizers[name] for name in names]
        assert len({member.encoding for member in members}) == 1
        assert members[0].encoding.scale * 255 * 1.25 >= max(member.high for member in members)
    assert len({quantizer.encoding for quantizer in quantizers.values()}) > 3


def test_running_order_and_layers(calibrated):
    order = ["quant", "stem.0", "depth.0", "point.0", "add", "norm", "down", "pool", "classifier"]
    assert running_order(calibrated) == order
    layers = {layer.name: (layer.source, layer.relu, layer.weight.shape[0]) for layer in weighted_layers(calibrated)}
    assert layers == {
        "stem.0": ("quant", True, 8), "depth.0": ("stem.0", True, 8), "point.0": ("depth.0", False, 8),
        "norm": ("add", True, 8), "down": ("norm", False, 8), "classifier": ("pool", False, 4),
    }  # fmt: skip


@torch.no_grad()
def test_finalized_network_holds_what_the_files_hold(calibrated, images):
    quantizers = activation_quantizers(calibrated)
    for layer in weighted_layers(calibrated):
        steps, scale = quantize_bias(layer.bias, quantizers[layer.source].encoding.scale, layer.weight_scale)
        module = calibrated.get_submodule(layer.name)
        rounded = module.weight_fake_quant.round_bias(layer.bias)
        assert torch.equal(rounded, steps * scale)
        assert steps.abs().max() <= 2**17
    before = copy.deepcopy(calibrated.state_dict())
    expected = calibrated(images)
    finalize(calibrated)
    assert all(torch.equal(value, before[name]) for name, value in calibrated.state_dict().items())
    assert torch.equal(calibrated(images), expected)


@torch.no_grad()
def test_state_dict_rebuilds_the_network_to_the_bit(calibrated, images):
    again = rebuild(SmallNetwork(), scheme_of(calibrated).to_json())
    again.load_state_dict(calibrated.state_dict())
    check_finalized(again)
    assert torch.equal(again(images), calibrated(images))


def test_resumed_training_is_the_uninterrupted_one(float_model, images):
    whole = prepare_qat(float_model, Scheme(range_averaging=0.3))
    train_steps(whole, images, 2)
    resumed = prepare_qat(SmallNetwork(), Scheme(range_averaging=0.3))
    resumed.load_state_dict(whole.state_dict())
    for model in (whole, resumed):
        freeze_batchnorm(model)
        train_steps(model, images, 3)
        finalize(model)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_a_finalized_network_can_train_again(calibrated, images):
    with pytest.raises(PrepareError, match="training mode"):
        check_finalized(calibrated.train())
    unfreeze(calibrated)
    with pytest.raises(PrepareError, match="still observe"):
        check_finalized(calibrated.eval())
    before = weighted_layers(calibrated)[0].weight_scale.clone()
    train_steps(calibrated.train(), images, 3, rate=0.1)
    finalize(calibrated)
    check_finalized(calibrated)
    assert not torch.equal(weighted_layers(calibrated)[0].weight_scale, before)


def test_the_largest_weight_still_learns(calibrated, images):
    unfreeze(calibrated)
    freeze_batchnorm(calibrated)
    calibrated(images).square().mean().backward()
    gradient = calibrated.classifier.weight.grad
    largest = calibrated.classifier.weight.abs().argmax(1)
    assert (gradient.gather(1, largest[:, None]) != 0).all()


def test_refusals(float_model, calibrated):
    with pytest.raises(PrepareError, match="quantized already"):
        prepare_qat(calibrated, Scheme())
    with pytest.raises(PrepareError, match="has no QuantStub"):
        prepare_qat(nn.Linear(2, 2), Scheme())
    with pytest.raises(PrepareError, match="is a float network"):
        scheme_of(float_model)
    fresh = prepare_qat(float_model, Scheme())
    with pytest.raises(PrepareError, match=r"no range was observed or set for .*stem\.0.* calibrate first"):
        finalize(fresh)
    with pytest.raises(PrepareError, match="no activation is named 'stem'"):
        set_activation_ranges(fresh, {"stem": (0, 1)})
    with pytest.raises(PrepareError, match=r"the range of stem.0 is \[2, 1\]"):
        set_activation_ranges(fresh, {"stem.0": (2, 1)})


def test_a_diverged_weight_is_named(calibrated):
    with torch.no_grad():
        calibrated.classifier.weight[0, 0] = torch.nan
    with pytest.raises(PrepareError, match="layer classifier has weights or biases that are not finite"):
        finalize(calibrated)
