import csv

import lightning as L
import numpy as np
import pytest
import torch

from brainq_torch.data import datamodule
from brainq_torch.data.augment.geometry import Augmentation
from brainq_torch.data.datamodule import ImageDataModule
from brainq_torch.data.dataset.manifest import read_manifest
from brainq_torch.data.dataset.sources import Source
from brainq_torch.data.decoded import make_generator, make_sampler
from brainq_torch.data.reading.image import read_grey
from brainq_torch.data.synthesis.counterfactual import Counterfactual, CounterfactualImages
from tests.support.windows import refuse_as_windows


class _Recorder(L.LightningModule):
    """Trains nothing; keeps every batch it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append((self.current_epoch, batch))
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _data(phantoms, out, **options):
    out.mkdir(exist_ok=True)
    return ImageDataModule(str(out), root=str(phantoms), size=32, batch_size=8, **options)


def _record(data, epochs=1):
    recorder = _Recorder()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", use_distributed_sampler=False, num_sanity_val_steps=0, **quiet
    )
    trainer.fit(recorder, datamodule=data)
    return recorder


def test_each_image_is_seen_once_an_epoch_and_in_another_order(phantoms, tmp_path):
    recorder = _record(_data(phantoms, tmp_path / "run", split="stratified"), epochs=2)
    orders = [torch.cat([b.rows for epoch, b in recorder.trained if epoch == wanted]).tolist() for wanted in (0, 1)]
    rows = read_manifest(tmp_path / "run" / "manifest.csv")
    training = [i for i, row in enumerate(rows) if row.split == "Training"]
    # one image left over is dropped from an epoch: BatchNorm cannot train on a batch of one
    assert len(training) % 8 == 1
    for order in orders:
        assert len(set(order)) == len(order) == len(training) - 1
        assert set(order) < set(training)
    assert orders[0] != orders[1]


def test_validation_images_are_not_changed(phantoms, tmp_path):
    data = _data(phantoms, tmp_path / "run", augmentation=Augmentation(flip=1))
    batch = _record(data).validated[0]
    rows = read_manifest(tmp_path / "run" / "manifest.csv")
    first = read_grey(phantoms / rows[int(batch.rows[0])].path).pixels
    assert np.array_equal(batch.images[0, 0].numpy() * 128 + 128, first)


def test_training_images_are_changed_reproducibly(phantoms, tmp_path):
    one, other = (_record(_data(phantoms, tmp_path / name, seed=3)).trained for name in ("one", "other"))
    assert all(torch.equal(a.images, b.images) for (_, a), (_, b) in zip(one, other, strict=True))
    plain = _record(_data(phantoms, tmp_path / "plain", seed=3, augmentation=Augmentation(0, 0, 0, 0, 0, 0))).trained
    assert not torch.equal(plain[0][1].images, one[0][1].images)


def test_kept_views_come_back_in_turn_and_are_the_same_for_every_seed(phantoms, tmp_path, monkeypatch):
    refuse_as_windows(monkeypatch)  # to move or remove a mapped file
    seen = {}
    for seed in (1, 2):
        data = _data(phantoms, tmp_path / f"run{seed}", split="stratified", seed=seed, views=2)
        if seed == 2:
            data.manifest = str(tmp_path / "run1" / "manifest.csv")
        recorder = _record(data, epochs=3)
        assert [batch.view for epoch, batch in recorder.trained] == [epoch % 2 for epoch, _ in recorder.trained]
        assert all(batch.view == -1 for batch in recorder.validated)
        for epoch, batch in recorder.trained:
            for row, image in zip(batch.rows.tolist(), batch.images, strict=True):
                seen.setdefault((row, epoch % 2), []).append(image)
    for images in seen.values():  # twice or more: of two seeds, and of epochs 0 and 2
        assert all(torch.equal(image, images[0]) for image in images)
    rows = {row for row, _ in seen}
    assert not any(
        torch.equal(seen[row, 0][0], seen[row, 1][0]) for row in rows if (row, 0) in seen and (row, 1) in seen
    )
    assert (tmp_path / "run1" / "views.npy").exists()
    del recorder  # and with it the loaders
    data.discard()
    assert not (tmp_path / "run2" / "views.npy").exists()


def test_kept_views_are_fresh_changes_to_the_nearest_grey_level(phantoms, tmp_path):
    data = _data(phantoms, tmp_path / "run", augmentation=Augmentation(brightness=0.5), views=1)
    recorder = _record(data)
    training = data.datasets["Training"]
    rows = training.rows[:8]
    images = (torch.from_numpy(training.pixels[rows]).float().unsqueeze(1) - 128) / 128
    fresh = data.augmentation(images, make_generator([0, 0]))
    kept = {
        row: image
        for _, batch in recorder.trained
        for row, image in zip(batch.rows.tolist(), batch.images, strict=True)
    }
    compared = [row for row in rows if row in kept]
    assert len(compared) >= 7  # a batch of one is left out
    for row, image in zip(rows, fresh, strict=True):
        if row in kept:
            # half a grey level, and white: 128/128 has no grey level of its own
            assert (kept[row] - image).abs().max() <= 1 / 128


@pytest.mark.parametrize(("error", "is_kept"), [(KeyboardInterrupt, True), (ValueError, False)])
def test_what_a_killed_search_found_is_kept_for_resuming(phantoms, tmp_path, monkeypatch, error, is_kept):
    def stop(*_):
        raise error

    monkeypatch.setattr("brainq_torch.data.leakage.splits.make_manifest", stop)
    with pytest.raises(error):
        ImageDataModule(str(tmp_path), root=str(phantoms), size=32).prepare_data()
    assert (tmp_path / "search.npy").exists() == is_kept


def test_no_image_is_decoded_twice(phantoms, tmp_path, monkeypatch):
    calls = []
    original = datamodule.load_pixels
    monkeypatch.setattr(datamodule, "load_pixels", lambda *words: calls.append(words) or original(*words))
    _record(_data(phantoms, tmp_path / "run"), epochs=3)
    _record(_data(phantoms, tmp_path / "run"))
    assert len(calls) == 1


def test_a_cache_of_another_size_is_refused(phantoms, tmp_path):
    data = _data(phantoms, tmp_path / "run")
    data.prepare_data()
    np.save(data.cache, np.zeros((3, 32, 32), np.uint8))
    with pytest.raises(ValueError, match="delete it and resume"):
        data.setup("fit")


def test_phantom_root_makes_its_own_images(tmp_path):
    (tmp_path / "run").mkdir()
    data = ImageDataModule(str(tmp_path / "run"), size=32, phantoms_per_class=6)
    data.prepare_data()
    data.setup("fit")
    assert data.class_counts().sum() + len(data.datasets["val"]) == 24
    assert len(data.datasets["Testing"]) == 8


def test_generators_differ_by_place_alone():
    draws = {
        tuple(torch.rand(3, generator=make_generator([0, stage, epoch])).tolist())
        for stage in (0, 1)
        for epoch in (0, 1)
    }
    assert len(draws) == 4
    assert torch.equal(torch.rand(3, generator=make_generator([1, 2])), torch.rand(3, generator=make_generator([1, 2])))


def test_images_are_made_of_training_images_alone(phantoms, tmp_path, monkeypatch):
    """The maker sees the training part and nothing else; what it makes joins that part and no other."""
    given = []

    def make(pixels, labels, plan, seed):
        given.append((pixels, labels, plan, seed))
        return CounterfactualImages(np.full((4, 32, 32), 7, np.uint8), np.array([0, 1, 2, 2]), np.zeros(4, np.int64))

    monkeypatch.setattr(datamodule, "make_counterfactuals", make)
    plan = Counterfactual(share=0.2)
    data = _data(phantoms, tmp_path, counterfactual=plan)
    data.prepare_data()
    data.setup("fit")
    training, real = data.datasets["Training"], read_manifest(tmp_path / "manifest.csv")
    rows = [index for index, row in enumerate(real) if row.split == "Training"]
    ((pixels, labels, got, seed),) = given
    assert (got, seed) == (plan, 0)
    assert np.array_equal(pixels, training.pixels[rows])
    assert np.array_equal(labels, training.labels[rows])
    assert training.rows.tolist() == [*rows, *range(len(real), len(real) + 4)]
    assert training.labels[-4:].tolist() == [0, 1, 2, 2]
    assert (training.pixels[-4:] == 7).all()
    assert len(data.datasets["val"]) + len(data.datasets["Testing"]) + len(rows) == len(real)
    assert data.class_counts().sum() == len(rows) + 4
    data.discard()
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.csv"}


def test_few_images_are_shown_several_times_in_an_epoch_and_changed_anew_each_time(phantoms, tmp_path):
    data = _data(phantoms, tmp_path / "run", augmentation=Augmentation(noise=0.1))
    data.batches_per_epoch = 19
    recorder = _record(data)
    rows = torch.cat([batch.rows for _, batch in recorder.trained])
    counts = torch.bincount(rows)[torch.from_numpy(data.datasets["Training"].rows)]
    assert 19 * 8 <= len(rows) < 19 * 8 + len(counts)
    assert counts.min() == counts.max() > 1
    images = torch.cat([batch.images for _, batch in recorder.trained])
    shown = images[rows == rows[0]]
    assert len(torch.unique(shown, dim=0)) == len(shown)
    assert sum(len(batch.rows) for batch in recorder.validated) == len(data.datasets["val"])


def test_balanced_batches_show_sources_alike_and_depend_on_seed_and_epoch(phantoms, tmp_path):
    """Half of the images of each class are of another source; a twin run of two processes divides the same epoch."""
    lines = [
        (path, path.parent.name, "ab"[n % 3 == 0]) for n, path in enumerate(sorted(phantoms.rglob("Training/*/*")))
    ]
    with (tmp_path / "images.csv").open("w", newline="") as file:
        rows = [(path.relative_to(phantoms).as_posix(), label, source, path.name) for path, label, source in lines]
        csv.writer(file).writerows([("path", "class", "source", "group"), *rows])
    source = Source("phantoms", ".", str(tmp_path / "images.csv"))
    orders = []
    for name in ("one", "other"):
        data = _data(phantoms, tmp_path / name, sources=[source], balance="source", seed=5)
        recorder = _record(data, epochs=2)
        training = data.datasets["Training"]
        assert data.source_names.tolist() == ["a", "b"]
        orders.append([torch.cat([b.rows for epoch, b in recorder.trained if epoch == e]).tolist() for e in (0, 1)])
        for _, batch in recorder.trained:
            cells = [(int(training.labels[row]), int(training.sources[row])) for row in batch.rows]
            assert all(abs(cells.count((label, 0)) - cells.count((label, 1))) <= 1 for label in range(4))
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]
    dataset = data.datasets["Training"]
    place = {"shuffle": True, "seed": 5, "num_replicas": 2}
    halves = [list(make_sampler(dataset, "source", data.source_names, rank=rank, **place)) for rank in (0, 1)]
    whole = list(make_sampler(dataset, "source", data.source_names, rank=0, **place | {"num_replicas": 1}))
    assert [*halves[0], *halves[1]][: len(whole)] == whole
    alone = place | {"num_replicas": 1, "rank": 0}
    rows = dataset.rows[list(make_sampler(dataset, 0.7, data.source_names, **alone))]
    shares = [training.sources[rows][training.labels[rows] == label].mean() for label in range(4)]
    assert shares == pytest.approx([0.7] * 4, abs=0.5 * len(shares) / len(rows))  # as near as so few images can be
