"""Size, latency and peak memory of models, side by side in one run: ``python -m tools.bench MODEL...``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.checksum import find_damage
from brainq_torch.run_files import CHECKPOINT
from brainq_torch.texts import fill_text
from export.extra import install_command
from tools.bench.worker import SUFFIXES
from tools.shared.command import CommandError, add_json, add_threads, as_main, positive, write_found

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Measurement:
    """One model's figures.

    engine: what ran it. size_bytes: the file's; a run folder's model.ckpt. latency_median_ms: of one image through the
    engine, without decoding or resizing, over all rounds. latency_p90_ms: the 90 % quantile of the same.
    peak_memory_bytes: resident memory of a process that does nothing else, engine and Python included.
    memory_before_model_bytes: of that, what was there before the model was opened. size_ratio: over the first model's,
    as the other ratios. latency_ratio: the median over the rounds of both models' medians in that round. start_up_s:
    from before the engine is imported to the first answer. equal_logits: share of those on random squares that are the
    first model's to the last bit; None where it has other classes.
    """

    model: str
    engine: str
    size_bytes: int
    latency_median_ms: float
    latency_p90_ms: float
    peak_memory_bytes: int
    memory_before_model_bytes: int
    size_ratio: float
    latency_ratio: float
    peak_memory_ratio: float
    start_up_s: float
    equal_logits: float | None


@dataclass(frozen=True)
class Bench:
    """All models' figures and the conditions they were measured under."""

    threads: int
    rounds: int
    calls_per_round: int
    cpu: str
    cpu_count: int | None
    load_average: float
    models: tuple[Measurement, ...]


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="+", help="run folders, .onnx or .tflite files")
    add_threads(parser, 1)
    parser.add_argument("--rounds", type=positive, default=10, help="times each model's turn comes (default: 10)")
    parser.add_argument("--calls", type=positive, default=10, help="measured images per turn (default: 10)")
    add_json(parser)


def _bench(options: argparse.Namespace) -> int:
    result = bench_models(options.models, options.threads, options.rounds, options.calls)
    print(format_bench(result))
    write_found(options, asdict(result))
    return 0


def bench_models(models: Sequence[str], threads: int = 1, rounds: int = 10, calls: int = 10) -> Bench:
    """Measure the models, taking turns, so that what slows the machine for a while slows them all."""
    places = {model: size_bytes(Path(model)) for model in models}
    rows = [(model, engine) for model in models for engine in engines_of(Path(model))]
    sizes = [places[model] for model, _ in rows]
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(model, threads, engine)) for model, engine in rows]
        turns = [[worker.measure(calls) for worker in workers] for _ in range(rounds)]
        memory = [worker.finish() for worker in workers]
    latency = np.array(turns)  # (rounds, models, calls), ms
    medians = np.median(latency, axis=2)
    measurements = tuple(
        Measurement(
            model=model,
            engine=workers[index].engine,
            size_bytes=sizes[index],
            latency_median_ms=float(np.median(latency[:, index])),
            latency_p90_ms=float(np.quantile(latency[:, index], 0.9)),
            **memory[index],
            size_ratio=sizes[index] / sizes[0],
            latency_ratio=float(np.median(medians[:, index] / medians[:, 0])),
            peak_memory_ratio=memory[index]["peak_memory_bytes"] / memory[0]["peak_memory_bytes"],
            start_up_s=workers[index].start_up_s,
            equal_logits=_share_equal(workers[0].logits, workers[index].logits),
        )
        for index, (model, _) in enumerate(rows)
    )
    return Bench(threads, rounds, calls, _cpu(), os.cpu_count(), load, measurements)


def engines_of(model: Path) -> list[str]:
    """Return what runs a model, as the worker names it: of an .onnx file OpenVINO, too, where it is there."""
    if model.is_dir():
        return ["torch"]
    return {".onnx": ["onnxruntime", *(["openvino"] if find_spec("openvino") else [])]}.get(model.suffix, ["litert"])


def _share_equal(first: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    return float((first == other).mean()) if first.shape == other.shape else None


def size_bytes(model: Path) -> int:
    """Return a model's size on disk."""
    if not model.exists():
        raise CommandError(f"{model} does not exist; give run folders, .onnx or .tflite files")
    if model.is_dir():
        if not (model / CHECKPOINT).is_file():
            raise CommandError(
                f"{model} is no finished run folder: it has no {CHECKPOINT}; name the files in it one by one"
            )
        return (model / CHECKPOINT).stat().st_size
    if model.suffix not in SUFFIXES:
        raise CommandError(
            f"{model} ends in {model.suffix!r}; give run folders, or files ending in {' or '.join(SUFFIXES)}"
        )
    if damage := find_damage(model):
        raise CommandError(damage)
    return model.stat().st_size


def format_bench(result: Bench) -> str:
    """Return the readable table."""
    lacking = any(model.model.endswith(".onnx") for model in result.models) and not find_spec("openvino")
    return fill_text("bench", found=result, install_openvino=install_command("openvino") if lacking else "")


class _Worker:
    """A process for one model, as a context that ends it."""

    def __init__(self, model: str, threads: int, engine: str) -> None:
        self.model = model
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.bench.worker", os.path.abspath(model), str(threads), engine],
            cwd=ROOT,
            # Libraries that read it at import start no more threads than are stated.
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> _Worker:
        said = self._read()
        self.engine, self.start_up_s = str(said["ready"]), float(said["start_up_s"])
        self.logits = np.array(said["logits"])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with self._process:  # waits for it and closes its pipes
            pass
        self._errors.close()

    def measure(self, calls: int) -> list[float]:
        """Return the latencies of one turn in ms."""
        assert self._process.stdin is not None
        print(json.dumps({"calls": calls}), file=self._process.stdin, flush=True)
        return list(self._read()["latency_ms"])

    def finish(self) -> dict[str, int]:
        """End the worker and return its memory."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-3:]
            raise CommandError(
                f"{self.model}: its process ended with code {self._process.wait()}: {' | '.join(last) or 'no message'}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CommandError(f"{self.model} cannot be run: {answer['error']}")
        return answer


def _cpu() -> str:
    """Return the processor's name: a latency means nothing without it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


main = as_main(_add_words, _bench)

if __name__ == "__main__":
    sys.exit(main())
