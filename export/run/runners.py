"""Checkpoint, ONNX and TFLite behind one signature: uint8 grey images in, logits out. Files run without PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from os import PathLike
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from brainq_torch.abstention.policy import Abstention
from brainq_torch.checksum import find_damage
from brainq_torch.data.pixels import PixelSpec, scale_pixels
from brainq_torch.openmp import MOST_THREADS
from brainq_torch.quant.encoding import UINT8_SHIFT, Encoding
from brainq_torch.stopping import import_whole
from export.run.metadata import FileMetadata, MetadataError, read_metadata
from export.run.sessions import (
    BUILTIN_KERNELS,
    XNNPACK,
    NotFiniteError,
    RunnerError,
    encoding_of,
    feed,
    join_logits,
    onnx_logit_encoding,
    open_onnx,
    open_tflite,
)

BATCH = 4
"""Images per call of the network: at 224 pixels PyTorch needs half the time per image with 4 that it needs with 32,
whose activations outgrow the caches."""


def run_named(runner: Runner, images: npt.NDArray[np.uint8], names: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the runner's logits of (N, size, size) uint8 images. Its errors name the image. names: N of them."""
    try:
        return runner(images)
    except NotFiniteError as error:
        raise NotFiniteError(error.model, error.image, names[error.image]) from error


class Runner(Protocol):
    """A model ready to run.

    logit_scale: quantization of the logits where they are integers inside the file, else None.
    abstention: when the model does not answer, None where it does not say.
    """

    pixels: PixelSpec
    classes: tuple[str, ...]
    logit_scale: Encoding | None
    abstention: Abstention | None

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map (N, size, size) uint8 grey images to (N, C) float32 logits. N may be anything, 0 included.

        Raises RunnerError, for logits that are not finite NotFiniteError.
        """
        ...


def load_runner(
    path: str | PathLike[str],
    threads: int = 1,
    pixels: PixelSpec | None = None,
    classes: tuple[str, ...] | None = None,
    accelerated: bool = True,
) -> Runner:
    """Load a run folder, an .onnx or a .tflite file.

    Args:
        path: The model. Where a file carries a checksum, it must hold.
        threads: Processor threads of one call.
        pixels: For a file that does not say them itself, with ``classes``; refused where they contradict it.
        classes: Likewise, in logit order.
        accelerated: False runs the graph as it is written: ONNX Runtime without integer kernels, LiteRT without
            XNNPACK.

    Raises:
        RunnerError, MetadataError, RunError or MissingExtraError, each with what to do.
    """
    path = Path(path)
    if not 1 <= threads <= MOST_THREADS:
        raise RunnerError(f"threads is {threads}; allowed are 1 to {MOST_THREADS}")
    if not path.exists():
        raise RunnerError(f"{path} does not exist; give a run folder, an .onnx or a .tflite file")
    if path.is_dir():  # loading PyTorch takes seconds and 900 MB, and an exported file does not need it
        runner: Runner = import_whole("export.run.torch_runner").run_folder(path, threads)
        _check_claims(path, FileMetadata(runner.classes, runner.pixels, {}), pixels, classes)
        return runner
    runners: dict[str, type[OnnxRunner | TFLiteRunner]] = {".onnx": OnnxRunner, ".tflite": TFLiteRunner}
    if path.suffix not in runners:
        raise RunnerError(f"{path} ends in {path.suffix!r}; give a run folder or a file ending in {sorted(runners)}")
    return runners[path.suffix](path, _describe(path, pixels, classes), threads, accelerated)


class OnnxRunner:
    """An ONNX file in ONNX Runtime on the CPU.

    optimised: False computes in float between Q and DQ, as the graph is written and as the comparison of a QDQ file
    with its source needs: ONNX Runtime otherwise fuses them into integer kernels of its own.
    """

    def __init__(self, path: Path, metadata: FileMetadata, threads: int = 1, optimised: bool = True) -> None:
        try:
            self._session = open_onnx(path, threads, fused=optimised)
        except Exception as error:  # onnxruntime's exceptions have no common base but Exception
            raise RunnerError(f"{path} cannot be run by ONNX Runtime: {error}") from error
        self.pixels, self.classes, self.abstention = metadata.pixels, metadata.classes, metadata.abstention
        self._name, size = str(path), self.pixels.size
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise RunnerError(f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; one of each is needed")
        self._input = inputs[0].name
        self._batch = 1 if inputs[0].shape[0] == 1 or not optimised else BATCH
        _check_shapes(path, tuple(inputs[0].shape[1:]), (1, size, size), outputs[0].shape[-1], self.classes)
        self.logit_scale = onnx_logit_encoding(path)

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See ``Runner``."""
        rows = [self._run(batch) for batch in batches(images, self.pixels, self._batch)]
        return join_logits(self._name, rows, np.float32, len(self.classes))

    def _run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        try:
            logits: npt.NDArray[np.float32] = self._session.run(None, {self._input: scale_pixels(batch)})[0]
        except Exception as error:  # as in __init__
            raise RunnerError(f"{self._name} cannot be run by ONNX Runtime: {error}") from error
        return logits


