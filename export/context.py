"""What recipes share: the run they work on, what was asked for, and the names of the files they make."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from brainq_torch.data.dataset.balanced import CALIBRATION_IMAGES
from brainq_torch.quant.calibrate import Method
from brainq_torch.quant.low_bits import W4A8
from brainq_torch.quant.rounding import Rounding
from brainq_torch.quant.scheme import Scheme
from brainq_torch.run import Run
from brainq_torch.run_files import BrainqError
from export.run.sample import ImageSample, RunImages
from export.verify.parity import Rung

ONNX_FP32, TFLITE_FP32 = "model_fp32.onnx", "model_fp32.tflite"
TFLITE_FP16 = "model_fp16.tflite"
ONNX_INT8, TFLITE_INT8 = "model_int8.onnx", "model_int8.tflite"
ONNX_W4A8, TFLITE_W4A8 = "model_w4a8.onnx", "model_w4a8.tflite"
TFLITE_INT8_TF = "model_int8_tf.tflite"
TFLITE_DYNAMIC_INT8 = "model_dynamic_int8.tflite"

PARITY_IMAGES = 256
"""Images that every export is checked on if not told otherwise, 64 of each class: Testing and val ones first."""


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
        rounding: How w4a8 rounds weights where training did not.
        low_bits: To how many bits it does.
        parity_images: Images to compare the files on.
    """

    replace: bool = False
    data: Path | None = None
    calibration_images: int = CALIBRATION_IMAGES
    calibration_method: Method = "percentile"
    rounding: Rounding = Rounding()  # noqa: RUF009 - frozen
    low_bits: Scheme = W4A8
    parity_images: int = PARITY_IMAGES


@dataclass(frozen=True)
class ExportContext:
    """What a recipe works with, and what it leaves.

    Attributes:
        run: The run that is exported.
        folder: Where a recipe's files go; those of the recipes it needs are already there.
        images: The run's own, verified.
        options: How the export is made.
        networks: PyTorch networks that rungs refer to, by name; recipes leave theirs.
        provenance: {recipe: what its files say of themselves besides}; left by recipes.
        calibrated_on: {file: the names of the images}, for ``parity.json``; left by recipes.
    """

    run: Run
    folder: Path
    images: RunImages
    options: ExportOptions = ExportOptions()
    networks: dict[str, nn.Module] = field(default_factory=dict)
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibrated_on: dict[str, list[str]] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Return where an artefact is, or is to be written."""
        return self.folder / name

    def calibration(self) -> ImageSample:
        """Return class-balanced training images. Raises RunError where they are gone."""
        return self.images.calibration(self.options.calibration_images)


@dataclass(frozen=True)
class Recipe:
    """One way to make artefacts.

    Attributes:
        description: One line for ``--list``.
        files: What ``make`` writes into the context's folder.
        make: Writes them; metadata is put in afterwards, by the caller.
        rungs: One comparison per file.
        needs: Recipes made before this one.
        explain: Called where a comparison failed; says where the files part, or None where it cannot tell.
    """

    description: str
    files: tuple[str, ...]
    make: Callable[[ExportContext], None]
    rungs: tuple[Rung, ...]
    needs: tuple[str, ...] = ()
    explain: Callable[[ExportContext, ImageSample], str | None] | None = None

    @property
    def is_integer(self) -> bool:
        """Whether it rounds to integers, which may fit some images and not others."""
        return any(rung.limits.float_noise is not None for rung in self.rungs)
