"""Training speeds of several loops: medians over rounds, and the loops themselves on pictures that are made here."""

import pytest
from torch import nn

from tools import bench_training
from tools.bench_training import PRECISIONS, PlainLoop, summarise, time_plain


def test_a_ratio_is_the_median_of_the_rounds_ratios(monkeypatch):
    monkeypatch.setattr(bench_training, "LOOPS", {"plain": None, "fair": None})
    rounds = [
        {
            "plain_images_per_second": slow,
            "fair_images_per_second": 2 * slow,
            "ours": {name: {"images_per_second": fast, "data_share": 0.01} for name in PRECISIONS},
        }
        for slow, fast in ((10.0, 30.0), (5.0, 20.0), (1.0, 2.0))
    ]
    found = summarise(rounds)
    assert found["plain"] == {"median_images_per_second": 5.0}
    assert found["bf16-mixed"] == {
        "median_images_per_second": 20.0,
        "median_ratio": 3.0,
        "median_ratios": {"plain": 3.0, "fair": 1.5},
        "median_data_share": 0.01,
    }


@pytest.mark.parametrize("is_fast", [False, True])
def test_a_loop_gets_what_its_network_takes(phantoms, monkeypatch, is_fast):
    seen = []

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Linear(1, 4)

        def forward(self, images):
            seen.append(images)
            return self.scale(images.mean((1, 2, 3))[:, None])

    monkeypatch.setattr(bench_training, "SIZE", 32)
    monkeypatch.setattr(bench_training, "BATCH", 4)
    assert time_plain(phantoms / "Training", 2, PlainLoop(Network, is_grey=True, is_fast=is_fast)) > 0
    assert [image.shape for image in seen] == [(4, 1, 32, 32)] * 3
