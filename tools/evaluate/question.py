"""What a model is asked about a test set: its own classes, or a coarser question that they answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.classes import Labels
from brainq_torch.evaluation.metrics import Metrics
from export.run.runners import Runner
from tools.shared.command import CommandError

_OTHER = "(other classes)"


@dataclass(frozen=True)
class Question:
    """Which of a model's classes make each answer.

    labels: the answers, and the folders that hold images of each. groups: per answer, the model's classes that mean it.
    positive: of two answers the one that sensitivity is of; empty where there are more.
    """

    labels: Labels
    groups: tuple[tuple[str, ...], ...]
    positive: str = ""

    def score(self, logits: NDArray[np.float32], classes: Sequence[str]) -> NDArray[np.float32]:
        """Return each answer's largest logit, (N, answers): of these the largest is the answer the model's class means.

        logits: (N, C) in the order of ``classes``.
        """
        return np.stack([part.max(1) for part in self._parts(logits, classes)], 1)

    def probabilities(self, logits: NDArray[np.float32], classes: Sequence[str]) -> NDArray[np.float64] | None:
        """Return each answer's probability, (N, answers): the sum of its classes'. None where each has one class."""
        if all(len(group) == 1 for group in self.groups):
            return None
        real = logits.astype(np.float64)
        sums = [np.logaddexp.reduce(part, 1) for part in self._parts(real, classes)]
        shares: NDArray[np.float64] = np.exp(np.stack(sums, 1) - np.logaddexp.reduce(real, 1)[:, None])
        return shares.clip(max=1.0)

    def _parts(self, logits: NDArray[Any], classes: Sequence[str]) -> list[NDArray[Any]]:
        return [logits[:, [classes.index(name) for name in group]] for group in self.groups]

    def describe_two(
        self, metrics: Metrics, labels: NDArray[np.int64], scores: NDArray[np.float32], sums: NDArray[np.float64] | None
    ) -> dict[str, Any] | None:
        """Return sensitivity, specificity and AUROC of the positive answer; None where there are not two answers.

        labels: (N,). scores, sums: what ``score`` and ``probabilities`` return. A figure without images is None.
        """
        if not self.positive:
            return None
        positive = self.labels.names.index(self.positive)
        negative = 1 - positive
        recalls = [row.recall if row.support else None for row in metrics.per_class.values()]
        ranks = np.log(np.maximum(sums, np.finfo(float).tiny)) if sums is not None else scores.astype(np.float64)
        margin = ranks[:, positive] - ranks[:, negative]
        both = len(np.unique(labels)) == 2
        return {
            "positive": self.positive,
            "negative": self.labels.names[negative],
            "sensitivity": recalls[positive],
            "specificity": recalls[negative],
            "auroc": _auroc(margin[labels == positive], margin[labels == negative]) if both else None,
        }


def _auroc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Return how often a positive image's margin is above a negative one's, ties half (Mann and Whitney 1947)."""
    below, up_to = (np.searchsorted(np.sort(negative), positive, side).mean() for side in ("left", "right"))
    return float(below + up_to) / 2 / len(negative)


def ask(name: str, runner: Runner, words: Sequence[str] | None) -> Question:
    """Return the question that ``--label-map`` asks, or that of the model's own classes."""
    if not words:
        names = tuple(sorted(runner.classes))
        return Question(Labels(names), tuple((each,) for each in names), _positive(names, [(n,) for n in names]))
    folders = _read_words(name, runner, words)
    answers: dict[tuple[str, ...], list[str]] = {}
    for folder, group in folders.items():
        answers.setdefault(group, []).append(folder)
    for group in answers:
        for other in answers:
            if group != other and set(group) & set(other):
                twice = ", ".join(sorted(set(group) & set(other)))
                raise CommandError(f"--label-map: {twice} means two answers; give each class to one of them")
    names = tuple("+".join(members) for members in answers.values())
    groups = list(answers)
    meanings = tuple((folder, names[groups.index(group)]) for folder, group in folders.items())
    positive = _positive(names, groups)
    rest = tuple(each for each in runner.classes if each not in {known for group in groups for known in group})
    if rest:
        names, groups = (*names, _OTHER), [*groups, rest]
    return Question(Labels(names, meanings), tuple(groups), positive)


def _positive(names: Sequence[str], groups: Sequence[tuple[str, ...]]) -> str:
    """Of two answers, name the first that is not all of notumor; nothing where there are not two."""
    return next(n for n, group in zip(names, groups, strict=True) if group != ("notumor",)) if len(names) == 2 else ""


def _read_words(name: str, runner: Runner, words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    folders = {}
    for word in words:
        folder, equals, meaning = word.partition("=")
        group = (meaning,) if meaning in runner.classes else tuple(sorted(set(meaning.split("+"))))
        if not folder or not equals or not meaning:
            raise CommandError(f"--label-map {word!r} is not FOLDER=CLASS[+CLASS], such as yes=glioma+meningioma")
        if folder in folders:
            raise CommandError(f"--label-map names {folder} twice; name all its classes in one word, joined by +")
        unknown = [each for each in group if each not in runner.classes]
        if unknown:
            raise CommandError(
                f"--label-map {word}: {name} knows no class {unknown[0]!r}; allowed are {', '.join(runner.classes)}"
            )
        folders[folder] = group
    return folders
