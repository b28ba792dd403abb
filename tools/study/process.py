"""Runs one command of a study in a process of its own, its output in a log file."""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

PYTHON = (sys.executable, "-m")
"""What stands before a command's words."""

_SAY_SECONDS = 60


def run_logged(words: Sequence[str], title: str, log: Path, say: Callable[[str], None]) -> int:
    """Run a command to its end."""
    with log.open("wb") as output:
        output.write(f"{title}\n".encode())
        output.flush()
        process = subprocess.Popen(
            [*PYTHON, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(_SAY_SECONDS)
            say(_last_line(log)[:100] or "no output yet")
    except BaseException:
        process.kill()
        process.wait()
        raise


def describe_end(code: int, log: Path) -> str:
    """Return how a command ended, with the last line of its log that names an error."""
    lines = [line for line in log.read_text(errors="replace").splitlines()[1:] if line.strip()]
    wrong = [line for line in lines if "error" in line.lower()]
    ended = f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    return f"{ended}: {(wrong or lines or ['no message'])[-1].strip()}"


def _end_with_parent() -> None:
    """Have Linux end this process when the study is killed: nobody would know of it (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _last_line(log: Path) -> str:
    """Return the latest line, the title aside; a progress bar rewrites its own with carriage returns."""
    with log.open("rb") as file:
        file.readline()
        file.seek(max(file.tell(), log.stat().st_size - 4096))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "")
