"""Numbers that a configuration may give; jsonargparse refuses others by the flag's name and says what is allowed."""

from typing import TYPE_CHECKING

from jsonargparse.typing import restricted_number_type

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
    Natural = restricted_number_type("NonNegativeInt", int, (">=", 0))
    Count = restricted_number_type("PositiveInt", int, (">", 0))
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])  # what NumPy's takes
    Threads = restricted_number_type("Threads", int, [(">=", 0), ("<=", MOST_THREADS)])
    Amount = restricted_number_type("Amount", float, [(">=", 0), ("<", float("inf"))])
    PositiveAmount = restricted_number_type("PositiveAmount", float, [(">", 0), ("<", float("inf"))])
    Probability = restricted_number_type("ClosedUnitInterval", float, [(">=", 0), ("<=", 1)])
    Share = restricted_number_type("Share", float, [(">=", 0), ("<", 1)])
    Fraction = restricted_number_type("OpenUnitInterval", float, [(">", 0), ("<", 1)])
