"""The way of an export: images, files, metadata, parity, and the folder that appears as a whole."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from os import PathLike
from pathlib import Path
from typing import Any

from brainq_torch.run import Run, load_run
from brainq_torch.run_files import CHECKPOINT, PARITY, hash_file, write_json
from brainq_torch.series.rule import copy_rule
from export.catalogue import ONNX_FP32
from export.context import ExportContext, ExportOptions, RecipeError
from export.folder import check_target, write_as_a_whole
from export.integer_files import INT8_FILES, W4A8_FILES
from export.recipes import (
    RECIPES,
    check_network,
    default_recipes,
    describe_run,
    find_float_model,
    resolve_recipes,
    versions,
)
from export.run.elsewhere import read_elsewhere
from export.run.metadata import write_metadata
from export.run.sample import ImageSample, RunImages, check_run_images
from export.run.torch_runner import TorchRunner, torch_threads
from export.verify.parity import FLOAT_MODEL, LogitTable, climb, list_models
from export.verify.report import SHIFTED_COPIES, TELLING_IMAGES, ArtefactReport, ParityReport, are_near_ties
from export.verify.shifted import add_shifted

THREADS = 1

_SPLITS = ("Testing", "val", "Training")
"""Whose images parity is measured on, in this order."""


def export(
    run: str | PathLike[str],
    recipes: str | Sequence[str] = (),
    out: str | PathLike[str] | None = None,
    options: ExportOptions = ExportOptions(),  # noqa: B008 - frozen
) -> ParityReport:
    """Turn a run into files that run without PyTorch, and check each, as ``python -m export`` does.

    Args:
        run: A run folder, or what ``fit`` returned.
        recipes: A name such as fp32, fp16, int8, w4a8, or several; those that they need are made too. By default as
            the run needs.
        out: Folder to make, by default ``export`` in the run folder.
        options: How the files are made and compared; ``ExportOptions(replace=True)`` replaces an earlier export.

    Returns:
        What parity.json holds; ``passed`` says whether every file may be used.

    Raises:
        BrainqError: The run, a recipe or the folder cannot be used, and what to do.
    """
    trained = load_run(run)
    folder = Path(out) if out else trained.folder / "export"
    names = [recipes] if isinstance(recipes, str) else recipes
    return export_run(trained, names or default_recipes(trained), folder, options)


def export_run(run: Run, recipes: Sequence[str], out: Path, options: ExportOptions) -> ParityReport:
    """Make the recipes' files in ``out``, compare each, and write ``parity.json`` last.

    Progress goes to standard output.

    Args:
        run: A finished run.
        recipes: Names of ``RECIPES``; those that they need are made too.
        out: Folder to make.
        options: How the files are made and compared.
    """
    names = resolve_recipes(recipes)
    check_network(run, names)
    check_target(out, options.replace)
    clock = _Clock()
    with clock.step("images"):
        images = check_run_images(run, options.data)
        sample = images.sample(options.parity_images, _SPLITS)
        elsewhere = read_elsewhere(options.shifted, run.pixels, run.classes, _asks_images(run, names, options))
    for problem in images.problems:
        print(f"warning: {problem}", file=sys.stderr)
    _check_images(run, names, images, sample, options.calibration_images)
    with write_as_a_whole(out, options.replace) as folder:
        context = ExportContext(run, folder, images, options, elsewhere)
        plain, origin = find_float_model(run)
        if plain is None:
            print(f"warning: float model to compare with: {origin}", file=sys.stderr)
        else:
            context.networks[FLOAT_MODEL] = plain
        with closing(LogitTable(folder, sample, {}, THREADS)) as table:
            for name in names:
                _make(name, context, clock)
                # Files answer while the next are made; networks in PyTorch wait, as they may be traced meanwhile.
                table.begin(file for file in list_models(RECIPES[name].rungs) if context.path(file).exists())
            with clock.step("parity"):
                artefacts, sample = _check_enough(context, names, table)
        report = ParityReport(artefacts, _about(context, names, sample, clock.seconds) | {"float_model": origin})
        copy_rule(run.folder, folder)
        write_json(folder / PARITY, report.to_json())
    return report


def _asks_images(run: Run, names: Sequence[str], options: ExportOptions) -> bool:
    """Tell whether images choose how far biases are corrected: of what is calibrated here, where the user does not."""
    calibrated = run.quantization is None and {INT8_FILES.recipe, W4A8_FILES.recipe} & set(names)
    return bool(calibrated) and options.bias_correction == "auto"


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


@dataclass(frozen=True)
class _Clock:
    """Seconds of each step, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the block."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def _make(name: str, context: ExportContext, clock: _Clock) -> None:
    """Make one recipe's files and put the metadata in."""
    recipe = RECIPES[name]
    print(f"{name}: {', '.join(recipe.files)} ...", flush=True)
    with clock.step(name):
        with torch_threads(THREADS):  # two would wait for one another, and choose other integers
            recipe.make(context)
        metadata = describe_run(context.run, name, context.provenance.get(name))
        paths = [context.path(file) for file in recipe.files]
        for path in paths:
            write_metadata(path, metadata)
    made = ", ".join(f"{path.stat().st_size:,} bytes" for path in paths)
    print(f"{name}: {made}, {clock.seconds[name]:.1f} s", flush=True)


