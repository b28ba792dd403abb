"""One model in a process of its own, so that its peak memory is its own: ``bench`` starts one per model.

Speaks JSON lines on stdin and stdout: first ``ready`` or ``error``; then ``{"calls": N}`` is answered with N latencies,
and the end of input with the peak memory. Engines are imported here alone, each only where its file needs it; run
folders have ``tools.bench.torch_worker``: PyTorch in a TFLite file's process would be most of the memory measured.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.extra import import_extra
from export.run.sessions import open_onnx, open_tflite

WARM_UP_CALLS = 3
SUFFIXES = (".onnx", ".tflite")

type Call = Callable[[], Any]


@dataclass(frozen=True)
class Engine:
    """What runs a file.

    load: opens it and returns one inference on one image as a function.
    """

    name: str
    load: Callable[[], Call]


def serve(choose: Callable[[Path, int], Engine]) -> int:
    """Serve one model, named with its threads on the command line."""
    # Engines print what they like on stdout; the answers get a channel of their own.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(**data: Any) -> None:
        print(json.dumps(data), file=channel, flush=True)

    try:
        engine = choose(Path(sys.argv[1]), int(sys.argv[2]))
        before = memory_bytes("VmRSS")
        call = engine.load()
        for _ in range(WARM_UP_CALLS):
            logits = call()
        if not np.isfinite(np.asarray(logits)).all():
            raise ValueError("its logits are not finite")
    except Exception as error:  # the parent says it, whatever it was
        answer(error=f"{type(error).__name__}: {error}")
        return 1
    answer(ready=engine.name)
    for line in sys.stdin:
        answer(latency_ms=measure(call, json.loads(line)["calls"]))
    answer(peak_memory_bytes=memory_bytes("VmHWM"), memory_before_model_bytes=before)
    return 0


def measure(call: Call, calls: int) -> list[float]:
    """Return the latency of each call in ms. One call before them is not counted: others ran in between."""
    call()
    latencies = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        latencies.append(1000 * (time.perf_counter() - start))
    return latencies


def choose_engine(model: Path, threads: int) -> Engine:
    """Import what runs this kind of file."""
    engines = {".onnx": _onnx_engine, ".tflite": _tflite_engine}
    return engines[model.suffix](model, threads)


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

    def load() -> Call:
        session = open_onnx(path, threads)
        inputs = session.get_inputs()
        _check_single(inputs)
        image = scaled_noise((1, *inputs[0].shape[1:]))
        return lambda: session.run(None, {inputs[0].name: image})

    return Engine(f"ONNX Runtime {onnxruntime.__version__}", load)


def _tflite_engine(path: Path, threads: int) -> Engine:
    import_extra("ai_edge_litert.interpreter")

    def load() -> Call:
        interpreter = open_tflite(path, threads, quiet=False)
        inputs = interpreter.get_input_details()
        _check_single(inputs)
        image = _typed(scaled_noise(tuple(inputs[0]["shape"])), inputs[0]["dtype"])
        output = interpreter.get_output_details()[0]["index"]

        def call() -> Any:
            interpreter.set_tensor(inputs[0]["index"], image)
            interpreter.invoke()
            return interpreter.get_tensor(output)

        return call

    return Engine(f"LiteRT {version('ai-edge-litert')}", load)


def _check_single(inputs: list[Any]) -> None:
    if len(inputs) != 1:
        raise ValueError(f"the file has {len(inputs)} inputs; one image is needed")


def scaled_noise(shape: tuple[Any, ...]) -> NDArray[np.float32]:
    """Return noise in the network's input range: latency does not depend on what an image shows."""
    if not all(isinstance(side, int | np.integer) for side in shape):
        raise ValueError(f"the input's shape is {shape}; only the first side, the batch, may be open")
    return (np.random.default_rng(0).integers(-128, 128, shape) / 128).astype(np.float32)


def _typed(image: NDArray[np.float32], dtype: Any) -> NDArray[Any]:
    """Return the image as the file's input type takes it."""
    if np.issubdtype(dtype, np.floating):
        return image.astype(dtype)
    limits = np.iinfo(dtype)
    middle = (limits.max + limits.min + 1) // 2
    return (np.rint(image * 128) + middle).clip(limits.min, limits.max).astype(dtype)


if __name__ == "__main__":
    sys.exit(serve(choose_engine))
