"""Pseudo-sources: looks told apart whatever is shown, copies kept together, nothing of a left-out source trained on."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.manifest import ManifestRow, read_manifest, write_manifest
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.run_files import hash_file
from tools.pseudo_sources import describe_looks, find_sources, leave_out, main, name_looks
from tools.shared.command import CommandError

COUNT = 96


@pytest.fixture(scope="module")
def scans():
    """Phantoms of all classes: half as they are, half from a blurring scanner with a grey border."""
    pixels, labels = phantom_images(COUNT, 128)
    scanner = np.arange(len(pixels)) // 4 % 2
    blurred = [30 + 0.8 * ndimage.gaussian_filter(image.astype(float), 2.5) for image in pixels[scanner == 1]]
    pixels = pixels.copy()
    pixels[scanner == 1] = np.stack(blurred).astype(np.uint8)
    return pixels, labels, scanner


def manifest_rows(labels, groups):
    return [
        ManifestRow(f"{n}.png", CLASSES[label], "Training", f"g{group}", "")
        for n, (label, group) in enumerate(zip(labels, groups, strict=True))
    ]


def test_sources_are_found_by_look_not_by_class(scans) -> None:
    pixels, labels, scanner = scans
    found = find_sources(describe_looks(pixels), np.arange(len(pixels)), 2)
    agreement = (found == scanner).mean()
    assert max(agreement, 1 - agreement) == 1.0
    assert all(len(set(found[labels == label])) == 2 for label in set(labels))


def test_look_does_not_depend_on_the_way_up_and_a_blank_image_has_one(scans) -> None:
    pixels = scans[0][:6]
    turned = np.ascontiguousarray(np.rot90(pixels, axes=(1, 2)))
    np.testing.assert_allclose(describe_looks(turned), describe_looks(pixels), rtol=1e-6, atol=1e-6)
    assert np.isfinite(describe_looks(np.zeros((1, 128, 128), np.uint8))).all()


def test_group_goes_where_most_of_it_lies(scans) -> None:
    pixels = scans[0]
    groups = np.arange(len(pixels))
    groups[[0, 1, 5]] = 0  # two sharp ones and a blurred one
    found = find_sources(describe_looks(pixels), np.unique(groups, return_inverse=True)[1], 2)
    assert found[0] == found[1] == found[5] == found[2]
    assert found[5] != found[6]


def test_largest_source_is_the_first(scans) -> None:
    pixels, _, scanner = scans
    kept = np.flatnonzero((scanner == 0) | (np.arange(len(pixels)) < 20))
    found = find_sources(describe_looks(pixels[kept]), np.arange(len(kept)), 2)
    assert found[scanner[kept] == 0].tolist() == [0] * int((scanner[kept] == 0).sum())


@pytest.mark.parametrize("count", [1, 97])
def test_impossible_number_of_sources_is_refused(scans, count: int) -> None:
    with pytest.raises(CommandError, match="allowed are 2 to 96"):
        find_sources(describe_looks(scans[0]), np.arange(len(scans[0])), count)


def test_nothing_of_the_left_out_source_is_trained_on() -> None:
    labels, groups = np.repeat(np.arange(4), 40), np.arange(160) // 4
    left_out = groups % 3 == 0
    rows = leave_out(manifest_rows(labels, groups), groups, left_out)
    split_of = {row.path: row.split for row in rows}
    assert [split_of[f"{n}.png"] == "Testing" for n in range(160)] == left_out.tolist()
    members = {split: {row.group for row in rows if row.split == split} for split in ("Training", "val", "Testing")}
    assert all(members.values())
    assert not members["Training"] & members["val"]
    assert not (members["Training"] | members["val"]) & members["Testing"]
    with pytest.raises(CommandError, match="every image of notumor"):
        leave_out(manifest_rows(labels, groups), groups, labels == CLASSES.index("notumor"))


def test_command_writes_a_manifest_per_source(scans, tmp_path, ended) -> None:
    pixels, labels, scanner = scans
    rows = []
    for n, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = tmp_path / "images" / CLASSES[label] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        split = "Testing" if n < 8 else "Training"
        rows.append(ManifestRow(f"{CLASSES[label]}/{n}.png", CLASSES[label], split, f"g{n}", hash_file(path)))
    write_manifest(tmp_path / "manifest.csv", rows)
    words = ["--manifest", str(tmp_path / "manifest.csv"), "--data", str(tmp_path / "images"), "--sources", "2"]
    printed = ended(main([*words, "--out", str(tmp_path / "sources")])).out
    assert "without_0.csv leaves out" in printed
    named = name_looks(tmp_path / "images", rows, 2)  # as tools.sources --pseudo tells them apart
    assert {(row.source, int(each)) for row, each in zip(named, scanner, strict=True)} in (
        {("look_0", 0), ("look_1", 1)}, {("look_0", 1), ("look_1", 0)},
    )  # fmt: skip
    official = {row.path for row in rows if row.split == "Testing"}
    for source in range(2):
        written = read_manifest(tmp_path / "sources" / f"without_{source}.csv")
        assert not official & {row.path for row in written}
        scanners = {
            scanner[int(row.path.split("/")[1].removesuffix(".png"))] for row in written if row.split == "Testing"
        }
        assert len(scanners) == 1
    assert "name another folder" in ended(main([*words, "--out", str(tmp_path / "sources")]), 2).err
    elsewhere = [*words[:3], str(tmp_path / "absent"), *words[4:], "--out", str(tmp_path / "other")]
    assert "88 of 88 images" in ended(main(elsewhere), 2).err
    few = [replace(row, group=f"{row.label}{each}") for row, each in zip(rows, scanner, strict=True)]
    write_manifest(tmp_path / "manifest.csv", few)
    assert "cannot be divided between" in ended(main([*words, "--out", str(tmp_path / "other")]), 2).err
    assert not (tmp_path / "other").exists()
