"""``brainq COMMAND``: every command by its name."""

from importlib import import_module

import pytest

from brainq_torch import __version__
from tools import predict
from tools.__main__ import list_commands, main


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
