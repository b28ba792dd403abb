"""A bundle outside the project's environment: other Pythons with its requirements alone, and emulated processors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from brainq_torch.run import load_run
from export.bundle.build import make_bundle
from tests.arm.emulate import PROCESSORS, DifferentError, UnavailableError, compare, emulate, fetch, find_uv

VERIFIED = "verified: model_int8.tflite, 8 golden images, 8 of them equal to the last bit"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tiny_run, tiny_int8_export):
    """An INT8 bundle. Read only."""
    target = tmp_path_factory.mktemp("bundles") / "clinic"
    make_bundle(load_run(tiny_run), tiny_int8_export, target)
    return target


def find_pythons():
    """Return the PATH's Pythons that the bundle is for and that are not the project's, one of each version.

    Those that answer: a pyenv shim may not.
    """
    found = {}
    for version in {"3.10", "3.11", "3.12", "3.13"} - {"{}.{}".format(*sys.version_info[:2])}:
        paths = [Path(folder, f"python{version}") for folder in os.get_exec_path()]
        for python in filter(Path.is_file, paths):
            if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
                found.setdefault(version, python)
    return found


def make_environment(python, folder, requirements):
    """Make an environment with nothing but the requirements. Returns its Python."""
    made = folder / "bin" / "python"
    if uv := find_uv():
        fetch(uv, "venv", "--python", python, folder)
        fetch(uv, "pip", "install", "--python", made, "-r", requirements)
    else:
        fetch(python, "-m", "venv", folder)
        fetch(made, "-m", "pip", "install", "-r", requirements)
    return made


def test_it_verifies_with_other_pythons_and_its_requirements_alone(bundle, tmp_path):
    pythons = find_pythons()
    if not pythons:
        pytest.skip("no Python from 3.10 to 3.13 but the project's is on the PATH")
    for version, found in pythons.items():
        try:
            python = make_environment(found, tmp_path / version, bundle / "requirements.txt")
        except UnavailableError as error:
            pytest.skip(f"the packages cannot be had: {error}")
        command = [python, bundle / "predict.py", "--verify"]
        run = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
        assert (run.returncode, run.stdout) == (0, VERIFIED + "\n"), f"{version}: {run.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("machine", PROCESSORS)
def test_it_verifies_on_emulated_processors_and_gives_the_same_logits(bundle, tmp_path, machine):
    try:
        lines = emulate(bundle, tmp_path, machine)
    except UnavailableError as error:
        pytest.skip(f"no emulated {machine}: {error}")
    same = "20 images: 20 equal to the last bit, logits differ by 0"
    assert lines == [f"{processor} (emulated): {VERIFIED}; {same}" for processor in PROCESSORS[machine]]


def test_other_logits_are_found():
    assert compare([[0.0, 1.0]], [[0.0, 1.0 + 1e-6]], is_integer=False).endswith("differ by 1e-06")
    with pytest.raises(DifferentError, match="1 images: 0 equal"):
        compare([[0.0, 1.0]], [[0.0, 1.0 + 1e-6]], is_integer=True)
    with pytest.raises(DifferentError, match=r"logits differ by 0\.1"):
        compare([[0.0, 1.1]], [[0.0, 1.0]], is_integer=False)
