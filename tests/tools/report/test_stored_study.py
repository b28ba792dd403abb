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
ANSWERS = f"predictions/{ROW}.npz"


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "study", images=24, unseen=8)


def check_refused(folder, words):
    with pytest.raises(StudyError, match=words):
        read_study(folder)


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


def arrays(**changes):
    return lambda folder: change_arrays(folder, ROW, **changes)


def row(**changes):
    return lambda folder: change_row(folder, ROW, **changes)


def study(**changes):
    return lambda folder: write_json(folder, read_json(folder) | changes)


def data(**changes):
    return lambda folder: write_json(folder, read_json(folder) | {"data": read_json(folder)["data"] | changes})


def times(median, p90):
    return lambda folder: write_latency(folder, ROW, {"median_ms": median, "p90_ms": p90} | TIMES)


NOT_FINITE = np.where(np.arange(24)[:, None] % 8, 1.0, np.nan).astype(np.float32) * np.ones((1, 4), np.float32)
REFUSED = [
    ("lacks logits", arrays(logits=None)),
    (r"shapes \[\(24, 3\)", arrays(logits=np.zeros((24, 3), np.float32))),
    ("logits of 3 images are not finite, first glioma/Te_0000", arrays(logits=NOT_FINITE)),
    ("labels go from 0 to 4", arrays(labels=np.arange(24) % 5)),
    ("need float, integer, str and bool", arrays(unseen=np.zeros(24))),
    ("a path is there twice", arrays(paths=np.array(["same.jpg"] * 24))),
    ("have other paths or another order", arrays(paths=np.array([f"other/{i}.jpg" for i in range(24)]))),
    ("have other labels", arrays(labels=(np.arange(24) + 1) % 4)),
    ("shifted copies.* shapes", arrays(shifted_logits=np.zeros((23, 4), np.float32))),
    ("val.* shapes", arrays(val_logits=np.zeros((5, 4), np.float32))),
    ("no npz of plain arrays", arrays(paths=np.array([f"{i}.jpg" for i in range(24)], object))),
    (f"missing, but row {ROW} is done", lambda folder: (folder / ANSWERS).unlink()),
    ("truncated or no npz", lambda folder: (folder / ANSWERS).write_bytes((folder / ANSWERS).read_bytes()[:200])),
    ("is done, but has file '.*', bytes 0", row(bytes=0)),
    ("is done, but has file None", row(file=None)),
    ("lacks or misstates", row(bytes="many")),
    ("lacks or misstates", row(status="perhaps")),
    ("lacks or misstates", row(colour=1)),
    ("bytes 4400, predictions None", row(predictions=None)),
    ("compared with nobody, which is no row", row(float="nobody")),
    ("of another family", row(float="densenet32_float")),
    ("no file name", row(id="../up")),
    ("lacks or misstates", row(parity={"passed": True})),
    ("lacks or misstates", row(sources=None)),
    ("lacks or misstates", row(omitted=None)),
    ("none.json is missing", row(latency="latency/none.json")),
    ("need 0 < median <= p90", times(0.0, 1.0)),
    ("need 0 < median <= p90", times(2.0, 1.0)),
    ("need 0 < median <= p90", times(-1.0, 1.0)),
    ("has format 2; this version reads 1", study(format=2)),
    ("must name each once", study(order=["mobilenetv2_float"])),
    ("nobody, which is no row", study(gradcam={"row": "nobody", "file": "gradcam.png"})),
    ("none.png is missing", study(gradcam={"row": ROW, "file": "none.png"})),
    ("lacks or misstates", study(data={"root": "x"})),
    ("lacks or misstates", study(rows={"id": "a"})),
    ("lacks or misstates", study(order=5)),
    ("lacks or misstates", study(created_from={"class_path": "this.CreatedFrom", "init_args": {}})),
    ("lacks or misstates", study(gradcam={"row": [], "file": "gradcam.png"})),
    ("lacks or misstates", study(gradcam={"row": "mobilenetv2_float", "file": None})),
    ("lacks or misstates", data(nearest_neighbour={"all": "much", "unseen": None})),
    ("lacks or misstates", data(images=1e999)),
    (r"holds 24 images, study\.json says 25", data(images=25)),
    (r"study.json is missing; make it first", lambda folder: (folder / "study.json").unlink()),
]


@pytest.mark.parametrize(("message", "spoil"), REFUSED)
def test_what_cannot_be_reported_on_is_refused(folder, message, spoil):
    spoil(folder)
    check_refused(folder, message)


@pytest.mark.parametrize("file", ["study.json", f"latency/{ROW}.json"])
@pytest.mark.parametrize("junk", [b"", b"[1]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000], ids=repr)
def test_a_file_that_holds_something_else_is_named(folder, file, junk):
    (folder / file).write_bytes(junk)
    check_refused(folder, file)
