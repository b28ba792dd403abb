"""Corrected biases: means as without rounding, on the int32 grid."""

import pytest
import torch

from brainq_torch.quant import calibrate
from brainq_torch.quant.calibrate import correct_biases, measure_means, quantize_post_training
from brainq_torch.quant.layers import activation_quantizers, scheme_of, weighted_layers
from brainq_torch.quant.prepare import check_finalized, move_bias
from brainq_torch.quant.scheme import Scheme, quantize_bias, quantize_weight
from tests.support.small_network import as_input, small_images, small_network


def coarse_network():
    """4-bit weights, rounded to nearest: means that are off by far."""
    return quantize_post_training(small_network(), small_images(), Scheme(weight_bits=4))


def inputs_of(model, name, images):
    """Return what a module is fed."""
    found = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        model(images)
    hook.remove()
    return found[0]


def integers_of(network, layer):
    """Return what the files hold of a layer, as real numbers: weight and bias."""
    input_scale = activation_quantizers(network)[layer.source].encoding.scale
    steps, bias_scale = quantize_bias(layer.bias, input_scale, layer.weight_scale)
    scale = layer.weight_scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    return quantize_weight(layer.weight, layer.weight_scale, layer.largest) * scale, steps * bias_scale


def mean_error(network, name, images):
    """Return by how much the mean output of a layer is off what its weights make, not rounded, of what it is fed."""
    layer = next(one for one in weighted_layers(network) if one.name == name)
    fed = inputs_of(network, name, images)
    plain = next(one for one in weighted_layers(coarse_network()) if one.name == name)
    with torch.no_grad():
        made, wanted = layer.compute(fed, *integers_of(network, layer)), layer.compute(fed, plain.weight, plain.bias)
    return (made - wanted).mean((0, *range(2, made.dim()))).abs().max().item()


@pytest.mark.parametrize("name", ["stem.0", "depth.0", "point.0", "classifier"])
def test_mean_outputs_are_those_of_weights_that_are_not_rounded(name, monkeypatch):
    monkeypatch.setattr(calibrate, "_CARRIED", 0.0)
    images, network = small_images(), coarse_network()
    before = mean_error(network, name, as_input(images))
    correct_biases(network, measure_means(small_network(), scheme_of(network), images), images)
    step = network.get_submodule(name).weight_fake_quant.bias_scale.max().item()
    assert mean_error(network, name, as_input(images)) <= step / 2 + 1e-5 < before
    check_finalized(network)


def test_half_of_the_way_is_half_of_the_error():
    images, network = small_images(), coarse_network()
    before = mean_error(network, "stem.0", as_input(images))
    correct_biases(network, measure_means(small_network(), scheme_of(network), images), images, share=0.5)
    step = network.get_submodule("stem.0").weight_fake_quant.bias_scale.max().item()
    assert mean_error(network, "stem.0", as_input(images)) == pytest.approx(before / 2, abs=step / 2 + 1e-5)


@pytest.mark.parametrize(("bits", "nearer"), [(4, True), (8, False)])
def test_what_earlier_layers_moved_is_taken_back_where_weights_have_few_bits(bits, nearer, monkeypatch):
    images, logits = small_images(), []
    for carried in (0.0, 0.5):
        monkeypatch.setattr(calibrate, "_CARRIED", carried)
        network = quantize_post_training(small_network(), images, Scheme(weight_bits=bits))
        correct_biases(network, measure_means(small_network(), scheme_of(network), images), images)
        with torch.no_grad():
            logits.append((network(as_input(images)) - small_network()(as_input(images))).mean(0).abs().max().item())
    assert (logits[1] < logits[0]) if nearer else (logits[1] == logits[0])


def test_a_moved_bias_is_on_the_grid_and_moved_once():
    network = coarse_network()
    for number, name in ((0, "stem.0"), (-1, "classifier")):
        layer = weighted_layers(network)[number]
        before = integers_of(network, layer)[1].clone()
        move_bias(network, layer, torch.full_like(before, 0.5))
        moved = weighted_layers(network)[number]
        assert moved.name == name
        quantizer = moved.module.weight_fake_quant
        steps = quantizer.round_bias(moved.bias) / quantizer.bias_scale
        assert torch.equal(steps, steps.round())
        assert (integers_of(network, moved)[1] - before - 0.5).abs().max() <= quantizer.bias_scale.max()


def test_means_are_measured_where_they_are_asked_for():
    images = small_images()
    found = measure_means(small_network(), Scheme(weight_bits=4), images)
    assert found.keys() == {layer.name for layer in weighted_layers(coarse_network())}
    with torch.no_grad():
        made = small_network()(as_input(images)).mean(0)
    torch.testing.assert_close(found["classifier"], made)
    assert not measure_means(small_network(), Scheme(), images)
