"""Run a file once, in a process of its own: an engine that crashes on a bad file must not take ``doctor`` with it.

``python -m tools.doctor.probe FILE IMAGES.npy MODE`` prints one JSON line. MODE ``default`` runs the file as users do
(TFLite with XNNPACK, ONNX Runtime optimised); ``plain`` runs it without, and looks at every tensor on the way.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.pixels import scale_pixels
from export.run.sessions import BUILTIN_KERNELS, XNNPACK, ask_tflite, feed, open_onnx, open_tflite

MODES = ("default", "plain")
TIME_LIMIT_S = 300


@dataclass
class Range:
    """Where a tensor's values lay, over all images.

    at_low, at_high: how many at the ends of an integer type.
    """

    minimum: float = float("inf")
    maximum: float = float("-inf")
    at_low: int = 0
    at_high: int = 0
    count: int = 0
    finite: bool = True

    def add(self, values: NDArray[Any]) -> None:
        """Take in one image's values."""
        self.finite &= bool(np.isfinite(values).all())
        self.minimum, self.maximum = min(self.minimum, float(values.min())), max(self.maximum, float(values.max()))
        self.count += values.size
        if np.issubdtype(values.dtype, np.integer):
            limits = np.iinfo(values.dtype)
            self.at_low += int((values == limits.min).sum())
            self.at_high += int((values == limits.max).sum())


@dataclass(frozen=True)
class ProbeRun:
    """What a run gave: logits (N, C) in the file's own type, or an error.

    ranges: by tensor, of a plain run.
    """

    logits: NDArray[Any] | None
    error: str
    ranges: dict[str, Range]


def probe(path: Path, images: NDArray[np.uint8], mode: str) -> ProbeRun:
    """Run a file on (N, size, size) uint8 images in a process of its own. mode: one of ``MODES``."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "images.npy"), images)
        command = [sys.executable, "-m", "tools.doctor.probe", str(path.absolute()), f"{folder}/images.npy", mode]
        try:
            result = subprocess.run(
                command, cwd=Path(__file__).parents[2], capture_output=True, text=True, errors="replace",
                timeout=TIME_LIMIT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return ProbeRun(None, f"took more than {TIME_LIMIT_S} s for {len(images)} images", {})
    lines = result.stdout.splitlines()
    if result.returncode or not lines:
        last = result.stderr.strip().splitlines()[-1:]
        return ProbeRun(None, f"the engine crashed (exit code {result.returncode}): {' '.join(last)}", {})
    answer = json.loads(lines[-1])
    if answer["error"]:
        return ProbeRun(None, answer["error"], {})
    return ProbeRun(np.array(answer["logits"]), "", {name: Range(**data) for name, data in answer["ranges"].items()})


def main() -> int:
    """Serve one run."""
    path, images, mode = Path(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3]
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # engines print there
    run = {".tflite": _run_tflite, ".onnx": _run_onnx}[path.suffix]
    answer: dict[str, Any] = {"error": "", "logits": [], "ranges": {}}
    try:
        logits, ranges = run(path, images, mode == "plain")
        answer |= {"logits": logits.tolist(), "ranges": {name: asdict(found) for name, found in ranges.items()}}
    except Exception as error:  # an engine raises what it likes; the text is what doctor reports
        answer["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    print(json.dumps(answer), file=channel, flush=True)
    return 0


def _run_tflite(path: Path, images: NDArray[np.uint8], plain: bool) -> tuple[NDArray[Any], dict[str, Range]]:
    interpreter = open_tflite(path, kernels=BUILTIN_KERNELS if plain else XNNPACK, keep_all=plain, quiet=False)
    source = interpreter.get_input_details()[0]
    ranges: dict[str, Range] = defaultdict(Range)
    details = interpreter.get_tensor_details() if plain else []
    shared = Counter(tensor["name"] for tensor in details)
    logits = []
    for image in images:
        logits.append(ask_tflite(interpreter, feed(_shaped(image, source["shape"]), source))[0])
        for tensor in details:
            # Some tensors (scratch space, what a kernel folded away) have no values to read.
            with contextlib.suppress(ValueError):
                values = interpreter.get_tensor(tensor["index"])
                if values.size and values.dtype.kind in "iuf":
                    # As model_graph names them: with the number where a name is not unique.
                    name = tensor["name"] if shared[tensor["name"]] == 1 else f"{tensor['name']}#{tensor['index']}"
                    ranges[name].add(values)
    return np.stack(logits), ranges


def _run_onnx(path: Path, images: NDArray[np.uint8], plain: bool) -> tuple[NDArray[Any], dict[str, Range]]:
    import onnx

    model: Path | bytes = path
    watched: dict[str, str] = {}
    if plain:
        proto = onnx.load(path)
        constants = {tensor.name for tensor in proto.graph.initializer}
        watched = {
            node.output[0]: node.input[0]
            for node in proto.graph.node
            if node.op_type == "QuantizeLinear" and node.input[0] not in constants
        }
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in watched)
        model = proto.SerializeToString()
    session = open_onnx(model, optimised=not plain)
    source = session.get_inputs()[0]
    kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}[source.type]
    shape = [side if isinstance(side, int) else -1 for side in source.shape]
    ranges: dict[str, Range] = defaultdict(Range)
    logits = []
    for image in images:
        values = session.run(None, {source.name: _shaped(image, shape).astype(kind)})
        logits.append(values[0][0])
        for name, found in zip(watched.values(), values[1:], strict=True):
            ranges[name].add(found)
    return np.stack(logits), ranges


def _shaped(image: NDArray[np.uint8], shape: Any) -> NDArray[np.float32]:
    """Return one grey image as (pixel - 128) / 128 in the file's own layout."""
    size = len(image)
    layout = (1, 1, size, size) if len(shape) == 4 and shape[1] == 1 else (1, size, size, 1)
    return scale_pixels(image[None]).reshape(layout)


if __name__ == "__main__":
    sys.exit(main())
