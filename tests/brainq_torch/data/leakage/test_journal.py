"""A search for copies that is killed goes on where it was, and ends with what one that was never killed finds."""

from dataclasses import astuple

import numpy as np
import pytest

from brainq_torch.data.leakage import candidates, journal, near_duplicates
from brainq_torch.data.leakage.journal import Journal
from brainq_torch.data.leakage.near_duplicates import find_links
from brainq_torch.data.synthesis.phantom import phantom_images
from tests.support.killed import Killed


@pytest.fixture(scope="module")
def pixels():
    heads = phantom_images(24, 64)[0]
    return np.concatenate([heads, heads[:6, :, ::-1], np.roll(heads[6:12], 2, axis=2)])


@pytest.mark.parametrize(("module", "name"), [(near_duplicates, "compare"), (candidates, "_search_block")])
def test_a_killed_search_goes_on_where_it_was(pixels, tmp_path, monkeypatch, module, name):
    work, calls = getattr(module, name), []

    def counted(*arguments):
        if len(calls) == 2 and not (tmp_path / "again").exists():
            raise Killed
        calls.append(name)
        return work(*arguments)

    monkeypatch.setattr(near_duplicates, "_BATCH", 4)
    expected = find_links(pixels)
    monkeypatch.setattr(module, name, counted)
    with pytest.raises(Killed):
        find_links(pixels, tmp_path / "search.npy")
    with (tmp_path / "search.npy").open("ab") as file:
        file.write(b"\x93NUMPY\x01\x00half a step")
    (tmp_path / "again").touch()
    found = find_links(pixels, tmp_path / "search.npy")
    for one, other in zip(astuple(found), astuple(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    whole = len(calls)
    find_links(pixels, tmp_path / "search.npy")
    assert len(calls) == whole > 2  # all was kept
    find_links(pixels[::-1], tmp_path / "search.npy")
    assert len(calls) > whole  # other images: nothing of it counts


def test_a_journal_of_something_else_is_forgotten(tmp_path):
    for key in (b"one", b"one", b"two"):
        journal = Journal(tmp_path / "a.npy", np.frombuffer(key, np.uint8))
        results = [journal.step(lambda key=key: np.frombuffer(key, np.uint8)).tobytes() for _ in range(3)]
        assert results == [key] * 3


def test_each_stage_says_how_far_it_is(pixels, monkeypatch):
    said = []
    monkeypatch.setattr(journal, "tqdm", lambda steps, desc, **_: said.append(desc) or steps)
    find_links(pixels)
    assert set(said) == {"searching copies", "comparing pairs", "aligning pairs"}