class TFLiteRunner:
    """A TFLite file in the LiteRT interpreter on the CPU, one image a call, as a device runs it.

    Each thread has images and an interpreter of its own: 8 % faster on two cores than one interpreter with two threads.

    xnnpack: False runs LiteRT's built-in kernels throughout, as a device without XNNPACK does.
    """

    def __init__(self, path: Path, metadata: FileMetadata, threads: int = 1, xnnpack: bool = True) -> None:
        self._threads, self._open = threads, partial(open_tflite, path, 1, XNNPACK if xnnpack else BUILTIN_KERNELS)
        try:
            first = self._open()
            inputs, outputs = first.get_input_details(), first.get_output_details()
        except (ValueError, RuntimeError) as error:
            raise RunnerError(f"{path} cannot be run by the LiteRT interpreter: {error}") from error
        self.pixels, self.classes, self.abstention = metadata.pixels, metadata.classes, metadata.abstention
        self._name, self._interpreters, self._one_at_a_time = str(path), [first], Lock()
        if len(inputs) != 1 or len(outputs) != 1:
            raise RunnerError(f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; one of each is needed")
        self._input, self._output = inputs[0], outputs[0]
        sides = (self.pixels.size, self.pixels.size, 1)
        _check_shapes(path, tuple(map(int, self._input["shape"][1:])), sides, self._output["shape"][-1], self.classes)
        encoding_of(path, self._input)
        every_level = np.arange(256, dtype=np.uint8)[None, None]
        self._levels = feed(scale_pixels(every_level), self._input).ravel()
        scale = encoding_of(path, self._output)
        self._shift = UINT8_SHIFT if self._output["dtype"] == np.uint8 else 0
        self.logit_scale = None if scale is None else scale._replace(zero_point=scale.zero_point - self._shift)

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See ``Runner``; integer logits are dequantized."""
        logits = self._invoke(images)
        if self.logit_scale is None:
            return logits
        scale, zero_point = self.logit_scale
        return (logits.astype(np.float32) - np.float32(zero_point + self._shift)) * np.float32(scale)

    def _invoke(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Return the logits in the file's own type."""
        used = max(1, min(self._threads, len(images)))
        free: SimpleQueue[Any] = SimpleQueue()
        with self._one_at_a_time, ThreadPoolExecutor(used) as pool:  # an interpreter is not to be shared
            self._interpreters += [self._open() for _ in range(used - len(self._interpreters))]
            for interpreter in self._interpreters[:used]:
                free.put(interpreter)
            rows = list(pool.map(partial(self._run, free), batches(images, self.pixels, 1)))
        return join_logits(self._name, rows, self._output["dtype"], len(self.classes))

    def _run(self, free: SimpleQueue[Any], image: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        interpreter = free.get()
        try:
            interpreter.set_tensor(self._input["index"], np.take(self._levels, image)[..., None])
            interpreter.invoke()
            logits: npt.NDArray[Any] = interpreter.get_tensor(self._output["index"])
        except RuntimeError as error:
            raise RunnerError(f"{self._name} cannot be run by the LiteRT interpreter: {error}") from error
        finally:
            free.put(interpreter)
        return logits


def _describe(path: Path, pixels: PixelSpec | None, classes: tuple[str, ...] | None) -> FileMetadata:
    """Return the file's own metadata, or the caller's where it has none. A damaged file is not even opened."""
    if damage := find_damage(path):
        raise RunnerError(damage)
    if (pixels is None) != (classes is None):
        raise RunnerError("give pixels and classes together, or neither where the file says them itself")
    try:
        metadata = read_metadata(path)
    except MetadataError:
        if pixels is None or classes is None:
            raise
        return FileMetadata(tuple(classes), pixels, {})
    _check_claims(path, metadata, pixels, classes)
    return metadata


def _check_claims(
    path: Path, metadata: FileMetadata, pixels: PixelSpec | None, classes: tuple[str, ...] | None
) -> None:
    """Refuse a caller's pixels or classes that differ from what the model says itself."""
    if pixels is not None and pixels != metadata.pixels:
        raise RunnerError(f"{path} was made for {metadata.pixels}, not for {pixels}; leave pixels out")
    if classes is not None and tuple(classes) != metadata.classes:
        raise RunnerError(f"{path} has the classes {metadata.classes}, not {tuple(classes)}; leave classes out")


def _check_shapes(
    path: Path, image: tuple[Any, ...], expected: tuple[int, ...], logits: Any, classes: tuple[str, ...]
) -> None:
    """Refuse a file whose tensors do not fit what is said about it."""
    if image != expected:
        raise RunnerError(f"{path} takes images of shape {image}, but its pixels say {expected}")
    if logits != len(classes):
        raise RunnerError(f"{path} gives {logits} logits, but names {len(classes)} classes: {', '.join(classes)}")


def batches(images: npt.NDArray[np.uint8], pixels: PixelSpec, size: int = BATCH) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the images in batches, or raise RunnerError where they are not what ``PixelSpec.apply`` gives."""
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (pixels.size, pixels.size):
        raise RunnerError(
            f"images are {images.shape} {images.dtype}; need (N, {pixels.size}, {pixels.size}) uint8, "
            "as PixelSpec.apply makes them"
        )
    for start in range(0, len(images), size):
        yield images[start : start + size]
