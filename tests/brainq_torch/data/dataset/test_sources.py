"""Several sources: one table of all of them, each with its own classes and groups, and what is refused."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from brainq_torch.data.classes import CLASSES, Labels
from brainq_torch.data.dataset.load import scan_folder
from brainq_torch.data.dataset.sample import DataFolderError
from brainq_torch.data.dataset.sources import ImageSet, Source
from brainq_torch.data.synthesis.phantom import encode_png, render_phantom, write_phantoms

TABLE = Source("hospitals", "other", "images.csv")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """kaggle: four classes, Training and Testing. other: a table of two hospitals, gliomas and no tumours. hgg: HGG."""
    root = tmp_path_factory.mktemp("sources")
    write_phantoms(root / "kaggle", 4, 2, seed=0, size=32)
    write_phantoms(root / "other", 6, 1, seed=1, size=32)
    for name, label in (("HGG", 0), ("no", 2)):
        (root / "grades" / name).mkdir(parents=True)
        for number in range(3):
            (root / "grades" / name / f"{number}.png").write_bytes(encode_png(render_phantom(label, number, 2, 32)))
    lines = ["path,class,source,group,sequence,plane"]
    paths = [path for name in ("glioma", "notumor") for path in sorted((root / "other" / "Training" / name).iterdir())]
    for n, path in enumerate(paths):
        place = path.relative_to(root / "other").as_posix()
        lines.append(f"{place},{path.parent.name},{('cs', 'du')[n % 2]},p{n // 3},T1,axial")
    (root / "other" / "images.csv").write_text("\n".join([*lines, ""]))
    return root


def test_all_sources_become_one_table(root):
    grades = Source("grades", "grades", class_map={"HGG": "glioma"}, group_pattern="(.*)")
    folder = ImageSet(sources=(Source("kaggle", "kaggle"), TABLE, grades)).scan(root)
    assert folder.classes == CLASSES
    counts: dict[str, int] = {}
    for record in folder.records:
        counts[record.source] = counts.get(record.source, 0) + 1
        assert (root / record.path).is_file()
    assert counts == {"kaggle": 24, "cs": 6, "du": 6, "grades": 6}
    one = next(record for record in folder.records if record.source == "du")
    assert (one.sequence, one.plane) == ("T1", "axial")
    assert one.group.startswith("hospitals:p")
    mapped = [record for record in folder.records if "HGG" in record.path]
    assert {CLASSES[record.label] for record in mapped} == {"glioma"}
    assert {record.group.partition(":")[0] for record in mapped} == {"grades"}
    assert {record.split for record in folder.records if record.source != "kaggle"} == {"all"}
    alone = [problem.path for problem in folder.problems if "are of the source kaggle, whose look" in problem.what]
    assert alone == ["meningioma", "pituitary"]


def test_roots_may_be_anywhere(root):
    far = ImageSet(sources=(Source("kaggle", str(root / "kaggle")),)).scan(Path())
    near = ImageSet(sources=(Source("kaggle", "kaggle"),)).scan(root)
    assert [root / record.path for record in near.records] == [Path(record.path) for record in far.records]


def test_without_sources_it_is_the_one_folder(root):
    assert ImageSet().scan(root / "kaggle").records == scan_folder(root / "kaggle").records


def test_a_table_in_place_of_class_folders_says_what_is_known(root):
    folder = scan_folder(root / "other", labels=Labels(()), table=root / "other" / "images.csv")
    assert {record.source for record in folder.records} == {"cs", "du"}
    assert len(folder.records) == 12


def test_names_that_a_number_tells_apart_are_asked_about_across_sources(root, tmp_path):
    """One folder is glioma 1, the next hospital's table says glioma 2: grades, or one class? As within one folder."""
    for source, folders in {"one": ("glioma 1", "no"), "two": ("pictures", "healthy")}.items():
        for name, folder in zip(("glioma", "notumor"), folders, strict=True):
            shutil.copytree(root / "kaggle" / "Training" / name, tmp_path / source / folder)
    rows = [f"pictures/{path.name},glioma 2" for path in (tmp_path / "two" / "pictures").iterdir()]
    rows += [f"healthy/{path.name},healthy" for path in (tmp_path / "two" / "healthy").iterdir()]
    (tmp_path / "two" / "labels.csv").write_text("\n".join(["path,label", *rows]))
    images = ImageSet(sources=(Source("one", "one"), Source("two", "two")))
    with pytest.raises(DataFolderError, match=r"two: glioma 1 and glioma 2 differ by a number") as raised:
        images.find_classes(tmp_path)
    one, two = (yaml.safe_load(answer) for answer in re.findall(r"'(\{.*?\})'", str(raised.value)))
    assert replace(images, class_map=one).find_classes(tmp_path) == ("glioma", "notumor")
    assert replace(images, class_map=two).find_classes(tmp_path) == ("glioma 1", "glioma 2", "notumor")
    assert replace(images, classes=["glioma", "notumor"]).find_classes(tmp_path) == ("glioma", "notumor")


KAGGLE = Source("kaggle", "kaggle")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"sources": (KAGGLE, KAGGLE)}, "names kaggle twice"),
        ({"sources": (KAGGLE, replace(TABLE, name="x"), Source("cs", "grades"))}, "both have .* a source called cs"),
        ({"sources": (KAGGLE, Source("more", "kaggle"))}, "in two of data.sources"),
        ({"sources": (Source("gone", "nowhere"),)}, r"gone: .*nowhere does not exist"),
        ({"sources": (KAGGLE, replace(TABLE, table="none.csv"))}, "hospitals: the table none.csv is neither"),
        ({"sources": (replace(KAGGLE, class_map={"HGG": "glioma"}),)}, "kaggle: data.class_map names HGG"),
        ({"sources": (KAGGLE,), "class_map": {"HGG": "glioma"}}, "names HGG, no class folder"),
        (
            {"sources": (replace(KAGGLE, class_map={"glioma": "cyst"}),), "classes": CLASSES},
            "kaggle: data.class_map has glioma: cyst, which is not in data.classes",
        ),
        ({"sources": (replace(KAGGLE, groups="no.csv"),)}, r"kaggle: no.csv, the table of groups, is no file"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_source_and_the_remedy(root, images, message):
    with pytest.raises(ValueError, match=message):
        ImageSet(**images).scan(root)


def test_a_table_that_names_missing_files_is_refused(root):
    text = (root / "other" / "images.csv").read_text()
    (root / "other" / "more.csv").write_text(text + "glioma/gone.png,glioma,cs,p9,T1,axial\n")
    with pytest.raises(ValueError, match=r"lists 1 images that are not below .*glioma/gone.png; restore them"):
        ImageSet(sources=(replace(TABLE, table="more.csv"),)).scan(root)


@pytest.mark.parametrize("name", ["", "a+b", "a/b"])
def test_a_source_needs_a_name_that_files_can_have(name):
    with pytest.raises(ValueError, match=r"data\.sources has the name"):
        Source(name, "kaggle")
