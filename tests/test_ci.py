"""CI's script goes on where something optional cannot be had, and fails where tests fail or too many are skipped."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.bundle.web import INSTALL
from tests import conftest

pytest_plugins = ["pytester"]

RAN = "--durations=15 --most-skips="


@pytest.fixture
def checkout(tmp_path):
    """A checkout with CI's script and stubs of all that it calls, which say what they were called with and succeed."""
    if shutil.which("timeout") is None:
        pytest.skip("timeout is not installed (GNU coreutils)")
    (tmp_path / ".ci").mkdir()
    shutil.copy(".ci/run", tmp_path / ".ci" / "run")
    for program in ("bin/apt-get", "bin/npm", "bin/make", ".venv/bin/python"):
        path = tmp_path / program
        path.parent.mkdir(parents=True, exist_ok=True)
        spoil(path, 'echo "$(basename $0) $* $PYTEST_ADDOPTS" >> called')
    spoil(path, 'case "$*" in -c*) echo npm install web@1 ;; esac')
    return tmp_path


def spoil(path, command):
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def run(checkout):
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        [checkout / ".ci/run"], env=os.environ | {"PATH": path, "PYTEST_ADDOPTS": ""}, capture_output=True, text=True
    )
    return done.returncode, done.stdout, (checkout / "called").read_text().splitlines()


def test_ci_installs_what_tests_use_and_bounds_the_skips(checkout):
    code, printed, called = run(checkout)
    assert code == 0
    assert "SKIPPED" not in printed
    for program in ("chromium", "python3-venv", "qemu-user-static"):
        assert any(line.startswith("apt-get install") and program in line for line in called)
    assert "npm install web@1 " in called
    assert called[-1].startswith(f"make test {RAN}")


def test_the_python_that_ci_calls_runs():
    """Its stub above would answer any import, one of a file that has moved, too."""
    programs = re.findall(r'python -c "(.+?)"', Path(".ci/run").read_text(encoding="utf-8"))
    printed = [subprocess.check_output([sys.executable, "-c", program], text=True) for program in programs]
    assert printed == [f"{INSTALL}\n"]


@pytest.mark.parametrize(("program", "lacks"), [("apt-get", "chromium"), ("npm", "the browser page's runtime")])
def test_ci_says_what_it_could_not_install_and_goes_on(checkout, program, lacks):
    spoil(checkout / "bin" / program, "echo some; echo the registry is away >&2; exit 1")
    code, printed, called = run(checkout)
    assert code == 0
    assert f"SKIPPED: {lacks}: the registry is away" in printed
    assert called[-1] == "make test --durations=15 "


@pytest.mark.parametrize("target", ["test", ".venv/.everything"])
def test_ci_fails_where_make_fails(checkout, target):
    spoil(checkout / "bin" / "make", f'echo "make $*" >> called; [ "$*" != {target} ]')
    code, _, called = run(checkout)
    assert code != 0
    assert called[-1] == f"make {target}"


@pytest.mark.parametrize(("words", "failed"), [([], False), (["--most-skips=2"], False), (["--most-skips=1"], True)])
@pytest.mark.parametrize("workers", [[], ["-n", "1"]])
def test_too_many_skips_fail(pytester, words, failed, workers):
    hooks = (conftest.pytest_addoption, conftest.pytest_sessionfinish)
    pytester.makeconftest("import pytest\n" + "\n".join(map(inspect.getsource, hooks)))
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.skip(reason="no hands")
        def test_one(): pass
        @pytest.mark.skip(reason="no feet")
        def test_two(): pass
        """
    )
    result = pytester.runpytest("-rs", *words, *workers)
    assert result.ret == int(failed)
    result.stdout.fnmatch_lines(["*no hands*", "*2 skipped*"], consecutive=False)
    assert ("2 tests were skipped, at most 1 may be" in result.stdout.str()) == failed
