"""Names of the files of runs and exports, and how files are written: complete or not at all. Standard library only."""

import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHECKPOINT = "model.ckpt"
CONFIG = "config.yaml"
MANIFEST = "manifest.csv"
METRICS = "metrics.json"
DOUBT = "validation_doubt"  # an entry of it
ENVIRONMENT = "environment.json"
LOG = "log.csv"
LEAKAGE, SEARCH = "leakage.json", "search.npy"
"""How far the held-out splits leak, until ``metrics.json`` says it; what a search for copies has found so far."""

ABOUT_BUNDLE = "bundle.json"
"""In a clinic's folder: its model files, and by what it answers a series."""

PHANTOMS = "phantoms"
"""Sub-folder of a run whose data root is ``phantom``: the images it wrote and trained on."""

PARITY = "parity.json"
"""In an export folder: how every file compares with what it was made from. Written last."""


PICTURE = "picture of brainq_torch"
"""What a PNG of ours says in its first bytes, so that the next one may replace it."""

_COMMAND = re.compile(r"\bpython -m (?:tools\.|brainq_torch\.|(?=export\b))(\w+)")
_BINARY = re.compile(rb"[\0-\x08]")  # no text has those
_OURS = Path(__file__).parents[1]


def find_config(word: str | Path) -> Path:
    """Return the configuration that a path or, where there is no such file, a name among ours means."""
    named = (Path(word), _OURS / "configs" / f"{word}.yaml", _OURS / word)
    return next((path for path in named if path.is_file()), Path(word))


def named_config(word: str | Path, study: bool = False) -> Path:
    """Return what ``find_config`` finds. Raises FileNotFoundError, naming ours (study: its own)."""
    path = find_config(word)
    if not path.is_file():
        names = sorted(one.stem for one in (_OURS / "configs").glob("*.yaml"))
        ours = ", ".join(name for name in names if name.startswith("study") == study)
        raise FileNotFoundError(f"there is no configuration {path}; give a YAML file, or a name: {ours}")
    return path


def find_run_fault(folder: Path) -> str:
    """Return why a folder is no finished run, and what to do; empty where it looks like one."""
    if not folder.is_dir():
        made = "python -m tools.restore makes one of a float .tflite" if folder.is_file() else "check the path"
        return f"{folder} is no folder; give a run folder, as python -m brainq_torch.fit makes it; {made}"
    if not (folder / CONFIG).is_file():
        return f"{folder} is no run folder: it has no {CONFIG}"
    if not (folder / CHECKPOINT).is_file():
        return f"{folder} is not finished: it has no {CHECKPOINT}. Continue it with {resume_command(folder)}"
    return ""


def home_of(model: Path) -> Path:
    """Return the folder of what belongs to a model: of a run and what is exported in it the run's, else the file's."""
    folder = (model if model.is_dir() else model.parent).absolute()
    alone = (folder / CHECKPOINT).is_file() or (folder / ABOUT_BUNDLE).is_file()
    return folder.parent if not alone and (folder.parent / CHECKPOINT).is_file() else folder


def validation_doubt(model: Path) -> str:
    """Return why a model's validation part says too much of it, as ``tools.restore`` noted; empty where it did not."""
    try:
        return str(json.loads((home_of(model) / METRICS).read_text(encoding="utf-8"))[DOUBT])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def format_command(*words: object) -> str:
    """Return what a user types to run ``python -m`` with these words, quoted where a shell needs it."""
    return as_typed(join_words("python", "-m", *words))


def as_typed(text: str) -> str:
    """Return text with each ``python -m tools.evaluate`` of ours as ``brainq evaluate`` where the user typed that."""
    if Path(sys.argv[0]).stem != "brainq":
        return text
    return _COMMAND.sub(lambda found: f"brainq {found[1].replace('_', '-')}", text)


def join_words(*words: object) -> str:
    """Return a command's words as the shell of this system takes them apart."""
    if os.name == "nt":
        from subprocess import list2cmdline  # 10 ms, for nobody else

        return list2cmdline(map(str, words))
    return shlex.join(map(str, words))


def resume_command(run: Path) -> str:
    """Return what a user types to continue a training."""
    return format_command("brainq_torch.fit", "--resume", "--out", run)


class BrainqError(ValueError):
    """What a user can cause: a command ends with the message in one line and this exit code."""

    exit_code = 2


def holds_text(path: Path) -> bool:
    """Tell from its first bytes whether a file is text, as all of ours are but models, images and arrays."""
    with path.open("rb") as file:
        return not _BINARY.search(file.read(1024))


def is_our_picture(path: Path) -> bool:
    """Tell from its first bytes whether a file is a PNG that we drew, or one of Matplotlib's, as our older ones are."""
    with path.open("rb") as file:
        head = file.read(1024)
    return b"of brainq_torch" in head or b"Matplotlib version" in head


@contextmanager
def atomic_path(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Give a file beside ``path`` to write; flushed, it takes its place at a good end, and ``keep`` gets the old one.

    Beside, not in the folder for temporary files: from another file system it would be copied over the old file. A link
    stays one. What is no file, such as a pipe or /dev/stdout, is given itself: as root, we would replace the device.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    with partial.open("r+b") as file:  # to write: Windows flushes no other
        os.fsync(file.fileno())
    if keep is not None and path.exists():
        os.replace(path, keep)
    os.replace(partial, path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the place of ``path``, absent or empty, when the block ends well."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a writer that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial)
        raise
    if path.exists():
        path.rmdir()
    os.replace(partial, path)


def write_json(path: Path, data: Any) -> None:
    """Write JSON, complete or not at all. Raises ValueError for NaN and infinity, which are no JSON."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, on every system the same bytes, complete or not at all."""
    with atomic_path(path) as partial:
        partial.write_bytes(text.encode())


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
