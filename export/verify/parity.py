"""The ladder of comparisons: each exported file against what it was made from, and the verdict."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainq_torch.console import counted
from brainq_torch.evaluation.comparison import compare_predictions
from brainq_torch.quant.encoding import Encoding
from brainq_torch.run_files import hash_file
from export.run.metadata import MetadataError, read_metadata
from export.run.runners import OnnxRunner, Runner, TFLiteRunner, run_named
from export.run.sample import ImageSample
from export.run.sessions import RunnerError
from export.verify.report import TELLING_IMAGES, ArtefactReport, Limits, are_near_ties

FLOAT_MODEL = "float model"
"""Reference of a rung: the run's network in PyTorch without fake quantization, or the one that it was trained from."""

FAKE_QUANTIZED = "fake-quantized model"
"""Reference of a rung: the network in PyTorch that holds the integers of the INT8 files."""

FOUR_BIT = "4-bit model"
"""Reference of a rung: the network in PyTorch that holds the integers of the W4A8 files."""

_AT_ONCE = min(4, os.cpu_count() or 1)
"""Models that answer at once, each on a processor of its own."""

RESAMPLES = 1000
"""Bootstrap resamples of the recall differences."""

_CAUSES = {"float_noise": ": ranges do not fit these images, or weights are rounded too roughly"}
_UNMEASURED: dict[str, Any] = dict.fromkeys(("top1_agreement", "max_abs_diff", "max_lsb", "mean_lsb", "bit_equal"))


@dataclass(frozen=True)
class Rung:
    """One comparison that an artefact must pass.

    Attributes:
        artefact: File name.
        reference: Another file's name, FLOAT_MODEL, FAKE_QUANTIZED or FOUR_BIT.
        limits: What it must keep.
        optimised: False runs ONNX files of this pair once more, without ONNX Runtime's integer kernels, where these
            differ from the other: on some older processors they saturate.
    """

    artefact: str
    reference: str
    limits: Limits
    optimised: bool = True


@dataclass(frozen=True)
class Logits:
    """What a model says about N images: (N, C) float32, and their quantization where the model's are integers."""

    values: npt.NDArray[np.float32]
    scale: Encoding | None = None


class LogitTable:
    """The logits of every model of an export on the same images, each computed once.

    Args:
        folder: Where the artefacts are.
        sample: The images.
        models: The run's networks in PyTorch, by FLOAT_MODEL, FAKE_QUANTIZED and FOUR_BIT; more may come.
        threads: Processor threads of one call.
    """

    def __init__(self, folder: Path, sample: ImageSample, models: dict[str, Runner], threads: int) -> None:
        self.folder = folder
        self.sample, self.models = sample, models
        self._threads = threads
        self._answers: dict[tuple[str, bool], Future[Logits]] = {}
        self._pool = ThreadPoolExecutor(_AT_ONCE)

    def of(self, name: str, optimised: bool = True) -> Logits:
        """Return a model's logits. name: a file of the folder, FLOAT_MODEL, FAKE_QUANTIZED or FOUR_BIT.

        Raises RunnerError or MetadataError when a file cannot be run.
        """
        return self._begin(name, optimised or not name.endswith(".onnx")).result()

    def begin(self, names: Iterable[str]) -> None:
        """Begin to compute what ``of`` will be asked for, several models at once; it raises what is wrong with one."""
        for name in names:
            self._begin(name, True)

    def close(self) -> None:
        """Wait for what runs, and begin no more."""
        self._pool.shutdown(cancel_futures=True)

    def of_float(self) -> Logits | None:
        """Return the float model's logits, or None where the export has none."""
        return self.of(FLOAT_MODEL) if FLOAT_MODEL in self.models else None

    def _begin(self, *key: Any) -> Future[Logits]:
        if key not in self._answers:
            try:
                self._answers[key] = self._pool.submit(self._run, self._load(*key))
            except (RunnerError, MetadataError) as error:
                self._answers[key] = Future()
                self._answers[key].set_exception(error)
        return self._answers[key]

    def _run(self, runner: Runner) -> Logits:
        return Logits(run_named(runner, self.sample.pixels, self.sample.names), runner.logit_scale)

    def _load(self, name: str, optimised: bool) -> Runner:
        """Open a file without asking for its checksum: the ladder says in what a changed file differs."""
        if name in self.models:
            return self.models[name]
        path = self.folder / name
        if path.suffix == ".onnx":
            return OnnxRunner(path, read_metadata(path), self._threads, optimised)
        return TFLiteRunner(path, read_metadata(path), self._threads)


def list_models(rungs: Iterable[Rung]) -> list[str]:
    """Return what ``LogitTable.of`` is asked for to climb."""
    return [name for rung in rungs for name in (rung.artefact, rung.reference)]


def climb(rungs: Sequence[Rung], table: LogitTable) -> dict[str, ArtefactReport]:
    """Compare every artefact of the table's folder with its reference. Returns a report per file name."""
    table.begin(list_models(rungs))
    return {rung.artefact: _report(rung, table) for rung in rungs}


