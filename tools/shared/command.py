"""How every command ends: with its report as JSON, or with a message on stderr and exit code 2 for a user's error.

Nothing here loads PyTorch: a command that runs a TFLite file starts in a second without.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from brainq_torch.console import run_command
from brainq_torch.data.limits import MOST, MOST_SEED, whole_number
from brainq_torch.openmp import MOST_THREADS
from brainq_torch.run_files import BrainqError, as_typed, format_command, write_json
from brainq_torch.series.kept_file import require_places


class CommandError(BrainqError):
    """A wrong argument of a command, or arguments that do not fit together."""


_PLACES = frozenset({"groups", "html", "json", "markdown", "plot"})
"""Options that name a file to be written; ``json`` alone is a switch where the lines go to standard output."""


def run_resumable(command: Callable[[], int]) -> int:
    """Run the body of a command that goes on where it was stopped, and return its exit code."""
    return run_command(command, "; the same command goes on from here")


def as_main(
    add_words: Callable[[argparse.ArgumentParser], None],
    body: Callable[..., int],
    run: Callable[[Callable[[], int]], int] = run_command,
    **of_parser: Any,
) -> Callable[..., int]:
    """Return a command's ``main``: it parses the words, by default the command line's, and returns the exit code.

    Args:
        add_words: adds the command's words to a parser, whose description is the docstring of this function's module.
        body: runs the command on what was parsed, and on the words for another command, and returns its exit code.
        run: runs that, such as ``run_resumable``.
        of_parser: more for the parser; what one without abbreviations does not know is for another command.
    """

    def main(arguments: Sequence[str] | None = None) -> int:
        module = add_words.__globals__
        name = getattr(module["__spec__"], "name", module["__name__"])  # python -m calls it __main__
        program = format_command(name.removesuffix(".__main__"))
        parser = argparse.ArgumentParser(prog=program, description=as_typed(module["__doc__"] or ""), **of_parser)
        add_words(parser)
        found = (parser.parse_args(arguments),) if parser.allow_abbrev else parser.parse_known_args(arguments)

        def checked() -> int:
            given = vars(found[0])
            require_places(found[0], *(given[name] for name in _PLACES & given.keys() if given[name] is not True))
            return body(*found)

        return run(checked)

    return main


positive, thread_count = whole_number(1, MOST), whole_number(1, MOST_THREADS)
seed_number, byte_count = whole_number(0, MOST_SEED), whole_number(1, 2**40)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add what names the images that a model is measured on, as ``tools.shared.images.choose_images`` takes it."""
    parser.add_argument("--data", required=True, metavar="DIR", help="class folders, or Training/Testing above them")
    parser.add_argument(
        "--split", help="Training, val, Testing, or all for every image (default: Testing if there, else val, else all)"
    )
    words = "take classes and split from a run's manifest.csv, hashes checked"
    parser.add_argument("--manifest", metavar="CSV", help=words)


def add_table(parser: argparse.ArgumentParser) -> None:
    """Add a table of the images, as ``locate_table`` takes it."""
    words = "a table of the images in place of class folders, in DIR or by its own path: path, class, and of group, "
    parser.add_argument(
        "--table", default="", metavar="CSV", help=words + "split, source, sequence, plane what is known"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the file for what a command found."""
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything found as JSON, replacing FILE")


def write_found(options: argparse.Namespace, found: Any) -> None:
    """Write what a command found where ``--json`` asks for it."""
    if options.json:
        write_json(options.json, found)


def add_threads(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """Add how many threads a model may use, by default one for each processor."""
    all_of_them = os.cpu_count() or 1
    words = f"of the processor (default: {default or f'all, {all_of_them}'})"
    parser.add_argument("--threads", type=thread_count, default=default or all_of_them, help=words)
