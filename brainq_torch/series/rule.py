"""The one answer of a series: a few lines on the probabilities of its slices, so that a browser page can do the same.

A tumour fills neighbouring slices, a false alarm mostly one: the probability of a tumour (all classes but
``HEALTHY``) is averaged over a slice and its neighbours, and the largest average decides. Slices that are unlike the
training images do not count. The limits were fitted on patients and are strict: most series are left unanswered
(``results/series``).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.run_files import BrainqError

HEALTHY = "notumor"


@dataclass(frozen=True)
class SeriesAnswer:
    """What the rule says. label: None where there is none, and ``reason`` says why. best: the likeliest class.

    strongest: index of the slice at which ``best`` is likeliest, None where no slice counts. probability: that of a
    tumour, averaged over neighbours, where it is largest.
    """

    label: str | None
    best: str | None
    reason: str
    probability: float | None
    strongest: int | None


@dataclass(frozen=True)
class SeriesRule:
    """Limits of the rule.

    Attributes:
        neighbours: slices on each side that are averaged with one.
        healthy_up_to: largest average up to which ``HEALTHY`` is the answer.
        tumour_from: largest average from which a tumour is.
        fewest: slices that have to count for an answer.
    """

    neighbours: int = 1
    healthy_up_to: float = 0.22
    tumour_from: float = 0.995
    fewest: int = 3

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a bundle."""
        return asdict(self)

    def with_limits(self, healthy_up_to: float, tumour_from: float) -> "SeriesRule":
        """Return the rule with other limits. Raises BrainqError: They are no rising probabilities."""
        if not 0 <= healthy_up_to < tumour_from <= 1:
            said = f"--limits is {healthy_up_to:g} {tumour_from:g}"
            raise BrainqError(f"{said}; allowed are two probabilities from 0 to 1, the smaller one first")
        return replace(self, healthy_up_to=healthy_up_to, tumour_from=tumour_from)

    def judge(self, classes: Sequence[str], probabilities: NDArray[np.float64], counts: Sequence[bool]) -> SeriesAnswer:
        """Judge a series.

        Args:
            classes: C names.
            probabilities: (N, C) of its slices in order.
            counts: N, False for a slice that decides nothing.
        """
        used = np.flatnonzero(np.asarray(counts, bool))
        if HEALTHY not in classes:
            return SeriesAnswer(None, None, f"the model has no class {HEALTHY}", None, None)
        if not len(used):
            return SeriesAnswer(None, None, "no slice counts", None, None)
        healthy = list(classes).index(HEALTHY)
        kept = probabilities[used]
        smooth = np.stack(
            [kept[max(0, i - self.neighbours) : i + self.neighbours + 1].mean(0) for i in range(len(kept))]
        )
        top = int(np.argmax(1 - smooth[:, healthy]))
        tumour = float(1 - smooth[top, healthy])
        ranked = [*smooth[top]]
        ranked[healthy] = -1.0
        best = HEALTHY if tumour <= self.healthy_up_to else classes[int(np.argmax(ranked))]
        strongest = int(used[int(np.argmax(kept[:, list(classes).index(best)]))])
        reason = ""
        if len(used) < self.fewest:
            reason = f"{len(used)} slices count, {self.fewest} are needed"
        elif self.healthy_up_to < tumour < self.tumour_from:
            reason = "a tumour is neither likely nor unlikely enough"
        return SeriesAnswer(None if reason else best, best, reason, tumour, strongest)
