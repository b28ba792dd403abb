"""The whole network at 4 bits: better than nearest, exact integers, and a killed run that goes on."""

import pytest
import torch

from brainq_torch.quant import low_bits
from brainq_torch.quant.layers import PrepareError, weighted_layers
from brainq_torch.quant.low_bits import W4A8, Bookkeeping, quantize_low_bits
from brainq_torch.quant.prepare import prepare_qat, settle_layer
from brainq_torch.quant.rounding import Rounding
from brainq_torch.quant.scheme import Scheme, encode_weight_clipped, quantize_weight
from tests.support.killed import Killed
from tests.support.small_network import as_input, small_images, small_network

EVERY_LAYER = Scheme(weight_bits=4)
FEW_POSITIONS = Rounding(positions=32)


@pytest.fixture(scope="module")
def network():
    return small_network()


def logits(model):
    with torch.no_grad():
        return model(as_input(small_images(64, seed=5)))


def test_learned_rounding_comes_closer_than_nearest(network):
    wanted = logits(network)
    nearest, none, _ = quantize_low_bits(network, small_images(), EVERY_LAYER, Rounding(method="nearest"))
    learned, errors, seconds = quantize_low_bits(network, small_images(), EVERY_LAYER, FEW_POSITIONS)
    distances = [((logits(one) - wanted) ** 2).mean().item() for one in (nearest, learned)]
    assert distances[1] < 0.25 * distances[0]  # measured: a twentieth
    assert none == {}
    assert seconds > 0
    assert list(errors) == [layer.name for layer in weighted_layers(learned)]
    assert max(errors.values()) < 0.02


def test_exceptions_keep_their_bits(network):
    learned, errors, _ = quantize_low_bits(network, small_images(), W4A8, FEW_POSITIONS)
    largest = {layer.name: layer.largest for layer in weighted_layers(learned)}
    eight = ("stem.0", "depth.0", "norm", "down", "classifier")
    assert largest == dict.fromkeys(eight, 127) | {"point.0": 7}
    assert list(errors) == ["point.0"]
    with pytest.raises(PrepareError, match=r"no layer is named stem\.9; there are stem\.0"):
        prepare_qat(network, Scheme(exceptions={"stem.9": 4}))
    with pytest.raises(ValueError, match="stem is 7; allowed are 2, 3, 4, 5, 6, 8 bits"):
        Scheme(exceptions={"stem": 7})
    assert Scheme(4, exceptions={"a": 2, "first": 8, "depthwise": 3}).bits_of("a", ["first"]) == 2
    assert Scheme(4, exceptions={"first": 8, "depthwise": 3}).bits_of("b", ["depthwise", "first"]) == 8
    assert Scheme.from_json(W4A8.to_json()) == W4A8


def test_settled_integers_are_those_that_the_files_get(network):
    learned, _, _ = quantize_low_bits(network, small_images(), EVERY_LAYER, FEW_POSITIONS)
    layer = next(one for one in weighted_layers(learned) if one.name == "point.0")
    integers = torch.arange(-7.0, 57).remainder(15).sub(7).reshape(layer.weight.shape)
    settle_layer(learned, layer, integers, layer.weight_scale, layer.bias)
    again = next(one for one in weighted_layers(learned) if one.name == "point.0")
    assert torch.equal(quantize_weight(again.weight, again.weight_scale, again.largest).float(), integers)
    assert torch.equal(again.weight_scale, layer.weight_scale)
    with pytest.raises(ValueError, match=r"point\.0: weights must be integers of at most 7"):
        settle_layer(learned, layer, integers + 1, layer.weight_scale, layer.bias)


def test_clipped_scale_serves_the_weights_that_matter():
    # One outlier that is multiplied by nothing: the scale follows the others.
    weight = torch.tensor([[0.7, -0.7, 0.5, 1.4]])
    spared = encode_weight_clipped(weight, torch.tensor([1.0, 1.0, 1.0, 0.0]), 7, exact=True)
    kept = encode_weight_clipped(weight, torch.ones(4), 7, exact=True)
    assert 0.08 <= spared.item() <= 0.105
    assert kept.item() > 0.18


def test_a_run_with_8_bit_weights_makes_no_w4a8_files(network):
    pytest.importorskip("onnx", reason="the optional extra `export` is not installed")
    from types import SimpleNamespace

    from export.integer_files import make_w4a8
    from export.recipes import default_recipes

    eight = Scheme().to_json()
    run = SimpleNamespace(model=prepare_qat(network, Scheme()).eval(), quantization=eight)
    with pytest.raises(PrepareError, match="trained with 8-bit weights; export w4a8 of the float run"):
        make_w4a8(SimpleNamespace(run=run))
    chosen = [
        default_recipes(SimpleNamespace(model=network, quantization=scheme)) for scheme in (None, eight, W4A8.to_json())
    ]
    assert chosen == [("fp32", "fp16", "int8"), ("int8",), ("w4a8",)]


def die_after(count):
    def progress(names):
        for number, name in enumerate(names):
            if number == count:
                raise Killed
            yield name

    return progress


def test_a_killed_run_continues_to_the_same_bytes(network, tmp_path, monkeypatch):
    straight, _, _ = quantize_low_bits(network, small_images(), EVERY_LAYER, FEW_POSITIONS)
    books, dying = Bookkeeping(tmp_path), Bookkeeping(tmp_path, die_after(3))
    with pytest.raises(Killed):
        quantize_low_bits(network, small_images(), EVERY_LAYER, FEW_POSITIONS, books=dying)
    (folder,) = {path.parent for path in tmp_path.rglob("point.0.pt")}
    (folder / "norm.pt.partial").write_bytes(b"half a file")
    learned = []
    learn = low_bits.learn_layer
    monkeypatch.setattr(low_bits, "learn_layer", lambda layer, *rest: learned.append(layer.name) or learn(layer, *rest))
    resumed, errors, _ = quantize_low_bits(network, small_images(), EVERY_LAYER, FEW_POSITIONS, books=books)
    assert learned == ["norm", "down", "classifier"]
    assert len(errors) == 6
    wanted, found = straight.state_dict(), resumed.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    learned.clear()
    quantize_low_bits(network, small_images(seed=9), EVERY_LAYER, FEW_POSITIONS, books=books)
    assert len(learned) == 6  # other images: nothing of the old state is used
