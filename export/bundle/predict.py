#!/usr/bin/env python3
"""Name the class of brain-MRI images and series: python predict.py scan.png folder/ [--json]. For research only.

Needs Python 3.10 and the packages of requirements.txt, no PyTorch: ai-edge-litert, numpy and Pillow, pydicom for DICOM
files, nibabel for NIfTI volumes. --verify replays the golden images of this folder; --page needs Python alone. Before
every run the folder is checked against SHA256SUMS, and nothing is answered when a byte of it has changed. The sums find
damage and careless changes; whoever means harm could write new ones.
"""

# ruff: noqa: E402 - imports that follow the guard
import sys

OLDEST_PYTHON = (3, 10)
if __name__ == "__main__":  # before any other import
    if sys.version_info < OLDEST_PYTHON or sys.maxsize < 2**32:
        sys.exit("error: a 64-bit Python 3.10 or newer is needed")
    if not sys.flags.isolated and not getattr(sys.flags, "safe_path", False):
        # This folder: until it has been checked, a json.py in it must not run in place of Python's own.
        sys.path[:] = [entry for entry in sys.path[1:] if entry != sys.path[0]]
    import os
    import signal

    def _end(number: int, frame: object) -> None:
        """End at once, until brainq_torch/stopping does it: nothing is begun yet."""
        os.write(2, b"stopped\n")
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: what is opened next would be taken for it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as this runs

import argparse
import hashlib
import io
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SUMS = "SHA256SUMS"
NEEDED = ("bundle.json", "labels.txt", "pixels.json", "golden.json", "predict.py")
UNUSABLE = 2
CODE = (".py", ".pyc", ".pyo", ".pyw", ".so", ".pyd", ".dll", ".dylib", ".tflite")
"""Endings of what might be run in place of a package or a model, on any system. Other added files do no harm."""
RUNTIME = "https://aka.ms/vs/17/release/vc_redist.x64.exe"
"""Microsoft's libraries that LiteRT needs on Windows; neither Windows nor Python brings all of them."""
_NAMED = 5


class DamagedBundleError(Exception):
    """A folder that is not as it was made."""


def check_files(folder: Path) -> None:
    """Compare every file with SHA256SUMS.

    Raises:
        DamagedBundleError: A file is missing, changed or added; it is named.
    """
    try:
        sums = read_sums(folder)
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedBundleError(f"{SUMS} cannot be read ({error}); copy the whole folder again") from error
    wrong = [f"{name} is not listed in {SUMS}" for name in NEEDED if name not in sums]
    for name, digest in sorted(sums.items()):
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            wrong.append(f"{name} has changed")
    added = [f"{name} was added, move it out" for name in _find_added_code(folder, sums)]
    if wrong or added:
        faults = [*wrong, *added]
        named = "; ".join(faults[:_NAMED]) + (f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else "")
        remedy = "Copy the whole folder again" if wrong else "What was added might be run in place of a package"
        raise DamagedBundleError(f"this folder was damaged or changed: {_printable(named)}. {remedy}")


def read_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that the bundle was made of.

    Raises:
        OSError: There is no such file.
        UnicodeDecodeError: It is no text.
    """
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines if "  " in line)}


def _find_added_code(folder: Path, sums: dict[str, str]) -> list[str]:
    """Return what is not listed and might be run: files by their ending, and links to other folders.

    Nothing whose name starts with a dot could, such as the ._predict.py that a Mac leaves beside predict.py.
    """
    added = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if Path(parent, name).is_symlink()]
        code = [name for name in files if name.lower().endswith(CODE) and not name.startswith(".")]
        added += [Path(parent, name).relative_to(folder).as_posix() for name in [*links, *code]]
    return sorted(set(added) - set(sums))


def _printable(text: str) -> str:
    """Escape control characters and undecodable bytes: a file name may hold anything."""
    letters = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in letters)


def add_series_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which slices are answered, and where the answers go; ``tools.predict`` takes the same."""
    parser.add_argument("--json", action="store_true", help="one JSON object per line: of each slice and each series")
    parser.add_argument("--slices", default="all", help="of a series: all (default), middle, a number, or every=K")
    add_limits(parser, "of a series, in place of the model's own")
    parser.add_argument("--csv", metavar="FILE", help="write the answers as a table, too, replacing FILE")
    parser.add_argument("--montage", metavar="FILE", help="write a PNG of all answered slices, replacing FILE")
    words = "of NIfTI volumes (default: axial, and a single slice's own); DICOM is shown as it was taken"
    parser.add_argument("--plane", choices=("axial", "coronal", "sagittal"), help=words)


def add_limits(parser: argparse.ArgumentParser, use: str) -> None:
    """Add the limits of a series' answer; ``python -m export`` takes the same. use: what is done with them."""
    words = (
        f"{use}: notumor up to HEALTHY, a tumour from TUMOUR, as tools.series_rule fits them to patients of your own"
    )
    parser.add_argument("--limits", nargs=2, type=float, metavar=("HEALTHY", "TUMOUR"), help=words)


def serve_page(folder: Path) -> int:
    """Open the browser page and serve it to this computer alone, until Ctrl-C; it needs no package."""
    import webbrowser

    if not (folder / "index.html").is_file():
        raise DamagedBundleError("this folder was made without a page")
    with make_server(folder) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        print(f"the page: {address}; Ctrl-C ends it", flush=True)
        webbrowser.open(address)
        server.serve_forever()
    return 0


def make_server(folder: Path) -> Any:
    """Return what serves a folder on a free port."""
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    # Python asks Windows' registry, which may call a script plain text, and no browser runs that as a module.
    scripts = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".wasm": "application/wasm"}
    more = {"extensions_map": SimpleHTTPRequestHandler.extensions_map | scripts, "log_message": lambda *words: None}
    handler = type("PageHandler", (SimpleHTTPRequestHandler,), more)
    return ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))


def main(arguments: Sequence[str] | None = None, folder: Path = HERE) -> int:
    """Run the command.

    Returns:
        0; 1 when an image could not be read or a golden image differs; 2 when the folder or Python cannot be used; 130
        after Ctrl-C, 143 after SIGTERM.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, folders, NIfTI volumes, a DICOMDIR")
    add_series_options(parser)
    parser.add_argument("--verify", action="store_true", help="replay the golden images and stop")
    parser.add_argument("--page", action="store_true", help="open the browser page and serve it until Ctrl-C")
    parser.add_argument("--model", metavar="FILE", help="which of this folder's model files (default: the first)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if not options.images and not options.verify and not options.page:
        parser.error("IMAGE is missing; name image files or folders, or use --verify or --page")
    try:
        check_files(folder)
        if __name__ == "__main__":
            sys.path.insert(0, str(folder))
        if options.page:
            return serve_page(folder)
        from export.bundle import answers  # not before: nothing of a changed folder may run
    except ModuleNotFoundError as error:
        fault = f"{error.name} is not installed: python -m pip install -r requirements.txt, for Python 3.10 to 3.13"
    except ImportError as error:  # of LiteRT's own libraries
        fault = f"{error}. On Windows, install Microsoft's Visual C++ Redistributable: {RUNTIME}"
    except DamagedBundleError as error:
        fault = str(error)
    else:
        return answers.run(folder, options)
    print(f"error: {fault}", file=sys.stderr)
    return UNUSABLE


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # this folder stays as it was made
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that this console has no letters for stops nothing
    try:
        sys.exit(main())
    except KeyboardInterrupt as stop:
        print("stopped", file=sys.stderr)
        sys.exit(130 if type(stop) is KeyboardInterrupt else 143)  # SIGTERM: brainq_torch/stopping
