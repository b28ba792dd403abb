"""Turns a run into files that run without PyTorch, and checks each: ``python -m export RUN``."""

import argparse
import gc
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from brainq_torch.console import run_command
from brainq_torch.data.dataset.balanced import CALIBRATION_IMAGES
from brainq_torch.data.limits import MOST_IMAGES, whole_number
from brainq_torch.quant.encoding import ROUNDING, BiasCorrection, CalibrationMethod, RoundingMethod
from brainq_torch.run_files import BrainqError, as_typed, find_run_fault, format_command
from export.bundle.predict import add_limits
from export.bundle.web import DEFAULT_RUNTIME, PACKAGE
from export.catalogue import CATALOGUE, PARITY_IMAGES

LEAST_PARITY_IMAGES = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 when every artefact passed, 1 when parity failed (the files stay, marked in parity.json), 2 when nothing could
        be exported, 130 after Ctrl-C.
    """
    return run_command(lambda: _run(_parse(arguments)), "; nothing half-made was kept")


def _run(options: argparse.Namespace) -> int:
    if options.list:
        _list_recipes()
        return 0
    if fault := find_run_fault(Path(options.run)):
        raise BrainqError(fault)
    code: int = _load_command().run(options)
    return code


def _load_command() -> Any:
    """Load PyTorch with what makes the files: seconds, which a list or a wrong word need not take.

    Nothing of it is garbage: to look for some, again and again, took a sixth of them.
    """
    gc.disable()
    try:
        return import_module("export.command")
    finally:
        gc.enable()


def _list_recipes() -> None:
    width = max(map(len, CATALOGUE))
    for name, recipe in CATALOGUE.items():
        needs = f" (also makes {', '.join(recipe.needs)})" if recipe.needs else ""
        print(f"{name.ljust(width)}  {recipe.description}{needs}: {', '.join(recipe.files)}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=format_command("export"), description=as_typed(__doc__ or ""))
    _add_recipe_arguments(parser)
    _add_integer_arguments(parser)
    _add_bundle_arguments(parser)
    parser.add_argument("--list", action="store_true", help="name the recipes and stop")
    options = parser.parse_args(arguments)
    if options.limits and not options.bundle:
        parser.error("--limits are those of a bundle; name its folder with --bundle")
    if options.run is None and not options.list:
        parser.error("RUN is missing; name a run folder, or use --list")
    return options


def _add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", help="run folder made by python -m brainq_torch.fit")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="what to make; see --list (default: by the run)")
    parser.add_argument("--out", type=Path, help="folder to make (default: RUN/export)")
    parser.add_argument("--data", type=Path, help="where the run's images are now, if they moved")
    parser.add_argument(
        "--parity-images",
        type=whole_number(LEAST_PARITY_IMAGES, MOST_IMAGES),
        default=PARITY_IMAGES,
        metavar="N",
        help=f"images to compare the files on, {LEAST_PARITY_IMAGES} or more (default: {PARITY_IMAGES})",
    )
    words = (
        "images of another source, a folder or a table (may be repeated): every second patient (group) has "
        "a part in what --bias-correction auto chooses, on the others (where it has nothing to choose, on all) the "
        "files are compared"
    )
    parser.add_argument("--shifted", type=Path, action="append", default=[], metavar="DIR", help=words)


def _add_integer_arguments(parser: argparse.ArgumentParser) -> None:
    words = "how int8 ranges are chosen where training did not (default: percentile)"
    parser.add_argument("--calibration", choices=get_args(CalibrationMethod), default="percentile", help=words)
    parser.add_argument(
        "--calibration-images",
        type=whole_number(1, MOST_IMAGES),
        default=CALIBRATION_IMAGES,
        metavar="N",
        help="training images to choose them from (%(default)s)",
    )
    words = "calibrate on a copy of each as another scanner shows it, too"
    parser.add_argument("--calibration-shifted", action="store_true", help=words)
    words = f"how w4a8 rounds weights where training did not (default: {ROUNDING})"
    parser.add_argument("--rounding", choices=get_args(RoundingMethod), help=words)
    parser.add_argument(
        "--bits-from", type=Path, metavar="JSON", help="bits per layer for w4a8, a bits_*.json of tools.low_bits"
    )
    words = (
        "whether int8's and w4a8's biases are corrected after calibration: auto keeps it where it "
        "leaves less noise in the logits of held-out images in another look (default: auto)"
    )
    parser.add_argument("--bias-correction", choices=get_args(BiasCorrection), default="auto", help=words)


def _add_bundle_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace an earlier export once the new one is whole")
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="make the folder for a clinic, exporting first if need be"
    )
    words = "which TFLite files; the first is the one that answers (default: int8, fp16, fp32: the first that passed)"
    parser.add_argument("--bundle-file", nargs="+", action="extend", default=[], metavar="FILE", help=words)
    add_limits(parser, "of a series in the bundle, kept for the files as well, in place of the run's own")
    words = f"folder of the npm package {PACKAGE}, for the bundle's browser page (default: {DEFAULT_RUNTIME})"
    parser.add_argument("--page", type=Path, metavar="DIR", help=words)


if __name__ == "__main__":
    sys.exit(main())
