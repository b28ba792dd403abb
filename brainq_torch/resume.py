"""Whose run folder it is: one training at a time, which begins it, continues it, or leaves it as it was."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

from brainq_torch.lock import hold_lock
from brainq_torch.provenance import describe_environment
from brainq_torch.run import RunError, read_config
from brainq_torch.run_files import (
    CONFIG,
    ENVIRONMENT,
    LEAKAGE,
    LOG,
    MANIFEST,
    METRICS,
    PHANTOMS,
    SEARCH,
    write_json,
    write_text,
)

LOCK = "fit.lock"
_CONFIG_BEFORE = "config.before.yaml"
_BEGUN = frozenset(
    {
        CONFIG, ENVIRONMENT, LEAKAGE, LOG, MANIFEST, PHANTOMS, "checkpoints", "made_labels.npy", "pixels.npy",
        "tensorboard", "views.npy",
    }
)  # fmt: skip
"""What a training makes before its first validation."""

_MACHINES = frozenset(
    {
        "out", "data.root", "data.workers", "threads", "fast_malloc", "compile", "trainer.accelerator",
        "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.profiler",
    }
)  # fmt: skip
"""Options that belong to the machine: a run may go on elsewhere, and in another way of doing the same."""


def is_first_process() -> bool:
    """Tell whether this is the process that writes the run folder, or the only one."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]  # set when Lightning is imported


@contextmanager
def claim(out: Path, text: str, resume: bool) -> Iterator[bool]:
    """Own the run folder while the block runs: make it, or check that it is this run. Yields whether work is left.

    A training that fails before it has a manifest takes away what it made itself, so that the corrected command finds
    nothing in its way, and nothing else. ``text`` is the whole configuration as YAML. Raises RunError.
    """
    if not is_first_process():  # the first one owns it for all
        yield not (out / METRICS).exists()
        return
    made = [path for path in (out, *out.parents) if not path.exists()]
    if not (made or out.is_dir()):
        raise RunError(f"{out} is a file, and a run is a folder; name another with --out")
    try:
        with hold_lock(out / LOCK, f"{out} is being trained"):
            before = {path.name for path in out.iterdir()}
            anew = _may_begin_anew(out, text, resume)
            goes_on = MANIFEST in before and CONFIG in before and not anew
            begun = (out / CONFIG).read_bytes() if goes_on else b""
            try:
                yield _begin(out, text, resume, anew)
            except Exception:
                if not (out / MANIFEST).exists():
                    _remove({CONFIG, ENVIRONMENT, LEAKAGE, PHANTOMS, SEARCH} - before, out)
                elif goes_on and (out / CONFIG).read_bytes() != begun:  # it may name images that are not the run's
                    write_text(out / CONFIG, begun.decode())
                raise
    finally:
        with suppress(OSError):  # one is not empty
            for path in made:
                path.rmdir()


def _remove(names: set[str], out: Path) -> None:
    for path in (out / name for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _begin(out: Path, text: str, resume: bool, anew: bool) -> bool:
    """Write what a run begins with, or check that it was this run's. Returns False where the run is complete."""
    held = {path.name for path in out.iterdir() if path.suffix != ".partial"}
    ours = set(_BEGUN) if anew else {CONFIG, ENVIRONMENT}
    if not held - ours - {LOCK, _CONFIG_BEFORE, SEARCH}:  # a search knows its images
        _remove(ours - {CONFIG}, out)
        write_json(out / ENVIRONMENT, describe_environment())
        _keep_other_config(out, text)
    elif not (out / CONFIG).is_file():
        raise RunError(
            f"{out} is no run folder (no {CONFIG}, but {sorted(held - {LOCK})[:3]}); name another folder with --out"
        )
    elif not resume:
        raise RunError(f"{out} exists. Continue it with --resume, or name another folder with --out")
    else:
        _check_same(out, text)
    if left := not (out / METRICS).exists():  # a complete run keeps what it was made with
        write_text(out / CONFIG, text)
    return left


def _may_begin_anew(out: Path, text: str, resume: bool) -> bool:
    """Tell whether what lies there is made again: nothing was trained, and no resume goes on with what was prepared."""
    if not (out / CONFIG).is_file() or not (out / ENVIRONMENT).is_file():
        return False
    # A stage that ended before its first validation keeps no checkpoint, or a last.ckpt alone.
    return not any(out.glob("checkpoints/*/[!l]*.ckpt")) and not (resume and _is_config(out, text))


def _is_config(out: Path, text: str) -> bool:
    return (out / CONFIG).read_bytes() == text.encode()


def _keep_other_config(out: Path, text: str) -> None:
    """Move a configuration aside that nothing was trained by: it may be the user's own."""
    if (out / CONFIG).is_file() and not _is_config(out, text):
        (out / CONFIG).replace(out / _CONFIG_BEFORE)


def _check_same(out: Path, text: str) -> None:
    """Refuse to resume with another configuration than the run began with; run and images may have moved."""
    before, now = _flatten(read_config(out)), _flatten(yaml.safe_load(text))
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    names = sorted(name for name in changed - _MACHINES if not name.startswith("trainer.logger"))
    if names:
        changes = "; ".join(f"{name}: {before.get(name)!r} -> {now.get(name)!r}" for name in names[:5])
        raise RunError(
            f"{out} was begun with another configuration ({changes}). Resume it without --config or other flags, "
            "or train into another --out"
        )


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {name: leaf for key, value in tree.items() for name, leaf in _flatten(value, f"{prefix}.{key}").items()}
    return {prefix.lstrip("."): tree}