def judge(reference: Logits, logits: Logits, limits: Limits) -> dict[str, Any]:
    """Measure the difference of two models' logits and hold it against the limits.

    Returns top1_agreement, max_abs_diff, max_lsb, mean_lsb, bit_equal, passed and error, as in ArtefactReport.
    """
    a, b = reference.values.astype(np.float64), logits.values.astype(np.float64)
    if a.shape != b.shape or not a.size:
        return {**_UNMEASURED, "passed": False, "error": f"logits are {b.shape}, the reference's {a.shape}"}
    broken = int((~np.isfinite(b)).any(axis=1).sum()), int((~np.isfinite(a)).any(axis=1).sum())
    if any(broken):
        error = f"logits of {counted(broken[0], 'image')} of {len(a)} are not finite ({broken[1]} of the reference's)"
        return {**_UNMEASURED, "passed": False, "error": error}
    measured = {
        "top1_agreement": float((a.argmax(1) == b.argmax(1)).mean()),
        "max_abs_diff": float(np.abs(a - b).max()),
        **_lsb(reference, logits),
    }
    faults = _faults(measured, limits)
    return {**measured, "passed": not faults, "error": None if not faults else "; ".join(faults)}


def _report(rung: Rung, table: LogitTable) -> ArtefactReport:
    path, sample = table.folder / rung.artefact, table.sample
    identity: dict[str, Any] = {
        "size_bytes": path.stat().st_size,
        "sha256": hash_file(path),
        "reference": rung.reference,
        "own_images": sample.own_images,
    }
    try:
        logits, reference = _answers(rung, table)
        claimed, plain = read_metadata(path).classes, table.of_float()
    except (RunnerError, MetadataError) as error:
        return ArtefactReport(**identity, **_UNMEASURED, limits=rung.limits, passed=False, error=str(error))
    values, comparable = (reference.values, logits.values), _comparable(reference.values, logits.values)
    flips, limits = _find_flips(*values, sample) if comparable else (), rung.limits
    if len(sample.names) < TELLING_IMAGES and are_near_ties(flips, len(sample.names)):
        limits = replace(limits, top1_agreement=None)
    verdict = judge(reference, logits, limits)
    against_float = _compare(plain, logits, sample)
    faults = list_float_faults(against_float, rung.limits)
    if claimed != sample.classes:
        faults.append(f"names the classes {claimed}, the run {sample.classes}")
    if faults:
        verdict |= {"passed": False, "error": "; ".join(filter(None, (verdict["error"], *faults)))}
    return ArtefactReport(
        **identity,
        **verdict,
        limits=rung.limits,
        flips=flips,
        ties=_find_ties(*values, sample) if comparable else (),
        against_float=against_float,
    )


def _answers(rung: Rung, table: LogitTable) -> tuple[Logits, Logits]:
    """Return the logits of a rung's artefact and of its reference: as users run ONNX files, where these agree."""
    logits, reference = table.of(rung.artefact), table.of(rung.reference)
    optimised = rung.optimised or np.array_equal(logits.values, reference.values)
    return table.of(rung.artefact, optimised), table.of(rung.reference, optimised)


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
        elif name.endswith("agreement") and not value >= limit:
            faults.append(f"{name} {value:.4f} is below {limit:g}")
        elif not name.endswith("agreement") and not value <= limit:
            faults.append(f"{name} {value:.3g} is above {limit:g}{_CAUSES.get(name, '')}")
    return faults


def list_float_faults(found: dict[str, Any] | None, limits: Limits) -> list[str]:
    """Name every limit that is not kept against the float model; found: ``ArtefactReport.against_float``."""
    measured = {"accuracy_fall": -found["accuracy_difference"], "float_noise": found["logit_noise"]} if found else {}
    return _faults(measured, limits)


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
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], sample: ImageSample
) -> tuple[dict[str, Any], ...]:
    """List the images whose class changed, with the margin by which the reference had decided."""
    before, after, top = a.argmax(1), b.argmax(1), np.sort(a, axis=1)
    return tuple(
        {
            "image": sample.names[i],
            "label": sample.classes[sample.labels[i]],
            "before": sample.classes[before[i]],
            "after": sample.classes[after[i]],
            "margin": float(top[i, -1] - top[i, -2]),
        }
        for i in np.flatnonzero(before != after)
    )


def _find_ties(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], sample: ImageSample
) -> tuple[dict[str, Any], ...]:
    """List the images whose largest logit is shared, in the reference, the artefact, or both."""
    best_a, best_b = a == a.max(1, keepdims=True), b == b.max(1, keepdims=True)
    return tuple(
        {
            "image": sample.names[i],
            "reference": [sample.classes[label] for label in np.flatnonzero(best_a[i])],
            "artefact": [sample.classes[label] for label in np.flatnonzero(best_b[i])],
        }
        for i in np.flatnonzero((best_a.sum(1) > 1) | (best_b.sum(1) > 1))
    )


def _compare(plain: Logits | None, logits: Logits, sample: ImageSample) -> dict[str, Any] | None:
    """Return McNemar's test, flips, the recall differences and the noise against the float model."""
    if plain is None or not _comparable(plain.values, logits.values):
        return None
    comparison = compare_predictions(plain.values, logits.values, sample.labels, sample.classes, RESAMPLES).to_json()
    comparison["flips"] = [{**flip, "image": sample.names[flip.pop("index")]} for flip in comparison["flips"]]
    comparison["logit_noise"] = logit_noise(plain.values, logits.values)
    return comparison


def _comparable(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> bool:
    return a.shape == b.shape and a.size > 0 and bool(np.isfinite(a).all() and np.isfinite(b).all())
