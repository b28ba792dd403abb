"""The command that keeps a teacher's logits: what students then learn from."""

import torch

from brainq_torch.data.dataset.load import load_pixels
from brainq_torch.data.dataset.manifest import manifest_folder, read_manifest
from brainq_torch.fit import main as fit
from brainq_torch.run import load_run
from brainq_torch.training.teacher_logits import TeacherLogits
from export.run.runners import load_runner
from tests.conftest import TINY
from tools.teacher_logits import main


def test_a_student_learns_from_kept_logits(tiny_run, phantoms, tmp_path, ended):
    file = tmp_path / "logits.jsonl"
    assert "the teacher is right on" in ended(main([str(tiny_run), "--data", str(phantoms), "--out", str(file)])).out
    rows = [row for row in read_manifest(tiny_run / "manifest.csv") if row.split == "Training"]
    pixels = load_run(tiny_run).pixels
    expected = load_runner(tiny_run)(load_pixels(manifest_folder(phantoms, rows), pixels))
    torch.testing.assert_close(TeacherLogits(file).lookup(rows), torch.from_numpy(expected), atol=1e-5, rtol=0)
    mean = tmp_path / "mean"
    assert main([str(tiny_run), str(tiny_run), "--data", str(phantoms), "--out", str(mean)]) == 0
    torch.testing.assert_close(TeacherLogits(mean).lookup(rows), TeacherLogits(file).lookup(rows))
    teacher = {"class_path": "brainq_torch.training.teacher.CachedTeacher", "init_args": {"file": str(file)}}
    term = {"class_path": "brainq_torch.training.distill.SoftTargets"}
    assert fit([
        *TINY, f"--data.root={phantoms}", f"--data.manifest={tiny_run / 'manifest.csv'}",
        f"--out={tmp_path / 'student'}",
        f"--distillation={{'teacher': {teacher}, 'terms': [{term}]}}", "--stages=[{name: all, epochs: 1}]",
    ]) == 0  # fmt: skip


def test_a_missing_manifest_is_refused(tiny_run, tmp_path, monkeypatch, ended):
    monkeypatch.chdir(tmp_path)
    words = [str(tiny_run), "--data", ".", "--manifest", "nowhere.csv", "--out", "x"]
    assert "nowhere.csv" in ended(main(words), 2).err
    assert "lines of JSON, name it .jsonl" in ended(main([*words[:-1], "x.npz"]), 2).err
    assert not list(tmp_path.iterdir())
