import csv
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.load import load_pixels, scan_folder
from brainq_torch.data.synthesis.phantom import render_phantom, write_phantoms
from tools.audit import __main__ as audit
from tools.audit import findings, shortcuts


def write(root, split, label, name, pixels):
    path = root / split / CLASSES[label] / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return path.relative_to(root).as_posix()


def write_set(root, training=6, testing=3):
    """A set of phantoms without a leak."""
    for label in range(len(CLASSES)):
        for index in range(training):
            write(root, "Training", label, f"p{index}", render_phantom(label, index, size=96))
        for index in range(testing):
            write(root, "Testing", label, f"p{index}", render_phantom(label, 1000 + index, size=96))


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean")
    write_set(root)
    return root


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    root = tmp_path_factory.mktemp("leaky")
    write_set(root)
    # One pixel-equal, one mirrored, one turned, one resized leak; one picture under two labels, within Training.
    write(root, "Testing", 0, "equal", render_phantom(0, 0, size=96))
    write(root, "Testing", 1, "mirrored", render_phantom(1, 1, size=96)[:, ::-1])
    write(root, "Testing", 2, "turned", np.rot90(render_phantom(2, 2, size=96)))
    larger = Image.fromarray(render_phantom(3, 3, size=96)).resize((160, 160), Image.Resampling.BICUBIC)
    write(root, "Testing", 3, "larger", np.asarray(larger))
    write(root, "Training", 1, "conflict", render_phantom(3, 4, size=96))
    return root


@pytest.fixture(scope="module")
def report(leaky, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    paths = [out / name for name in ("audit.json", "groups.csv", "report.html")]
    code = audit.main([str(leaky), "--json", str(paths[0]), "--groups", str(paths[1]), "--html", str(paths[2])])
    assert code == 0
    return json.loads(paths[0].read_text()), paths[1], paths[2].read_text()


@pytest.fixture
def small(tmp_path):
    """The smallest set without a leak that can be divided, of which a test may spoil something."""
    write_set(tmp_path / "set", training=2, testing=1)
    return tmp_path / "set"


def test_the_verdict_comes_first_and_counts_what_was_planted(leaky, capsys):
    assert audit.main([str(leaky), "--fail-on-leak"]) == audit.LEAK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Testing: the test set leaks: 4 of 16 images (25.0%) are copies of training images"
    assert lines[1] == "1 picture stands under more than one label"
    assert any("label conflict: Training/meningioma/conflict.png, Training/pituitary/p4.png" in line for line in lines)


def test_a_clean_set_passes(clean, ended):
    # The negative control: the same images without the planted ones.
    printed = ended(audit.main([str(clean), "--fail-on-leak"])).out
    assert printed.startswith("Testing: no image of the test set is a copy of a training image")
    assert "\n  nearest copy: 0 nearly equal, 0 mirrored or turned, 0 altered\n" in printed


def test_json_names_every_leak_with_its_source_and_orientation(report):
    data = report[0]
    assert data["leaks"] is True
    assert data["n"] == 41
    assert data["splits"]["Training"] == {"glioma": 6, "meningioma": 7, "notumor": 6, "pituitary": 6}
    found = {leak["path"]: (leak["copy_of"], leak["orientation"]) for leak in data["leaked"]["Testing"]}
    planted = {"equal": "upright", "mirrored": "upright, mirrored", "turned": "turned 90", "larger": "upright"}
    assert found == {
        f"Testing/{name}/{how}.png": (f"Training/{name}/p{label}.png", orientation)
        for label, (name, (how, orientation)) in enumerate(zip(CLASSES, planted.items(), strict=True))
    }
    assert data["held_out"]["Testing"]["equal_count"] == 1
    assert data["leaked_how"]["Testing"] == {"same": 2, "turned": 2, "altered": 0}
    assert data["leaked_orientation"]["Testing"]["notumor"] == {"turned 90": 1}
    assert [[image["label"] for image in group] for group in data["label_conflicts"]] == [["meningioma", "pituitary"]]


def test_json_counts_partners_within_and_across_splits_and_classes(report):
    found = report[0]["duplicates"]
    partners = found["copies"]["images_with_a_partner"]
    assert list(partners) == [f"{one}_split_{two}_class" for one in ("same", "other") for two in ("same", "other")]
    assert list(partners.values()) == [0, 2, 8, 0]
    assert (found["pixel_equal"]["pictures"], found["copies"]["pictures"]) == (39, 36)
    assert found["copies"]["largest_group"] == 2


def test_groups_csv_has_every_image_once_and_joins_the_planted_pairs(report, leaky):
    _, path, _ = report
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "split", "label", "group"]
    assert [row["path"] for row in rows] == [record.path for record in scan_folder(leaky).records]
    groups = {row["path"]: row["group"] for row in rows}
    assert groups["Testing/notumor/turned.png"] == groups["Training/notumor/p2.png"]
    assert len(set(groups.values())) == 36
    assert {row["label"] for row in rows} == set(CLASSES)


