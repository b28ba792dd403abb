"""When an exported file does not answer: a float one as its network; the others are fitted, as their logits differ."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from brainq_torch.abstention.outlier import Typicality, fit_typicality
from brainq_torch.abstention.policy import Abstention, fit_abstention
from brainq_torch.evaluation.unseen import find_unseen
from brainq_torch.run import Run
from export.run.runners import load_runner
from export.run.sample import ImageSample, RunImages
from export.run.sessions import RunnerError

IMAGES = 300
"""Validation images that every file answers for this; class-balanced."""

_FEWEST = 100
_TYPICAL = 500


@dataclass(frozen=True)
class ValidationPart:
    """What files are fitted to.

    Attributes:
        sample: None where too few of the run's validation images are there, or it may have trained on them.
        fitted: {kind of file: what was fitted to the first of the kind}.
    """

    run: Run
    sample: ImageSample | None
    typicality: Typicality | None
    fitted: dict[str, Abstention | None] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, images: RunImages) -> ValidationPart:
        """Take the run's validation images; from a run of an earlier version, learn what its images look like.

        A restored network may have been trained on any of them: its files keep what it learned on images of its own.
        """
        if run.abstention is not None and run.may_have_seen_validation:
            return cls(run, None, None)
        images = _leave_out_seen(images)
        counts = {split: sum(row.split == split for row in images.rows) for split in ("Training", "val")}
        needed = min(_FEWEST, run.abstention.fitted_on if run.abstention else _FEWEST)
        if counts["val"] < needed or (run.abstention is None and counts["Training"] < _FEWEST):
            return cls(run, None, None)
        sample = images.sample(min(IMAGES, counts["val"]), ("val",))
        if run.abstention is not None:
            # Float files answer as the network does, as the parity ladder checks: what it learned holds for them.
            return cls(run, sample, run.abstention.typicality, {"float": run.abstention})
        trained_on = images.sample(min(_TYPICAL, counts["Training"]), ("Training",))
        return cls(run, sample, fit_typicality(trained_on.pixels))

    def fit(self, path: Path, kind: str) -> Abstention | None:
        """Fit to a file's own answers; where that cannot be, return the network's.

        Args:
            path: .onnx or .tflite.
            kind: Files of one kind answer alike, as the parity ladder checks: they are fitted together, to the first.
        """
        if kind not in self.fitted:
            self.fitted[kind] = self._fit(path)
        return self.fitted[kind]

    def _fit(self, path: Path) -> Abstention | None:
        if self.sample is None or self.typicality is None:
            return self.run.abstention
        try:
            logits = load_runner(path, pixels=self.run.pixels, classes=self.run.classes)(self.sample.pixels)
        except RunnerError:  # the parity ladder says what is wrong with the file
            return self.run.abstention
        return fit_abstention(logits, self.sample.labels, self.sample.pixels, self.typicality)


def _leave_out_seen(images: RunImages) -> RunImages:
    """Drop the validation images of whose group training has some, where enough others are left."""
    validated = [row for row in images.rows if row.split == "val"]
    seen = {row.path for row, fresh in zip(validated, find_unseen(images.rows, "val"), strict=True) if not fresh}
    if len(validated) - len(seen) < _FEWEST:
        return images
    return replace(images, rows=tuple(row for row in images.rows if row.path not in seen))
