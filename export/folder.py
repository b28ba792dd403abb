"""A folder that appears as a whole or not at all, whatever kills the process that writes it."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from brainq_torch.lock import hold_lock
from brainq_torch.run_files import PARITY, BrainqError
from brainq_torch.series.rule import SERIES_RULE


class ExportFolderError(BrainqError):
    """A folder that an export may not write to."""


class FolderKind(NamedTuple):
    """What kind of folder is written.

    Attributes:
        name: In messages, with its article.
        flag: Names the folder on the command line.
        made: Returns the paths that an earlier command wrote into such a folder, and raises OSError, ValueError,
            KeyError or TypeError for another folder.
    """

    name: str
    flag: str
    made: Callable[[Path], set[str]]


def _exported(folder: Path) -> set[str]:
    return {PARITY, SERIES_RULE, *json.loads((folder / PARITY).read_text(encoding="utf-8"))["artefacts"]}


EXPORT = FolderKind("an export", "--out", _exported)


@contextmanager
def write_as_a_whole(target: Path, replace: bool, kind: FolderKind = EXPORT) -> Iterator[Path]:
    """Give a folder to write into; it becomes ``target`` when the block ends, and vanishes when the block raises.

    The folder is ``target`` + ".partial", on the same disk, so that a rename finishes it. What a killed export left
    there is removed, and said.

    Args:
        target: The folder.
        replace: It may be an earlier one of its kind, which goes only after the new one is whole.
        kind: What kind of folder it is.

    Raises:
        ExportFolderError: The target may not be written.
        LockedError: Another process is writing it.
    """
    partial, replaced = _beside(target, ".partial"), _beside(target, ".replaced.partial")
    with hold_lock(_beside(target, ".lock"), f"{target} is being written", kind.flag):
        _recover(target, replaced)
        check_target(target, replace, kind)
        _make_empty(partial)
        try:
            yield partial
            _flush(partial)
        except BaseException:
            shutil.rmtree(partial)
            raise
        _take_place(partial, target, replaced)


def check_target(target: Path, replace: bool, kind: FolderKind = EXPORT) -> None:
    """Raise ExportFolderError unless ``target`` is free, or is one of its kind and may be replaced."""
    another = f"name another folder with {kind.flag}"
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise ExportFolderError(f"{target} is not a folder; {another}")
    files = [path for path in target.rglob("*") if path.is_symlink() or not path.is_dir()]
    if not files:
        return
    if not replace:
        raise ExportFolderError(f"{target} exists; {another}, or replace it with --force")
    try:
        strangers = sorted({path.relative_to(target).as_posix() for path in files} - kind.made(target))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{target} is not {kind.name} ({error}), so --force does not replace it"
        raise ExportFolderError(f"{reason}; {another}") from error
    if strangers:
        what = f"{target} holds what is no part of {kind.name} ({', '.join(strangers[:5])}) and would be lost"
        raise ExportFolderError(f"{what}; move it away, or {another}")


def _beside(target: Path, suffix: str) -> Path:
    absolute = Path(os.path.abspath(target))  # a target such as "." has no name of its own
    return absolute.with_name(absolute.name + suffix)


def _recover(target: Path, replaced: Path) -> None:
    """Finish or undo what a kill between the two renames of a replacement left."""
    if not replaced.exists():
        return
    if target.exists():
        print(f"note: removing {replaced}, which a killed export left after replacing it", file=sys.stderr)
        shutil.rmtree(replaced)
    else:
        print(f"note: putting back {target}, which a killed export was about to replace", file=sys.stderr)
        replaced.rename(target)


def _make_empty(partial: Path) -> None:
    if partial.exists():
        print(f"note: removing {partial}, the unfinished folder of a killed export", file=sys.stderr)
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
    for path in sorted(folder.rglob("*")):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Force a file or a folder to the disk; Windows does so of no folder, and of no file that is open to be read."""
    is_folder = path.is_dir()
    with suppress(PermissionError) if is_folder else nullcontext():
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
