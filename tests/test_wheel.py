"""A wheel holds all that the commands need: built, installed with pip in its own environment, run far from here."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

PARTS = ("brainq_torch", "configs", "export", "tools")
MODEL = Path("results/mobilenetv2_int8/model_int8.tflite").resolve()


def run(*words, cwd, **more):
    return subprocess.run([str(word) for word in words], cwd=cwd, check=True, text=True, stdout=subprocess.PIPE, **more)


def list_files(folder):
    paths = (path.relative_to(folder) for part in PARTS for path in (folder / part).rglob("*") if path.is_file())
    return {path for path in paths if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What a wheel is built from. The build writes beside it."""
    folder = tmp_path_factory.mktemp("wheel") / "source"
    for part in PARTS:
        shutil.copytree(part, folder / part, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(name, folder)
    return folder


@pytest.fixture(scope="module")
def python(source):
    """Python of an environment with the wheel, which sees this one's packages except ours: those take 8 GB."""
    if importlib.util.find_spec("ensurepip") is None:
        pytest.skip("this Python brings no pip (Debian: apt-get install python3-venv)")
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    name = run(sys.executable, "-c", build, cwd=source).stdout.splitlines()[-1]
    folder = source.parent / "environment"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", source.parent / name, cwd=source.parent)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=source.parent).stdout
    # A path in a .pth file: the editable install's own .pth over there is not read.
    Path(packages.strip(), "others.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_it_holds_every_file_and_nothing_more(python, source):
    code = "import brainq_torch; print(brainq_torch.__file__)"
    installed = Path(run(python, "-c", code, cwd=source.parent).stdout.strip()).parent.parent
    assert installed.is_relative_to(source.parent / "environment")
    assert list_files(installed) == list_files(source)
    assert not (installed / "tests").exists()


def test_its_commands_run_without_a_checkout(python, phantoms, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    image = next(phantoms.glob("Testing/*/*.png"))
    commands = {"export": ["--list"], "tools.predict": [MODEL, image.resolve()]}
    printed = {
        module: run(python, "-m", module, *words, cwd=tmp_path, env=environment).stdout
        for module, words in commands.items()
    }
    assert "model_int8.tflite" in printed["export"]
    assert image.name in printed["tools.predict"]
    brainq = [python.parent / "brainq"]
    said = run(*brainq, "predict", MODEL, image.resolve(), cwd=tmp_path, env=environment).stdout
    assert said == printed["tools.predict"]
    words = ["--config", "quickstart", "--config", "mobilenetv2", "--print_config"]
    assert "out: runs/mobilenetv2" in run(*brainq, "fit", *words, cwd=tmp_path, env=environment).stdout
    words = ["--config", "configs/study_quick.yaml", "--only", "no such row"]
    study = subprocess.run([*brainq, "study", *words], cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE)
    assert (study.returncode, "no such row" in study.stderr) == (2, True)
