"""What an export's comparisons found: per file and over all, as data and as a table."""

from dataclasses import asdict, dataclass, field
from typing import Any

from brainq_torch.run_files import PARITY

SHIFTED_COPIES = "shifted copies"
"""What figures call a source."""

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
        float_agreement: Smallest share of images in the class of the float model, whatever the reference is.
        float_noise: Largest ``logit_noise`` against the float model.
    """

    max_abs_diff: float | None = None
    top1_agreement: float | None = None
    max_lsb: float | None = None
    mean_lsb: float | None = None
    float_agreement: float | None = None
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
        """Return the artefacts as aligned text, one line each, then flips, ties and errors."""
        measured = ("top-1", "max diff", "LSB max", "LSB mean", "like float", "noise")
        head = ("artefact", "bytes", "compared with", *measured, "limits", "")
        rows = [head, *(_row(name, report) for name, report in self.artefacts.items())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = [
            "  ".join(
                cell.rjust(w) if i == 1 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in [*lines, *self._remarks()])

    def _remarks(self) -> list[str]:
        remarks = []
        for name, report in self.artefacts.items():
            if report.error:
                remarks.append(f"{name}: {report.error}")
            remarks += [
                f"{name}: {flip['image']}: {flip['before']} became {flip['after']} (margin {flip['margin']:.2g})"
                for flip in report.flips
            ]
            remarks += [f"{name}: {tie['image']}: {_describe_tie(tie)}" for tie in report.ties[:_SHOWN]]
            if len(report.ties) > _SHOWN:
                remarks.append(f"{name}: {len(report.ties) - _SHOWN} more ties, named in {PARITY}")
            if report.shifted is not None:
                found = {SHIFTED_COPIES: report.shifted, **report.shifted.get("sources", {})}
                remarks += [f"{name}: {describe_shift(*one)}" for one in found.items()]
        return remarks


def _row(name: str, report: ArtefactReport) -> tuple[str, ...]:
    agreement = "-" if report.top1_agreement is None else f"{100 * report.top1_agreement:.2f} %"
    measured = (report.max_abs_diff, report.max_lsb, report.mean_lsb)
    cells = ["-" if value is None else f"{value:.2g}" for value in measured]
    limits = ", ".join(
        f"{key} {'>=' if key.endswith('agreement') else '<='} {value:g}"
        for key, value in report.limits.to_json().items()
    )
    verdict = ("on phantoms alone: " if report.own_images == 0 else "") + ("passed" if report.passed else "FAILED")
    if report.against_float is None:
        cells += ["-", "-"]
    else:
        cells += [f"{100 * report.against_float['agreement']:.2f} %", f"{report.against_float['logit_noise']:.2g}"]
    return (name, f"{report.size_bytes:,}", report.reference, agreement, *cells, limits or "none", verdict)


def describe_shift(what: str, found: dict[str, Any]) -> str:
    """Return what ``measure_shift`` found on some images as a line."""
    counts = f"{found['flips']} flips of {found['n']} ({found['lost']} lost, {found['gained']} gained)"
    return f"{what}: {counts}, McNemar p {found['mcnemar_p']:.2g}, noise {found['logit_noise']:.2g}"


def _describe_tie(tie: dict[str, Any]) -> str:
    sides = [f"{' and '.join(tie[side])} tie in the {side}" for side in ("reference", "artefact") if len(tie[side]) > 1]
    return ", ".join(sides)
