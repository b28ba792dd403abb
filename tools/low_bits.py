"""How few bits a run's weights can do with: ``python -m tools.low_bits RUN --data DIR --out FOLDER``.

Measures accuracy against bits, rounded to nearest and learned, on the integers as ONNX Runtime runs them, and how
sensitive each layer is; with --budget, chooses 4 or 8 bits per layer and measures that, too. A killed command goes on
where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.balanced import CALIBRATION_IMAGES
from brainq_torch.evaluation.metrics import compare_predictions, compute_metrics
from brainq_torch.quant.low_bits import W4A8, LowBits, quantize_low_bits
from brainq_torch.quant.prepare import weighted_layers
from brainq_torch.quant.rounding import Method, Rounding
from brainq_torch.quant.scheme import WEIGHT_BITS, Scheme
from brainq_torch.quant.sensitivity import Sensitivity, choose_bits, measure_sensitivity
from brainq_torch.run import Run, load_run
from brainq_torch.run_files import CHECKPOINT, atomic_path, hash_file, write_json
from export.graph.qdq_onnx import export_qdq_onnx, refill_qdq_onnx
from export.recipes import float_model
from export.run.metadata import FileMetadata
from export.run.runners import OnnxRunner, TorchRunner
from export.run.sample import ImageSample, check_run_images
from export.verify.parity import logit_noise
from export.w4a8 import STATE
from tools.command import CommandError, positive, run_command
from tools.evaluate import choose_images, decode_images

CURVE, SENSITIVITY, REPORT = "accuracy_against_bits.png", "sensitivity.csv", "low_bits.json"
BITS = "bits_{}.json"
"""Bits per layer within a budget, for the exporter's --bits-from."""

BITS_OF_A_BUDGET = (4, 8)
LEARNED: tuple[Method, ...] = ("descent", "adaround")


