"""What TFLite files cost on small devices, and which devices they fit: ``python -m tools.edge MODEL...``.

Counted: multiply-accumulates, bytes, peak memory of activations. Estimated by Arm's vela: cycles and SRAM on Ethos-U.
Measured: the arena in TFLite-Micro, and whether its logits are LiteRT's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.run_files import write_json
from tools.command import CommandError, check_targets, positive, run_command
from tools.edge.devices import DEVICES, Fit, fit_devices
from tools.edge.ethos_u import ACCELERATORS, STRATEGIES, Estimate, estimate, find_vela
from tools.edge.layer_cost import ModelCost, measure_cost, write_layers
from tools.edge.not_done import NotDone
from tools.edge.tables import format_layers, format_report
from tools.edge.tflm import TflmRun, find_python, input_side, run_tflm

NOT_ASKED = NotDone("--static: nothing was run")


@dataclass(frozen=True)
class EdgeReport:
    """One file: counted, estimated, measured, and judged."""

    cost: ModelCost
    ethos_u: tuple[Estimate, ...] | NotDone
    tflm: TflmRun | NotDone
    fits: tuple[Fit, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        npu = self.ethos_u.to_json() if isinstance(self.ethos_u, NotDone) else [e.to_json() for e in self.ethos_u]
        fits = [fit.to_json() for fit in self.fits]
        return {"cost": self.cost.to_json(), "ethos_u": npu, "tflite_micro": self.tflm.to_json(), "devices": fits}


def make_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.edge", description=__doc__)
    parser.add_argument("models", metavar="MODEL", nargs="+", help=".tflite files")
    parser.add_argument("--layers", action="store_true", help="print every layer, too")
    parser.add_argument("--csv", metavar="DIR", help="write each model's layers as CSV into DIR, named after its run")
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON, replacing FILE")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown, replacing FILE")
    parser.add_argument("--static", action="store_true", help="count only: neither vela nor TFLite-Micro")
    parser.add_argument("--vela", metavar="PATH", help="vela's program (default: beside this Python, else on PATH)")
    parser.add_argument(
        "--tflm-python",
        metavar="PATH",
        default=sys.executable,
        help="Python with tflite-micro (default: this one)",
    )
    parser.add_argument(
        "--images",
        type=positive,
        default=4,
        help="phantoms to compare TFLite-Micro and LiteRT on (default: 4)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, also where vela or tflite-micro is absent; 2 for a wrong input."""
    options = make_parser().parse_args(arguments)
    return run_command(lambda: _edge(options))


def _edge(options: argparse.Namespace) -> int:
    check_targets(options.json, options.markdown)
    tables = _name_tables([Path(model) for model in options.models], options.csv)
    vela = None if options.static else find_vela(options.vela)
    python = find_python(options.tflm_python)
    costs = [measure_cost(Path(model)) for model in options.models]  # all of them before anything slow
    reports = []
    for cost in tqdm(costs, unit="model", disable=None):
        reports.append(examine(cost, vela, python, options.images, not options.static))
    text = format_report(reports, DEVICES)
    print(text)
    if options.layers:
        print("\n".join(format_layers(cost) for cost in costs))
    for cost, table in zip(costs, tables, strict=False):
        write_layers(cost, table)
    if options.markdown:
        Path(options.markdown).write_text(text + "\n", encoding="utf-8")
    if options.json:
        write_json(Path(options.json), {"models": [report.to_json() for report in reports]})
    return 0


def examine(cost: ModelCost, vela: str | None, python: str, images: int, run: bool = True) -> EdgeReport:
    """Estimate, measure and judge one counted file.

    vela: its program, None where there is none. python: an interpreter that may have tflite-micro. images: phantoms to
    compare on. run: False leaves out what runs the file. Raises CommandError when an engine breaks.
    """
    if not run:
        return EdgeReport(cost, NOT_ASKED, NOT_ASKED, fit_devices(cost, NOT_ASKED, NOT_ASKED))
    path = Path(cost.file)
    estimates = _estimate_all(path, cost.kind, vela)
    pixels, _ = phantom_images(images, input_side(path), 0)
    tflm = run_tflm(path, pixels, cost.peak.live_bytes, python)
    return EdgeReport(cost, estimates, tflm, fit_devices(cost, estimates, tflm))


def _estimate_all(path: Path, kind: str, vela: str | None) -> tuple[Estimate, ...] | NotDone:
    """Return the estimates for every accelerator and strategy, or why there is none."""
    found = []
    for accelerator in ACCELERATORS:
        for strategy in STRATEGIES:
            one = estimate(path, kind, accelerator, strategy, vela)
            if isinstance(one, NotDone):
                return one
            found.append(one)
    return tuple(found)


def _name_tables(models: Sequence[Path], folder: str | None) -> list[Path]:
    """Return each model's CSV file, named after its folder (of an export folder: its run) and itself."""
    if folder is None:
        return []
    if not Path(folder).is_dir():
        raise CommandError(f"--csv {folder} is no folder; make it first")
    folders = [model.resolve().parent for model in models]
    runs = [place.parent if place.name == "export" else place for place in folders]
    names = [f"{run.name}_{model.stem}.csv" for run, model in zip(runs, models, strict=True)]
    if len(set(names)) < len(names):
        raise CommandError(f"--csv: {', '.join(sorted(names))} would overwrite each other; give them in several calls")
    return [Path(folder) / name for name in names]


if __name__ == "__main__":
    sys.exit(main())
