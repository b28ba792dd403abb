"""The ladder of comparisons: each exported file against what it was made from, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainq_torch.evaluation.metrics import compare_predictions
from brainq_torch.run_files import hash_file
from export.run.metadata import MetadataError, read_metadata
from export.run.runners import OnnxRunner, Runner, RunnerError, Scale, TFLiteRunner, run_named
from export.run.sample import ImageSample

FLOAT_MODEL = "float model"
"""Reference of a rung: the run's network in PyTorch without fake quantization, or the one that it was trained from."""

FAKE_QUANTIZED = "fake-quantized model"
"""Reference of a rung: the network in PyTorch that holds the integers of the INT8 files."""

FOUR_BIT = "4-bit model"
"""Reference of a rung: the network in PyTorch that holds the integers of the W4A8 files."""

RESAMPLES = 1000
"""Bootstrap resamples of the recall differences."""

_UNMEASURED: dict[str, Any] = dict.fromkeys(("top1_agreement", "max_abs_diff", "max_lsb", "mean_lsb", "bit_equal"))


@dataclass(frozen=True)
class Limits:
    """What a comparison must keep; None is measured but not limited.

    max_abs_diff: largest difference of two logits. top1_agreement: smallest share of images in the same class.
    max_lsb, mean_lsb: logit difference in steps of the artefact's own logit scale.
    Against the float model, whatever the reference is: float_agreement: smallest share of images in the same class;
    float_noise: largest ``logit_noise``.
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
class Rung:
    """One comparison that an artefact must pass.

    artefact: file name. reference: another file's name, FLOAT_MODEL, FAKE_QUANTIZED or FOUR_BIT.
    optimised: False runs ONNX files of this pair without ONNX Runtime's optimisations.
    """

    artefact: str
    reference: str
    limits: Limits
    optimised: bool = True


@dataclass(frozen=True)
class Logits:
    """What a model says about N images: (N, C) float32, and their quantization where the model's are integers."""

    values: npt.NDArray[np.float32]
    scale: Scale | None = None


@dataclass(frozen=True)
class ArtefactReport:
    """One artefact's comparison with its reference. Measurements are None where they could not be made.

    max_lsb, mean_lsb, bit_equal: None for float logits; bit_equal is the share of logits that are the same integer.
    flips: images whose class changed. ties: images whose largest logit is shared by classes in either model (argmax
    then takes the first, which counts as its answer). own_images: how many of the images are the run's own, 0 where all
    are phantoms; None in reports of an earlier version. error: why the artefact could not be measured or is refused, or
    None. against_float: the paired comparison with the float model, None where there is none to be had.
    """

    size_bytes: int
    sha256: str
    reference: str
    top1_agreement: float | None
    max_abs_diff: float | None
    max_lsb: float | None
    mean_lsb: float | None
    limits: Limits
    passed: bool
    bit_equal: float | None = None
    flips: tuple[dict[str, Any], ...] = ()
    ties: tuple[dict[str, Any], ...] = ()
    error: str | None = None
    against_float: dict[str, Any] | None = None
    own_images: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data for ``parity.json``."""
        return {
            "bytes": self.size_bytes,
            "sha256": self.sha256,
            "reference": self.reference,
            "top1_agreement": self.top1_agreement,
            "max_abs_diff": self.max_abs_diff,
            "max_lsb": self.max_lsb,
            "mean_lsb": self.mean_lsb,
            "bit_equal": self.bit_equal,
            "limits": self.limits.to_json(),
            "passed": self.passed,
            "own_images": self.own_images,
            "flips": list(self.flips),
            "ties": list(self.ties),
            "error": self.error,
            "against_float": self.against_float,
        }


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
            remarks += [f"{name}: {tie['image']}: {_describe_tie(tie)}" for tie in report.ties]
        return remarks


class LogitTable:
    """The logits of every model of an export on the same images, each computed once.

    folder: where the artefacts are. models: the run's networks in PyTorch, by FLOAT_MODEL, FAKE_QUANTIZED and
    FOUR_BIT, as far as there are such.
    """

    def __init__(self, folder: Path, sample: ImageSample, models: Mapping[str, Runner], threads: int) -> None:
        self.folder = folder
        self._sample, self._models, self._threads = sample, models, threads
        self._known: dict[tuple[str, bool], Logits] = {}

    def of(self, name: str, optimised: bool = True) -> Logits:
        """Return a model's logits. name: a file of the folder, FLOAT_MODEL, FAKE_QUANTIZED or FOUR_BIT.

        Raises RunnerError or MetadataError when a file cannot be run.
        """
        model = self._models.get(name)
        key = (name, optimised or model is not None)
        if key not in self._known:
            runner = self._load(name, optimised) if model is None else model
            self._known[key] = Logits(run_named(runner, self._sample.pixels, self._sample.names), runner.logit_scale)
        return self._known[key]

    def of_float(self) -> Logits | None:
        """Return the float model's logits, or None where the export has none."""
        return self.of(FLOAT_MODEL) if FLOAT_MODEL in self._models else None

    def _load(self, name: str, optimised: bool) -> Runner:
        """Open a file without asking for its checksum: the ladder says in what a changed file differs."""
        path = self.folder / name
        if path.suffix == ".onnx":
            return OnnxRunner(path, read_metadata(path), self._threads, optimised)
        return TFLiteRunner(path, read_metadata(path), self._threads)


