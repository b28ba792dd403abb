"""Put models side by side on the same images: ``python -m tools.compare REFERENCE MODEL... --data DIR``."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.dataset.sample import ImageFolder
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.synthesis.corruptions import shift_all
from brainq_torch.evaluation.comparison import Comparison, compare_predictions
from brainq_torch.evaluation.metrics import Metrics, compute_metrics
from brainq_torch.evaluation.paired import MARGIN_OVERALL, compare_paired, judge_all
from brainq_torch.run_files import CHECKPOINT
from brainq_torch.texts import fill_text
from export.run.runners import Runner, load_runner, run_named
from export.verify.parity import Logits, judge
from export.verify.report import SHIFTED_COPIES, Limits, describe_shift
from export.verify.shifted import measure_shift
from tools.shared.command import CommandError, add_data, add_json, add_threads, as_main, write_found
from tools.shared.images import choose_known, class_order, decode_images, labels_of


@dataclass(frozen=True)
class Candidate:
    """What is run: a run folder or a file.

    path: of the folder or file. xnnpack: False where LiteRT's built-in kernels run it.
    """

    path: str
    xnnpack: bool = True

    @property
    def name(self) -> str:
        """Return how the report calls it."""
        return self.path if self.xnnpack else f"{self.path} without XNNPACK"

    @property
    def is_onnx(self) -> bool:
        """Whether ONNX Runtime runs it, whose optimisations change integers."""
        return self.path.endswith(".onnx")

    def load(self, threads: int, as_written: bool = False) -> Runner:
        """Load it; ``as_written`` runs an ONNX file's graph as it stands in the file."""
        return load_runner(self.path, threads, accelerated=self.xnnpack and not (as_written and self.is_onnx))


@dataclass(frozen=True)
class ComparedFile:
    """One model.

    size_ratio: its bytes over the reference's. against: the paired comparison with the reference. shifted: that on
    shifted images, in numbers alone: which images -> ``measure_shift``.
    """

    model: str
    size_bytes: int
    size_ratio: float
    metrics: Metrics
    against: Comparison | None
    shifted: dict[str, dict[str, Any]]

    @property
    def verdict(self) -> str | None:
        """Whether it is as good as the reference, on these images and on shifted ones; None for the reference."""
        if self.against is None:
            return None
        counts = [(self.against.n, self.against.only_a_right, self.against.only_b_right)]
        counts += [(found["n"], found["lost"], found["gained"]) for found in self.shifted.values()]
        return judge_all([compare_paired(*count, MARGIN_OVERALL) for count in counts])

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        against = None if self.against is None else self.against.to_json()
        sizes = {"size_bytes": self.size_bytes, "size_ratio": self.size_ratio}
        compared = {"against_reference": against, "shifted": self.shifted, "verdict": self.verdict}
        return {"model": self.model, **sizes, "metrics": self.metrics.to_json(), **compared}


class Images:
    """The images of a split, decoded once for every PixelSpec that a model asks for; or shifted copies of them."""

    def __init__(self, folder: ImageFolder, plain: "Images | None" = None) -> None:
        self.folder, self.plain = folder, plain
        self._decoded: dict[PixelSpec, NDArray[np.uint8]] = {}

    @property
    def labels(self) -> NDArray[np.int64]:
        """Return (N,) labels of the images that can be read."""
        return labels_of(self.folder)

    def of(self, pixels: PixelSpec) -> NDArray[np.uint8]:
        """Return (N, size, size) uint8."""
        if pixels not in self._decoded:
            if self.plain is None:
                self.folder, self._decoded[pixels] = decode_images(self.folder, pixels)
            else:
                found, self.folder = self.plain.of(pixels), self.plain.folder
                self._decoded[pixels] = shift_all(found, [record.path for record in self.folder.records], pixels)
        return self._decoded[pixels]


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="+", help="the first is what the others are compared with")
    add_data(parser)
    words = "also measure B's logits against A's, in steps of B's scale; ONNX runs without optimisations here"
    parser.add_argument("--pair", nargs=2, action="append", default=[], metavar=("A", "B"), help=words)
    words = "also run each TFLite file without XNNPACK, as a row of its own and as a pair with itself"
    parser.add_argument("--without-xnnpack", action="store_true", help=words)
    words = (
        "images of another source, a folder or a table, to compare on, too (may be repeated); shifted copies of "
        "those of --data always are"
    )
    parser.add_argument("--shifted", action="append", default=[], metavar="DIR", help=words)
    add_json(parser)
    add_threads(parser)


