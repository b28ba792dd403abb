"""Carries out the steps of a study, none twice: ``StepRunner``.

``OUT/steps/NAME.json`` says what a step depended on and what it made, ``OUT/logs/NAME.log`` what it printed.
"""

import json
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainq_torch.lock import hold_lock
from brainq_torch.provenance import CODE, find_commit, find_versions, is_dirty
from brainq_torch.run_files import (
    CHECKPOINT,
    CONFIG,
    MANIFEST,
    METRICS,
    BrainqError,
    format_command,
    hash_file,
    write_json,
)
from tools.shared.command import CommandError
from tools.study.process import describe_end, run_logged

RUN_FILES = (CONFIG, MANIFEST, CHECKPOINT, METRICS)
"""What a finished run has."""

FAILED = 1
"""Exit code of a command whose steps did not all succeed; it says which."""

STEPS, LOGS, LOCK = "steps", "logs", "study.lock"
_FORMAT = 1
_PACKAGES = (
    "brainq_torch", "torch", "torchvision", "lightning", "numpy", "pillow", "onnx", "onnxruntime", "onnx2tf",
    "ai-edge-litert", "ai-edge-quantizer",
)  # fmt: skip
_LOCK_SECONDS = 10
"""A killed study's command takes a moment to end with it."""


class StepFailed(BrainqError):
    """A step that came to nothing, or that was not begun because of another one. The message is the reason."""


@dataclass(frozen=True)
class Step:
    """One command.

    name: of its record and its log. words: as after ``python -m``.
    inputs: what it depends on besides the code: name -> hash, or plain words. outputs: files it is done with.
    allowed: exit codes with which it is.
    """

    name: str
    words: tuple[str, ...]
    inputs: dict[str, str]
    outputs: tuple[Path, ...]
    allowed: tuple[int, ...] = (0,)

    @property
    def command(self) -> str:
        """Return what a user would type."""
        return format_command(*self.words)


def training_step(name: str, words: list[str], manifest: Path, run: Path, own: Sequence[str] = ()) -> Step:
    """Return the step that trains the images of a manifest into a run folder, or goes on there.

    Args:
        name: Of the step.
        words: Of every training.
        manifest: Images and splits; another content trains anew.
        run: Folder to make.
        own: More words, of this training.
    """
    place = (*own, f"--data.manifest={manifest}", "--out", str(run), "--resume")
    inputs = {"splits": hash_file(manifest), "arguments": repr(words)}
    outputs = tuple(run / file for file in RUN_FILES)
    return Step(name, ("brainq_torch.fit", *words, *place), inputs, outputs)


class StepRunner:
    """The study folder while one process works in it."""

    def __init__(self, out: Path, total: int) -> None:
        self.out, self.total = out, total
        self._number, self._title, self._start = 0, "begin", time.monotonic()
        packages = " ".join(f"{name} {found or 'none'}" for name, found in find_versions(_PACKAGES).items())
        self._versions = {"code": describe_code(), "packages": packages}
        for name in (STEPS, LOGS):
            (out / name).mkdir(parents=True, exist_ok=True)

    def locked(self) -> AbstractContextManager[None]:
        """Keep other studies out of the folder. Raises LockedError where one works in it."""
        return hold_lock(self.out / LOCK, f"{self.out} is being worked in", seconds=_LOCK_SECONDS)

    def say(self, text: str) -> None:
        """Print a line of progress: step k of n, elapsed, which step, text."""
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        elapsed = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
        print(f"[{self._number}/{self.total}] {elapsed} {self._title}{f': {text}' if text else ''}", flush=True)

    def begin(self, title: str) -> None:
        """Count a step. title: what the progress calls it."""
        self._number += 1
        self._title = title

    def choose_folder(self, name: str, base: Path, inputs: dict[str, str]) -> Path:
        """Return where a step is to make its run folder, and note it.

        The folder of before where the step was begun or done with the same inputs; else the first of BASE, BASE-2, ...
        that is free: what an earlier one holds took hours, and is nobody's to delete.
        """
        record, begun = self._read(name), self._read(f"{name}.folder")
        if begun is not None and begun["inputs"] == inputs | self._versions and not self._damage(record):
            return self.out / str(begun["folder"])
        places = [base, *(base.with_name(f"{base.name}-{number}") for number in range(2, 1000))]
        folder = next(place for place in places if not place.exists())
        if folder != base:
            self.say(f"{base} stays as it is; the new run is {folder}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._write(f"{name}.folder", {"folder": relative_to(folder, self.out), "inputs": inputs | self._versions})
        return folder

    def do(self, step: Step) -> None:
        """Do a step unless it is done and nothing has changed. Raises StepFailed."""
        record = self._read(step.name)
        changes = self._changes(step, record)
        if record is not None and not changes:
            self.say("done before, nothing has changed")
            return
        self.say("" if record is None else f"again, because {', '.join(changes)}")
        self._record_place(step.name).unlink(missing_ok=True)
        log, started, used = self.out / LOGS / f"{step.name}.log", time.monotonic(), _processor_seconds()
        code = run_logged(step.words, step.command, log, self.say)
        if code not in step.allowed:
            raise StepFailed(f"{step.name} {describe_end(code, log)} (see {log}; command: {step.command})")
        missing = [str(path) for path in step.outputs if not path.is_file()]
        if missing:
            raise StepFailed(f"{step.name} made no {', '.join(missing)}; see {log}")
        found = {
            "step": step.name,
            "command": step.command,
            "code": code,
            "seconds": round(time.monotonic() - started, 1),
            "processor_seconds": round(_processor_seconds() - used, 1),
            "inputs": step.inputs | self._versions,
            "outputs": {relative_to(path, self.out): hash_file(path) for path in step.outputs},
        }
        self._write(step.name, found)

    def _changes(self, step: Step, record: dict[str, Any] | None) -> list[str]:
        """Return what has changed since the step was done."""
        if record is None:
            return []
        before, now = record["inputs"], step.inputs | self._versions
        names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        known = {self.out / path for path in record["outputs"]}
        unknown = [f"{path} was not made" for path in step.outputs if path not in known]
        return [*(f"{name} has changed" for name in names), *self._damage(record), *unknown]

    def _damage(self, record: dict[str, Any] | None) -> list[str]:
        """Return which files of a finished step are not there as it made them."""
        found = []
        for path, digest in ({} if record is None else record["outputs"]).items():
            place = self.out / path
            if not place.is_file():
                found.append(f"{place} is gone")
            elif hash_file(place) != digest:
                found.append(f"{place} is not what it made")
        return found

    def _record_place(self, name: str) -> Path:
        return self.out / STEPS / f"{name}.json"

    def _write(self, name: str, record: dict[str, Any]) -> None:
        write_json(self._record_place(name), {"format": _FORMAT, **record})

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._record_place(name)
        if not path.is_file():
            return None
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return record if record["format"] == _FORMAT else None
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(f"{path} is damaged ({error!r}); delete it, and its step is done again") from error


def describe_code() -> str:
    """Return the last commit that changed the code, and whether the code was changed since."""
    return f"{find_commit(*CODE) or 'no checkout'}{' with changes' if is_dirty() else ''}"


def relative_to(path: Path, folder: Path) -> str:
    """Return a path below the folder, else one below the working directory or leading out of it."""
    place, inside = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return (place.relative_to(inside) if place.is_relative_to(inside) else Path(os.path.relpath(place))).as_posix()


def _processor_seconds() -> float:
    """Return the processor time of all commands that have ended, user and system: on a busy machine it tells more.

    Windows tells none: it is 0 there.
    """
    used = os.times()
    return used.children_user + used.children_system
