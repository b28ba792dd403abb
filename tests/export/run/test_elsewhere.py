import csv
import shutil

import numpy as np
import pytest

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.sample import DataFolderError
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.reading.image import read_grey
from export.run.elsewhere import read_elsewhere

SPEC = PixelSpec(32)


@pytest.fixture
def hospital(phantoms, tmp_path):
    """Four patients of two images each, of two scanners."""
    table = tmp_path / "images.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "class", "group", "source"))
        for number, path in enumerate(sorted((phantoms / "Testing").glob("*/*.png"))[:8]):
            shutil.copy(path, tmp_path / f"{number}.png")
            rows.writerow((f"{number}.png", path.parent.name, f"patient {number // 2}", f"scanner {number // 4}"))
    return table


def test_every_second_patient_chooses_and_the_others_are_reported(hospital):
    found = read_elsewhere([hospital], SPEC, CLASSES)
    names = [{source: sample.names for source, sample in part.items()} for part in (found.choosing, found.reporting)]
    assert names == [
        {"scanner 0": ("0.png", "1.png"), "scanner 1": ("4.png", "5.png")},
        {"scanner 0": ("2.png", "3.png"), "scanner 1": ("6.png", "7.png")},
    ]
    np.testing.assert_array_equal(
        found.choosing["scanner 1"].pixels[1], SPEC.apply(read_grey(hospital.parent / "5.png").pixels), strict=True
    )


def test_where_nothing_is_to_be_chosen_every_patient_is_reported(hospital):
    found = read_elsewhere([hospital], SPEC, CLASSES, choose=False)
    assert found.choosing == {}
    assert {source: len(sample.names) for source, sample in found.reporting.items()} == {"scanner 0": 4, "scanner 1": 4}


def test_labels_are_the_networks(hospital, phantoms):
    plain = read_elsewhere([hospital], SPEC, CLASSES).reporting["scanner 1"]
    backwards = read_elsewhere([hospital], SPEC, CLASSES[::-1]).reporting["scanner 1"]
    assert [CLASSES[label] for label in plain.labels] == [CLASSES[::-1][label] for label in backwards.labels]
    folder = read_elsewhere([phantoms / "Testing"], SPEC, CLASSES).choosing[str(phantoms / "Testing")]
    assert [CLASSES[label] for label in folder.labels] == [name.split("/")[0] for name in folder.names]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["one.csv"], "1 groups of images; two or more are needed"),  # one patient cannot do both
        (["0.png"], "0.png is a file, not a folder"),
        (["images.csv", "again.csv"], "again.csv: scanner 0, scanner 1 was there before; name each source"),
    ],
)
def test_what_is_no_other_source_is_refused(hospital, names, message):
    hospital.with_name("one.csv").write_text("\n".join(hospital.read_text().splitlines()[:3]))
    shutil.copy(hospital, hospital.with_name("again.csv"))
    with pytest.raises(DataFolderError, match=message):
        read_elsewhere([hospital.with_name(name) for name in names], SPEC, CLASSES)
