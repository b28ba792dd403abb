import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from brainq_torch.lock import LockedError
from export.folder import ExportFolderError, check_target, write_as_a_whole
from tests.support.killed import Killed, die_after
from tests.support.windows import refuse_as_windows


def write(target, replace=False, content="new"):
    with write_as_a_whole(target, replace) as folder:
        (folder / "model").write_text(content)
        (folder / "parity.json").write_text(json.dumps({"artefacts": {"model": {}}}))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "export"
    with write_as_a_whole(target, False) as folder:
        (folder / "model").write_text("new")
        assert not target.exists()
        assert names(target.parent) == ["export.lock", "export.partial"]
    assert names(target.parent) == ["export"]
    assert names(target) == ["model"]


def test_where_the_block_raises_what_was_there_stays(tmp_path):
    def fill_the_disk():
        with write_as_a_whole(tmp_path / "export", True) as folder:
            (folder / "model").write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert names(tmp_path) == []
    write(tmp_path / "export", content="old")
    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert names(tmp_path) == ["export"]
    assert (tmp_path / "export/model").read_text() == "old"


@pytest.mark.parametrize("windows", [False, True])  # which flushes files and no folders
def test_replace_puts_the_new_one_in_its_place(tmp_path, monkeypatch, windows):
    if windows:
        refuse_as_windows(monkeypatch)
    write(tmp_path / "export", content="old")
    write(tmp_path / "export", replace=True)
    assert (tmp_path / "export/model").read_text() == "new"
    assert names(tmp_path) == ["export", *["export.lock"] * windows]


def test_replace_refuses_what_no_export_made(tmp_path):
    write(tmp_path / "export")
    (tmp_path / "export/thesis.docx").write_text("years of work")
    with pytest.raises(ExportFolderError, match=r"no part of an export \(thesis.docx\)"):
        write(tmp_path / "export", replace=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").write_text("dear")
    with pytest.raises(ExportFolderError, match="is not an export"):
        write(tmp_path / "home", replace=True)
    assert (tmp_path / "export/thesis.docx").exists()
    assert (tmp_path / "home/letter").exists()


def test_an_empty_folder_is_free_and_a_file_is_not(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert names(tmp_path / "empty") == ["model", "parity.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportFolderError, match="is not a folder"):
        check_target(tmp_path / "file", replace=True)


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, capsys):
    write(tmp_path / "export", content="old")
    (tmp_path / "export").rename(tmp_path / "export.replaced.partial")
    with pytest.raises(ExportFolderError, match="exists"):
        write(tmp_path / "export")
    assert (tmp_path / "export/model").read_text() == "old"
    assert "putting back" in capsys.readouterr().err


def test_a_kill_after_the_two_renames_leaves_no_rubbish(tmp_path, capsys):
    write(tmp_path / "export", content="new")
    write(tmp_path / "export.replaced.partial", content="old")
    write(tmp_path / "export", replace=True)
    assert "after replacing it" in capsys.readouterr().err
    assert names(tmp_path) == ["export"]


def test_a_kill_while_the_old_one_is_removed_harms_neither(tmp_path, monkeypatch):
    write(tmp_path / "export", content="old")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda folder: (folder / "model").unlink())
        die_after(patch, shutil, "rmtree")
        with pytest.raises(Killed):
            write(tmp_path / "export", replace=True)
    assert (tmp_path / "export/model").read_text() == "new"
    write(tmp_path / "export", replace=True, content="newer")
    assert names(tmp_path) == ["export"]


def test_a_process_that_writes_locks_the_folder_and_killed_leaves_no_half_export(tmp_path, capsys):
    code = (
        "import sys, time; from pathlib import Path; from export.folder import write_as_a_whole\n"
        "with write_as_a_whole(Path(sys.argv[1]), False) as folder:\n"
        "    (folder / 'deep').mkdir(); (folder / 'deep' / 'model').write_text('half')\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "export")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(LockedError, match=f"export is being written by process {process.pid} on "):
            write(tmp_path / "export")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert names(tmp_path) == ["export.lock", "export.partial"]
    start = time.monotonic()
    write(tmp_path / "export")
    assert time.monotonic() - start < 5
    (said,) = capsys.readouterr().err.splitlines()
    assert "unfinished folder of a killed export" in said
    assert names(tmp_path) == ["export"]
    assert names(tmp_path / "export") == ["model", "parity.json"]
