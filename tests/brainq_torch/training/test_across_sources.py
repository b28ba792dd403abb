"""Losses across sources, each against its paper's definition computed another way."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from brainq_torch.data.decoded import Batch, PixelDataset
from brainq_torch.models import build_model
from brainq_torch.training.across_sources import AcrossSources, coral, fishr

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
