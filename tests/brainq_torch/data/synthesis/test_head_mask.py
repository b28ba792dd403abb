import numpy as np

from brainq_torch.data.synthesis.head_mask import head_mask, largest_area


def test_the_largest_area_is_the_head_with_its_holes_filled_and_its_gaps_closed():
    bright = np.zeros((40, 40), bool)
    bright[0:30, 2:30] = True  # it touches the frame
    bright[8:20, 8:20] = False  # a dark brain
    bright[12, 2:8] = False  # a slit in the skull
    bright[34:38, 34:38] = True  # a caption
    expected = np.zeros((40, 40), bool)
    expected[0:30, 2:30] = True
    expected[12, 2] = False  # the mouth of the slit stays open
    np.testing.assert_array_equal(head_mask(bright, reach=2), expected)
    assert not largest_area(bright)[34:38, 34:38].any()
    assert largest_area(bright).sum() == bright.sum() - 16


def test_nothing_bright_is_no_head():
    assert not head_mask(np.zeros((20, 30), bool), reach=3).any()