def _compare(options: argparse.Namespace) -> int:
    if len(set(options.models)) < len(options.models):
        raise CommandError(f"a model is named twice among {', '.join(options.models)}; name each once")
    # All are loaded before anything is measured: a wrong name must not cost the others' minutes.
    candidates, asked = [Candidate(path) for path in options.models], [tuple(map(Candidate, p)) for p in options.pair]
    if options.without_xnnpack:
        plain = [Candidate(path, xnnpack=False) for path in options.models if Path(path).suffix == ".tflite"]
        candidates += plain
        asked += [(Candidate(candidate.path), candidate) for candidate in plain]
    runners = {candidate: candidate.load(options.threads) for candidate in candidates}
    as_written = {candidate: candidate.load(options.threads, as_written=True) for pair in asked for candidate in pair}
    first = candidates[0]
    split, folder = choose_known(first.name, runners[first], Path(options.data), options.split, options.manifest)
    images = Images(folder)
    others = {SHIFTED_COPIES: Images(folder, images)}
    for other in options.shifted:
        others[other] = Images(choose_known(first.name, runners[first], Path(other), "all")[1])
    known: dict[Candidate, Logits] = {}
    rows = compare_models(runners, images, known, others)
    for candidate, runner in as_written.items():
        if candidate not in known:
            known[candidate] = Logits(_run(f"{candidate.name} as written", runner, images), runner.logit_scale)
    measured = [{"reference": a.name, "artefact": b.name} | _measure(known[a], known[b]) for a, b in asked]
    about = {"data": str(folder.root), "split": split, "n": len(images.labels), "threads": options.threads}
    print(fill_text("models", rows=rows, pairs=measured, describe_shift=describe_shift, **about))
    write_found(options, about | {"models": [row.to_json() for row in rows], "pairs": measured})
    return 0


def compare_models(
    runners: dict[Candidate, Runner], images: Images, known: dict[Candidate, Logits], others: dict[str, Images]
) -> list[ComparedFile]:
    """Measure each model, all but the first against it, too, also on ``others``, which are called as they are shown.

    ``known`` gets the logits that pairs compare as they are.
    """
    rows: list[ComparedFile] = []
    reference: NDArray[np.float32] | None = None
    elsewhere: dict[str, NDArray[np.float32]] = {}
    for candidate, runner in runners.items():
        logits = _run(candidate.name, runner, images)
        if not candidate.is_onnx:
            known[candidate] = Logits(logits, runner.logit_scale)
        path = Path(candidate.path)
        size = (path / CHECKPOINT if path.is_dir() else path).stat().st_size
        against = (
            None if reference is None else compare_predictions(reference, logits, images.labels, images.folder.classes)
        )
        metrics = compute_metrics(logits, images.labels, images.folder.classes)
        found = {name: _run(candidate.name, runner, other) for name, other in others.items()}
        elsewhere = elsewhere or found
        shifted = {name: measure_shift(elsewhere[name], found[name], others[name].labels) for name in others if rows}
        ratio = size / rows[0].size_bytes if rows else 1.0
        rows.append(ComparedFile(candidate.name, size, ratio, metrics, against, shifted))
        reference = logits if reference is None else reference
    return rows


def _measure(reference: Logits, logits: Logits) -> dict[str, Any]:
    measured = judge(reference, logits, Limits())
    if measured["error"]:
        raise CommandError(f"two models cannot be compared: {measured['error']}")
    return {name: value for name, value in measured.items() if name not in ("passed", "error")}


def _run(name: str, runner: Runner, images: Images) -> NDArray[np.float32]:
    order = class_order(name, runner, images.folder.classes)
    pixels = images.of(runner.pixels)
    what = "shifted copies" if images.plain else "images"
    print(f"{name}: running {len(pixels)} {what}", file=sys.stderr, flush=True)
    return run_named(runner, pixels, [record.path for record in images.folder.records])[:, order]


main = as_main(_add_words, _compare, epilog="Run folders, .onnx and .tflite files may be mixed.")

if __name__ == "__main__":
    sys.exit(main())
