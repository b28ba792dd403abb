"""The commands that READMEs, Makefile and configurations name are read from there: the real parsers take them."""

import argparse
import importlib
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import jsonargparse
import pytest

from export.bundle.web import INSTALL

CHAPTERS = [Path(name) for name in ("README.md", "configs/README.md", "export/README.md", "tools/README.md")]
README = "\n".join(path.read_text() for path in CHAPTERS)
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))


def read_commands(text):
    """The words of every ``python -m MODULE ...`` of ours in lines of shell; a bundle's predict.py is a module, too."""
    text = (
        re.sub(r"\\\n", " ", text).replace("$(PYTHON)", "python").replace("python clinic/", "python -m export.bundle.")
    )
    for line in re.findall(r"python -m .*", text):
        words = shlex.split(line, comments=True)[2:]
        if words[0].split(".")[0] in ("brainq_torch", "export", "tools"):
            yield words[0].removesuffix(".py"), words[1:]


def read_inline_commands(text):
    """Commands within a line of prose, with their [optional] flags; without any flag it is a name."""
    spans = re.findall(r"`(python -m [^`]* [^`]*)`", text)
    return read_commands("\n".join(re.sub(r"[][]", "", span) for span in spans if "--" in span))


COMMANDS = [
    *read_commands(BLOCKS), *read_inline_commands(README), *read_commands(Path("Makefile").read_text()),
    *(command for path in sorted(Path("configs").glob("*.yaml")) for command in read_commands(
        "\n".join(line.lstrip("#") for line in path.read_text().splitlines() if line.startswith("#"))
    )),
]  # fmt: skip


class ParsedError(BaseException):
    """The parser took the words. No ordinary exception: commands turn those into exit codes."""


PASSES_ON = {"tools.adapt", "tools.restore", "tools.sources"}
"""What these do not know is for ``brainq_torch.fit``."""


def parse(module, words, monkeypatch):
    name = "parse_known_args" if module in PASSES_ON else "parse_args"
    for parser in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
        method = getattr(parser, name)

        def stop(self, *arguments, original=method, **keywords):
            original(self, *arguments, **keywords)
            raise ParsedError

        monkeypatch.setattr(parser, name, stop)
    main = importlib.import_module(f"{module}.__main__" if Path(*module.split(".")).is_dir() else module).main
    with pytest.raises(ParsedError):
        main(words)


@pytest.mark.parametrize(("module", "words"), COMMANDS, ids=[shlex.join([name, *words]) for name, words in COMMANDS])
def test_it_parses(module, words, monkeypatch):
    parse(module, words, monkeypatch)


def test_they_were_found():
    modules = {module for module, _ in COMMANDS}
    assert {"brainq_torch.fit", "export", "export.bundle.predict", "tools.evaluate", "tools.study"} <= modules
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(("module", "words"), [("brainq_torch.fit", ["--data.rot", "DIR"]), ("export", ["R", "--lst"])])
def test_a_wrong_flag_is_seen(module, words, monkeypatch):
    with pytest.raises(SystemExit):
        parse(module, words, monkeypatch)


def test_the_readme_installs_the_page_s_runtime_as_the_code_says():
    assert INSTALL in BLOCKS


def find_dead_links(page):
    """Links of a Markdown or HTML page, and sources that it names, that are not there."""
    text = page.read_text()
    links = re.findall(r"\]\(([^)#\s]+)|(?:href|src)=\"([^\"#]+)", text)
    local = [unquote(one or other) for one, other in links if not re.match(r"[a-z]+:", one or other)]
    named = re.findall(r"[`/ ]((?:tests|configs|export|tools|brainq_torch)/[\w/-]+\.(?:py|yaml))`", text)
    lost = {link for link in local if not (page.parent / link).exists()}
    return sorted(lost | {name for name in named if not Path(name).exists()})


PAGES = [*CHAPTERS, *sorted(Path("results").rglob("*.md")), *sorted(Path("results").rglob("*.html"))]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_link_is_dead(page):
    assert find_dead_links(page) == []


def test_a_dead_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        '[here](page.md) [gone](gone.md#part) <a href="lost.html">lost</a> [far](https://example.org)'
        " `python tests/arm/emulate.py`, `tests/test_gone.py`"
    )
    assert find_dead_links(page) == ["gone.md", "lost.html", "tests/test_gone.py"]


def test_the_readme_is_short():
    assert len(Path("README.md").read_text().splitlines()) <= 150
