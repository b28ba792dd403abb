"""What Windows refuses and Linux allows, so that it is seen here, too."""

import builtins
import errno
import fcntl
import io
import os
import shutil


def _used_files():
    """Return the paths of all files that this process has open or mapped into memory."""
    held = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    paths = {os.readlink(link) for link in held if os.path.lexists(link)}
    with _OPEN("/proc/self/maps") as lines:
        return paths | {line.split(maxsplit=5)[5].rstrip("\n") for line in lines if "/" in line}


def _is_used(path):
    real = os.path.realpath(path)
    return any(used == real or used.startswith(real + os.sep) for used in _used_files() if os.path.isfile(used))


def _is_locked(path):
    with _OPEN("/proc/locks") as lines:
        inodes = {line.split()[5].rpartition(":")[2] for line in lines if "FLOCK" in line}
    return os.path.exists(path) and str(os.stat(path).st_ino) in inodes


def _open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *more, **named):
    is_written = not set(mode).isdisjoint("wax+")
    if is_written and not isinstance(file, int) and _is_locked(file):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(file))
    if "b" not in mode:
        encoding = "cp1252" if encoding in (None, "locale") else encoding
        newline = "\r\n" if is_written and newline is None else newline
    return _OPEN(file, mode, buffering, encoding, errors, newline, *more, **named)


def _open_low(path, *words, **named):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
    return _OPEN_LOW(path, *words, **named)


def _fsync(file):
    if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    return _FSYNC(file)


def _symlink(source, target, *words, **named):
    raise OSError(errno.EINVAL, "A required privilege is not held by the client", os.fspath(source), 1314, str(target))


def _refuse_used(change):
    def changed(*paths, **named):
        for path in filter(_is_used, paths):
            raise PermissionError(errno.EACCES, "The file is used by another process", os.fspath(path))
        return change(*paths, **named)

    return changed


_OPEN, _OPEN_LOW, _FSYNC = io.open, os.open, os.fsync


def refuse_as_windows(monkeypatch):
    """Refuse to flush what is open to be read, to open folders, to link, to write what is locked, and to remove or move
    what is open or mapped; take text for cp1252, and end lines with two signs, where nobody says otherwise."""
    for module in (io, builtins):
        monkeypatch.setattr(module, "open", _open)
    for name, function in {"open": _open_low, "fsync": _fsync, "symlink": _symlink}.items():
        monkeypatch.setattr(os, name, function)
    for name in ("replace", "rename", "unlink", "remove"):
        monkeypatch.setattr(os, name, _refuse_used(getattr(os, name)))
    monkeypatch.setattr(shutil, "_use_fd_functions", False)
