"""Losses across sources, each against its paper's definition computed another way; the last layer by its optimum."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional

from brainq_torch.data.decoded import Batch, PixelDataset
from brainq_torch.models import build_model
from brainq_torch.training.across_sources import AcrossSources, LastLayer, coral, fishr

N, FEATURES, CLASSES = 12, 5, 3
LABELS = torch.arange(N) % CLASSES
SOURCES = torch.tensor([0] * 6 + [1] * 6)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dataset(sources=SOURCES, labels=LABELS):
    return PixelDataset(
        np.zeros((len(labels), 2, 2), np.uint8), labels.numpy(), np.arange(len(labels)), sources.numpy()
    )


def cross_entropy(logits, batch):
    return functional.cross_entropy(logits, batch.labels)


def batch_of(rows):
    return Batch(torch.zeros(len(rows), 1, 2, 2), LABELS[rows], rows)


def test_group_dro_is_algorithm_1():
    """Two steps by hand: q_g <- q_g exp(eta loss_g), normalised, then the loss weighted by q."""
    loss = AcrossSources("group_dro", 0.5).bind(cross_entropy, None, dataset())
    weights = np.full(6, 1 / 6)
    for seed in (1, 2):
        rows = torch.tensor([0, 1, 3, 6, 7, 10])  # class 2 of both sources has no image: it keeps its weight
        logits = normal(6, CLASSES, seed=seed)
        each = functional.cross_entropy(logits, LABELS[rows], reduction="none").numpy()
        groups = {0: [0, 2], 1: [1], 3: [3], 4: [4, 5]}  # source * 3 + label -> places in the batch
        losses = {group: each[places].mean() for group, places in groups.items()}
        for group, value in losses.items():
            weights[group] *= np.exp(0.5 * value)
        weights /= weights.sum()
        got = loss(logits, batch_of(rows))
        assert got.item() == pytest.approx(sum(weights[group] * value for group, value in losses.items()), rel=1e-5)
    assert loss.state.numpy() == pytest.approx(weights, rel=1e-5)


def test_coral_is_the_distance_of_covariances_within_each_class():
    features = normal(N, FEATURES)
    wanted = []
    for label in range(CLASSES):
        one, other = (np.cov(features[(label == LABELS) & (s == SOURCES)].numpy().T) for s in (0, 1))
        wanted.append(((one - other) ** 2).sum() / (4 * FEATURES**2))
    assert coral(features, LABELS, SOURCES).item() == pytest.approx(np.mean(wanted), rel=1e-4)
    assert coral(torch.cat([features[:6]] * 2), LABELS, SOURCES).item() == pytest.approx(0, abs=1e-12)
    assert coral(features[:6], LABELS[:6], SOURCES[:6]).item() == 0  # one source: nothing to align


def test_fishr_is_the_distance_of_variances_of_every_images_gradient():
    """Autograd's gradient of each image's loss by the head's weights and biases, its variance within a source."""
    head = torch.nn.Linear(FEATURES, CLASSES)
    features = normal(N, FEATURES, seed=3)
    gradients = []
    for place in range(N):
        loss = functional.cross_entropy(head(features[place : place + 1]), LABELS[place : place + 1])
        weight, bias = torch.autograd.grad(loss, [head.weight, head.bias])
        gradients.append(torch.cat([weight, bias[:, None]], dim=1).flatten())
    variances = torch.stack([torch.stack(gradients)[source == SOURCES].var(dim=0) for source in (0, 1)])
    wanted = (variances - variances.mean(dim=0)).pow(2).sum(dim=1).mean()
    got = fishr(features, head(features), LABELS, SOURCES)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-4)
    got.backward()
    assert head.weight.grad.abs().sum() > 0
    assert fishr(features[:6], head(features[:6]), LABELS[:6], SOURCES[:6]).item() == 0


@pytest.mark.parametrize("method", ["coral", "fishr"])
def test_an_alignment_is_added_to_the_loss_of_the_labels_and_reaches_the_features(method):
    model = build_model("mobilenetv2", CLASSES, width_mult=0.35).eval()
    loss = AcrossSources(method, 3.0).bind(cross_entropy, model, dataset())
    images = normal(N, 1, 32, 32)
    logits = model(images)
    batch = Batch(images, LABELS, torch.arange(N))
    got = loss(logits, batch)
    features = torch.flatten(model.pool(model.features(images)), 1)
    words = (features, LABELS, SOURCES) if method == "coral" else (features, logits, LABELS, SOURCES)
    term = {"coral": coral, "fishr": fishr}[method](*words)
    assert got.item() == pytest.approx((cross_entropy(logits, batch) + 3.0 * term).item(), rel=1e-4)
    got.backward()
    assert model.features[0][0].weight.grad.abs().sum() > 0
    with pytest.raises(RuntimeError, match="not compiled"):
        loss(logits, batch)


