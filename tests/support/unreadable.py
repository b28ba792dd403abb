"""What is said of an image that cannot be read."""

import numpy as np
import pytest

from brainq_torch.data.reading.grey import UnreadableImageError
from brainq_torch.data.reading.image import read_grey


def check_unreadable(path, words):
    with pytest.raises(UnreadableImageError, match=words) as caught:
        read_grey(path)
    assert caught.value.path  # of a pair's voxels it is another


def check_cut(path, *shares, words="."):
    """Cut a file that can be read at shares of its size: it is refused."""
    read_grey(path)
    whole = path.read_bytes()
    for share in shares:
        path.write_bytes(whole[: max(1, int(len(whole) * share))])
        check_unreadable(path, words)


def check_damaged(path, tries, changes, places, *readers):
    """Change some bytes of a file at random: it is read, or refused with the one error, as some of the tries are."""
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(tries):
        content = bytearray(whole)
        for place in rng.integers(places.start, places.stop or len(whole), changes):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            for read in readers or (read_grey,):
                read(path)
        except UnreadableImageError:
            refused += 1
    assert refused > 20
