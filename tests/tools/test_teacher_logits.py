"""The command that keeps a teacher's logits: what students then learn from, in and out of fold."""

from __future__ import annotations

import pytest
import torch

from brainq_torch.data.dataset.load import load_pixels
from brainq_torch.data.dataset.manifest import manifest_folder, read_manifest
from brainq_torch.fit import main as fit
from brainq_torch.run import load_run
from brainq_torch.training.teacher_logits import TeacherLogits
from export.run.runners import load_runner
from tests.conftest import TINY
from tools.teacher_logits import main


def training_rows(run):
    return [row for row in read_manifest(run / "manifest.csv") if row.split == "Training"]


def test_a_student_learns_from_kept_logits(tiny_run, phantoms, tmp_path, capsys):
    file = tmp_path / "logits.jsonl"
    assert main([str(tiny_run), "--data", str(phantoms), "--out", str(file)]) == 0
    assert "the teacher is right on" in capsys.readouterr().out
    rows = training_rows(tiny_run)
    pixels = load_run(tiny_run).pixels
    expected = load_runner(tiny_run)(load_pixels(manifest_folder(phantoms, rows), pixels))
    torch.testing.assert_close(TeacherLogits(file).lookup(rows), torch.from_numpy(expected), atol=1e-5, rtol=0)

    teacher = {"class_path": "brainq_torch.training.teacher.CachedTeacher", "init_args": {"file": str(file)}}
    term = {"class_path": "brainq_torch.training.distill.SoftTargets"}
    assert fit([
        *TINY, f"--data.root={phantoms}", f"--data.manifest={tiny_run / 'manifest.csv'}",
        f"--out={tmp_path / 'student'}",
        f"--distillation={{'teacher': {teacher}, 'terms': [{term}]}}", "--stages=[{name: all, epochs: 1}]",
    ]) == 0  # fmt: skip


def test_the_mean_of_several_runs(tiny_run, phantoms, tmp_path):
    assert main([str(tiny_run), "--data", str(phantoms), "--out", str(tmp_path / "one")]) == 0
    assert main([str(tiny_run), str(tiny_run), "--data", str(phantoms), "--out", str(tmp_path / "two")]) == 0
    rows = training_rows(tiny_run)
    one, two = (TeacherLogits(tmp_path / name).lookup(rows) for name in ("one", "two"))
    torch.testing.assert_close(one, two)


def test_folds_cover_the_training_part_once(tiny_run, tmp_path):
    folds = tmp_path / "folds"
    assert main(["--folds", "2", "--manifest", str(tiny_run / "manifest.csv"), "--out", str(folds)]) == 0
    manifests = [read_manifest(folds / f"fold_{fold}.csv") for fold in range(2)]
    held_out = [row.path for rows in manifests for row in rows if row.split == "Testing"]
    assert sorted(held_out) == sorted(row.path for row in training_rows(tiny_run))


def test_a_folds_teacher_answers_for_what_it_has_not_seen(tiny_run, phantoms, tmp_path):
    file = tmp_path / "logits.jsonl"
    assert main([str(tiny_run), "--held-out", "--data", str(phantoms), "--out", str(file)]) == 0
    testing = [row for row in read_manifest(tiny_run / "manifest.csv") if row.split == "Testing"]
    assert len(TeacherLogits(file)) == len(testing) == 12
    TeacherLogits(file).lookup(testing)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x"], "name the teacher's run folders"),
        (["--folds", "2", "--out", "x"], "--folds takes --manifest"),
        (["--folds", "99", "--manifest", "RUN/manifest.csv", "--out", "x"], "allowed are 2 to"),
        (["RUN", "RUN", "--held-out", "--data", ".", "--out", "x"], "--held-out takes one teacher"),
        (["RUN", "--data", ".", "--manifest", "nowhere.csv", "--out", "x"], "nowhere.csv"),
    ],
)
def test_wrong_words_are_refused(tiny_run, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("RUN", str(tiny_run)) for word in words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
