import numpy as np
import pytest
import torch

from brainq_torch.data.pixels import scale_pixels
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.models import build_model
from brainq_torch.quant.calibrate import (
    _CHOOSERS,
    ValueHistogram,
    _keep_largest,
    choose_ranges,
    collect_histograms,
    quantize_post_training,
)
from brainq_torch.quant.layers import PrepareError, activation_quantizers, unfreeze
from brainq_torch.quant.prepare import check_finalized, prepare_qat
from brainq_torch.quant.scheme import Scheme


@pytest.fixture(scope="module")
def pixels():
    return phantom_images(12, 32)[0]


@pytest.fixture(scope="module")
def float_model(pixels):
    """Random weights, but BatchNorm statistics that keep activations alive."""
    torch.manual_seed(0)
    model = build_model("mobilenetv2", width_mult=0.35)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        torch.nn.init.normal_(model.classifier[1].weight)
        model.train()(_scaled(pixels))
    return model.eval()


def _scaled(pixels):
    return torch.from_numpy(scale_pixels(pixels))


def _histogram(values):
    return ValueHistogram(float(values.min()), float(values.max()), np.histogram(values, 2048)[0].astype(float))


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_an_outlier_is_clipped_and_zero_stays(method):
    values = np.append(np.abs(np.random.default_rng(0).normal(size=2_000_000)), 12.0)
    low, high = _CHOOSERS[method](_histogram(values))
    assert low == pytest.approx(0, abs=0.01)
    assert 3 < high < 8


def test_min_max_keeps_everything():
    assert _CHOOSERS["min_max"](_histogram(np.array([-3.0, 0.0, 7.0]))) == (-3.0, 7.0)


def test_histograms_count_every_value(float_model, pixels):
    prepared = prepare_qat(float_model, Scheme())
    batches = [_scaled(pixels[i : i + 4]) for i in (0, 4, 8)]
    histograms = collect_histograms(prepared, batches)
    stem = histograms["features.0.0"]
    assert stem.counts.sum() == 12 * 16 * 16 * 16
    with torch.no_grad():
        expected = float_model.features[0](torch.cat(batches))
    assert stem.high == pytest.approx(expected.max().item(), rel=1e-5)
    assert prepared.training


def test_the_tails_alone_give_the_percentile_methods_ranges(float_model, pixels):
    prepared = prepare_qat(float_model, Scheme())
    batches = [_scaled(pixels[i : i + 4]) for i in (0, 4, 8)]
    whole, tails = (collect_histograms(prepared, batches, tails) for tails in (False, True))
    choose = _CHOOSERS["percentile"]
    assert {name: choose(one) for name, one in tails.items()} == {name: choose(one) for name, one in whole.items()}
    assert all(one.counts.sum() == whole[name].counts.sum() for name, one in tails.items())
    inside = [name for name, one in whole.items() if choose(one)[1] < one.high]
    assert inside  # some are clipped


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_largest_of_several_batches_are_kept(sign, relu, count):
    batches = torch.randn(5, 30, 16, generator=torch.Generator().manual_seed(0))
    batches = batches.relu() if relu else batches
    kept = torch.empty(0)
    for rows in batches:
        kept = _keep_largest(kept, rows, count, sign)
    assert torch.equal(kept.sort().values, (sign * batches).flatten().sort().values[-count:])
    batches[3, 0, 5] = torch.nan
    assert _keep_largest(kept, batches[3], count, sign).isnan().any()


@pytest.mark.parametrize("method", ["min_max", "percentile", "mse"])
def test_calibrated_network_is_finalized_and_near_the_float_one(float_model, pixels, method):
    quantized = quantize_post_training(float_model, pixels, method=method)
    check_finalized(quantized)
    images = _scaled(pixels)
    with torch.no_grad():
        ours, exact = quantized.features[:5](quantized.quant(images)), float_model.features[:5](images)
    # the first blocks: behind them a network of random weights amplifies every rounding
    assert torch.corrcoef(torch.stack([ours.flatten(), exact.flatten()]))[0, 1] > 0.97


def test_a_calibrated_network_can_go_on_training(float_model, pixels):
    quantized = quantize_post_training(float_model, pixels)
    stem = activation_quantizers(quantized)["features.0.0"]
    before = stem.high.item()
    unfreeze(quantized)
    quantized.train()(torch.rand(8, 1, 32, 32) * 20)
    assert stem.high.item() > before
    assert activation_quantizers(quantized)["quant"].encoding == (1 / 128, 0)


def test_wrong_words_are_refused(float_model, pixels):
    prepared = prepare_qat(float_model, Scheme())
    with pytest.raises(ValueError, match="allowed are min_max"):
        choose_ranges(prepared, pixels, "median")
    with pytest.raises(ValueError, match="no images"):
        choose_ranges(prepared, pixels[:0])


@pytest.mark.parametrize("method", ["percentile", "mse"])
@pytest.mark.parametrize("broken", [torch.nan, 1e38])
def test_values_that_are_not_finite_are_refused(float_model, pixels, method, broken):
    prepared = prepare_qat(float_model, Scheme())
    with torch.no_grad():
        next(prepared.parameters()).fill_(broken)
    with pytest.raises(PrepareError, match=r"gives values that are not finite: weights are broken"):
        choose_ranges(prepared, pixels, method)
