"""The images of a configuration, grouped and split once for several trainings, and the folds that leave sources out."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from brainq_torch.data.dataset.manifest import ManifestRow, class_names, number_groups, read_manifest
from brainq_torch.run_files import CONFIG, LEAKAGE, MANIFEST, SEARCH, write_text
from tools.shared.command import CommandError

IMAGES = "images"
"""Below the folder: where the images' groups are found, once for all folds."""

_BEGUN = {IMAGES, LEAKAGE, MANIFEST, SEARCH}


@dataclass(frozen=True)
class Fold:
    """One training without ``sources``. name: of its files. manifest: its images, what is left out as Testing."""

    name: str
    sources: tuple[str, ...]
    manifest: tuple[ManifestRow, ...]


def check_begun(out: Path, text: str) -> None:
    """Refuse a folder that was begun with another configuration. text: of this one."""
    path = out / CONFIG
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise CommandError(f"{out} was begun with another configuration; name another folder with --out")


def check_folder(out: Path, text: str) -> None:
    """Refuse a folder of another configuration, or of something else."""
    check_begun(out, text)
    if out.exists() and not (out / CONFIG).is_file() and {each.name for each in out.rglob("*")} - _BEGUN:
        raise CommandError(f"{out} exists and holds something else; name another folder with --out")


def list_images(out: Path, parser: ArgumentParser, config: Namespace, text: str) -> list[ManifestRow]:
    """Find groups and splits of all images, once, and return them. text: of the configuration.

    Raises:
        ValueError: The images cannot be used; the folder is free again.
    """
    folder = out / IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    if not (out / CONFIG).is_file():  # written last: what is wrong with the images leaves the folder free
        data = parser.instantiate(config).data
        data.place(folder)
        try:
            data.prepare_manifest()
        except ValueError:
            _clear_images(out)
            raise
        write_text(out / CONFIG, text)
    return read_manifest(folder / MANIFEST)


def _clear_images(out: Path) -> None:
    """Remove what was found of images that cannot be used."""
    for name in _BEGUN - {IMAGES}:
        (out / IMAGES / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else is in there
        (out / IMAGES).rmdir()
        out.rmdir()


def make_folds(rows: Sequence[ManifestRow], wanted: Sequence[str] | None) -> list[Fold]:
    """Divide the images into folds; what is not left out trains or validates as it did.

    Args:
        rows: images with their sources, to train and to validate on.
        wanted: the folds, sources joined by +; None takes each source that can be left out, and says which cannot.

    Raises:
        CommandError: There is one source only, an unknown one is named, or nothing is left of a class.
    """
    sources = sorted({row.source for row in rows})
    if len(sources) < 2:
        raise CommandError(
            f"there is one source only ({sources[0]}): leaving it out leaves nothing; add another to data.sources, or "
            "let --pseudo K tell some apart by their looks"
        )
    folds = []
    for name in wanted or sources:
        parts = tuple(name.split("+"))
        unknown = sorted(set(parts) - set(sources))
        if unknown:
            raise CommandError(f"--leave-out names {unknown[0]}; the sources are {', '.join(sources)}")
        fold = Fold(f"without_{name}", parts, tuple(_leave_out(rows, parts)))
        lost = set(class_names(rows)) - {row.label for row in fold.manifest if row.split == "Training"}
        if lost and wanted:
            raise CommandError(f"{name} cannot be left out: no other source has images of {', '.join(sorted(lost))}")
        if lost:
            print(f"{name} is in every fold: no other source has images of {', '.join(sorted(lost))}", flush=True)
            continue
        folds.append(fold)
    if not folds:
        raise CommandError("no source can be left out: each alone has the images of a class; add sources of the same")
    return folds


def _leave_out(rows: Sequence[ManifestRow], sources: Sequence[str]) -> Iterator[ManifestRow]:
    """Make Testing of all images of some sources; copies of them elsewhere take no part."""
    groups = number_groups(rows)
    left_out = np.array([row.source in sources for row in rows])
    related = np.isin(groups, groups[left_out])
    for row, gone, kin in zip(rows, left_out.tolist(), related.tolist(), strict=True):
        if gone or not kin:
            yield replace(row, split="Testing") if gone else row
