"""LightningDataModule: images decoded once, kept as bytes, batched, augmented reproducibly."""

import gc
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from brainq_torch.data.augment.appearance import StyleMixing
from brainq_torch.data.augment.geometry import Augmentation
from brainq_torch.data.classes import CLASSES, require_four
from brainq_torch.data.dataset.load import load_pixels
from brainq_torch.data.dataset.manifest import (
    ManifestRow,
    class_names,
    manifest_folder,
    read_manifest,
    verify_manifest,
    write_manifest,
)
from brainq_torch.data.dataset.sources import ImageSet, Source, data_root
from brainq_torch.data.decoded import MADE, Batch, PixelDataset, make_generator, make_sampler, to_input
from brainq_torch.data.leakage.check import LeakCheck, read_leakage
from brainq_torch.data.leakage.groups import EACH_ITS_OWN
from brainq_torch.data.leakage.splits import SPLITS, RunSplits, SplitPlan, adopt_splits, check_rows
from brainq_torch.data.pixels import SEARCH_PIXELS, PixelSpec
from brainq_torch.data.ranges import Count, Fraction, Natural, Seed, Share, Threads
from brainq_torch.data.synthesis.counterfactual import Counterfactual, make_counterfactuals
from brainq_torch.data.synthesis.phantom import write_phantoms
from brainq_torch.data.views import make_views
from brainq_torch.run_files import LEAKAGE, MANIFEST, PHANTOMS, SEARCH, atomic_path, write_json


