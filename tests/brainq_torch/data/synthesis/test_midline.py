"""The mid-line and the one-sided lesion are found where they were put."""

import numpy as np
import pytest
from scipy import ndimage

from brainq_torch.data.synthesis.drawing import Field, ellipse
from brainq_torch.data.synthesis.midline import align, find_one_sided, mirror_half, outline_head

SIZE = 128


def draw_head(lesion_column: float | None = None, grey: float = 0.8, tilt: float = 0.0) -> Field:
    """Bright scalp, dark skull, grey brain with two dark ventricles; symmetric but for the lesion."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    image = np.zeros((SIZE, SIZE))
    parts = [((63.5, 64), (42, 54), 0.6), ((63.5, 64), (39, 51), 0.05), ((63.5, 64), (36, 48), 0.4)]
    parts += [((56.5, 60), (3, 10), 0.1), ((70.5, 60), (3, 10), 0.1)]
    if lesion_column is not None:
        parts.append(((lesion_column, 50), (9, 9), grey))
    for centre, radii, value in parts:
        image[ellipse(x, y, centre, radii) > 0] = value
    return np.clip(ndimage.rotate(image, tilt, reshape=False, order=1), 0, 1)


def test_head_is_found_whole() -> None:
    head = outline_head(draw_head())
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    outline = ellipse(x, y, (63.5, 64), (42, 54)) > 0
    assert (head & outline).sum() / (head | outline).sum() > 0.9


@pytest.mark.parametrize("image", [np.zeros((SIZE, SIZE)), np.ones((SIZE, SIZE)) * np.eye(SIZE)])
def test_no_head_is_no_slice(image: Field) -> None:
    assert align(image) is None


@pytest.mark.parametrize("tilt", [-9.0, 0.0, 12.0])
@pytest.mark.parametrize("grey", [0.8, 0.1])
@pytest.mark.parametrize(("column", "left"), [(44.0, True), (83.0, False)])
def test_lesion_is_found_on_its_side(column: float, left: bool, grey: float, tilt: float) -> None:
    head = align(draw_head(column, grey, tilt))
    assert head is not None
    assert head.symmetric
    lesion = find_one_sided(head)
    assert lesion is not None
    assert lesion.left == left
    row, middle = ndimage.center_of_mass(lesion.region)
    assert abs(middle - column) < 6
    assert abs(row - 50) < 12
    cleared = mirror_half(head.image, keep_left=not left)
    assert np.abs(cleared - cleared[:, ::-1]).max() < 1e-12
    assert np.abs(ndimage.gaussian_filter(cleared, 2)[lesion.region] - 0.4).max() < 0.2  # brain, no lesion


@pytest.mark.parametrize("column", [None, 63.5])
def test_no_lesion_or_one_on_the_midline_is_not_one_sided(column: float | None) -> None:
    head = align(draw_head(column))
    assert head is not None
    assert find_one_sided(head) is None


def test_lopsided_outline_is_not_symmetric() -> None:
    image = draw_head()
    image[70:100, 90:126] = 0.5  # a face, as a sagittal slice has
    head = align(image)
    assert head is not None
    assert not head.symmetric
