"""An .onnx file in OpenVINO, in a process of its own, as ``tools.bench.worker`` serves files."""

import sys
from pathlib import Path
from typing import Any

from export.extra import import_extra
from tools.bench.worker import Call, Engine, grey_squares, serve


def openvino_engine(path: Path, threads: int) -> Engine:
    """Import what runs the file."""
    openvino = import_extra("openvino")

    def load() -> tuple[Call, Any]:
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        model = openvino.Core().compile_model(str(path), "CPU", settings)
        sides = [side.get_length() for side in list(model.input(0).partial_shape)[1:]]
        return lambda image: model([image])[0], grey_squares(sides)

    return Engine(f"OpenVINO {openvino.__version__.split('-')[0]}", load)


if __name__ == "__main__":
    sys.exit(serve(openvino_engine))
