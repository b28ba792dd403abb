"""Turns a run into files that run without PyTorch, and checks each: ``python -m export RUN``."""

from __future__ import annotations

import argparse
import errno
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any, get_args

from brainq_torch.console import escape_unprintable
from brainq_torch.data.dataset.balanced import CALIBRATION_IMAGES
from brainq_torch.quant.calibrate import Method
from brainq_torch.quant.low_bits import W4A8
from brainq_torch.quant.rounding import Method as RoundingMethod
from brainq_torch.quant.rounding import Rounding
from brainq_torch.quant.scheme import Scheme
from brainq_torch.run import Run, load_run
from brainq_torch.run_files import CHECKPOINT, PARITY, BrainqError, hash_file, write_json
from export.bundle.answers import CHECK_FAILED, GoldenError
from export.bundle.build import make_bundle
from export.bundle.web import DEFAULT_RUNTIME, INSTALL, PACKAGE
from export.folder import check_target, say_note, write_as_a_whole
from export.recipes import (
    RECIPES,
    ExportContext,
    RecipeError,
    default_recipes,
    describe_run,
    find_float_model,
    resolve_recipes,
    versions,
)
from export.run.metadata import write_metadata
from export.run.runners import TorchRunner
from export.run.sample import ImageSample, RunImages, check_run_images
from export.verify.abstention import ValidationPart
from export.verify.parity import FLOAT_MODEL, ArtefactReport, LogitTable, ParityReport, climb
from export.w4a8 import read_bits

PARITY_IMAGES = 256
"""Images that every export is checked on if not told otherwise, 64 of each class: Testing and val ones first."""

LEAST_PARITY_IMAGES = 200

_TELLING = 1000
"""Among fewer images a single one in another class is already more than the 0.1 % that the ladder allows."""

THREADS = 1
USER_ERRORS = (BrainqError, OSError)
"""What can go wrong outside this program: reported in a line, without a traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns 0 when every artefact passed, 1 when parity failed (the files stay, marked in parity.json), 2 when nothing
    could be exported.
    """
    escape_unprintable()
    options = _parse(arguments)
    if options.list:
        _list_recipes()
        return 0
    try:
        run = load_run(options.run)
        exported = options.out or run.folder / "export"
        if options.bundle and (exported / PARITY).is_file() and not options.recipes:
            return _bundle(run, exported, options)
        if run.quantization is not None and (options.rounding or options.bits_from):
            raise RecipeError(
                "this run was trained for integers: --rounding and --bits-from have nothing to choose; "
                "leave them out, or name the float run that it was started from"
            )
        report = export_run(
            run,
            options.recipes or default_recipes(run),
            exported,
            replace=options.force,
            data=options.data,
            calibration_images=options.calibration_images,
            calibration_method=options.calibration,
            rounding=Rounding(method=options.rounding or Rounding().method),
            low_bits=W4A8 if options.bits_from is None else read_bits(options.bits_from),
            parity_images=options.parity_images,
        )
        if options.bundle and report.passed:
            return _bundle(run, exported, options)
    except Exception as error:
        full = _find_full_disk(error)
        if full is None and not isinstance(error, USER_ERRORS):
            raise
        advice = f"the disk is full ({full}); nothing was kept. Free some space and run the same command again"
        print(f"error: {error if full is None else advice}", file=sys.stderr)
        return CHECK_FAILED if isinstance(error, GoldenError) else 2
    return 0 if report.passed else 1


