"""A run folder in a process of its own, as ``tools.bench.worker`` serves files."""

import sys
from pathlib import Path
from typing import Any

import torch

from brainq_torch.run import load_run
from tools.bench.worker import Call, Engine, scaled_noise, serve


def torch_engine(folder: Path, threads: int) -> Engine:
    """Return what runs a run folder."""
    torch.set_num_threads(threads)

    def load() -> Call:
        run = load_run(folder)
        image = torch.from_numpy(scaled_noise((1, 1, run.pixels.size, run.pixels.size)))

        def call() -> Any:
            with torch.inference_mode():
                return run.model(image)

        return call

    return Engine(f"PyTorch {torch.__version__} eager", load)


if __name__ == "__main__":
    sys.exit(serve(torch_engine))
