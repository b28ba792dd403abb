"""Measure a model on shifted images: ``python -m tools.shift MODEL --data DIR``.

13 corruptions at 3 strengths, the styles of other classes' images, and lesions painted on tumour-free heads. Everything
is done to the decoded image, before the model's own crop and resize, and depends on the image's path alone.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import batched
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from brainq_torch.data.classes import CLASSES, require_four
from brainq_torch.data.dataset.balanced import take_in_turn
from brainq_torch.data.dataset.load import read_sound
from brainq_torch.data.dataset.sample import DataFolderError, ImageFolder, ImageRecord, Problem, sort_problems
from brainq_torch.data.limits import MOST, whole_number
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.synthesis.corruptions import Grey, corrupt, seeded
from brainq_torch.series.kept_file import require_places
from brainq_torch.texts import fill_text
from export.run.runners import Runner, load_runner
from tools.shared.command import add_data, add_json, add_threads, as_main, seed_number, write_found
from tools.shared.images import choose_known, class_order, name_unread
from tools.shift.plot import plot_grid, plot_pictures
from tools.shift.scores import NOT_RUN, NOTUMOR, SHIFTS, Outcome, Shift, compare
from tools.shift.simulated import lesioned, restyle

_READ_AT_ONCE = 16  # images; bounds the memory together with _LARGEST_SIDE
_LARGEST_SIDE = 1024  # pixels; larger scans are shrunk first, as no model here takes more
_STYLE_SIDE = 512
_STYLES_PER_CLASS = 24


Styles = tuple[tuple[tuple[str, Grey], ...], ...]
"""Images to take styles from: for each class, (record's path, pixels)."""


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="run folder, .onnx or .tflite file")
    add_data(parser)
    words = "draw N, as many of each class (default: all)"
    parser.add_argument("--images", type=whole_number(len(CLASSES), MOST), metavar="N", help=words)
    parser.add_argument("--seed", type=seed_number, default=0, help="of that draw (default: %(default)s)")
    parser.add_argument("--compare", metavar="MODEL", help="a second model on the same images, such as the INT8 file")
    add_json(parser)
    parser.add_argument("--plot", metavar="FILE", help="draw the grid as PNG; FILE_pictures.png shows the shifts")
    add_threads(parser)


def _shift(options: argparse.Namespace) -> int:
    plot = Path(options.plot) if options.plot else None
    pictures_plot = plot and plot.with_name(f"{plot.stem}_pictures{plot.suffix}")
    require_places(options, pictures_plot)
    names = [name for name in (options.model, options.compare) if name]
    runners = {name: load_runner(name, options.threads) for name in names}
    for name, runner in runners.items():
        instead = "tools.compare measures shifted copies of images of any classes"
        require_four(runner.classes, f"tools.shift, which draws lesions, of {name}", instead)
    split, folder = choose_known(names[0], runners[names[0]], Path(options.data), options.split, options.manifest)
    if options.images is not None:
        folder = draw_balanced(folder, options.images, options.seed)
    begin = time.perf_counter()
    readable, outcomes = measure(runners, folder, options.threads)
    name_unread(readable)
    seconds = time.perf_counter() - begin
    evaluated = sum(int((outcome.predictions != NOT_RUN).sum()) for outcome in outcomes)
    report = {
        "data": str(folder.root),
        "split": split,
        "n": len(readable.records),
        "threads": options.threads,
        "images_per_second": evaluated / seconds,
        "problems": [f"{problem.path}: {problem.what}" for problem in readable.problems],
        **outcomes[0].to_json(),
    }
    if len(outcomes) > 1:
        report["compare"] = outcomes[1].to_json() | {"against": compare(*outcomes)}
    print(fill_text("shifts", report=report, classes=CLASSES, evaluated=evaluated, seconds=seconds))
    write_found(options, report)
    if plot and pictures_plot:
        plot_grid(report, plot)
        plot_pictures(pictures(readable), pictures_plot)
    return 0


def draw_balanced(folder: ImageFolder, count: int, seed: int) -> ImageFolder:
    """Draw ``count`` images, as many of each class as can be had."""
    queues = []
    for label, name in enumerate(CLASSES):
        paths = [record.path for record in folder.records if record.label == label]
        queues.append([paths[place] for place in seeded("images", name, str(seed)).permutation(len(paths))])
    chosen = set(take_in_turn(queues, count))
    return replace(folder, records=tuple(record for record in folder.records if record.path in chosen))


