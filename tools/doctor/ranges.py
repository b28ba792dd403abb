"""What can only be told from running a file: activations that never move, that clip, or that waste their levels."""

import numpy as np

from export.graph.model_graph import FLOATS, INTEGERS, ModelGraph, Tensor
from tools.doctor.checks import Finding, Severity
from tools.doctor.probe import Range

_MANY_CLIPPED = 0.01
_WASTED = 1 / 8
"""Part of a type's levels below which three bits of eight are wasted."""


_GROUPS: dict[str, tuple[Severity, str, str]] = {
    "not_finite": ("fault", "tensors with values that are not finite", "look for an overflow before them"),
    "dead_range": (
        "warning", "tensors that never move, so that what follows does not see the image",
        "look at the scale and the bias before them, or at the calibration images",
    ),
    "saturated_range": (
        "warning", f"tensors with more than {_MANY_CLIPPED:.0%} of their values clipped",
        "their range is too small: calibrate on images like these, or with a wider percentile",
    ),
    "wide_range": (
        "warning", f"tensors that use less than 1/{1 / _WASTED:.0f} of their levels",
        "their range is too large: calibrate on images like these, or clip outliers",
    ),
}  # fmt: skip
"""Code of a finding -> severity, what it means, what to do."""


def check_ranges(graph: ModelGraph, ranges: dict[str, Range], source: str) -> list[Finding]:
    """Judge every computed tensor that a plain run saw."""
    where: dict[str, list[str]] = {code: [] for code in _GROUPS}
    for name, activation in {node.outputs[0]: node.activation for node in graph.nodes if node.outputs}.items():
        tensor = graph.tensors[name]
        # Types of ONNX tensors inside are not always known before a run.
        if name in ranges and tensor.kind in INTEGERS | FLOATS:
            code, remark = _classify(tensor, ranges[name], activation)
            if code:
                where[code].append(name + remark)
    findings = [
        Finding(code, severity, f"{what}: {len(where[code])} (on {source})", remedy, tuple(where[code]))
        for code, (severity, what, remedy) in _GROUPS.items()
        if where[code]
    ]
    if ranges and not findings:
        findings.append(Finding("ranges", "ok", f"no tensor is dead, clipped or wasteful on {source}"))
    return findings


def _classify(tensor: Tensor, seen: Range, activation: str) -> tuple[str, str]:
    """Return a key of ``_GROUPS``, "" where nothing is wrong, and a remark for the report."""
    if not seen.finite:
        return "not_finite", ""
    if seen.minimum == seen.maximum:
        return "dead_range", f" (always {_real(tensor, seen.minimum):.4g})"
    if tensor.kind in INTEGERS and tensor.zero_points is not None:
        share = _clipped_share(tensor, seen, activation)
        if share > _MANY_CLIPPED:
            return "saturated_range", f" ({share:.1%})"
        levels = 2 ** np.iinfo(tensor.kind).bits
        if seen.maximum - seen.minimum < _WASTED * levels:
            return "wide_range", f" ({seen.maximum - seen.minimum + 1:.0f} of {levels} levels)"
    return "", ""


def _clipped_share(tensor: Tensor, seen: Range, activation: str) -> float:
    """Return the share of values at an end of the type, where that end is not a value the layer is meant to give."""
    limits = np.iinfo(tensor.kind)
    zero_point = 0 if tensor.zero_points is None else int(tensor.zero_points[0])
    # At the zero point the low end is a real zero: that is what a ReLU gives.
    low = seen.at_low if zero_point != limits.min else 0
    # ReLU6 is meant to end at 6.
    high = 0 if activation in ("RELU6", "CLIP") else seen.at_high
    return (low + high) / seen.count


def _real(tensor: Tensor, value: float) -> float:
    """Return the real number behind a stored value."""
    if tensor.scales is None or tensor.zero_points is None:
        return value
    return float(tensor.scales[0]) * (value - float(tensor.zero_points[0]))
