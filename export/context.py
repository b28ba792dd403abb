"""What recipes share: the run they work on, and what was asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from brainq_torch.data.dataset.balanced import CALIBRATION_IMAGES
from brainq_torch.quant.encoding import BiasCorrection, CalibrationMethod
from brainq_torch.quant.low_bits import W4A8
from brainq_torch.quant.rounding import Rounding
from brainq_torch.quant.scheme import Scheme
from brainq_torch.run import Run
from brainq_torch.run_files import BrainqError
from export.catalogue import PARITY_IMAGES
from export.run.elsewhere import Elsewhere
from export.run.sample import ImageSample, RunImages
from export.verify.parity import Rung


class RecipeError(BrainqError):
    """A recipe that does not exist, or that a run cannot be made with."""


@dataclass(frozen=True)
class ExportOptions:
    """How an export is made.

    Attributes:
        replace: An earlier export in the folder may be replaced.
        data: Where the run's images are now, None where it found them.
        calibration_images: Training images to choose ranges from where training did not.
        calibration_method: How ranges are chosen from them.
        calibration_shifted: On a shifted copy of each of them, too.
        rounding: How w4a8 rounds weights where training did not.
        low_bits: To how many bits it does.
        bias_correction: Whether calibrated networks' biases are corrected; ``auto`` asks held-out images.
        parity_images: Images to compare the files on.
        shifted: Folders or tables of other sources' images; one half of each chooses, the other is compared on.
    """

    replace: bool = False
    data: Path | None = None
    calibration_images: int = CALIBRATION_IMAGES
    calibration_method: CalibrationMethod = "percentile"
    calibration_shifted: bool = False
    rounding: Rounding = Rounding()  # noqa: RUF009 - frozen
    low_bits: Scheme = W4A8
    bias_correction: BiasCorrection = "auto"
    parity_images: int = PARITY_IMAGES
    shifted: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ExportContext:
    """What a recipe works with, and what it leaves.

    Attributes:
        run: The run that is exported.
        folder: Where a recipe's files go; those of the recipes it needs are already there.
        images: The run's own, verified.
        options: How the export is made.
        elsewhere: Images of other sources.
        networks: PyTorch networks that rungs refer to, by name; recipes leave theirs.
        provenance: {recipe: what its files say of themselves besides}; left by recipes.
        calibrated_on: {file: the names of the images}, for ``parity.json``; left by recipes.
    """

    run: Run
    folder: Path
    images: RunImages
    options: ExportOptions = ExportOptions()
    elsewhere: Elsewhere = field(default_factory=Elsewhere)
    networks: dict[str, nn.Module] = field(default_factory=dict)
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibrated_on: dict[str, list[str]] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Return where an artefact is, or is to be written."""
        return self.folder / name

    def calibration(self) -> ImageSample:
        """Return class-balanced training images, with shifted copies if asked. Raises RunError where they are gone."""
        sample = self.images.calibration(self.options.calibration_images)
        return sample.with_shifted(self.run.pixels) if self.options.calibration_shifted else sample


@dataclass(frozen=True)
class Recipe:
    """One way to make artefacts; the catalogue says which these are, and which recipes it needs.

    Attributes:
        make: Writes them into the context's folder; metadata is put in afterwards, by the caller.
        rungs: One comparison per file.
        explain: Called where a comparison failed; says where the files part, or None where it cannot tell.
    """

    make: Callable[[ExportContext], None]
    rungs: tuple[Rung, ...]
    explain: Callable[[ExportContext, ImageSample], str | None] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """What ``make`` writes."""
        return tuple(rung.artefact for rung in self.rungs)

    @property
    def is_integer(self) -> bool:
        """Whether it rounds to integers, which may fit some images and not others."""
        return any(rung.limits.float_noise is not None for rung in self.rungs)
