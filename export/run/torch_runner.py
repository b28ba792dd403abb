"""A run's network behind the signature of ``runners``: uint8 grey images in, logits out."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from brainq_torch.abstention.policy import Abstention
from brainq_torch.data.pixels import PixelSpec, scale_pixels
from brainq_torch.quant.encoding import Encoding
from brainq_torch.run import load_run
from export.run.runners import batches
from export.run.sessions import RunnerError, join_logits


class TorchRunner:
    """A network in PyTorch, in eval mode."""

    logit_scale: Encoding | None = None

    def __init__(
        self,
        model: nn.Module,
        pixels: PixelSpec,
        classes: tuple[str, ...],
        threads: int = 1,
        abstention: Abstention | None = None,
        name: str = "the network in PyTorch",
    ) -> None:
        if model.training:
            raise RunnerError("the model is in training mode: BatchNorm and dropout would answer as such; call .eval()")
        # A copy, because channels last (a third faster) is a layout that must not reach the exporter.
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        self.pixels, self.classes, self.abstention = pixels, classes, abstention
        self._threads, self._name = threads, name

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See ``Runner``."""
        with torch.inference_mode(), _torch_threads(self._threads):
            scaled = (torch.from_numpy(scale_pixels(batch)) for batch in batches(images, self.pixels))
            rows = [self.model(batch).numpy() for batch in scaled]
        return join_logits(self._name, rows, np.float32, len(self.classes))

    def raw(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
        """Raise RunnerError: PyTorch computes in float here, even a fake-quantized network."""
        raise RunnerError("a checkpoint has no integer logits; export it and run the int8 file")


def run_folder(folder: Path, threads: int = 1) -> TorchRunner:
    """Load a run folder's network. Raises RunError where it is no finished run."""
    run = load_run(folder)
    return TorchRunner(run.model, run.pixels, run.classes, threads, run.abstention, str(folder))


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """Set torch's threads for one call, and put back what the process had."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
