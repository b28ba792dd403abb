import re
from dataclasses import replace

import numpy as np
import pytest

from brainq_torch.data.dataset.sample import ImageRecord
from brainq_torch.data.leakage.groups import EACH_ITS_OWN, GroupError, find_all_links, group_images, name_groups
from brainq_torch.data.leakage.near_duplicates import COPY, EQUAL, SCAN, link_given
from brainq_torch.data.synthesis.phantom import phantom_images

RECORDS = [ImageRecord(f"Training/glioma/site1_p{number // 2}_{number}.png", 0, "Training") for number in range(4)]


def check_refused(words, table="", pattern=""):
    with pytest.raises(GroupError, match=words):
        name_groups(RECORDS, table, pattern)


def groups(records):
    return [record.group for record in records]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"p\d+", ["p0", "p0", "p1", "p1"]),
        (r"_p(\d+)_", ["0", "0", "1", "1"]),
        (EACH_ITS_OWN, [record.path for record in RECORDS]),
    ],
)
def test_a_pattern_names_the_groups(pattern, expected):
    assert groups(name_groups(RECORDS, pattern=pattern)) == expected


def test_a_table_names_the_groups(tmp_path):
    table = tmp_path / "groups.csv"
    lines = [f"{record.path},glioma,patient {number % 2}" for number, record in enumerate(RECORDS)]
    table.write_text("\n".join(["\ufeffpath,label,group", *lines, "Training/glioma/gone.png,glioma,x"]))
    assert groups(name_groups(RECORDS, str(table))) == ["patient 0", "patient 1"] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,group\nTraining/glioma/site1_p0_0.png,a\n", "3 of 4 images get no group"),
        ("path,patient\n", "path and group are needed"),
        ("path,group\na.png,1\na.png,2\n", "puts a.png into two groups, '1' and '2'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(text, message, tmp_path):
    (tmp_path / "groups.csv").write_text(text)
    check_refused(re.escape(message), str(tmp_path / "groups.csv"))


def test_wrong_words_are_named(tmp_path):
    check_refused("is no regular expression", pattern="(")
    check_refused("4 of 4 images get no group from the pattern 'patient'", pattern="patient")
    check_refused("given twice", "groups.csv", "p")
    check_refused(r"nowhere\.csv, the table of groups, is no file", "nowhere.csv")


def test_given_links_hold_the_groups_and_the_equal_images():
    pixels = phantom_images(5, 64)[0][[0, 1, 2, 3, 0]]
    links = link_given(pixels, np.array([7, 3, 7, 3, 9]))
    assert not links.searched
    np.testing.assert_array_equal(links.groups(EQUAL), [0, 1, 2, 3, 0])
    np.testing.assert_array_equal(links.groups(COPY), [0, 1, 2, 3, 0])
    np.testing.assert_array_equal(links.groups(SCAN), [0, 1, 0, 1, 0])


def test_a_search_joins_what_the_files_say(monkeypatch):
    pixels = phantom_images(4, 96)[0]
    pixels = np.concatenate([pixels, pixels[:1, :, ::-1]])  # the last is a mirrored copy of the first
    records = [ImageRecord(f"{number}.png", 0, "all", group) for number, group in enumerate(["", "a", "a", "", ""])]
    np.testing.assert_array_equal(find_all_links(records, pixels).groups(SCAN), [0, 1, 1, 2, 0])
    found = group_images(records, pixels)
    assert found.groups == ("0", "1", "1", "2", "0")
    assert found.links.searched
    alone = name_groups(records, pattern=EACH_ITS_OWN)  # as identifiers that are made anew for each file
    assert group_images(alone, pixels, are_given=False).groups == ("0", "1", "2", "3", "0")
    # where every image has a group, nothing is searched for
    monkeypatch.setattr("brainq_torch.data.leakage.groups.find_links", None)
    assert group_images(alone, pixels).groups == tuple(record.path for record in records)
    pairs = [replace(record, group=str(place // 2)) for place, record in enumerate(records)]
    assert group_images(pairs, pixels, are_given=False).groups == ("0", "0", "1", "1", "2")


def test_a_table_that_is_not_utf_8_is_refused_in_one_line(tmp_path):
    (tmp_path / "groups.csv").write_bytes("path,group\nü.png,a\n".encode("latin-1"))
    check_refused(r"groups\.csv is not UTF-8 text .*; save it as UTF-8$", str(tmp_path / "groups.csv"))
