"""One TFLite file in TFLite-Micro, in a process of its own: ``tflm`` starts this file with the interpreter it is told.

Needs numpy and tflite-micro alone, and nothing of this project, so that it may run in an environment of its own.
Reads {"model": path, "input": path of a .npy, one row per image} on stdin and answers with one line of JSON on stdout:
``missing``, ``refused``, or logits and arena bytes. What the engine prints goes to stderr.
"""

import json
import os
import re
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ALIGNMENT = 16
"""TFLite-Micro places tensors at multiples of 16 bytes: a finer arena size says nothing."""
GENEROUS = 8
"""The first arena, as a multiple of what the activations need at least."""


def main() -> int:
    """Answer one request."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request = json.load(sys.stdin)
    try:
        from tflite_micro import runtime
    except ImportError as error:
        answer: dict[str, Any] = {"missing": str(error)}
    else:
        answer = run(runtime, Path(request["model"]).read_bytes(), np.load(request["input"]), request["least_bytes"])
    print(json.dumps(answer), file=channel, flush=True)
    return 0


def run(runtime: Any, model: bytes, images: Any, least: int) -> dict[str, Any]:
    """Run the images and find the arena that suffices."""
    with _captured() as said:
        try:
            interpreter = runtime.Interpreter.from_bytes(model, arena_size=GENEROUS * least + 2**22)
            logits = []
            for image in images:
                interpreter.set_input(image[None], 0)
                interpreter.invoke()
                logits.append(interpreter.get_output(0)[0].tolist())
        except (RuntimeError, ValueError) as error:
            return {"refused": (said().strip() or str(error)).splitlines()[-1]}
        interpreter.print_allocations()
        recorded = {kind: int(size) for kind, size in re.findall(r"allocation (total|head|tail) (\d+) bytes", said())}

        def starts(size: int) -> bool:
            try:
                runtime.Interpreter.from_bytes(model, arena_size=size)
            except RuntimeError:
                return False
            return True

        smallest = smallest_arena(starts, recorded["total"])
    return {
        "logits": logits, "head_bytes": recorded["head"], "tail_bytes": recorded["tail"],
        "smallest_arena_bytes": smallest, "version": version("tflite-micro"),
    }  # fmt: skip


def smallest_arena(starts: Callable[[int], bool], guess: int) -> int:
    """Return the least multiple of 16 with which ``starts``."""
    while not starts(guess):
        guess += max(guess // 8, ALIGNMENT)
    places = range(ALIGNMENT, guess + ALIGNMENT, ALIGNMENT)
    return places[bisect_left(places, True, hi=len(places) - 1, key=starts)]


@contextmanager
def _captured() -> Iterator[Callable[[], str]]:
    """Take what is written to stderr meanwhile, by C++ too. Yields a function that returns it so far."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:

        def said() -> str:
            file.seek(0)
            text = file.read().decode(errors="replace")
            file.seek(0, os.SEEK_END)
            return text

        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)


if __name__ == "__main__":
    sys.exit(main())
