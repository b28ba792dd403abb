"""A fixture of the commands that carry out others as steps."""

import pytest

from brainq_torch.fit import main as fit
from tools import restore
from tools.study import runner

COMMANDS = {"brainq_torch.fit": fit, "tools.restore": restore.main}


@pytest.fixture
def in_process(monkeypatch):
    """Run the steps' commands in this process, their code unchanged whoever edits the tree; return their words."""
    done = []

    def run(words, title, log, say):
        done.append(list(words))
        log.write_text(f"{title}\n")
        return COMMANDS[words[0]](list(words[1:]))

    monkeypatch.setattr(runner, "run_logged", run)
    monkeypatch.setattr(runner, "describe_code", lambda: "one commit")
    return done
