"""Numbers that a configuration may give; jsonargparse refuses others by the flag's name and says what is allowed."""

from typing import TYPE_CHECKING

from jsonargparse import typing as numbers

from brainq_torch.openmp import MOST_THREADS

if TYPE_CHECKING:  # they are made below, where mypy does not look
    Count = int
    Natural = int
    Seed = int
    Threads = int
    Amount = float
    Fraction = float
    PositiveAmount = float
    Probability = float
    Share = float
else:
    Natural, Count = numbers.NonNegativeInt, numbers.PositiveInt
    Probability, Fraction = numbers.ClosedUnitInterval, numbers.OpenUnitInterval
    Seed = numbers.restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])  # what NumPy's takes
    Threads = numbers.restricted_number_type("Threads", int, [(">=", 0), ("<=", MOST_THREADS)])
    Amount = numbers.restricted_number_type("Amount", float, [(">=", 0), ("<", float("inf"))])
    PositiveAmount = numbers.restricted_number_type("PositiveAmount", float, [(">", 0), ("<", float("inf"))])
    Share = numbers.restricted_number_type("Share", float, [(">=", 0), ("<", 1)])
