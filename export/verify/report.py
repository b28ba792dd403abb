"""What an export's comparisons found: per file and over all, as data and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from brainq_torch.console import counted
from brainq_torch.texts import fill_text

SHIFTED_COPIES = "shifted copies"
"""What figures call a source."""

TELLING_IMAGES = 1000
"""Of fewer images a single one is more than the 0.1 % that the ladder allows: near-ties are then no fault."""

NEAR_TIE = 0.05
"""Margin of two logits of which the larger's probability is a twentieth above the other's."""

_FEW = 0.02
"""Share of images: where more change class, it is another network and no rounding."""

_SHOWN = 8
"""Ties of a file that are printed: networks hardly trained, of many classes, have hundreds."""


@dataclass(frozen=True)
class Limits:
    """What a comparison must keep; None is measured but not limited.

    Attributes:
        max_abs_diff: Largest difference of two logits.
        top1_agreement: Smallest share of images in the same class.
        max_lsb: Largest logit difference in steps of the artefact's own logit scale.
        mean_lsb: Largest mean of them.
        accuracy_fall: Largest fall of accuracy, a share, from the float model's, whatever the reference is.
        float_noise: Largest ``logit_noise`` against the float model.
    """

    max_abs_diff: float | None = None
    top1_agreement: float | None = None
    max_lsb: float | None = None
    mean_lsb: float | None = None
    accuracy_fall: float | None = None
    float_noise: float | None = None

    def to_json(self) -> dict[str, float]:
        """Return the limits that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class ArtefactReport:
    """One artefact's comparison with its reference. Measurements are None where they could not be made.

    Attributes:
        size_bytes: Of the file.
        sha256: Of the file.
        reference: What it was compared with, as in ``Rung``.
        top1_agreement: Share of images in the same class.
        max_abs_diff: Largest difference of two logits.
        max_lsb: Largest difference in steps of the logit scale; None for float logits.
        mean_lsb: Mean of them.
        bit_equal: Share of logits that are the same integer.
        limits: What had to be kept.
        passed: Whether it was.
        own_images: How many of the images are the run's own, 0 where all are phantoms.
        flips: Images whose class changed.
        ties: Images whose largest logit is shared by classes in either model (argmax then takes the first, which counts
            as its answer).
        error: Why the artefact could not be measured or is refused, or None.
        against_float: The paired comparison with the float model, None where there is none to be had.
        shifted: That on shifted copies of the images, in numbers alone, and under ``sources`` on other sources' images;
            None also for a file that rounds nothing.
    """

    size_bytes: int
    sha256: str
    reference: str
    top1_agreement: float | None
    max_abs_diff: float | None
    max_lsb: float | None
    mean_lsb: float | None
    bit_equal: float | None
    limits: Limits
    passed: bool
    own_images: int
    flips: tuple[dict[str, Any], ...] = ()
    ties: tuple[dict[str, Any], ...] = ()
    error: str | None = None
    against_float: dict[str, Any] | None = None
    shifted: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data for ``parity.json``."""
        data = asdict(self)
        return {"bytes": data.pop("size_bytes"), **data, "limits": self.limits.to_json()}


@dataclass(frozen=True)
class ParityReport:
    """All artefacts of an export. about: what else ``parity.json`` says (images, versions, seconds)."""

    artefacts: dict[str, ArtefactReport]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether there are artefacts and every one passed."""
        return bool(self.artefacts) and all(report.passed for report in self.artefacts.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain data for ``parity.json``."""
        artefacts = {name: report.to_json() for name, report in self.artefacts.items()}
        return {"passed": self.passed, "artefacts": artefacts, **self.about}

    def table(self) -> str:
        """Return the artefacts as a table, then flips, ties and errors."""
        return fill_text("parity", artefacts=self.artefacts, shown=_SHOWN, describe_shift=describe_shift)


def are_near_ties(flips: Sequence[Mapping[str, Any]], count: int) -> bool:
    """Tell whether what changed class of so many images is near-ties alone, and few: any rounding may turn those."""
    return 0 < len(flips) <= _FEW * count and all(flip["margin"] <= NEAR_TIE for flip in flips)


def describe_shift(what: str, found: dict[str, Any]) -> str:
    """Return what ``measure_shift`` found on some images as a line."""
    counts = f"{counted(found['flips'], 'flip')} of {found['n']} ({found['lost']} lost, {found['gained']} gained)"
    return f"{what}: {counts}, McNemar p {found['mcnemar_p']:.2g}, noise {found['logit_noise']:.2g}"
