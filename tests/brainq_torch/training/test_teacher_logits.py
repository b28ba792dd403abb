"""Teacher logits on disk: exact, resumable, tied to image and teacher; out-of-fold manifests."""

import json
from dataclasses import replace

import pytest
import torch

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.load import load_pixels, scan_folder
from brainq_torch.data.dataset.manifest import ManifestRow, make_manifest
from brainq_torch.data.pixels import PixelSpec, scale_pixels
from brainq_torch.data.synthesis.phantom import write_phantoms
from brainq_torch.models import build_model
from brainq_torch.training.teacher_logits import TeacherLogits, TeacherLogitsError, fill, fill_from_runs, fingerprint
from tests.support.narrow_run import write_run


def make_rows(count=10):
    return [ManifestRow(f"Training/{i}.png", CLASSES[i % 4], "Training", "", f"{i:064d}") for i in range(count)]


def random_logits(count, seed=0):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def test_values_survive_the_file_exactly_and_are_plain_to_read(tmp_path):
    rows, logits = make_rows(), random_logits(10) * 1e3
    logits[0] = torch.tensor([0.5, 1.0, -2.0, 0.0])
    TeacherLogits(tmp_path / "l.jsonl").add(rows, "t", logits)
    again = TeacherLogits(tmp_path / "l.jsonl")
    assert len(again) == 10
    assert torch.equal(again.lookup(rows[::-1]), logits.flip(0))
    assert again.lookup(rows).dtype == torch.float32
    header, line = [json.loads(text) for text in (tmp_path / "l.jsonl").read_text().splitlines()[:2]]
    assert header == {"format": 1, "classes": list(CLASSES)}
    assert line == {"path": "Training/0.png", "sha256": "0" * 64, "teacher": "t", "logits": [0.5, 1.0, -2.0, 0.0]}


def test_a_killed_fill_continues(tmp_path):
    file, rows = tmp_path / "deep" / "l.jsonl", make_rows()
    expected, asked = random_logits(10), []

    def compute(part, stop_after):
        if len(asked) + len(part) > stop_after:
            raise KeyboardInterrupt
        asked.extend(part)
        return torch.stack([expected[rows.index(row)] for row in part])

    with pytest.raises(KeyboardInterrupt):
        fill(TeacherLogits(file), rows, "t", lambda part: compute(part, 6), batch_size=3)
    assert len(TeacherLogits(file)) == 6
    with file.open("a") as torn:  # killed in the middle of a line, too
        torn.write('{"path": "Training/6.png", "sha2')
    fill(TeacherLogits(file), rows, "t", lambda part: compute(part, 10), batch_size=3)
    assert asked == rows
    assert torch.equal(TeacherLogits(file).lookup(rows), expected)
    # Nothing left: nothing is computed again.
    fill(TeacherLogits(file), rows, "t", lambda part: pytest.fail("computed twice"))


def test_logits_of_another_teacher_or_image_are_refused(tmp_path):
    rows = make_rows(2)
    logits = TeacherLogits(tmp_path / "l.jsonl")
    logits.add(rows, "first", random_logits(2))
    with pytest.raises(TeacherLogitsError, match=r"teacher first.*not of second"):
        logits.missing(rows, "second")
    changed = [replace(rows[0], sha256="f" * 64)]
    with pytest.raises(TeacherLogitsError, match="another image"):
        logits.missing(changed, "first")
    with pytest.raises(TeacherLogitsError, match="another image"):
        logits.lookup(changed)
    with pytest.raises(TeacherLogitsError, match="lacks 1 of 3"):
        logits.lookup(make_rows(3))


@pytest.mark.parametrize(
    "logits", [torch.zeros(2, 3), torch.zeros(1, 4), torch.tensor([[0.0, 1, 2, torch.nan]] * 2)], ids=str
)
def test_wrong_logits_are_not_written(tmp_path, logits):
    with pytest.raises(TeacherLogitsError, match=r"expected \(2, 4\) finite"):
        TeacherLogits(tmp_path / "l.jsonl").add(make_rows(2), "t", logits)
    assert not (tmp_path / "l.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "no file of teacher logits") for text in ("path,logits\n", "their\nlast", '{"format": 1}\n', "")),
        ('{"format": 1, "classes": ["a"]}\n', "expected 1"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "l.jsonl").write_text(text)
    with pytest.raises(TeacherLogitsError, match=message):
        TeacherLogits(tmp_path / "l.jsonl")
    assert (tmp_path / "l.jsonl").read_text() == text


@torch.no_grad()
def test_runs_fill_at_their_own_size(tmp_path):
    write_phantoms(tmp_path / "data", 2, 1, size=64)
    rows = make_manifest(tmp_path / "data", scan_folder(tmp_path / "data").select("Training").records)
    expected = torch.zeros(len(rows), 4)
    runs = []
    for seed, size in enumerate((32, 64)):
        torch.manual_seed(seed)
        model = build_model("mobilenetv2", width_mult=0.1).eval()
        runs.append(write_run(tmp_path / f"run{seed}", model, size))
        pixels = load_pixels(scan_folder(tmp_path / "data").select("Training"), PixelSpec(size))
        expected += model(torch.from_numpy(scale_pixels(pixels))) / 2
    logits = TeacherLogits(tmp_path / "l.jsonl")
    fill_from_runs(logits, runs, rows, tmp_path / "data")
    torch.testing.assert_close(logits.lookup(rows), expected, atol=1e-5, rtol=1e-5)
    assert logits.missing(rows, fingerprint(runs)) == []
    assert len(set(fingerprint(runs).split("+"))) == 2
