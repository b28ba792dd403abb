"""What a command may load before it has anything to do: a start must not cost what only training needs."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "scipy.special", "sklearn", "matplotlib", "tensorflow")


def loaded(module, *words):
    """Which of the heavy packages a command has loaded when it ends, and its output."""
    code = (
        "import runpy, sys\nmodule = sys.argv.pop(1)\n"
        "try: runpy.run_module(module, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print('loaded', *[name for name in {HEAVY} if name in sys.modules])"
    )
    words = [sys.executable, "-c", code, module, *map(str, words)]
    done = subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout.splitlines()[-1].split()[1:]


HELPS = ("tools.predict", "tools.evaluate", "tools.doctor", "tools.bench", "export")


@pytest.mark.parametrize(("module", "word"), [*((module, "--help") for module in HELPS), ("export", "--list")])
def test_help_and_the_list_of_recipes_load_nothing_heavy(module, word):
    assert loaded(module, word) == []


@pytest.mark.parametrize("kind", ["tflite", "onnx"])
def test_a_file_runs_without_pytorch(kind, tiny_int8_export, phantoms, tmp_path):
    file = tiny_int8_export / f"model_int8.{kind}"
    image = next(phantoms.glob("Testing/*/*.png"))
    assert loaded("tools.predict", file, image) == []
    assert loaded("tools.evaluate", file, "--data", phantoms, "--json", tmp_path / "evaluate.json") == []
    assert loaded("tools.doctor", file) == []


def test_a_run_folder_loads_pytorch(tiny_run, phantoms):
    """The probe sees what is loaded."""
    assert "torch" in loaded("tools.predict", tiny_run, next(phantoms.glob("Testing/*/*.png")))
