"""A TFLite file in TFLite-Micro, the engine of microcontrollers: whether it runs, in how much memory, answering what.

The engine is measured on this computer: its pointers have 8 bytes, a microcontroller's 4, so that the arena's tail
(the engine's own tables) is smaller there and what is reported is enough. The head, the activations, is the same.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.pixels import scale_pixels
from export.run.sessions import XNNPACK, ask_tflite, feed, open_tflite
from tools.edge.not_done import NotDone
from tools.shared.command import CommandError

WORKER = Path(__file__).with_name("tflm_worker.py")
SECONDS = 600
INSTALL = "pip install -e '.[edge]' in the checkout, or name an environment that has tflite-micro with --tflm-python"
ENGINES = {"LiteRT reference kernels": "BUILTIN_REF", "LiteRT with XNNPACK": "AUTO"}
"""What TFLite-Micro is compared with -> LiteRT's name for it. Its convolutions round as those of the first do, twice
per sum; the second, in which files are checked everywhere else, rounds once."""


@dataclass(frozen=True)
class Agreement:
    """TFLite-Micro's logits against another engine's on the same inputs.

    equal_logits: share that is the same number. same_class: share of images. unit: of the differences: steps of the
    file's own integers (LSB), or real numbers (logit).
    """

    engine: str
    equal_logits: float
    same_class: float
    unit: str
    max_difference: float
    mean_difference: float


@dataclass(frozen=True)
class TflmRun:
    """A run in TFLite-Micro.

    arena_bytes: the smallest in which it starts, found by trying. head_bytes: of that, activations and scratch memory.
    tail_bytes: the engine's tables, as recorded.
    """

    version: str
    images: int
    arena_bytes: int
    head_bytes: int
    tail_bytes: int
    agreements: tuple[Agreement, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"status": "done", **asdict(self)}


def run_tflm(
    path: Path, pixels: NDArray[np.uint8], least_bytes: int, python: str = sys.executable
) -> TflmRun | NotDone:
    """Run a file in TFLite-Micro and in LiteRT on (N, H, W) uint8 pixels of the model's size.

    least_bytes: what its activations need at least. python: of an environment with tflite-micro.
    """
    inputs = _feed(path, pixels, _litert(path).get_input_details()[0])
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "input.npy"
        np.save(stored, inputs)
        answer = _ask(python, {"model": str(path.resolve()), "input": str(stored), "least_bytes": least_bytes})
    if "missing" in answer:
        return NotDone(f"tflite-micro is not installed ({answer['missing']}): {INSTALL}")
    if "refused" in answer:
        return NotDone(f"TFLite-Micro does not run it: {answer['refused']}", refused=True)
    return TflmRun(
        version=answer["version"],
        images=len(inputs),
        arena_bytes=answer["smallest_arena_bytes"],
        head_bytes=answer["head_bytes"],
        tail_bytes=answer["tail_bytes"],
        agreements=tuple(
            compare_logits(engine, answer["logits"], run_litert(path, inputs, kernels))
            for engine, kernels in ENGINES.items()
        ),
    )


def compare_logits(engine: str, found: Any, expected: NDArray[Any]) -> Agreement:
    """Compare logits with an engine's, which have the file's own type."""
    logits = np.array(found, expected.dtype)
    difference = np.abs(logits.astype(np.float64) - expected.astype(np.float64))
    return Agreement(
        engine=engine,
        equal_logits=float(np.mean(logits == expected)),
        same_class=float(np.mean(logits.argmax(1) == expected.argmax(1))),
        unit="LSB" if np.issubdtype(expected.dtype, np.integer) else "logit",
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
    )


def run_litert(path: Path, inputs: NDArray[Any], kernels: str) -> NDArray[Any]:
    """Return LiteRT's logits of (N, H, W, 1), both in the file's own type. kernels: a value of ``ENGINES``."""
    interpreter = _litert(path, kernels)
    return np.concatenate([ask_tflite(interpreter, row[None]) for row in inputs])


def find_python(named: str) -> str:
    """Return the interpreter that is named."""
    found = shutil.which(named)
    if found is None:
        raise CommandError(f"--tflm-python {named} is no program; give the path of a Python that has tflite-micro")
    return found


def input_side(path: Path) -> int:
    """Return the side of the square images that a file takes."""
    details = _litert(path).get_input_details()
    shape = tuple(map(int, details[0]["shape"]))
    if len(details) != 1 or len(shape) != 4 or shape[0] != 1 or shape[3] != 1 or shape[1] != shape[2]:
        raise CommandError(f"{path} takes {len(details)} inputs, the first {shape}; a grey (1, S, S, 1) is needed")
    return shape[1]


def _litert(path: Path, kernels: str = XNNPACK) -> Any:
    try:
        return open_tflite(path, kernels=kernels)
    except (ValueError, RuntimeError) as error:
        raise CommandError(f"{path} cannot be run by LiteRT: {error}") from error


def _feed(path: Path, pixels: NDArray[np.uint8], details: dict[str, Any]) -> NDArray[Any]:
    """Return (pixel - 128) / 128 in the type that the file takes, (N, H, W, 1)."""
    if details["dtype"] != np.float32 and not details["quantization"][0]:
        raise CommandError(f"{path} takes {np.dtype(details['dtype']).name} without a scale; export it again")
    return feed(scale_pixels(pixels).transpose(0, 2, 3, 1), details)


def _ask(python: str, request: dict[str, Any]) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [python, str(WORKER)], input=json.dumps(request), capture_output=True, text=True, timeout=SECONDS
        )
    except OSError as error:
        raise CommandError(f"--tflm-python {python} cannot be started: {error.strerror}; name a Python") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"TFLite-Micro took more than {SECONDS} s; give fewer images with --images") from error
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        last = " | ".join(done.stderr.strip().splitlines()[-3:]) or "no message"
        raise CommandError(f"{python} with {WORKER.name} ended with code {done.returncode}: {last}") from error
    return answer
