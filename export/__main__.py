"""Turns a run into files that run without PyTorch, and checks each: ``python -m export RUN``."""

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from brainq_torch.console import escape_unprintable
from brainq_torch.data.dataset.balanced import CALIBRATION_IMAGES
from brainq_torch.quant.calibrate import Method
from brainq_torch.quant.low_bits import W4A8
from brainq_torch.quant.rounding import Method as RoundingMethod
from brainq_torch.quant.rounding import Rounding
from brainq_torch.run import Run, load_run
from brainq_torch.run_files import PARITY, BrainqError
from export.bundle.answers import CHECK_FAILED, GoldenError
from export.bundle.build import make_bundle
from export.bundle.web import DEFAULT_RUNTIME, INSTALL, PACKAGE
from export.context import PARITY_IMAGES, ExportOptions, RecipeError
from export.integer_files import read_bits
from export.pipeline import export_run
from export.recipes import RECIPES, default_recipes
from export.run.sample import PHANTOM
from export.verify.report import ArtefactReport, ParityReport

LEAST_PARITY_IMAGES = 200

_TELLING = 1000
"""Among fewer images a single one in another class is already more than the 0.1 % that the ladder allows."""

USER_ERRORS = (BrainqError, OSError)
"""What can go wrong outside this program: reported in a line, without a traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 when every artefact passed, 1 when parity failed (the files stay, marked in parity.json), 2 when nothing could
        be exported.
    """
    escape_unprintable()
    options = _parse(arguments)
    if options.list:
        _list_recipes()
        return 0
    try:
        return _export(options)
    except Exception as error:
        full = _find_full_disk(error)
        if full is None and not isinstance(error, USER_ERRORS):
            raise
        advice = f"the disk is full ({full}); nothing was kept. Free some space and run the same command again"
        print(f"error: {error if full is None else advice}", file=sys.stderr)
        return CHECK_FAILED if isinstance(error, GoldenError) else 2


def _export(options: argparse.Namespace) -> int:
    run = load_run(options.run)
    exported = options.out or run.folder / "export"
    if options.bundle and (exported / PARITY).is_file() and not options.recipes:
        return _bundle(run, exported, options)
    if run.quantization is not None and (options.rounding or options.bits_from):
        raise RecipeError(
            "this run was trained for integers: --rounding and --bits-from have nothing to choose; "
            "leave them out, or name the float run that it was started from"
        )
    how = ExportOptions(
        options.force,
        options.data,
        options.calibration_images,
        options.calibration,
        Rounding(method=options.rounding or Rounding().method),
        W4A8 if options.bits_from is None else read_bits(options.bits_from),
        options.parity_images,
    )
    report = export_run(run, options.recipes or default_recipes(run), exported, how)
    _show(report, exported)
    if options.bundle and report.passed:
        return _bundle(run, exported, options)
    return 0 if report.passed else 1


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


def _list_recipes() -> None:
    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        needs = f" (also makes {', '.join(recipe.needs)})" if recipe.needs else ""
        print(f"{name.ljust(width)}  {recipe.description}{needs}: {', '.join(recipe.files)}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    _add_recipe_arguments(parser)
    _add_bundle_arguments(parser)
    parser.add_argument("--list", action="store_true", help="name the recipes and stop")
    options = parser.parse_args(arguments)
    if options.run is None and not options.list:
        parser.error("RUN is missing; name a run folder, or use --list")
    if options.calibration_images < 1:
        parser.error(f"--calibration-images is {options.calibration_images}; at least 1 is needed")
    if options.parity_images < LEAST_PARITY_IMAGES:
        parser.error(f"--parity-images is {options.parity_images}; at least {LEAST_PARITY_IMAGES} are needed")
    return options


def _add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
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


def _add_bundle_arguments(parser: argparse.ArgumentParser) -> None:
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