def export_run(
    run: Run,
    recipes: Sequence[str],
    out: Path,
    replace: bool = False,
    data: Path | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    calibration_method: Method = "percentile",
    rounding: Rounding = Rounding(),  # noqa: B008 - frozen
    low_bits: Scheme = W4A8,
    parity_images: int = PARITY_IMAGES,
) -> ParityReport:
    """Make the recipes' files in ``out``, compare each, and write ``parity.json`` last.

    data: where the run's images are now, when not where it found them. calibration_images, calibration_method: how
    ranges are chosen where training did not. rounding, low_bits: how w4a8 rounds. parity_images: how many images to
    compare on. Progress and the table go to standard output.
    """
    names = resolve_recipes(recipes)
    check_target(out, replace)
    clock = Clock()
    with clock.step("images"):
        images = check_run_images(run, data)
        sample = images.sample(parity_images, ("Testing", "val", "Training"))
        validation = ValidationPart.of(run, images)
    for problem in images.problems:
        print(f"warning: {problem}", file=sys.stderr)
    _check_images(run, names, images, sample, calibration_images)
    with write_as_a_whole(out, replace, say_note) as folder:
        context = ExportContext(run, folder, images, calibration_images, calibration_method, rounding, low_bits)
        plain, origin = find_float_model(run)
        if plain is None:
            print(f"warning: float model to compare with: {origin}", file=sys.stderr)
        else:
            context.networks[FLOAT_MODEL] = plain
        for name in names:
            _make(name, context, clock, validation)
        with clock.step("parity"):
            artefacts = _check(context, names, sample)
        report = ParityReport(artefacts, _about(context, names, sample, clock.seconds) | {"float_model": origin})
        write_json(folder / PARITY, report.to_json())
    _show(report, out, sample)
    return report


def _check_images(run: Run, names: Sequence[str], images: RunImages, sample: ImageSample, calibration: int) -> None:
    """Raise RecipeError or RunError where integer files would be calibrated or compared on images of another kind."""
    integer = [name for name in names if RECIPES[name].is_integer]
    if not integer or images.synthetic:
        return
    if not sample.own_images:
        raise RecipeError(
            f"{', '.join(integer)}: none of the run's images is there to compare on: {images.explain()}, or make float "
            "files alone with --recipes fp32 fp16"
        )
    if run.quantization is None:
        images.count_calibration(calibration)


def _bundle(run: Run, exported: Path, options: argparse.Namespace) -> int:
    """Make the bundle from the exported files."""
    runtime = options.page or (DEFAULT_RUNTIME if DEFAULT_RUNTIME.is_dir() else None)
    files = make_bundle(run, exported, options.bundle, options.bundle_file, options.force, runtime)
    print(f"bundle: {options.bundle}, {len(files)} files; python {options.bundle / 'predict.py'} --verify replays it")
    if runtime is None:
        print(f"no browser page: {INSTALL}, and the same command again, adds it")
    else:
        print(f"browser page: python -m http.server --bind 127.0.0.1 --directory {options.bundle}")
    return 0


class Clock:
    """Seconds of each step, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the block."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def _make(name: str, context: ExportContext, clock: Clock, validation: ValidationPart) -> None:
    """Make one recipe's files and put the metadata in."""
    recipe = RECIPES[name]
    print(f"{name}: {', '.join(recipe.files)} ...", flush=True)
    with clock.step(name):
        recipe.make(context)
        metadata = describe_run(context.run, name, context.provenance.get(name))
        for file in recipe.files:
            path = context.path(file)
            write_metadata(path, metadata)  # else what the file it was made from said of itself is still in it
            write_metadata(path, replace_fields(metadata, abstention=validation.fit(path)))
    made = ", ".join(f"{context.path(file).stat().st_size:,} bytes" for file in recipe.files)
    print(f"{name}: {made}, {clock.seconds[name]:.1f} s", flush=True)


def _check(context: ExportContext, names: Sequence[str], sample: ImageSample) -> dict[str, ArtefactReport]:
    """Climb the parity ladder of the recipes that were made; where a rung breaks, say where the files part."""
    print(f"parity: {len(sample.names)} images ...", flush=True)
    run = context.run
    rungs = [rung for name in names for rung in RECIPES[name].rungs]
    if run.quantization is not None:  # training was free to leave the float model: measured, not limited
        free = [replace_fields(rung.limits, float_agreement=None, float_noise=None) for rung in rungs]
        rungs = [replace_fields(rung, limits=limits) for rung, limits in zip(rungs, free, strict=True)]
    models = {name: TorchRunner(net, run.pixels, run.classes, THREADS) for name, net in context.networks.items()}
    reports = climb(rungs, LogitTable(context.folder, sample, models, THREADS), sample, run.classes)
    for recipe in (RECIPES[name] for name in names):
        if recipe.explain is None or all(reports[file].passed for file in recipe.files):
            continue
        where = recipe.explain(context, sample)
        for file in recipe.files:
            if not reports[file].passed and where:
                reports[file] = replace_fields(reports[file], error=f"{reports[file].error}; {where}")
    return reports