def measure(
    runners: dict[str, Runner], folder: ImageFolder, threads: int = 1, progress: bool = True
) -> tuple[ImageFolder, list[Outcome]]:
    """Run every model on every shift of every image; each image is decoded once."""
    orders = {name: class_order(name, runner, CLASSES) for name, runner in runners.items()}
    specs = tuple({runner.pixels for runner in runners.values()})
    styles = _collect_styles(folder)
    kept: list[ImageRecord] = []
    problems: list[Problem] = []
    columns: dict[str, list[NDArray[np.int64]]] = {name: [] for name in runners}
    bar = tqdm(total=len(folder.records), desc="shifts", unit="image", disable=not progress)
    with ThreadPoolExecutor(threads) as pool:
        for batch in batched(folder.records, _READ_AT_ONCE):
            images = list(_read(folder, batch, problems))
            kept += [record for record, _ in images]
            fed = list(pool.map(lambda image: _feed(image[0], image[1], styles, specs), images))
            for name, runner in runners.items():
                columns[name] += [_predict(runner, orders[name], *image) for image in fed]
            bar.update(len(batch))
    bar.close()
    readable = replace(folder, records=tuple(kept), problems=sort_problems([*folder.problems, *problems]))
    if not kept:
        raise DataFolderError(f"no image is readable.\n{readable.report()}")
    labels = np.array([record.label for record in kept], np.int64)
    return readable, [Outcome(name, labels, np.stack(found, axis=1)) for name, found in columns.items()]


def _feed(
    record: ImageRecord, grey: Grey, styles: Styles, specs: tuple[PixelSpec, ...]
) -> tuple[list[int], dict[PixelSpec, Grey]]:
    """Shift one image and make it ready for each spec at once, so that no more than pixels is kept.

    Returns which of ``SHIFTS`` concern it, and (their number, size, size) uint8 for each spec.
    """
    run: list[int] = []
    pixels: dict[PixelSpec, list[Grey]] = {spec: [] for spec in specs}
    for place, shift in enumerate(SHIFTS):
        variant = render(shift, grey, record, styles)
        if variant is not None:
            run.append(place)
            for spec in specs:
                pixels[spec].append(spec.apply(variant))
    return run, {spec: np.stack(images) for spec, images in pixels.items()}


def render(shift: Shift, grey: Grey, record: ImageRecord, styles: Styles) -> Grey | None:
    """Return the image under a shift; None where it does not concern it."""
    if shift.family == "clean":
        return grey
    if shift.family == "corruption":
        return corrupt(grey, shift.name, shift.strength, record.path)
    label = CLASSES.index(shift.name)
    if shift.family == "style":
        others = [image for other, image in styles[label] if other != record.path]
        drawn = int(seeded("style", CLASSES[label], record.path).integers(len(others))) if others else 0
        return restyle(grey, others[drawn]) if others else None
    return lesioned(grey, label, seeded("lesion", shift.name, record.path)) if record.label == NOTUMOR else None


def _predict(runner: Runner, order: list[int], run: list[int], pixels: dict[PixelSpec, Grey]) -> NDArray[np.int64]:
    """Return (len(SHIFTS),) int64 predictions."""
    answers = np.full(len(SHIFTS), NOT_RUN, np.int64)
    answers[run] = runner(pixels[runner.pixels])[:, order].argmax(axis=1)
    return answers


def _read(
    folder: ImageFolder, records: Sequence[ImageRecord], problems: list[Problem]
) -> Iterator[tuple[ImageRecord, Grey]]:
    return read_sound(folder.root, records, lambda grey, _: (_shrink(grey.pixels, _LARGEST_SIDE), ()), problems)


def _shrink(grey: Grey, side: int) -> Grey:
    share = side / max(grey.shape)
    if share >= 1:
        return grey
    height, width = (max(1, round(share * length)) for length in grey.shape)
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))


def _collect_styles(folder: ImageFolder) -> Styles:
    """Decode a few images of each class; those that cannot be read are named when they are measured."""
    images = []
    for label, name in enumerate(CLASSES):
        records = [record for record in folder.records if record.label == label]
        order = seeded("styles", name).permutation(len(records))[:_STYLES_PER_CLASS]
        found = _read(folder, [records[place] for place in sorted(order)], [])
        images.append(tuple((record.path, _shrink(grey, _STYLE_SIDE)) for record, grey in found))
    return tuple(images)


def pictures(folder: ImageFolder) -> list[tuple[str, list[Grey | None]]]:
    """Return one image of each class under every shift, for the picture grid."""
    styles = _collect_styles(folder)
    rows = []
    for label, name in enumerate(CLASSES):
        records = [record for record in folder.records if record.label == label]
        for record, grey in _read(folder, records[:1], []):
            rows.append((name, [render(shift, grey, record, styles) for shift in SHIFTS]))
    return rows


main = as_main(_add_words, _shift)

if __name__ == "__main__":
    sys.exit(main())
