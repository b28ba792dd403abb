"""A folder that appears as a whole or not at all, whatever kills the process that writes it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from brainq_torch.lock import LockedError, hold_lock

PARITY = "parity.json"
"""Written last; a folder without it is no export."""


class ExportFolderError(ValueError):
    """A folder that an export may not write to."""


@contextmanager
def write_as_a_whole(target: Path, replace: bool, say: Callable[[str], None]) -> Iterator[Path]:
    """Give a folder to write into; it becomes ``target`` when the block ends, and vanishes when the block raises.

    The folder is ``target`` + ".partial", on the same disk, so that a rename finishes it. What a killed export left
    there is removed, and said. replace: ``target`` may be an earlier export; it goes only after the new one is whole.
    Raises ExportFolderError when the target may not be written, or another process is writing it.
    """
    partial, replaced = _beside(target, ".partial"), _beside(target, ".replaced.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with hold_lock(_beside(target, ".lock")):
            _recover(target, replaced, say)
            check_target(target, replace)
            _make_empty(partial, say)
            try:
                yield partial
                _flush(partial)
            except BaseException:
                shutil.rmtree(partial)
                raise
            _take_place(partial, target, replaced)
    except LockedError as error:
        raise ExportFolderError(
            f"another export is writing {target} ({error}); wait for it, or use another --out"
        ) from error


def check_target(target: Path, replace: bool) -> None:
    """Raise ExportFolderError unless ``target`` is free, or is an export and may be replaced."""
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise ExportFolderError(f"{target} is not a folder; name another with --out")
    names = {path.name for path in target.iterdir()}
    if not names:
        return
    if not replace:
        raise ExportFolderError(f"{target} exists; name another folder with --out, or replace it with --force")
    strangers = sorted(names - _exported(target))
    if strangers:
        raise ExportFolderError(
            f"{target} holds what no export made ({', '.join(strangers[:5])}) and would be lost; "
            "move it away, or name another folder with --out"
        )


def _exported(target: Path) -> set[str]:
    """Return the names that an earlier export wrote into the folder, or raise ExportFolderError where it made none."""
    try:
        return {PARITY, *json.loads((target / PARITY).read_text(encoding="utf-8"))["artefacts"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportFolderError(
            f"{target} is not an export (no readable {PARITY}), so --force does not replace it; "
            "name another folder with --out"
        ) from error


def _beside(target: Path, suffix: str) -> Path:
    absolute = Path(os.path.abspath(target))  # a target such as "." has no name of its own
    return absolute.with_name(absolute.name + suffix)


def _recover(target: Path, replaced: Path, say: Callable[[str], None]) -> None:
    """Finish or undo what a kill between the two renames of a replacement left."""
    if not replaced.exists():
        return
    if target.exists():
        say(f"removing {replaced}, which a killed export left after replacing it")
        shutil.rmtree(replaced)
    else:
        say(f"putting back {target}, which a killed export was about to replace")
        replaced.rename(target)


def _make_empty(partial: Path, say: Callable[[str], None]) -> None:
    if partial.exists():
        say(f"removing {partial}, the unfinished folder of a killed export")
        shutil.rmtree(partial)
    partial.mkdir()


def _take_place(partial: Path, target: Path, replaced: Path) -> None:
    """Rename the whole new folder to the target; an old one is moved aside first and removed last."""
    if target.exists():
        target.rename(replaced)
    partial.rename(target)
    _sync(target.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def _flush(folder: Path) -> None:
    """Force every file to the disk before the rename that declares them whole."""
    for path in sorted(folder.iterdir()):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
