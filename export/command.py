"""What ``python -m export`` does once its words are read."""

import argparse
from pathlib import Path

from brainq_torch.quant.encoding import ROUNDING
from brainq_torch.quant.low_bits import W4A8
from brainq_torch.quant.rounding import Rounding
from brainq_torch.run import Run, load_run
from brainq_torch.run_files import PARITY
from export.bundle.build import make_bundle
from export.bundle.web import INSTALL, find_runtime
from export.context import ExportOptions, RecipeError
from export.integer_files import read_bits
from export.pipeline import export_run
from export.recipes import default_recipes
from export.run.sample import PHANTOM
from export.verify.report import ArtefactReport, ParityReport

_TELLING = 1000
"""Among fewer images a single one in another class is already more than the 0.1 % that the ladder allows."""


def run(options: argparse.Namespace) -> int:
    """Make files, a bundle, or both. Returns 0, or 1 when parity failed."""
    trained = load_run(options.run)
    exported = options.out or trained.folder / "export"
    if options.bundle and (exported / PARITY).is_file() and not options.recipes:
        return _bundle(trained, exported, options)
    if trained.quantization is not None and (options.rounding or options.bits_from):
        raise RecipeError(
            "this run was trained for integers: --rounding and --bits-from have nothing to choose; "
            "leave them out, or name the float run that it was started from"
        )
    how = ExportOptions(
        options.force,
        options.data,
        options.calibration_images,
        options.calibration,
        options.calibration_shifted,
        Rounding(method=options.rounding or ROUNDING),
        W4A8 if options.bits_from is None else read_bits(options.bits_from),
        options.bias_correction,
        options.parity_images,
        tuple(options.shifted),
    )
    report = export_run(trained, options.recipes or default_recipes(trained), exported, how)
    _show(report, exported)
    if options.bundle and report.passed:
        return _bundle(trained, exported, options)
    return 0 if report.passed else 1


def _bundle(run: Run, exported: Path, options: argparse.Namespace) -> int:
    """Make the bundle from the exported files."""
    runtime = options.page or find_runtime()
    files = make_bundle(run, exported, options.bundle, options.bundle_file, options.force, runtime)
    print(f"bundle: {options.bundle}, {len(files)} files; python {options.bundle / 'predict.py'} --verify replays it")
    if runtime is None:
        print(f"no browser page: {INSTALL}, and the same command again, adds it")
    else:
        print(f"browser page: python -m http.server --bind 127.0.0.1 --directory {options.bundle}")
    return 0


def _show(report: ParityReport, out: Path) -> None:
    """Print the table and the verdict."""
    images = report.about["images"]
    splits = ", ".join(f"{count} {split}" for split, count in images["splits"].items())
    seconds = ", ".join(f"{step} {value:.1f}" for step, value in report.about["seconds"].items())
    print(f"\n{report.table()}\n\nimages: {splits}\nseconds: {seconds}")
    if set(images["splits"]) <= {PHANTOM}:
        print(f"no image of the run was compared: all {images['count']} are phantoms")
    if report.passed:
        print(f"passed: {out}")
    else:
        failed = ", ".join(name for name, artefact in report.artefacts.items() if not artefact.passed)
        print(f"FAILED: {failed} in {out} must not be used; {PARITY} says why")
        if images["count"] < _TELLING and any(_has_one_flip(artefact) for artefact in report.artefacts.values()):
            print(f"one image in another class among {images['count']} may be chance: try --parity-images {_TELLING}")


def _has_one_flip(artefact: ArtefactReport) -> bool:
    """Tell whether an artefact failed with a single image in another class than what it was compared with."""
    return not artefact.passed and len(artefact.flips) == 1
