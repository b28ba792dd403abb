"""What is said of an image that cannot be read."""

import pytest

from brainq_torch.data.reading.grey import UnreadableImageError
from brainq_torch.data.reading.image import read_grey


def check_unreadable(path, words):
    with pytest.raises(UnreadableImageError, match=words):
        read_grey(path)
