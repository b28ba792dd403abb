from dataclasses import replace

import pytest
import torch

from brainq_torch.data.augment.geometry import Augmentation

NOTHING = Augmentation(flip=0, rotation_degrees=0, zoom=0, shift=0, contrast=0, brightness=0)


@pytest.fixture
def images():
    return torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_switched_off_changes_nothing_and_flip_is_an_exact_mirror(images):
    torch.testing.assert_close(NOTHING(images, _generator()), images, atol=1e-6, rtol=0)
    torch.testing.assert_close(replace(NOTHING, flip=1)(images, _generator()), images.flip(3), atol=1e-5, rtol=0)


def test_the_generator_alone_decides(images):
    everything = Augmentation(gamma=0.3, noise=0.05)
    torch.manual_seed(1)
    first = everything(images, _generator(7))
    torch.manual_seed(2)
    assert torch.equal(first, everything(images, _generator(7)))
    assert not torch.equal(first, everything(images, _generator(8)))


def test_every_image_gets_its_own_draw():
    same = torch.linspace(-1, 1, 1024).view(1, 1, 32, 32).repeat(4, 1, 1, 1)
    changed = Augmentation()(same, _generator())
    assert not any(torch.equal(changed[0], changed[i]) for i in range(1, 4))


def test_range_and_shape_stay(images):
    changed = Augmentation(0.5, 180, 0.5, 0.5, 0.9, 0.9, 2.0, 0.5)(images, _generator())
    assert changed.shape == images.shape
    assert changed.isfinite().all()
    assert changed.abs().max() <= 1


def test_what_comes_from_outside_the_frame_is_black():
    moved = Augmentation(0, 0, 0, 0.5, 0, 0)(torch.ones(1, 1, 32, 32), _generator(3))
    assert moved.min() == -1


def test_rotation_keeps_a_centred_disc():
    axis = torch.linspace(-1, 1, 64)
    disc = ((axis[:, None] ** 2 + axis**2) < 0.3).float().mul(2).sub(1).view(1, 1, 64, 64)
    turned = Augmentation(0, 180, 0, 0, 0, 0)(disc, _generator(1))
    assert (turned - disc).abs().mean() < 0.05


@pytest.mark.parametrize("size", [32, 33])
def test_turns_are_by_quarters_and_all_three_happen(size):
    images = torch.rand(1, 1, size, size, generator=_generator()).repeat(24, 1, 1, 1) * 2 - 1
    turned = replace(NOTHING, turn=1.0)(images, _generator(5))
    ways = [torch.rot90(images[0], quarters, (1, 2)) for quarters in (1, 2, 3)]
    found = [next(i for i, way in enumerate(ways) if torch.allclose(image, way, atol=1e-4)) for image in turned]
    assert set(found) == {0, 1, 2}


def test_turning_changes_only_a_share_of_the_images():
    images = torch.rand(1, 1, 32, 32, generator=_generator()).repeat(200, 1, 1, 1) * 2 - 1
    turned = replace(NOTHING, turn=0.25)(images, _generator(2))
    kept = sum(torch.allclose(image, images[0], atol=1e-4) for image in turned)
    assert 130 <= kept <= 170
