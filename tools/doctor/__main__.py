"""Say what a TFLite or ONNX file really is, and what is wrong with it: ``python -m tools.doctor FILE``."""

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.checksum import find_damage
from brainq_torch.console import name_first
from brainq_torch.data.classes import Labels
from brainq_torch.data.dataset.load import scan_folder
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.run_files import as_typed
from brainq_torch.texts import fill_text
from export.graph.model_graph import DEQUANTIZE, INTEGERS, ModelGraph, Tensor
from export.graph.read_graph import naming_damage, read_graph
from export.run.metadata import FileMetadata, MetadataError, read_metadata
from tools.doctor.checks import Finding, check_graph
from tools.doctor.probe import MODES, ProbeRun, Range, probe
from tools.doctor.ranges import check_ranges
from tools.shared.command import CommandError, add_json, as_main, write_found
from tools.shared.images import decode_images, take_evenly

UNHEALTHY = 1
"""Exit code when the file has a fault."""
PROBE_IMAGES = 16
TOLERATED_LSB = 4.0
"""Steps of integer logits by which two engines may differ: the parity ladder's limit for two engines."""
TOLERATED_FLOAT = 1e-3
CLAIMS = {
    "fp32": ("float32",),
    "fp16": ("float32 with float16 weights",),
    "dynamic_int8": ("float32 with int8 weights", "float32 and float32 with int8 weights"),
    "int8": ("int8",),
    "w4a8": ("int8 with int4 weights", "int8 and int8 with int4 weights"),
}
"""What a name or a recipe promises -> the kinds of file that keep it (``ModelGraph.kind``)."""
_CLAIM_WORDS = (
    ("dynamic", "dynamic_int8"), ("w4a8", "w4a8"), ("int4", "w4a8"), ("int8", "int8"), ("fp16", "fp16"),
    ("float16", "fp16"), ("fp32", "fp32"), ("float32", "fp32"),
)  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """All that was found.

    kind: what the file computes in. not_int8: computed tensors of another type.
    """

    file: str
    file_format: str
    size_bytes: int
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    not_int8: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is no fault; warnings do not count."""
        return not any(finding.severity == "fault" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self) | {"healthy": self.healthy}


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help=".onnx or .tflite file")
    parser.add_argument("--expect", choices=sorted(CLAIMS), help="what it should be (default: what its name says)")
    parser.add_argument("--data", metavar="DIR", help=f"judge ranges on {PROBE_IMAGES} of these images, not phantoms")
    parser.add_argument("--static", action="store_true", help="do not run it")
    add_json(parser)


def _doctor(options: argparse.Namespace) -> int:
    diagnosis = diagnose(Path(options.file), options.expect, not options.static, options.data)
    print(as_typed(fill_text("diagnosis", found=diagnosis, name_first=name_first)))
    write_found(options, diagnosis.to_json())
    return 0 if diagnosis.healthy else UNHEALTHY


def diagnose(path: Path, expect: str | None = None, run: bool = True, data: str | None = None) -> Diagnosis:
    """Examine one file.

    expect: a key of ``CLAIMS``; None takes what the file's name and its recipe say. run: also run it, in processes of
    its own. data: folder of images to judge the ranges on; None takes phantoms.
    """
    graph = read_graph(path)
    metadata, findings = _examine_metadata(path, graph)
    with naming_damage(path):
        kind = graph.kind
        findings += _examine_claims(path, kind, expect, metadata)
        findings += check_graph(graph, kind, ours=metadata is not None)
    if run:
        findings += _examine_run(path, graph, metadata, data)
    order = {"fault": 0, "warning": 1, "ok": 2}
    return Diagnosis(
        file=str(path),
        file_format=graph.file_format,
        size_bytes=path.stat().st_size,
        kind=kind,
        inputs=tuple(_describe(graph.tensors[name]) for name in graph.inputs),
        outputs=tuple(_describe(graph.tensors[name]) for name in graph.outputs),
        not_int8=tuple(name for node in graph.nodes for name in node.outputs if graph.tensors[name].kind != "int8"),
        findings=tuple(sorted(findings, key=lambda finding: order[finding.severity])),
    )


def _describe(tensor: Tensor) -> str:
    shape = "unknown shape" if tensor.shape is None else "x".join("N" if s < 0 else str(s) for s in tensor.shape)
    if tensor.kind not in INTEGERS or tensor.scales is None or tensor.zero_points is None:
        return f"{tensor.name} {tensor.kind} {shape}"
    ends = (-8, 7) if tensor.kind == "int4" else (np.iinfo(tensor.kind).min, np.iinfo(tensor.kind).max)
    scale, zero_point = float(tensor.scales[0]), int(tensor.zero_points[0])
    low, high = (scale * (end - zero_point) for end in ends)
    return f"{tensor.name} {tensor.kind} {shape}, scale {scale:.8g}, zero point {zero_point}: {low:.4g} to {high:.4g}"


def _examine_metadata(path: Path, graph: ModelGraph) -> tuple[FileMetadata | None, list[Finding]]:
    """Check that the file says how to feed it, and that this fits its tensors."""
    try:
        metadata = read_metadata(path)
    except MetadataError as error:
        return None, [Finding("no_metadata", "fault", f"no usable metadata: {error}")]
    shape, logits = graph.tensors[graph.inputs[0]].shape, graph.tensors[graph.outputs[0]].shape
    faults = []
    if shape is not None and sorted(shape[1:]) != sorted((1, metadata.pixels.size, metadata.pixels.size)):
        faults.append(f"metadata says images of {metadata.pixels.size} pixels, the input is {shape}")
    if logits is not None and logits[-1] != len(metadata.classes):
        faults.append(f"metadata names {len(metadata.classes)} classes, the output is {logits}")
    if damage := find_damage(path):
        what, _, remedy = damage.partition("; ")
        return metadata, [Finding("damaged", "fault", what, remedy)]
    if faults:
        return metadata, [
            Finding("metadata_differs", "fault", what, "export the file again; do not edit it") for what in faults
        ]
    pixels = metadata.pixels
    what = f"metadata: classes {', '.join(metadata.classes)}; {pixels.size} pixels, {pixels.fit}"
    return metadata, [Finding("metadata", "ok", what)]


def _examine_claims(path: Path, kind: str, expect: str | None, metadata: FileMetadata | None) -> list[Finding]:
    """Compare what the file is with what it is called."""
    recipe = str(metadata.provenance.get("recipe", "")) if metadata else ""  # other makers' files may have none
    claims = {"--expect": expect} if expect else {"its name": _claim(path.stem), "its recipe": _claim(recipe)}
    findings = []
    for source, claim in claims.items():
        if claim is None:
            continue
        if kind in CLAIMS[claim]:
            findings.append(Finding("as_claimed", "ok", f"{source} says {claim}, and so it is: {kind}"))
        else:
            what = f"{source} says {claim}, but the file computes in {kind}"
            remedy = f"rename it, or make what it says: python -m export RUN --recipes {claim}"
            if claim == "int8" and kind in CLAIMS["dynamic_int8"]:
                what = f"{source} says int8, but this is a dynamic-range file: int8 weights, float activations"
                remedy = "calibrate it and quantize the activations too: python -m export RUN --recipes int8"
            findings.append(Finding("not_as_claimed", "fault", what, remedy))
    return findings


def _claim(text: str) -> str | None:
    return next((claim for word, claim in _CLAIM_WORDS if word in text.lower()), None)


def _examine_run(path: Path, graph: ModelGraph, metadata: FileMetadata | None, data: str | None) -> list[Finding]:
    """Run the file with and without the engine's accelerated kernels, and judge what its tensors held."""
    images, source = _choose_images(graph, metadata, data)
    names = {"TFLite": ("with XNNPACK", "without XNNPACK"), "ONNX": ("optimised", "as written")}[graph.file_format]
    default, plain = (probe(path, images, mode) for mode in MODES)
    findings = []
    for name, outcome in zip(names, (default, plain), strict=True):
        if outcome.logits is None:
            remedy = "export it again; a file with float16 activations or unknown operators cannot run on a CPU"
            findings.append(Finding("does_not_run", "fault", f"does not run {name}: {outcome.error}", remedy))
        else:
            findings.append(Finding("runs", "ok", f"runs {name} on {len(images)} {source}"))
    findings += _compare_runs(names, default, plain, _tolerance(graph))
    ranges: dict[str, Range] = plain.ranges
    return findings + check_ranges(graph, ranges, f"{len(images)} {source}")