def test_one_source_is_refused():
    with pytest.raises(ValueError, match="two sources or more; list them"):
        AcrossSources("coral", 1.0).bind(cross_entropy, None, dataset(torch.zeros(N, dtype=torch.int64)))


def scans(count=2400):
    """Return images (1, 2): pixel 0 shows the source, which gives most labels away, pixel 1 faintly the label."""
    rng = np.random.default_rng(0)
    sources = (np.arange(count) % 4 == 3).astype(np.int64)
    labels = np.where(rng.random(count) < 0.9, sources, 1 - sources)
    grey = np.stack([100 + 60 * sources, 110 + 40 * labels + rng.integers(-60, 61, count)], 1)
    pixels = np.pad(grey[:, None].astype(np.uint8), ((0, 0), (0, 1), (0, 0)))
    dataset = PixelDataset(pixels, labels, np.arange(count), sources)
    return SimpleNamespace(
        datasets={"Training": dataset}, classes=("one", "other"), batch_size=32, change=lambda images, _: images,
        source_names=np.array(["clinic", "kaggle"]),
    )  # fmt: skip


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()


def test_a_last_layer_goes_by_the_label_where_the_source_gives_it_away():
    """Without weights it goes by the source: logistic regression on the same images."""
    data, model = scans(), network()
    LastLayer(1, others=0.3, pull=0.0).solve(model, data, 0, 0.05)
    dataset = data.datasets["Training"]
    plain = LogisticRegression().fit(dataset.pixels.reshape(-1, 4) / 128 - 1, dataset.labels).coef_[0]
    assert plain[0] > plain[1]
    solved = (model[1].weight[1] - model[1].weight[0]).detach()
    assert abs(solved[0]) < 0.2 * solved[1]


def test_a_last_layer_is_where_loss_and_pull_balance():
    model, data = network(), scans()
    start = model[1].weight.detach().clone()
    LastLayer(2, others=0.5, pull=0.1).solve(model, data, 0, 0.05)
    dataset = data.datasets["Training"]
    images = (torch.from_numpy(dataset.pixels).float() - 128) / 128
    weights = torch.from_numpy(LastLayer(others=0.5).weigh(dataset.labels, dataset.sources == 1)).float()
    each = functional.cross_entropy(model(images), torch.from_numpy(dataset.labels), reduction="none",
                                    label_smoothing=0.05)  # fmt: skip
    model.zero_grad()
    ((weights * each).mean() + 0.1 * (model[1].weight - start).pow(2).sum()).backward()
    assert model[1].weight.grad.abs().max() < 1e-4
    near = network()
    LastLayer(1, pull=1e4).solve(near, data, 0, 0.05)
    assert (near[1].weight - start).abs().max() < 1e-3


def test_the_images_of_other_sources_have_their_share_of_each_class_as_far_as_there_are_some():
    labels, is_other = np.array([0] * 100 + [1] * 101 + [2] * 7), np.array([False] * 80 + [True] * 20 + [False] * 100
                                                                          + [True] + [True] * 7)  # fmt: skip
    weights = LastLayer(others=0.2).weigh(labels, is_other)
    shares = [weights[(labels == label) & is_other].sum() / weights[labels == label].sum() for label in range(3)]
    assert shares == pytest.approx([0.2, 0.1, 1.0])  # ten times another's weight at most; none but others
    assert [weights[labels == label].sum() for label in range(3)] == pytest.approx([208 / 3] * 3)


def test_made_images_count_as_the_largest_sources():
    data, model, alike = scans(), network(), network()
    training = data.datasets["Training"]
    LastLayer(1, others=0.3).solve(alike, data, 0, 0.0)
    data.source_names = np.array(["clinic", "kaggle", "made"])
    training.sources = np.where((training.sources == 0) & (np.arange(2400) % 8 == 0), 2, training.sources)
    LastLayer(1, others=0.3).solve(model, data, 0, 0.0)
    assert torch.equal(model[1].weight, alike[1].weight)


@pytest.mark.parametrize("method", ["coral", "fishr"])
def test_what_reads_the_last_layer_refuses_a_network_that_ends_with_another(method):
    with pytest.raises(ValueError, match="end with a linear layer"):
        AcrossSources(method).bind(cross_entropy, nn.Sequential(nn.Conv2d(1, CLASSES, 1)), dataset())
