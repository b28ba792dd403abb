"""How few bits a run's weights can do with: ``python -m tools.low_bits RUN --data DIR --out FOLDER``.

Measures accuracy against bits, rounded to nearest and learned (simulated in PyTorch; files hold 4 bits and more), and
how sensitive each layer is; with --budget, chooses bits per layer. A killed command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.split import hash_file
from brainq_torch.quant.calibrate import quantize_post_training
from brainq_torch.quant.low_bits import W4A8, quantize_low_bits
from brainq_torch.quant.rounding import Rounding
from brainq_torch.quant.scheme import WEIGHT_BITS
from brainq_torch.quant.sensitivity import Sensitivity, choose_bits, measure_sensitivity
from brainq_torch.run import CHECKPOINT, Run, load_run, write_json
from brainq_torch.training.metrics import compare_predictions, compute_metrics
from export.recipes import float_model
from export.run_images import check_run_images
from export.runners import TorchRunner
from export.w4a8 import STATE
from tools.command import CommandError, run_command
from tools.evaluate import choose_images, decode_images

CURVE, SENSITIVITY, REPORT = "accuracy_against_bits.png", "sensitivity.csv", "low_bits.json"

LEARNED = ("descent", "adaround")


def make_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.low_bits", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder of a float network")
    parser.add_argument("--data", required=True, metavar="DIR", help="class folders, or Training/Testing above them")
    parser.add_argument("--split", default="Testing", help="what to measure on (default: Testing)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="for the table, the curve and what is half done")
    parser.add_argument("--bits", nargs="+", type=int, default=list(WEIGHT_BITS), choices=WEIGHT_BITS)
    parser.add_argument("--rounding", choices=LEARNED, default=Rounding().method)
    parser.add_argument("--calibration-images", type=int, default=128, metavar="N")
    parser.add_argument(
        "--images", type=int, metavar="N", help="measure on so many, evenly over the paths (default: all)"
    )
    parser.add_argument("--sensitivity-images", type=int, default=32, metavar="N")
    parser.add_argument("--budget", type=int, metavar="BYTES", help="choose 4 or 8 bits per layer within this size")
    parser.add_argument("--threads", type=int, default=2)
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
    images = check_run_images(run, Path(options.data))
    calibration = images.sample(options.calibration_images, ("Training",))
    about = [hash_file(run.folder / CHECKPOINT), calibration.names, [record.path for record in folder.records]]
    kept = Kept(out / "state", about)
    table = _sensitivity(run, calibration.pixels[: options.sensitivity_images], kept)
    budget = {} if options.budget is None else choose_bits(table, options.budget)  # refused before the long part
    curve = _curve(run, calibration.pixels, pixels, labels, options, kept)
    report: dict[str, Any] = {
        "split": split, "images": len(labels), "calibration": calibration.to_json(), "rounding": options.rounding,
        "curve": curve, "sensitivity": [entry.to_json() for entry in table],
    }  # fmt: skip
    if options.budget is not None:
        report["budget"] = {"bytes": options.budget, "bits": budget}
    write_json(out / REPORT, report)
    lines = [f"{e.layer},{e.bits},{e.size_bytes},{e.error:.6g}" for e in table]
    (out / SENSITIVITY).write_text("\n".join(["layer,bits,size_bytes,error", *lines]) + "\n", encoding="utf-8")
    plot_curve(curve, out / CURVE)
    print(format_report(report))
    return 0


def _sensitivity(run: Run, pixels: NDArray[np.uint8], kept: Kept) -> list[Sensitivity]:
    """Measure each layer on as many images as there are."""

    def measure() -> NDArray[Any]:
        network = quantize_post_training(float_model(run), pixels)
        table = measure_sensitivity(network, pixels, progress=lambda names: _bar(names, "sensitivity"))
        return np.array(json.dumps([entry.to_json() for entry in table]))

    found = json.loads(str(kept.get(f"sensitivity-{len(pixels)}", measure)))
    return [Sensitivity(**entry) for entry in found]


def _curve(
    run: Run,
    calibration: NDArray[Any],
    pixels: NDArray[Any],
    labels: NDArray[Any],
    options: argparse.Namespace,
    kept: Kept,
) -> list[dict[str, Any]]:
    """Measure the float network and every number of bits, both ways of rounding."""
    plain = kept.get("float", lambda: TorchRunner(run.model, run.pixels, run.classes, options.threads)(pixels))
    points = [_point("float", 32, plain, plain, labels)]
    for bits in options.bits:
        for method in ("nearest", options.rounding):
            if bits == 8 and method != "nearest":
                continue
            scheme, name = replace(W4A8, weight_bits=bits), f"{method}-{bits}"

            def measure(scheme: Any = scheme, method: Any = method, name: str = name) -> NDArray[Any]:
                network, _ = quantize_low_bits(
                    run.model, calibration, scheme, Rounding(method=method), state=run.folder / STATE,
                    progress=lambda names: _bar(names, name),
                )  # fmt: skip
                return TorchRunner(network, run.pixels, run.classes, options.threads)(pixels)

            points.append(_point(method, bits, kept.get(name, measure), plain, labels))
    return points


class Kept:
    """What an earlier, killed command measured of the same network on the same images.

    about: what the measurements depend on, plain data.
    """

    def __init__(self, folder: Path, about: Any) -> None:
        self.folder = folder / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, measure: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the kept measurement of this name, or measure and keep it."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            partial = path.with_name(f"{name}.partial.npy")
            np.save(partial, measure())
            partial.replace(path)
        found: NDArray[Any] = np.load(path)
        return found


def _point(method: str, bits: int, logits: NDArray[Any], plain: NDArray[Any], labels: NDArray[Any]) -> dict[str, Any]:
    metrics, against = compute_metrics(logits, labels, CLASSES), compare_predictions(plain, logits, labels)
    recalls = {name: one.recall for name, one in metrics.per_class.items()}
    return {
        "method": method, "bits": bits, "accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1, "recall": recalls,
        "agreement": against.agreement, "mcnemar_p": against.mcnemar_p,
    }  # fmt: skip


def plot_curve(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against bits. points: of the report's ``curve``, the float network first."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(100 * points[0]["accuracy"], color="0.5", linestyle="--", label="float32")
    names = {"nearest": "rounded to nearest", "adaround": "learned (AdaRound)", "descent": "learned (descent)"}
    colours = {"nearest": "#c44e52", "adaround": "#4c72b0", "descent": "#4c72b0"}
    for method in dict.fromkeys(point["method"] for point in points[1:]):
        # At 8 bits there is one way of rounding: both lines end there.
        mine = sorted((p["bits"], 100 * p["accuracy"]) for p in points[1:] if p["method"] == method or p["bits"] == 8)
        axes.plot(*zip(*mine, strict=True), "o-", color=colours[method], label=names[method])
        for bits, accuracy in mine:
            below = -14 if method == "nearest" else 7
            axes.annotate(
                f"{accuracy:.1f}", (bits, accuracy), (0, below), textcoords="offset points", ha="center", fontsize=8
            )
    axes.set(
        xlabel="bits per weight (ends and depthwise: 8)", ylabel="accuracy / %", xticks=[2, 3, 4, 8], ylim=(0, 110)
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def format_report(report: dict[str, Any]) -> str:
    """Return the readable table."""
    lines = [f"{report['images']} images of {report['split']}, weights in {report['curve'][0]['bits']} bits and fewer"]
    for point in report["curve"]:
        lines.append(
            f"  {point['bits']:>2} bits, {point['method']:9} accuracy {100 * point['accuracy']:6.2f} %  "
            f"macro F1 {point['macro_f1']:.4f}  as float {100 * point['agreement']:6.2f} %  "
            f"McNemar p {point['mcnemar_p']:.3g}"
        )
    worst = sorted((e for e in report["sensitivity"] if e["bits"] == 4), key=lambda e: -e["error"])[:5]
    lines.append("most sensitive to 4 bits: " + ", ".join(f"{e['layer']} ({e['error']:.3g})" for e in worst))
    if "budget" in report:
        eight = [name for name, bits in report["budget"]["bits"].items() if bits == 8]
        lines.append(f"within {report['budget']['bytes']:,} bytes, 8 bits for: {', '.join(eight) or 'no layer'}")
    return "\n".join(lines)


def _bar(names: Iterable[str], what: str) -> Iterable[str]:
    bar: Iterable[str] = tqdm(names, desc=what, unit="layer")
    return bar


if __name__ == "__main__":
    sys.exit(main())
