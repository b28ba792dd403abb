"""A run folder in a process of its own, as ``tools.bench.worker`` serves files."""

import sys
from pathlib import Path
from typing import Any

import torch

from brainq_torch.run import load_run
from tools.bench.worker import Call, Engine, grey_squares, serve


def torch_engine(folder: Path, threads: int) -> Engine:
    """Return what runs a run folder."""
    torch.set_num_threads(threads)

    def load() -> tuple[Call, Any]:
        run = load_run(folder)

        def call(image: Any) -> Any:
            with torch.inference_mode():
                return run.model(image)

        return call, torch.from_numpy(grey_squares((1, run.pixels.size, run.pixels.size)))

    return Engine(f"PyTorch {torch.__version__} eager", load)


if __name__ == "__main__":
    sys.exit(serve(torch_engine))