def _about(
    context: ExportContext, names: Sequence[str], sample: ImageSample, seconds: dict[str, float]
) -> dict[str, Any]:
    """Return what ``parity.json`` says besides the artefacts."""
    return {
        "recipes": list(names),
        "run": {"model": context.run.model_name, "checkpoint_sha256": hash_file(context.run.folder / CHECKPOINT)},
        "images": {**sample.to_json(), "problems": list(context.images.problems)},
        "calibrated_on": context.calibrated_on,
        "versions": versions(),
        "threads": THREADS,
        "seconds": {**seconds, "total": round(sum(seconds.values()), 3)},
    }


def _show(report: ParityReport, out: Path, sample: ImageSample) -> None:
    """Print the table and the verdict."""
    splits = ", ".join(f"{count} {split}" for split, count in sample.to_json()["splits"].items())
    seconds = ", ".join(f"{step} {value:.1f}" for step, value in report.about["seconds"].items())
    print(f"\n{report.table()}\n\nimages: {splits}\nseconds: {seconds}")
    if not sample.own_images:
        print(f"no image of the run was compared: all {len(sample.names)} are phantoms")
    if report.passed:
        print(f"passed: {out}")
    else:
        failed = ", ".join(name for name, artefact in report.artefacts.items() if not artefact.passed)
        print(f"FAILED: {failed} in {out} must not be used; {PARITY} says why")
        if len(sample.names) < _TELLING and any(_has_one_flip(artefact) for artefact in report.artefacts.values()):
            print(f"one image in another class among {len(sample.names)} may be chance: try --parity-images {_TELLING}")


def _has_one_flip(artefact: ArtefactReport) -> bool:
    """Tell whether an artefact failed with a single image in another class than what it was compared with."""
    return not artefact.passed and len(artefact.flips) == 1


def _list_recipes() -> None:
    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        needs = f" (also makes {', '.join(recipe.needs)})" if recipe.needs else ""
        print(f"{name.ljust(width)}  {recipe.description}{needs}: {', '.join(recipe.files)}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("run", nargs="?", help="run folder made by python -m brainq_torch.fit")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="what to make; see --list (default: by the run)")
    parser.add_argument("--out", type=Path, help="folder to make (default: RUN/export)")
    parser.add_argument("--data", type=Path, help="where the run's images are now, if they moved")
    parser.add_argument(
        "--calibration",
        choices=get_args(Method),
        default="percentile",
        help="how int8 ranges are chosen where training did not (default: percentile)",
    )
    parser.add_argument(
        "--calibration-images",
        type=int,
        default=CALIBRATION_IMAGES,
        metavar="N",
        help="training images to choose them from (%(default)s)",
    )
    parser.add_argument(
        "--rounding",
        choices=get_args(RoundingMethod),
        help=f"how w4a8 rounds weights where training did not (default: {Rounding().method})",
    )
    parser.add_argument(
        "--bits-from", type=Path, metavar="JSON", help="bits per layer for w4a8, a bits_*.json of tools.low_bits"
    )
    parser.add_argument(
        "--parity-images",
        type=int,
        default=PARITY_IMAGES,
        metavar="N",
        help=f"images to compare the files on, {LEAST_PARITY_IMAGES} or more (default: {PARITY_IMAGES})",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export once the new one is whole")
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="make the folder for a clinic, exporting first if need be"
    )
    parser.add_argument(
        "--bundle-file",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="which TFLite files; the first is the one that answers (default: int8, fp16, fp32: the first that passed)",
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="DIR",
        help=f"folder of the npm package {PACKAGE}, for the bundle's browser page (default: {DEFAULT_RUNTIME})",
    )
    parser.add_argument("--list", action="store_true", help="name the recipes and stop")
    options = parser.parse_args(arguments)
    if options.run is None and not options.list:
        parser.error("RUN is missing; name a run folder, or use --list")
    if options.calibration_images < 1:
        parser.error(f"--calibration-images is {options.calibration_images}; at least 1 is needed")
    if options.parity_images < LEAST_PARITY_IMAGES:
        parser.error(f"--parity-images is {options.parity_images}; at least {LEAST_PARITY_IMAGES} are needed")
    return options


def _find_full_disk(error: BaseException) -> OSError | None:
    """Return the full disk among an error's causes: the libraries wrap it in errors of their own."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return link
        link = link.__cause__ or link.__context__
    return None


if __name__ == "__main__":
    sys.exit(main())
