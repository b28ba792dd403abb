"""Measure a model on shifted images: ``python -m tools.shift MODEL --data DIR``.

13 corruptions at 3 strengths, the styles of other classes' images, and lesions painted on tumour-free heads. Everything
is done to the decoded image, before the model's own crop and resize, and depends on the image's path alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import batched
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import f1_score
from tqdm import tqdm

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.folder import DataFolderError, ImageFolder, ImageRecord, Problem
from brainq_torch.data.images import UnreadableImageError, read_grey
from brainq_torch.data.records import sort_problems
from export.runners import Runner, load_runner
from tools.command import CommandError, run_command, write_report
from tools.corruptions import CORRUPTIONS, STRENGTHS, Grey, corrupt, seeded
from tools.evaluate import choose_images, class_order
from tools.stand_ins import lesioned, restyle

NOTUMOR = CLASSES.index("notumor")
LESIONS = tuple(label for label in range(len(CLASSES)) if label != NOTUMOR)
NOT_RUN = -1

_READ_AT_ONCE = 16  # images; bounds the memory together with _LARGEST_SIDE
_LARGEST_SIDE = 1024  # pixels; larger scans are shrunk first, as no model here takes more
_STYLE_SIDE = 512
_STYLES_PER_CLASS = 24
_RESAMPLES = 1000


class Shift(NamedTuple):
    """One row of the grid. strength: 1 to 3 of a corruption, else 0."""

    family: Literal["clean", "corruption", "style", "lesion"]
    name: str
    strength: int = 0


CLEAN = Shift("clean", "clean")
SHIFTS: tuple[Shift, ...] = (
    CLEAN,
    *(Shift("corruption", name, strength) for name in CORRUPTIONS for strength in STRENGTHS),
    *(Shift("style", name) for name in CLASSES),
    *(Shift("lesion", CLASSES[label]) for label in LESIONS),
)


@dataclass(frozen=True)
class Outcome:
    """What one model answered.

    predictions: (len(SHIFTS), N) int64 indices into CLASSES; ``NOT_RUN`` where a shift does not concern an image.
    labels: (N,) int64, of the images as they are. model: how the report calls it.
    """

    model: str
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]

    def answers(self, shift: Shift) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return labels and predictions of the images that the shift concerns; a painted lesion changes the label."""
        predicted = self.predictions[SHIFTS.index(shift)]
        run = predicted != NOT_RUN
        truth = np.full_like(self.labels, CLASSES.index(shift.name)) if shift.family == "lesion" else self.labels
        return truth[run], predicted[run]

    def score(self, shift: Shift) -> dict[str, Any]:
        """Return n, accuracy and macro F1; for a style also the accuracy on images of other classes."""
        truth, predicted = self.answers(shift)
        if not len(truth):
            return {"n": 0, "accuracy": None, "macro_f1": None}
        row: dict[str, Any] = {"n": len(truth), "accuracy": float(np.mean(truth == predicted))}
        if shift.family == "lesion":
            return row | {"found": float(np.mean(predicted != NOTUMOR))}
        row["macro_f1"] = float(f1_score(truth, predicted, average="macro", zero_division=0))
        if shift.family == "style":
            own = truth == CLASSES.index(shift.name)
            row["accuracy_of_other_classes"] = _share(truth[~own] == predicted[~own])
            row["accuracy_of_own_class"] = _share(truth[own] == predicted[own])
        return row

    def mean_accuracy(self, shifts: Sequence[Shift]) -> dict[str, Any]:
        """Return the mean over these shifts with a 95 % bootstrap interval over the images (all shifts together)."""
        rows = [SHIFTS.index(shift) for shift in shifts]
        right = (self.predictions[rows] == self.labels).mean(axis=0)
        draws = np.random.default_rng(0).integers(0, len(right), (_RESAMPLES, len(right)))
        low, high = np.quantile(right[draws].mean(axis=1), (0.025, 0.975))
        return {"accuracy": float(right.mean()), "interval": [float(low), float(high)]}

    def to_json(self) -> dict[str, Any]:
        """Return the whole grid."""
        grid = {name: {str(s): self.score(Shift("corruption", name, s)) for s in STRENGTHS} for name in CORRUPTIONS}
        styles = {name: self.score(Shift("style", name)) for name in CLASSES}
        means = {}
        for strength in STRENGTHS:
            shifts = [Shift("corruption", name, strength) for name in CORRUPTIONS]
            f1 = [grid[name][str(strength)]["macro_f1"] for name in CORRUPTIONS]
            means[str(strength)] = self.mean_accuracy(shifts) | {"macro_f1": float(np.mean(f1))}
        swapped, own = self._pool_styles()
        return {
            "model": self.model,
            "clean": self.score(CLEAN),
            "corruptions": grid,
            "mean": means,
            "styles": styles | {"other_classes": swapped, "own_class": own},
            "lesions": {CLASSES[label]: self.score(Shift("lesion", CLASSES[label])) for label in LESIONS},
        }

    def _pool_styles(self) -> tuple[float | None, float | None]:
        """Return the accuracy over all images in the styles of other classes, and of other images of their own."""
        rows = [self.predictions[SHIFTS.index(Shift("style", name))] for name in CLASSES]
        styles = np.arange(len(CLASSES))[:, None]
        run, right, own = np.array(rows) != NOT_RUN, np.array(rows) == self.labels, styles == self.labels
        return _share(right[run & ~own]), _share(right[run & own])