def _tolerance(graph: ModelGraph) -> float:
    """Return by how much two engines' logits may differ, in the logits' own unit."""
    name = graph.outputs[0]
    maker = graph.producers()[name]
    if graph.tensors[name].kind in INTEGERS:
        return TOLERATED_LSB
    scales = graph.tensors[maker.inputs[0]].scales if maker.operator == DEQUANTIZE else None
    return TOLERATED_FLOAT if scales is None else TOLERATED_LSB * float(scales[0]) * (1 + 1e-5)


def _compare_runs(names: tuple[str, str], default: ProbeRun, plain: ProbeRun, tolerance: float) -> list[Finding]:
    """Compare the logits. A class that changes within the tolerance is a near tie, told but no fault of an engine."""
    if default.logits is None or plain.logits is None:
        return []
    if not np.isfinite(default.logits).all():
        return [Finding("not_finite", "fault", "logits are not finite", "look for a scale or a weight that is broken")]
    differing = int((default.logits.argmax(1) != plain.logits.argmax(1)).sum())
    largest = float(np.abs(default.logits - plain.logits).max())
    what = f"{names[0]} and {names[1]}: logits differ by at most {largest:.4g}, {differing} images change class"
    if largest > tolerance:
        words = "FILE --data DIR --without-xnnpack" if "XNNPACK" in names[1] else "RUN FILE --data DIR"
        remedy = f"compare them on real images before either is trusted: python -m tools.compare {words}"
        return [Finding("engines_differ", "warning", f"{what} (tolerated: {tolerance:.4g})", remedy)]
    return [Finding("engines_agree", "ok", what)]


def _choose_images(graph: ModelGraph, metadata: FileMetadata | None, data: str | None) -> tuple[NDArray[np.uint8], str]:
    """Return images of the input's size, and what they are."""
    shape = graph.tensors[graph.inputs[0]].shape
    sides = [side for side in shape or () if side > 1]
    if shape is None or len(shape) != 4 or len(sides) != 2 or sides[0] != sides[1] or not 32 <= sides[0] <= 1024:
        raise CommandError(
            f"the input {graph.inputs[0]} is {shape}; only one square grey image of 32 to 1024 pixels can be fed. "
            "Examine the file without running it: --static"
        )
    if data is None:
        return phantom_images(PROBE_IMAGES, sides[0])[0], "synthetic phantoms"
    folder = scan_folder(data, False, Labels(()), complete=False)
    pixels = metadata.pixels if metadata else PixelSpec(sides[0])
    return decode_images(take_evenly(folder, PROBE_IMAGES), pixels)[1], f"images of {data}"


main = as_main(
    _add_words,
    _doctor,
    epilog="Exit code: 0 no fault (there may be warnings), 1 at least one fault, 2 the file cannot be examined.",
)

if __name__ == "__main__":
    sys.exit(main())
