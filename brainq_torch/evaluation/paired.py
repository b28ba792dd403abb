"""Whether a compressed model is as good as its original, up to a stated margin: interval and verdict on paired answers.

The interval is Tango's score interval for a difference of paired proportions (Tango 1998, Statistics in Medicine 17,
891-908, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B; recommended by Fagerland,
Lydersen and Laake 2014, https://doi.org/10.1002/sim.6148). Unlike the bootstrap's, it has a width where the two models
never differ.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri  # not scipy.stats, which takes half a second to load

from brainq_torch.evaluation.comparison import mcnemar_p

LEVEL = 0.95
MARGIN_OVERALL = 0.01
"""Accuracy that a model may lose and still pass as equally good: 1 point."""
MARGIN_PER_CLASS = 0.03
"""Recall of one class that it may lose: 3 points, because a class has a quarter of the images."""

NON_INFERIOR, INCONCLUSIVE, INFERIOR = "non-inferior", "inconclusive", "inferior"


@dataclass(frozen=True)
class PairedDifference:
    """Right answers of B less A's in parts of ``n``, its 95 % interval; lost: only A is right, gained: only B."""

    n: int
    lost: int
    gained: int
    difference: float
    low: float
    high: float
    margin: float

    @property
    def verdict(self) -> str:
        """Non-inferior where the whole interval is above -margin, inferior where the whole of it is below."""
        if self.low > -self.margin:
            return NON_INFERIOR
        return INFERIOR if self.high < -self.margin else INCONCLUSIVE

    @property
    def mcnemar_p(self) -> float:
        """McNemar's exact two-sided p of the discordant pairs, 1 without any."""
        return mcnemar_p(self.lost, self.gained)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self) | {"verdict": self.verdict, "mcnemar_p": self.mcnemar_p}


def compare_paired(n: int, lost: int, gained: int, margin: float) -> PairedDifference:
    """Judge B against A from the discordant counts. Raises ValueError where they cannot be."""
    if n < 1 or min(lost, gained) < 0 or lost + gained > n:
        raise ValueError(f"{lost} lost and {gained} gained of {n} images; need 0 <= lost + gained <= n, n at least 1")
    low, high = tango_interval(n, lost, gained)
    return PairedDifference(n, lost, gained, (gained - lost) / n, low, high, margin)


def compare_answers(
    logits_a: NDArray[Any], logits_b: NDArray[Any], labels: NDArray[np.int64], margin: float = MARGIN_OVERALL
) -> PairedDifference:
    """Judge B against A on the same images: logits (N, C), labels (N,). Raises ValueError without images."""
    right_a, right_b = logits_a.argmax(axis=1) == labels, logits_b.argmax(axis=1) == labels
    return compare_paired(len(labels), int((right_a & ~right_b).sum()), int((~right_a & right_b).sum()), margin)


def tango_interval(n: int, lost: int, gained: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the differences that the score test does not reject, their lowest and highest."""
    limit = float(ndtri((1 + level) / 2))
    estimate = (gained - lost) / n

    def excess(difference: float, target: float) -> float:
        return _score(difference, n, lost, gained) - target

    ends = []
    for edge, sign in ((-1.0, 1.0), (1.0, -1.0)):
        # The statistic falls with the difference; at the edge it is infinite, or 0 where the estimate is the edge.
        near = edge * (1 - 1e-12)
        reached = sign * _score(near, n, lost, gained) > limit
        ends.append(float(brentq(excess, near, estimate, (sign * limit,), xtol=1e-12)) if reached else edge)
    return ends[0], ends[1]


def _score(difference: float, n: int, lost: int, gained: int) -> float:
    """Tango's statistic (his equation 9): the estimate less ``difference``, over its standard error under it."""
    surplus = gained - lost - n * difference
    if surplus == 0.0:
        return 0.0
    # q: share of "only A is right" that is likeliest under the difference, the root of a quadratic (his equation 8).
    a = 2.0 * n
    b = -gained - lost + (2 * n - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * q + difference * (1 - difference))
    return math.copysign(math.inf, surplus) if variance <= 0 else surplus / math.sqrt(variance)


def judge_all(parts: list[PairedDifference]) -> str:
    """Return the verdict on a model: as its worst part's.

    Passing needs every part to pass, so no correction for many tests is due (intersection-union test, Berger 1982,
    https://doi.org/10.1080/00401706.1982.10487790).
    """
    verdicts = {part.verdict for part in parts}
    return next((verdict for verdict in (INFERIOR, INCONCLUSIVE) if verdict in verdicts), NON_INFERIOR)
