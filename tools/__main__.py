"""Every command under one name: ``brainq fit|export|predict|evaluate|...``, the same as ``python -m``."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from brainq_torch import __version__

HERE = Path(__file__).parent


def list_commands() -> dict[str, str]:
    """Return every command's name and the module that it is."""
    files = [path.stem for path in HERE.glob("[a-z]*.py")]
    folders = [path.parent.name for path in HERE.glob("*/__main__.py")]
    ours = {name.replace("_", "-"): f"tools.{name}" for name in sorted(files + folders)}
    return {"fit": "brainq_torch.fit", "export": "export", **ours}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first word names with the others. Returns its exit code."""
    commands = list_commands()
    parser = argparse.ArgumentParser(
        prog="brainq", description=__doc__, epilog="brainq COMMAND --help says what a command takes."
    )
    parser.add_argument("--version", action="version", version=f"brainq_torch {__version__}")
    parser.add_argument(
        "command",
        type=lambda word: word.replace("_", "-"),  # a tool's name as ``python -m`` has it
        choices=commands,
        metavar="COMMAND",
        help=", ".join(commands),
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="the command's own words")
    options = parser.parse_args(arguments)
    module = commands[options.command]
    package = module == "export" or (HERE / module.rpartition(".")[2]).is_dir()
    code: int = import_module(f"{module}.__main__" if package else module).main(options.words)
    return code


if __name__ == "__main__":
    sys.exit(main())
