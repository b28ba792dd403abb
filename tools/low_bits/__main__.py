"""How few bits a run's weights can do with: ``python -m tools.low_bits RUN --data DIR --out FOLDER``.

Measures accuracy against bits, rounded to nearest and learned, on the integers as ONNX Runtime runs them, and how
sensitive each layer is; with --budget, chooses 4 or 8 bits per layer and measures that, too. A killed command goes on
where it stopped.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from brainq_torch.data.classes import Labels
from brainq_torch.data.dataset.balanced import CALIBRATION_IMAGES
from brainq_torch.lock import hold_lock
from brainq_torch.quant.encoding import RoundingMethod
from brainq_torch.quant.layers import weighted_layers
from brainq_torch.quant.low_bits import W4A8
from brainq_torch.quant.prepare import prepare_qat
from brainq_torch.quant.rounding import Rounding
from brainq_torch.quant.scheme import WEIGHT_BITS, Scheme
from brainq_torch.quant.sensitivity import check_budget, choose_bits
from brainq_torch.run import load_run
from brainq_torch.run_files import CHECKPOINT, hash_file, write_json, write_text
from brainq_torch.texts import fill_text
from export.run.sample import check_run_images
from tools.low_bits.measure import BITS_OF_A_BUDGET, Kept, Measure
from tools.low_bits.plot import plot_curve
from tools.shared.command import CommandError, add_data, add_threads, as_main, byte_count, positive
from tools.shared.images import choose_images, decode_images, labels_of, take_evenly

CURVE, SENSITIVITY, REPORT = "accuracy_against_bits.png", "sensitivity.csv", "low_bits.json"
LOCK = "low_bits.lock"
BITS = "bits_{}.json"
"""Bits per layer within a budget, for the exporter's --bits-from."""

LEARNED: tuple[RoundingMethod, ...] = ("descent", "adaround")


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder of a float network")
    add_data(parser)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="for the table, the curve and what is half done")
    parser.add_argument(
        "--bits", nargs="+", type=int, default=list(WEIGHT_BITS), choices=WEIGHT_BITS,
        help="of the weights (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--rounding", nargs="+", choices=LEARNED, default=[Rounding().method],
        help="beside nearest; the first also measures sensitivity and rounds within budgets (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--calibration-images", type=positive, default=CALIBRATION_IMAGES, metavar="N",
        help="to calibrate on (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=positive, metavar="N", help="measure on so many, evenly over the paths (default: all)"
    )
    parser.add_argument(
        "--sensitivity-images", type=positive, default=32, metavar="N",
        help="of these, to measure each layer on (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", nargs="+", type=byte_count, default=[], metavar="BYTES",
        help="choose 4 or 8 bits per layer so that all weights take at most this",
    )  # fmt: skip
    add_threads(parser, 2)


def _low_bits(options: argparse.Namespace) -> int:
    run, out = load_run(options.run), Path(options.out)
    if run.quantization is not None:
        raise CommandError(f"{options.run} is quantized already; name the float run that it was started from")
    if options.budget:
        layers = weighted_layers(prepare_qat(run.model, Scheme()))
        check_budget(sum(layer.held_bytes(min(BITS_OF_A_BUDGET)) for layer in layers), min(options.budget))
    split, folder = choose_images(Path(options.data), options.split, options.manifest, Labels(tuple(run.classes)))
    if options.images is not None:
        folder = take_evenly(folder, options.images)
    folder, pixels = decode_images(folder, run.pixels)
    labels = labels_of(folder)
    calibration = check_run_images(run, Path(options.data)).calibration(options.calibration_images)
    about = [hash_file(run.folder / CHECKPOINT), calibration.names, [record.path for record in folder.records]]
    with hold_lock(out / LOCK, f"{out} is being worked in"):
        measure = Measure(run, calibration, pixels, labels, Kept(out / "state", about), options.threads)
        about_images = {"split": split, "images": len(labels), "calibration": calibration.to_json()}
        report = about_images | _measure(measure, options)
        _write(report, out)
    print(fill_text("low_bits", report=report))
    return 0


def _measure(measure: Measure, options: argparse.Namespace) -> dict[str, Any]:
    """Measure what the words ask for, or take what an earlier command measured of it."""
    table = measure.sensitivity(options.sensitivity_images, options.rounding[0])
    budgets = {budget: choose_bits(table, budget) for budget in options.budget}
    curve = [measure.float_point()]
    for bits in options.bits:
        for method in ("nearest", *(options.rounding if bits < 8 else ())):
            curve.append(measure.point(method, replace(W4A8, weight_bits=bits), f"{method}-{bits}"))
    mixed = [
        {"budget_bytes": budget, "layers": bits}
        | measure.point(options.rounding[0], Scheme(exceptions=bits), f"{options.rounding[0]}-budget-{budget}")
        for budget, bits in budgets.items()
    ]
    return {
        "sensitivity_images": options.sensitivity_images, "curve": curve, "mixed": mixed,
        "sensitivity": [entry.to_json() for entry in table],
    }  # fmt: skip


def _write(report: dict[str, Any], out: Path) -> None:
    write_json(out / REPORT, report)
    for point in report["mixed"]:
        write_json(out / BITS.format(point["budget_bytes"]), point["layers"])
    lines = [f"{e['layer']},{e['bits']},{e['size_bytes']},{e['error']:.6g}" for e in report["sensitivity"]]
    write_text(out / SENSITIVITY, "\n".join(["layer,bits,size_bytes,error", *lines]) + "\n")
    plot_curve([*report["curve"], *report["mixed"]], out / CURVE)


main = as_main(_add_words, _low_bits)

if __name__ == "__main__":
    sys.exit(main())
