"""The largest numbers that an option takes: beyond them a typing error fills the memory, or goes on for days."""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from brainq_torch.run_files import BrainqError

MOST, MOST_IMAGES, MOST_SEED = 100_000, 20_000, 2**32 - 1
"""Of whatever is counted; of images that are held in memory all at once; of a seed, as NumPy takes it."""

_OF_KEYS = {"seed": MOST_SEED, "batch_size": 4096, "views": 1000, "phantoms_per_class": MOST_IMAGES}
_NOT_OURS = "trainer"
"""Lightning's own, which it checks: a training may well have a million steps."""


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return what reads a whole number between two, as argparse's ``type``."""

    def number(word: str) -> int:
        if not least <= int(word) <= most:
            size = "small" if int(word) < least else "large"
            raise argparse.ArgumentTypeError(f"{word} is too {size}; allowed are {least} to {most}")
        return int(word)

    return number


class LimitError(BrainqError):
    """A number that is too large to be meant."""


def check_limits(settings: dict[str, Any]) -> None:
    """Raise LimitError where a configuration, as YAML has it, holds a count beyond its limit, by default ``MOST``."""
    for name, value in _numbers({key: each for key, each in settings.items() if key != _NOT_OURS}):
        most = _OF_KEYS.get(name.rpartition(".")[2], MOST)
        if value > most:
            raise LimitError(f"{name} is {value}; allowed are at most {most}")


def _numbers(tree: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Yield every whole number with its key, ``stages.0.epochs``; others, such as a rate, count nothing."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in items:
        yield from _numbers(value, f"{name}.{key}" if name else str(key))
    if isinstance(tree, int):
        yield name, tree
