"""The tables of ``tools.edge``: Markdown that reads well as plain text, too."""

from collections.abc import Sequence

from tools.edge.devices import KIB, Device
from tools.edge.ethos_u import MIB
from tools.edge.examine import EdgeReport
from tools.edge.layer_cost import ModelCost
from tools.edge.not_done import NotDone
from tools.shared.command import format_table


def format_report(reports: Sequence[EdgeReport], devices: Sequence[Device]) -> str:
    """Return all tables: counted, Ethos-U, TFLite-Micro, devices."""
    parts = [
        "## Counted\n",
        "MACs: convolutions and dense layers, one image. Peak: activations that exist at one time, no operator writing "
        "over its input.\n",
        _format_costs([report.cost for report in reports]),
        "## Arm Ethos-U: estimates by vela\n",
        "Nothing ran on an accelerator. In brackets: memory-saving strategy.\n",
        _format_estimates(reports),
        "## TFLite-Micro: measured on this computer\n",
        _format_tflm(reports),
        "## What fits which device\n",
        _format_fits(reports),
        *(f"- {device.name}, {device.engine}: {device.source}." for device in devices),
    ]
    return "\n".join(parts)


def format_layers(cost: ModelCost) -> str:
    """Return one model's layers as a table."""
    rows = [
        [
            str(layer.index), layer.operator, layer.name, layer.output_shape, f"{layer.macs:,}", layer.weight_kind,
            f"{layer.weight_bytes:,}", f"{layer.bias_bytes:,}", f"{layer.output_bytes:,}", f"{layer.live_bytes:,}",
        ]
        for layer in cost.layers
    ]  # fmt: skip
    heads = ["#", "operator", "name", "output", "MACs", "weights", "bytes", "bias bytes", "output bytes", "live bytes"]
    return f"## {cost.file}\n\n" + format_table(heads, rows)


def _format_costs(costs: Sequence[ModelCost]) -> str:
    heads = ["model", "computes in", "MACs", "file", "weights", "biases", "scales", "metadata", "rest", "peak", "at"]
    rows = []
    for cost in costs:
        rest = cost.other_constant_bytes + cost.structure_bytes
        stored = (cost.weight_bytes, cost.bias_bytes, cost.quantization_bytes, cost.metadata_bytes, rest)
        numbers = (f"{number:,}" for number in (cost.macs, cost.size_bytes, *stored, cost.peak.live_bytes))
        rows.append([cost.file, cost.kind, *numbers, f"{cost.peak.operator} {cost.peak.name}"])
    return format_table(heads, rows)


def _format_estimates(reports: Sequence[EdgeReport]) -> str:
    heads = ["model", "accelerator", "cycles", "at", "ms", "SRAM KiB", "DRAM KiB", "flash KiB", "on the CPU"]
    rows = []
    for report in reports:
        if isinstance(report.ethos_u, NotDone):
            rows.append(_absent(report, report.ethos_u, len(heads)))
            continue
        for fast, small in zip(report.ethos_u[::2], report.ethos_u[1::2], strict=True):
            pairs = [
                (f"{fast.cycles:,}", f"{small.cycles:,}"),
                (f"{fast.milliseconds:.1f}", f"{small.milliseconds:.1f}"),
                *(
                    (f"{getattr(fast, memory) / KIB:,.0f}", f"{getattr(small, memory) / KIB:,.0f}")
                    for memory in ("sram_bytes", "dram_bytes", "flash_bytes")
                ),
            ]
            cycles, *more = (one if one == other else f"{one} ({other})" for one, other in pairs)
            left = ", ".join(sorted(set(fast.cpu_operators))) or "nothing"
            rows.append([report.cost.file, fast.accelerator, cycles, f"{fast.clock_hz / 1e6:.0f} MHz", *more, left])
    return format_table(heads, rows)


def _format_tflm(reports: Sequence[EdgeReport]) -> str:
    heads = ["model", "arena", "activations", "tables", "images", "compared with", "equal logits", "largest", "mean"]
    heads.append("same class")
    rows = []
    for report in reports:
        run = report.tflm
        if isinstance(run, NotDone):
            rows.append(_absent(report, run, len(heads)))
            continue
        sizes = [f"{size:,}" for size in (run.arena_bytes, run.head_bytes, run.tail_bytes)]
        for one in run.agreements:
            differences = (f"{value:.3g} {one.unit}" for value in (one.max_difference, one.mean_difference))
            agreement = [one.engine, f"{one.equal_logits:.1%}", *differences, f"{one.same_class:.0%}"]
            rows.append([report.cost.file, *sizes, str(run.images), *agreement])
    return format_table(heads, rows)


def _format_fits(reports: Sequence[EdgeReport]) -> str:
    heads = ["model", "device", "fits", "flash MiB", "RAM MiB", "RAM figure"]
    rows = [
        [
            report.cost.file,
            fit.device,
            ({True: "yes", False: "no", None: "not known"}[fit.fits] + (f": {fit.reason}" if fit.reason else "")),
            *("" if size is None else f"{size / MIB:.2f}" for size in (fit.flash_bytes, fit.ram_bytes)),
            fit.basis,
        ]
        for report in reports
        for fit in report.fits
    ]
    return format_table(heads, rows)


def _absent(report: EdgeReport, outcome: NotDone, width: int) -> list[str]:
    return [report.cost.file, f"{outcome.status}: {outcome.reason}", *[""] * (width - 2)]
