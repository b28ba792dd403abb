"""Leave one source out: ``python -m tools.pseudo_sources --manifest RUN/manifest.csv --data DIR --out FOLDER``.

Public collections do not say which scanner a file came from. So the images are clustered by how they look, not by what
they show: grey levels of the head, sharpness and texture, border. Each cluster is a pseudo-source, and gets a manifest
in which it is the ``Testing`` part and nothing of it is trained on: ``fit --data.manifest FOLDER/without_0.csv`` then
measures how a recipe does on a source it has not seen. Copies of one image stay together.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.preprocessing import StandardScaler

from brainq_torch.data.dataset.load import load_pixels
from brainq_torch.data.dataset.manifest import (
    ManifestRow,
    class_names,
    manifest_folder,
    number_groups,
    read_manifest,
    verify_manifest,
    write_manifest,
)
from brainq_torch.data.leakage.check import grouped_split
from brainq_torch.data.pixels import PixelSpec
from tools.shared.command import CommandError, as_main, positive, seed_number

_PIXELS = PixelSpec(128, "stretch")
_AIR = 12  # grey levels up to here are no head
_BANDS = 16  # rings of the spectrum
_VAL_FRACTION = 0.15


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--manifest", required=True, metavar="CSV", help="the images, with their groups")
    parser.add_argument("--data", required=True, metavar="DIR", help="the folder that the manifest's paths are below")
    parser.add_argument("--sources", type=positive, default=4, metavar="K", help="how many to look for (default: 4)")
    parser.add_argument("--seed", type=seed_number, default=0, help="of clustering and validation part (default: 0)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="for the K manifests; must not exist")


def _run(options: argparse.Namespace) -> int:
    out, data = Path(options.out), Path(options.data)
    if out.exists():
        raise CommandError(f"{out} exists; name another folder with --out")
    rows = [row for row in read_manifest(Path(options.manifest)) if row.split != "Testing"]
    verify_manifest(data, rows)
    groups = number_groups(rows)
    pixels = load_pixels(manifest_folder(data, rows), _PIXELS)
    sources = find_sources(describe_looks(pixels), groups, options.sources, options.seed)
    manifests = [leave_out(rows, groups, sources == source, options.seed) for source in range(options.sources)]
    out.mkdir(parents=True)
    for source, manifest in enumerate(manifests):
        write_manifest(out / f"without_{source}.csv", manifest)
        counts = Counter(row.label for row in manifest if row.split == "Testing")
        told = ", ".join(f"{counts[name]} {name}" for name in class_names(rows))
        print(f"{out / f'without_{source}.csv'} leaves out {told}")
    return 0


def describe_looks(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Describe the look of every image, whatever it shows and however it is turned: (N, s, s) uint8 -> (N, features).

    Grey levels: 9 quantiles of what is no air, relative to the highest. Texture: the logarithm of the amplitude
    spectrum in 16 rings, relative to their mean. Border: mean and spread of the outermost pixels, the share of air.
    """
    side = pixels.shape[1]
    frequency = np.fft.fftfreq(side, 1 / side)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    ring = np.minimum(radius / (side / 2) * _BANDS, _BANDS).astype(int)  # what lies beyond is left out
    counts = np.bincount(ring.ravel())[:_BANDS]
    looks = []
    for image in pixels.astype(np.float64):
        head = image[image > _AIR]
        levels = np.quantile(head, np.linspace(0.1, 0.98, 9)) if head.size else np.ones(9)
        amplitude = np.abs(np.fft.fft2(image))
        bands = np.log(np.bincount(ring.ravel(), amplitude.ravel())[:_BANDS] / counts + 1.0)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        more = [border.mean(), border.std(), float((image <= _AIR).mean())]
        looks.append(np.concatenate([levels[:-1] / levels[-1], bands - bands.mean(), more]))
    return np.stack(looks)


def find_sources(looks: NDArray[np.float64], groups: NDArray[np.int64], count: int, seed: int = 0) -> NDArray[np.int64]:
    """Cluster looks with k-means; a group goes where most of it lies.

    Returns:
        (N,) int64, the largest source is 0.
    """
    if not 2 <= count <= len(np.unique(groups)):
        raise CommandError(f"--sources is {count}; allowed are 2 to {len(np.unique(groups))}, the number of groups")
    clusters = KMeans(count, n_init=10, random_state=seed).fit_predict(StandardScaler().fit_transform(looks))
    votes = np.zeros((groups.max() + 1, count), int)
    np.add.at(votes, (groups, clusters), 1)
    chosen = votes.argmax(axis=1)[groups]
    order = np.argsort(-np.bincount(chosen, minlength=count), kind="stable")
    return np.asarray(np.argsort(order)[chosen])


def name_looks(data: Path, rows: Sequence[ManifestRow], count: int, seed: int = 0) -> list[ManifestRow]:
    """Return the rows with pseudo-sources look_0, look_1, ... of the images below ``data``."""
    looks = describe_looks(load_pixels(manifest_folder(data, rows), _PIXELS))
    sources = find_sources(looks, number_groups(rows), count, seed)
    return [replace(row, source=f"look_{source}") for row, source in zip(rows, sources, strict=True)]


def leave_out(
    rows: Sequence[ManifestRow], groups: NDArray[np.int64], left_out: NDArray[np.bool_], seed: int = 0
) -> list[ManifestRow]:
    """Make a manifest whose Testing part is what is left out, with a new grouped validation part of the rest."""
    kept, classes = np.flatnonzero(~left_out), class_names(rows)
    labels = np.array([classes.index(rows[place].label) for place in kept])
    lost = sorted(set(range(len(classes))) - set(labels.tolist()))
    if lost:
        raise CommandError(f"a pseudo-source holds every image of {classes[lost[0]]}; give a larger --sources")
    validation = grouped_split(labels, groups[kept], _VAL_FRACTION, seed, classes)
    splits = np.full(len(rows), "Testing", object)
    splits[kept] = np.where(validation, "val", "Training")
    return [replace(row, split=str(split)) for row, split in zip(rows, splits, strict=True)]


main = as_main(_add_words, _run, formatter_class=argparse.RawDescriptionHelpFormatter)

if __name__ == "__main__":
    sys.exit(main())