def climb(
    rungs: Sequence[Rung], table: LogitTable, sample: ImageSample, classes: tuple[str, ...]
) -> dict[str, ArtefactReport]:
    """Compare every artefact of the table's folder with its reference. Returns a report per file name."""
    return {rung.artefact: _report(rung, table, sample, classes) for rung in rungs}


def judge(reference: Logits, logits: Logits, limits: Limits) -> dict[str, Any]:
    """Measure the difference of two models' logits and hold it against the limits.

    Returns top1_agreement, max_abs_diff, max_lsb, mean_lsb, bit_equal, passed and error, as in ArtefactReport.
    """
    a, b = reference.values.astype(np.float64), logits.values.astype(np.float64)
    if a.shape != b.shape or not a.size:
        return {**_UNMEASURED, "passed": False, "error": f"logits are {b.shape}, the reference's {a.shape}"}
    broken = int((~np.isfinite(b)).any(axis=1).sum()), int((~np.isfinite(a)).any(axis=1).sum())
    if any(broken):
        error = f"logits of {broken[0]} images are not finite ({broken[1]} of the reference's) among {len(a)}"
        return {**_UNMEASURED, "passed": False, "error": error}
    measured = {
        "top1_agreement": float((a.argmax(1) == b.argmax(1)).mean()),
        "max_abs_diff": float(np.abs(a - b).max()),
        **_lsb(reference, logits),
    }
    faults = _faults(measured, limits)
    return {**measured, "passed": not faults, "error": None if not faults else "; ".join(faults)}


def _report(rung: Rung, table: LogitTable, sample: ImageSample, classes: tuple[str, ...]) -> ArtefactReport:
    path = table.folder / rung.artefact
    identity: dict[str, Any] = {
        "size_bytes": path.stat().st_size,
        "sha256": hash_file(path),
        "reference": rung.reference,
        "own_images": sample.own_images,
    }
    try:
        logits, reference = table.of(rung.artefact, rung.optimised), table.of(rung.reference, rung.optimised)
        claimed, plain = read_metadata(path).classes, table.of_float()
    except (RunnerError, MetadataError) as error:
        return ArtefactReport(**identity, **_UNMEASURED, limits=rung.limits, passed=False, error=str(error))
    verdict = judge(reference, logits, rung.limits)
    against_float = _compare(plain, logits, sample, classes)
    faults = [] if against_float is None else _float_faults(against_float, rung.limits)
    if claimed != classes:
        faults.append(f"names the classes {claimed}, the run {classes}")
    if faults:
        verdict |= {"passed": False, "error": "; ".join(filter(None, (verdict["error"], *faults)))}
    return ArtefactReport(
        **identity,
        **verdict,
        limits=rung.limits,
        flips=_find_flips(reference.values, logits.values, sample, classes),
        ties=_find_ties(reference.values, logits.values, sample, classes),
        against_float=against_float,
    )


def _lsb(reference: Logits, logits: Logits) -> dict[str, float | None]:
    """Return the difference in steps of the artefact's logit scale; exact integers where both sides have that scale."""
    if logits.scale is None:
        return {"max_lsb": None, "mean_lsb": None, "bit_equal": None}
    step = logits.scale.scale
    a, b = reference.values.astype(np.float64) / step, np.rint(logits.values.astype(np.float64) / step)
    difference = np.abs((np.rint(a) if reference.scale == logits.scale else a) - b)
    return {
        "max_lsb": float(difference.max()),
        "mean_lsb": float(difference.mean()),
        "bit_equal": float((np.rint(a) == b).mean()),
    }


