"""What ``python -m export`` does once its words are read."""

import argparse
from dataclasses import replace
from pathlib import Path

from brainq_torch.console import counted
from brainq_torch.quant.encoding import ROUNDING
from brainq_torch.quant.low_bits import W4A8
from brainq_torch.quant.rounding import Rounding
from brainq_torch.run import Run, load_run
from brainq_torch.run_files import PARITY, format_command, join_words, write_json
from brainq_torch.series.rule import SeriesRule, find_rule, rule_path
from export.bundle.build import BUNDLE, PREFERENCE, choose_best, make_bundle, read_parity
from export.bundle.web import INSTALL, find_runtime
from export.context import ExportOptions, RecipeError
from export.folder import check_target
from export.integer_files import read_bits
from export.pipeline import export_run
from export.recipes import RECIPES, default_recipes, resolve_recipes
from export.run.sample import PHANTOM
from export.verify.parity import list_float_faults
from export.verify.report import NEAR_TIE, ParityReport, are_near_ties


def run(options: argparse.Namespace) -> int:
    """Make files, a bundle, or both. Returns 0, or 1 when parity failed."""
    trained = load_run(options.run)
    exported = options.out or trained.folder / "export"
    how = _how(options)
    if options.limits:
        SeriesRule().with_limits(*options.limits)  # wrong ones are refused before any work
    if options.bundle:
        check_target(options.bundle, options.force, BUNDLE)
    if options.bundle and _is_made(exported, options):
        if replace(how, replace=False) != ExportOptions():
            raise RecipeError(
                f"{exported} is there, and --bundle takes its files as they are: words on how files are made or "
                "compared change nothing; leave them out, or make the files anew: name --recipes, with --force"
            )
        return _bundle(trained, exported, options)
    if trained.quantization is not None and (options.rounding or options.bits_from):
        raise RecipeError(
            "this run was trained for integers: --rounding and --bits-from have nothing to choose; "
            "leave them out, or name the float run that it was started from"
        )
    report = export_run(trained, options.recipes or default_recipes(trained), exported, how)
    _show(report, exported)
    if not report.passed:
        print("\n".join(advise(report, options, exported)))
    if options.bundle and report.passed:
        return _bundle(trained, exported, options)
    return 0 if report.passed else 1


def _is_made(exported: Path, options: argparse.Namespace) -> bool:
    """Tell whether the export folder has the files of the named recipes, of none any, and need not be made anew."""
    if not (exported / PARITY).is_file() or (options.recipes and options.force):
        return False
    return _files(options) <= read_parity(exported).keys()


def _files(options: argparse.Namespace) -> set[str]:
    return {file for name in resolve_recipes(options.recipes or ()) for file in RECIPES[name].files}


def _how(options: argparse.Namespace) -> ExportOptions:
    """Return the words on how files are made and compared."""
    return ExportOptions(
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


def _bundle(run: Run, exported: Path, options: argparse.Namespace) -> int:
    """Make the bundle from the exported files; named limits go into their rule of series first."""
    files = exported / PARITY
    if options.limits:
        write_json(rule_path(files), find_rule(files).with_limits(*options.limits).to_json())
    runtime = options.page or find_runtime()
    chosen = options.bundle_file or [choose_best(exported, _files(options))]
    made = make_bundle(run, exported, options.bundle, chosen, options.force, runtime)
    program = join_words("python", options.bundle / "predict.py")
    print(f"bundle: {options.bundle}, {counted(len(made), 'file')}; {program} --verify replays it")
    print(find_rule(files).describe(run.classes))
    if runtime is None:
        print(f"no browser page: {INSTALL}, and the same command again with --force, adds it")
    else:
        print(f"browser page: {program} --page")
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


def advise(report: ParityReport, options: argparse.Namespace, out: Path) -> list[str]:
    """Return what can be done about a parity that failed, a line each. options: the command's words."""
    lines, failed = [], {name: each for name, each in report.artefacts.items() if not each.passed}
    flipped = [artefact for artefact in failed.values() if artefact.flips]
    if flipped and all(are_near_ties(artefact.flips, report.about["images"]["count"]) for artefact in flipped):
        lines.append(
            f"the images that changed class are near-ties, logits at most {NEAR_TIE} apart, which any rounding may "
            "turn: train longer, or on more images, for fewer of them, or use a file that passed"
        )
    if any(list_float_faults(artefact.against_float, artefact.limits) for artefact in failed.values()):
        lines.append(
            "the integers stray from the float model: a network hardly trained has logits too close together for 8 "
            "bits, train longer; or try --calibration mse, or QAT (configs/mobilenetv2_qat.yaml)"
        )
    usable = [name for name in PREFERENCE if name in report.artefacts and name not in failed]
    if usable:
        named = [("--out", options.out), ("--page", options.page)]
        more = [word for flag, value in named if value for word in (flag, value)]
        limits = ["--limits", *options.limits] if options.limits else []
        words = format_command("export", options.run, *more, *limits, "--bundle", options.bundle or "DIR")
        lines.append(f"{usable[0]} passed; a bundle of it: {words}")
    return lines
