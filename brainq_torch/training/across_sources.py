"""What asks for the same of every source: losses, and a last layer to which the source says nothing of the class."""

import weakref
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from brainq_torch.data.datamodule import ImageDataModule
from brainq_torch.data.dataset.balanced import MOST_REPEATS
from brainq_torch.data.decoded import Batch, PixelDataset, is_other, make_generator, to_input
from brainq_torch.data.ranges import Amount, Count, PositiveAmount, Share
from brainq_torch.training.distill import LabelLoss


def coral(features: Tensor, labels: Tensor, sources: Tensor) -> Tensor:
    """Deep CORAL within every class: ||C_a - C_b||_F^2 / (4 d^2), mean over classes and pairs of sources.

    C are covariances of (N, d) features. A source takes part with two images of a class; 0 where no two do.
    Source: Sun and Saenko 2016, https://arxiv.org/abs/1607.01719, eq. 1 to 3; between more than two sources, all pairs,
    as Gulrajani and Lopez-Paz 2021, https://arxiv.org/abs/2007.01434.
    """
    found = []
    for label in torch.unique(labels):
        parts = [features[(labels == label) & (sources == source)] for source in torch.unique(sources)]
        spread = [torch.cov(part.T) for part in parts if len(part) > 1]
        found += [(one - other).pow(2).sum() / (4 * features.shape[1] ** 2) for one, other in combinations(spread, 2)]
    return torch.stack(found).mean() if found else features.sum() * 0


def fishr(features: Tensor, logits: Tensor, labels: Tensor, sources: Tensor) -> Tensor:
    """Fishr: mean over sources of ||v_source - mean of v||^2, v the variance of each image's gradient of the head.

    The head is linear, so an image's gradient of its cross-entropy is (softmax - one-hot) times (feature, 1): nothing
    has to be differentiated twice. Source: Rame, Dancette, Cord 2022, https://arxiv.org/abs/2109.02934, eq. 3 and 4.

    Args:
        features: (N, d), what the head sees.
        logits: (N, classes), what it says.
        labels: (N,).
        sources: (N,); one of a single image takes no part.
    """
    delta = functional.softmax(logits, dim=1) - functional.one_hot(labels, logits.shape[1])
    inputs = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    variances = []
    for source in torch.unique(sources):
        of_it = sources == source
        count, errors, seen = int(of_it.sum()), delta[of_it], inputs[of_it]
        if count > 1:
            mean = errors.T @ seen / count
            variances.append((errors.pow(2).T @ seen.pow(2) - count * mean.pow(2)) / (count - 1))
    if len(variances) < 2:
        return features.sum() * 0
    every = torch.stack(variances)
    return (every - every.mean(dim=0)).pow(2).flatten(1).sum(dim=1).mean()


_STEPS = 60  # of L-BFGS: it stands still by then


@dataclass(frozen=True)
class AcrossSources:
    """What is asked of a network besides the labels, where images come from several sources.

    Attributes:
        method: ``group_dro`` weighs the loss of each class of each source by how bad it has been; ``coral`` wants each
            class's features spread alike in every source; ``fishr`` the gradients of the head.
        strength: of ``group_dro`` the step of the groups' weights (0.01 in the paper), of the others the weight of
            their term beside the loss of the labels.
    """

    method: Literal["group_dro", "coral", "fishr"]
    strength: PositiveAmount = 0.01

    def bind(self, hard: LabelLoss, model: nn.Module, dataset: PixelDataset) -> "SourceLoss":
        """Return the loss for a network and its training images. Raises ValueError where they name no two sources."""
        if len(set(dataset.sources[dataset.rows].tolist())) < 2:
            raise ValueError("across_sources needs training images of two sources or more; list them in data.sources")
        sources, classes = torch.from_numpy(dataset.sources), len(set(dataset.labels.tolist()))
        if self.method == "group_dro":
            return GroupDro(hard, sources, classes, self.strength)
        return Alignment(hard, sources, self, HeadInput(last_linear(model, classes)))


class SourceLoss:
    """``AcrossSources`` bound to a data set. ``state``: what a resumed training goes on with."""

    state: Tensor | None = None

    def __init__(self, hard: LabelLoss, sources: Tensor) -> None:
        self.hard, self._sources = hard, sources

    def sources_of(self, batch: Batch) -> Tensor:
        """Return the number of each image's source, (N,)."""
        return self._sources[batch.rows.cpu()].to(batch.labels.device)

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss. logits: (N, classes) for ``batch.images``, from the network's latest forward pass."""
        raise NotImplementedError


class GroupDro(SourceLoss):
    """Group DRO: sum of q_g * loss_g over the classes of the sources, q_g multiplied by exp(step * loss_g) before.

    Source: Sagawa, Koh, Hashimoto, Liang 2020, https://arxiv.org/abs/1911.08731, algorithm 1. A group without an image
    in the batch keeps its weight.
    """

    state: Tensor

    def __init__(self, hard: LabelLoss, sources: Tensor, classes: int, step: float) -> None:
        super().__init__(hard, sources)
        count = classes * (int(sources.max()) + 1)
        self.classes, self.step, self.state = classes, step, torch.full((count,), 1 / count)

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Update the groups' weights, and return the loss by them."""
        groups = self.sources_of(batch) * self.classes + batch.labels
        present = torch.unique(groups)
        parts = [groups == group for group in present]
        losses = torch.stack([self.hard(logits[of], _select(batch, of)) for of in parts])
        weights = self.state.to(losses)
        weights[present] *= torch.exp(self.step * losses.detach())
        self.state = weights / weights.sum()
        return (self.state[present] * losses).sum()


