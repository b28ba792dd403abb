"""Noise comes from the generator alone, on every device."""

import pytest
import torch

from brainq_torch.data.augment.appearance import StyleMixing
from brainq_torch.data.augment.geometry import Augmentation
from brainq_torch.data.augment.noise import draw_noise
from tests.brainq_torch.data.augment.test_appearance import CHANGES, generator

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


def test_on_the_cpu_it_is_the_generators_own_stream() -> None:
    expected = torch.randn((2, 3, 5), generator=generator())
    assert torch.equal(draw_noise((2, 3, 5), torch.device("cpu"), generator()), expected)


@needs_gpu
def test_on_a_gpu_the_generator_decides_it_too() -> None:
    first, again = (draw_noise((64, 1, 32, 32), torch.device("cuda"), generator()) for _ in range(2))
    assert first.device.type == "cuda"
    assert torch.equal(first, again)
    assert first.std().item() == pytest.approx(1, abs=0.02)


@needs_gpu
@pytest.mark.parametrize("name", [name for name in CHANGES if name != "noise"])
def test_a_gpu_makes_the_same_changes(name: str) -> None:
    images = torch.rand((8, 1, 64, 64), generator=generator()) * 2 - 1
    mixing = StyleMixing(**{name: 1.0})
    torch.testing.assert_close(mixing(images.cuda(), generator()).cpu(), mixing(images, generator()), atol=0.02, rtol=0)


@needs_gpu
def test_a_gpu_turns_and_shades_as_the_cpu_does() -> None:
    images = torch.rand((8, 1, 64, 64), generator=generator()) * 2 - 1
    change = Augmentation(gamma=0.5, turn=0.5)
    torch.testing.assert_close(change(images.cuda(), generator()).cpu(), change(images, generator()), atol=1e-3, rtol=0)
