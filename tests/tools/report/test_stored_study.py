import numpy as np
import pytest

from tests.support.handmade_study import (
    NOT_DONE,
    TIMES,
    change_arrays,
    change_row,
    read_json,
    write_json,
    write_latency,
    write_study,
)
from tools.report.stored_study import read_study
from tools.shared.study_schema import StudyError

ROW = "mobilenetv2_fp16"


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "study", images=24, unseen=8)


def check_refused(folder, words):
    with pytest.raises(StudyError, match=words):
        read_study(folder)


def edit(folder, **changes):
    write_json(folder, read_json(folder) | changes)


def test_a_whole_study_is_read_in_the_order_of_the_table(folder):
    study = read_study(folder)
    assert [row.id for row in study.rows] == read_json(folder)["order"]
    assert [row.id for row in study.rows if not row.done] == [NOT_DONE]
    row = study.row(ROW)
    assert (row.bytes, row.latencies["litert"].median_ms) == (4400, 4.4)
    assert (len(row.testing), len(row.validation)) == (24, 12)
    assert "onnxruntime" not in row.latencies
    assert row.float == "mobilenetv2_float"


def test_paths_are_found_in_the_study_or_from_the_working_directory(folder, monkeypatch):
    study = read_study(folder)
    assert study.link("runs/model_fp16.tflite") == "runs/model_fp16.tflite"
    (folder.parent / "elsewhere.txt").write_text("there")
    monkeypatch.chdir(folder.parent)
    assert study.link("elsewhere.txt") == "../elsewhere.txt"
    assert study.link("nowhere.txt") is None


def test_a_file_that_was_not_kept_is_no_error_but_a_changed_one_is(folder):
    (folder / "runs/model_fp16.tflite").unlink()
    assert read_study(folder).link("runs/model_fp16.tflite") is None
    (folder / "runs/model_fp16.tflite").write_bytes(bytes(4401))
    check_refused(folder, r"has 4401 bytes, study\.json says 4400: it has changed")


def test_a_run_without_validation_is_read(folder):
    empty = {"val_logits": np.empty((0, 4), np.float32), "val_labels": np.empty(0, int)}
    change_arrays(folder, ROW, **empty, val_paths=np.empty(0, "U1"), val_unseen=np.empty(0, bool))
    assert len(read_study(folder).row(ROW).validation) == 0


BROKEN_ARRAYS = {
    "lacks logits": {"logits": None},
    r"shapes \[\(24, 3\)": {"logits": np.zeros((24, 3), np.float32)},
    r"logits of 3 images are not finite, first glioma/Te_0000": {
        "logits": np.where(np.arange(24)[:, None] % 8, 1.0, np.nan).astype(np.float32) * np.ones((1, 4), np.float32)
    },
    "labels go from 0 to 4": {"labels": np.arange(24) % 5},
    "need float, integer, str and bool": {"unseen": np.zeros(24)},
    "a path is there twice": {"paths": np.array(["same.jpg"] * 24)},
    "have other paths or another order": {"paths": np.array([f"other/{i}.jpg" for i in range(24)])},
    "have other labels": {"labels": (np.arange(24) + 1) % 4},
    "shifted copies.* shapes": {"shifted_logits": np.zeros((23, 4), np.float32)},
    "val.* shapes": {"val_logits": np.zeros((5, 4), np.float32)},
}


@pytest.mark.parametrize("message", BROKEN_ARRAYS)
def test_broken_answers_are_refused(folder, message):
    change_arrays(folder, ROW, **BROKEN_ARRAYS[message])
    check_refused(folder, message)


@pytest.mark.parametrize("file", ["study.json", f"latency/{ROW}.json"])
@pytest.mark.parametrize("junk", [b"", b"[1]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000], ids=repr)
def test_a_file_that_holds_something_else_is_named(folder, file, junk):
    (folder / file).write_bytes(junk)
    check_refused(folder, file)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"images": 1e999}},
        {"data": {"nearest_neighbour": {"all": "much", "unseen": None}}},
        {"gradcam": {"row": [], "file": "gradcam.png"}},
        {"gradcam": {"row": "mobilenetv2_float", "file": None}},
        {"rows": {"id": "a"}},
        {"order": 5},
        {"created_from": {"class_path": "this.CreatedFrom", "init_args": {}}},
    ],
)
def test_values_of_another_type_are_refused(folder, changes):
    study = read_json(folder)
    for key, value in changes.items():
        study[key] = study[key] | value if key == "data" else value
    write_json(folder, study)
    check_refused(folder, r"study\.json|gradcam")


def test_rows_of_another_number_of_images_are_refused(folder):
    edit(folder, data=read_json(folder)["data"] | {"images": 25})
    check_refused(folder, r"holds 24 images, study\.json says 25")


def test_missing_and_truncated_answers_are_refused(folder):
    path = folder / f"predictions/{ROW}.npz"
    path.write_bytes(path.read_bytes()[:200])
    check_refused(folder, "truncated or no npz")
    path.unlink()
    check_refused(folder, f"missing, but row {ROW} is done")


def test_pickled_answers_are_not_loaded(folder):
    change_arrays(folder, ROW, paths=np.array([f"{i}.jpg" for i in range(24)], object))
    check_refused(folder, "no npz of plain arrays")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bytes": 0}, "is done, but has file '.*', bytes 0"),
        ({"file": None}, "is done, but has file None"),
        ({"bytes": "many"}, "lacks or misstates"),
        ({"status": "perhaps"}, "lacks or misstates"),
        ({"colour": 1}, "lacks or misstates"),
        ({"predictions": None}, "bytes 4400, predictions None"),
        ({"float": "nobody"}, "compared with nobody, which is no row"),
        ({"float": "densenet32_float"}, "of another family"),
        ({"id": "../up"}, "no file name"),
        ({"parity": {"passed": True}}, "lacks or misstates"),
        ({"sources": None}, "lacks or misstates"),
        ({"omitted": None}, "lacks or misstates"),
        ({"latency": "latency/none.json"}, "none.json is missing"),
    ],
)
def test_broken_rows_are_refused(folder, changes, message):
    change_row(folder, ROW, **changes)
    check_refused(folder, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2; this version reads 1"),
        ({"order": ["mobilenetv2_float"]}, "must name each once"),
        ({"gradcam": {"row": "nobody", "file": "gradcam.png"}}, "nobody, which is no row"),
        ({"gradcam": {"row": ROW, "file": "none.png"}}, "none.png is missing"),
        ({"data": {"root": "x"}}, "lacks or misstates"),
    ],
)
def test_broken_studies_are_refused(folder, changes, message):
    edit(folder, **changes)
    check_refused(folder, message)


@pytest.mark.parametrize(("median", "p90"), [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_times_that_cannot_be_are_refused(folder, median, p90):
    write_latency(folder, ROW, {"median_ms": median, "p90_ms": p90} | TIMES)
    check_refused(folder, "need 0 < median <= p90")


def test_no_study_is_refused(tmp_path):
    check_refused(tmp_path, r"study.json is missing; make it first")