def test_the_page_stands_alone_and_is_small(report):
    _, _, page = report
    assert page.startswith("<!doctype html>")
    assert len(page.encode()) < 1_000_000
    assert not re.search(r'(src|href)="(?!data:image/jpeg;base64,)', page)  # nothing is fetched
    assert "<script" not in page
    assert "4 of 16 images" in page
    for text in ("Testing/notumor/turned.png", "1 picture under more than one label", "linear", "Not a medical device"):
        assert text.lower() in page.lower()


def test_coloured_marks_are_counted_per_class(small, tmp_path, reported):
    for path in (small / "Training" / "notumor").glob("*.png"):
        marked = Image.open(path).convert("RGB")
        marked.paste((255, 40, 0), (10, 10, 40, 30))
        marked.save(path)
    data, printed = reported(audit.main, small, "--html", tmp_path / "a.html")
    assert data["coloured"] == {"notumor": 2}
    assert "coloured marks, which tell the class where classes differ: on 2 of notumor" in printed
    assert "2 images have coloured marks: notumor 2" in (tmp_path / "a.html").read_text()


def test_paths_are_escaped_on_the_page(small, tmp_path):
    write(small, "Testing", 0, "<b>&amp", render_phantom(0, 0, size=96))
    page = tmp_path / "page.html"
    assert audit.main([str(small), "--html", str(page)]) == 0
    assert "&lt;b&gt;&amp;amp.png" in page.read_text()
    assert "<b>&amp.png" not in page.read_text()


def test_class_folders_without_splits(tmp_path, capsys):
    for label in range(len(CLASSES)):
        for index in range(2):
            write(tmp_path, "", label, f"p{index}", render_phantom(label, index, size=64))
    page = tmp_path / "page.html"
    assert audit.main([str(tmp_path), "--fail-on-leak", "--html", str(page)]) == 0
    assert "one split only" in capsys.readouterr().out.splitlines()[0]
    assert "one split only" in page.read_text()


def test_one_image_per_class(tmp_path, reported):
    write_set(tmp_path, training=1, testing=1)
    data, _ = reported(audit.main, tmp_path, "--html", tmp_path / "page.html")
    assert data["grouped_nearest_neighbour"] is None  # one image a class cannot be divided


def test_validation_is_checked_against_training_only(tmp_path):
    for split, start in (("train", 0), ("valid", 100), ("test", 200)):
        for label in range(len(CLASSES)):
            for index in range(2):
                write(tmp_path, split, label, f"p{index}", render_phantom(label, start + index, size=64))
    write(tmp_path, "valid", 0, "leak", render_phantom(0, 0, size=64))
    # A copy of a test image: test leaks, val does not.
    write(tmp_path, "valid", 0, "other", render_phantom(0, 200, size=64))
    folder = scan_folder(tmp_path)
    found = findings.audit(folder, load_pixels(folder, audit.SEARCH_PIXELS))
    assert found.checks["val"].copy_count == 1
    assert found.checks["Testing"].copy_count == 1
    assert [folder.records[match.source].path for match in found.matches["Testing"]] == ["valid/glioma/other.png"]


