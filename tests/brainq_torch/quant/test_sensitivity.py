"""Mixed precision: bits go where they help most per byte, and never beyond the budget."""

import pytest
import torch

from brainq_torch.quant.calibrate import quantize_post_training
from brainq_torch.quant.rounding import Rounding
from brainq_torch.quant.sensitivity import Sensitivity, choose_bits, measure_sensitivity
from tests.support.small_network import as_input, small_images, small_network

NEAREST = Rounding(method="nearest")
TABLE = [
    Sensitivity("big", 4, 100, 0.30), Sensitivity("big", 8, 200, 0.01),
    Sensitivity("small", 4, 10, 0.10), Sensitivity("small", 8, 20, 0.01),
    Sensitivity("robust", 4, 50, 0.01), Sensitivity("robust", 8, 100, 0.01),
]  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "bits"),
    [
        (160, {"big": 4, "small": 4, "robust": 4}),
        (170, {"big": 4, "small": 8, "robust": 4}),  # 0.009 a byte; big gains 0.0029 a byte
        (270, {"big": 8, "small": 8, "robust": 4}),
        (9999, {"big": 8, "small": 8, "robust": 4}),  # a byte that changes nothing is not spent
    ],
)
def test_bytes_go_where_they_help_most(budget, bits):
    assert choose_bits(TABLE, budget) == bits


def test_layers_that_the_file_holds_in_8_bits_have_8():
    assert choose_bits([*TABLE, Sensitivity("odd", 4, 9, 0.2), Sensitivity("odd", 8, 9, 0.3)], 169)["odd"] == 8


def test_fewer_bits_cost_more_and_the_network_is_left_alone():
    quantized = quantize_post_training(small_network(), small_images())
    before = quantized(as_input(small_images())).detach()
    table = list(measure_sensitivity(quantized, small_images(), (2, 8), NEAREST))
    errors = {(entry.layer, entry.bits): entry.error for entry in table}
    layers = ["stem.0", "depth.0", "point.0", "norm", "down", "classifier"]
    assert list(errors) == [(layer, bits) for layer in layers for bits in (2, 8)]
    assert len({errors[layer, 8] for layer in layers}) == 1  # nothing changed: the network with 8 bits everywhere
    assert all(errors[layer, 2] > errors[layer, 8] for layer in ("stem.0", "depth.0", "point.0", "classifier"))
    assert {entry.size_bytes for entry in table if entry.layer == "classifier"} == {16, 32}  # 2 bits are held as 4
    assert torch.equal(quantized(as_input(small_images())), before)


def test_learned_rounding_costs_less_and_a_killed_measurement_goes_on():
    quantized = quantize_post_training(small_network(), small_images())
    nearest, learned = (
        list(measure_sensitivity(quantized, small_images(), (3,), options)) for options in (NEAREST, Rounding())
    )
    assert sum(entry.error for entry in learned) < 0.5 * sum(entry.error for entry in nearest)
    rest = list(measure_sensitivity(quantized, small_images(), (3,), Rounding(), done=["stem.0", "norm"]))
    assert rest == [entry for entry in learned if entry.layer not in ("stem.0", "norm")]