def _select(batch: Batch, chosen: Tensor) -> Batch:
    return batch._replace(images=batch.images[chosen], labels=batch.labels[chosen], rows=batch.rows[chosen.cpu()])


class Alignment(SourceLoss):
    """The loss of the labels, plus a term that is 0 where sources look alike to the head."""

    def __init__(self, hard: LabelLoss, sources: Tensor, options: AcrossSources, head: "HeadInput") -> None:
        super().__init__(hard, sources)
        self.options, self.head = options, head

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss."""
        features, sources = self.head.take(), self.sources_of(batch)
        if self.options.method == "coral":
            term = coral(features, batch.labels, sources)
        else:
            term = fishr(features, logits, batch.labels, sources)
        return self.hard(logits, batch) + self.options.strength * term


def last_linear(model: nn.Module, class_count: int) -> nn.Linear:
    """Return the layer that makes the logits. Raises ValueError where that is no linear one."""
    found = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    if not found or found[0].out_features != class_count:
        raise ValueError("last_layer, coral and fishr are for networks that end with a linear layer; leave them out")
    return found[0]


class HeadInput:
    """What a network's last layer saw in its latest forward pass, (N, d) float32; the hook goes when this goes."""

    def __init__(self, head: nn.Linear) -> None:
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor]) -> None:
            kept[:] = inputs[:1]

        weakref.finalize(self, head.register_forward_pre_hook(keep).remove)
        self._kept = kept

    def take(self) -> Tensor:
        """Return it and forget it. Raises RuntimeError where the head has not run since the last call."""
        if not self._kept:
            raise RuntimeError("the head saw nothing; coral and fishr need a network that is not compiled")
        return self._kept.pop().float()


@dataclass(frozen=True)
class LastLayer:
    """The last layer anew when all stages are done, as good as it can be on what the others make of changed images.

    Classes weigh alike, and in each of them other sources than the largest have the same share, as far as they have
    images: the source then says nothing of the class. Sources: Kirichenko, Izmailov, Wilson 2023,
    https://arxiv.org/abs/2204.02937 (last-layer retraining); Li, Grandvalet, Davoine 2018,
    https://arxiv.org/abs/1802.01483 (the pull towards the start).

    Attributes:
        views: changed versions of each training image that it is solved on.
        others: share of each class that sources other than the largest have; an image weighs at most 10 times another.
        pull: weight of the squared distance from the layer as it was.
    """

    views: Count = 3
    others: Share = 0.2
    pull: Amount = 0.01

    def solve(self, model: nn.Module, data: ImageDataModule, seed: int, smoothing: float) -> None:
        """Change the last layer of a network in eval mode, in place.

        Args:
            model: the network, on the CPU.
            data: what it was trained on, set up; images that were made count as the largest source's.
            seed: of the changes.
            smoothing: of the labels.
        """
        layer, training = last_linear(model, len(data.classes)), data.datasets["Training"]
        print(f"last layer: {self.views} views of {len(training)} images", flush=True)
        seen = [self._view(model, layer, data, [seed, view]) for view in range(self.views)]
        features, order = torch.cat([each for each, _ in seen]), np.concatenate([each for _, each in seen])
        labels = training.labels[order]
        sources = data.source_names[training.sources[order]]
        weights = torch.from_numpy(self.weigh(labels, is_other(sources))).float()
        self._descend(layer, features, torch.from_numpy(labels), weights, smoothing)

    def weigh(self, labels: NDArray[np.int64], is_other: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return each image's weight, (N,), mean 1. labels: (N,); is_other: (N,), not of the largest source."""
        weights = np.zeros(len(labels))
        for label in np.unique(labels):
            own, other = (labels == label) & ~is_other, (labels == label) & is_other
            share = min(self.others, MOST_REPEATS * other.sum() / own.sum()) if own.any() else 1.0
            weights[own] = (1 - share) / max(1, own.sum())
            weights[other] = share / max(1, other.sum())
        return np.asarray(weights * len(weights) / weights.sum())

    @staticmethod
    @torch.no_grad()
    def _view(
        model: nn.Module, layer: nn.Linear, data: ImageDataModule, place: list[int]
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """Return what the layer is fed of images changed anew, (N, d), and their rows; looks mix within a batch."""
        generator, seen, training = make_generator(place), HeadInput(layer), data.datasets["Training"]
        order = training.rows[torch.randperm(len(training), generator=generator).numpy()]
        fed = []
        for part in np.array_split(order, -(-len(order) // data.batch_size)):
            model(data.change(to_input(torch.from_numpy(training.pixels[part])), generator))
            fed.append(seen.take())
        return torch.cat(fed), order

    def _descend(self, layer: nn.Linear, features: Tensor, labels: Tensor, weights: Tensor, smoothing: float) -> None:
        start = [parameter.detach().clone() for parameter in layer.parameters()]
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            each = functional.cross_entropy(layer(features), labels, reduction="none", label_smoothing=smoothing)
            away = [(now - then).pow(2).sum() for now, then in zip(layer.parameters(), start, strict=True)]
            total: Tensor = (weights * each).mean() + self.pull * torch.stack(away).sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        layer.requires_grad_(True)
        optimizer.step(loss)  # type: ignore[no-untyped-call]
