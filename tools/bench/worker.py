"""One model in a process of its own, so that its peak memory is its own: ``bench`` starts one per model.

Speaks JSON lines on stdin and stdout: first ``ready`` or ``error``; then ``{"calls": N}`` is answered with N latencies,
and the end of input with the peak memory. Engines are imported here alone, each only where it runs: PyTorch in a TFLite
file's process would be most of the memory measured.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.run_files import BrainqError
from export.extra import import_extra
from export.run.sessions import feed, open_onnx, open_tflite

SUFFIXES = (".onnx", ".tflite")

COMPARED_IMAGES = 32

type Call = Callable[[Any], Any]
"""One inference: from an image as the file takes it to its logits."""


@dataclass(frozen=True)
class Engine:
    """What runs a file.

    load: opens it and returns one inference as a function, and ``COMPARED_IMAGES`` images, as the file takes them.
    """

    name: str
    load: Callable[[], tuple[Call, Any]]


def main() -> int:
    """Serve one model, named with its threads and its engine on the command line."""
    # Engines print what they like on stdout; the answers get a channel of their own.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(**data: Any) -> None:
        print(json.dumps(data), file=channel, flush=True)

    try:
        start = time.perf_counter()
        engine = ENGINES[sys.argv[3]](Path(sys.argv[1]), int(sys.argv[2]))
        before = memory_bytes("VmRSS")
        call, images = engine.load()
        call(images[:1])
        start_up_s = time.perf_counter() - start
        logits = np.concatenate([np.asarray(call(images[place : place + 1])) for place in range(len(images))])
        if not np.isfinite(logits).all():
            raise ValueError("its logits are not finite")
    except Exception as error:  # the parent says it, whatever it was
        remedy = "" if isinstance(error, BrainqError) else "; python -m tools.doctor tells more of an exported file"
        answer(error=f"{type(error).__name__}: {error}{remedy}")
        return 1
    answer(ready=engine.name, start_up_s=start_up_s, logits=logits.tolist())
    for line in sys.stdin:
        answer(latency_ms=measure(lambda: call(images[:1]), json.loads(line)["calls"]))
    answer(peak_memory_bytes=memory_bytes("VmHWM"), memory_before_model_bytes=before)
    return 0


def measure(call: Callable[[], Any], calls: int) -> list[float]:
    """Return the latency of each call in ms. One call before them is not counted: others ran in between."""
    call()
    latencies = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        latencies.append(1000 * (time.perf_counter() - start))
    return latencies


def memory_bytes(field: str) -> int:
    """Return this process's resident memory, now (``VmRSS``) or at its peak (``VmHWM``), in bytes.

    Outside Linux the peak so far is all that is told, for both. Linux's getrusage would do, were it not that a child
    begins with its parent's peak there (`man 2 getrusage`, ru_maxrss survives exec).
    """
    status = Path("/proc/self/status")
    if not status.exists():
        import resource  # Unix only

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _onnx_engine(path: Path, threads: int) -> Engine:
    onnxruntime = import_extra("onnxruntime")

    def load() -> tuple[Call, Any]:
        session = open_onnx(path, threads)
        inputs = session.get_inputs()
        _check_single(inputs)
        return lambda image: session.run(None, {inputs[0].name: image})[0], grey_squares(inputs[0].shape[1:])

    return Engine(f"ONNX Runtime {onnxruntime.__version__}", load)


def _tflite_engine(path: Path, threads: int) -> Engine:
    import_extra("ai_edge_litert.interpreter")

    def load() -> tuple[Call, Any]:
        interpreter = open_tflite(path, threads, quiet=False)
        inputs = interpreter.get_input_details()
        _check_single(inputs)
        output = interpreter.get_output_details()[0]

        def call(image: Any) -> Any:
            interpreter.set_tensor(inputs[0]["index"], image)
            interpreter.invoke()
            logits = interpreter.get_tensor(output["index"])
            if output["dtype"] == np.float32:
                return logits
            scale, zero_point = output["quantization"]
            return (logits.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)

        return call, feed(grey_squares(inputs[0]["shape"][1:]), inputs[0])

    return Engine(f"LiteRT {version('ai-edge-litert')}", load)


def _openvino_engine(path: Path, threads: int) -> Engine:
    openvino = import_extra("openvino")

    def load() -> tuple[Call, Any]:
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        model = openvino.Core().compile_model(str(path), "CPU", settings)
        sides = [side.get_length() for side in list(model.input(0).partial_shape)[1:]]
        return lambda image: model([image])[0], grey_squares(sides)

    return Engine(f"OpenVINO {openvino.__version__.split('-')[0]}", load)


def torch_engine(folder: Path, threads: int) -> Engine:
    """Return what runs a run folder."""
    import torch

    from brainq_torch.run import load_run

    torch.set_num_threads(threads)

    def load() -> tuple[Call, Any]:
        run = load_run(folder)

        def call(image: Any) -> Any:
            with torch.inference_mode():
                return run.model(image)

        return call, torch.from_numpy(grey_squares((1, run.pixels.size, run.pixels.size)))

    return Engine(f"PyTorch {torch.__version__} eager", load)


ENGINES: dict[str, Callable[[Path, int], Engine]] = {
    "onnxruntime": _onnx_engine, "openvino": _openvino_engine, "litert": _tflite_engine, "torch": torch_engine,
}  # fmt: skip
"""Each imports what runs a model, when it is called."""


def _check_single(inputs: list[Any]) -> None:
    if len(inputs) != 1:
        raise ValueError(f"the file has {len(inputs)} inputs; one image is needed")


def grey_squares(shape: Sequence[Any]) -> NDArray[np.float32]:
    """Return ``COMPARED_IMAGES`` of this shape, of 16 random greys a side, in the network's input range.

    Latency does not depend on what an image shows.
    """
    if not all(isinstance(side, int | np.integer) for side in shape):
        raise ValueError(f"the input's shape is {list(shape)}; only the first side, the batch, may be open")
    side = max(shape)
    greys = np.random.default_rng(0).integers(-128, 128, (COMPARED_IMAGES, 16, 16))
    squares = greys.repeat(-(-side // 16), 1).repeat(-(-side // 16), 2)[:, :side, :side] / 128
    return squares.astype(np.float32).reshape(COMPARED_IMAGES, *shape)


if __name__ == "__main__":
    sys.exit(main())
