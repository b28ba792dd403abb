"""Carries out the steps of a study: each a command in a process of its own, not done twice, recorded beside its output.

``OUT/steps/NAME.json`` says what a step depended on and what it made, ``OUT/logs/NAME.log`` what it printed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from brainq_torch.run_files import BrainqError
from tools.command import CommandError, write_report
from tools.study.code_version import hash_code

PYTHON = (sys.executable, "-m")
"""What stands before a step's words."""

STEPS, LOGS, LOCK = "steps", "logs", "study.lock"
_FORMAT = 1
_PACKAGES = (
    "torch", "torchvision", "lightning", "numpy", "pillow", "onnx", "onnxruntime", "onnx2tf", "ai-edge-litert",
    "ai-edge-quantizer",
)  # fmt: skip
_POLL_SECONDS = 0.5
_SAY_SECONDS = 60
_LOCK_SECONDS = 10
"""A killed study's command takes a moment to end with it."""


class StudyError(BrainqError):
    """A study folder that cannot be worked in."""


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
        return format_command(self.words)

    def depends_on(self) -> dict[str, str]:
        """Return everything whose change makes the step run again."""
        return {**self.inputs, "code": hash_code(self.words[0]), "packages": _versions()}


class Workshop:
    """The study folder while one process works in it.

    total: number of steps, for the progress. say: where lines of progress go.
    """

    def __init__(self, out: Path, total: int, say: Callable[[str], None]) -> None:
        self.out, self.total, self._say = out, total, say
        self._number, self._title, self._start = 0, "begin", time.monotonic()
        self._lock: IO[bytes] | None = None
        for name in (STEPS, LOGS):
            (out / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other studies out, also while a command that a killed study began still runs. Raises StudyError."""
        with (self.out / LOCK).open("wb") as lock:
            deadline = time.monotonic() + _LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise StudyError(
                            f"{self.out} is being worked in by another study, or by a command that an ended one "
                            "began; wait for it, or name another folder with --out"
                        ) from error
                    time.sleep(_POLL_SECONDS)
            self._lock = lock
            try:
                yield
            finally:
                self._lock = None

    def say(self, text: str) -> None:
        """Print a line of progress: step k of n, elapsed, which step, text."""
        elapsed = _clock(time.monotonic() - self._start)
        self._say(f"[{self._number}/{self.total}] {elapsed} {self._title}{f': {text}' if text else ''}")

    def begin(self, title: str) -> None:
        """Count a step. title: what the progress calls it."""
        self._number += 1
        self._title = title

    def choose_folder(self, name: str, make: Callable[[Path], Step], base: Path) -> Path:
        """Return where a step that makes a run folder is to make it, and note it.

        The folder of before where the step was begun or done with the same inputs; else the first of BASE, BASE-2, ...
        that is free: what an earlier one holds took hours, and is nobody's to delete.
        """
        note = self.out / STEPS / f"{name}.folder.json"
        begun = _read_json(note)
        if begun is not None:
            folder = self._place(begun["folder"])
            step, record = make(folder), self.recorded(name)
            if begun["inputs"] == step.depends_on() and (record is None or not self.changes(step, record)):
                return folder
        places = [base, *(base.with_name(f"{base.name}-{number}") for number in range(2, 1000))]
        folder = next(place for place in places if not place.exists())
        if folder != base:
            self.say(f"{base} stays as it is; the new run is {folder}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        note_inputs = make(folder).depends_on()
        write_report(note, {"format": _FORMAT, "folder": relative_to(folder, self.out), "inputs": note_inputs})
        return folder

    def recorded(self, name: str) -> dict[str, Any] | None:
        """Return the record of a finished step, None where it was never finished."""
        return _read_json(self.out / STEPS / f"{name}.json")

    def changes(self, step: Step, record: dict[str, Any] | None) -> list[str]:
        """Return what has changed since the step was done; nothing where it need not be done again."""
        if record is None:
            return ["it was not done yet"]
        before, now = record["inputs"], step.depends_on()
        found = [
            f"{name} has changed" for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)
        ]
        for path, digest in record["outputs"].items():
            place = self._place(path)
            if not place.is_file():
                found.append(f"{place} is gone")
            elif hash_file(place) != digest:
                found.append(f"{place} is not what it made")
        known = {self._place(path) for path in record["outputs"]}
        return found + [f"{path} was not made" for path in step.outputs if path not in known]

    def do(self, step: Step) -> int:
        """Do the step unless it is done and nothing has changed. Returns its exit code. Raises StepFailed."""
        record = self.recorded(step.name)
        changes = self.changes(step, record)
        if record is not None and not changes:
            self.say("done before, nothing has changed")
            return int(record["code"])
        self.say("" if record is None else f"again, because {', '.join(changes)}")
        (self.out / STEPS / f"{step.name}.json").unlink(missing_ok=True)
        started, used = time.monotonic(), _processor_seconds()
        code = self._run(step)
        missing = [str(path) for path in step.outputs if not path.is_file()]
        if code not in step.allowed or missing:
            raise StepFailed(self._reason(step, code, missing))
        write_report(
            self.out / STEPS / f"{step.name}.json",
            {
                "format": _FORMAT,
                "step": step.name,
                "command": step.command,
                "code": code,
                "seconds": round(time.monotonic() - started, 1),
                "processor_seconds": round(_processor_seconds() - used, 1),
                "inputs": step.depends_on(),
                "outputs": {relative_to(path, self.out): hash_file(path) for path in step.outputs},
            },
        )
        return code

    def _run(self, step: Step) -> int:
        """Run the command to its end, its output into the log, its latest line now and then to the progress."""
        log = self.out / LOGS / f"{step.name}.log"
        with log.open("wb") as output:
            output.write(f"{step.command}\n".encode())
            output.flush()
            process = subprocess.Popen(
                [*PYTHON, *step.words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # The lock stays with the command should this process be killed and the command not.
                pass_fds=() if self._lock is None else (self._lock.fileno(),),
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        said = time.monotonic()
        try:
            while not _has_ended(process):
                if time.monotonic() - said > _SAY_SECONDS:
                    said = time.monotonic()
                    self.say(_last_line(log)[:100] or "no output yet")
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process.returncode

    def _reason(self, step: Step, code: int, missing: Sequence[str]) -> str:
        log = self.out / LOGS / f"{step.name}.log"
        if code in step.allowed:
            return f"{step.name} made no {', '.join(missing)}; see {log}"
        said = _last_error(log)
        ended = f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        return f"{step.name} {ended}: {said} (see {log}; command: {step.command})"

    def _place(self, path: str) -> Path:
        return self.out / path if not os.path.isabs(path) else Path(path)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Wait for it a moment."""
    try:
        process.wait(timeout=_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def format_command(words: Sequence[str]) -> str:
    """Return a step's words as a user would type them."""
    return shlex.join(["python", "-m", *words])


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def relative_to(path: Path, folder: Path) -> str:
    """Return a path below the folder, else one below the working directory or leading out of it."""
    place = Path(os.path.abspath(path))
    inside = Path(os.path.abspath(folder))
    return (place.relative_to(inside) if place.is_relative_to(inside) else Path(os.path.relpath(place))).as_posix()


def _processor_seconds() -> float:
    """Return the processor time of all commands that have ended, user and system: on a busy machine it tells more."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _end_with_parent() -> None:
    """Have Linux end this process when the study is killed: nobody would know of it (prctl(2), PR_SET_PDEATHSIG)."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _last_line(log: Path) -> str:
    """Return the latest line, the command aside; a progress bar rewrites its own with carriage returns."""
    with log.open("rb") as file:
        file.readline()
        file.seek(max(file.tell(), log.stat().st_size - 4096))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "")


def _last_error(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines()[1:] if line.strip()]
    wrong = [line for line in lines if "error" in line.lower()]
    return (wrong or lines or ["no message"])[-1].strip()


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            return None
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{path} is damaged ({error!r}); delete it, and its step is done again") from error
    found: dict[str, Any] = data
    return found


@cache
def _versions() -> str:
    """Return the versions of the packages that results depend on."""

    def find(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "none"

    return " ".join(f"{name} {find(name)}" for name in _PACKAGES)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
