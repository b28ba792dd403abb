import os
import signal
import subprocess
import sys

import pytest

from brainq_torch.lock import LockedError, hold_lock
from tests.support.windows import refuse_as_windows

HOLD = (
    "import sys, time; from pathlib import Path; from brainq_torch.lock import hold_lock\n"
    "with hold_lock(Path(sys.argv[1]), 'it is used'):\n"
    "    print('held', flush=True); time.sleep(60)\n"
)


def test_the_holder_is_named_and_leaves_no_file(tmp_path):
    with (
        hold_lock(tmp_path / "lock", "it is used"),
        pytest.raises(LockedError, match=f"it is used by process {os.getpid()} on "),
    ):
        hold_lock(tmp_path / "lock", "it is used").__enter__()
    assert not list(tmp_path.iterdir())


def test_where_a_locked_file_can_be_neither_written_nor_removed_it_is_held_all_the_same(tmp_path, monkeypatch):
    refuse_as_windows(monkeypatch)
    for _ in range(2):
        with (
            hold_lock(tmp_path / "lock", "it is used"),
            pytest.raises(LockedError, match="it is used by another process"),
        ):
            hold_lock(tmp_path / "lock", "it is used").__enter__()


@pytest.mark.parametrize("place", ["file", "/proc"])
def test_a_folder_that_cannot_be_written_is_no_other_process(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(LockedError, match=r"cannot be written .*; name another folder with --bundle"):
        hold_lock(tmp_path / place / "lock", "it is used", "--bundle").__enter__()


def test_a_lock_ends_with_its_process_whatever_kills_it(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=f"process {process.pid} on "):
            hold_lock(tmp_path / "lock", "it is used").__enter__()
        process.kill()
    with hold_lock(tmp_path / "lock", "it is used"):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_a_process_that_the_holder_forked_does_not_keep_the_lock(tmp_path):
    forking = HOLD.replace("import sys", "import os, sys").replace(
        "print('held', flush=True)", "os.write(1, b'%d\\n' % os.fork())"
    )
    with subprocess.Popen([sys.executable, "-c", forking, str(tmp_path / "lock")], stdout=subprocess.PIPE) as process:
        child = max(int(process.stdout.readline().split()[0]) for _ in range(2))  # both are up
        process.kill()
        process.wait()
        try:
            with hold_lock(tmp_path / "lock", "it is used"):
                pass
        finally:
            os.kill(child, signal.SIGKILL)