def test_unreadable_images_are_named_and_left_out(small, reported):
    (small / "Training/glioma/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    data, printed = reported(audit.main, small)
    assert "broken.png" in printed
    assert data["n"] == 12
    assert "sources" not in data  # nothing names any
    assert data["problems"][0]["path"] == "Training/glioma/broken.png"


def probe(pixels, labels):
    return {probe.name: probe for probe in shortcuts.run_probes(pixels, labels, np.arange(len(labels)))}


def test_probes_find_a_planted_border_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 200, (240, 112, 112), dtype=np.uint8), np.arange(240) % 4
    noise = probe(pixels, labels)
    for found in noise.values():
        assert found.balanced_accuracy == pytest.approx(0.25, abs=0.12)
    for image, label in zip(pixels, labels, strict=True):
        image[:4] = 60 * label  # the border tells the class
    planted = probe(pixels, labels)
    assert planted["border"].balanced_accuracy > 0.95
    assert set(planted["border"].recall) == set(CLASSES)


def test_probes_find_a_class_that_is_always_mirrored():
    rng = np.random.default_rng(0)
    pixels = np.zeros((240, 112, 112), np.uint8)
    pixels[:, 20:90, 10:70] = 120  # one off-centre shape with a marked corner, so that each of the 8 ways up differs
    pixels[:, 20:40, 10:25] = 250
    pixels += rng.integers(0, 5, pixels.shape, dtype=np.uint8)
    labels = np.arange(240) % 2
    upright = probe(pixels, labels)["way up"].balanced_accuracy
    pixels[labels == 1] = pixels[labels == 1, :, ::-1]
    assert upright < 0.65
    assert probe(pixels, labels)["way up"].balanced_accuracy > 0.9


def test_probes_keep_groups_whole():
    # 8 pictures, 20 noisy copies each, random labels per picture: only memory can tell the class.
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 250, (8, 112, 112))
    groups = np.repeat(np.arange(8), 20)
    labels = np.array([0, 1, 0, 1, 1, 0, 1, 0])[groups]
    pixels = (picture[groups] + rng.integers(0, 5, (160, 112, 112))).astype(np.uint8)
    honest = shortcuts.run_probes(pixels, labels, groups)[0]
    fooled = shortcuts.run_probes(pixels, labels, np.arange(160))[0]
    assert fooled.balanced_accuracy > 0.95
    assert honest.balanced_accuracy < 0.8


def test_no_probes_without_two_groups_a_class():
    pixels = np.zeros((4, 64, 64), np.uint8)
    assert shortcuts.run_probes(pixels, np.arange(4), np.arange(4)) == []


def test_an_audit_across_sources_finds_copies_between_them_and_what_gives_them_away(tmp_path, reported):
    """The second source is brighter at its border, has two copies of the first's images, and a class of its own."""
    write_phantoms(tmp_path, 12, 1, seed=0, size=64)
    lines = ["path,class,source,sequence"]
    for number, path in enumerate(sorted((tmp_path / "Training").rglob("*.png"))):
        source = "ab"[number % 2] if path.parent.name != "pituitary" else "c"
        image = np.asarray(Image.open(path)).copy()
        if source == "b":
            image[:4] = image[-4:] = 200
        Image.fromarray(image).save(path)
        sequence = "FLAIR" if path.parent.name == "glioma" else "T1"
        lines.append(f"{path.relative_to(tmp_path).as_posix()},{path.parent.name},{source},{sequence}")
    for number in (0, 2):
        copy = tmp_path / "Training" / "glioma" / f"copy{number}.png"
        shutil.copy(tmp_path / lines[1 + number].split(",")[0], copy)
        lines.append(f"{copy.relative_to(tmp_path).as_posix()},glioma,b,FLAIR")
    (tmp_path / "images.csv").write_text("\n".join(lines) + "\n")
    data, printed = reported(audit.main, tmp_path, "--table", "images.csv")
    found = data["sources"]
    assert found["counts"]["c"] == {"glioma": 0, "meningioma": 0, "notumor": 0, "pituitary": 12}
    assert found["copies"] == [{"sources": ["a", "b"], "images": 4}]
    assert "4 images of a and b have a copy in the other" in printed
    assert "sources of one class only, which tell the class: c" in printed
    # FLAIR is all gliomas and none else, T1 the best guess for one of the other three
    assert found["class_told_by"]["sequence"] == pytest.approx((1 + 1) / 4)
    border = next(probe for probe in found["source_told_by"] if probe["name"] == "border")
    assert border["recall"]["b"] > 0.8
    assert set(found["class_told_within"]) <= {"a", "b"}
