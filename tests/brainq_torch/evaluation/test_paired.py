import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

from brainq_torch.evaluation.paired import (
    INCONCLUSIVE,
    INFERIOR,
    MARGIN_OVERALL,
    NON_INFERIOR,
    compare_answers,
    compare_paired,
    judge_all,
    tango_interval,
)

Z = 1.959963984540054


def independent_interval(n, lost, gained):
    """The score interval once more, with the constrained likelihood maximised by search and not in closed form."""

    def score(difference):
        def loss(q):  # q: probability of "lost"; that of "gained" is q + difference
            p = q + difference
            rest = 1 - q - p
            return -sum(
                k * math.log(max(s, 1e-300)) for k, s in ((lost, q), (gained, p), (n - lost - gained, rest)) if k
            )

        low, high = max(0.0, -difference), (1 - difference) / 2
        q = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        return ((gained - lost) / n - difference) / math.sqrt((2 * q + difference - difference**2) / n)

    estimate = (gained - lost) / n
    return (
        brentq(lambda d: score(d) - Z, -0.999, estimate - 1e-9),
        brentq(lambda d: score(d) + Z, estimate + 1e-9, 0.999),
    )


def test_tangos_interval_of_a_published_table():
    # Bentur et al. 2009, in Fagerland, Lydersen and Laake 2014: 21 children, 7 and 1 discordant: -0.517 to -0.026.
    assert tango_interval(21, 7, 1) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize(("n", "lost", "gained"), [(21, 7, 1), (160, 20, 40), (300, 1, 3), (1311, 13, 2), (50, 0, 4)])
def test_interval_equals_an_independent_computation(n, lost, gained):
    # the search for the likelihood's maximum is good to about 1e-6
    assert tango_interval(n, lost, gained) == pytest.approx(independent_interval(n, lost, gained), abs=1e-5)


def test_without_a_flip_the_interval_has_a_width():
    # Both discordant counts 0: the statistic is n d^2 / (|d| - d^2), so |d| = z^2 / (n + z^2).
    width = Z**2 / (1311 + Z**2)
    assert tango_interval(1311, 0, 0) == pytest.approx((-width, width), abs=1e-8)


def test_interval_turns_round_with_the_models_and_stays_inside():
    low, high = tango_interval(40, 3, 9)
    assert tango_interval(40, 9, 3) == pytest.approx((-high, -low))
    assert tango_interval(5, 5, 0)[0] == -1.0
    assert tango_interval(5, 0, 5)[1] == 1.0
    assert tango_interval(40, 3, 9, level=0.8)[0] > low


@pytest.mark.parametrize(
    ("n", "lost", "gained", "verdict"),
    [
        (1311, 0, 0, NON_INFERIOR),
        (1311, 2, 4, NON_INFERIOR),
        (1311, 25, 18, INCONCLUSIVE),
        (1311, 40, 0, INFERIOR),
        (100, 0, 0, INCONCLUSIVE),  # 100 images cannot show a margin of 1 point
    ],
)
def test_verdicts(n, lost, gained, verdict):
    part = compare_paired(n, lost, gained, MARGIN_OVERALL)
    assert part.verdict == verdict
    assert part.low < part.difference == (gained - lost) / n < part.high
    assert part.to_json()["verdict"] == verdict


def test_a_model_is_as_good_as_its_worst_part():
    good, unclear, bad = (compare_paired(1311, lost, 0, MARGIN_OVERALL) for lost in (0, 12, 60))
    assert judge_all([good, good]) == NON_INFERIOR
    assert judge_all([good, unclear]) == INCONCLUSIVE
    assert judge_all([unclear, bad, good]) == INFERIOR


@pytest.mark.parametrize(("n", "lost", "gained"), [(0, 0, 0), (10, -1, 0), (10, 6, 5)])
def test_counts_that_cannot_be_are_refused(n, lost, gained):
    with pytest.raises(ValueError, match="need 0 <= lost"):
        compare_paired(n, lost, gained, 0.01)


def test_answers_are_counted_by_hand_and_mcnemar_is_the_binomial_test():
    a, labels = np.eye(4)[[0, 1, 2, 3, 0, 1]], np.array([0, 1, 2, 3, 1, 2])
    b = np.eye(4)[[1, 2, 0, 3, 1, 3]]  # three lost, one gained, one wrong in another way
    found = compare_answers(a, b, labels)
    assert (found.n, found.lost, found.gained, found.margin) == (6, 3, 1, MARGIN_OVERALL)
    assert found.mcnemar_p == pytest.approx(10 / 16)  # 2 * (1 + 4) / 2**4
    assert compare_answers(a, a, labels).mcnemar_p == 1.0