class ImageDataModule(L.LightningDataModule):
    """A folder of class folders as training and validation batches.

    Every image is decoded and resized once into ``pixels.npy`` in the run folder (N * size * size bytes: 286 MB for
    5708 images at 224 pixels), which all processes map into memory; an epoch decodes nothing. The file is removed when
    the run is complete.

    Args:
        out: the run folder.
        seed: of the split, the order and the augmentation.
        root: folder with class folders, or with Training and Testing above them; ``phantom`` writes synthetic images.
        classes: what is told apart: ``auto`` takes the class folders that are there, a list needs images of each; names
            that mean glioma, meningioma, notumor or pituitary become these.
        class_map: the class that a folder's images are of, such as ``{HGG: glioma, LGG: glioma}``; others mean their
            own name.
        sources: several collections, hospitals or scanners below ``root`` (default: the working directory), in place
            of the one folder; manifest.csv says where each image comes from, metrics.json what each source scores.
        size: side of the network's square input in pixels.
        fit: how images come to that size: ``stretch`` both sides, ``pad`` with black, or ``head``, padded likewise but
            cropped to the head first.
        split: how the validation part is drawn when the folder has none of its own: ``grouped`` keeps copies, slices
            of one head and images of one patient together, ``stratified`` does not.
        val_fraction: share of the training images to validate on.
        groups: what belongs together: a CSV with columns path and group. Without it and ``group_pattern``: the
            patients of DICOM and figshare files, else (or where each has about one image) what a search for
            near-duplicates finds.
        group_pattern: regular expression whose first parenthesis is the group in a path.
        manifest: a manifest.csv whose splits and groups are taken over as they are, instead of drawing any.
        batch_size: images per step and process.
        balance: ``class`` shows every class alike in an epoch, ``source`` within it every source, too, small ones at
            most 10 times, a number this share of other sources than the largest; ``none`` shows every image once.
        augmentation: changes of training images' geometry and brightness.
        style: changes of how training images look, as if from other scanners.
        views: how many changed versions of each training image are made, once, and trained on in turn, one an epoch; 0
            changes them anew in every epoch. They are the same for every seed, so that runs can share what a teacher
            says to them (``ViewTeacher``); N * size * size bytes each, in the run folder until the run is complete.
        counterfactual: images made from the training images, and added to them.
        phantoms_per_class: synthetic training images per class for root ``phantom``; a third as many are made for
            testing.
        workers: loader processes; 0 is fastest where batches come from memory.
    """

    def __init__(
        self,
        out: str,
        seed: Seed = 0,
        root: str = "phantom",
        classes: Literal["auto"] | list[str | bool | int] = "auto",
        class_map: dict[str, str] = {},  # noqa: B006 - never changed
        sources: list[Source] = [],  # noqa: B006 - never changed
        size: int = 224,
        fit: Literal["stretch", "pad", "head"] = "stretch",
        split: Literal["grouped", "stratified"] = "grouped",
        val_fraction: Fraction = 0.2,
        groups: str = "",
        group_pattern: str = "",
        manifest: str = "",
        batch_size: Count = 32,
        balance: Literal["none", "class", "source"] | Share = "none",
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - frozen
        style: StyleMixing = StyleMixing(),  # noqa: B008 - frozen
        views: Natural = 0,
        counterfactual: Counterfactual = Counterfactual(),  # noqa: B008 - frozen
        phantoms_per_class: Count = 150,
        workers: Threads = 0,
    ) -> None:
        super().__init__()
        if manifest and (groups or group_pattern):
            raise ValueError("data.manifest has the groups in it; leave out data.groups and data.group_pattern")
        self.seed, self.root, self.manifest, self.balance = seed, data_root(root, sources), manifest, balance
        self.images, self.pixels = ImageSet(classes, class_map, tuple(sources)), PixelSpec(size, fit)
        if self.root == "phantom" and not (groups or group_pattern):
            group_pattern = EACH_ITS_OWN  # each is drawn anew: a search would find nothing
        self.plan = SplitPlan(split, val_fraction, seed, groups, group_pattern)
        self.batch_size, self.workers = batch_size, workers
        self.augmentation, self.phantoms_per_class = augmentation, phantoms_per_class
        self.style, self.views, self.counterfactual = style, views, counterfactual
        self.place(Path(out))

    def place(self, out: Path) -> None:
        """Say in which folder everything is written."""
        self.out, self.stage_index, self.batches_per_epoch = out, 0, 0
        self.datasets: dict[str, PixelDataset] = {}
        self._leakage, self._search, self._made_labels = out / LEAKAGE, out / SEARCH, out / "made_labels.npy"
        self._views = out / "views.npy"

    @property
    def folder(self) -> Path:
        """Folder that the manifest's paths are relative to."""
        return self.out / PHANTOMS if self.root == "phantom" else Path(self.root)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in label order: the manifest's, or before there is one those that it will have."""
        if (self.out / MANIFEST).exists():
            return class_names(read_manifest(self.out / MANIFEST))
        if self.root == "phantom":
            return CLASSES
        return self.images.find_classes(self.folder)

    @property
    def cache(self) -> Path:
        """(N, size, size) uint8 in manifest order, and after them the (M,) made for training, labels beside."""
        return self.out / "pixels.npy"

    @property
    def leakage(self) -> dict[str, LeakCheck]:
        """How far each held-out split leaks, as ``prepare_data`` found it."""
        return read_leakage(self._leakage)

    def discard(self) -> None:
        """Remove what only an unfinished run needs: the decoded images, and the leak check that metrics.json holds."""
        for dataset in self.datasets.values():
            del dataset.pixels
        self.trainer = None
        self.__dict__.pop("kept_views", None)
        gc.collect()  # of the trainer's loops: Windows removes no file that is still mapped
        for path in (self.cache, self._leakage, self._search, self._made_labels, self._views):
            path.unlink(missing_ok=True)

    def prepare_data(self) -> None:
        """Write the manifest and decode the images, once, on the first process only.

        Raises:
            DataFolderError: The folder cannot be used.
            GroupError: The groups asked for do not fit it.
            ManifestError: A resumed run's images have changed, or do not fit the manifest asked for.
        """
        pixels = self.prepare_manifest()
        if not self.cache.exists():
            rows = read_manifest(self.out / MANIFEST)
            if pixels is None or self.pixels != SEARCH_PIXELS:
                pixels = load_pixels(manifest_folder(self.folder, rows), self.pixels)
            if self.counterfactual.share:
                pixels = self._add_made(pixels, rows)
            with atomic_path(self.cache) as partial, partial.open("wb") as file:
                np.save(file, pixels)
        if self.views and not self._views.exists():
            self.setup("fit")
            make_views(self._views, self.datasets["Training"], self.views, self.batch_size, self.change)

    def prepare_manifest(self) -> NDArray[np.uint8] | None:
        """Write the leak check, then the manifest: where that is, the other is, and is its own. Or check what is there.

        Returns:
            A new manifest's images as ``SEARCH_PIXELS``, (N, size, size) uint8.
        """
        manifest = self.out / MANIFEST
        if self.root == "phantom" and not self.folder.exists():
            count = self.phantoms_per_class
            write_phantoms(self.folder, count, max(1, count // 3), self.seed, self.pixels.size)
        if manifest.exists():
            verify_manifest(self.folder, read_manifest(manifest))
            if not self._leakage.exists():  # a finished run that is measured anew
                self._write_leakage(check_rows(self.folder, read_manifest(manifest), self._search))
            return None
        try:
            splits = self._split_images()
        except Exception:  # a kill keeps what was found; what the user must correct leaves nothing in the way
            self._search.unlink(missing_ok=True)
            raise
        self._write_leakage(splits)
        with atomic_path(manifest) as partial:
            write_manifest(partial, splits.rows)
        return splits.pixels

    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch, (N, 1, H, W) float32 in [-1, 1], in geometry and looks, as training does."""
        return self.style(self.augmentation(images, generator), generator)

    @cached_property
    def kept_views(self) -> NDArray[np.uint8]:
        """The kept versions of the images, (views, N, size, size) uint8, in the order of ``Batch.rows``."""
        return np.asarray(np.load(self._views, mmap_mode="r"))

    def _add_made(self, pixels: NDArray[np.uint8], rows: Sequence[ManifestRow]) -> NDArray[np.uint8]:
        """Append the images made from the training part, and write their labels."""
        training = np.array([row.split == "Training" for row in rows])
        require_four(self.classes, "data.counterfactual")
        labels = np.array([CLASSES.index(row.label) for row in rows])
        made = make_counterfactuals(pixels[training], labels[training], self.counterfactual, self.seed)
        np.save(self._made_labels, made.labels)
        return np.concatenate([pixels, made.pixels])

    def _write_leakage(self, splits: RunSplits) -> None:
        write_json(self._leakage, {split: check.to_json() for split, check in splits.leakage.items()})

    def _split_images(self) -> RunSplits:
        if self.manifest:
            found = self.images.scan(self.folder, verify=False)
            return adopt_splits(found, Path(self.manifest), self._search)
        found = self.images.scan(self.folder)
        print(found.report(), flush=True)
        return self.plan.split_images(found, self._search)

    def setup(self, stage: str) -> None:
        """Map the decoded images and list the rows of each split."""
        rows = read_manifest(self.out / MANIFEST)
        classes, pixels = class_names(rows), np.load(self.cache, mmap_mode="r")
        made = np.load(self._made_labels) if self.counterfactual.share else np.empty(0, np.int64)
        if pixels.shape != (len(rows) + len(made), self.pixels.size, self.pixels.size):
            raise ValueError(f"{self.cache} is {pixels.shape} for {len(rows) + len(made)} images; delete it and resume")
        labels = np.concatenate([np.array([classes.index(row.label) for row in rows]), made])
        splits = np.array([row.split for row in rows] + ["Training"] * len(made))
        origins = [row.source for row in rows] + [MADE] * len(made)
        self.source_names, sources = np.unique(origins, return_inverse=True)
        self.datasets = {name: PixelDataset(pixels, labels, np.flatnonzero(splits == name), sources) for name in SPLITS}

    def class_counts(self) -> Tensor:
        """Return how many training images each class has, (class_count,) int64."""
        dataset = self.datasets["Training"]
        return torch.bincount(torch.from_numpy(dataset.labels[dataset.rows]), minlength=len(self.classes))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return shuffled batches; the order depends on the seed, the stage and the epoch alone."""
        return self._loader("Training", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return validation batches in manifest order."""
        return self._loader("val", shuffle=False)

    def _loader(self, split: str, shuffle: bool) -> DataLoader[Batch]:
        trainer = self._attached()
        place = {"num_replicas": trainer.world_size, "rank": trainer.global_rank}
        seed, balance = self.seed + 1000 * self.stage_index, self.balance if shuffle else "none"
        least = self.batches_per_epoch * self.batch_size * trainer.world_size if shuffle else 0
        dataset = self.datasets[split].repeated(least)
        sampler = make_sampler(dataset, balance, self.source_names, shuffle=shuffle, seed=seed, **place)
        return DataLoader(
            dataset,
            self.batch_size,
            sampler=sampler,
            drop_last=shuffle and len(sampler) % self.batch_size == 1,  # BatchNorm cannot train on a single image
            num_workers=self.workers,
            collate_fn=_keep,  # type: ignore[arg-type]  # torch types __getitem__, not __getitems__
            persistent_workers=self.workers > 0,
        )

    def _attached(self) -> L.Trainer:
        if self.trainer is None:
            raise RuntimeError("attach the data module to a Trainer first")
        return self.trainer

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale the pixels; change them when training, by a draw from seed, stage, epoch, batch and process."""
        trainer = self._attached()
        if trainer.training and self.views:
            view = trainer.current_epoch % self.views
            kept = torch.from_numpy(self.kept_views[view, batch.rows.cpu().numpy()])
            return batch._replace(images=to_input(kept.to(batch.images.device)), view=view)
        images = to_input(batch.images)
        if trainer.training:
            place = [self.seed, self.stage_index, trainer.current_epoch, int(batch.rows[0]), trainer.global_rank]
            images = self.change(images, make_generator(place))
        return batch._replace(images=images)


def _keep(batch: Batch) -> Batch:
    """Collate nothing: the dataset already made a batch."""
    return batch
