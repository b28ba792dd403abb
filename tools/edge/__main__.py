"""What TFLite files cost on small devices, and which devices they fit: ``python -m tools.edge MODEL...``.

Counted: multiply-accumulates, bytes, peak memory of activations. Estimated by Arm's vela: cycles and SRAM on Ethos-U.
Measured: the arena in TFLite-Micro, and whether its logits are LiteRT's.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from brainq_torch.run_files import write_text
from brainq_torch.texts import fill_text
from tools.edge.devices import DEVICES
from tools.edge.ethos_u import find_vela
from tools.edge.examine import examine
from tools.edge.layer_cost import measure_cost, write_layers
from tools.edge.tflm import find_python
from tools.shared.command import CommandError, add_json, as_main, positive, write_found


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="+", help=".tflite files")
    parser.add_argument("--layers", action="store_true", help="print every layer, too")
    parser.add_argument("--csv", metavar="DIR", help="write each model's layers as CSV into DIR, named after its run")
    add_json(parser)
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown, replacing FILE")
    parser.add_argument("--static", action="store_true", help="count only: neither vela nor TFLite-Micro")
    parser.add_argument("--vela", metavar="PATH", help="vela's program (default: beside this Python, else on PATH)")
    parser.add_argument(
        "--tflm-python", metavar="PATH", default=sys.executable, help="Python with tflite-micro (default: this one)"
    )
    parser.add_argument(
        "--images", type=positive, default=4, help="phantoms to compare TFLite-Micro and LiteRT on (default: 4)"
    )


def _edge(options: argparse.Namespace) -> int:
    tables = _name_tables([Path(model) for model in options.models], options.csv)
    vela = None if options.static else find_vela(options.vela)
    python = find_python(options.tflm_python)
    costs = [measure_cost(Path(model)) for model in options.models]  # all of them before anything slow
    progress = tqdm(costs, unit="model", disable=None)
    reports = [examine(cost, vela, python, options.images, not options.static) for cost in progress]
    text = fill_text("edge", reports=reports, devices=DEVICES)
    print(text)
    if options.layers:
        print(fill_text("layers", costs=costs))
    for cost, table in zip(costs, tables, strict=False):
        write_layers(cost, table)
    if options.markdown:
        write_text(Path(options.markdown), text + "\n")
    write_found(options, {"models": [report.to_json() for report in reports]})
    return 0


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


main = as_main(_add_words, _edge)

if __name__ == "__main__":
    sys.exit(main())