def make_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.low_bits", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder of a float network")
    parser.add_argument("--data", required=True, metavar="DIR", help="class folders, or Training/Testing above them")
    parser.add_argument("--split", default="Testing", help="what to measure on (default: Testing)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="for the table, the curve and what is half done")
    parser.add_argument("--bits", nargs="+", type=int, default=list(WEIGHT_BITS), choices=WEIGHT_BITS)
    parser.add_argument(
        "--rounding",
        nargs="+",
        choices=LEARNED,
        default=[Rounding().method],
        help="beside nearest; the first also measures sensitivity and rounds within budgets (default: %(default)s)",
    )
    parser.add_argument("--calibration-images", type=positive, default=CALIBRATION_IMAGES, metavar="N")
    parser.add_argument(
        "--images", type=positive, metavar="N", help="measure on so many, evenly over the paths (default: all)"
    )
    parser.add_argument("--sensitivity-images", type=positive, default=32, metavar="N")
    parser.add_argument(
        "--budget",
        nargs="+",
        type=positive,
        default=[],
        metavar="BYTES",
        help="choose 4 or 8 bits per layer so that all weights take at most this",
    )
    parser.add_argument("--threads", type=positive, default=2)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, or 2 for a wrong input."""
    options = make_parser().parse_args(arguments)
    return run_command(lambda: _low_bits(options))


def _low_bits(options: argparse.Namespace) -> int:
    run, out = load_run(options.run), Path(options.out)
    if run.quantization is not None:
        raise CommandError(f"{options.run} is quantized already; name the float run that it was started from")
    out.mkdir(parents=True, exist_ok=True)
    split, folder = choose_images(Path(options.data), options.split)
    if options.images is not None:
        chosen = np.linspace(0, len(folder.records) - 1, min(options.images, len(folder.records))).astype(int)
        folder = replace(folder, records=tuple(folder.records[index] for index in chosen))
    folder, pixels = decode_images(folder, run.pixels)
    labels = np.array([record.label for record in folder.records])
    calibration = check_run_images(run, Path(options.data)).calibration(options.calibration_images)
    about = [hash_file(run.folder / CHECKPOINT), calibration.names, [record.path for record in folder.records]]
    measure = Measure(run, calibration, pixels, labels, Kept(out / "state", about), options.threads)
    table = measure.sensitivity(options.sensitivity_images, options.rounding[0])
    budgets = {budget: choose_bits(table, budget) for budget in options.budget}  # refused before the long part
    curve = [measure.float_point()]
    for bits in options.bits:
        for method in ("nearest", *(options.rounding if bits < 8 else ())):
            curve.append(measure.point(method, replace(W4A8, weight_bits=bits), f"{method}-{bits}"))
    mixed = [
        {"budget_bytes": budget, "layers": bits}
        | measure.point(options.rounding[0], Scheme(exceptions=bits), f"{options.rounding[0]}-budget-{budget}")
        for budget, bits in budgets.items()
    ]
    report: dict[str, Any] = {
        "split": split, "images": len(labels), "calibration": calibration.to_json(),
        "sensitivity_images": options.sensitivity_images, "curve": curve, "mixed": mixed,
        "sensitivity": [entry.to_json() for entry in table],
    }  # fmt: skip
    write_json(out / REPORT, report)
    for budget, bits in budgets.items():
        write_json(out / BITS.format(budget), bits)
    lines = [f"{e.layer},{e.bits},{e.size_bytes},{e.error:.6g}" for e in table]
    (out / SENSITIVITY).write_text("\n".join(["layer,bits,size_bytes,error", *lines]) + "\n", encoding="utf-8")
    plot_curve([*curve, *mixed], out / CURVE)
    print(format_report(report))
    return 0


class Kept:
    """What an earlier, killed command measured of the same network on the same images.

    about: what the measurements depend on, plain data.
    """

    def __init__(self, folder: Path, about: Any) -> None:
        self.folder = folder / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, NDArray[Any]]:
        """Return the kept arrays of this name, or measure and keep them."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            with atomic_path(path) as partial, partial.open("wb") as file:
                np.savez(file, **measure())
        with np.load(path) as found:
            return dict(found)


@dataclass(frozen=True)
class Measure:
    """Measures networks of few bits, each once.

    pixels: (N, size, size) uint8, what accuracy is measured on. labels: (N,) int64.
    """

    run: Run
    calibration: ImageSample
    pixels: NDArray[np.uint8]
    labels: NDArray[Any]
    kept: Kept
    threads: int

    def sensitivity(self, images: int, method: Method) -> list[Sensitivity]:
        """Measure what 4 bits in one layer cost, on as many calibration images."""
        path = self.kept.folder / f"sensitivity-{method}-{images}.json"
        table = [Sensitivity(**entry) for entry in json.loads(path.read_text())] if path.exists() else []
        network = self._quantize("nearest", Scheme(), "calibration").network
        done = {entry.layer for entry in table}
        if done == {layer.name for layer in weighted_layers(network)}:
            return table
        entries = measure_sensitivity(
            network, self.calibration.pixels[:images], BITS_OF_A_BUDGET, Rounding(method=method),
            lambda names: _bar(names, "sensitivity"), done,
        )  # fmt: skip
        for whole_layer in zip(*[entries] * len(BITS_OF_A_BUDGET), strict=True):
            table += whole_layer
            write_json(path, [entry.to_json() for entry in table])
        return table

    def float_point(self) -> dict[str, Any]:
        """Measure the float network."""
        return self._describe("float", self._plain(), 32.0)

    def point(self, method: Method, scheme: Scheme, name: str) -> dict[str, Any]:
        """Round the network, run the integers in ONNX Runtime, and describe what comes out. name: for what is kept."""

        def measure() -> dict[str, Any]:
            rounded = self._quantize(method, scheme, name)
            path = self.kept.folder / f"{name}.partial.onnx"
            template = self.kept.folder / "template.onnx"
            if not template.exists():
                export_qdq_onnx(rounded.network, self.run.pixels, path)
                path.replace(template)
            refill_qdq_onnx(template, rounded.network, path)
            metadata = FileMetadata(self.run.classes, self.run.pixels, {})
            logits = OnnxRunner(path, metadata, self.threads)(self.pixels)
            path.unlink()
            bits, size = _weigh(rounded.network)
            return {"logits": logits, "seconds": rounded.processor_seconds, "bits": bits, "weight_bytes": size}

        found = self.kept.get(name, measure)
        described = self._describe(method, found["logits"], float(found["bits"]))
        measured = {"weight_bytes": int(found["weight_bytes"]), "processor_seconds": round(float(found["seconds"]), 1)}
        return described | measured

    def _plain(self) -> NDArray[Any]:
        def measure() -> dict[str, Any]:
            return {"logits": TorchRunner(self.run.model, self.run.pixels, self.run.classes, self.threads)(self.pixels)}

        return self.kept.get("float", measure)["logits"]

    def _quantize(self, method: Method, scheme: Scheme, name: str) -> LowBits:
        return quantize_low_bits(
            float_model(self.run), self.calibration.pixels, scheme, Rounding(method=method),
            state=self.run.folder / STATE, progress=lambda names: _bar(names, name),
        )  # fmt: skip

    def _describe(self, method: str, logits: NDArray[Any], bits: float) -> dict[str, Any]:
        plain, metrics = self._plain(), compute_metrics(logits, self.labels, CLASSES)
        against = compare_predictions(plain, logits, self.labels)
        return {
            "method": method, "bits": bits, "accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1,
            "recall": {name: one.recall for name, one in metrics.per_class.items()},
            "agreement": against.agreement, "mcnemar_p": against.mcnemar_p, "logit_noise": logit_noise(plain, logits),
        }  # fmt: skip


def _weigh(network: nn.Module) -> tuple[float, int]:
    """Return the mean bits of the weights that are neither in the ends nor depthwise, and the bytes of all weights."""
    layers = weighted_layers(network)
    sizes = {layer.name: layer.weight.numel() * (layer.largest.bit_length() + 1) for layer in layers}
    inner = [layer for layer in layers[1:-1] if getattr(layer.module, "groups", 1) == 1]
    mean = sum(sizes[layer.name] for layer in inner) / sum(layer.weight.numel() for layer in inner)
    return mean, sum((bits + 7) // 8 for bits in sizes.values())


def plot_curve(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against bits. points: of the report's ``curve`` and ``mixed``, the float network first."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(100 * points[0]["accuracy"], color="0.5", linestyle="--", label="float32")
    names = {"nearest": "rounded to nearest", "adaround": "learned (AdaRound)", "descent": "learned (descent)"}
    colours = {"nearest": "#c44e52", "adaround": "#55a868", "descent": "#4c72b0"}
    equal = [point for point in points[1:] if "layers" not in point]
    for method in dict.fromkeys(point["method"] for point in equal):
        # At 8 bits there is one way of rounding: all lines end there.
        mine = sorted((p["bits"], 100 * p["accuracy"]) for p in equal if p["method"] == method or p["bits"] == 8)
        axes.plot(*zip(*mine, strict=True), "o-", color=colours[method], label=names[method])
        for bits, accuracy in mine:
            if method == "adaround" or (bits == 8 and method != "nearest"):
                continue  # beside descent's
            below = -14 if method == "nearest" else 7
            axes.annotate(
                f"{accuracy:.1f}", (bits, accuracy), (0, below), textcoords="offset points", ha="center", fontsize=8
            )
    mixed = [point for point in points[1:] if "layers" in point]
    if mixed:
        label = f"4 or 8 bits by sensitivity, {mixed[0]['method']}"
        axes.plot(
            [p["bits"] for p in mixed],
            [100 * p["accuracy"] for p in mixed],
            "*",
            color="k",
            ms=10,
            label=label,
            zorder=3,
        )
    axes.set(xlabel="bits per weight (ends and depthwise: 8)", ylabel="accuracy / %", xticks=range(2, 9), ylim=(0, 110))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def format_report(report: dict[str, Any]) -> str:
    """Return the readable table."""
    lines = [
        f"{report['images']} images of {report['split']}; bits of the weights that are not in the ends or depthwise"
    ]
    for point in [*report["curve"], *report["mixed"]]:
        within = f"  within {point['budget_bytes']:,} bytes" if "layers" in point else ""
        lines.append(
            f"  {point['bits']:>4.3g} bits, {point['method']:9} accuracy {100 * point['accuracy']:6.2f} %  "
            f"macro F1 {point['macro_f1']:.4f}  as float {100 * point['agreement']:6.2f} %  "
            f"McNemar p {point['mcnemar_p']:.3g}{within}"
        )
    worst = sorted((e for e in report["sensitivity"] if e["bits"] == 4), key=lambda e: -e["error"])[:5]
    lines.append("most sensitive to 4 bits: " + ", ".join(f"{e['layer']} ({e['error']:.3g})" for e in worst))
    for point in report["mixed"]:
        eight = [name for name, bits in point["layers"].items() if bits == 8]
        lines.append(f"within {point['budget_bytes']:,} bytes, 8 bits for: {', '.join(eight) or 'no layer'}")
    return "\n".join(lines)


def _bar(names: Iterable[str], what: str) -> Iterable[str]:
    bar: Iterable[str] = tqdm(names, desc=what, unit="layer")
    return bar


if __name__ == "__main__":
    sys.exit(main())
