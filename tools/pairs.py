"""Ask whether a model looks at the lesion or at the source: ``python -m tools.pairs MODEL --data DIR --manifest CSV``.

Pairs of images of one head, with and without a tumour, made from a run's validation part as
``data/synthesis/counterfactual.py`` makes training images: drawn and transplanted lesions on tumour-free heads,
tumour heads whose healthy half is mirrored onto the other. Only a model that goes by the lesion gets both images of
a pair right.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.classes import CLASSES, GLIOMA, MENINGIOMA, NOTUMOR, Labels, require_four
from brainq_torch.data.dataset.load import load_pixels
from brainq_torch.data.dataset.manifest import manifest_folder, read_manifest, verify_manifest
from brainq_torch.data.synthesis.counterfactual import CounterfactualMaker
from brainq_torch.data.synthesis.drawing import to_bytes
from brainq_torch.data.synthesis.editing import paint_any, transplant_lesion
from brainq_torch.data.synthesis.midline import mirror_half
from brainq_torch.evaluation.metrics import wilson_interval
from export.run.runners import Runner, load_runner
from tools.shared.command import CommandError, add_json, as_main, positive, write_found
from tools.shared.images import class_order

_Pixels = NDArray[np.uint8]
_Pair = tuple[NDArray[Any], NDArray[Any], tuple[int, int]]  # images before and after in [0, 1], labels of both
_MOST_TRIES = 40  # draws per pair wanted


class Pairs(NamedTuple):
    """Heads and what became of them. before, after: (H, W) uint8 each; labels: (N, 2) of before and after."""

    before: tuple[_Pixels, ...]
    after: tuple[_Pixels, ...]
    labels: tuple[tuple[int, int], ...]


def make_pairs(pixels: _Pixels, labels: NDArray[np.int64], count: int) -> dict[str, Pairs]:
    """Make up to ``count`` pairs of each kind from (N, H, W) uint8 pixels and (N,) labels."""
    maker = CounterfactualMaker(pixels, labels)
    normal, tumours = (np.flatnonzero(np.isin(labels, wanted)) for wanted in ([NOTUMOR], [GLIOMA, MENINGIOMA]))
    if not len(normal) or not len(tumours):
        raise CommandError("pairs need images of class notumor and of gliomas or meningiomas")
    kinds: dict[str, Callable[[np.random.Generator], _Pair | None]] = {
        "painted": lambda rng: _paint(maker, int(rng.choice(normal)), rng),
        "transplanted": lambda rng: _transplant(maker, int(rng.choice(normal)), int(rng.choice(tumours)), rng),
        "cleared": lambda rng: _clear(maker, int(rng.choice(tumours))),
    }
    made = {}
    for number, (kind, make) in enumerate(kinds.items()):
        rng = np.random.default_rng([0, number])
        pairs = list(islice(filter(None, (make(rng) for _ in range(_MOST_TRIES * count))), count))
        if not pairs:
            raise CommandError(f"no pair of kind {kind!r} could be made; the images show no whole heads")
        before, after, both = zip(*pairs, strict=True)
        made[kind] = Pairs(tuple(map(to_bytes, before)), tuple(map(to_bytes, after)), both)
    return made


def _paint(maker: CounterfactualMaker, row: int, rng: np.random.Generator) -> _Pair | None:
    head, _ = maker.look(row)
    if head is None:
        return None
    label = GLIOMA if rng.random() < 0.6 else MENINGIOMA
    return head.image, paint_any(head, label, rng), (NOTUMOR, label)


def _transplant(maker: CounterfactualMaker, row: int, donor: int, rng: np.random.Generator) -> _Pair | None:
    head, _ = maker.look(row)
    source, lesion = maker.look(donor)
    if head is None or source is None or lesion is None:
        return None
    moved = transplant_lesion(source, lesion, head, rng)
    return None if moved is None else (head.image, moved, (NOTUMOR, int(maker.labels[donor])))


def _clear(maker: CounterfactualMaker, row: int) -> _Pair | None:
    head, lesion = maker.look(row)
    if head is None or lesion is None:
        return None
    return head.image, mirror_half(head.image, not lesion.left), (int(maker.labels[row]), NOTUMOR)


def measure(runner: Runner, order: Sequence[int], pairs: Pairs) -> dict[str, Any]:
    """Return the shares of tumours found (as any tumour, and as their class), of tumour-free heads, and of whole pairs.

    Each is [share, low, high] with Wilson's 95 % interval. order: where each of ``CLASSES`` stands among the logits.
    """
    labels = np.array(pairs.labels)
    named = np.stack([runner(np.stack(side))[:, order].argmax(1) for side in (pairs.before, pairs.after)], axis=1)
    normal = labels == NOTUMOR
    found = (named != NOTUMOR) & ~normal
    return {
        "pairs": len(labels),
        "tumours_found": interval(int(found.sum()), len(labels)),
        "tumours_named": interval(int(((named == labels) & ~normal).sum()), len(labels)),
        "normal_named": interval(int(((named == labels) & normal).sum()), len(labels)),
        "pairs_told_apart": interval(int((found.any(1) & ((named == labels) & normal).any(1)).sum()), len(labels)),
    }


def interval(hits: int, count: int) -> list[float]:
    """Return [share, low, high] with Wilson's 95 % interval."""
    return [round(value, 4) for value in (hits / count, *wilson_interval(hits, count))]


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="run folder, .onnx or .tflite file")
    parser.add_argument("--data", required=True, metavar="DIR", help="the folder that the manifest's paths are below")
    parser.add_argument("--manifest", required=True, metavar="CSV", help="a run's manifest.csv")
    parser.add_argument("--split", default="val", help="part to make the pairs from (default: %(default)s)")
    parser.add_argument("--count", type=positive, default=200, help="pairs of each kind (default: %(default)s)")
    add_json(parser)


def _run(words: argparse.Namespace) -> int:
    runners = {model: load_runner(model) for model in words.models}
    for model, runner in runners.items():
        what = f"tools.pairs, which draws and moves lesions, of {model}"
        require_four(runner.classes, what, "name a model of those")
    orders = {model: class_order(model, runner, CLASSES) for model, runner in runners.items()}
    listed = read_manifest(Path(words.manifest))
    rows = [row for row in listed if row.split == words.split]
    if not rows:
        parts = ", ".join(sorted({row.split for row in listed}))
        raise CommandError(f"{words.manifest} has no images in part {words.split!r}; name one of {parts}")
    verify_manifest(Path(words.data), rows)
    folder = manifest_folder(Path(words.data), rows, labels=Labels())
    labels = np.array([record.label for record in folder.records])
    report = {}
    for model, runner in runners.items():
        made = make_pairs(load_pixels(folder, runner.pixels), labels, words.count)
        report[model] = {kind: measure(runner, orders[model], pairs) for kind, pairs in made.items()}
        print(model)
        for kind, figures in report[model].items():
            shares = ", ".join(
                f"{name.replace('_', ' ')} {figures[name][0]:.1%}" for name in figures if name != "pairs"
            )
            print(f"  {kind}: {figures['pairs']} pairs, {shares}")
    write_found(words, {"split": words.split, "classes": list(CLASSES), "models": report})
    return 0


main = as_main(_add_words, _run)

if __name__ == "__main__":
    sys.exit(main())