def _check_enough(
    context: ExportContext, names: Sequence[str], table: LogitTable
) -> tuple[dict[str, ArtefactReport], ImageSample]:
    """Check the files; on more images where near-ties changed class, of too few to tell 0.1 % from chance."""
    artefacts, sample = _check(context, names, table), table.sample
    count, own = len(sample.names), TELLING_IMAGES if context.images.synthetic else len(context.images.rows)
    turned = any(are_near_ties(report.flips, count) for report in artefacts.values())
    if not turned or not count < TELLING_IMAGES <= own:
        return artefacts, sample
    print(f"parity: near-ties changed class; one image of {count} is more than 0.1 % already, so on more:", flush=True)
    sample = context.images.sample(TELLING_IMAGES, _SPLITS)
    with closing(LogitTable(context.folder, sample, table.models, THREADS)) as wider:
        return _check(context, names, wider), sample


def _check(context: ExportContext, names: Sequence[str], table: LogitTable) -> dict[str, ArtefactReport]:
    """Climb the parity ladder of the recipes that were made; where a rung breaks, say where the files part."""
    run, sample = context.run, table.sample
    print(f"parity: {len(sample.names)} images ...", flush=True)
    rungs = [rung for name in names for rung in RECIPES[name].rungs]
    if run.quantization is not None:  # training was free to leave the float model: measured, not limited
        free = [replace_fields(rung.limits, accuracy_fall=None, float_noise=None) for rung in rungs]
        rungs = [replace_fields(rung, limits=limits) for rung, limits in zip(rungs, free, strict=True)]
    table.models |= {name: TorchRunner(net, run.pixels, run.classes, THREADS) for name, net in context.networks.items()}
    reports = climb(rungs, table)
    proven = ONNX_FP32 in reports and reports[ONNX_FP32].passed  # the network's answers, in a third of PyTorch's time
    for source, images in {SHIFTED_COPIES: sample.shifted(run.pixels), **context.elsewhere.reporting}.items():
        with closing(LogitTable(context.folder, images, table.models, THREADS)) as other:
            reports = add_shifted(reports, other, ONNX_FP32 if proven else FLOAT_MODEL, source)
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
        "bias_correction": {
            name: about["bias_correction"] for name, about in context.provenance.items() if "bias_correction" in about
        },
        "versions": versions(),
        "threads": THREADS,
        "seconds": {**seconds, "total": round(sum(seconds.values()), 3)},
    }