def _faults(measured: dict[str, float | None], limits: Limits) -> list[str]:
    """Name every limit that is not kept. What is limited but has no value fails: it was not measured."""
    faults = []
    for name, value in measured.items():
        limit: float | None = getattr(limits, name, None)
        if limit is None:
            continue
        if value is None:
            faults.append(f"{name} is limited to {limit:g} but the file's logits are not integers")
        elif name == "top1_agreement" and not value >= limit:
            faults.append(f"top1_agreement {value:.4f} is below {limit:g}")
        elif name != "top1_agreement" and not value <= limit:
            faults.append(f"{name} {value:.3g} is above {limit:g}")
    return faults


def _float_faults(against_float: dict[str, Any], limits: Limits) -> list[str]:
    """Name every limit that is not kept against the float model."""
    faults = []
    agreement, noise = against_float["agreement"], against_float["logit_noise"]
    if limits.float_agreement is not None and not agreement >= limits.float_agreement:
        faults.append(f"float_agreement {agreement:.4f} is below {limits.float_agreement:g}")
    if limits.float_noise is not None and not noise <= limits.float_noise:
        cause = "ranges do not fit these images, or weights are rounded too roughly"
        faults.append(f"float_noise {noise:.3g} is above {limits.float_noise:g}: {cause}")
    return faults


def logit_noise(plain: npt.NDArray[Any], logits: npt.NDArray[Any]) -> float:
    """Return the root mean square of what quantization adds to the logits over that of the float model's.

    plain, logits: (N, C). The mean over the classes is taken out of both: softmax does not see it. 0.1 is a tenth of
    the signal, 20 dB. Classes of easy images stay right long after the logits are spoilt (MobileNetV2 calibrated on
    noise: 64 of 64 the same, noise 0.63 instead of 0.08), so that agreement alone does not see wrong ranges.
    """
    signal = plain - plain.mean(1, keepdims=True)
    added = (logits - logits.mean(1, keepdims=True)) - signal
    size = float(np.sqrt(np.mean(np.square(signal, dtype=np.float64))))
    return float(np.sqrt(np.mean(np.square(added, dtype=np.float64)))) / max(size, float(np.finfo(np.float32).tiny))


def _find_flips(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], sample: ImageSample, classes: tuple[str, ...]
) -> tuple[dict[str, Any], ...]:
    """List the images whose class changed, with the margin by which the reference had decided."""
    if not _comparable(a, b):
        return ()
    before, after, top = a.argmax(1), b.argmax(1), np.sort(a, axis=1)
    return tuple(
        {
            "image": sample.names[i],
            "label": classes[sample.labels[i]],
            "before": classes[before[i]],
            "after": classes[after[i]],
            "margin": float(top[i, -1] - top[i, -2]),
        }
        for i in np.flatnonzero(before != after)
    )


def _find_ties(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], sample: ImageSample, classes: tuple[str, ...]
) -> tuple[dict[str, Any], ...]:
    """List the images whose largest logit is shared, in the reference, the artefact, or both."""
    if not _comparable(a, b):
        return ()
    best_a, best_b = a == a.max(1, keepdims=True), b == b.max(1, keepdims=True)
    return tuple(
        {
            "image": sample.names[i],
            "reference": [classes[label] for label in np.flatnonzero(best_a[i])],
            "artefact": [classes[label] for label in np.flatnonzero(best_b[i])],
        }
        for i in np.flatnonzero((best_a.sum(1) > 1) | (best_b.sum(1) > 1))
    )


def _compare(
    plain: Logits | None, logits: Logits, sample: ImageSample, classes: tuple[str, ...]
) -> dict[str, Any] | None:
    """Return McNemar's test, flips, the recall differences and the noise against the float model."""
    if plain is None or not _comparable(plain.values, logits.values):
        return None
    comparison = compare_predictions(plain.values, logits.values, sample.labels, classes, RESAMPLES).to_json()
    comparison["flips"] = [{**flip, "image": sample.names[flip.pop("index")]} for flip in comparison["flips"]]
    comparison["logit_noise"] = logit_noise(plain.values, logits.values)
    return comparison


def _comparable(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> bool:
    return a.shape == b.shape and a.size > 0 and bool(np.isfinite(a).all() and np.isfinite(b).all())


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


def _describe_tie(tie: dict[str, Any]) -> str:
    sides = [f"{' and '.join(tie[side])} tie in the {side}" for side in ("reference", "artefact") if len(tie[side]) > 1]
    return ", ".join(sides)
