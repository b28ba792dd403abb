"""Teacher logits per image: kept on disk by manifest path."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.load import load_pixels
from brainq_torch.data.dataset.manifest import ManifestRow, manifest_folder
from brainq_torch.data.pixels import scale_pixels
from brainq_torch.run import load_run
from brainq_torch.run_files import CHECKPOINT, BrainqError, hash_file

_FORMAT = 1


class TeacherLogitsError(BrainqError):
    """A file of teacher logits that cannot be used for the images or the teacher at hand."""


class TeacherLogits:
    """Logits of a teacher for images as they are on disk, one JSON line per image: path, SHA-256, teacher, logits.

    Lines are only ever appended, so filling can be killed and continued: a torn last line is dropped.
    """

    def __init__(self, file: Path, classes: Sequence[str] = CLASSES) -> None:
        self.file, self.classes = file, list(classes)
        self._entries: dict[str, tuple[str, str, list[float]]] = {}
        if file.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._entries)

    def missing(self, rows: Sequence[ManifestRow], teacher: str) -> list[ManifestRow]:
        """Return the rows without logits, in order. Raises TeacherLogitsError for other teachers' or images'."""
        return [row for row in rows if not self._holds(row, teacher)]

    def add(self, rows: Sequence[ManifestRow], teacher: str, logits: Tensor) -> None:
        """Append finite logits, (len(rows), classes) float32, under the teacher's ``fingerprint``; flush them."""
        if tuple(logits.shape) != (len(rows), len(self.classes)) or not torch.isfinite(logits).all():
            raise TeacherLogitsError(
                f"logits are {tuple(logits.shape)}, finite: {bool(torch.isfinite(logits).all())}; "
                f"expected ({len(rows)}, {len(self.classes)}) finite values"
            )
        if not self.file.exists():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps({"format": _FORMAT, "classes": self.classes}) + "\n", encoding="utf-8")
        with self.file.open("a", encoding="utf-8") as file:
            for row, values in zip(rows, logits.float().cpu().tolist(), strict=True):
                entry = {"path": row.path, "sha256": row.sha256, "teacher": teacher, "logits": values}
                file.write(json.dumps(entry) + "\n")
                self._entries[row.path] = (row.sha256, teacher, values)

    def lookup(self, rows: Sequence[ManifestRow]) -> Tensor:
        """Return the rows' logits, (len(rows), classes) float32, whoever made them. Raises TeacherLogitsError."""
        absent = [row.path for row in rows if row.path not in self._entries]
        if absent:
            raise TeacherLogitsError(
                f"{self.file} lacks {len(absent)} of {len(rows)} images, first {absent[0]}; fill it with "
                "brainq_torch.training.teacher_logits.fill for every training image of this run's manifest"
            )
        for row in rows:
            self._check_image(row)
        return torch.tensor([self._entries[row.path][2] for row in rows], dtype=torch.float32)

    def _holds(self, row: ManifestRow, teacher: str) -> bool:
        if row.path not in self._entries:
            return False
        self._check_image(row)
        made_by = self._entries[row.path][1]
        if made_by != teacher:
            raise TeacherLogitsError(
                f"{self.file} has logits of teacher {made_by} for {row.path}, not of {teacher}; use another file"
            )
        return True

    def _check_image(self, row: ManifestRow) -> None:
        if self._entries[row.path][0] != row.sha256:
            raise TeacherLogitsError(
                f"{self.file} has logits of another image under {row.path} (SHA-256 differs); use another file"
            )

    def _read(self) -> None:
        text = self.file.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]
        lines = complete.splitlines()
        try:
            header = json.loads(lines[0])
            known = header["format"] == _FORMAT and header["classes"] == self.classes
            for line in lines[1:] if known else []:
                entry = json.loads(line)
                self._entries[entry["path"]] = (entry["sha256"], entry["teacher"], entry["logits"])
        except (IndexError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise TeacherLogitsError(f"{self.file} is no file of teacher logits: {error!r}") from error
        if not known:
            raise TeacherLogitsError(
                f"{self.file} has format and classes {header}; expected {_FORMAT} and {self.classes}"
            )
        if complete != text:  # killed while writing: cut the torn line off, so that appending starts a new one
            self.file.write_text(complete, encoding="utf-8")


def fingerprint(runs: Sequence[Path]) -> str:
    """Name the teacher made of these run folders: 16 hex digits per run, from the SHA-256 of its checkpoint."""
    return "+".join(hash_file(run / CHECKPOINT)[:16] for run in runs)


def fill(
    logits: TeacherLogits,
    rows: Sequence[ManifestRow],
    teacher: str,
    compute: Callable[[Sequence[ManifestRow]], Tensor],
    batch_size: int = 64,
) -> None:
    """Compute what is missing, rows -> (N, classes) float32, with a progress bar; a killed call continues."""
    todo = logits.missing(rows, teacher)
    with tqdm(total=len(rows), initial=len(rows) - len(todo), desc="teacher logits", unit="image") as progress:
        for start in range(0, len(todo), batch_size):
            part = todo[start : start + batch_size]
            logits.add(part, teacher, compute(part))
            progress.update(len(part))


def fill_from_runs(logits: TeacherLogits, runs: Sequence[Path], rows: Sequence[ManifestRow], data_root: Path) -> None:
    """Fill with the mean logits of trained runs, each reading the images at its own size.

    Raises:
        RunError: a run is not finished.
        TeacherLogitsError: a run tells other classes apart.
    """
    teachers = [load_run(run) for run in runs]
    for run in teachers:
        if list(run.classes) != logits.classes:
            raise TeacherLogitsError(
                f"teacher {run.folder} tells {', '.join(run.classes)} apart, the images are "
                f"{', '.join(logits.classes)}; name a teacher of the same classes"
            )

    @torch.no_grad()
    def compute(part: Sequence[ManifestRow]) -> Tensor:
        folder = manifest_folder(data_root, part)
        inputs = [torch.from_numpy(scale_pixels(load_pixels(folder, run.pixels))) for run in teachers]
        return torch.stack([run.model(images) for run, images in zip(teachers, inputs, strict=True)]).mean(dim=0)

    fill(logits, rows, fingerprint(runs), compute)
