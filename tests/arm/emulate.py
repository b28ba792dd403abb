"""Runs a bundle on emulated processors, 64-bit ARM and old Intel ones: ``python tests/arm/emulate.py BUNDLE``.

On one processor type after the other: --verify, and the logits of 20 phantoms beside this machine's. For ARM, QEMU runs
Debian's arm64 Python 3.13 with the aarch64 wheels of the bundle's requirements; needs qemu-aarch64-static, apt-get,
dpkg-deb and uv or pip; fetches about 60 MB and changes nothing of this system. For Intel it runs this very Python and
needs qemu-x86_64-static. Where something cannot be had it says SKIPPED and the reason, and exits with 0; 1 where the
answers differ.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from brainq_torch.data.synthesis.phantom import render_phantom

PROCESSORS = {"aarch64": ("cortex-a53", "cortex-a72", "cortex-a76"), "x86_64": ("Penryn", "IvyBridge", "Haswell")}
"""QEMU's names; the Intel ones are of 2008 (SSE4.1), 2012 (AVX) and 2013 (AVX2, FMA)."""
PYTHON = "3.13"
RELEASE = "trixie"
FLOAT_TOLERANCE = 1e-3
IMAGES = 20
INTEGER_FILES = ("model_int8.tflite", "model_w4a8.tflite")
_SECONDS = 600
_OWN_KERNELS = ("-U", "OPENBLAS_CORETYPE")  # where it is set, NumPy runs this machine's instructions on any other
_ALONE = (  # both in one process: the emulated start of numpy and LiteRT takes longest, compiling them most of it
    "import runpy, sys; packages, file, model, *images = sys.argv[1:]; sys.path.append(packages)\n"
    "import ai_edge_litert.interpreter, numpy, PIL.Image  # bytecode for the next processor: predict.py writes none\n"
    "for words in (['--verify'], ['--json', *images]):\n"
    "    sys.argv = [file, '--model', model, *words]\n"
    "    try: runpy.run_path(file, run_name='__main__')\n"
    "    except SystemExit as end:\n"
    "        if end.code: raise"
)
_WHEELS = [f"manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)] + ["manylinux2014_aarch64"]


class UnavailableError(Exception):
    """What cannot be had on this machine."""


class DifferentError(Exception):
    """A bundle that answers otherwise on another processor."""


def find_uv() -> str | None:
    """Return a uv that answers: `make` puts one into .uv where the PATH has none, and a pyenv shim may not work."""
    for uv in filter(None, (shutil.which("uv"), ".uv/bin/uv")):
        if Path(uv).exists() and subprocess.run([uv, "--version"], capture_output=True, check=False).returncode == 0:
            return uv
    return None


def fetch(*command: str | Path) -> str:
    """Run a command that brings something. Returns what it printed. Raises UnavailableError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{command[0]}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "failed").splitlines()[-1]
        raise UnavailableError(f"{Path(command[0]).name} says: {last}")
    return done.stdout


def fetch_python(folder: Path) -> Path:
    """Unpack Debian's arm64 Python and the libraries that the wheels need. Returns the root of their tree."""
    for name in ("lists/partial", "cache/archives/partial", "root/usr/lib"):
        (folder / name).mkdir(parents=True)
    (folder / "root/lib").symlink_to("usr/lib")
    (folder / "status").touch()
    archives = fetch("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Component: main")
    archive = next((line for line in archives.splitlines() if "security" not in line), None)
    if archive is None:
        raise UnavailableError("apt-get knows no archive of Debian")
    (folder / "sources.list").write_text(f"deb [arch=arm64] {archive} {RELEASE} main\n")
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list", "Dir::Etc::sourceparts": "-", "Dir::Cache": folder / "cache",
        "Dir::State::lists": folder / "lists", "Dir::State::status": folder / "status", "APT::Architecture": "arm64",
        "APT::Architectures": "arm64", "APT::Sandbox::User": "root", "APT::Update::Error-Mode": "any",
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    fetch("apt-get", *words, "update")
    packages = (f"python{PYTHON}", "libstdc++6")
    fetch("apt-get", *words, "install", "--download-only", "--yes", "--no-install-recommends", *packages)
    for package in sorted((folder / "cache/archives").glob("*.deb")):
        fetch("dpkg-deb", "-x", package, folder / "root")
    return folder / "root"


def fetch_packages(requirements: Path, folder: Path) -> Path:
    """Install aarch64 wheels into the folder, for the emulated Python."""
    wanted = ["--target", folder, "--only-binary", ":all:", "--python-version", PYTHON, "-r", requirements]
    if uv := find_uv():
        fetch(uv, "pip", "install", "--python-platform", "aarch64-manylinux_2_28", *wanted)
    else:
        platforms = [word for name in _WHEELS for word in ("--platform", name)]
        fetch(sys.executable, "-m", "pip", "install", *platforms, *wanted)
    return folder


def find_python(machine: str, requirements: Path, work: Path) -> list[str | Path]:
    """Return the words that run a Python of the machine, after QEMU's own, and where its packages are."""
    if machine == "aarch64":
        root = fetch_python(work / "debian")
        packages = fetch_packages(requirements, work / "packages")
        return ["-L", root, root / f"usr/bin/python{PYTHON}", "-ISc", _ALONE, packages]
    if platform.machine() != machine:
        raise UnavailableError(f"this machine's Python is not one for {machine}")
    return [sys.executable, "-ISc", _ALONE, sysconfig.get_path("platlib")]


def emulate(bundle: Path, work: Path, machine: str) -> list[str]:
    """Compare a bundle's answers on emulated processors with this machine's.

    Args:
        bundle: The folder; each of its model files is run.
        work: An empty folder for what is fetched.
        machine: Whose ``PROCESSORS``.

    Returns:
        A line for each file and processor.

    Raises:
        UnavailableError: something cannot be had here.
        DifferentError: golden images or integer logits differ, or float logits by more than ``FLOAT_TOLERANCE``.
    """
    qemu = shutil.which(f"qemu-{machine}-static")
    if qemu is None:
        raise UnavailableError(f"qemu-{machine}-static is not there: apt-get install qemu-user-static")
    python = find_python(machine, bundle / "requirements.txt", work)
    images = [work / f"{number}.png" for number in range(IMAGES)]
    for number, path in enumerate(images):
        Image.fromarray(render_phantom(number % 4, number, seed=1, size=160 + 7 * number)).save(path)
    lines = []
    for model in json.loads((bundle / "bundle.json").read_text())["models"]:
        here = [sys.executable, bundle / "predict.py", "--json", "--model", model["file"], *images]
        expected = _logits(_run(here))
        for processor in PROCESSORS[machine]:
            command = [qemu, *_OWN_KERNELS, "-cpu", processor, *python, bundle / "predict.py", model["file"], *images]
            verified, *found = _run(command)
            compared = compare(_logits(found), expected, model["file"] in INTEGER_FILES)
            lines.append(f"{processor} (emulated): {verified}; {compared}")
    return lines


def compare(found: list[list[float]], expected: list[list[float]], is_integer: bool) -> str:
    """Say how far (N, C) logits are from the expected ones. Raises DifferentError where that is too far."""
    pairs = zip(found, expected, strict=True)
    differences = [max(abs(a - b) for a, b in zip(one, other, strict=True)) for one, other in pairs]
    said = f"{len(found)} images: {differences.count(0)} equal to the last bit, logits differ by {max(differences):.1g}"
    if max(differences) > (0 if is_integer else FLOAT_TOLERANCE):
        raise DifferentError(said)
    return said


def _logits(said: list[str]) -> list[list[float]]:
    return [json.loads(line)["logits"] for line in said]


def _run(command: list[str | Path]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise DifferentError(f"{' '.join(map(str, command))} ends with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    options = parser.parse_args(arguments)
    for machine in PROCESSORS:
        with tempfile.TemporaryDirectory() as work:
            try:
                print("\n".join(emulate(options.bundle, Path(work), machine)))
            except UnavailableError as error:
                print(f"SKIPPED, {machine}: {error}")
            except DifferentError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
