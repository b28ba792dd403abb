"""Style mixing changes the look, reproducibly, and nothing where it is off."""

import pytest
import torch

from brainq_torch.data.augment.appearance import (
    StyleMixing,
    add_ghosts,
    add_spike,
    bias_fields,
    filter_randomly,
    mix_amplitudes,
    quantiles,
    random_curves,
    rank_levels,
)
from brainq_torch.data.pixels import scale_pixels
from brainq_torch.data.synthesis.phantom import phantom_images

CHANGES = ["tone", "match", "fourier", "filter", "bias", "blur", "ghosting", "spike", "noise"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(scale_pixels(phantom_images(8, 64)[0]))


def test_off_is_identity(images: torch.Tensor) -> None:
    assert StyleMixing()(images, generator()) is images


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_reproducible_and_in_range(images: torch.Tensor, name: str) -> None:
    mixing = StyleMixing(**{name: 1.0})
    changed = mixing(images, generator(1))
    assert torch.equal(changed, mixing(images, generator(1)))
    assert not torch.equal(changed, mixing(images, generator(2)))
    assert changed.shape == images.shape
    assert -1 <= changed.min() <= changed.max() <= 1
    assert (changed - images).abs().flatten(1).max(1).values.median() > 0.02


def test_tone_and_match_leave_air_alone(images: torch.Tensor) -> None:
    air = images < -1 + 12 / 128
    for name in ("tone", "match"):
        changed = StyleMixing(**{name: 1.0})(images, generator())
        assert torch.equal(changed[air], images[air])


def test_ranks_and_quantiles_of_known_levels() -> None:
    levels = torch.tensor([[0, 0, 100, 100, 200, 200]])
    ranks = rank_levels(levels)
    assert ranks[0, [50, 100, 150, 200, 255]].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    found = quantiles(ranks)[0]
    assert found[1:8].eq(100).all()
    assert 150 < found[18] <= 200


def test_matched_image_has_the_partners_tones() -> None:
    ramp = torch.arange(64.0).view(1, 1, 8, 8)
    dark, light = (40 + ramp) / 128 - 1, (130 + 1.5 * ramp) / 128 - 1
    pair = torch.cat([dark, light])
    for seed in range(20):
        changed = StyleMixing(match=1.0)(pair, generator(seed))
        if (changed[0] - dark[0]).abs().max() > 0.1:
            assert (changed[0] - light[0]).abs().max() < 0.06
            assert (changed[1] - dark[0]).abs().max() < 0.06
            return
    raise AssertionError("twenty draws never exchanged two images")


def test_mixing_amplitudes_with_itself_changes_nothing(images: torch.Tensor) -> None:
    raised = images + 1
    assert (mix_amplitudes(raised, raised, generator()) - raised).abs().max() < 1e-4
    assert (mix_amplitudes(raised, raised.roll(1, 0), generator()) - raised).abs().max() > 0.05


def test_curves_rise_or_bend_within_the_grey_levels() -> None:
    curves = random_curves(400, generator())
    assert 10 <= curves.min() <= curves.max() <= 255
    rising = (curves.diff(dim=1) >= -1e-3).all(1).float().mean()
    assert 0.4 < rising < 0.6


def test_filter_keeps_brightness_and_field_averages_one(images: torch.Tensor) -> None:
    raised = images + 1
    filtered = filter_randomly(raised, generator())
    assert (filtered.mean((2, 3)) - raised.mean((2, 3))).abs().max() < 0.2
    field = bias_fields(raised.repeat(50, 1, 1, 1), 0.4, generator())
    assert abs(float(field.mean()) - 1) < 0.01
    assert float((field - 1).abs().max()) < 0.6  # bicubic overshoots the lattice a little


def test_ghosts_are_shifted_copies_of_the_head() -> None:
    """Every n-th line of k-space weakened: what stays is the image less a comb of n copies along one axis."""
    image = torch.zeros(1, 1, 60, 60)
    image[0, 0, 30, 30] = 1.0
    for seed in range(6):
        ghosts = add_ghosts(image, generator(seed))[0, 0]
        places = {(row, column) for row, column in (ghosts > 0.05 * ghosts.max()).nonzero().tolist()}
        assert (30, 30) in places
        assert {row for row, _ in places} == {30} or {column for _, column in places} == {30}
    assert torch.allclose(add_ghosts(torch.zeros(2, 1, 16, 16), generator()), torch.zeros(2, 1, 16, 16))


def test_a_spike_adds_one_frequency_in_reach() -> None:
    flat = torch.ones(8, 1, 64, 64)
    spectrum = torch.fft.fft2(add_spike(flat, generator(3))).abs()
    for image in spectrum[:, 0]:
        image[0, 0] = 0
        row, column = divmod(int(image.argmax()), 64)
        assert 3 <= min(row, 64 - row) <= 25
        assert 3 <= min(column, 64 - column) <= 25