@dataclass(frozen=True)
class Styles:
    """Images to take styles from. images: for each class, (record's path, pixels)."""

    images: tuple[tuple[tuple[str, Grey], ...], ...]

    def draw(self, label: int, path: str) -> Grey | None:
        """Return an image of the class that is not this one, the same each time; None where there is no other."""
        others = [image for other, image in self.images[label] if other != path]
        return others[int(seeded("style", CLASSES[label], path).integers(len(others)))] if others else None


def make_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.shift", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="run folder, .onnx or .tflite file")
    parser.add_argument("--data", required=True, metavar="DIR", help="class folders, or Training/Testing above them")
    parser.add_argument("--split", help="Training, val, Testing or all (default: Testing if there, else val, else all)")
    parser.add_argument("--manifest", metavar="CSV", help="take the split from a run's manifest.csv, hashes checked")
    parser.add_argument("--images", type=int, metavar="N", help="draw N images, as many of each class (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of that draw (default: %(default)s)")
    parser.add_argument("--compare", metavar="MODEL", help="a second model on the same images, such as the INT8 file")
    parser.add_argument("--json", metavar="FILE", help="write the grid as JSON, replacing FILE")
    parser.add_argument("--plot", metavar="FILE", help="draw the grid as PNG; FILE_pictures.png shows the shifts")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, or 2 for a wrong input."""
    options = make_parser().parse_args(arguments)
    return run_command(lambda: _shift(options))


def _shift(options: argparse.Namespace) -> int:
    for target in filter(None, (options.json, options.plot)):
        if not Path(target).absolute().parent.is_dir() or Path(target).is_dir():
            raise CommandError(f"{target} cannot be written: it is a folder, or its folder is missing; make that first")
    names = [name for name in (options.model, options.compare) if name]
    runners = {name: load_runner(name, options.threads) for name in names}
    split, folder = choose_images(Path(options.data), options.split, options.manifest)
    if options.images is not None:
        folder = draw_balanced(folder, options.images, options.seed)
    begin = time.perf_counter()
    readable, outcomes = measure(runners, folder, options.threads)
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
    print("\n".join(format_outcome(outcome) for outcome in outcomes))
    if len(outcomes) > 1:
        print(format_comparison(*outcomes))
    print(f"{evaluated} images in {seconds:.0f} s, {evaluated / seconds:.0f} images/s, {options.threads} threads")
    if options.json:
        write_report(options.json, report)
    if options.plot:
        from tools.shift_plot import plot_grid, plot_pictures

        plot_grid(report, options.plot)
        target = Path(options.plot)
        plot_pictures(pictures(readable), target.with_name(f"{target.stem}_pictures{target.suffix}"))
    return 0


def draw_balanced(folder: ImageFolder, count: int, seed: int) -> ImageFolder:
    """Draw ``count`` images, a quarter of each class, fewer where a class has fewer. Raises CommandError."""
    each = count // len(CLASSES)
    if each < 1:
        raise CommandError(f"--images is {count}; allowed are {len(CLASSES)} (one of each class) and more")
    chosen: set[str] = set()
    for label, name in enumerate(CLASSES):
        paths = [record.path for record in folder.records if record.label == label]
        order = seeded("images", name, str(seed)).permutation(len(paths))
        chosen |= {paths[place] for place in order[:each]}
    return replace(folder, records=tuple(record for record in folder.records if record.path in chosen))


def measure(
    runners: dict[str, Runner], folder: ImageFolder, threads: int = 1, progress: bool = True
) -> tuple[ImageFolder, list[Outcome]]:
    """Run every model on every shift of every image; each image is decoded once.

    Returns the folder without the unreadable images, which its problems name, and one Outcome per model.
    Raises CommandError when a model does not name the four classes, DataFolderError when no image is readable.
    """
    orders = {name: class_order(name, runner) for name, runner in runners.items()}
    styles = _collect_styles(folder)
    kept: list[ImageRecord] = []
    problems: list[Problem] = []
    columns: dict[str, list[NDArray[np.int64]]] = {name: [] for name in runners}
    bar = tqdm(total=len(folder.records), desc="shifts", unit="image", disable=not progress)
    with ThreadPoolExecutor(threads) as pool:
        for batch in batched(folder.records, _READ_AT_ONCE):
            read = [(record, _read(folder, record, problems)) for record in batch]
            images = [(record, grey) for record, grey in read if grey is not None]
            kept += [record for record, _ in images]
            shifted = list(pool.map(lambda item: list(render(item[1], item[0], styles)), images))
            for name, runner in runners.items():
                columns[name] += _predict(runner, orders[name], shifted)
            bar.update(len(batch))
    bar.close()
    readable = replace(folder, records=tuple(kept), problems=sort_problems([*folder.problems, *problems]))
    if not kept:
        raise DataFolderError(f"no image is readable.\n{readable.report()}")
    labels = np.array([record.label for record in kept], np.int64)
    return readable, [Outcome(name, labels, np.stack(found, axis=1)) for name, found in columns.items()]


def render(grey: Grey, record: ImageRecord, styles: Styles) -> Iterator[Grey | None]:
    """Yield the image under each of ``SHIFTS``; None where one does not concern it."""
    for shift in SHIFTS:
        yield _render(shift, grey, record, styles)


def _render(shift: Shift, grey: Grey, record: ImageRecord, styles: Styles) -> Grey | None:
    if shift.family == "clean":
        return grey
    if shift.family == "corruption":
        return corrupt(grey, shift.name, shift.strength, record.path)
    label = CLASSES.index(shift.name)
    if shift.family == "style":
        source = styles.draw(label, record.path)
        return None if source is None else restyle(grey, source)
    return lesioned(grey, label, seeded("lesion", shift.name, record.path)) if record.label == NOTUMOR else None


def _predict(runner: Runner, order: list[int], shifted: list[list[Grey | None]]) -> list[NDArray[np.int64]]:
    """Return, for each image, (len(SHIFTS),) int64 predictions."""
    answers = np.full((len(shifted), len(SHIFTS)), NOT_RUN, np.int64)
    for row, variants in enumerate(shifted):
        run = [place for place, variant in enumerate(variants) if variant is not None]
        pixels = np.stack([runner.pixels.apply(variant) for variant in variants if variant is not None])
        answers[row, run] = runner(pixels)[:, order].argmax(axis=1)
    return list(answers)


def _read(folder: ImageFolder, record: ImageRecord, problems: list[Problem]) -> Grey | None:
    try:
        grey = read_grey(folder.root / record.path).pixels
    except UnreadableImageError as error:
        problems.append(Problem(record.path, error.reason, error.remedy, "error"))
        return None
    return _shrink(grey, _LARGEST_SIDE)


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
        found = [(records[place].path, _read(folder, records[place], [])) for place in sorted(order)]
        images.append(tuple((path, _shrink(grey, _STYLE_SIDE)) for path, grey in found if grey is not None))
    return Styles(tuple(images))


def pictures(folder: ImageFolder) -> list[tuple[str, list[Grey | None]]]:
    """Return one image of each class under every shift, for the picture grid."""
    styles = _collect_styles(folder)
    rows = []
    for label, name in enumerate(CLASSES):
        record = next((record for record in folder.records if record.label == label), None)
        grey = _read(folder, record, []) if record else None
        if record is not None and grey is not None:
            rows.append((name, list(render(grey, record, styles))))
    return rows


def compare(first: Outcome, second: Outcome) -> dict[str, Any]:
    """Return, for each shift, the second model's accuracy less the first's, and how often both give one class."""

    def row(shift: Shift) -> dict[str, Any]:
        (truth, one), (_, other) = first.answers(shift), second.answers(shift)
        difference = None if not len(truth) else float(np.mean(other == truth) - np.mean(one == truth))
        return {"accuracy_difference": difference, "agreement": _share(one == other)}

    agreement = [_share(first.answers(shift)[1] == second.answers(shift)[1]) for shift in SHIFTS[1:]]
    return {
        "model": first.model,
        "clean": row(CLEAN),
        "corruptions": {n: {str(s): row(Shift("corruption", n, s)) for s in STRENGTHS} for n in CORRUPTIONS},
        "styles": {name: row(Shift("style", name)) for name in CLASSES},
        "lesions": {CLASSES[label]: row(Shift("lesion", CLASSES[label])) for label in LESIONS},
        "lowest_agreement": min((share for share in agreement if share is not None), default=None),
    }


def format_outcome(outcome: Outcome) -> str:
    """Return the readable table."""
    data = outcome.to_json()
    clean = data["clean"]
    lines = [
        f"{outcome.model}: {clean['n']} images, accuracy %, macro F1 in brackets",
        f"{'clean':14} {_cell(clean)}",
        f"{'':14} {'strength 1':>15} {'2':>15} {'3':>15}",
    ]
    for name, row in data["corruptions"].items():
        lines.append(f"{name:14} " + " ".join(_cell(row[str(strength)]) for strength in STRENGTHS))
    lines.append(f"{'mean':14} " + " ".join(_cell(data["mean"][str(strength)]) for strength in STRENGTHS))
    lines.append(
        f"{'95 %':14} " + " ".join(f"{_range(data['mean'][str(strength)]['interval']):>15}" for strength in STRENGTHS)
    )
    lines.append(f"{'in the style of':16} {'other classes':>14} {'its own class':>14}")
    for name in CLASSES:
        row = data["styles"][name]
        parts = (row.get("accuracy_of_other_classes"), row.get("accuracy_of_own_class"))
        lines.append(f"  {name:14} " + " ".join(f"{_percent(part):>14}" for part in parts))
    pooled = (data["styles"]["other_classes"], data["styles"]["own_class"])
    lines.append(f"  {'all':14} " + " ".join(f"{_percent(part):>14}" for part in pooled))
    lines.append(f"{'lesion painted':16} {'right class':>14} {'not notumor':>14}")
    for name, row in data["lesions"].items():
        lines.append(f"  {name:14} {_percent(row['accuracy']):>14} {_percent(row.get('found')):>14}")
    return "\n".join(lines) + "\n"


def format_comparison(first: Outcome, second: Outcome) -> str:
    """Return where two models differ."""
    data = compare(first, second)
    lines = [
        f"{second.model} less {first.model}: accuracy in points, images with the same class in brackets",
        f"{'clean':14} {_difference(data['clean'])}",
    ]
    for name, row in data["corruptions"].items():
        lines.append(f"{name:14} " + " ".join(_difference(row[str(strength)]) for strength in STRENGTHS))
    for family in ("styles", "lesions"):
        lines += [f"{name + ' ' + family[:-1]:18} {_difference(row)}" for name, row in data[family].items()]
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    if row["accuracy"] is None:
        return f"{'no images':>15}"
    return f"{100 * row['accuracy']:6.2f} ({row['macro_f1']:.3f})".rjust(15)


def _difference(row: dict[str, Any]) -> str:
    if row["accuracy_difference"] is None:
        return f"{'no images':>17}"
    return f"{100 * row['accuracy_difference']:+6.2f} ({100 * row['agreement']:.2f} %)".rjust(17)


def _range(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.2f}-{100 * interval[1]:.2f}"


def _percent(share: float | None) -> str:
    return "no images" if share is None else f"{100 * share:.2f}"


def _share(right: NDArray[np.bool_]) -> float | None:
    return float(right.mean()) if right.size else None


if __name__ == "__main__":
    sys.exit(main())
