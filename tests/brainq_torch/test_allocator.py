"""Training and export start anew once with glibc's settings; a user's own setting, a flag and importers are left."""

import os
import shutil
import subprocess
import sys

import pytest

from brainq_torch.allocator import TUNABLES

NO_GLIBC = sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names
FIT = "import os, sys; print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), *sys.argv[1:])"


@pytest.fixture
def ask(tmp_path):
    """Start Python where the product's package holds a fit that says its process, settings and words."""
    (tmp_path / "brainq_torch").mkdir()
    for name in ("__init__", "allocator", "openmp"):
        shutil.copy(f"brainq_torch/{name}.py", tmp_path / "brainq_torch")
    (tmp_path / "brainq_torch" / "fit.py").write_text(FIT)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "__init__.py").write_text("import brainq_torch")
    (tmp_path / "export" / "__main__.py").write_text(FIT)
    (tmp_path / "tools").mkdir()
    shutil.copy("tools/__init__.py", tmp_path / "tools")
    (tmp_path / "tools" / "restore.py").write_text(FIT)

    def start(*words, **settings):
        kept = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | settings
        with subprocess.Popen(
            [sys.executable, *words], cwd=tmp_path, env=kept, stdout=subprocess.PIPE, text=True
        ) as child:
            pid, tunables, *given = child.communicate()[0].split()
        assert int(pid) == child.pid  # a supervisor's signals still reach it
        return tunables, given

    return start


@pytest.mark.skipif(NO_GLIBC, reason="another C library")
@pytest.mark.parametrize("command", ["brainq_torch.fit", "export", "tools.restore"])
def test_a_command_keeps_its_memory_and_its_words(ask, command):
    assert ask("-m", command, "--seed", "3") == (TUNABLES, ["--seed", "3"])


@pytest.mark.skipif(NO_GLIBC, reason="another C library")
def test_so_do_their_brainq_words_and_no_other(ask, tmp_path):
    (tmp_path / "brainq").write_text("import sys, brainq_torch; sys.argv.pop(1); import brainq_torch.fit")
    assert ask("brainq", "fit", "--seed", "3") == ask("brainq", "export", "--seed", "3") == (TUNABLES, ["--seed", "3"])
    assert ask("brainq", "evaluate", "fit") == ("None", ["fit"])


@pytest.mark.parametrize("words", [["--fast_malloc=false"], ["--fast_malloc", "false"]])
def test_a_flag_switches_it_off(ask, words):
    assert ask("-m", "brainq_torch.fit", *words) == ("None", words)


def test_the_users_own_setting_stays(ask):
    assert ask("-m", "brainq_torch.fit", GLIBC_TUNABLES="glibc.malloc.perturb=0")[0] == "glibc.malloc.perturb=0"


def test_a_program_that_imports_the_package_is_left(ask):
    assert ask("-c", "import brainq_torch.fit") == ("None", [])
