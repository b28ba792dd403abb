"""``brainq COMMAND``: every command by its name."""

from importlib import import_module
from pathlib import Path

import pytest

from brainq_torch import __version__
from brainq_torch.run_files import as_typed, resume_command
from tools import predict
from tools.__main__ import list_commands, main

MODULES = ("python -m brainq_torch.fit", "python -m tools.restore")


def test_every_command_is_there_and_runs_its_module(monkeypatch):
    commands = list_commands()
    assert {"fit", "export", "evaluate", "predict", "doctor", "study", "low-bits", "bench-training"} < commands.keys()
    for name, module in commands.items():
        spec = import_module(module)
        command = import_module(f"{module}.__main__") if hasattr(spec, "__path__") else spec
        monkeypatch.setattr(command, "main", lambda words, name=name: print(name, *words) or 7)
        for word in (name, name.replace("-", "_")):
            assert main([word, "--help", "x"]) == 7


def test_words_pass_as_they_are(monkeypatch, ended):
    monkeypatch.setattr(predict, "main", lambda words: print(words) or 0)
    assert ended(main(["predict", "--help", "a b", "--json"])).out == "['--help', 'a b', '--json']\n"


@pytest.mark.parametrize(("words", "code", "said"), [(["--version"], 0, __version__), (["predct"], 2, "'predict'")])
def test_it_says_its_version_and_its_commands(words, code, said, stopped):
    assert said in "".join(stopped(main, words, code))


def test_help_and_errors_name_a_command_as_it_was_typed(monkeypatch, stopped):
    for typed in ("brainq", "-m"):
        monkeypatch.setattr("sys.argv", [f"/some/where/{typed}"])
        for name, module in list_commands().items():
            program = f"brainq {name}" if typed == "brainq" else f"python -m {module}"
            assert stopped(main, [name, "--help"], 0).out.startswith(f"usage: {program} ")
    assert "usage: python -m export " in stopped(main, ["export"], 2).err


@pytest.mark.parametrize(("typed", "fit", "restore"), [("brainq", "brainq fit", "brainq restore"), ("-m", *MODULES)])
def test_advice_names_commands_as_they_were_typed(typed, fit, restore, monkeypatch, ended):
    monkeypatch.setattr("sys.argv", [f"/some/where/{typed}"])
    said = f"README.md is no folder; give a run folder, as {fit} makes it; {restore} makes one of a float .tflite\n"
    assert ended(main(["export", "README.md"]), 2).err == f"error: {said}"
    assert resume_command(Path("a b")) == f"{fit} --resume --out 'a b'"
    assert as_typed("python -m pip install export") == "python -m pip install export"
