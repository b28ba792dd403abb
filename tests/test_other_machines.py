"""A bundle outside the project's environment: other Pythons with its requirements alone, and emulated ARM processors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from arm.emulate import PROCESSORS, DifferentError, UnavailableError, emulate, fetch, find_uv

from brainq_torch.run import load_run
from export.bundle import make_bundle

VERIFIED = "verified: model_int8.tflite, 8 golden images, 8 of them equal to the last bit"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tiny_run, tiny_int8_export):
    """An INT8 bundle. Read only."""
    target = tmp_path_factory.mktemp("bundles") / "clinic"
    make_bundle(load_run(tiny_run), tiny_int8_export, target)
    return target


def find_python(version):
    """Return a Python of the PATH that answers (a pyenv shim may not), or skip the test."""
    for folder in os.get_exec_path():
        python = Path(folder, f"python{version}")
        if python.is_file() and subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
            return python
    return pytest.skip(f"python{version} is not on the PATH")


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


@pytest.mark.parametrize(
    "version", [v for v in ("3.10", "3.11", "3.12", "3.13") if v != "{}.{}".format(*sys.version_info[:2])]
)
def test_it_verifies_with_another_python_and_its_requirements_alone(bundle, tmp_path, version):
    try:
        python = make_environment(find_python(version), tmp_path / "fresh", bundle / "requirements.txt")
    except UnavailableError as error:
        pytest.skip(f"the packages cannot be had: {error}")
    command = [python, bundle / "predict.py", "--verify"]
    run = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert (run.returncode, run.stdout) == (0, VERIFIED + "\n"), run.stderr


@pytest.mark.slow
def test_it_verifies_on_emulated_arm_processors_and_gives_the_same_logits(bundle, tmp_path):
    try:
        lines = emulate(bundle, tmp_path)
    except UnavailableError as error:
        pytest.skip(f"no emulated ARM: {error}")
    same = "20 images: 20 equal to the last bit, logits differ by 0"
    assert lines == [f"{processor} (emulated): {VERIFIED}; {same}" for processor in PROCESSORS]


def test_other_logits_are_found():
    from arm.emulate import compare

    assert compare([[0.0, 1.0]], [[0.0, 1.0 + 1e-6]], is_integer=False).endswith("differ by 1e-06")
    with pytest.raises(DifferentError, match="1 images: 0 equal"):
        compare([[0.0, 1.0]], [[0.0, 1.0 + 1e-6]], is_integer=True)
    with pytest.raises(DifferentError, match=r"logits differ by 0\.1"):
        compare([[0.0, 1.1]], [[0.0, 1.0]], is_integer=False)
